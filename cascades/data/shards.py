"""Shards of token records: text in an ArrayRecord, one msgpack list a row, and tokens beside it.

Training reads only tokens, many small rows at a time. From ArrayRecord that took most of a batch's
time; mapped into memory it takes almost none. A shard's description is written last, so that an
interrupted job resumes with the shard that it was writing.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgpack
import msgspec
import numpy as np
from array_record.python import array_record_module
from etils import epath
from jaxtyping import Int

from cascades.runtime import files
from cascades.runtime.block_cache import BlockCache
from cascades.tasks import textfiles
from cascades.tasks.task import Row, Tokenize, Vocabularies
from cascades.tasks.tokenize import ROWS_TOGETHER, blocks, row_by_row
from cascades.tokenizers.conventions import TOKEN

log = logging.getLogger(__name__)

FORMAT = 3  # raise it when a record's layout changes
OLDER_FORMATS = (2,)  # that are still read: tokens of four bytes, and no index
INDEX = ('lengths.npy', 'starts.npy')  # of all rows, beside several shards

_TEXT, _TOKENS, _LENGTHS, _DESCRIPTION = 'array_record', 'tokens', 'lengths.npy', 'json'
_WRITER_OPTIONS = 'group_size:1,uncompressed'  # a read fetches one row, and rows are small
_READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'
_READER_BUFFER = 4096  # bytes
_MOST_MAPS = 512  # files that are open at a time; a process may often have 1024
_INDEX_TYPES: Sequence[np.dtype[Any]] = (np.dtype(np.int32), np.dtype(np.int64))
_REMEDY = 'Delete the directory, and it will be written again.'
_TOKENS_BY_SIZE: Mapping[int, np.dtype[Any]] = {2: np.dtype('<u2'), 4: TOKEN}
_STORED_KEYS = {'unlabeled': 'unlabelled'}  # fields that JSON spells otherwise


Count = Annotated[int, msgspec.Meta(ge=0)]


class DamagedError(ValueError):
  """Token records that differ from what was written; the message names the file."""

  def __init__(self, path: epath.Path, reason: str) -> None:
    super().__init__(f'{path} {reason}. {_REMEDY}')


class File(NamedTuple):
  """Size and checksum of a written file."""

  bytes: Count
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
    token_bytes: bytes of a token, 2 where both vocabularies fit.
  """

  name: Annotated[str, msgspec.Meta(pattern=r'^[0-9]{5,9}$')]
  rows: Count
  unlabeled: Count
  tokens: tuple[Count, Count]
  files: Mapping[str, File]
  token_bytes: Literal[2, 4] = 4


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

  Raises:
    OSError: naming the file, if it cannot be written, on a full disk for example.
  """
  name = f'{index:05d}'
  path = functools.partial(_file, epath.Path(directory), name)
  lengths = array.array('i')
  unlabeled = 0
  stored = _TOKENS_BY_SIZE[2 if max(v.size for v in vocabularies) <= 1 << 16 else TOKEN.itemsize]
  pack = msgpack.Packer().pack  # making a packer costs more than packing
  for file in (_DESCRIPTION, _TEXT, _TOKENS, _LENGTHS):  # of a shard that is written again
    path(file).unlink(missing_ok=True)  # or links to elsewhere
  with _named_errors(path(_TEXT)):
    writer = array_record_module.ArrayRecordWriter(str(path(_TEXT)), _WRITER_OPTIONS)
  with _named_errors(path(_TOKENS)), path(_TOKENS).open('wb') as tokens:
    records = (tokenize or row_by_row)(rows, vocabularies, index)
    for block in blocks(records, ROWS_TOGETHER):
      fields = [ids for record in block for ids in (record.inputs, record.targets)]
      ids = np.concatenate(fields)
      if stored != TOKEN and ids.max(initial=0) >= 1 << 16:
        raise ValueError(f'token {ids.max()} is none of the vocabularies, which are smaller.')
      tokens.write(ids.astype(stored))
      lengths.extend(map(len, fields))
      unlabeled += sum(not record.row.answers for record in block)
      for record in block:
        writer.write(pack((*record.row, [option.tobytes() for option in record.options])))
  with _named_errors(path(_TEXT)):
    writer.close()
  counts = np.array(lengths, np.int32).reshape(-1, 2)
  with _named_errors(path(_LENGTHS)), path(_LENGTHS).open('wb') as stream:
    np.save(stream, counts, allow_pickle=False)
  totals = counts.sum(axis=0, dtype=np.int64).tolist()
  written = {
    file.name: File(file.stat().length, textfiles.sha256(file))
    for file in (path(_TEXT), path(_TOKENS), path(_LENGTHS))
  }
  size: Any = stored.itemsize
  shard = Shard(name, len(counts), unlabeled, (totals[0], totals[1]), written, size)
  with _named_errors(path(_DESCRIPTION)):
    files.write(path(_DESCRIPTION), json.dumps(describe(shard)).encode())
  return shard


@contextlib.contextmanager
def _named_errors(path: epath.Path) -> Iterator[None]:
  """Adds the file's name to errors of writing, which come without one."""
  try:
    with files.naming(path):
      yield
  except RuntimeError as error:  # of ArrayRecord, for any reason
    raise OSError(f'{path} cannot be written: {error}') from error


def distinct(rows: Iterator[Row], name: str) -> Iterator[Row]:
  """Passes rows on; ValueError at an id that occurred before."""
  seen: set[str] = set()
  for row in rows:
    if row.id in seen:
      raise ValueError(
        f'{name} has two rows with the id {row.id!r}; ids must be distinct, since predictions are '
        'joined by them.'
      )
    seen.add(row.id)
    yield row


def description_name(shard: Shard) -> str:
  """Name of the file that describes a shard, and completes it."""
  return f'{shard.name}.{_DESCRIPTION}'


def finished(directory: epath.PathLike) -> dict[int, Shard]:
  """The complete shards that an interrupted job has left, by number."""
  shards = {}
  for file in epath.Path(directory).glob(f'[0-9]*.{_DESCRIPTION}'):  # no manifest
    try:
      shard = from_description(json.loads(file.read_text()))
    except ValueError as error:
      log.warning('%s is damaged and written again: %s', file, error)
      continue
    paths = {name: epath.Path(directory) / name for name in shard.files}
    if all(p.exists() and p.stat().length == shard.files[n].bytes for n, p in paths.items()):
      shards[int(shard.name)] = shard
  return shards


def describe(shard: Shard) -> dict[str, object]:
  """A shard's description as JSON stores it."""
  fields = dataclasses.asdict(shard)
  return {_STORED_KEYS.get(name, name): value for name, value in fields.items()}


def from_description(fields: Mapping[str, object]) -> Shard:
  """A shard from its description as JSON stores it; ValueError if it is something else."""
  names = {key: name for name, key in _STORED_KEYS.items()}
  if not isinstance(fields, Mapping):
    raise ValueError('a description of a shard is a JSON object')
  try:
    shard = msgspec.convert({names.get(key, key): fields[key] for key in fields}, Shard)
  except msgspec.ValidationError as error:
    raise ValueError(f'not the description of a shard: {error}') from error
  expected = {f'{shard.name}.{suffix}' for suffix in (_TEXT, _TOKENS, _LENGTHS)}
  if set(shard.files) != expected:
    raise ValueError(f'shard {shard.name} has other files: {sorted(shard.files)!r:.200}')
  return shard


def lengths(
  directory: epath.Path, shard: Shard, cache: BlockCache = BlockCache()
) -> Int[np.ndarray, 'n 2']:
  """Reads the token counts of inputs and targets of each row.

  Raises DamagedError if they are not those of the shard's rows and tokens. Mapped before they are
  read: a header that lies about their number fills no memory.
  """
  path = _local(_file(directory, shard.name, _LENGTHS), shard.files, cache)
  mapped = _map_array(path)
  if mapped.shape != (shard.rows, 2) or mapped.dtype != np.int32:
    raise DamagedError(path, f'has {len(mapped)} rows, but {shard.rows} was written')
  counts = np.array(mapped)
  totals = tuple(counts.sum(axis=0, dtype=np.int64).tolist())
  if totals != tuple(shard.tokens) or counts.min(initial=0) < 0:
    raise DamagedError(path, f'has {totals} tokens, but {shard.tokens} was written')
  return counts


def map_tokens(directory: epath.Path, shard: Shard) -> Int[np.ndarray, 'n']:
  """Maps the tokens of all rows, inputs then targets, into memory."""
  if not sum(shard.tokens):  # nothing can be mapped
    return np.zeros(0, TOKEN)
  stored = _TOKENS_BY_SIZE[shard.token_bytes]
  mapped = np.memmap(_file(directory, shard.name, _TOKENS), stored, 'r')
  return np.asarray(mapped)  # slices of a memmap itself are slow


class TokenFiles(Sequence[Int[np.ndarray, 'n']]):
  """The tokens of each shard, mapped when they are read: each open map takes a file descriptor."""

  def __init__(
    self, directory: epath.Path, shards: Sequence[Shard], cache: BlockCache = BlockCache()
  ) -> None:
    self._directory, self._shards, self._cache = directory, shards, cache
    self._open = functools.lru_cache(_MOST_MAPS)(self._opened)

  def __len__(self) -> int:
    return len(self._shards)

  def __getitem__(self, index: Any) -> Any:
    return self._open(index)

  def _opened(self, index: int) -> Int[np.ndarray, 'n'] | RemoteTokens:
    shard = self._shards[index]
    if not files.is_remote(self._directory):
      return map_tokens(self._directory, shard)
    path = _file(self._directory, shard.name, _TOKENS)
    stored = _TOKENS_BY_SIZE[shard.token_bytes]
    return RemoteTokens(path, shard.files[path.name].sha256, stored, self._cache)


class RemoteTokens(NamedTuple):
  """The tokens of a shard in an object store, of which slices are read through a cache."""

  path: epath.Path
  sha256: str
  stored: np.dtype[Any]
  cache: BlockCache

  def __getitem__(self, tokens: Any) -> Any:
    size = self.stored.itemsize
    begin, end = size * int(tokens.start), size * int(tokens.stop)
    return np.frombuffer(self.cache.read(self.path, self.sha256, begin, end), self.stored)


def write_index(directory: epath.Path, shards: Sequence[Shard]) -> dict[str, File]:
  """Joins the token counts of all shards, and the start of each row in its shard, for `map_index`.

  Returns:
    Size and checksum of each file.
  """
  rows = sum(shard.rows for shard in shards)
  paths = [directory / name for name in INDEX]
  with contextlib.ExitStack() as stack:
    for path in paths:
      path.unlink(missing_ok=True)
      stack.enter_context(_named_errors(path))
    streams = [stack.enter_context(path.open('wb')) for path in paths]
    for stream, shape, dtype in zip(streams, ((rows, 2), (rows,)), _INDEX_TYPES, strict=True):
      header = {'descr': dtype.str, 'fortran_order': False, 'shape': shape}
      np.lib.format.write_array_header_1_0(stream, header)
    for shard in shards:
      counts = lengths(directory, shard)
      sizes = counts.sum(axis=1, dtype=np.int64)
      for stream, values in zip(streams, (counts, np.cumsum(sizes) - sizes), strict=True):
        stream.write(values.tobytes())
  return {path.name: File(path.stat().length, textfiles.sha256(path)) for path in paths}


def map_index(
  directory: epath.Path, index: Mapping[str, File], rows: int, cache: BlockCache = BlockCache()
) -> tuple[np.ndarray, ...]:
  """Maps the token counts of all rows, [rows, 2], and their starts; takes no memory of its own."""
  arrays = []
  for name, shape, dtype in zip(INDEX, ((rows, 2), (rows,)), _INDEX_TYPES, strict=True):
    mapped = _map_array(_local(directory / name, index, cache))
    if mapped.shape != shape or mapped.dtype != dtype:
      raise DamagedError(directory / name, f'has {len(mapped)} rows, but {rows} was written')
    arrays.append(np.asarray(mapped))
  return tuple(arrays)


def _local(path: epath.Path, described: Mapping[str, File], cache: BlockCache) -> epath.Path:
  """A local file, or the copy of one in an object store."""
  return cache.copy(path, described[path.name].sha256) if files.is_remote(path) else path


def _map_array(path: epath.Path) -> np.ndarray:
  try:
    return np.load(os.fspath(path), mmap_mode='r', allow_pickle=False)
  except (ValueError, EOFError, OverflowError) as error:
    raise DamagedError(path, f'has no token counts ({error})') from error


class Reader:
  """Random access to the text of rows; safe to share between threads."""

  def __init__(
    self, directory: epath.Path, shards: Sequence[Shard], cache: BlockCache = BlockCache()
  ) -> None:
    self._shards, self._cache = shards, cache
    self._files = [_file(directory, shard.name, _TEXT) for shard in shards]
    self._starts = np.cumsum([0, *(shard.rows for shard in shards)])

  def read(self, indices: Int[np.ndarray, 'n']) -> list[tuple[Row, tuple[np.ndarray, ...]]]:
    """Reads rows with their options' tokens, in the order of `indices`; one bulk read a shard."""
    shard = np.searchsorted(self._starts, indices, side='right') - 1
    rows: list[Any] = [None] * len(indices)
    for i in np.unique(shard):
      positions = np.flatnonzero(shard == i)
      try:
        block = self._open(i).read((indices[positions] - self._starts[i]).tolist())
        for position, content in zip(positions, block, strict=True):
          rows[position] = _unpack(content)
      except (RuntimeError, TypeError, ValueError) as error:
        raise DamagedError(self._files[i], f'has rows that cannot be read ({error})') from error
    return rows

  # Opened when first read, since training reads no text.
  @functools.cache  # noqa: B019
  def _open(self, shard: int) -> array_record_module.ArrayRecordReader:
    path = _local(self._files[shard], self._shards[shard].files, self._cache)
    return array_record_module.ArrayRecordReader(
      str(path), options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
    )


def _file(directory: epath.Path, name: str, suffix: str) -> epath.Path:
  return directory / f'{name}.{suffix}'


def _unpack(content: bytes) -> tuple[Row, tuple[np.ndarray, ...]]:
  id_, inputs, answers, options, *rest, tokens = msgpack.unpackb(content)
  row = Row(id_, inputs, tuple(answers), tuple(options), *rest)
  return row, tuple(np.frombuffer(ids, TOKEN) for ids in tokens)
