"""Restarts of programs by a launcher, and signals to the launcher itself.

A program that receives SIGTERM, as on a preempted machine, saves and exits with PREEMPTED. It is
always restarted; a program that was killed by a signal, at most `max_restarts` times. Every other
exit code is final: the same command would fail again.
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
# Prefix of commands: Ctrl-C reaches only the launcher, which sends SIGTERM, so that they save.
UNINTERRUPTED = ('sh', '-c', 'trap "" INT; exec "$@"', 'sh')

MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts', 3, 'Restarts of a killed program; preemptions do not count.', lower_bound=0
)


class Stopped(KeyboardInterrupt):
  """The launcher received SIGTERM."""


def by_signal(code: int) -> bool:
  return code < 0


def until_final(
  attempt: Callable[[], int],
  *,
  max_restarts: int,
  was_killed: Callable[[int], bool] = by_signal,
  say: Callable[[str], None] | None = None,
) -> int:
  """Call `attempt` until its exit code is final, and return that code.

  Codes are those of `subprocess`, negative for a signal.
  """
  say = say or functools.partial(print, flush=True)
  killed = 0
  while True:
    code = attempt()
    if code == PREEMPTED:
      say(f'exit code {PREEMPTED}: the program was stopped and has saved; restarting it.')
    elif was_killed(code) and killed < max_restarts:
      killed += 1
      how = f'killed by {signal_name(code)}' if code < 0 else f'lost with exit code {code}'
      say(f'{how}; restart {killed} of {max_restarts}.')
    else:
      return code


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
