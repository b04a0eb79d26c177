"""Lines of text files, one value a line; what is malformed is named by file and line."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal, TypeAlias, TypeVar

from etils import epath

Malformed: TypeAlias = Literal['error', 'skip']
T = TypeVar('T')
log = logging.getLogger(__name__)

_SHOWN = 3


class MalformedLineError(ValueError):
  """A line that cannot be used, with its place."""

  def __init__(self, file: epath.Path, number: int, reason: str) -> None:
    super().__init__(f'{file}, line {number}: {reason}')


def parsed_lines(
  path: epath.PathLike, parse: Callable[[int, str], T], *, malformed: Malformed, first: int = 1
) -> Iterator[T]:
  """`parse(number, line)` of the lines from number `first` on; blank lines are passed over.

  A line that `parse` rejects with a ValueError stops the reading, or is skipped; skipped lines are
  counted, and logged at the end with the first reasons.
  """
  file = epath.Path(path)
  skipped: list[MalformedLineError] = []
  for number, line in lines(file):
    if number < first or not line.strip():
      continue
    try:
      value = parse(number, line.decode())
    except (ValueError, RecursionError) as error:
      place = MalformedLineError(file, number, _reason(error))
      if malformed == 'error':
        raise place from error
      skipped.append(place)
      continue
    yield value
  if skipped:
    shown = '; '.join(str(place) for place in skipped[:_SHOWN])
    log.warning('Skipped %d malformed lines of %s. First: %s', len(skipped), file, shown)


def first_line(path: epath.PathLike) -> tuple[int, str]:
  """Number and text of the first line that is not blank."""
  numbered = parsed_lines(path, lambda number, line: (number, line), malformed='error')
  return next(numbered, (0, ''))


def lines(path: epath.PathLike) -> Iterator[tuple[int, bytes]]:
  """Numbers and contents of all lines, blank ones too.

  Only a line feed ends a line, after a carriage return or not: U+2028 and the like are text.
  """
  with opened(path) as stream:
    for number, line in enumerate(stream, 1):
      text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
      yield number, text.removesuffix(b'\n').removesuffix(b'\r')


@contextlib.contextmanager
def opened(path: epath.PathLike) -> Iterator[IO[bytes] | gzip.GzipFile]:
  """The file's bytes, unpacked if its name ends in .gz; damage to it is a ValueError."""
  file = epath.Path(path)
  with file.open('rb') as stream, contextlib.ExitStack() as stack:
    try:
      yield stack.enter_context(gzip.open(stream)) if file.suffix == '.gz' else stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise ValueError(
        f'{file} is truncated or not a gzip file ({error}); fetch or compress it again.'
      ) from error


def json_object(line: str) -> dict[str, Any]:
  """The JSON object that a line holds."""
  value = json.loads(line)
  if not isinstance(value, dict):
    raise ValueError(f'expected a JSON object, found {_json_type(value)}')
  return value


def required(path: epath.PathLike) -> epath.Path:
  """The path, once it is known to be a file."""
  file = epath.Path(path)
  if not file.exists() or file.is_dir():
    raise FileNotFoundError(f'There is no file {file}.')
  return file


def sha256(path: epath.PathLike) -> str:
  """Checksum of a file's content."""
  with epath.Path(path).open('rb') as stream:
    digest = hashlib.sha256()
    while block := stream.read(1 << 16):
      digest.update(block)
  return digest.hexdigest()


def _reason(error: Exception) -> str:
  match error:
    case UnicodeDecodeError():
      return f'not UTF-8: byte {error.object[error.start]:#04x} at column {error.start + 1}'
    case json.JSONDecodeError():
      return f'not JSON: {error.msg} at column {error.colno}'
    case RecursionError():
      return 'not usable JSON: nested too deeply'
  return str(error)


def _json_type(value: object) -> str:
  names = {list: 'an array', str: 'a string', bool: 'a truth value', type(None): 'null'}
  return names.get(type(value), 'a number')
