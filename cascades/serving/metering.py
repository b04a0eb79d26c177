"""Log of exchanges: tables of predictions in rotated files of JSON lines.

    LOG_DIR/small/2026-11-29-0000.jsonl        answers of the small model (see `exchange_rows`)
    LOG_DIR/large/2026-11-29-0000.jsonl        answers of the large model to the same exchanges
    LOG_DIR/unanswered/2026-11-29-0000.jsonl   exchanges in which no model was asked
    LOG_DIR/small/2026-11-29-0001.jsonl.open   being written; complete once it has lost `.open`

The folders of a longer chain have the names of its models.
One thread writes. Requests never wait for it, and none fails because a row cannot be written: rows
wait in a bounded queue while the disk is full, and are counted when they are lost.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, MutableMapping, Sequence

from etils import epath

from cascades.predictions.rows import JsonRow
from cascades.runtime import files, locking, ranges
from cascades.serving import exchange_rows
from cascades.serving.exchanges import PAIR, Exchange, Role

log = logging.getLogger(__name__)

OPEN = '.open'
BATCH = 256  # exchanges written at once
RETRY_SECONDS = 1.0
TOKEN_BYTES = 100  # of a token in the queue, approximately


@dataclasses.dataclass(frozen=True)
class LogOptions:
  """Options of the log of exchanges.

  Attributes:
    text: Store prompts and answers. False stores digests, of which equal texts have equal ones
      until the server is restarted.
    required: Refuse requests while the log cannot be written, instead of answering them unlogged.
    file_bytes: Size from which a file is rotated; a new day begins a new file too.
    sync_seconds: Longest time after which rows are forced to the disk, so that they survive the
      loss of power; 0 forces each of them. Rows survive the end of the process in any case.
    waiting: Number of exchanges that may wait to be written.
    waiting_bytes: Approximate size of those.
  """

  text: bool = False
  required: bool = False
  file_bytes: int = 64 << 20
  sync_seconds: float = 1.0
  waiting: int = 10_000
  waiting_bytes: int = 64 << 20

  def __post_init__(self) -> None:
    sizes = {name: getattr(self, name) for name in ('file_bytes', 'waiting', 'waiting_bytes')}
    ranges.check(sizes, least=1, integer=True)
    ranges.check({'sync_seconds': self.sync_seconds}, least=0)


class Log:
  """Log of exchanges; `record` never blocks and never raises.

  Attributes:
    lost: Number of exchanges that were not written.
    failure: Reason why rows cannot be written now; '' if they can.
    notes: Remarks for operators, which have the failure under LOG_DIR.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    options: LogOptions | None = None,
    *,
    roles: Sequence[Role] = PAIR,
    clock: Callable[[], float] = time.time,
  ):
    """Locks the directory, completes files that a killed server left, and starts the thread.

    Args:
      directory: Local directory, which is made if it does not exist.
      options: Options; None for the defaults.
      roles: Models of the cascade, each with a folder.
      clock: Seconds since the epoch.

    Raises:
      OSError: The directory cannot be written to, or another server writes to it.
      ValueError: The directory is remote.
    """
    self.directory, self.options = files.absolute(directory), options or LogOptions()
    if files.is_remote(self.directory):
      raise ValueError(f'LOG_DIR={self.directory} is remote: logs are appended to, on local disks.')
    self.lost = 0
    self.failure = ''
    self.notes: MutableMapping[str, str] = {}
    secret = secrets.token_bytes(32)
    self._digest = None if self.options.text else lambda text: _digest(text, secret)
    self._changed = threading.Condition()
    self._waiting: collections.deque[Exchange] = collections.deque()
    self._waiting_bytes = 0
    self._closing = False
    self._held = contextlib.ExitStack()
    self._held.enter_context(locking.held(self.directory))
    try:
      streams = (*roles, exchange_rows.UNANSWERED)
      self._files = _Files(self.directory, self.options, streams, clock)
    except BaseException:
      self._held.close()
      raise
    self._thread = threading.Thread(target=self._run, name='exchange log', daemon=True)
    self._thread.start()

  def record(self, exchange: Exchange) -> None:
    """Queue an exchange to be written; it is lost, and counted, if the queue is full."""
    size = _size(exchange)
    with self._changed:
      full = len(self._waiting) >= self.options.waiting
      if self._closing or full or self._waiting_bytes + size > self.options.waiting_bytes:
        self.lost += 1
        return
      self._waiting.append(exchange)
      self._waiting_bytes += size
      self._changed.notify_all()

  @property
  def written(self) -> int:
    """Number of rows written."""
    return self._files.written

  @property
  def refusal(self) -> str:
    """Reason to refuse requests; '' unless a required log cannot be written."""
    return self.failure if self.options.required else ''

  def reasons(self) -> list[str]:
    """Reasons why a server is not ready."""
    return [self.refusal] if self.refusal else []

  def close(self, seconds: float = 10.0) -> None:
    """Write what waits, complete the files, and unlock the directory.

    Args:
      seconds: Longest time to wait for the disk.
    """
    with self._changed:
      self._closing = True
      self._changed.notify_all()
    self._thread.join(seconds)
    self._held.close()

  def _run(self) -> None:
    while self._next():
      try:
        self._files.write()
      except OSError as error:
        self._report(error)
      else:
        self._recover()
    try:
      self._files.close()
    except OSError as error:
      self._report(error)
    with self._changed:
      self.lost += len(self._waiting) + self._files.abandon()

  def _next(self) -> bool:
    """Wait for exchanges, or for the time to sync or retry; False when there is nothing to do."""
    with self._changed:
      pause = RETRY_SECONDS if self._files.unwritten else self._files.seconds_to_sync()
      if self._files.unwritten:
        self._changed.wait_for(lambda: self._closing, pause)
        return not self._closing
      self._changed.wait_for(lambda: self._waiting or self._closing, pause)
      batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
      self._waiting_bytes -= sum(map(_size, batch))
      if not batch and self._closing:
        return False
    for exchange in batch:
      try:
        self._files.add(exchange_rows.of_exchange(exchange, digest=self._digest))
      except Exception as error:  # must not end the log; its message may quote a text
        log.error('An exchange cannot be described, and is not logged: %s.', type(error).__name__)
        self.lost += 1
    return True

  def _report(self, error: OSError) -> None:
    if not self.failure:
      log.warning('The log of exchanges cannot be written, and is tried again: %s', error)
    self.failure = f'the log of exchanges cannot be written ({error.strerror or error})'
    self.notes['LOG_DIR'] = self.failure

  def _recover(self) -> None:
    if self.failure:
      log.warning('The log of exchanges is written again; %d exchanges were lost.', self.lost)
    self.failure = ''
    self.notes.pop('LOG_DIR', None)


class _Files:
  """Files of one name, one in each stream that has rows."""

  def __init__(
    self,
    directory: epath.Path,
    options: LogOptions,
    streams: Sequence[str],
    clock: Callable[[], float],
  ):
    self._directory, self._options, self._clock = directory, options, clock
    self._streams = streams
    self._open: dict[str, _File] = {}
    self._name = ''
    self._synced = clock()
    self.unwritten: dict[str, list[bytes]] = {}
    self.written = 0
    for stream in streams:
      folder = directory / stream
      folder.mkdir(parents=True, exist_ok=True, mode=0o700)
      for path in sorted(folder.glob(f'*.jsonl{OPEN}')):
        _complete(path)

  def add(self, rows: Sequence[tuple[str, JsonRow]]) -> None:
    """Encode rows, to be written by `write`."""
    lines = [(stream, json.dumps(row, allow_nan=False).encode() + b'\n') for stream, row in rows]
    for stream, line in lines:
      self.unwritten.setdefault(stream, []).append(line)

  def seconds_to_sync(self) -> float | None:
    """Seconds until the files must be forced to the disk; None if they are."""
    if not any(file.dirty for file in self._open.values()):
      return None
    return max(self._synced + self._options.sync_seconds - self._clock(), 0.0)

  def write(self) -> None:
    """Write what was added, rotate, and sync, each if it is due."""
    day = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).strftime('%Y-%m-%d')
    if self._name and not self._name.startswith(day):
      self.close()
    for stream, lines in list(self.unwritten.items()):
      if not self._name:
        self._name = self._next_name(day)
      if stream not in self._open:
        self._open[stream] = _File(self._directory / stream / f'{self._name}.jsonl{OPEN}')
      self._open[stream].append(b''.join(lines))
      self.written += len(lines)
      del self.unwritten[stream]
    if self.seconds_to_sync() == 0:
      for file in self._open.values():
        file.sync()
      self._synced = self._clock()
    if any(file.size >= self._options.file_bytes for file in self._open.values()):
      self.close()

  def _next_name(self, day: str) -> str:
    numbers = [
      int(path.name.removeprefix(f'{day}-').partition('.')[0])
      for stream in self._streams
      for path in (self._directory / stream).glob(f'{day}-[0-9]*.jsonl*')
    ]
    return f'{day}-{max(numbers, default=-1) + 1:04d}'

  def close(self) -> None:
    """Complete the files. All are tried; those that fail are completed at the next start."""
    self._name = ''
    errors = []
    for file in self._open.values():
      try:
        file.complete()
      except OSError as error:
        errors.append(error)
    self._open = {}
    if errors:
      raise errors[0]

  def abandon(self) -> int:
    """Forget what was not written; the number of exchanges."""
    lost = max(map(len, self.unwritten.values()), default=0)
    self.unwritten = {}
    return lost


class _File:
  """A file that lines are appended to, and that never shows a part of one for long."""

  def __init__(self, path: epath.Path):
    self._path, self.size, self.dirty = path, 0, False
    with files.naming(path):
      path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
      flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
      self._descriptor = os.open(path, flags, 0o600)

  def append(self, data: bytes) -> None:
    """Append all of the data, or none."""
    with files.naming(self._path):
      files.append_all(self._descriptor, data, self.size)
    self.size += len(data)
    self.dirty = True

  def sync(self) -> None:
    with files.naming(self._path):
      os.fsync(self._descriptor)
    self.dirty = False

  def complete(self) -> None:
    try:
      self.sync()
    finally:
      os.close(self._descriptor)
    self._path.rename(os.fspath(self._path).removesuffix(OPEN))


def _complete(path: epath.Path) -> None:
  """Complete the file of a server that was killed, without the line that it did not finish."""
  data = path.read_bytes()
  end = data.rfind(b'\n') + 1
  if end < len(data):
    with files.open_local(path, 'rb+') as file:
      file.truncate(end)
  if end:
    path.rename(os.fspath(path).removesuffix(OPEN))
  else:
    path.unlink()


def _digest(text: str, secret: bytes) -> str:
  data = text.encode('utf-8', 'surrogatepass')
  return hashlib.blake2b(data, key=secret, digest_size=16).hexdigest()


def _size(exchange: Exchange) -> int:
  """Approximate size in bytes of an exchange that waits."""
  prompt = exchange.question.prompt
  texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
  texts += [leg.text for leg in exchange.legs]
  tokens = sum(len(leg.tokens) for leg in exchange.legs)
  return 1000 + 2 * sum(map(len, texts)) + TOKEN_BYTES * tokens
