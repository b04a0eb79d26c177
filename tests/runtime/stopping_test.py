"""How programs end before their end."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from cascades.runtime import stopping


def run(code):
  return subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False, timeout=120
  )


def test_a_hanging_process_shows_its_stacks_and_aborts():
  done = run(
    'import threading\n'
    'from cascades.runtime import stopping\n'
    'def waiting_for_ever(): threading.Event().wait()\n'
    'with stopping.watchdog(0.2): waiting_for_ever()\n'
  )
  assert done.returncode == -signal.SIGABRT
  assert 'No step has ended for 0 s: this process hangs' in done.stderr
  assert 'in waiting_for_ever' in done.stderr


def test_what_takes_long_after_the_steps_is_no_hang():
  done = run(
    'import time\n'
    'from cascades.runtime import stopping\n'
    'with stopping.watchdog(30.0) as alive: alive()\n'
    'with stopping.watchdog(None) as alive: alive()\n'
    'with stopping.watchdog(0.2): pass\n'
    'time.sleep(0.5)\n'
    "print('alive')\n"
  )
  assert (done.returncode, done.stdout) == (0, 'alive\n')


def test_a_program_that_has_nothing_to_save_ends_with_75_at_once():
  done = run(
    'import os, signal\n'
    'from cascades.runtime import stopping\n'
    'with stopping.on_signals(stopping.leave): os.kill(os.getpid(), signal.SIGTERM)\n'
    "print('not reached')\n"
  )
  assert (done.returncode, done.stdout) == (75, '')


def test_the_question_is_answered_after_sigterm():
  answers = []
  with contextlib.suppress(stopping.Preempted), stopping.asked() as asked:
    answers.append(asked(1))
    os.kill(os.getpid(), signal.SIGTERM)
    answers.append(asked(2))
  assert answers == [False, True]


@pytest.mark.parametrize(('sent', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_who_is_told_to_stop_says_which_step_is_saved(sent, code):
  def told():
    with stopping.asked() as asked:
      asked(1)
      os.kill(os.getpid(), sent)
      asked(2)

  before = signal.getsignal(sent)
  with pytest.raises(stopping.Preempted) as ended:
    told()
  assert ended.value.code == code
  assert ended.value.message.startswith(f'ended by {sent.name} after step 2, which is saved')
  assert signal.getsignal(sent) is before


def test_a_signal_is_not_lost_in_a_callback_of_the_garbage_collector():
  def callback(*_):
    if not sent:
      sent.append(os.kill(os.getpid(), signal.SIGTERM))

  def collected():
    with stopping.asked():
      # Any collection calls it, so not before SIGTERM has a handler.
      gc.callbacks.append(callback)
      gc.collect()
      time.sleep(5)

  sent, hook = [], sys.unraisablehook
  try:
    with pytest.raises(stopping.Preempted):
      collected()
  finally:
    gc.callbacks.remove(callback)
  assert sys.unraisablehook is hook


def test_another_thread_may_train_too():
  answers = []

  def ask():
    with stopping.asked() as asked:
      answers.append(asked(1))

  thread = threading.Thread(target=ask)
  thread.start()
  thread.join()
  assert answers == [False]


def test_evaluation_starts_without_jax_for_all_that():
  done = run("import sys; from cascades.runtime import stopping; print('jax' in sys.modules)")
  assert done.stdout == 'False\n'


def test_a_second_ctrl_c_ends_at_once():
  def told_twice():
    with stopping.asked() as asked:
      asked(1)
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)
      pytest.fail('not reached')

  with pytest.raises(KeyboardInterrupt):
    told_twice()


def test_a_ctrl_c_that_a_launcher_ignores_stays_ignored():
  done = run(
    'import os, signal\n'
    'signal.signal(signal.SIGINT, signal.SIG_IGN)\n'
    'from cascades.runtime import stopping\n'
    'with stopping.on_signals(stopping.leave): os.kill(os.getpid(), signal.SIGINT)\n'
    "print('goes on')\n"
  )
  assert (done.returncode, done.stdout) == (0, 'goes on\n')


@pytest.mark.parametrize(
  ('error', 'memory', 'lost'),
  [
    (RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.'), True, False),
    (MemoryError(), True, False),
    (RuntimeError('RESOURCE_EXHAUSTED: Error writing local file "x": No space left'), False, False),
    (RuntimeError('UNAVAILABLE: Task 1 heartbeat timeout'), False, True),
    (RuntimeError('Gloo AllReduce failed: Connection closed by peer'), False, True),
    (RuntimeError('a mistake of the program'), False, False),
    (ValueError('connection'), False, False),
    (
      ValueError('UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer'),
      False,
      True,
    ),
  ],
  ids=str,
)
def test_causes_are_told_apart(error, memory, lost):
  assert (stopping.out_of_memory(error), stopping.lost_a_process(error)) == (memory, lost)
