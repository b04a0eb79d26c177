"""States of an engine whose model counts down: full, canceled, closing, failing and dead."""

import contextlib
import threading
import time

import numpy as np
import pytest

from cascades.runtime import partitioning
from cascades.serving import engine as engines
from cascades.serving import slots
from cascades.serving.engine import Engine, Request
from cascades.serving.exchanges import ModelError
from cascades.serving.slots import Chosen, Room
from tests import testing, tiny
from tests.serving import engine_test
from tests.serving.engine_test import Reader


class Countdown:
  """A running batch whose answer to a prompt of n tokens is n, n - 1, ... 1; 1 ends it."""

  gate: threading.Semaphore
  failures = 0
  running = ()

  def __init__(self, graph, params, plan, *, vocab_size):
    pass

  def clear(self):
    pass

  def read(self, row, prompt, first, *, report):
    if not len(prompt) < 1000:
      raise SystemExit('out of memory')
    return self._chosen(np.array([len(prompt)]))

  def decode(self, rows, *, report):
    assert self.gate.acquire(timeout=30)
    if Countdown.failures:
      Countdown.failures -= 1
      raise RuntimeError('device lost')
    Countdown.running = np.flatnonzero(rows.active).tolist()
    return self._chosen(rows.tokens - 1)

  def _chosen(self, tokens):
    return Chosen(tokens, 0.0 * tokens, None, None)


@pytest.fixture
def countdown(monkeypatch):
  """An engine of two slots with room for two that wait, and a gate that lets steps pass."""
  monkeypatch.setattr(engines, 'RunningBatch', Countdown)
  monkeypatch.setattr(Countdown, 'gate', threading.Semaphore(0), raising=False)
  monkeypatch.setattr(Countdown, 'failures', 0)
  model = engine_test.model(testing.TINY_DECODER)
  room = Room(slots=2, max_prompt=2000, max_tokens=50, max_waiting=2)
  engine = Engine(model, room, mesh=tiny.one_device(), rules=partitioning.RULES)
  engine.wait_until_ready()
  yield engine
  open_gate()
  engine.close()


def open_gate(steps=10_000):
  Countdown.gate.release(steps)


def ask(engine, count, **options):
  return Reader(engine, Request(np.full(count, 3, np.int32), 50, **options))


def until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.002)


def fill(engine):
  """Two answers that run, and two requests that wait."""
  running = [ask(engine, 8), ask(engine, 9)]
  until(lambda: engine.running == 2)
  return running, [ask(engine, 4), ask(engine, 5)]


def tokens(reader):
  return [step.token for step in reader.result()]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(countdown):
  running, waiting = fill(countdown)
  with pytest.raises(ModelError, match='2 answers are running and 2 requests wait') as error:
    ask(countdown, 3)
  assert error.value.retry_after >= 1
  open_gate()
  assert [tokens(reader)[0] for reader in running + waiting] == [8, 9, 4, 5]
  assert all(reader.steps[0].queue_seconds > 0 for reader in waiting)
  assert tokens(ask(countdown, 3)) == [3, 2, 1]
  until(lambda: countdown.running == countdown.waiting == 0)


def test_canceling_frees_the_slot_at_the_next_step(countdown):
  (first, second), (third, fourth) = fill(countdown)
  open_gate(1)
  until(lambda: len(second.steps) == 2)
  countdown.cancel(first.ticket)
  countdown.cancel(fourth.ticket)  # before it has a slot
  assert countdown.waiting == 1
  open_gate(2)  # the step that is running, and the next
  until(lambda: third.steps)
  read = len(first.steps)
  open_gate()
  assert tokens(second) == [9, 8, 7, 6, 5, 4, 3, 2, 1]
  assert tokens(third) == [4, 3, 2, 1]
  assert len(first.steps) == read <= 3
  assert not first.ended.is_set()
  assert not fourth.steps


def test_a_reader_that_fails_cancels_only_itself(countdown):
  other = ask(countdown, 6)
  calls = []

  def broken(step):
    calls.append(step)
    raise RuntimeError('Event loop is closed')

  countdown.submit(Request(np.full(6, 3, np.int32), 50), broken)
  open_gate()
  assert tokens(other) == [6, 5, 4, 3, 2, 1]
  until(lambda: not countdown.running)
  assert len(calls) == 1


def test_closing_finishes_what_was_accepted(countdown):
  readers = [reader for pair in fill(countdown) for reader in pair]
  closing = threading.Thread(target=countdown.close, args=(30,))
  closing.start()
  until(lambda: not countdown.ready)
  with pytest.raises(ModelError, match='shutting down'):
    ask(countdown, 3)
  open_gate()
  assert [tokens(reader)[-1] for reader in readers] == [1] * 4
  closing.join(30)
  assert not closing.is_alive()


def test_closing_hands_back_what_takes_too_long(countdown):
  readers = [reader for pair in fill(countdown) for reader in pair]
  closing = threading.Thread(target=countdown.close, args=(0,))
  closing.start()
  until(lambda: not countdown.ready)
  open_gate(1)
  for reader in readers:
    with pytest.raises(ModelError, match='shutting down') as error:
      reader.result()
    assert error.value.retry_after > 0
  closing.join(30)
  assert not closing.is_alive()


def test_a_failed_step_ends_the_running_answers_and_no_others(countdown):
  running, waiting = fill(countdown)
  Countdown.failures = 1
  open_gate()
  for reader in running:
    with pytest.raises(ModelError, match='the model failed: RuntimeError'):
      reader.result()
  assert [tokens(reader)[-1] for reader in waiting] == [1, 1]
  assert countdown.ready


def test_an_engine_that_keeps_failing_is_dead_and_says_so(countdown):
  readers = [reader for pair in fill(countdown) for reader in pair]
  Countdown.failures = 1000
  open_gate()
  for reader in readers:
    with pytest.raises(ModelError, match=r'the model (failed|has stopped)'):
      reader.result()
  third = None
  with contextlib.suppress(ModelError):
    third = ask(countdown, 3)
    with pytest.raises(ModelError):
      third.result()
  until(lambda: countdown.failure)
  assert not countdown.ready
  with pytest.raises(ModelError, match='the model has stopped: RuntimeError'):
    ask(countdown, 3)


def test_an_error_that_is_no_exception_leaves_nobody_waiting(countdown):
  reader = ask(countdown, 1500)
  with pytest.raises(ModelError, match='has stopped: SystemExit'):
    reader.result()
  assert not countdown.ready


def test_an_idle_engine_sleeps(countdown):
  open_gate()
  tokens(ask(countdown, 3))
  until(lambda: not countdown.running)
  time.sleep(0.05)
  before = time.process_time()
  time.sleep(0.3)
  assert time.process_time() - before < 0.1


def test_long_prompts_do_not_hold_up_running_answers(countdown):
  readers = [ask(countdown, 400), ask(countdown, 400)]
  until(lambda: countdown.running)
  assert countdown.running == 1, 'two prompts exceed what is read between two steps'
  open_gate(1)
  until(lambda: countdown.running == 2)
  assert [len(reader.steps) for reader in readers] == [2, 1]
  for reader in readers:
    countdown.cancel(reader.ticket)


def plan(**room):
  model = engine_test.model(testing.TINY_DECODER)
  return slots.plan(model.graph, model.params, Room(**room))


def test_slots_follow_from_the_memory():
  # 2 layers x 2 heads x 6 numbers x 2 (keys and values) x 4 bytes x (20 + 12) tokens, and a length
  row = 2 * 2 * 6 * 2 * 4 * 32 + 4
  lengths = {'max_prompt': 20, 'max_tokens': 12}
  given = plan(slots=3, **lengths)
  assert given.row_bytes == row
  assert given.prompt_lengths == (16, 20)
  assert given.total_bytes == given.weight_bytes + 3 * row
  gib = lambda rows: (given.weight_bytes + rows * row) / (1 << 30)
  assert plan(memory=gib(5.5), **lengths).slots == 5
  assert plan(memory=gib(1000), **lengths).slots == 64
  assert plan(memory=gib(5.5), slots=2, **lengths).slots == 2
  for options in ({'memory': gib(0.5)}, {'memory': gib(5.5), 'slots': 6}):
    with pytest.raises(ValueError, match=r'MEMORY=.* does not hold the weights.*raise MEMORY'):
      plan(**options, **lengths)
  assert str(given).startswith('3 slots of 20 + 12 tokens')
  with pytest.raises(ValueError, match='SLOTS=0 must be'):
    Room(slots=0)
