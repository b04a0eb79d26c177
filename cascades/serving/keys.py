"""Keys of clients, and limits of each.

A file of keys is TOML, one table for each name, with the digest of the token or the token itself:

    [alice]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    requests_per_minute = 60
    [batch-jobs]
    token = "a-long-random-text"    # only in a file that nobody else can read (mode 0600)
    concurrent = 4
    tokens_per_day = 1_000_000
    dollars_per_day = 5

`printf %s TOKEN | sha256sum` prints a digest. Tokens are compared as digests, in constant time.
Everything here runs on the thread of the event loop.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import hmac
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from etils import epath

from cascades.runtime import ranges

LEAST_TOKEN = 16  # characters
MOST_REQUESTS = 100_000  # a minute: the times of so many are remembered
MINUTE = 60.0


class LimitError(OSError):
  """A limit or budget that a request would exceed.

  Attributes:
    retry_after: Seconds after which another try may be admitted.
  """

  def __init__(self, message: str, retry_after: float):
    super().__init__(message)
    self.retry_after = retry_after


@dataclasses.dataclass(frozen=True)
class KeyLimits:
  """Limits of a client; None for no limit.

  Attributes:
    requests_per_minute: Requests in any 60 seconds.
    concurrent: Requests at once.
    tokens_per_day: Tokens that all models read and write, in a day of UTC.
    dollars_per_day: Price of them.
  """

  requests_per_minute: int | None = None
  concurrent: int | None = None
  tokens_per_day: int | None = None
  dollars_per_day: float | None = None

  def __post_init__(self) -> None:
    counts = dataclasses.asdict(self)
    ranges.check({'dollars_per_day': counts.pop('dollars_per_day')}, least=0)
    per_minute = {'requests_per_minute': counts.pop('requests_per_minute')}
    ranges.check(per_minute, least=1, most=MOST_REQUESTS, integer=True)
    ranges.check(counts, least=1, integer=True)


class ApiKey(NamedTuple):
  """A client: its name, the SHA-256 of its token, and its limits."""

  name: str
  digest: bytes
  limits: KeyLimits = KeyLimits()


ANONYMOUS = ApiKey('', b'')  # the client of a server without keys


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
  token: Annotated[str, msgspec.Meta(min_length=LEAST_TOKEN)] | None = None
  sha256: Annotated[str, msgspec.Meta(pattern='^[0-9a-fA-F]{64}$')] | None = None
  requests_per_minute: int | None = None
  concurrent: int | None = None
  tokens_per_day: int | None = None
  dollars_per_day: float | None = None


def read(path: epath.PathLike) -> tuple[ApiKey, ...]:
  """Keys of a file. Messages never show a token.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The file is damaged, has an entry that is no key, or tokens that others can read.
  """
  path = epath.Path(path)
  content = path.read_bytes()
  try:
    tables = tomllib.loads(content.decode())
    keys = tuple(_key(name, entry) for name, entry in tables.items())
    private = all('token' not in entry for entry in tables.values())
    if not private and os.stat(path).st_mode & 0o077:
      raise ValueError('it has tokens and others can read it: chmod 600, or give sha256 instead')
    return _checked(keys)
  except ValueError as error:
    # The decoder's own messages quote the text.
    reason = type(error).__name__ if isinstance(error, UnicodeError) else str(error)
    raise ValueError(f'{path} is no file of keys: {reason}.') from None


def from_environment(
  variable: str, environment: Mapping[str, str] = os.environ, limits: KeyLimits | None = None
) -> tuple[ApiKey, ...]:
  """Keys of a variable of the environment, 'TOKEN' or 'NAME:TOKEN,NAME:TOKEN'.

  Args:
    variable: Name of the variable.
    environment: Variables by name.
    limits: Limits of each key; None for none.

  Raises:
    ValueError: There is no such variable, or it holds no keys. Messages never show what it holds.
  """
  if not environment.get(variable):
    raise ValueError(f'The environment has no variable {variable!r:.40} that holds keys.')
  try:
    entries = [entry.strip().rpartition(':') for entry in environment[variable].split(',')]
    names = [name or 'default' for name, _, _ in entries]
    tokens = [token for _, _, token in entries]
    keys = tuple(_key(name, {'token': token}) for name, token in zip(names, tokens, strict=True))
    return _checked(tuple(key._replace(limits=limits or KeyLimits()) for key in keys))
  except ValueError:  # which may quote what should have been a token
    raise ValueError(
      f'{variable} holds no keys: it takes TOKEN, or NAME:TOKEN,NAME:TOKEN, of different tokens of '
      f'{LEAST_TOKEN} or more printable characters.'
    ) from None


def _key(name: str, entry: Any) -> ApiKey:
  if not re.fullmatch(r'[\w.@-]{1,64}', name):
    raise ValueError("a name has 1 to 64 letters, digits, '_', '.', '-' or '@'")
  try:
    fields = msgspec.convert(entry, _Entry)
    limits = KeyLimits(**{
      field.name: getattr(fields, field.name) for field in dataclasses.fields(KeyLimits)
    })  # fmt: skip
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error
  if (fields.token is None) == (fields.sha256 is None):
    raise ValueError(f'{name}: expected either a token or its sha256')
  if fields.token is not None and not re.fullmatch(r'[!-~]+', fields.token):
    raise ValueError(f'{name}: the token has characters that no header takes')
  hashed = bytes.fromhex(fields.sha256) if fields.sha256 else _digest(fields.token or '')
  return ApiKey(name, hashed, limits)


def _checked(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
  if not keys:
    raise ValueError('it has no key')
  for names in (collections.Counter(key.name for key in keys),
                collections.Counter(key.digest for key in keys)):  # fmt: skip
    if max(names.values()) > 1:
      raise ValueError('two keys have one name, or one token')
  return keys


def find(keys: Sequence[ApiKey], authorization: str | None) -> ApiKey | None:
  """ApiKey of a header `Authorization: Bearer TOKEN`; None if it is that of no key.

  All keys are compared, each in constant time.
  """
  scheme, _, token = (authorization or '').partition(' ')
  hashed = _digest(token.strip())
  matches = [key for key in keys if hmac.compare_digest(key.digest, hashed)]
  return matches[0] if matches and scheme.lower() == 'bearer' else None


def _digest(token: str) -> bytes:
  return hashlib.sha256(token.encode('utf-8', 'surrogatepass')).digest()


class RequestRates:
  """Requests of each key in the last minute, and at this moment."""

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._times: dict[str, collections.deque[float]] = {}
    self._running: collections.Counter[str] = collections.Counter()

  @contextlib.contextmanager
  def admitted(self, key: ApiKey) -> Iterator[None]:
    """Context manager of a request, which counts as running inside.

    Raises:
      LimitError: The key has too many requests a minute, or at once.
    """
    limits, now = key.limits, self._clock()
    if limits.concurrent is not None and self._running[key.name] >= limits.concurrent:
      raise LimitError(f'{key.name} may have {limits.concurrent} requests at once.', 1.0)
    if limits.requests_per_minute is not None:
      times = self._times.setdefault(key.name, collections.deque())
      while times and now - times[0] >= MINUTE:
        times.popleft()
      if len(times) >= limits.requests_per_minute:
        raise LimitError(
          f'{key.name} may send {limits.requests_per_minute} requests a minute.',
          times[0] + MINUTE - now,
        )
      times.append(now)
    self._running[key.name] += 1
    try:
      yield
    finally:
      self._running[key.name] -= 1
