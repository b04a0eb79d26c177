"""One run at a time in a directory.

The lock is the kernel's (flock), so that it ends with the process however that ends. Object stores
have none: there two runs are not told apart.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from typing import IO, Any

import jax
from etils import epath

log = logging.getLogger(__name__)

LOCK = '.lock'


@contextlib.contextmanager
def held(directory: epath.PathLike) -> Iterator[None]:
  """Within, the directory is this run's, held by process 0; it is made if it is not there.

  Raises BlockingIOError, naming the process that holds it and since when, if another one does.
  """
  path = epath.Path(directory) / LOCK
  if '://' in os.fspath(directory) or jax.process_index() > 0:
    yield
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with _locked(path) as file:
    file.truncate(0)
    json.dump(_holder(), file)
    file.flush()
    try:
      yield
    finally:
      path.unlink(missing_ok=True)


def _locked(path: epath.Path) -> IO[str]:
  """The file, locked."""
  while True:
    file = open(path, 'a+')  # noqa: SIM115
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        log.warning('%s cannot be locked (%s): start no second run here.', path.parent, error)
        return file
      file.seek(0)
      raise BlockingIOError(_refusal(path.parent, file.read())) from error
    # The former holder unlinks the file before it lets go: what is locked now may have no name.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        return file
    file.close()


def _holder() -> dict[str, Any]:
  now = datetime.datetime.now(datetime.UTC).isoformat(' ', 'seconds')
  return {'host': socket.gethostname(), 'pid': os.getpid(), 'since': now}


def _refusal(directory: epath.Path, content: str) -> str:
  try:
    holder = 'by process {pid} on {host} since {since}'.format(**json.loads(content))
  except (ValueError, KeyError):  # it has locked the file and not yet written it
    holder = 'by a process that has just started'
  return (
    f'{directory} is in use {holder}: wait for it, end it, or choose another MODEL_DIR. Two runs '
    "would overwrite each other's checkpoints."
  )
