"""When a launcher starts a program again, and how it is told to stop itself.

A program that was asked to stop (SIGTERM, as a preempted machine gets it) saves, and exits with
PREEMPTED. That is started again however often it happens; a program that a signal killed, at most
`max_restarts` times. Every other exit code is final: the same command would fail the same way.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator

from absl import flags

from cascades.runtime import stopping

PREEMPTED = stopping.TRY_AGAIN  # 75
INTERRUPTED = 128 + signal.SIGINT
# Before a command: Ctrl-C reaches only the launcher, and the program gets its SIGTERM, and saves.
UNINTERRUPTED = ('sh', '-c', 'trap "" INT; exec "$@"', 'sh')

MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts', 3, 'Restarts of what was killed; a preemption counts in no number.', lower_bound=0
)


class Stopped(KeyboardInterrupt):
  """This launcher got SIGTERM."""


def by_signal(code: int) -> bool:
  return code < 0


def until_final(
  attempt: Callable[[], int],
  *,
  max_restarts: int,
  was_killed: Callable[[int], bool] = by_signal,
  say: Callable[[str], None] | None = None,
) -> int:
  """Calls `attempt` until its exit code is final, and returns that.

  Codes are those of `subprocess`: a signal's is its negative number.
  """
  say = say or functools.partial(print, flush=True)
  killed = 0
  while True:
    code = attempt()
    if code == PREEMPTED:
      say(f'exit code {PREEMPTED}: it was asked to stop and has saved; starting it again.')
    elif was_killed(code) and killed < max_restarts:
      killed += 1
      how = f'killed by {signal_name(code)}' if code < 0 else f'lost with exit code {code}'
      say(f'{how}; restart {killed} of {max_restarts}.')
    else:
      return code


def signal_name(code: int) -> str:
  """Of a negative exit code."""
  try:
    return signal.Signals(-code).name
  except ValueError:
    return f'signal {-code}'


def as_shell(code: int) -> int:
  """An exit code as shells have it: 128 and the signal's number for a signal."""
  return 128 - code if code < 0 else code


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
  """Within, SIGTERM raises Stopped, so that what was started can be ended; main thread only."""

  def stop(*_: object) -> None:
    raise Stopped

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def exit_code(run: Callable[[], int]) -> int:
  """The code to leave with, shell's way: `run`'s, or what says how this launcher was stopped."""
  try:
    with stoppable():
      return as_shell(run())
  except Stopped:
    return PREEMPTED
  except KeyboardInterrupt:
    return INTERRUPTED
