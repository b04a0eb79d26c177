"""A task's split as token records: materialised once, then read at random by everyone.

A directory holds the rows' text and tokens, `lengths.npy`, the token counts by which batches and
packs are planned, and `manifest.json`, written last. Its name carries a fingerprint of all that
went in, so that a changed task, source or vocabulary gets a directory of its own. No TensorFlow.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Int

from cascades.tasks import shards, textfiles
from cascades.tasks.shards import Record
from cascades.tasks.task import Row, Task, Vocabularies

log = logging.getLogger(__name__)

Indices: TypeAlias = Int[np.ndarray, 'n'] | Sequence[int]

DIRECTORY = '~/.cache/cascades/records'

_MANIFEST = 'manifest.json'
_LENGTHS = 'lengths.npy'
_CHECKED_BYTES = 1 << 30  # what is larger takes too long to read at every start
_SECONDS_BETWEEN_REPORTS = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclasses.dataclass(frozen=True)
class File:
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a directory of records holds, and how it was made."""

  task: str
  split: str
  version: str
  vocabularies: Mapping[str, str]  # fingerprints
  bos_id: int | None
  inputs_eos_id: int
  eos_id: int
  rows: int
  unlabelled: int  # rows without an answer
  tokens: Mapping[str, int]
  shards: Sequence[str]
  files: Mapping[str, File]  # by name


class Records:
  """A split's records with random access by row number; `lengths` are token counts."""

  def __init__(self, directory: epath.PathLike) -> None:
    """Opens a complete directory; one that lost or gained rows or bytes is refused."""
    self.directory = epath.Path(directory)
    self.manifest = _read_manifest(self.directory)
    for name, file in self.manifest.files.items():
      path = self.directory / name
      _check(path, 'bytes', expected=file.bytes, found=path.stat().length if path.exists() else 0)
    with (self.directory / _LENGTHS).open('rb') as stream:
      self.lengths: Int[np.ndarray, 'n 2'] = np.load(stream, allow_pickle=False)
    self._reader = shards.Reader([self.directory / name for name in self.manifest.shards])
    for found in (len(self.lengths), len(self._reader)):
      _check(self.directory, 'rows', expected=self.manifest.rows, found=found)
    self._tokens = shards.map_tokens(self.directory)
    self._ends = np.cumsum(self.lengths, dtype=np.int64).reshape(-1, 2)

  def __len__(self) -> int:
    return self.manifest.rows

  def tokens(self, indices: Indices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens of inputs and targets of these rows, in this order."""
    ends = self._ends[indices]
    starts = ends[:, 0] - self.lengths[indices, 0]
    return [
      (self._tokens[start:middle], self._tokens[middle:end])
      for start, middle, end in zip(starts.tolist(), *ends.T.tolist(), strict=True)
    ]

  def read(self, indices: Indices) -> list[Record]:
    """These rows in this order, with their text."""
    tokens = self.tokens(indices)
    rows = self._reader.read(np.asarray(indices))
    return [
      Record(row, inputs, targets, options)
      for (row, options), (inputs, targets) in zip(rows, tokens, strict=True)
    ]


def materialize(
  task: Task,
  split: str,
  vocabularies: Vocabularies,
  directory: epath.PathLike = DIRECTORY,
  *,
  process_index: int = 0,
  timeout: float = 3600.0,
  rows_per_shard: int = 1 << 20,
) -> Records:
  """The split's token records below `directory`, written first if they are not there yet.

  Of several processes that share the directory, process 0 writes and the others wait for at most
  `timeout` seconds. Several jobs may write the same records at once: each writes its own copy, and
  the first to finish is kept.
  """
  place = location(task, split, vocabularies, directory)
  if is_complete(place):
    if sum(file.bytes for file in _read_manifest(place).files.values()) <= _CHECKED_BYTES:
      check_content(place)
  elif process_index == 0:
    _write(task, split, vocabularies, place, rows_per_shard)
  else:
    _wait_for(place, timeout)
  return Records(place)


def location(
  task: Task, split: str, vocabularies: Vocabularies, directory: epath.PathLike
) -> epath.Path:
  """Where the records lie: <directory>/<task>/<split>-<fingerprint>."""
  task.require(split)
  if '://' in os.fspath(directory):
    raise ValueError(
      f'Token records cannot lie in {os.fspath(directory)}: they are read at random, which needs a '
      'local or mounted file system. Name a local directory for them.'
    )
  identity = [shards.FORMAT, task.name, split, task.version, task.fingerprint(split)]
  identity += [vocabulary.fingerprint for vocabulary in vocabularies]
  fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
  return epath.Path(directory).expanduser() / task.name / f'{split}-{fingerprint[:16]}'


def is_complete(directory: epath.PathLike) -> bool:
  """Whether records were written there to the end."""
  return (epath.Path(directory) / _MANIFEST).exists()


def check_content(directory: epath.PathLike) -> None:
  """Reads every file; raises ValueError if one is not what was written."""
  for name, file in _read_manifest(epath.Path(directory)).files.items():
    path = epath.Path(directory) / name
    found = textfiles.sha256(path) if path.exists() else 'no file'
    _check(path, 'as sha256', expected=file.sha256, found=found)


def _write(
  task: Task, split: str, vocabularies: Vocabularies, place: epath.Path, rows_per_shard: int
) -> None:
  name = f'{task.name}, split {split}'
  temporary = place.with_name(f'.{place.name}.{uuid.uuid4().hex}')
  temporary.mkdir(parents=True)
  try:
    rows = _reported(_distinct(task.rows(split), name), name)
    tokenized = (shards.tokenize(row, vocabularies) for row in rows)
    written = shards.write(tokenized, temporary, rows_per_shard=rows_per_shard)
    if not len(written.lengths):
      raise ValueError(f'{name} has no rows: there is nothing to learn from or to evaluate.')
    with (temporary / _LENGTHS).open('wb') as stream:
      np.save(stream, written.lengths, allow_pickle=False)
    manifest = _describe(task, split, vocabularies, written, temporary)
    (temporary / _MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + '\n')
    _install(temporary, place)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _describe(
  task: Task, split: str, vocabularies: Vocabularies, written: shards.Written, directory: epath.Path
) -> Manifest:
  inputs, targets = vocabularies
  totals = written.lengths.sum(axis=0, dtype=np.int64)
  files = [directory / name for name in (*written.shards, shards.TOKENS, _LENGTHS)]
  return Manifest(
    task=task.name,
    split=split,
    version=task.version,
    vocabularies={'inputs': inputs.fingerprint, 'targets': targets.fingerprint},
    bos_id=targets.bos_id,
    inputs_eos_id=inputs.eos_id,
    eos_id=targets.eos_id,
    rows=len(written.lengths),
    unlabelled=written.unlabelled,
    tokens={'inputs': int(totals[0]), 'targets': int(totals[1])},
    shards=written.shards,
    files={file.name: File(file.stat().length, textfiles.sha256(file)) for file in files},
  )


def _install(temporary: epath.Path, place: epath.Path) -> None:
  """Gives the finished directory its name, unless another process was first."""
  while not is_complete(place):
    if place.exists():  # what an interrupted copy left; moved first, as a rename is atomic
      remains = temporary.with_name(f'{temporary.name}.remains')
      place.rename(remains)
      shutil.rmtree(remains)
    try:
      temporary.rename(place)
    except OSError as error:
      if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # made by another process meanwhile
        raise


def _wait_for(place: epath.Path, timeout: float) -> None:
  log.info('Waiting for process 0 to write %s', place)
  deadline = time.monotonic() + timeout
  while not is_complete(place):
    if time.monotonic() > deadline:
      raise TimeoutError(
        f'Process 0 has not written {place} within {timeout:.0f} s. If the processes do not share '
        'this file system, materialise the records on each machine first.'
      )
    time.sleep(_SECONDS_BETWEEN_LOOKS)


def _distinct(rows: Iterator[Row], name: str) -> Iterator[Row]:
  seen: set[str] = set()
  for row in rows:
    if row.id in seen:
      raise ValueError(
        f'{name} has two rows with the id {row.id!r}; an id must name one row, since predictions '
        'are joined by it.'
      )
    seen.add(row.id)
    yield row


def _reported(rows: Iterator[Row], name: str) -> Iterator[Row]:
  start = last = time.monotonic()
  count = 0
  for row in rows:
    count += 1
    yield row
    if time.monotonic() - last > _SECONDS_BETWEEN_REPORTS:
      last = time.monotonic()
      log.info('%s: %d rows tokenised, %.0f rows/s', name, count, count / (last - start))
  log.info('%s: %d rows tokenised in %.1f s', name, count, time.monotonic() - start)


def _read_manifest(directory: epath.Path) -> Manifest:
  try:
    fields = json.loads((directory / _MANIFEST).read_text())
    files = {name: File(**file) for name, file in fields.pop('files').items()}
    return Manifest(files=files, **fields)
  except FileNotFoundError:
    raise FileNotFoundError(
      f'{directory} holds no token records: {_MANIFEST} is missing. Write them with '
      '`python -m cascades.tasks materialize`.'
    ) from None
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{directory / _MANIFEST} is not a manifest of token records ({error}). Delete the '
      'directory, and it is written anew.'
    ) from error


def _check(path: epath.Path, what: str, *, expected: object, found: object) -> None:
  if found != expected:
    raise ValueError(
      f'{path} has {found} {what}, but {expected} was written: the copy is damaged. Delete the '
      'directory, and it is written anew.'
    )
