"""Remote files that are read at random: blocks of them, and copies, on the local disk.

Files are known by the checksum of their content, so a cache is never stale, and may be shared by
programs of one machine. What was not read for longest is removed when the cache is full.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import threading
import time
from collections.abc import Iterator

from etils import epath

from cascades.runtime import files, ranges

_SHARE = 16  # of the bound that is written between two looks at what is there
_SECONDS_OF_A_WRITE = 3600.0  # at most; an older file that is not complete was left by a kill
_COPY = 'copy'
_GROWING = threading.Lock()
_PIECE = 1 << 24  # bytes of a copy that are in memory


@dataclasses.dataclass(frozen=True)
class BlockCache:
  """A directory of blocks of bounded size.

  Attributes:
    directory: Local directory.
    most_bytes: Size at which blocks are removed; each program may exceed it by a sixteenth.
    block_bytes: Size of a block, which is fetched at once.
  """

  directory: str = '~/.cache/cascades/blocks'
  most_bytes: int = 32 << 30
  block_bytes: int = 1 << 20

  def __post_init__(self) -> None:
    ranges.check({'RECORDS_CACHE_BYTES': self.most_bytes}, least=1, integer=True)
    ranges.check({'block_bytes': self.block_bytes}, least=1, integer=True)
    if files.is_remote(self.directory):
      raise ValueError(
        f'RECORDS_CACHE_DIR={self.directory!r:.200} is remote; name a directory of this machine.'
      )

  def read(self, path: epath.PathLike, sha256: str, begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` of a remote file.

    Args:
      path: The file.
      sha256: Checksum of its content, by which blocks are known.
      begin: First byte.
      end: Byte behind the last one.

    Raises:
      OSError: if the file ends before `end`.
    """
    size = self.block_bytes
    numbers = range(begin // size, -(-end // size))
    content = b''.join(self._block(path, sha256, number) for number in numbers)
    start = begin - numbers.start * size
    if len(content) < start + end - begin:
      raise OSError(f'{os.fspath(path)} ends before byte {end}: copy it again.')
    return content[start : start + end - begin]

  def copy(self, path: epath.PathLike, sha256: str) -> epath.Path:
    """Local copy of a remote file.

    Raises:
      OSError: if its content has another checksum, or does not fit into the cache.
    """
    copy = self._folder(sha256) / _COPY
    if copy.exists():
      os.utime(copy)
      return epath.Path(copy)
    if (size := epath.Path(path).stat().length) > self.most_bytes:
      raise OSError(
        f'{os.fspath(path)} has {size:,} bytes, and the cache of blocks at most '
        f'{self.most_bytes:,}: raise RECORDS_CACHE_BYTES.'
      )
    digest = hashlib.sha256()
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f'.{_COPY}.{os.getpid()}-{threading.get_ident()}')
    with epath.Path(path).open('rb') as source, files.open_local(partial, 'wb') as target:
      while piece := source.read(_PIECE):
        digest.update(piece)
        target.write(piece)
    if digest.hexdigest() != sha256:
      partial.unlink()
      raise OSError(f'{os.fspath(path)} is not what was written: copy it again.')
    os.replace(partial, copy)
    self._grow(copy)
    return epath.Path(copy)

  def _block(self, path: epath.PathLike, sha256: str, number: int) -> bytes:
    block = self._folder(sha256) / f'{self.block_bytes}-{number}'
    try:
      content = block.read_bytes()
      os.utime(block)
      return content
    except FileNotFoundError:
      pass
    with epath.Path(path).open('rb') as source:
      source.seek(number * self.block_bytes)
      content = source.read(self.block_bytes)
    files.write(block, content)
    self._grow(block)
    return content

  def _grow(self, newest: pathlib.Path) -> None:
    """Count a written file; at times look at all of them, and remove the oldest of too many."""
    with _GROWING:
      self._written[0] += newest.stat().st_size if newest.exists() else 0
      if 0 < self._written[0] < self.most_bytes // _SHARE:
        return
      self._written[0] = 1
      present = sorted(self._present())
      excess = sum(size for _, size, _ in present) - self.most_bytes
      for _, size, path in present:
        if excess <= 0:
          break
        if path != newest:
          path.unlink(missing_ok=True)
          excess -= size

  def _present(self) -> Iterator[tuple[int, int, pathlib.Path]]:
    """Time of the last reading, size and path of each file."""
    for path in self._root.glob('*/*'):
      try:
        state = path.stat()
      except FileNotFoundError:  # another program has removed it
        continue
      if path.name.startswith('.') and time.time() - state.st_mtime < _SECONDS_OF_A_WRITE:
        continue
      yield state.st_mtime_ns, state.st_size, path

  def _folder(self, sha256: str) -> pathlib.Path:
    return self._root / files.component(sha256, 'a file of a cache')

  @functools.cached_property
  def _root(self) -> pathlib.Path:
    return pathlib.Path(self.directory).expanduser()

  @functools.cached_property
  def _written(self) -> list[int]:
    return [0]  # bytes since the last look; 0 looks at the first
