"""A large model's answers to a task's rows, kept: what a loss needs, without running it again.

A directory holds a split of one task, in shards of `shard_rows` rows in the split's order:

    manifest.json    written first: which model answered which rows, and how answers are held
    00000.answers    a record a target token, row after row, to be mapped into memory
    00000.rows.npy   of each row how many tokens it has, and the crc32 of their records
    00000.ids.npy    the rows' ids
    00000.json       written last: sizes and checksums. A shard without it does not count.

A row's answers belong to its tokens alone: whatever row, pack or batch an epoch puts it into, they
stand where its targets stand.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jaxtyping import Float, Int

from cascades import teachers
from cascades.runtime import files
from cascades.teachers import Top1, TopK

FORMAT = 1  # raise it when the layout of a directory changes
MANIFEST = 'manifest.json'
TAIL = 'uniform over the entries that are not kept'
MAKE = 'python -m cascades.cache_teacher'

# As they lie on disk: NumPy itself has no bfloat16.
_STORED: Mapping[str, str] = {'float32': '<f4', 'float16': '<f2', 'bfloat16': '<u2'}
_ROW = np.dtype([('tokens', '<i4'), ('crc32', '<u4')])
_ANSWERS, _ROWS, _IDS, _DESCRIPTION = 'answers', 'rows.npy', 'ids.npy', 'json'


class Held(NamedTuple):
  """How the answer to a token is held.

  The first `top_k` choices with their log-probabilities in `dtype` and the mass of all others
  (`teachers.TopK`), or, if `top_k` is None, the first choice alone (`teachers.Top1`).
  """

  top_k: int | None = None
  dtype: str = 'float16'

  @property
  def record(self) -> np.dtype[Any]:
    """Of a token, on disk."""
    if self.top_k is None:
      return np.dtype([('ids', '<i4')])
    if self.dtype not in _STORED:
      raise ValueError(
        f'log-probabilities cannot be held as {self.dtype!r}: choose one of {", ".join(_STORED)}.'
      )
    k = (self.top_k,)
    return np.dtype([('ids', '<i4', k), ('top_logprobs', _STORED[self.dtype], k), ('tail', '<f4')])

  def keep(self, logits: Float[Array, '*n V']) -> Top1 | TopK:
    """What is kept of the large model's logits."""
    if self.top_k is None:
      return teachers.to_top1(logits)
    return teachers.to_top_k(logits, k=self.top_k, dtype=self.dtype)

  def pack(self, answers: Top1 | TopK) -> np.ndarray:
    """Answers to n tokens as n records."""
    records = np.zeros(len(answers.ids), self.record)
    for name, column in answers._asdict().items():
      records[name] = np.asarray(column).view(self.record[name].base)
    return records

  def unpack(self, records: np.ndarray) -> Top1 | TopK:
    """The answers that these records hold."""
    columns: dict[str, Any] = {  # Any: teachers declare JAX's arrays
      name: np.ascontiguousarray(records[name]) for name in self.record.names or ()
    }
    if self.top_k is None:
      return Top1(columns['ids'])
    logprobs = columns['top_logprobs'].view(jnp.dtype(self.dtype))
    return TopK(columns['ids'], logprobs, columns['tail'])

  def abstract(self, tokens: int) -> Any:
    """Shapes and types of the answers to so many tokens."""
    empty = self.unpack(np.zeros(tokens, self.record))
    return jax.tree.map(lambda column: jax.ShapeDtypeStruct(column.shape, column.dtype), empty)


def location(directory: epath.PathLike, task: str, split: str) -> epath.Path:
  """Where a split's answers lie below the directory that a user names."""
  if '://' in os.fspath(directory):
    raise ValueError(
      f'A teacher cache cannot lie in {os.fspath(directory)}: it is read at random, which needs a '
      'local or mounted file system. Name a local directory for it.'
    )
  return files.absolute(directory) / task / split


# -- writing ---------------------------------------------------------------------------------------


def begin(
  directory: epath.Path, identity: Mapping[str, Any], notes: Mapping[str, Any], *, write: bool
) -> None:
  """Says what the directory's shards are: `identity`, which all that is added to them must share.

  Raises ValueError, naming what differs, if it holds answers of another identity.
  """
  path = directory / MANIFEST
  identity = json.loads(json.dumps({'format': FORMAT, **identity}))
  if path.exists():
    refuse_others(directory, read_manifest(directory), identity)
  elif write:
    files.write(path, json.dumps({**identity, **notes}, indent=2, allow_nan=False) + '\n')


def write_shard(
  directory: epath.Path,
  index: int,
  ids: Sequence[str],
  lengths: Sequence[int] | Int[np.ndarray, 'n'],
  records: np.ndarray,
) -> None:
  """The answers to some rows: `lengths` tokens each, with all their records in one array."""
  ends = np.cumsum(lengths).tolist()
  if (ends[-1] if ends else 0) != len(records) or len(ids) != len(ends):
    raise ValueError(f'{len(records)} records for {len(ids)} rows of {sum(lengths)} tokens.')
  rows = np.zeros(len(ends), _ROW)
  rows['tokens'] = lengths
  rows['crc32'] = [zlib.crc32(records[a:b].tobytes()) for a, b in itertools.pairwise([0, *ends])]
  contents = {
    _ANSWERS: records.tobytes(),
    _ROWS: _npy(rows),
    _IDS: _npy(np.array([name.encode() for name in ids], bytes)),
  }
  for kind, content in contents.items():
    files.write(_file(directory, index, kind), content)
  described = {kind: [len(content), zlib.crc32(content)] for kind, content in contents.items()}
  files.write(_file(directory, index, _DESCRIPTION), json.dumps(described) + '\n')


def whole_shards(directory: epath.Path, count: int) -> set[int]:
  """The shards, of `count`, that need not be made again; every byte of them is read."""
  return {
    index
    for index in range(count)
    if not _defect(directory, index, contents=(_ANSWERS, _ROWS, _IDS))
  }


# -- reading ---------------------------------------------------------------------------------------


def fingerprint(identity: str) -> str:
  """Of a checkpoint's identity, short enough to be read beside another."""
  return hashlib.sha256(identity.encode()).hexdigest()


def read_manifest(directory: epath.Path) -> dict[str, Any]:
  """What the answers in a directory are."""
  path = directory / MANIFEST
  if not path.exists():
    raise FileNotFoundError(
      f'{directory} holds no teacher cache: {MANIFEST} is missing. Make one with `{MAKE}`.'
    )
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged ({error}): remove the directory, and make it again with `{MAKE}`.'
    ) from error


def refuse_others(
  directory: epath.Path, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Raises ValueError, naming what differs, if a manifest says other than `wanted` of anything."""
  different = [
    f'{name} is {_short(found.get(name))} there and {_short(value)} here'
    for name, value in wanted.items()
    if found.get(name) != value
  ]
  if different:
    raise ValueError(
      f'the teacher cache {directory} is of something else: {"; ".join(different)}. Make another '
      f'with `{MAKE}` in another directory (TEACHER_CACHE), or name the one that fits.'
    )


@dataclasses.dataclass(frozen=True)
class Answers:
  """The answers to many rows, read at random; 16 bytes a row in memory. Safe between threads."""

  held: Held
  files: Sequence[epath.Path]
  arrays: Sequence[np.ndarray]  # the bytes of each file
  first: Int[np.ndarray, 'A+1']  # row of each file
  starts: Int[np.ndarray, 'N']  # of a row in its file, in tokens
  rows: np.ndarray  # tokens and crc32 of each row

  @classmethod
  def open(cls, directory: epath.Path) -> Answers:
    """A split's answers. Raises ValueError, naming them, if shards are missing or damaged."""
    manifest = read_manifest(directory)
    indices = range(manifest['shards'])
    defects = {index: _defect(directory, index, contents=(_ROWS,)) for index in indices}
    wrong = [f'{index:05d} {defect}' for index, defect in defects.items() if defect]
    if wrong:
      raise ValueError(
        f'the teacher cache {directory} is not whole: of {len(indices)} shards {len(wrong)} do not '
        f'count ({"; ".join(wrong[:3])}). Run `{MAKE}` again as it was run: it makes those.'
      )
    rows = [_load(directory, index, _ROWS) for index in indices]
    paths = [_file(directory, index, _ANSWERS) for index in indices]
    starts = [np.cumsum(some['tokens'], dtype=np.int64) - some['tokens'] for some in rows]
    return cls(
      Held(manifest['top_k'], manifest['dtype']),
      paths,
      [_map(path) for path in paths],
      np.cumsum([0, *map(len, rows)]),
      np.concatenate(starts),
      np.concatenate(rows),
    )

  @classmethod
  def join(cls, parts: Sequence[Answers]) -> Answers:
    """The answers to the rows of all, one part after the other."""
    if len(parts) == 1:
      return parts[0]
    return cls(
      parts[0].held,
      [file for part in parts for file in part.files],
      [array for part in parts for array in part.arrays],
      np.cumsum([0, *(rows for part in parts for rows in np.diff(part.first))]),
      np.concatenate([part.starts for part in parts]),
      np.concatenate([part.rows for part in parts]),
    )

  def read(self, rows: Iterable[int] | Int[np.ndarray, 'n']) -> Top1 | TopK:
    """The answers to all target tokens of these rows, one row after the other.

    Raises ValueError, naming the shard, if they are not what was written.
    """
    wanted = np.asarray(rows, np.int64)
    size = self.held.record.itemsize
    array = np.searchsorted(self.first, wanted, side='right') - 1
    begins, ends = (
      size * self.starts[wanted],
      size * (self.starts[wanted] + self.rows['tokens'][wanted]),
    )
    spans = zip(array.tolist(), begins.tolist(), ends.tolist(), strict=True)
    found = [self.arrays[i][begin:end] for i, begin, end in spans]
    for content, expected, i in zip(found, self.rows['crc32'][wanted].tolist(), array, strict=True):
      if zlib.crc32(content) != expected:
        raise ValueError(
          f'{self.files[i]} is damaged: answers have not the checksum that they were written with. '
          f'Run `{MAKE}` again as it was run: it makes damaged shards anew.'
        )
    return self.held.unpack(np.concatenate([np.zeros(0, np.uint8), *found]).view(self.held.record))


def outermost_ids(directory: epath.Path) -> dict[int, str]:
  """The ids of each shard's first and last row, by the row's number: samples of all ids."""
  found, before = {}, 0
  for index in range(read_manifest(directory)['shards']):
    ids = _load(directory, index, _IDS)
    for place in {0, len(ids) - 1}:
      found[before + place] = ids[place].decode()
    before += len(ids)
  return found


def _defect(directory: epath.Path, index: int, *, contents: Sequence[str]) -> str:
  """Why a shard does not count, or nothing. Of `contents` every byte is read, else the size."""
  try:
    described = json.loads(_file(directory, index, _DESCRIPTION).read_text())
  except FileNotFoundError:
    return 'is missing'
  except ValueError:
    return 'has an unreadable description'
  for kind, (size, crc32) in described.items():
    path = _file(directory, index, kind)
    found = path.stat().length if path.exists() else 0
    if found != size:
      return f'has {found} bytes in {path.name} where {size} were written'
    if kind in contents and zlib.crc32(path.read_bytes()) != crc32:
      return f'is damaged in {path.name}'
  return ''


def _load(directory: epath.Path, index: int, kind: str) -> np.ndarray:
  return np.load(os.fspath(_file(directory, index, kind)), mmap_mode='r', allow_pickle=False)


def _map(path: epath.Path) -> np.ndarray:
  if not path.stat().length:  # nothing can be mapped
    return np.zeros(0, np.uint8)
  return np.asarray(np.memmap(os.fspath(path), np.uint8, 'r'))  # slices of a memmap are slow


def _npy(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  np.save(stream, array, allow_pickle=False)
  return stream.getvalue()


def _file(directory: epath.Path, index: int, kind: str) -> epath.Path:
  return directory / f'{index:05d}.{kind}'


def _short(value: Any) -> str:
  """Fingerprints are told apart by their beginnings."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:13]}...'
