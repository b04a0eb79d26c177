"""Token records that have been materialised, read at random; of one task or of several.

A directory holds shards of rows and tokens, and `manifest.json`, written last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Int

from cascades.data import shards
from cascades.data.shards import File, Shard
from cascades.tasks import textfiles
from cascades.tasks.task import Record

Indices: TypeAlias = Int[np.ndarray, 'n'] | Sequence[int]

MANIFEST = 'manifest.json'


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a directory of records holds, and how it was made."""

  task: str
  split: str
  identity: Mapping[str, str]  # of the definition, the source and the vocabularies
  bos_id: int | None
  inputs_eos_id: int | None  # ends every prompt
  eos_id: int | None  # ends every answer
  shards: Sequence[Shard]

  @property
  def rows(self) -> int:
    return sum(shard.rows for shard in self.shards)

  @property
  def unlabelled(self) -> int:
    return sum(shard.unlabelled for shard in self.shards)

  @property
  def files(self) -> dict[str, File]:
    return {name: file for shard in self.shards for name, file in shard.files.items()}


class Records:
  """A split's records with random access by row number; `lengths` are token counts."""

  def __init__(self, directory: epath.PathLike) -> None:
    """Opens a complete directory; one that lost or gained rows or bytes is refused."""
    self.directory = epath.Path(directory)
    self.manifest = read_manifest(self.directory)
    for name, file in self.manifest.files.items():
      path = self.directory / name
      _check(path, 'bytes', expected=file.bytes, found=path.stat().length if path.exists() else 0)
    self._reader = shards.Reader(self.directory, self.manifest.shards)
    lengths, tokens = [], []
    for shard in self.manifest.shards:
      lengths.append(shards.lengths(self.directory, shard))
      tokens.append(shards.map_tokens(self.directory, shard))
      _check(self.directory, 'rows', expected=shard.rows, found=len(lengths[-1]))
    self.stored = Stored.of(lengths, tokens)
    self.lengths: Int[np.ndarray, 'n 2'] = self.stored.lengths

  def __len__(self) -> int:
    return len(self.lengths)

  @property
  def name(self) -> str:
    return f'{self.manifest.task}, split {self.manifest.split}'

  def tokens(self, indices: Indices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens of inputs and targets of these rows, in this order."""
    return self.stored.read(indices)

  def read(self, indices: Indices) -> list[Record]:
    """These rows in this order, with their text."""
    tokens = self.tokens(indices)
    rows = self._reader.read(np.asarray(indices))
    return [
      Record(row, inputs, targets, options)
      for (row, options), (inputs, targets) in zip(rows, tokens, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where the tokens of rows lie; 16 bytes a row in memory, so that all of C4 fits too."""

  arrays: Sequence[Int[np.ndarray, 'k']]
  first: Int[np.ndarray, 'A+1']  # row of each array
  starts: Int[np.ndarray, 'n']  # of a row in its array: inputs, then targets
  lengths: Int[np.ndarray, 'n 2']

  @classmethod
  def of(
    cls, lengths: Sequence[Int[np.ndarray, 'k 2']], arrays: Sequence[Int[np.ndarray, 'k']]
  ) -> Stored:
    """From each array's token counts."""
    sizes = [counts.sum(axis=1, dtype=np.int64) for counts in lengths]
    return cls(
      arrays,
      np.cumsum([0, *map(len, lengths)]),
      np.concatenate([np.cumsum(size) - size for size in sizes]),
      np.concatenate(lengths),
    )

  @classmethod
  def join(cls, parts: Sequence[Stored]) -> Stored:
    """The rows of all, one after the other."""
    if len(parts) == 1:  # nothing to copy
      return parts[0]
    return cls(
      [array for part in parts for array in part.arrays],
      np.cumsum([0, *(rows for part in parts for rows in np.diff(part.first))]),
      np.concatenate([part.starts for part in parts]),
      np.concatenate([part.lengths for part in parts]),
    )

  def read(self, indices: Indices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of these rows, in this order."""
    starts, lengths = self.starts[indices], self.lengths[indices]
    array = np.searchsorted(self.first, indices, side='right') - 1
    middles = starts + lengths[:, 0]
    spans = zip(array.tolist(), starts.tolist(), middles.tolist(), strict=True)
    ends = (middles + lengths[:, 1]).tolist()
    return [
      (self.arrays[i][start:middle], self.arrays[i][middle:end])
      for (i, start, middle), end in zip(spans, ends, strict=True)
    ]


class Joined:
  """Records of several tasks, read as one: the first one's rows, then the second one's."""

  def __init__(self, parts: Sequence[Records]) -> None:
    if not parts:
      raise ValueError('There are no records to join.')
    self.parts = tuple(parts)
    ids = {(p.manifest.bos_id, p.manifest.inputs_eos_id, p.manifest.eos_id) for p in parts}
    if len(ids) > 1:
      raise ValueError(f'{self.name}: tasks end their rows differently and cannot be mixed.')
    self.starts: Int[np.ndarray, 'P+1'] = np.cumsum([0, *map(len, parts)])
    self.stored = Stored.join([part.stored for part in parts])
    self.lengths: Int[np.ndarray, 'n 2'] = self.stored.lengths

  def __len__(self) -> int:
    return int(self.starts[-1])

  @property
  def manifest(self) -> Manifest:
    """Of the first part; all agree in how rows begin and end."""
    return self.parts[0].manifest

  @property
  def name(self) -> str:
    return ' + '.join(part.name for part in self.parts)

  def tokens(self, indices: Indices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens of inputs and targets of these rows, in this order."""
    return self.stored.read(indices)

  def read(self, indices: Indices) -> list[Record]:
    """These rows in this order, with their text; one bulk read a part."""
    numbers = np.asarray(indices)
    part = np.searchsorted(self.starts, numbers, side='right') - 1
    found: dict[int, Record] = {}
    for i in np.unique(part):
      places = np.flatnonzero(part == i)
      found |= zip(
        places.tolist(), self.parts[i].read(numbers[places] - self.starts[i]), strict=True
      )
    return [found[place] for place in range(len(numbers))]


Readable: TypeAlias = Records | Joined


def is_complete(directory: epath.PathLike) -> bool:
  """Whether records were written there to the end."""
  return (epath.Path(directory) / MANIFEST).exists()


def check_content(directory: epath.PathLike) -> None:
  """Reads every file; raises ValueError if one is not what was written."""
  for name, file in read_manifest(epath.Path(directory)).files.items():
    path = epath.Path(directory) / name
    found = textfiles.sha256(path) if path.exists() else 'no file'
    _check(path, 'as sha256', expected=file.sha256, found=found)


def read_manifest(directory: epath.Path) -> Manifest:
  try:
    fields = json.loads((directory / MANIFEST).read_text())
    made = [shards.described(shard) for shard in fields.pop('shards')]
    return Manifest(shards=made, **fields)
  except FileNotFoundError:
    raise FileNotFoundError(
      f'{directory} holds no token records: {MANIFEST} is missing. Write them with '
      '`python -m cascades.browse_tasks materialize`.'
    ) from None
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{directory / MANIFEST} is not a manifest of token records ({error}). Delete the '
      'directory, and it is written anew.'
    ) from error


def _check(path: epath.Path, what: str, *, expected: object, found: object) -> None:
  if found != expected:
    raise ValueError(
      f'{path} has {found} {what}, but {expected} was written: the copy is damaged. Delete the '
      'directory, and it is written anew.'
    )
