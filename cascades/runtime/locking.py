"""A lock that keeps a second run out of a run directory.

It is a kernel lock (flock), which ends with the process however that ends. Object stores have no
locks: two runs in one of their directories are not noticed.
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
import sys
from collections.abc import Iterator
from typing import IO

from etils import epath

from cascades.runtime import files

log = logging.getLogger(__name__)

LOCK = '.lock'


@contextlib.contextmanager
def held(directory: epath.PathLike) -> Iterator[None]:
  """Context manager that locks a directory for this run; process 0 holds the lock.

  Creates the directory if it does not exist.

  Raises:
    BlockingIOError: if another run holds the lock; the message names its process, host and start.
  """
  path = epath.Path(directory) / LOCK
  jax = sys.modules.get('jax')  # evaluate runs without
  if files.is_remote(directory) or (jax and jax.process_index() > 0):
    yield
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with _locked(path) as file:
    file.truncate(0)
    now = datetime.datetime.now(datetime.UTC).isoformat(' ', 'seconds')
    json.dump({'host': socket.gethostname(), 'pid': os.getpid(), 'since': now}, file)
    file.flush()
    try:
      yield
    finally:
      # Its error would hide that of the run; a file that nobody locks keeps nobody out.
      with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _locked(path: epath.Path) -> IO[str]:
  """Open and lock the file, or raise BlockingIOError."""
  while True:
    file = files.open_local(path, 'a+')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        log.warning('%s cannot be locked (%s): do not start a second run here.', path.parent, error)
        return file
      file.seek(0)
      raise BlockingIOError(_refusal(path.parent, file.read())) from error
    # The previous holder unlinks the file before it unlocks it: this one may have no name left.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        return file
    file.close()


def _refusal(directory: epath.Path, content: str) -> str:
  try:
    holder = 'by process {pid} on {host} since {since}'.format(**json.loads(content))
  except (ValueError, KeyError):  # it has locked the file and not yet written it
    holder = 'by a process that has just started'
  return (
    f'{directory} is in use {holder}: wait for that run, stop it, or choose another directory. Two '
    "runs would overwrite each other's files."
  )
