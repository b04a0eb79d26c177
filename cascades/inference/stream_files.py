"""Files of a stream: its rows, the answers, and checkpoints.

A checkpoint holds the number of answers and the length of their file, which a resumed run cuts
there, so that each query is answered exactly once, wherever a process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
from etils import epath

from cascades.runtime import files

ANSWERS, CHECKPOINT = 'answers.jsonl', 'state.npz'
MOST_BYTES = 1 << 24  # of a row
LEAST_SORTED = 1 << 12  # ids that are sorted together
CHUNK_BYTES = 1 << 16  # of standard input that are read together


class StreamRow(msgspec.Struct):
  """A row of a stream, as JSON; other keys are ignored.

  `expert` is the recorded answer of the expert, and `dollars` its price; `targets` is the gold
  label, which is reported and never learned from.
  """

  inputs: str
  id: str | int | None = None
  targets: str | list[str] | None = None
  expert: str | None = None
  category: str | None = None
  dollars: float | None = None


class StreamError(ValueError):
  """A row that cannot be read."""


def rows(path: str) -> Iterator[StreamRow | None]:
  """Rows of a file of JSON lines, or of standard input for '-', as they arrive.

  Yields:
    Rows, and None where the next one is waited for.

  Raises:
    FileNotFoundError: There is no such file.
    StreamError: naming the line, if a row is damaged or the last line is cut.
  """
  if path == '-':
    yield from _rows(_standard_input(), 'standard input')
    return
  with open(files.absolute(path), 'rb') as file:
    yield from _rows(iter(lambda: file.readline(MOST_BYTES), b''), path)


def _standard_input() -> Iterator[bytes | None]:
  """Lines; None behind those that have arrived together."""
  rest = b''
  while len(rest) < MOST_BYTES and (chunk := os.read(0, CHUNK_BYTES)):
    *lines, rest = (rest + chunk).split(b'\n')
    yield from (line + b'\n' for line in lines)
    if lines:
      yield None
  if rest:
    yield rest


def _rows(lines: Iterable[bytes | None], name: str) -> Iterator[StreamRow | None]:
  number = 0
  for line in lines:
    if line is None:
      yield None
      continue
    number += 1
    if not line.strip():
      continue
    try:
      row = msgspec.json.decode(line, type=StreamRow)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
      cut = not line.endswith(b'\n')
      reason = 'the stream ends in the middle of a line' if cut else str(error)
      raise StreamError(
        f'{name}, line {number}: {reason}. A row is JSON such as '
        '{"id": "7", "inputs": "a text"}; the answers before it are kept, and rerunning the same '
        'command goes on behind them.'
      ) from error
    yield row


class SeenIds:
  """Ids so far, as hashes of 64 bits in about 20 bytes each."""

  def __init__(self) -> None:
    self._recent: set[int] = set()
    self._sorted = np.zeros(0, np.uint64)

  def add(self, identity: str) -> bool:
    """True if the id is new, and is one of them from now on."""
    digest = int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), 'big')
    at = int(np.searchsorted(self._sorted, np.uint64(digest)))
    if digest in self._recent or (at < len(self._sorted) and int(self._sorted[at]) == digest):
      return False
    self._recent.add(digest)
    if len(self._recent) > max(LEAST_SORTED, len(self._sorted) // 8):
      self._sorted = np.union1d(self._sorted, np.fromiter(self._recent, np.uint64))
      self._recent.clear()
    return True


def identified(
  arriving: Iterable[StreamRow | None], repeated: Callable[[int, str], None]
) -> Iterator[tuple[str, StreamRow] | None]:
  """Rows with their ids, or their numbers from 1; None stays.

  Args:
    arriving: Rows.
    repeated: Called with the number and the id of a row that is left out, since its id occurred
      before.
  """
  seen, number = SeenIds(), 0
  for row in arriving:
    if row is None:
      yield None
      continue
    number += 1
    identity = str(number if row.id is None else row.id)
    if seen.add(identity):
      yield identity, row
    else:
      repeated(number, identity)


def length(path: str) -> int | None:
  """Number of rows of a file; None for standard input."""
  if path == '-':
    return None
  with open(files.absolute(path), 'rb') as file:
    return sum(1 for line in file if line.strip())


class CheckpointPace:
  """Times of checkpoints: every so many queries, and no more than a share of the time."""

  def __init__(
    self, every: int, share: float, *, clock: Callable[[], float] = time.monotonic
  ) -> None:
    """Allows the first one.

    Args:
      every: Queries between two checkpoints, or a multiple of it.
      share: Largest share of the time behind the first one that is spent on checkpoints.
      clock: Seconds.
    """
    self._every, self._share, self._clock = every, share, clock
    self._next = 0.0

  def due(self, done: int) -> bool:
    """True if a checkpoint of so many queries is to be written."""
    return not done % self._every and self._clock() >= self._next

  @contextlib.contextmanager
  def measured(self) -> Iterator[None]:
    """Context manager around the writing of a checkpoint."""
    began = self._clock()
    yield
    ended = self._clock()
    self._next = ended + (ended - began) * (1 / self._share - 1)


class Saved(NamedTuple):
  """Content of a checkpoint: arrays by name, and what is not an array, as JSON."""

  arrays: Mapping[str, np.ndarray]
  values: Mapping[str, Any]


class StreamFolder:
  """The folder of a run. Answers are appended to their file, and counted by `save`."""

  def __init__(self, directory: epath.Path) -> None:
    self.directory = directory
    self._answers: IO[bytes] | None = None

  def __enter__(self) -> StreamFolder:
    return self

  def __exit__(self, *exception: object) -> None:
    if self._answers:
      self._answers.close()

  def load(self) -> Saved | None:
    """The checkpoint, if there is one.

    Raises:
      ValueError: It is damaged.
    """
    path = self.directory / CHECKPOINT
    if not path.exists():
      return None
    try:
      with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
      return Saved(arrays, json.loads(str(arrays.pop('values'))))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
      raise ValueError(
        f'{path} is damaged ({error}): restore it, or answer the stream anew in another STREAM_DIR.'
      ) from error

  def begin(self, described: Mapping[str, Any], *, overwrite: bool) -> Saved | None:
    """Open the answers behind the checkpoint, which is returned.

    Args:
      described: Settings in which two runs are the same, as JSON; the checkpoint has them as well.
      overwrite: Answer the stream anew.

    Raises:
      FileExistsError: The checkpoint is one of other settings.
    """
    if overwrite:
      for name in (CHECKPOINT, ANSWERS):
        (self.directory / name).unlink(missing_ok=True)
    saved = self.load()
    if saved is not None:
      stored = saved.values['described']
      if different := [key for key in described if stored.get(key) != described[key]]:
        raise FileExistsError(
          f'{self.directory} holds answers of other settings: '
          + ', '.join(f'{k} is {stored.get(k)!r:.80} there and {described[k]!r:.80} here'
                      for k in different)
          + '. Name another STREAM_DIR, or answer the stream anew with OVERWRITE=True.'
        )  # fmt: skip
    self.open(saved.values['bytes'] if saved else 0)
    return saved

  def open(self, size: int) -> None:
    """Open the answers to append; those behind the first `size` bytes are cut off.

    Raises:
      ValueError: There are fewer bytes, so that answers are lost.
    """
    self.directory.mkdir(parents=True, exist_ok=True)
    path = self.directory / ANSWERS
    present = path.stat().length if path.exists() else 0
    if present < size:
      raise ValueError(
        f'{path} has {present} bytes, and the checkpoint beside it counts {size}: answers are '
        'lost. Restore the file, or answer the stream anew in another STREAM_DIR.'
      )
    self._answers = files.open_local(path, 'ab')
    self._answers.truncate(size)

  def write(self, answers: Sequence[Mapping[str, Any]]) -> None:
    """Append answers; they count once `save` has returned."""
    if self._answers is None:
      raise RuntimeError('open the folder first.')
    with files.naming(self.directory / ANSWERS):
      self._answers.write(b''.join(msgspec.json.encode(row) + b'\n' for row in answers))

  def flush(self) -> None:
    """Show readers of the file all answers so far."""
    if self._answers:
      self._answers.flush()

  def save(self, saved: Saved) -> None:
    """Write a checkpoint that counts all answers so far."""
    if self._answers is None:
      raise RuntimeError('open the folder first.')
    with files.naming(self.directory / ANSWERS):
      self._answers.flush()
      os.fsync(self._answers.fileno())
    values = json.dumps({**saved.values, 'bytes': self._answers.tell()})
    content = io.BytesIO()
    arrays: dict[str, Any] = {**saved.arrays, 'values': np.array(values)}
    np.savez(content, **arrays)
    files.write(self.directory / CHECKPOINT, content.getvalue())

  def answers(self) -> Iterator[Mapping[str, Any]]:
    """All answers that were saved."""
    with open(self.directory / ANSWERS, 'rb') as file:
      yield from map(json.loads, file)
