"""Files that are whole or not there. Local paths and those of object stores alike."""

from __future__ import annotations

import os
import uuid

from etils import epath


def absolute(path: epath.PathLike) -> epath.Path:
  """The place that a user's path names: `~` and relative paths from here, URLs as they are."""
  found = epath.Path(path)
  return found if '://' in os.fspath(path) else found.expanduser().resolve()


def write(path: epath.PathLike, content: bytes | str) -> None:
  """The file has this content when this returns, and never half of it.

  Local files are renamed into place; an object appears when it is complete, and is not renamed.
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
  """Raises ValueError for a remote path that was not allowed: data come from anywhere by intent."""
  if path is not None and '://' in os.fspath(path) and not allow_remote:
    raise ValueError(
      f'{os.fspath(path)} is a remote path: copy it to this machine, or set allow_remote=True to '
      'read it where it is.'
    )
