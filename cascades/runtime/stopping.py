"""How a run ends before its end: asked to (SIGTERM), refused by its numbers, or hanging.

Imported by the command line, so JAX only where it is needed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from etils import epath

log = logging.getLogger(__name__)

# "Temporary failure": what launchers start the same command again for.
TRY_AGAIN = os.EX_TEMPFAIL
MOST_REFUSED_IN_A_ROW = 100


class Preempted(SystemExit):
  """The run was asked to end by SIGTERM. Nobody catches it but who prints `message`."""

  def __init__(self, message: str):
    super().__init__(TRY_AGAIN)
    self.message = message


@contextlib.contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
  """Within, SIGTERM calls `act` in the main thread; other threads cannot have handlers."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, lambda *_: act())
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def leave() -> None:
  """Ends what has nothing new to save."""
  raise Preempted('ended by SIGTERM; the same command goes on from what was saved.')


@contextlib.contextmanager
def asked() -> Iterator[Callable[[int], bool]]:
  """A question for after each step: whether to save and stop now. The same on all processes.

  Who was told to ends with Preempted on the way out. Before the question is asked for the first
  time nothing is new, and SIGTERM ends a single process at once.
  """
  import jax
  from jax.experimental import multihost_utils

  several = jax.process_count() > 1
  steps: list[int] = []
  told: list[int] = []
  terminated = threading.Event()

  def terminate() -> None:
    terminated.set()
    if not steps:
      leave()

  def ask(step: int) -> bool:
    steps.append(step)
    if multihost_utils.reached_preemption_sync_point(step) if several else terminated.is_set():
      told.append(step)
    return bool(told)

  # JAX has a handler of its own among several, which tells the other processes.
  with contextlib.nullcontext() if several else on_sigterm(terminate):
    yield ask
  if told:
    raise Preempted(
      f'ended by SIGTERM after step {told[0]}, which is saved; the same command goes on.'
    )


def stop(error: Exception) -> None:
  """What to do about a failure: end the run."""
  raise error


def go_on(error: Exception) -> None:
  """What to do about a failure: say it, and go on."""
  log.warning('%s', error)


def refusals(
  directory: epath.PathLike,
  ids: Callable[[int], Sequence[str]],
  react: Callable[[Exception], None],
) -> Callable[[int, Mapping[str, float]], None]:
  """Writes a step whose update was not applied to `directory`/skipped.jsonl, and reacts.

  `ids` names the examples of a step's batch. After too many in a row it raises in any case.
  """
  import jax

  recent: list[int] = []

  def refuse(step: int, metrics: Mapping[str, float]) -> None:
    numbers = {name: float(metrics[name]) for name in ('loss', 'grad_norm', 'update_norm')}
    if jax.process_index() == 0:
      # As text, since JSON has no NaN.
      line = {'step': step, **{k: repr(v) for k, v in numbers.items()}, 'ids': list(ids(step))}
      append(epath.Path(directory) / 'skipped.jsonl', json.dumps(line))
    recent[:] = [*recent, step] if recent and recent[-1] == step - 1 else [step]
    found = ', '.join(f'{name} {value:.6g}' for name, value in numbers.items())
    error = FloatingPointError(
      f'step {step} was refused: {found}. Nothing of it was applied or saved; its examples are in '
      'skipped.jsonl. Lower the learning rate, warm it up, or clip the gradient (clip_norm).'
    )
    if len(recent) >= MOST_REFUSED_IN_A_ROW:
      raise error
    react(error)

  return refuse


def append(path: epath.Path, line: str) -> None:
  """One line more; object stores cannot append, and the file is written anew."""
  before = path.read_text() if path.exists() else ''
  path.write_text(f'{before}{line}\n')


@contextlib.contextmanager
def watchdog(seconds: float | None) -> Iterator[Callable[[], None]]:
  """A sign of life to give after each step; without one for `seconds` the process ends.

  It says so with the stacks of all threads, and aborts: what hangs in a collective, or on a disk,
  would not hear of an exception.
  """
  last = [time.monotonic()]
  done = threading.Event()

  def alive() -> None:
    last[0] = time.monotonic()

  def watch(limit: float) -> None:
    while not done.wait(min(1.0, limit / 4)):
      if time.monotonic() - last[0] > limit:
        print(
          f'No step has ended for {limit:.0f} s: this process hangs, or waits for one that does. '
          'The stacks of its threads follow; the same command goes on from the last checkpoint. '
          'Steps, validations and checkpoints that take longer need a larger hang_timeout.',
          file=sys.stderr,
          flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        os.abort()

  if not seconds:
    yield alive
    return
  thread = threading.Thread(target=watch, args=(seconds,), name='watchdog', daemon=True)
  thread.start()
  try:
    yield alive
  finally:
    done.set()
    thread.join()
