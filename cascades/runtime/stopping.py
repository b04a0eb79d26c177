"""Early ends of a run: SIGTERM, Ctrl-C, updates that are not finite, and hangs.

The command line imports this module, so functions import JAX only where they need it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from etils import epath

from cascades.runtime import files

log = logging.getLogger(__name__)

# "Temporary failure": launchers rerun the command.
TRY_AGAIN = os.EX_TEMPFAIL
INTERRUPTED = 128 + signal.SIGINT  # as in shells: the user wanted the end
MOST_REFUSED_IN_A_ROW = 100


class Preempted(SystemExit):
  """Exit after a signal. Only the command line catches it, to print `message`."""

  def __init__(self, message: str, number: int = signal.SIGTERM):
    super().__init__(INTERRUPTED if number == signal.SIGINT else TRY_AGAIN)
    self.message = message


@contextlib.contextmanager
def on_signals(
  act: Callable[[int], None], numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT)
) -> Iterator[None]:
  """Context manager in which SIGTERM and Ctrl-C call `act`; a second Ctrl-C ends at once.

  Only the main thread can have handlers. A Ctrl-C that a launcher ignores stays ignored.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  raised: dict[BaseException, int] = {}
  resent: list[threading.Timer] = []
  report = sys.unraisablehook

  def handle(number: int, _: object) -> None:
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      act(number)
    except BaseException as error:
      raised[error] = number
      raise

  def send_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Called with exceptions that Python ignores, as in callbacks of the garbage collector."""
    error = unraisable.exc_value
    if error is None or error not in raised:
      report(unraisable)
      return
    signal.signal(raised[error], handle)
    resent.append(threading.Timer(0.01, os.kill, (os.getpid(), raised.pop(error))))
    resent[-1].start()

  before = {number: signal.getsignal(number) for number in numbers}
  for number, handler in before.items():
    if handler is not signal.SIG_IGN:
      signal.signal(number, handle)
  sys.unraisablehook = send_again
  try:
    yield
  finally:
    sys.unraisablehook = report
    for timer in resent:
      timer.cancel()
    for number, handler in before.items():
      signal.signal(number, handler)


def leave(number: int) -> None:
  """End a program that has nothing new to save."""
  raise Preempted(
    f'ended by {signal.Signals(number).name}; rerun the same command to go on from what is saved.',
    number,
  )


@contextlib.contextmanager
def asked() -> Iterator[Callable[[int], bool]]:
  """Context manager that gives a check for after each step: save and stop now?

  All processes get the same answer. The context ends with Preempted if the answer was yes. Until
  the first check there is nothing to save, and a signal ends a single process at once.
  """
  import jax
  from jax.experimental import multihost_utils

  several = jax.process_count() > 1
  steps: list[int] = []
  stopped_at: list[int] = []
  received: list[int] = []

  def terminate(number: int) -> None:
    received.append(number)
    if not steps:
      leave(number)

  def forward(_: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)

  def ask(step: int) -> bool:
    steps.append(step)
    # Once only, several processes hear of it; the run may stop at a later step.
    if stopped_at or (multihost_utils.reached_preemption_sync_point(step) if several else received):
      stopped_at.append(step)
    return bool(stopped_at)

  # With several processes JAX has a handler of its own for SIGTERM, which informs the others.
  with on_signals(forward, (signal.SIGINT,)) if several else on_signals(terminate):
    yield ask
  if stopped_at:
    number = received[0] if received else signal.SIGTERM
    raise Preempted(
      f'ended by {signal.Signals(number).name} after step {stopped_at[-1]}, which is saved; rerun '
      'the same command to resume.',
      number,
    )


def out_of_memory(error: Exception) -> bool:
  """True for errors of XLA, of its devices, and of Python about memory."""
  text = str(error)
  full_disk = 'Error writing' in text or 'No space left' in text  # of TensorStore
  return isinstance(error, MemoryError) or (
    not full_disk and bool(re.search(r'RESOURCE_EXHAUSTED|out of memory|OOM', text))
  )


def lost_a_process(error: Exception) -> bool:
  """True for errors of JAX's distributed runtime when another process of the run has gone.

  A collective that fails while dispatched is a ValueError, one that fails later a RuntimeError.
  """
  collective = r'gloo|coordination'
  symptoms = collective + (
    r'|UNAVAILABLE|DEADLINE.EXCEEDED|ABORTED|CANCEL|heartbeat|barrier|peer|connection|socket|'
    'broken pipe'
  )
  patterns = {RuntimeError: symptoms, ValueError: collective}
  return any(
    isinstance(error, error_type) and re.search(pattern, str(error), re.IGNORECASE)
    for error_type, pattern in patterns.items()
  )


def stop(error: Exception) -> None:
  """Reaction to a failure: raise it, which ends the run."""
  raise error


def go_on(error: Exception) -> None:
  """Reaction to a failure: log it and continue."""
  log.warning('%s', error)


def refusals(
  directory: epath.PathLike,
  ids: Callable[[int], Sequence[str]],
  react: Callable[[Exception], None],
  *,
  way_back: Callable[[int], str] = lambda _: '',
) -> Callable[[int, Mapping[str, float]], None]:
  """Callback for steps whose update was not applied, or not in full.

  It appends the step, its numbers and its examples to `directory`/skipped.jsonl, then calls `react`
  with a FloatingPointError. After `MOST_REFUSED_IN_A_ROW` such steps it raises in any case.

  Args:
    directory: The run directory.
    ids: Maps a step to the ids of its examples.
    react: `stop` or `go_on`.
    way_back: Maps a step to a sentence on how to leave ruined parameters, if there is a way.
  """
  import jax

  recent: list[int] = []

  def refuse(step: int, metrics: Mapping[str, float]) -> None:
    numbers = {name: float(metrics[name]) for name in ('loss', 'grad_norm', 'update_norm')}
    if jax.process_index() == 0:
      # As text, since JSON has no NaN.
      line = {'step': step, **{k: repr(v) for k, v in numbers.items()}, 'ids': list(ids(step))}
      files.append(epath.Path(directory) / 'skipped.jsonl', json.dumps(line))
    recent[:] = [*recent, step] if recent and recent[-1] == step - 1 else [step]
    values = ', '.join(f'{name} {value:.6g}' for name, value in numbers.items())
    full = math.isfinite(numbers['update_norm'])
    left_out = 'Its update was' if full else 'What is not finite of its update was'
    error = FloatingPointError(
      f'step {step} was refused: {values}. {left_out} not applied; its examples are in '
      'skipped.jsonl. Lower the learning rate, warm it up, or clip the gradient (clip_norm).'
      + way_back(step)
    )
    if len(recent) >= MOST_REFUSED_IN_A_ROW:
      raise error
    react(error)

  return refuse


@contextlib.contextmanager
def watchdog(seconds: float | None) -> Iterator[Callable[[], None]]:
  """Context manager that gives a heartbeat to call after each step.

  `seconds` after the last heartbeat the stacks of all threads are printed and the process aborts:
  a thread that hangs in a collective or on a disk would never see an exception.
  """
  last = [time.monotonic()]
  done = threading.Event()

  def alive() -> None:
    last[0] = time.monotonic()

  def watch(limit: float) -> None:
    while not done.wait(min(1.0, limit / 4)):
      if time.monotonic() - last[0] > limit:
        print(
          f'No step has ended for {limit:.0f} s: this process hangs, or waits for another one. '
          'The stacks of its threads follow. Rerun the same command to resume from the last '
          'checkpoint; raise hang_timeout if a step, validation or checkpoint takes longer.',
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
