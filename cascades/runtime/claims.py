"""Claims on shares of work: programs that write to one directory divide it, and may come and go.

A share is claimed by a file in the directory, which its holder rewrites every third of a lease:

    .NAME.claim-1    the first claim on the share NAME
    .NAME.claim-2    that of another program, which saw no change of the first for a lease

The highest number counts, and a claim is removed when its share is written. Times are differences
on the clock of the program that looks, so clocks of machines need not agree. Files are created
exclusively on local and mounted disks. Object stores have no such creation here: two programs may
hold one share, as may one that was taken for dead. So a share must be work that may be done twice:
the same bytes, written atomically.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Self, TypeVar

import jax
import numpy as np
from etils import epath

from cascades.runtime import files, partitioning, ranges

log = logging.getLogger(__name__)

T = TypeVar('T')

LEASE = 60.0  # seconds
_BEATS = 3  # in a lease
_LONGEST_POLL = 2.0  # seconds
_CLAIM = re.compile(r'\.(.+)\.claim-(\d{1,9})')
_NONE = -1


class Claims:
  """Claims of this program in one directory, one at a time; a context manager that gives them up.

  Of the processes of a `jax.distributed` run, process 0 claims for all.
  """

  def __init__(self, directory: epath.PathLike, lease: float = LEASE) -> None:
    """Prepares claims; nothing is written.

    Args:
      directory: Directory that the programs share.
      lease: Seconds without a sign of life after which another program takes a share up.
    """
    ranges.check({'LEASE': lease}, above=0)
    self._directory, self._lease = epath.Path(directory), lease
    self._identity = {
      'host': socket.gethostname(), 'pid': os.getpid(), 'start': _start(os.getpid()),
      'program': uuid.uuid4().hex,
    }  # fmt: skip
    self._claim: epath.Path | None = None
    self._seen: dict[str, tuple[bytes, float]] = {}  # others' claims, and since when they are so
    self._beats = 0
    self._writing = threading.Lock()
    self._ended = threading.Event()
    self._waits = False

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self._ended.set()
    self._release()

  def shares(
    self,
    left: dict[int, T],
    name: Callable[[int], str],
    done: Callable[[Sequence[int]], Collection[int]],
    *,
    wait: bool,
  ) -> Iterator[tuple[int, T]]:
    """Yields the shares that this program claims, one after the other, the same on all processes.

    A claim ends when the next share is asked for. Shares that are done are removed from `left`,
    whoever did them; what others hold is left over, unless `wait`.

    Args:
      left: Shares by number, the same on all processes.
      name: Name of a share, for its claim.
      done: Numbers among the given ones that are done.
      wait: Go on until nothing is left, and take up what other programs give up or lose.
    """
    while left:
      numbers = list(left)
      state = np.zeros(1 + len(numbers), np.int64)
      if jax.process_index() == 0:
        state = self._choose(numbers, name, done)
      choice, *is_done = partitioning.from_process_0(state).tolist()
      for number, gone in zip(numbers, is_done, strict=True):
        if gone:
          del left[number]
      if choice != _NONE:
        yield numbers[choice], left[numbers[choice]]
        del left[numbers[choice]]
        self._release()
      elif not wait:
        return
      elif left:
        if not self._waits:
          log.info('%s: waiting for %d shares that others hold', self._directory, len(left))
        self._waits = True
        self.wait()

  def _choose(
    self,
    numbers: Sequence[int],
    name: Callable[[int], str],
    done: Callable[[Sequence[int]], Collection[int]],
  ) -> np.ndarray:
    """Position of the share that is claimed, or _NONE, and of each share whether it is done."""
    highest = claimed(self._directory)
    is_done = done(numbers)
    choice = _NONE
    for position in self._order(len(numbers)):
      number = numbers[position]
      if number in is_done or not self._take(name(number), highest.get(name(number), 0)):
        continue
      if done([number]):  # since the claims were listed
        is_done = {*is_done, number}
        self._release()
        continue
      choice = position
      break
    return np.array([choice, *(number in is_done for number in numbers)], np.int64)

  def clear(self, names: Iterable[str]) -> None:
    """Removes the claims that killed programs left on shares that are done."""
    highest = claimed(self._directory)
    for name in names:
      for number in range(1, highest.get(name, 0) + 1):
        self._path(name, number).unlink(missing_ok=True)

  def _order(self, count: int) -> Sequence[int]:
    """Order in which shares are tried: where claims may collide, each program's own."""
    first = 0
    if files.is_remote(self._directory):
      digest = hashlib.sha256(str(self._identity['program']).encode()).digest()
      first = int.from_bytes(digest[:4], 'little') % count
    return [*range(first, count), *range(first)]

  def take(self, name: str) -> bool:
    """Claim a share, whether done or not; False if another program holds it."""
    return self._take(name, claimed(self._directory).get(name, 0))

  def wait(self) -> None:
    """Sleep before another look at the claims of others."""
    time.sleep(min(_LONGEST_POLL, self._lease / 10))

  def _take(self, name: str, number: int) -> bool:
    """Claim a share whose claims have numbers up to this one; False if another program holds it."""
    if number and not self._is_void(self._path(name, number)):
      return False
    path = self._path(name, number + 1)
    if not self._create(path):
      return False
    if number:
      log.info('%s: taking up %s, which another program has left', self._directory, name)
    self._claim = path
    if not self._beats:
      threading.Thread(target=self._beat, name='claims', daemon=True).start()
    self._beats += 1
    return True

  def _is_void(self, path: epath.Path) -> bool:
    """True for a claim whose program on this machine has ended, or that is silent for a lease."""
    try:
      content = path.read_bytes()
      holder = json.loads(content)
      if holder['host'] == self._identity['host'] and _start(holder['pid']) != holder['start']:
        return True
    except FileNotFoundError:  # its share is done, or given up
      return False
    except (ValueError, LookupError, TypeError):  # as if it said nothing
      content = b''
    now = time.monotonic()
    before, since = self._seen.get(path.name, (content, now))
    self._seen[path.name] = (content, since if before == content else now)
    return now - self._seen[path.name][1] >= self._lease

  def _create(self, path: epath.Path) -> bool:
    """Create a claim of this program; False if another program is faster."""
    content = self._content()
    if files.is_remote(path):
      if path.exists():
        return False
      files.write(path, content)
      return path.read_bytes() == content.encode()
    with files.naming(path):
      path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with files.open_local(path, 'x') as file:
        file.write(content)
    except FileExistsError:
      return False
    return True

  def _content(self) -> str:
    return json.dumps({**self._identity, 'beat': self._beats})

  def _beat(self) -> None:
    while not self._ended.wait(self._lease / _BEATS):
      with self._writing, contextlib.suppress(OSError):  # a late sign of life costs work at most
        # One that is gone was taken up by another program, which has finished the share.
        if self._claim and self._claim.exists():
          self._beats += 1
          files.write(self._claim, self._content())

  def _release(self) -> None:
    with self._writing:
      claim, self._claim = self._claim, None
    if claim and (match := _CLAIM.fullmatch(claim.name)):
      for number in range(int(match[2]), 0, -1):
        with contextlib.suppress(OSError):  # its error would hide that of the program
          self._path(match[1], number).unlink(missing_ok=True)

  def _path(self, name: str, number: int) -> epath.Path:
    return self._directory / f'.{name}.claim-{number}'


@contextlib.contextmanager
def alone(directory: epath.PathLike, name: str, lease: float = LEASE) -> Iterator[None]:
  """Context manager that one program at a time is in, by the claim of its process 0."""
  if jax.process_index() > 0:
    yield
    return
  with Claims(directory, lease) as claims:
    while not claims.take(name):
      claims.wait()
    yield


def claimed(directory: epath.PathLike) -> dict[str, int]:
  """Highest number of the claims on each share of a directory; lists it once."""
  folder = epath.Path(directory)
  highest: dict[str, int] = {}
  for path in folder.iterdir() if folder.exists() else ():
    if match := _CLAIM.fullmatch(path.name):
      highest[match[1]] = max(int(match[2]), highest.get(match[1], 0))
  return highest


def _start(pid: int) -> str:
  """Start of a process on this machine in ticks, which tells it from later ones of its number."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
  except (OSError, IndexError):
    return ''
