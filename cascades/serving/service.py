"""State of a server: the cascade, what it is called, and how much it takes on at once."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from cascades.runtime import ranges
from cascades.serving import keys as keys_of_clients
from cascades.serving.cascade import ServedCascade
from cascades.serving.exchanges import Role
from cascades.serving.keys import ApiKey, LimitError, RequestRates
from cascades.serving.refusals import Refusal

log = logging.getLogger(__name__)

LOOPBACK = frozenset({'127.0.0.1', 'localhost', '::1'})


@dataclasses.dataclass(frozen=True)
class HttpLimits:
  """Limits of requests.

  Attributes:
    max_tokens: Longest answer in tokens, which is also the default.
    body_bytes: Largest body.
    body_seconds: Longest time for a body to arrive.
    concurrency: Requests at once; more are asked to come again.
  """

  max_tokens: int = 256
  body_bytes: int = 1 << 20
  body_seconds: float = 10.0
  concurrency: int = 64

  def __post_init__(self) -> None:
    counts = {'MAX_TOKENS': self.max_tokens, 'BODY_BYTES': self.body_bytes}
    ranges.check({**counts, 'CONCURRENCY': self.concurrency}, least=1, integer=True)
    ranges.check({'BODY_SECONDS': self.body_seconds}, above=0)


@dataclasses.dataclass(frozen=True)
class Listening:
  """Address and connections of a server.

  Attributes:
    host: Address to listen on; 127.0.0.1 is reached from this machine alone.
    port: Port; 0 takes a free one.
    connections: Connections at once.
    idle_seconds: Longest time until a connection has sent the head of a request.
    drain_seconds: Longest time for requests to finish once the server ends.
    names: Names by which clients may call the server, as a page of another site that makes its own
      name lead here cannot; None for any, or, at a loopback address, for those of this machine.
  """

  host: str = '127.0.0.1'
  port: int = 8080
  connections: int = 512
  idle_seconds: float = 10.0
  drain_seconds: float = 60.0
  names: Sequence[str] | None = None

  def __post_init__(self) -> None:
    ranges.check({'PORT': self.port}, least=0, most=65535, integer=True)
    ranges.check({'CONNECTIONS': self.connections}, least=1, integer=True)
    seconds = {'IDLE_SECONDS': self.idle_seconds, 'DRAIN_SECONDS': self.drain_seconds}
    ranges.check(seconds, above=0)

  @property
  def host_names(self) -> frozenset[str] | None:
    """Names by which clients may call the server; None for any."""
    if self.names is not None:
      return frozenset(name.lower() for name in self.names)
    return LOOPBACK if self.host in LOOPBACK else None


class NamedModel(NamedTuple):
  """Meaning of a name in the field `model`: a task of the cascade, or one of its models."""

  task: str | None = None
  role: Role | None = None


# Reasons why the server is not ready; none if it is.
Readiness: TypeAlias = Callable[[], Sequence[str]]


class Service:
  """A cascade with a name, clients, and limits.

  Attributes:
    cascade: Answers requests.
    limits: Limits of requests.
    running: Number of requests at this moment.
    refused: Requests that were refused before any model was asked, by status.
    notes: Remarks for operators, such as a policy file that cannot be read, by what they are about.
    is_draining: True once the server takes on nothing more.
  """

  def __init__(
    self,
    cascade: ServedCascade,
    *,
    name: str = 'cascade',
    limits: HttpLimits = HttpLimits(),
    keys: Sequence[ApiKey] = (),
    readiness: Sequence[Readiness] = (),
    barrier: Callable[[], str] = str,
  ):
    """Prepares a service.

    Args:
      cascade: Answers requests.
      name: Name of the cascade among models.
      limits: Limits of requests.
      keys: Keys of clients; without any, all are welcome.
      readiness: Reasons not to be ready, of models and logs.
      barrier: Reason to refuse requests, such as a log that cannot be written; '' for none.

    Raises:
      ValueError: Two models have one name.
    """
    self.cascade, self.name, self.limits = cascade, name, limits
    self.running, self.is_draining = 0, False
    self.notes: dict[str, str] = {}
    self.refused: collections.Counter[int] = collections.Counter()
    self.token = secrets.token_hex(4)
    self._keys, self._rates = tuple(keys), RequestRates()
    self._readiness, self._barrier = tuple(readiness), barrier
    self._count = 0
    roles = [*cascade.members]
    members = [member.model.name for member in cascade.members.values()]
    if len({name, *members}) < 1 + len(members) or '/' in name:
      raise ValueError(
        f'NAME={name!r:.80} and the models {", ".join(members)} must have different names, and '
        'NAME no "/": set NAME, SMALL_NAME or LARGE_NAME, or other names in MODELS.'
      )
    self._members: Mapping[str, Role] = dict(zip(members, roles, strict=True))

  @property
  def targets(self) -> dict[str, NamedModel]:
    """Meaning of each name: NAME, NAME/TASK for each task, and the models."""
    tasks = self.cascade.policy.tasks
    return {
      self.name: NamedModel(),
      **{f'{self.name}/{task}': NamedModel(task=task) for task in tasks if len(tasks) > 1},
      **{member: NamedModel(role=role) for member, role in self._members.items()},
    }

  def target(self, name: str) -> NamedModel:
    """Meaning of a name. Raises Refusal if there is no such model."""
    targets = self.targets
    if name not in targets:
      raise Refusal(
        404,
        f'There is no model {name!r:.80}; there are {", ".join(targets)}.',
        code='model_not_found',
        param='model',
      )
    return targets[name]

  def new_id(self, prefix: str) -> str:
    """Id of a response, unique also among servers."""
    self._count += 1
    return f'{prefix}{self.token}{self._count:010x}'

  def client(self, authorization: str | None) -> ApiKey:
    """Key of a request. Raises Refusal for one that is not known."""
    if not self._keys:
      return keys_of_clients.ANONYMOUS
    if (key := keys_of_clients.find(self._keys, authorization)) is None:
      expected = 'Authorization: Bearer TOKEN'
      message = f'This server expects a key, in a header {expected}.'
      raise Refusal(401, message, code='invalid_api_key')
    return key

  @contextlib.contextmanager
  def admitted(self, key: ApiKey) -> Iterator[None]:
    """Context manager of a request. Raises Refusal if there is no room for it."""
    if self.is_draining:
      raise Refusal(503, 'The server is shutting down.', code='draining', retry_after=5.0)
    if reason := self._barrier():
      raise Refusal(503, f'The server refuses requests: {reason}', code='refusing')
    if self.running >= self.limits.concurrency:
      message = f'The server answers {self.limits.concurrency} requests at once.'
      raise Refusal(429, message, code='server_full', retry_after=1.0)
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(self._rates.admitted(key))
      except LimitError as error:
        raise Refusal(
          429, str(error), code='rate_limit_exceeded', retry_after=error.retry_after
        ) from error
      self.running += 1
      try:
        yield
      finally:
        self.running -= 1

  def reasons(self) -> list[str]:
    """Reasons why the server is not ready."""
    reasons = [reason for check in self._readiness for reason in check()]
    return [*(['it is shutting down'] if self.is_draining else []), *reasons]

  def drain(self) -> None:
    """Take on nothing more."""
    self.is_draining = True
