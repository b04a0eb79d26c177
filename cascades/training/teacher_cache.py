"""A large model's answers to the rows of a task, on disk, for losses to read instead of running it.

A directory holds one split of one task, in shards of `shard_rows` rows in the split's order:

    manifest.json    written first: the model, the rows, and the format of the answers
    00000.answers    one record per target token, row after row, to be mapped into memory
    00000.rows.npy   of each row the number of its tokens, and the crc32 of their records
    00000.ids.npy    the rows' ids
    00000.json       written last: sizes and checksums; a shard without it is incomplete

Answers belong to the target tokens of a row, whatever batch or pack an epoch puts the row into.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from cascades.runtime import claims, files, origins
from cascades.teachers import Top1, TopK
from cascades.training.answer_format import AnswerFormat

FORMAT = 1  # raise it when the layout of a directory changes
MANIFEST = 'manifest.json'
TAIL = 'uniform over the entries that are not kept'
SAMPLED_TAIL = 'samples of the entries that are not kept'
COMMAND = 'python -m cascades.cache_teacher'

_ROW = np.dtype([('tokens', '<i4'), ('crc32', '<u4')])
_MANIFEST_TYPES: Mapping[str, Any] = {
  'shards': int, 'top_k': int | None, 'tail_samples': int | None, 'dtype': str, 'vocab_size': int,
}  # fmt: skip
_ANSWERS, _ROWS, _IDS, _DESCRIPTION = 'answers', 'rows.npy', 'ids.npy', 'json'
_DESCRIBED = re.compile(rf'\d+\.{_DESCRIPTION}')


def location(directory: epath.PathLike, task: str, split: str) -> epath.Path:
  """The directory of a split's answers below the one that a user names.

  Raises ValueError for object stores.
  """
  if files.is_remote(directory):
    raise ValueError(
      f'A teacher cache cannot be in {os.fspath(directory)}: it is read at random, which needs a '
      'local or mounted file system. Name a local directory for it.'
    )
  return files.absolute(directory) / task / split


# -- writing ---------------------------------------------------------------------------------------


def begin(
  directory: epath.Path,
  identity: Mapping[str, Any],
  notes: Mapping[str, Any],
  *,
  write: bool,
  overwrite: bool = False,
) -> None:
  """Checks and writes the manifest, before any shard; so a disk that cannot be written is noticed.

  Args:
    directory: the cache of one split.
    identity: what all shards of the directory must have in common.
    notes: what else the manifest says, not compared.
    write: whether this process writes.
    overwrite: whether answers of another identity are removed.

  Raises:
    ValueError: naming the differences, if the directory holds answers of another identity.
  """
  path = directory / MANIFEST
  if overwrite and not write:  # the process that writes may be removing the files
    return
  if write and not claims.claimed(directory):  # otherwise another program may be writing
    files.remove_leftovers(directory)
  identity = json.loads(json.dumps({'format': FORMAT, **identity}))
  content = json.dumps({**identity, **notes}, indent=2, allow_nan=False) + '\n'
  if path.exists():
    try:
      check_identity(directory, read_manifest(directory), identity)
      content = path.read_text()  # with the notes of the command that began
      write = write and _shards_present(directory) < identity.get('shards', 1)
    except ValueError as error:
      if not overwrite:
        raise ValueError(f'{error} OVERWRITE=True replaces these answers.') from error
      if write:
        directory.rmtree()
  if write:
    files.write(path, content)


def write_shard(
  directory: epath.Path,
  index: int,
  ids: Sequence[str],
  lengths: Sequence[int] | Int[np.ndarray, 'n'],
  records: np.ndarray,
) -> None:
  """Writes the answers to n rows: `lengths` tokens each, with all their records in one array."""
  ends = np.cumsum(lengths).tolist()
  if (ends[-1] if ends else 0) != len(records) or len(ids) != len(ends):
    raise ValueError(f'{len(records)} records for {len(ids)} rows of {sum(lengths)} tokens.')
  rows = np.zeros(len(ends), _ROW)
  rows['tokens'] = lengths
  rows['crc32'] = [zlib.crc32(records[a:b].tobytes()) for a, b in itertools.pairwise([0, *ends])]
  contents = {
    _ANSWERS: records.tobytes(),
    _ROWS: _npy_bytes(rows),
    _IDS: _npy_bytes(np.array([name.encode() for name in ids], bytes)),
  }
  for suffix, content in contents.items():
    files.write(_file(directory, index, suffix), content)
  description = {
    suffix: [len(content), zlib.crc32(content)] for suffix, content in contents.items()
  }
  files.write(_file(directory, index, _DESCRIPTION), json.dumps(description) + '\n')


def complete_shards(directory: epath.Path, count: int) -> set[int]:
  """The shards among the first `count` that are complete and undamaged; reads every byte."""
  return {
    index
    for index in range(count)
    if not _defect(directory, index, contents=(_ANSWERS, _ROWS, _IDS))
  }


def described_shards(directory: epath.Path) -> set[int]:
  """The shards that have a description, complete or not; lists the directory once."""
  names = (path.name for path in directory.iterdir())
  return {int(name.partition('.')[0]) for name in names if _DESCRIBED.fullmatch(name)}


def is_complete(directory: epath.Path, index: int, *, content: bool) -> bool:
  """True if a shard has the sizes in its description; reads every byte only for `content`."""
  return not _defect(directory, index, contents=(_ANSWERS, _ROWS, _IDS) if content else ())


# -- reading ---------------------------------------------------------------------------------------


def fingerprint(identity: str) -> str:
  """Hash of a checkpoint's identity, short enough to be read beside another."""
  return hashlib.sha256(identity.encode()).hexdigest()


def read_manifest(directory: epath.Path) -> dict[str, Any]:
  """Reads a directory's manifest. Raises FileNotFoundError or ValueError, with what to do."""
  path = directory / MANIFEST
  if not path.exists():
    raise FileNotFoundError(
      f'{directory} holds no teacher cache: {MANIFEST} is missing. Make one with `{COMMAND}`.'
    )
  try:
    manifest = json.loads(path.read_text())
    if not isinstance(manifest, dict):
      raise ValueError('no JSON object')
    for key, types in _MANIFEST_TYPES.items():
      if not isinstance(manifest.get(key), types):
        raise ValueError(f'{key} is {manifest.get(key)!r:.80}')
    if manifest['shards'] < 1:
      raise ValueError('it has no shards')
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{path} is damaged ({error}): remove the directory, and make it again with `{COMMAND}`.'
    ) from error
  return manifest


def check_identity(
  directory: epath.Path, manifest: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
  """Raises ValueError, naming the differences, if a manifest differs from `expected`."""
  if different := origins.differences(manifest, expected):
    raise ValueError(
      f'the teacher cache {directory} is of something else: {"; ".join(different)}. Make another '
      f'with `{COMMAND}` in another directory (TEACHER_CACHE), or name the one that fits.'
    )


@dataclasses.dataclass(frozen=True)
class CachedAnswers:
  """The answers to N rows, read at random; 16 bytes of memory per row. Safe between threads.

  Attributes:
    format: the format of all answers.
    files: the A files of answers.
    arrays: their bytes, mapped into memory.
    first_rows: the number of each file's first row, and N.
    starts: of each row the position in its file, in tokens.
    rows: of each row the number of tokens and their crc32.
  """

  format: AnswerFormat
  files: Sequence[epath.Path]
  arrays: Sequence[np.ndarray]
  first_rows: Int[np.ndarray, 'A+1']
  starts: Int[np.ndarray, 'N']
  rows: np.ndarray

  @classmethod
  def open(cls, directory: epath.Path) -> CachedAnswers:
    """Opens a split's answers. Raises ValueError, naming them, if shards are missing or damaged."""
    manifest = read_manifest(directory)
    count = manifest['shards']
    # The manifest may claim any number: a missing one is among the first of one more than exist.
    indices = range(min(count, _shards_present(directory) + 1))
    defects = {index: _defect(directory, index, contents=(_ROWS,)) for index in indices}
    incomplete = [f'{index:05d} {defect}' for index, defect in defects.items() if defect]
    if incomplete:
      unusable = count - len(indices) + len(incomplete)
      raise ValueError(
        f'the teacher cache {directory} is not complete: of {count} shards {unusable} cannot be '
        f'used ({"; ".join(incomplete[:3])}). Run the same `{COMMAND}` again: it makes those.'
      )
    rows = [_load(directory, index, _ROWS) for index in indices]
    paths = [_file(directory, index, _ANSWERS) for index in indices]
    starts = [np.cumsum(shard['tokens'], dtype=np.int64) - shard['tokens'] for shard in rows]
    return cls(
      AnswerFormat.of(manifest),
      paths,
      [_map_file(path) for path in paths],
      np.cumsum([0, *map(len, rows)]),
      np.concatenate(starts),
      np.concatenate(rows),
    )

  @classmethod
  def join(cls, splits: Sequence[CachedAnswers]) -> CachedAnswers:
    """Joins the answers of several splits, one after the other."""
    if len(splits) == 1:
      return splits[0]
    return cls(
      splits[0].format,
      [file for split in splits for file in split.files],
      [array for split in splits for array in split.arrays],
      np.cumsum([0, *(rows for split in splits for rows in np.diff(split.first_rows))]),
      np.concatenate([split.starts for split in splits]),
      np.concatenate([split.rows for split in splits]),
    )

  def read(self, rows: Iterable[int] | Int[np.ndarray, 'n']) -> Top1 | TopK:
    """Reads the answers to all target tokens of these rows, one row after the other.

    Raises ValueError, naming the shard, if their checksums differ from those that were written.
    """
    numbers = np.asarray(rows, np.int64)
    size = self.format.record.itemsize
    file = np.searchsorted(self.first_rows, numbers, side='right') - 1
    begins = size * self.starts[numbers]
    ends = size * (self.starts[numbers] + self.rows['tokens'][numbers])
    spans = zip(file.tolist(), begins.tolist(), ends.tolist(), strict=True)
    contents = [self.arrays[i][begin:end] for i, begin, end in spans]
    checksums = self.rows['crc32'][numbers].tolist()
    for content, expected, i in zip(contents, checksums, file, strict=True):
      if zlib.crc32(content) != expected:
        raise ValueError(
          f'{self.files[i]} is damaged: answers do not have the checksum that was written with '
          f'them. Run the same `{COMMAND}` again: it makes damaged shards anew.'
        )
    records = np.concatenate([np.zeros(0, np.uint8), *contents]).view(self.format.record)
    return self.format.unpack(records)


def sample_ids(directory: epath.Path) -> dict[int, str]:
  """The ids of each shard's first and last row by row number, as samples of all ids."""
  samples, before = {}, 0
  for index in range(read_manifest(directory)['shards']):
    ids = _load(directory, index, _IDS)
    for row in {0, len(ids) - 1}:
      samples[before + row] = ids[row].decode()
    before += len(ids)
  return samples


def _shards_present(directory: epath.Path) -> int:
  return len(described_shards(directory))


def _defect(directory: epath.Path, index: int, *, contents: Sequence[str]) -> str:
  """A shard's defect, or ''. Reads every byte of `contents`, and of other files the size."""
  try:
    description = json.loads(_file(directory, index, _DESCRIPTION).read_text())
    sizes = {
      suffix: (int(description[suffix][0]), int(description[suffix][1]))
      for suffix in (_ANSWERS, _ROWS, _IDS)
    }
  except FileNotFoundError:
    return 'is missing'
  except (ValueError, LookupError, TypeError, RecursionError):
    return 'has an unreadable description'
  for suffix, (size, crc32) in sizes.items():
    path = _file(directory, index, suffix)
    size_on_disk = path.stat().length if path.exists() else 0
    if size_on_disk != size:
      return f'has {size_on_disk} bytes in {path.name} where {size} were written'
    if suffix in contents and zlib.crc32(path.read_bytes()) != crc32:
      return f'is damaged in {path.name}'
  return ''


def _load(directory: epath.Path, index: int, suffix: str) -> np.ndarray:
  return np.load(os.fspath(_file(directory, index, suffix)), mmap_mode='r', allow_pickle=False)


def _map_file(path: epath.Path) -> np.ndarray:
  if not path.stat().length:  # an empty file cannot be mapped
    return np.zeros(0, np.uint8)
  return np.asarray(np.memmap(os.fspath(path), np.uint8, 'r'))  # slices of a memmap are slow


def _npy_bytes(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  np.save(stream, array, allow_pickle=False)
  return stream.getvalue()


def _file(directory: epath.Path, index: int, suffix: str) -> epath.Path:
  return directory / f'{index:05d}.{suffix}'
