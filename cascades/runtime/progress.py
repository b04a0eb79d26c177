"""Progress of a run: rates, time left, log lines and TensorBoard events."""

from __future__ import annotations

import logging
import os
import pathlib
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Self, TypeVar

from etils import epath
from tensorboardX import event_file_writer, record_writer
from tensorboardX.proto import event_pb2, summary_pb2

log = logging.getLogger(__name__)

T = TypeVar('T')

SECONDS_BETWEEN_LINES = 10.0

_IMPORTED = time.monotonic()


class Rates(NamedTuple):
  """Speed since the last update, and the time left at the average speed."""

  steps_per_second: float
  tokens_per_second: float
  seconds_left: float


class Meter:
  """Rates of a run, measured from the first `update` on, so that they exclude compilation."""

  def __init__(self, total_steps: int, clock: Callable[[], float] = time.monotonic):
    self._total = total_steps
    self._clock = clock
    self._first: tuple[float, int] | None = None
    self._last: tuple[float, int] = (0.0, 0)

  def update(self, step: int, tokens: float) -> Rates | None:
    """Rates after `step` steps and `tokens` more tokens; None at the first update."""
    now = self._clock()
    last, self._last = self._last, (now, step)
    if self._first is None:
      self._first = self._last
    if step == self._first[1]:
      return None
    elapsed = max(now - last[0], 1e-9)
    pace = (now - self._first[0]) / (step - self._first[1])
    return Rates((step - last[1]) / elapsed, tokens / elapsed, (self._total - step) * pace)


def format_duration(seconds: float) -> str:
  """Format seconds as `7 s`, `3:05`, `2:03:05` or `4 d 02:03`."""
  total = round(seconds)
  minutes, hours, days = total // 60, total // 3600, total // 86400
  if days:
    return f'{days} d {hours % 24:02}:{minutes % 60:02}'
  if hours:
    return f'{hours}:{minutes % 60:02}:{total % 60:02}'
  return f'{minutes}:{total % 60:02}' if minutes else f'{total} s'


def format_count(count: float) -> str:
  """Format a count as `950`, `12.3k`, `4.56M` or `7.89G`."""
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if count >= size:
      return f'{count / size:.3g}{unit}'
  return f'{count:.3g}'


def format_bytes(count: float) -> str:
  """Format bytes as `512 B`, `1.5 KiB` or `15.9 GiB`."""
  for power, unit in ((40, 'TiB'), (30, 'GiB'), (20, 'MiB'), (10, 'KiB')):
    value = count / (1 << power)
    if value >= 1:
      return f'{value:.0f} {unit}' if value >= 100 else f'{value:.3g} {unit}'
  return f'{count:.0f} B'


def seconds_since_start() -> float:
  """Seconds since the process began; since this module's import where /proc is missing."""
  try:
    ticks = int(pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')
  except (OSError, AttributeError):
    return time.monotonic() - _IMPORTED


def format_line(
  step: int,
  total: int,
  values: Mapping[str, float],
  rates: Rates | None,
  *,
  unit: str = 'step',
  notes: Sequence[str] = (),
) -> str:
  """Format a log line: `step 200/1000  loss 0.8123  ...  12.3k tok/s  5.1 step/s  ETA 2:36`."""
  width = len(str(total))
  columns = [f'{unit} {step:{width}}/{total}']
  for name, value in values.items():
    plain = 1e-3 <= abs(value) < 1e4 or value == 0
    columns.append(f'{name} {value:.4f}' if plain else f'{name} {value:.2e}')
  if rates:
    if rates.tokens_per_second:
      columns.append(f'{format_count(rates.tokens_per_second)} tok/s')
    columns += [
      f'{rates.steps_per_second:.3g} {unit.split()[-1]}/s',
      f'ETA {format_duration(rates.seconds_left)}',
    ]
  return '  '.join([*columns, *notes])


class Counted(Generic[T]):
  """Wraps iterators so that progress over all of them is logged every few seconds."""

  def __init__(
    self,
    unit: str,
    total: int,
    sizes: Callable[[T], tuple[int, int]],
    notes: Callable[[], Sequence[str]] = tuple,
  ) -> None:
    """Begins to count.

    Args:
      unit: Name of the units that are counted, such as `row`.
      total: Number of units of all iterators together, and of other programs.
      sizes: Maps an item to its number of units and of tokens.
      notes: Gives further columns of a line.
    """
    self._unit, self._total, self._sizes, self._notes = unit, total, sizes, notes
    self._meter = Meter(total)
    self._passed = self._tokens = self._elsewhere = 0
    self._last: float | None = None

  def __call__(self, items: Iterator[T]) -> Iterator[T]:
    """Passes items on, and counts them."""
    for item in items:
      yield item
      units, tokens = self._sizes(item)
      self._passed, self._tokens = self._passed + units, self._tokens + tokens
      is_last = self._passed >= self._total
      if self._last is None or is_last or time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
        self._log()

  def add(self, units: int) -> None:
    """Counts units that other programs have done."""
    self._passed, self._elsewhere = self._passed + units, self._elsewhere + units
    if units and self._passed >= self._total:
      self._log()

  def _log(self) -> None:
    notes = [*self._notes()]
    if self._elsewhere:
      notes.append(f'{self._elsewhere} of them by other programs')
    rates = self._meter.update(self._passed, self._tokens)
    if rates:
      line = format_line(self._passed, self._total, {}, rates, unit=self._unit, notes=notes)
      log.info('%s', line)
    self._last, self._tokens = time.monotonic(), 0


class Events:
  """TensorBoard event files, written without TensorFlow; local or remote.

  Args:
    directory: Folder of the files; each instance adds one.
    first_step: The step after which the run starts or resumes. Viewers drop what another file
      holds of later steps, which a killed run took and this one takes again.
  """

  def __init__(self, directory: epath.PathLike, *, first_step: int = 0):
    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    scheme, separator, _ = str(path).partition('://')
    if separator:
      record_writer.register_writer_factory(scheme, _RemoteFiles)
    self._writer = event_file_writer.EventsWriter(f'{path}/events', f'.{time.time_ns()}')
    # Viewers drop what is at the step of a start or later, and `first_step` is not taken again.
    session = event_pb2.SessionLog(status=event_pb2.SessionLog.SessionStatus.START)
    self._write(first_step + 1, session_log=session)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self._writer.close()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Write scalars by name and flush; names with slashes make groups."""
    scalars = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
    self._write(step, summary=summary_pb2.Summary(value=scalars))

  def _write(self, step: int, **content: Any) -> None:
    self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))
    self._writer.flush()


class _RemoteFiles:
  """File system of tensorboardX on top of etils.epath."""

  @staticmethod
  def directory_check(path: str) -> None:
    epath.Path(path).mkdir(parents=True, exist_ok=True)

  @staticmethod
  def open(path: str) -> _RemoteFile:
    return _RemoteFile(path)


class _RemoteFile:
  """File of an object store, which cannot append: each flush writes the object anew."""

  def __init__(self, path: str):
    self._path = epath.Path(path)
    self._content = bytearray()

  def write(self, data: bytes) -> None:
    self._content += data

  def flush(self) -> None:
    self._path.write_bytes(bytes(self._content))

  def close(self) -> None:
    self.flush()


def read_events(directory: epath.PathLike) -> list[tuple[int, str, float]]:
  """Read step, name and value of all scalars in event files; none if the folder is missing.

  A record is its length, a checksum, the bytes and a checksum; incomplete ones are left out.
  """
  scalars = []
  path = epath.Path(directory)
  for file in sorted(path.iterdir()) if path.exists() else ():
    data = file.read_bytes()
    while len(data) >= 12:
      (length,) = struct.unpack('<Q', data[:8])
      if len(data) < 16 + length:
        break
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
      data = data[16 + length :]
  return scalars
