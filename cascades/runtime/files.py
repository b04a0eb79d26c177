"""Writes of files, on local disks and in object stores.

A folder that a program is given may be a stranger's: no write follows a symbolic link in place of
a file. Errors name the file, which those of a full disk do not by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

MAX_NAME_BYTES = 200  # file systems take 255, and endings are added

_TEMPORARY = re.compile(r'\..+\.[0-9a-f]{32}')  # names of `write`
_UNFIT_FOR_NAMES = re.compile(r'[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def is_remote(path: epath.PathLike) -> bool:
  """True for a URL, such as gs://bucket/runs."""
  return '://' in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
  """Expand `~` and resolve a relative path against the working directory; URLs stay.

  Raises:
    ValueError: The path is empty, as one of a shell's variable that is not set, or a web address.
  """
  if '\0' in os.fspath(path):
    raise ValueError(f'the path {os.fspath(path)!r:.200} has a NUL character, which none can have.')
  if not os.fspath(path):
    raise ValueError("a path is empty: give one, or '.' for the working directory.")
  if os.fspath(path).startswith(('http://', 'https://')):
    raise ValueError(
      f'{os.fspath(path)!r:.200} is a web address, and no folder: name a local one, or '
      'one on gs://. The URL of an endpoint is a model for `python -m cascades.infer` alone: its '
      'API gives no parameters, and no probabilities of given tokens.'
    )
  expanded = epath.Path(path)
  return expanded if is_remote(path) else expanded.expanduser().resolve()


def write(path: epath.PathLike, content: bytes | str) -> None:
  """Write a file atomically: readers see the old content or the new, never a part of it.

  Local files are renamed into place. Object stores show an object only when it is complete.
  """
  path = epath.Path(path)
  data = content.encode() if isinstance(content, str) else content
  with naming(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
      path.write_bytes(data)
      return
    temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex}'
    try:
      with open_local(temporary, 'xb') as file:
        file.write(data)
      temporary.replace(path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def append(path: epath.PathLike, line: str) -> None:
  """Append a line, written when this returns; a line that a kill has cut is ended before it.

  Object stores cannot append, so there the file is written anew.
  """
  path = epath.Path(path)
  if is_remote(path):
    write(path, f'{path.read_text() if path.exists() else ""}{line}\n')
    return
  with naming(path), open_local(path, 'ab+') as file:
    data = f'{line}\n'.encode()
    if file.seek(0, os.SEEK_END):
      file.seek(-1, os.SEEK_END)
      data = data if file.read(1) == b'\n' else b'\n' + data
    file.write(data)


def append_all(descriptor: int, data: bytes, size: int) -> None:
  """Append all of the data to an open file of this size, or none."""
  done = 0
  try:
    while done < len(data):
      done += os.write(descriptor, data[done:])
  except OSError:
    os.ftruncate(descriptor, size)
    raise


def open_local(path: epath.PathLike, mode: str) -> IO[Any]:
  """Open a local file to write to it; OSError if it is a symbolic link."""
  with naming(path):
    return open(path, mode, opener=_open_no_link)


def _open_no_link(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextlib.contextmanager
def naming(path: epath.PathLike) -> Iterator[None]:
  """Context manager whose OSErrors name the file that was written."""
  try:
    yield
  except OSError as error:
    if error.errno == errno.ELOOP:
      reason = 'it is a symbolic link, which is not followed, as it may lead anywhere: remove it'
      raise OSError(error.errno, reason, os.fspath(path)) from error
    if error.errno is None or error.filename is not None:
      raise
    raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def remove_leftovers(directory: epath.PathLike) -> None:
  """Remove temporary files that killed writes left, in a folder that no other process writes to."""
  folder = epath.Path(directory)
  if is_remote(folder) or not folder.is_dir():
    return
  for path in folder.iterdir():
    if is_leftover(path.name) and not path.is_dir():
      path.unlink(missing_ok=True)


def is_leftover(name: str) -> bool:
  """Tell whether a file has the temporary name that `write` gives."""
  return _TEMPORARY.fullmatch(name) is not None


def component(name: str, what: str) -> str:
  """The name, which may become a folder or file; ValueError if it could lead elsewhere.

  Args:
    name: a name that a user or a file gives.
    what: the thing that it names, for the message: 'a split'.
  """
  is_fit = 0 < len(name.encode(errors='replace')) <= MAX_NAME_BYTES and name[0] != '.'
  if not is_fit or _UNFIT_FOR_NAMES.search(name):
    raise ValueError(
      f'{name!r:.80} cannot name {what}: files carry the name, so use at most {MAX_NAME_BYTES} '
      "bytes, no '.' in front, and no '/', '\\' or control characters."
    )
  return name


def require_local(path: epath.PathLike | None, allow_remote: bool) -> None:
  """Raise ValueError for a URL unless `allow_remote`: data are never fetched by accident."""
  if path is not None and is_remote(path) and not allow_remote:
    raise ValueError(
      f'{os.fspath(path)} is a remote path: copy it to this machine, or set allow_remote=True to '
      'read it where it is.'
    )
