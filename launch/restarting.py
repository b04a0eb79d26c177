"""Restarts of programs by a launcher, and signals to the launcher itself.

A program that receives SIGTERM, as on a preempted machine, saves and exits with PREEMPTED, as does
one that lost another process of its run. It is restarted, as is one that was killed by a signal, as
long as it gets on: of restarts without progress there are at most `max_restarts` in a row, after
growing waits. Every other exit code is final, also that of a program that ran out of memory: the
same command would fail again.
"""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import time
from collections.abc import Callable, Iterator

from absl import flags

from cascades.runtime import stopping

PREEMPTED = stopping.TRY_AGAIN  # 75
LONGEST_WAIT = 600.0
INTERRUPTED = 128 + signal.SIGINT
# Prefix of commands: Ctrl-C reaches only the launcher, which sends SIGTERM, so that they save.
UNINTERRUPTED = ('sh', '-c', 'trap "" INT; exec "$@"', 'sh')

MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts', 3, 'Restarts in a row of a program that makes no progress.', lower_bound=0
)

RESTART_WAIT = flags.DEFINE_float(
  'restart_wait', 5.0, 'Seconds before the first restart without progress; then twice as many.'
)


class Stopped(KeyboardInterrupt):
  """The launcher received SIGTERM."""


def by_signal(code: int) -> bool:
  return code < 0


class Progress:
  """Progress of a program, read from the lines of its log."""

  def __init__(self) -> None:
    self._step = 0
    self._missing_rows: dict[str, int] = {}  # by table

  def read(self, line: str) -> None:
    """Take a line into account."""
    if step := re.search(r'\bstep +(\d+)(?:/|, which is saved)', line):
      self._step = max(self._step, int(step[1]))
    # A restarted program counts the rows of the shards that are missing: fewer, if it got on.
    elif rows := re.search(r'(\S+ \S+) row +\d+/(\d+)', line):
      table, missing = rows[1], int(rows[2])
      self._missing_rows[table] = min(missing, self._missing_rows.get(table, missing))

  def value(self) -> object:
    """A value that changes with each further step, and with fewer missing rows."""
    return self._step, sorted(self._missing_rows.items())


def until_final(
  attempt: Callable[[], int],
  *,
  max_restarts: int,
  progress: Callable[[], object],
  was_killed: Callable[[int], bool] = by_signal,
  first_wait: float = 5.0,
  say: Callable[[str], None] | None = None,
) -> int:
  """Call `attempt` until its exit code is final, and return that code.

  Codes are those of `subprocess`, negative for a signal.

  Args:
    attempt: Runs the program once.
    max_restarts: Restarts in a row after attempts that left `progress` as it was.
    progress: A value that changes when the program gets on.
    was_killed: True for codes of programs that did not end by themselves.
    first_wait: Seconds before the first restart without progress; each further wait is twice as
      long.
    say: Receives messages; by default they are printed.
  """
  say = say or functools.partial(print, flush=True)
  vain, before = 0, progress()
  while True:
    code = attempt()
    if code != PREEMPTED and not was_killed(code):
      return code
    how = f'killed by {signal_name(code)}' if code < 0 else f'lost with exit code {code}'
    if code == PREEMPTED:
      how = f'exit code {PREEMPTED}: the program was stopped, or lost another process of the run'
    vain, before = (0, progress()) if progress() != before else (vain + 1, before)
    if vain > max_restarts:
      say(
        f'{how}; it made no progress in {vain} attempts in a row: not restarting it. See its log.'
      )
      return code
    if not vain:
      say(f'{how}; restarting it.')
      continue
    wait = min(first_wait * 2 ** (vain - 1), LONGEST_WAIT)
    say(f'{how}, and made no progress; restart {vain} of {max_restarts}, in {wait:g} s.')
    time.sleep(wait)


def signal_name(code: int) -> str:
  """Name of the signal of a negative exit code."""
  try:
    return signal.Signals(-code).name
  except ValueError:
    return f'signal {-code}'


def as_shell(code: int) -> int:
  """Exit code as in shells: 128 plus the number of a signal."""
  return 128 - code if code < 0 else code


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
  """Context manager in which SIGTERM raises Stopped; main thread only."""

  def stop(*_: object) -> None:
    raise Stopped

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def exit_code(run: Callable[[], int]) -> int:
  """Exit code of the launcher: that of `run`, or how the launcher was stopped."""
  try:
    with stoppable():
      return as_shell(run())
  except Stopped:
    return PREEMPTED
  except KeyboardInterrupt:
    return INTERRUPTED
