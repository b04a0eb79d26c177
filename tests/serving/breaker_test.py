"""The circuit breaker, with a clock of the test."""

import asyncio

import pytest

from cascades.serving.breaker import RETRY_SECONDS, Breaker, GuardedModel
from cascades.serving.exchanges import ModelError, Piece, Question


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


class FlakyModel:
  """A model whose next outcomes are given: pieces, or exceptions."""

  name = 'flaky'

  def __init__(self):
    self.outcomes, self.asked, self.closed = [], 0, 0

  async def answer(self, question):
    self.asked += 1
    outcome = self.outcomes.pop(0) if self.outcomes else 'fine'
    try:
      if isinstance(outcome, Exception):
        raise outcome
      yield Piece('half')
      await asyncio.sleep(0)
      yield Piece(outcome, finish='stop')
    finally:
      self.closed += 1


@pytest.fixture
def guarded():
  model, clock = FlakyModel(), Clock()
  guard = GuardedModel(model, Breaker(failures=3, pause=30, clock=clock))
  return guard, model, clock


def ask(guard):
  async def answer():
    return ''.join([piece.text async for piece in guard.answer(Question('q'))])

  return asyncio.run(answer())


def fail(guard, model, times):
  model.outcomes = [ModelError('down')] * times
  for _ in range(times):
    with pytest.raises(ModelError, match='down'):
      ask(guard)


def test_failures_in_a_row_open_the_circuit_and_the_model_is_left_alone(guarded):
  guard, model, _clock = guarded
  fail(guard, model, 2)
  assert ask(guard) == 'halffine'
  fail(guard, model, 2)
  assert guard.breaker.state == 'closed'
  fail(guard, model, 1)
  assert guard.breaker.state == 'open'
  asked = model.asked
  with pytest.raises(ModelError, match='flaky: it has failed repeatedly') as error:
    ask(guard)
  assert error.value.retry_after == 30
  assert model.asked == asked


def test_after_the_pause_a_trial_closes_or_opens_the_circuit(guarded):
  guard, model, clock = guarded
  fail(guard, model, 3)
  clock.now = 29.9
  assert guard.breaker.state == 'open'
  clock.now = 30.0
  assert guard.breaker.state == 'half-open'
  fail(guard, model, 1)
  assert guard.breaker.state == 'open'
  clock.now = 60.0
  assert ask(guard) == 'halffine'
  assert guard.breaker.state == 'closed'
  fail(guard, model, 2)
  assert guard.breaker.state == 'closed'


def test_only_one_question_is_on_trial(guarded):
  guard, model, clock = guarded
  fail(guard, model, 3)
  clock.now = 31.0

  async def both():
    first = guard.answer(Question('q'))
    assert (await anext(first)).text == 'half'
    with pytest.raises(ModelError) as error:
      await anext(guard.answer(Question('q')))
    assert error.value.retry_after == RETRY_SECONDS
    await first.aclose()  # a client that leaves proves nothing, and lets another try
    assert guard.breaker.state == 'half-open'
    async for _ in guard.answer(Question('q')):
      pass

  asyncio.run(both())
  assert guard.breaker.state == 'closed'
  assert model.closed == model.asked


def test_a_question_that_is_refused_is_no_failure(guarded):
  guard, model, _clock = guarded
  model.outcomes = [ValueError('too long')] * 5
  for _ in range(5):
    with pytest.raises(ValueError, match='too long'):
      ask(guard)
  assert guard.breaker.state == 'closed'


def test_an_unexpected_error_is_a_failure(guarded):
  guard, model, _clock = guarded
  model.outcomes = [RuntimeError('bug')] * 3
  for _ in range(3):
    with pytest.raises(RuntimeError):
      ask(guard)
  assert guard.breaker.state == 'open'


def test_outcomes_of_questions_from_before_a_change_are_ignored():
  clock = Clock()
  breaker = Breaker(failures=1, pause=30, clock=clock)
  slow, slower = breaker.enter(), breaker.enter()
  breaker.fail(breaker.enter())
  breaker.succeed(slow)
  assert breaker.state == 'open'
  clock.now = 30
  breaker.fail(slower)
  assert breaker.state == 'half-open'
  trial = breaker.enter()
  breaker.leave(slower)
  with pytest.raises(ModelError):
    breaker.enter()
  breaker.succeed(trial)
  assert breaker.state == 'closed'


def test_a_canceled_request_says_nothing_about_the_model(guarded):
  guard, _model, clock = guarded
  guard.breaker.fail(guard.breaker.enter())

  async def canceled():
    async def consume():
      async for _ in guard.answer(Question('q')):
        await asyncio.sleep(10)

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
      await task

  for _ in range(4):
    asyncio.run(canceled())
  assert guard.breaker.state == 'closed'
  assert clock.now == 0


def test_numbers_out_of_range_are_refused():
  with pytest.raises(ValueError, match='failures=0'):
    Breaker(failures=0)
