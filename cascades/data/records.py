"""Random access to materialized token records of one task or of several.

A directory has shards of rows and tokens, and `manifest.json`, written last.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np
from etils import epath
from jaxtyping import Int

from cascades.data import shards
from cascades.data.shards import DamagedError, File, Shard
from cascades.runtime.block_cache import BlockCache
from cascades.runtime.files import is_remote
from cascades.tasks import textfiles
from cascades.tasks.task import Record
from cascades.tokenizers.conventions import TOKEN

T = TypeVar('T')

Indices: TypeAlias = Int[np.ndarray, 'n'] | Sequence[int]

MANIFEST = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Manifest:
  """Description of a directory of records, stored as JSON.

  Attributes:
    task: name of the task.
    split: name of the split.
    identity: versions and fingerprints of the definition, the source and the vocabularies.
    bos_id: the decoder's first input, or None.
    inputs_eos_id: the token that ends every prompt, or None.
    eos_id: the token that ends every answer, or None.
    shards: the shards, in order.
    index: size and checksum of the files with the token counts of all rows, beside several shards.
  """

  task: str
  split: str
  identity: Mapping[str, str]
  bos_id: int | None
  inputs_eos_id: int | None
  eos_id: int | None
  shards: Sequence[Shard]
  index: Mapping[str, File] = dataclasses.field(default_factory=dict)

  @property
  def rows(self) -> int:
    return sum(shard.rows for shard in self.shards)

  @property
  def unlabeled(self) -> int:
    """Number of rows without an answer."""
    return sum(shard.unlabeled for shard in self.shards)

  @property
  def files(self) -> dict[str, File]:
    return {n: file for shard in self.shards for n, file in shard.files.items()} | dict(self.index)

  def to_json(self) -> str:
    """The content of `manifest.json`."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    fields['shards'] = [shards.describe(shard) for shard in self.shards]
    return json.dumps(fields, indent=2) + '\n'

  @classmethod
  def from_json(cls, text: str) -> Manifest:
    """Reads the content of `manifest.json`; ValueError if it is something else."""
    fields = json.loads(text)
    if not isinstance(fields, dict) or not isinstance(fields.get('shards'), list):
      raise ValueError('no JSON object with a list of shards')
    described = [shards.from_description(shard) for shard in fields['shards']]
    try:
      manifest = msgspec.convert({**fields, 'shards': []}, cls)
    except msgspec.ValidationError as error:
      raise ValueError(str(error)) from error
    return dataclasses.replace(manifest, shards=described)


class Records:
  """A split's records with random access by row number; `lengths` are token counts."""

  def __init__(self, directory: epath.PathLike, cache: BlockCache = BlockCache()) -> None:
    """Opens a complete directory.

    Args:
      directory: a directory that `materialize` has written, or a remote copy of one.
      cache: blocks of remote files.

    Raises:
      FileNotFoundError: if there is no manifest.
      DamagedError: if files have lost or gained rows or bytes since they were written.
    """
    self.directory = epath.Path(directory)
    self.manifest = read_manifest(self.directory)
    files = self.manifest.files
    for name, file in files.items():
      if is_remote(self.directory):  # where a size takes a request
        break
      path = self.directory / name
      _check(path, 'bytes', expected=file.bytes, actual=path.stat().length if path.exists() else 0)
    for shard in self.manifest.shards:
      stored = files[f'{shard.name}.tokens'].bytes // shard.token_bytes
      _check(self.directory, 'tokens', expected=sum(shard.tokens), actual=stored)
    self._cache = cache
    self._reader = shards.Reader(self.directory, self.manifest.shards, cache)
    self.token_store = self._open_tokens()
    self.lengths: Int[np.ndarray, 'n 2'] = self.token_store.lengths

  def __len__(self) -> int:
    return len(self.lengths)

  def _open_tokens(self) -> TokenStore:
    described = self.manifest.shards
    tokens = shards.TokenFiles(self.directory, described, self._cache)
    if not self.manifest.index:
      by_shard = [shards.lengths(self.directory, shard, self._cache) for shard in described]
      return TokenStore.from_lengths(by_shard, tokens)
    if set(self.manifest.index) != set(shards.INDEX):
      raise DamagedError(self.directory / MANIFEST, 'has an index of other files')
    counts, starts = shards.map_index(
      self.directory, self.manifest.index, self.manifest.rows, self._cache
    )
    first = np.cumsum([0, *(shard.rows for shard in described)])
    return TokenStore(tokens, first, starts, counts)

  @property
  def name(self) -> str:
    return f'{self.manifest.task}, split {self.manifest.split}'

  def tokens(self, indices: Indices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads the tokens of inputs and targets of rows, in the order of `indices`."""
    return self.token_store.read(indices)

  def read(self, indices: Indices) -> list[Record]:
    """Reads rows with their text, in the order of `indices`."""
    tokens = self.tokens(indices)
    rows = self._reader.read(np.asarray(indices))
    return [
      Record(row, inputs, targets, options)
      for (row, options), (inputs, targets) in zip(rows, tokens, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """Token arrays with the position of each row: 16 bytes a row, mapped or in memory.

  Attributes:
    arrays: token arrays, one a shard.
    first: number of the first row of each array, and of all rows.
    starts: start of each row in its array, which has inputs, then targets.
    lengths: token counts of inputs and targets of each row.
  """

  arrays: Sequence[Int[np.ndarray, 'k']]
  first: Int[np.ndarray, 'A+1']
  starts: Int[np.ndarray, 'n']
  lengths: Int[np.ndarray, 'n 2']

  @classmethod
  def from_lengths(
    cls, lengths: Sequence[Int[np.ndarray, 'k 2']], arrays: Sequence[Int[np.ndarray, 'k']]
  ) -> TokenStore:
    """Builds the store from the token counts of each array's rows."""
    sizes = [counts.sum(axis=1, dtype=np.int64) for counts in lengths]
    return cls(
      arrays,
      np.cumsum([0, *map(len, lengths)]),
      np.concatenate([np.cumsum(size) - size for size in sizes]),
      np.concatenate(lengths),
    )

  def read(self, indices: Indices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads inputs and targets of rows, in the order of `indices`."""
    starts, lengths = self.starts[indices], self.lengths[indices]
    array = np.searchsorted(self.first, indices, side='right') - 1
    middles = starts + lengths[:, 0]
    spans = zip(array.tolist(), starts.tolist(), middles.tolist(), strict=True)
    ends = (middles + lengths[:, 1]).tolist()
    return [
      (tokens[: middle - start], tokens[middle - start :])
      for (i, start, middle), end in zip(spans, ends, strict=True)
      for tokens in [self.arrays[i][start:end].astype(TOKEN, copy=False)]
    ]


class MixtureRecords:
  """Records of several tasks, numbered one task after the other.

  `per_task` has the records of each task, `starts` the number of each task's first row.
  """

  def __init__(self, per_task: Sequence[Records]) -> None:
    """Concatenates records.

    Raises:
      ValueError: if there are none, or tasks begin or end their rows with different tokens.
    """
    if not per_task:
      raise ValueError('There are no records to mix: name at least one task.')
    self.per_task = tuple(per_task)
    manifests = [records.manifest for records in per_task]
    if len({(m.bos_id, m.inputs_eos_id, m.eos_id) for m in manifests}) > 1:
      raise ValueError(
        f'{self.name}: tasks begin or end their rows with different tokens and cannot be mixed.'
      )
    self.starts: Int[np.ndarray, 'P+1'] = np.cumsum([0, *map(len, per_task)])

  def __len__(self) -> int:
    return int(self.starts[-1])

  @functools.cached_property
  def lengths(self) -> Int[np.ndarray, 'n 2']:
    """Token counts of all rows; those of several tasks are copied into memory."""
    counts = [records.lengths for records in self.per_task]
    return counts[0] if len(counts) == 1 else np.concatenate(counts)

  @property
  def manifest(self) -> Manifest:
    """The first task's manifest; all have the same special ids."""
    return self.per_task[0].manifest

  @property
  def name(self) -> str:
    return ' + '.join(records.name for records in self.per_task)

  def tokens(self, indices: Indices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads the tokens of inputs and targets of rows, in the order of `indices`."""
    return self._by_task(indices, lambda records, rows: records.tokens(rows))

  def read(self, indices: Indices) -> list[Record]:
    """Reads rows with their text, in the order of `indices`; one bulk read per task."""
    return self._by_task(indices, lambda records, rows: records.read(rows))

  def _by_task(
    self, indices: Indices, read: Callable[[Records, Int[np.ndarray, 'k']], Sequence[T]]
  ) -> list[T]:
    numbers = np.asarray(indices)
    if len(self.per_task) == 1:
      return list(read(self.per_task[0], numbers))
    task = np.searchsorted(self.starts, numbers, side='right') - 1
    by_position: dict[int, T] = {}
    for i in np.unique(task):
      positions = np.flatnonzero(task == i)
      rows = read(self.per_task[i], numbers[positions] - self.starts[i])
      by_position |= zip(positions.tolist(), rows, strict=True)
    return [by_position[position] for position in range(len(numbers))]


AnyRecords: TypeAlias = Records | MixtureRecords


def split_by_task(records: AnyRecords) -> tuple[Records, ...]:
  """The records of each task."""
  return records.per_task if isinstance(records, MixtureRecords) else (records,)


def is_complete(directory: epath.PathLike) -> bool:
  """True if the directory was written to the end."""
  return (epath.Path(directory) / MANIFEST).exists()


def check_content(directory: epath.PathLike) -> None:
  """Reads every file; raises DamagedError if a checksum differs from the manifest's."""
  for name, file in read_manifest(epath.Path(directory)).files.items():
    path = epath.Path(directory) / name
    checksum = textfiles.sha256(path) if path.exists() else 'no file'
    _check(path, 'as sha256', expected=file.sha256, actual=checksum)


def read_manifest(directory: epath.Path) -> Manifest:
  """Reads `manifest.json`; FileNotFoundError or DamagedError if it is missing or unreadable."""
  try:
    return Manifest.from_json((directory / MANIFEST).read_text())
  except FileNotFoundError:
    raise FileNotFoundError(
      f'{directory} has no token records: {MANIFEST} is missing. Write them with '
      '`python -m cascades.browse_tasks materialize`.'
    ) from None
  except (ValueError, RecursionError) as error:
    raise DamagedError(
      directory / MANIFEST, f'is not a manifest of token records ({error})'
    ) from error


def _check(path: epath.Path, what: str, *, expected: object, actual: object) -> None:
  if actual != expected:
    raise DamagedError(path, f'has {actual} {what}, but {expected} was written')
