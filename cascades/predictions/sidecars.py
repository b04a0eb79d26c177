"""Arrays beside a table of predictions, with one entry for each of its rows: embeddings, features.

An array of a name lies in the directory of the table, in files of NumPy's format without pickles:

    {task}-{mode}.{name}.npy-00000-of-00004             entries of consecutive rows, [n, ...]
    {task}-{mode}.{name}.npy-00000-of-00004.COMPLETED   written after it: count, size, digest
    {task}-{mode}.{name}.sidecar.json                   written last: dtype, shape, table

Rows are distributed over shards as in `shards.shard_rows`; the number of shards may differ from
that of the table. The manifest names the table by its fingerprint and by a digest of its ids, so
that no array is read beside another table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from etils import epath
from jaxtyping import Int

from cascades.predictions import markers, rows, shards
from cascades.predictions.rows import Mode, Positive
from cascades.runtime import files
from cascades.types import Predictions

VERSION = 1
KINDS = 'fiub'  # of dtypes: floats, integers, unsigned integers, booleans


class _SidecarManifest(msgspec.Struct):
  version: int
  name: str
  task: str
  mode: str
  rows: Positive
  shards: Positive
  dtype: str
  shape: list[int]  # of one entry
  fingerprint: str  # of the table
  ids: str  # SHA-256 of the table's ids
  origin: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sidecar:
  """Entries of all rows of a table.

  Attributes:
    manifest: Name, dtype, shape of an entry, identity of the table, and origin.
    shards: Read-only arrays of consecutive rows; those in local files are memory-mapped.
  """

  manifest: Mapping[str, Any]
  shards: tuple[np.ndarray, ...]

  def __len__(self) -> int:
    return self.manifest['rows']

  def array(self) -> np.ndarray:
    """All entries, [N, ...]: memory-mapped if there is one shard, else copied into memory."""
    return self.shards[0] if len(self.shards) == 1 else np.concatenate(self.shards)

  def take(self, indices: Sequence[int] | Int[np.ndarray, 'n']) -> np.ndarray:
    """Entries of some rows, in this order, read from the disk without the others.

    Args:
      indices: Indices of rows of the table, from 0 to N - 1; see `alignment.positions`.

    Raises:
      IndexError: if an index is below 0, or N or more.
    """
    numbers = np.asarray(indices, np.int64)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
      raise IndexError(
        f'Rows {numbers.min()} to {numbers.max()} were asked of sidecar {self.manifest["name"]!r}, '
        f'which has rows 0 to {len(self) - 1}.'
      )
    ends = np.cumsum([len(shard) for shard in self.shards])
    entries = np.empty((len(numbers), *self.manifest['shape']), self.manifest['dtype'])
    owner = np.searchsorted(ends, numbers, side='right')
    for index, (shard, end) in enumerate(zip(self.shards, ends, strict=True)):
      entries[owner == index] = shard[numbers[owner == index] - (end - len(shard))]
    return entries


def shard_name(task: str, mode: Mode, name: str, index: int, count: int) -> str:
  """File name of a shard."""
  if not re.fullmatch(r'[\w-]+', name):
    raise ValueError(f"A sidecar's name consists of letters, digits, '_' and '-', found {name!r}.")
  return f'{shards.stem(task, mode)}.{name}.npy-{index:05d}-of-{count:05d}'


def write_shard(
  directory: epath.PathLike,
  task: str,
  mode: Mode,
  name: str,
  index: int,
  count: int,
  array: np.ndarray,
  *,
  fingerprint: str = '',
) -> None:
  """Write a shard, then its marker. The sidecar is unfinished until `write_manifest` is called.

  Args:
    directory: Directory of the table.
    task: Task of the table.
    mode: Mode of the table.
    name: Name of the array.
    index: Index of the shard.
    count: Number of shards.
    array: Entries of the rows `shards.shard_rows(total, index, count)`.
    fingerprint: Fingerprint of the table.

  Raises:
    ValueError: if the array is not one of numbers.
  """
  if array.dtype.kind not in KINDS or not array.ndim:
    raise ValueError(
      f'Sidecar {name!r} has dtype {array.dtype} and shape {array.shape}; expected one entry per '
      'row of floats, integers or booleans. Convert it, for example to float32.'
    )
  path = epath.Path(directory) / shard_name(task, mode, name, index, count)
  _location(path.parent, task, mode, name).unlink(missing_ok=True)
  _write_array(path, array, fingerprint)


def completed_shards(
  directory: epath.PathLike,
  task: str,
  mode: Mode,
  name: str,
  count: int,
  *,
  total: int,
  fingerprint: str = '',
) -> set[int]:
  """Indices of the shards that a resumed run can keep: see `shards.completed_shards`."""
  folder = epath.Path(directory)
  return {
    index
    for index in range(count)
    if not markers.defect(
      folder / shard_name(task, mode, name, index, count),
      rows=len(shards.shard_rows(total, index, count)),
      fingerprint=fingerprint,
    )
  }


def write_manifest(
  directory: epath.PathLike,
  name: str,
  table: Predictions,
  *,
  count: int,
  origin: Mapping[str, Any] | None = None,
) -> None:
  """Complete a sidecar.

  Args:
    directory: Directory of the table.
    name: Name of the array.
    table: The table, as `shards.read` gives it.
    count: Number of shards.
    origin: Description of what computed the array, such as a model's manifest.

  Raises:
    ValueError: if a shard is missing, damaged, or of another number of rows, table, dtype or shape.
  """
  manifest = {
    'version': VERSION,
    'name': name,
    **_identity(table),
    'shards': count,
    'dtype': '',
    'shape': [],
    'origin': dict(origin or {}),
  }
  first, *others = _open_shards(epath.Path(directory), manifest, digest=True)
  for index, other in enumerate(others, 1):
    if (other.dtype, other.shape[1:]) != (first.dtype, first.shape[1:]):
      raise ValueError(
        f'{directory}: shards of sidecar {name!r} differ: shard 0 has dtype {first.dtype} and '
        f'entries of shape {first.shape[1:]}, shard {index} {other.dtype} and {other.shape[1:]}.'
      )
  manifest |= {'dtype': first.dtype.str, 'shape': list(first.shape[1:])}
  location = _location(epath.Path(directory), manifest['task'], manifest['mode'], name)
  files.write(location, json.dumps(manifest, indent=2) + '\n')


def write(
  directory: epath.PathLike,
  name: str,
  table: Predictions,
  array: np.ndarray,
  *,
  count: int = 1,
  origin: Mapping[str, Any] | None = None,
) -> None:
  """Write an array beside a table.

  Args:
    directory: Directory of the table.
    name: Name of the array: letters, digits, '_' and '-'.
    table: The table, as `shards.read` gives it.
    array: Entries of its rows, [N, ...] of floats, integers or booleans.
    count: Number of shards.
    origin: Description of what computed the array.

  Raises:
    ValueError: if the array is not one of numbers, or does not have N rows.
  """
  total, identity = len(table.ids), _identity(table)
  if array.shape[:1] != (total,):
    raise ValueError(
      f'Sidecar {name!r} has shape {array.shape}, but the table of task {table.task!r} has {total} '
      'rows; compute it from the same table.'
    )
  for index in range(count):
    span = shards.shard_rows(total, index, count)
    write_shard(
      directory,
      table.task,
      identity['mode'],
      name,
      index,
      count,
      array[span.start : span.stop],
      fingerprint=identity['fingerprint'],
    )
  write_manifest(directory, name, table, count=count, origin=origin)


def read(
  directory: epath.PathLike, name: str, table: Predictions, *, digest: bool = False
) -> Sidecar:
  """Array of a name beside a table.

  Args:
    directory: Directory of the table.
    name: Name of the array.
    table: The table, as `shards.read` gives it: not joined or selected.
    digest: Also compares the digests of the files, which reads them whole.

  Raises:
    FileNotFoundError: if there is no such sidecar, or it is unfinished.
    ValueError: if it belongs to another table, or a file is missing, truncated or changed.
  """
  directory, identity = epath.Path(directory), _identity(table)
  location = _location(directory, identity['task'], identity['mode'], name)
  if not location.exists():
    raise FileNotFoundError(
      f'{directory} has no complete sidecar {name!r} of task {table.task!r}: {location.name} is '
      'missing. Write it again with the same settings.'
    )
  try:
    manifest = json.loads(location.read_bytes())
    version = rows.convert(manifest, _SidecarManifest).version
    if version != VERSION:
      raise ValueError(f'version: expected {VERSION} of the format, found {version}')
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{location}: {error}') from error
  if different := [key for key, value in identity.items() if manifest[key] != value]:
    raise ValueError(
      f'{location} belongs to another table: '
      + ', '.join(f'its {key} is {manifest[key]!r}, not {identity[key]!r}' for key in different)
      + '. Compute it again from this table, and read it before rows are joined or selected.'
    )
  arrays = _open_shards(directory, manifest, digest=digest)
  for index, array in enumerate(arrays):
    if (array.dtype.str, list(array.shape[1:])) != (manifest['dtype'], manifest['shape']):
      raise ValueError(
        f'{location} has dtype {manifest["dtype"]} and entries of shape {manifest["shape"]}, but '
        f'shard {index} has {array.dtype.str} and {list(array.shape[1:])}.'
      )
  return Sidecar(manifest, tuple(arrays))


def merge(directory: epath.PathLike, name: str, table: Predictions) -> None:
  """Rewrite a sidecar as one shard, to be memory-mapped as one array.

  Args:
    directory: Directory of the table.
    name: Name of the array.
    table: The table, as `shards.read` gives it.

  Raises:
    FileNotFoundError: if there is no such sidecar, or it is unfinished.
    ValueError: if it belongs to another table, or a file is missing, truncated or changed.
  """
  sidecar = read(directory, name, table, digest=True)
  count = len(sidecar.shards)
  if count == 1:
    return
  mode, origin = sidecar.manifest['mode'], sidecar.manifest['origin']

  def path(index: int, count: int) -> epath.Path:
    return epath.Path(directory) / shard_name(table.task, mode, name, index, count)

  # The manifest names the shards until it is replaced: an interrupted merge loses nothing.
  _write_array(path(0, 1), sidecar.array(), sidecar.manifest['fingerprint'])
  write_manifest(directory, name, table, count=1, origin=origin)
  for index in range(count):
    markers.location(path(index, count)).unlink()
    path(index, count).unlink()


def _identity(table: Predictions) -> dict[str, Any]:
  """Keys of a manifest that tell which table it belongs to."""
  return {
    'task': table.task,
    'mode': table.manifest['mode'],
    'rows': len(table.ids),
    'fingerprint': table.manifest.get('fingerprint', ''),
    'ids': hashlib.sha256(json.dumps(list(table.ids)).encode()).hexdigest(),
  }


def _location(directory: epath.Path, task: str, mode: Mode, name: str) -> epath.Path:
  return directory / f'{shards.stem(task, mode)}.{name}.sidecar.json'


def _open_shards(
  directory: epath.Path, manifest: Mapping[str, Any], *, digest: bool
) -> list[np.ndarray]:
  """Arrays of all shards. Raises ValueError, naming the first that is not complete."""
  arrays, count = [], manifest['shards']
  for index in range(count):
    path = directory / shard_name(
      manifest['task'], manifest['mode'], manifest['name'], index, count
    )
    total = len(shards.shard_rows(manifest['rows'], index, count))
    if defect := markers.defect(
      path, rows=total, fingerprint=manifest['fingerprint'], digest=digest
    ):
      raise ValueError(
        f'{directory}: {path.name} {defect}. Write sidecar {manifest["name"]!r} again.'
      )
    arrays.append(_open(path))
    if arrays[-1].shape[:1] != (total,):
      raise ValueError(f'{path} has shape {arrays[-1].shape}; expected {total} rows.')
  return arrays


def _write_array(path: epath.Path, array: np.ndarray, fingerprint: str) -> None:
  buffer = io.BytesIO()
  little_endian = array.astype(array.dtype.newbyteorder('<'), order='C', copy=False)
  np.save(buffer, little_endian, allow_pickle=False)
  markers.write(path, buffer.getvalue(), rows=len(array), fingerprint=fingerprint)


def _open(path: epath.Path) -> np.ndarray:
  try:
    if not files.is_remote(path):
      return np.load(path, mmap_mode='r', allow_pickle=False)
    return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError(f'{path} is not an array in the format of NumPy: {error}') from error
