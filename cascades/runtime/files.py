"""Atomic writes of files, on local disks and in object stores."""

from __future__ import annotations

import os
import uuid

from etils import epath


def absolute(path: epath.PathLike) -> epath.Path:
  """Expand `~` and resolve a relative path against the working directory; URLs stay."""
  expanded = epath.Path(path)
  return expanded if '://' in os.fspath(path) else expanded.expanduser().resolve()


def write(path: epath.PathLike, content: bytes | str) -> None:
  """Write a file atomically: readers see the old content or the new, never a part of it.

  Local files are renamed into place. Object stores show an object only when it is complete.
  """
  path = epath.Path(path)
  data = content.encode() if isinstance(content, str) else content
  path.parent.mkdir(parents=True, exist_ok=True)
  if '://' in os.fspath(path):
    path.write_bytes(data)
    return
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex}'
  try:
    temporary.write_bytes(data)
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def require_local(path: epath.PathLike | None, allow_remote: bool) -> None:
  """Raise ValueError for a URL unless `allow_remote`: data are never fetched by accident."""
  if path is not None and '://' in os.fspath(path) and not allow_remote:
    raise ValueError(
      f'{os.fspath(path)} is a remote path: copy it to this machine, or set allow_remote=True to '
      'read it where it is.'
    )
