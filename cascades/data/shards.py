"""Shards of token records: text in an ArrayRecord, one msgpack list a row, and tokens beside it.

Training reads tokens alone, many small rows at a time. From ArrayRecord that took most of a batch's
time; mapped into memory it takes almost none. A shard is written as a whole and described last, so
that an interrupted job goes on with the shard that it was writing.
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
from cascades.tasks.task import Record, Row, Tokenize, Vocabularies
from cascades.tasks.tokenize import ROWS_TOGETHER, blocks, row_by_row
from cascades.tokenizers.conventions import TOKEN

FORMAT = 2  # raise it when a record's layout changes

_TEXT, _TOKENS, _LENGTHS, _DESCRIPTION = 'array_record', 'tokens', 'lengths.npy', 'json'
_WRITER_OPTIONS = 'group_size:1,uncompressed'  # a read fetches one row, and rows are small
_READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
_READER_BUFFER = 4096  # bytes


class File(NamedTuple):
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Shard:
  """What a finished shard holds."""

  name: str
  rows: int
  unlabelled: int  # rows without an answer
  tokens: tuple[int, int]  # of inputs and of targets
  files: Mapping[str, File]


def write(
  rows: Iterable[Row],
  vocabularies: Vocabularies,
  directory: epath.PathLike,
  index: int,
  tokenize: Tokenize | None = None,
) -> Shard:
  """Writes the shard of this number; its description last, so that it is whole or not there."""
  name = f'{index:05d}'
  place = functools.partial(_file, epath.Path(directory), name)
  lengths = array.array('i')
  unlabelled = 0
  pack = msgpack.Packer().pack  # making one costs more than packing
  writer = array_record_module.ArrayRecordWriter(str(place(_TEXT)), _WRITER_OPTIONS)
  with place(_TOKENS).open('wb') as tokens:
    records = (tokenize or row_by_row)(rows, vocabularies, index)
    for block in blocks(records, ROWS_TOGETHER):
      fields = [ids for record in block for ids in (record.inputs, record.targets)]
      tokens.write(np.concatenate(fields))
      lengths.extend(map(len, fields))
      unlabelled += sum(not record.row.answers for record in block)
      for record in block:
        writer.write(pack(_fields(record)))
  writer.close()
  counts = np.array(lengths, np.int32).reshape(-1, 2)
  with place(_LENGTHS).open('wb') as stream:
    np.save(stream, counts, allow_pickle=False)
  totals = counts.sum(axis=0, dtype=np.int64).tolist()
  made = [place(kind) for kind in (_TEXT, _TOKENS, _LENGTHS)]
  written = {file.name: File(file.stat().length, textfiles.sha256(file)) for file in made}
  shard = Shard(name, len(counts), unlabelled, (totals[0], totals[1]), written)
  files.write(place(_DESCRIPTION), json.dumps(dataclasses.asdict(shard)).encode())
  return shard


def finished(directory: epath.PathLike) -> dict[int, Shard]:
  """The shards that an interrupted job has left whole, by number."""
  found = {}
  for file in epath.Path(directory).glob(f'*.{_DESCRIPTION}'):
    shard = described(json.loads(file.read_text()))
    places = {name: epath.Path(directory) / name for name in shard.files}
    if all(p.exists() and p.stat().length == shard.files[n].bytes for n, p in places.items()):
      found[int(shard.name)] = shard
  return found


def described(fields: Mapping[str, object]) -> Shard:
  """A shard from its description as JSON."""
  shard = Shard(**fields)  # type: ignore[arg-type]
  made = {name: File(*file) for name, file in shard.files.items()}
  inputs, targets = shard.tokens
  return dataclasses.replace(shard, tokens=(inputs, targets), files=made)


def lengths(directory: epath.Path, shard: Shard) -> Int[np.ndarray, 'n 2']:
  """Token counts of inputs and targets of each row."""
  with _file(directory, shard.name, _LENGTHS).open('rb') as stream:
    return np.load(stream, allow_pickle=False)


def map_tokens(directory: epath.Path, shard: Shard) -> Int[np.ndarray, 'n']:
  """The tokens of all rows, inputs then targets, mapped into memory."""
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
    """These rows with their options' tokens, in this order; one bulk read a shard."""
    shard = np.searchsorted(self._starts, indices, side='right') - 1
    found: list[bytes] = [b''] * len(indices)
    for i in np.unique(shard):
      places = np.flatnonzero(shard == i)
      contents = self._open(i).read((indices[places] - self._starts[i]).tolist())
      for place, content in zip(places, contents, strict=True):
        found[place] = content
    return [_unpack(content) for content in found]

  # Opened when first read, since training reads no text.
  @functools.cache  # noqa: B019
  def _open(self, shard: int) -> array_record_module.ArrayRecordReader:
    return array_record_module.ArrayRecordReader(
      str(self._files[shard]), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
    )


def _file(directory: epath.Path, name: str, kind: str) -> epath.Path:
  return directory / f'{name}.{kind}'


def _fields(record: Record) -> tuple[object, ...]:
  return (*record.row, [ids.tobytes() for ids in record.options])


def _unpack(content: bytes) -> tuple[Row, tuple[np.ndarray, ...]]:
  id_, inputs, answers, options, *rest, tokens = msgpack.unpackb(content)
  row = Row(id_, inputs, tuple(answers), tuple(options), *rest)
  return row, tuple(np.frombuffer(ids, TOKEN) for ids in tokens)
