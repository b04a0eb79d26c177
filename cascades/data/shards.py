"""Shards of token records: text in an ArrayRecord, one msgpack list a row, and tokens beside it.

Training reads only tokens, many small rows at a time. From ArrayRecord that took most of a batch's
time; mapped into memory it takes almost none. A shard's description is written last, so that an
interrupted job resumes with the shard that it was writing.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath
from jaxtyping import Int

from cascades.runtime import files
from cascades.tasks import textfiles
from cascades.tasks.task import Row, Tokenize, Vocabularies
from cascades.tasks.tokenize import ROWS_TOGETHER, blocks, row_by_row
from cascades.tokenizers.conventions import TOKEN

FORMAT = 2  # raise it when a record's layout changes

_TEXT, _TOKENS, _LENGTHS, _DESCRIPTION = 'array_record', 'tokens', 'lengths.npy', 'json'
_WRITER_OPTIONS = 'group_size:1,uncompressed'  # a read fetches one row, and rows are small
_READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
_READER_BUFFER = 4096  # bytes
_STORED_KEYS = {'unlabeled': 'unlabelled'}  # fields that JSON spells otherwise


class File(NamedTuple):
  """Size and checksum of a written file."""

  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Shard:
  """Description of a finished shard.

  Attributes:
    name: the shard's number, five digits.
    rows: number of rows.
    unlabeled: number of rows without an answer.
    tokens: numbers of tokens of inputs and of targets.
    files: size and checksum of each file.
  """

  name: str
  rows: int
  unlabeled: int
  tokens: tuple[int, int]
  files: Mapping[str, File]


def write(
  rows: Iterable[Row],
  vocabularies: Vocabularies,
  directory: epath.PathLike,
  index: int,
  tokenize: Tokenize | None = None,
) -> Shard:
  """Writes shard number `index`.

  Args:
    rows: the shard's rows.
    vocabularies: vocabularies of inputs and targets.
    directory: an existing directory.
    index: the shard's number.
    tokenize: the task's own tokenization, or None for `row_by_row`.

  Returns:
    The shard's description, which is also written, after everything else.
  """
  name = f'{index:05d}'
  path = functools.partial(_file, epath.Path(directory), name)
  lengths = array.array('i')
  unlabeled = 0
  pack = msgpack.Packer().pack  # making a packer costs more than packing
  writer = array_record_module.ArrayRecordWriter(str(path(_TEXT)), _WRITER_OPTIONS)
  with path(_TOKENS).open('wb') as tokens:
    records = (tokenize or row_by_row)(rows, vocabularies, index)
    for block in blocks(records, ROWS_TOGETHER):
      fields = [ids for record in block for ids in (record.inputs, record.targets)]
      tokens.write(np.concatenate(fields))
      lengths.extend(map(len, fields))
      unlabeled += sum(not record.row.answers for record in block)
      for record in block:
        writer.write(pack((*record.row, [ids.tobytes() for ids in record.options])))
  writer.close()
  counts = np.array(lengths, np.int32).reshape(-1, 2)
  with path(_LENGTHS).open('wb') as stream:
    np.save(stream, counts, allow_pickle=False)
  totals = counts.sum(axis=0, dtype=np.int64).tolist()
  written = {
    file.name: File(file.stat().length, textfiles.sha256(file))
    for file in (path(_TEXT), path(_TOKENS), path(_LENGTHS))
  }
  shard = Shard(name, len(counts), unlabeled, (totals[0], totals[1]), written)
  files.write(path(_DESCRIPTION), json.dumps(describe(shard)).encode())
  return shard


def finished(directory: epath.PathLike) -> dict[int, Shard]:
  """The complete shards that an interrupted job has left, by number."""
  shards = {}
  for file in epath.Path(directory).glob(f'*.{_DESCRIPTION}'):
    shard = from_description(json.loads(file.read_text()))
    paths = {name: epath.Path(directory) / name for name in shard.files}
    if all(p.exists() and p.stat().length == shard.files[n].bytes for n, p in paths.items()):
      shards[int(shard.name)] = shard
  return shards


def describe(shard: Shard) -> dict[str, object]:
  """A shard's description as JSON stores it."""
  fields = dataclasses.asdict(shard)
  return {_STORED_KEYS.get(name, name): value for name, value in fields.items()}


def from_description(fields: Mapping[str, object]) -> Shard:
  """A shard from its description as JSON stores it."""
  names = {key: name for name, key in _STORED_KEYS.items()}
  named = {names.get(key, key): value for key, value in dict(fields).items()}
  shard = Shard(**named)  # type: ignore[arg-type]
  inputs, targets = shard.tokens
  described = {name: File(*file) for name, file in shard.files.items()}
  return dataclasses.replace(shard, tokens=(inputs, targets), files=described)


def lengths(directory: epath.Path, shard: Shard) -> Int[np.ndarray, 'n 2']:
  """Reads the token counts of inputs and targets of each row."""
  with _file(directory, shard.name, _LENGTHS).open('rb') as stream:
    return np.load(stream, allow_pickle=False)


def map_tokens(directory: epath.Path, shard: Shard) -> Int[np.ndarray, 'n']:
  """Maps the tokens of all rows, inputs then targets, into memory."""
  if not sum(shard.tokens):  # nothing can be mapped
    return np.zeros(0, TOKEN)
  mapped = np.memmap(_file(directory, shard.name, _TOKENS), TOKEN, 'r')
  return np.asarray(mapped)  # slices of a memmap itself are slow


class Reader:
  """Random access to the text of rows; safe to share between threads."""

  def __init__(self, directory: epath.Path, shards: Sequence[Shard]) -> None:
    self._files = [_file(directory, shard.name, _TEXT) for shard in shards]
    self._starts = np.cumsum([0, *(shard.rows for shard in shards)])

  def read(self, indices: Int[np.ndarray, 'n']) -> list[tuple[Row, tuple[np.ndarray, ...]]]:
    """Reads rows with their options' tokens, in the order of `indices`; one bulk read a shard."""
    shard = np.searchsorted(self._starts, indices, side='right') - 1
    contents: list[bytes] = [b''] * len(indices)
    for i in np.unique(shard):
      positions = np.flatnonzero(shard == i)
      block = self._open(i).read((indices[positions] - self._starts[i]).tolist())
      for position, content in zip(positions, block, strict=True):
        contents[position] = content
    return [_unpack(content) for content in contents]

  # Opened when first read, since training reads no text.
  @functools.cache  # noqa: B019
  def _open(self, shard: int) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(
      str(self._files[shard]), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
    )


def _file(directory: epath.Path, name: str, suffix: str) -> epath.Path:
  return directory / f'{name}.{suffix}'


def _unpack(content: bytes) -> tuple[Row, tuple[np.ndarray, ...]]:
  id_, inputs, answers, options, *rest, tokens = msgpack.unpackb(content)
  row = Row(id_, inputs, tuple(answers), tuple(options), *rest)
  return row, tuple(np.frombuffer(ids, TOKEN) for ids in tokens)
