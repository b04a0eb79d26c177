"""Markers of complete files: JSON beside a file, written after it, with rows, size and digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from cascades.runtime import files

SUFFIX = '.COMPLETED'


def location(path: epath.Path) -> epath.Path:
  """Path of a file's marker."""
  return path.parent / (path.name + SUFFIX)


def write(path: epath.Path, data: bytes, *, rows: int, fingerprint: str) -> None:
  """Write a file and then its marker; in between, the file differs from its marker.

  Args:
    path: Path of the file.
    data: Content of the file.
    rows: Number of rows in it.
    fingerprint: Identifies the model, settings and data that the rows were computed from.
  """
  files.write(path, data)
  summary = {'rows': rows, **_size_and_digest(data), 'fingerprint': fingerprint}
  files.write(location(path), json.dumps(summary))


def defect(path: epath.Path, *, rows: int, fingerprint: str, digest: bool = True) -> str:
  """Reason why a file is not complete, or an empty text.

  Args:
    path: Path of the file.
    rows: Expected number of rows.
    fingerprint: Expected fingerprint.
    digest: False compares the size alone, without reading the file.
  """
  if not path.exists():
    return 'is missing'
  if not location(path).exists():
    return f'has no {SUFFIX} marker'
  try:
    marked = dict(json.loads(location(path).read_bytes()))
  except (ValueError, TypeError):
    return 'has an unreadable marker'
  actual = _size_and_digest(path.read_bytes()) if digest else {'bytes': path.stat().length}
  expected = {'rows': rows, **actual, 'fingerprint': fingerprint}
  return ', '.join(
    f'has {name} {value!r}, but its marker has {marked.get(name)!r}'
    for name, value in expected.items()
    if marked.get(name) != value
  )


def marked(directory: epath.Path, names: Mapping[int, str]) -> set[int]:
  """Numbers of the files that have markers, by their names; lists the directory once."""
  present = {path.name for path in directory.iterdir()} if directory.exists() else set()
  return {number for number, name in names.items() if f'{name}{SUFFIX}' in present}


def fingerprints(directory: epath.Path, pattern: str) -> set[str]:
  """Fingerprints of the markers of matching files; unreadable markers have none."""
  values = set()
  for path in directory.glob(f'{pattern}{SUFFIX}') if directory.exists() else ():
    try:
      values.add(str(json.loads(path.read_bytes())['fingerprint']))
    except (ValueError, TypeError, KeyError):
      continue
  return values


def _size_and_digest(data: bytes) -> dict[str, Any]:
  return {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
