"""Lines of text files, one value a line; errors name file and line."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import json
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Literal, TypeAlias, TypeVar

from etils import epath

Malformed: TypeAlias = Literal['error', 'skip']
T = TypeVar('T')
log = logging.getLogger(__name__)

MAX_LINE_BYTES = 16 << 20  # a small gzip file may hold a line that fills the memory

_SHOWN = 3
_SHOWN_CHARACTERS = 500
_DRAINED_BYTES = 1 << 20
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class MalformedLineError(ValueError):
  """A line that cannot be used; the message names file and line."""

  def __init__(self, file: epath.Path, number: int, reason: str) -> None:
    super().__init__(f'{file}, line {number}: {abbreviated(reason)}')


class Skipped:
  """Rejected lines: their number, and the first reasons. However many there are, they fit."""

  def __init__(self) -> None:
    self.count = 0
    self._shown: list[str] = []

  def add(self, reason: object) -> None:
    """Counts a line, and remembers the reason of one of the first."""
    self.count += 1
    if len(self._shown) < _SHOWN:
      self._shown.append(str(reason))

  def __str__(self) -> str:
    return '; '.join(self._shown)


def parsed_lines(
  path: epath.PathLike,
  parse: Callable[[int, str], T],
  *,
  malformed: Malformed,
  first: int = 1,
  max_bytes: int | None = None,
) -> Iterator[T]:
  """Parses the lines of a file, except blank ones.

  Args:
    path: a file; a name that ends in .gz is unpacked.
    parse: gives a value from a line's number and text; a ValueError rejects the line.
    malformed: 'error' stops at a rejected line. 'skip' skips it; skipped lines are counted and
      logged at the end with the first reasons.
    first: number of the first line to parse.
    max_bytes: a longer line is rejected, and never in memory; None takes `MAX_LINE_BYTES`.

  Yields:
    The values.

  Raises:
    MalformedLineError: at a rejected line, which may also be no UTF-8.
    ValueError: if a gzip file is damaged.
  """
  file = epath.Path(path)
  skipped = Skipped()
  max_bytes = MAX_LINE_BYTES if max_bytes is None else max_bytes
  for number, line in _cut_lines(file, max_bytes):
    if number < first or not line.strip():
      continue
    try:
      value = parse(number, decoded(line, max_bytes))
    except (ValueError, RecursionError) as error:
      rejected = MalformedLineError(file, number, reason(error))
      if malformed == 'error':
        raise rejected from error
      skipped.add(rejected)
      continue
    yield value
  if skipped.count:
    log.warning('Skipped %d malformed lines of %s. First: %s', skipped.count, file, skipped)


def first_line(path: epath.PathLike, max_bytes: int | None = None) -> tuple[int, str]:
  """Reads number and text of the first line that is not blank; (0, '') if there is none."""
  numbered = parsed_lines(
    path, lambda number, line: (number, line), malformed='error', max_bytes=max_bytes
  )
  return next(numbered, (0, ''))


def lines(path: epath.PathLike) -> Iterator[tuple[int, bytes]]:
  """Reads numbers and contents of all lines, including blank ones.

  Only a line feed ends a line, after a carriage return or not: U+2028 and the like are text.
  Raises MalformedLineError at a line of more than `MAX_LINE_BYTES`.
  """
  for number, line in _cut_lines(path, MAX_LINE_BYTES):
    if len(line) > MAX_LINE_BYTES:
      raise MalformedLineError(epath.Path(path), number, _too_long(MAX_LINE_BYTES))
    yield number, line


def _cut_lines(path: epath.PathLike, max_bytes: int) -> Iterator[tuple[int, bytes]]:
  """Lines without their ends; of a longer one, its first `max_bytes + 1` bytes."""
  if max_bytes < 1:
    raise ValueError(f'max_line_bytes is {max_bytes}; expected a number of bytes, at least 1.')
  longest = max_bytes + len(codecs.BOM_UTF8) + len(b'\r\n')
  with opened(path) as stream:
    number = 0
    while line := stream.readline(longest):
      number += 1
      text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
      yield number, text.removesuffix(b'\n').removesuffix(b'\r')[: max_bytes + 1]
      while line and not line.endswith(b'\n'):  # after the yield: an error need not wait for it
        line = stream.readline(_DRAINED_BYTES)


@contextlib.contextmanager
def opened(path: epath.PathLike) -> Iterator[IO[bytes] | gzip.GzipFile]:
  """Opens a file's bytes, unpacked if its name ends in .gz; ValueError if it is damaged."""
  file = epath.Path(path)
  with file.open('rb') as stream, contextlib.ExitStack() as stack:
    try:
      yield stack.enter_context(gzip.open(stream)) if file.suffix == '.gz' else stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise ValueError(
        f'{file} is truncated or not a gzip file ({error}); fetch or compress it again.'
      ) from error


def decoded(line: bytes, max_bytes: int) -> str:
  """The text of a line; ValueError if it is too long, not UTF-8, or has a NUL byte."""
  if len(line) > max_bytes:
    raise ValueError(_too_long(max_bytes))
  if (column := line.find(b'\0') + 1) and not line.startswith(_UTF_16):
    raise ValueError(f'a NUL byte at column {column}: the file is no text in UTF-8')
  return line.decode()


def json_object(line: str) -> dict[str, Any]:
  """Parses a line to a JSON object; ValueError if it is something else or repeats a key."""
  value = _DECODER.decode(line)
  if not isinstance(value, dict):
    names = {list: 'an array', str: 'a string', bool: 'a truth value', type(None): 'null'}
    raise ValueError(f'expected a JSON object, found {names.get(type(value), "a number")}')
  return value


def repeated(names: Iterable[T]) -> T | None:
  """The first name that occurs again; None if all are distinct."""
  seen: set[T] = set()
  for name in names:
    if name in seen:
      return name
    seen.add(name)
  return None


def abbreviated(text: str) -> str:
  """The beginning of a text from a foreign file, short enough for a message."""
  return text if len(text) <= _SHOWN_CHARACTERS else f'{text[:_SHOWN_CHARACTERS]} ...'


def required(path: epath.PathLike) -> epath.Path:
  """The path of an existing file; FileNotFoundError if there is none."""
  file = epath.Path(path)
  try:
    os.fsencode(file)
  except UnicodeEncodeError as error:
    raise FileNotFoundError(
      f'The file name {str(file)!r} does not exist in the encoding of this locale '
      f'({sys.getfilesystemencoding()}): set the environment variable PYTHONUTF8=1.'
    ) from error
  if not file.exists() or file.is_dir():
    folder = ': that is a directory' if file.exists() else ''
    raise FileNotFoundError(f'There is no file {file}{folder}.')
  return file


def sha256(path: epath.PathLike) -> str:
  """SHA-256 checksum of a file's content, as hexadecimal digits."""
  with epath.Path(path).open('rb') as stream:
    digest = hashlib.sha256()
    while block := stream.read(1 << 16):
      digest.update(block)
  return digest.hexdigest()


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    raise ValueError(f'the key {repeated(key for key, _ in pairs)!r} occurs twice')
  return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct_keys)  # `json.loads` would make one a line


def _too_long(max_bytes: int) -> str:
  return (
    f'longer than {max_bytes:,} bytes. If that is right, raise max_line_bytes of local_jsonl or '
    'local_tsv, or textfiles.MAX_LINE_BYTES for other files'
  )


def reason(error: Exception) -> str:
  """Reason why `decoded` or `json_object` refuses a line, for a message that names the line."""
  match error:
    case UnicodeDecodeError():
      is_utf_16 = error.object.startswith(_UTF_16)
      advice = '; it looks like UTF-16: save the file as UTF-8' if is_utf_16 else ''
      return f'not UTF-8: byte {error.object[error.start]:#04x} at column {error.start + 1}{advice}'
    case json.JSONDecodeError():
      return f'not JSON: {error.msg} at column {error.colno}'
    case RecursionError():
      return 'not usable JSON: nested too deeply'
  return str(error)
