"""Checksums of a checkpoint's files, written before it is finished.

Orbax detects most missing or truncated files, but no changed bytes. Local files are checksummed in
the background of saving, and verified when they are restored. Object stores have checksums of
their own; only the sizes of their files are verified.
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
  """Writes the sizes and checksums of all files in a directory to its manifest."""
  manifest = {name: [path.stat().length, _crc(path)] for name, path in _files(directory).items()}
  files.write(directory / MANIFEST, json.dumps(manifest, indent=0))


def damage(directory: epath.Path) -> str | None:
  """Verifies the files in a directory against its manifest.

  Returns:
    A description of the first damaged file; None if there is none.

  Raises:
    FileNotFoundError: there is no manifest.
  """
  try:
    content = json.loads((directory / MANIFEST).read_text())
    manifest = {name: (size, crc) for name, (size, crc) in content.items()}
  except (ValueError, TypeError, AttributeError) as error:
    return f'{MANIFEST} is damaged ({error})'
  present = _files(directory)
  unlisted = [name for name in present.keys() - manifest if epath.Path(name).name[0] != '.']
  if unlisted or not manifest:
    return f'{MANIFEST} lists {len(manifest)} files, and not {min(unlisted, default="any")}'
  for name, (size, _) in manifest.items():
    length = present[name].stat().length if name in present else None
    if length != size:
      return f'{name} {"is missing" if length is None else f"has {length} of {size} bytes"}'
  paths = [present[name] for name in manifest]
  with concurrent.futures.ThreadPoolExecutor() as threads:  # zlib releases the interpreter's lock
    for (name, (_, expected)), crc in zip(manifest.items(), threads.map(_crc, paths), strict=True):
      if crc != expected:
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


def _crc(path: epath.Path) -> int | None:
  if files.is_remote(path):
    return None
  stat = os.stat(path)
  return _cached_crc(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _cached_crc(path: str, *_: Any) -> int:
  """Reads an unchanged file once, though programs locate a checkpoint several times."""
  crc = 0
  with open(path, 'rb') as file:
    while piece := file.read(_PIECE):
      crc = zlib.crc32(piece, crc)
  return crc
