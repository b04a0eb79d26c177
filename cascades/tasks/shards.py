"""A split's files: text in ArrayRecord shards, one msgpack list a row, and all tokens in one file.

Training reads tokens alone, many small rows at a time. From ArrayRecord that took most of a batch's
time; mapped into memory it takes almost none.
"""

from __future__ import annotations

import array
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath
from jaxtyping import Int

from cascades.tasks.task import Row, Vocabularies

FORMAT = 1  # raise it when a record's layout changes

TOKENS = 'tokens.bin'
TOKEN = np.dtype('<i4')
_WRITER_OPTIONS = 'group_size:1,uncompressed'  # a read fetches one row, and rows are small
_READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
_READER_BUFFER = 4096  # bytes


class Record(NamedTuple):
  """A row and its tokens, neither trimmed nor ended by an end of sequence."""

  row: Row
  inputs: Int[np.ndarray, 's']
  targets: Int[np.ndarray, 't']
  options: tuple[Int[np.ndarray, 'o'], ...]


def tokenize(row: Row, vocabularies: Vocabularies) -> Record:
  """The row with the ids of its inputs, first answer and options."""
  encode = lambda vocabulary, text: np.array(vocabulary.encode(text), TOKEN)
  return Record(
    row,
    encode(vocabularies.inputs, row.inputs),
    encode(vocabularies.targets, row.targets),
    tuple(encode(vocabularies.targets, option) for option in row.options),
  )


class Written(NamedTuple):
  """What `write` left: files in order, token counts of inputs and targets, rows without answer."""

  shards: list[str]
  lengths: Int[np.ndarray, 'n 2']
  unlabelled: int


def write(records: Iterable[Record], directory: epath.Path, *, rows_per_shard: int) -> Written:
  """Writes records-00000.array_record and so on, and the tokens file."""
  names: list[str] = []
  lengths = array.array('i')
  unlabelled = 0
  stream = iter(records)
  with (directory / TOKENS).open('wb') as tokens:
    for first in stream:
      names.append(f'records-{len(names):05d}.array_record')
      writer = array_record_module.ArrayRecordWriter(str(directory / names[-1]), _WRITER_OPTIONS)
      for record in itertools.chain([first], itertools.islice(stream, rows_per_shard - 1)):
        writer.write(_pack(record))
        tokens.write(record.inputs.tobytes() + record.targets.tobytes())
        lengths.extend((len(record.inputs), len(record.targets)))
        unlabelled += not record.row.answers
      writer.close()
  return Written(names, np.array(lengths, np.int32).reshape(-1, 2), unlabelled)


def map_tokens(directory: epath.Path) -> Int[np.ndarray, 'n']:
  """The tokens of all rows, inputs then targets, mapped into memory."""
  file = directory / TOKENS
  if not file.stat().length:  # nothing can be mapped
    return np.zeros(0, TOKEN)
  return np.asarray(np.memmap(file, TOKEN, 'r'))  # slices of a memmap itself are slow


class Reader:
  """Random access to the rows of shards; safe to share between threads."""

  def __init__(self, files: Sequence[epath.Path]) -> None:
    self._readers = [
      array_record_module.ArrayRecordReader(
        str(file), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
      )
      for file in files
    ]
    self._starts = np.cumsum([0, *(reader.num_records() for reader in self._readers)])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def read(self, indices: Int[np.ndarray, 'n']) -> list[tuple[Row, tuple[np.ndarray, ...]]]:
    """These rows with their options' tokens, in this order; one bulk read a shard."""
    shard = np.searchsorted(self._starts, indices, side='right') - 1
    found: list[bytes] = [b''] * len(indices)
    for i in np.unique(shard):
      places = np.flatnonzero(shard == i)
      contents = self._readers[i].read((indices[places] - self._starts[i]).tolist())
      for place, content in zip(places, contents, strict=True):
        found[place] = content
    return [_unpack(content) for content in found]


def _pack(record: Record) -> bytes:
  return msgpack.packb([*record.row, [ids.tobytes() for ids in record.options]])


def _unpack(content: bytes) -> tuple[Row, tuple[np.ndarray, ...]]:
  id_, inputs, answers, options, label, tokens = msgpack.unpackb(content)
  row = Row(id_, inputs, tuple(answers), tuple(options), label)
  return row, tuple(np.frombuffer(ids, TOKEN) for ids in tokens)
