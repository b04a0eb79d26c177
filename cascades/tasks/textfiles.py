"""Lines of text files, one value a line; errors name file and line."""

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
  """A line that cannot be used; the message names file and line."""

  def __init__(self, file: epath.Path, number: int, reason: str) -> None:
    super().__init__(f'{file}, line {number}: {reason}')


def parsed_lines(
  path: epath.PathLike, parse: Callable[[int, str], T], *, malformed: Malformed, first: int = 1
) -> Iterator[T]:
  """Parses the lines of a file, except blank ones.

  Args:
    path: a file; a name that ends in .gz is unpacked.
    parse: gives a value from a line's number and text; a ValueError rejects the line.
    malformed: 'error' stops at a rejected line. 'skip' skips it; skipped lines are counted and
      logged at the end with the first reasons.
    first: number of the first line to parse.

  Yields:
    The values.

  Raises:
    MalformedLineError: at a rejected line, which may also be no UTF-8.
    ValueError: if a gzip file is damaged.
  """
  file = epath.Path(path)
  skipped: list[MalformedLineError] = []
  for number, line in lines(file):
    if number < first or not line.strip():
      continue
    try:
      value = parse(number, line.decode())
    except (ValueError, RecursionError) as error:
      rejected = MalformedLineError(file, number, _reason(error))
      if malformed == 'error':
        raise rejected from error
      skipped.append(rejected)
      continue
    yield value
  if skipped:
    shown = '; '.join(map(str, skipped[:_SHOWN]))
    log.warning('Skipped %d malformed lines of %s. First: %s', len(skipped), file, shown)


def first_line(path: epath.PathLike) -> tuple[int, str]:
  """Reads number and text of the first line that is not blank."""
  numbered = parsed_lines(path, lambda number, line: (number, line), malformed='error')
  return next(numbered, (0, ''))


def lines(path: epath.PathLike) -> Iterator[tuple[int, bytes]]:
  """Reads numbers and contents of all lines, including blank ones.

  Only a line feed ends a line, after a carriage return or not: U+2028 and the like are text.
  """
  with opened(path) as stream:
    for number, line in enumerate(stream, 1):
      text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
      yield number, text.removesuffix(b'\n').removesuffix(b'\r')


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


def json_object(line: str) -> dict[str, Any]:
  """Parses a line to a JSON object; ValueError if it is something else."""
  value = json.loads(line)
  if not isinstance(value, dict):
    names = {list: 'an array', str: 'a string', bool: 'a truth value', type(None): 'null'}
    raise ValueError(f'expected a JSON object, found {names.get(type(value), "a number")}')
  return value


def required(path: epath.PathLike) -> epath.Path:
  """The path of an existing file; FileNotFoundError if there is none."""
  file = epath.Path(path)
  if not file.exists() or file.is_dir():
    raise FileNotFoundError(f'There is no file {file}.')
  return file


def sha256(path: epath.PathLike) -> str:
  """SHA-256 checksum of a file's content, as hexadecimal digits."""
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
