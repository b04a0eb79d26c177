"""Checksums of a checkpoint's files, written before it counts as whole.

Orbax finds most of what a lost or shortened file does to an array, and a changed byte of one not at
all. Local files are summed when they are written, in the background, and when they are
restored; object stores sum theirs themselves, so there only the sizes are looked at.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import zlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from cascades.runtime import files

MANIFEST = 'checksums.json'
_LATER = {MANIFEST, '_CHECKPOINT_METADATA', 'commit_success.txt'}  # Orbax writes these last
_PIECE = 1 << 22  # bytes


def write(directory: epath.Path) -> None:
  """Sums all that lies there."""
  found = {name: [path.stat().length, _sum(path)] for name, path in _files(directory).items()}
  files.write(directory / MANIFEST, json.dumps(found, indent=0))


def damage(directory: epath.Path) -> str | None:
  """What is wrong with the first bad file of those that were written there; None if all is well.

  Raises FileNotFoundError if nothing was written down.
  """
  try:
    content = json.loads((directory / MANIFEST).read_text())
    written = {name: (size, crc) for name, (size, crc) in content.items()}
  except (ValueError, TypeError, AttributeError) as error:
    return f'{MANIFEST} is damaged ({error})'
  there = _files(directory)
  for name, (size, _) in written.items():
    length = there[name].stat().length if name in there else None
    if length != size:
      return f'{name} {"is missing" if length is None else f"has {length} of {size} bytes"}'
  paths = [there[name] for name in written]
  with concurrent.futures.ThreadPoolExecutor() as threads:  # zlib lets go of the interpreter's lock
    for (name, (_, expected)), found in zip(written.items(), threads.map(_sum, paths), strict=True):
      if found != expected:
        return f'{name} has other content than was written'
  return None


def _files(directory: epath.Path) -> dict[str, epath.Path]:
  return {str(p.relative_to(directory)): p for p in _below(directory) if p.name not in _LATER}


def _below(directory: epath.Path) -> Iterator[epath.Path]:
  for path in sorted(directory.iterdir()):
    if path.is_dir():
      yield from _below(path)
    else:
      yield path


def _sum(path: epath.Path) -> int | None:
  if '://' in os.fspath(path):
    return None
  stat = os.stat(path)
  return _sum_of(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _sum_of(path: str, *_: Any) -> int:
  """Programs ask for a checkpoint's place more than once; an unchanged file is read once."""
  found = 0
  with open(path, 'rb') as file:
    while piece := file.read(_PIECE):
      found = zlib.crc32(piece, found)
  return found
