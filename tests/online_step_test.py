"""One query of an online cascade: a plain loop over `online_step` is the stream in blocks."""

import numpy as np
import pytest

from cascades import online
from cascades.online_step import CallBudget, ExpertAnswer, Query, StreamExample, online_step
from cascades.tasks import shuffling
from tests.inference.online_stream_test import TWO, Seen, Sure, answers, synthetic


def example(small, number, text=None):
  """A query whose levels run one by one, where they are read."""
  predict = lambda state, level: small[level].predict(
    small[level].prepare([text or str(number)]), np.array([0])
  )[0]

  def defer(state, level):
    p = np.full((2, 2), 0.5, np.float32)
    p[level] = predict(state, level)
    return float(online.gate(state.gates, p)[level])

  return StreamExample(Query(number, f'q{number}', text or str(number)), predict, defer)


def looped(small, said, count, *, seed=7, **options):
  state, rows = online.start(TWO, seed=0), []
  for number in range(count):
    for level in online.due(TWO, state):
      small[level].partial_fit(*zip(*state.caches[level], strict=True))
      state = online.trained(state, level)
    uniforms = shuffling.mix(seed, np.array([number]), np.arange(2)) * 2.0**-64
    state, row = online_step(
      TWO, state, example(small, number), lambda n=number: ExpertAnswer(int(said[n])),
      uniforms.tolist(), **options,
    )  # fmt: skip
    rows.append((row, state))
  return rows


@pytest.mark.parametrize('options', [{'budget': CallBudget(280, 400)}, {'delay': 9}])
def test_a_loop_over_steps_is_the_stream_that_runs_in_blocks(options):
  points, _, said = synthetic(400)
  plain = looped([Seen(points, 4), Seen(points, 10)], said, 400, **options)
  blocks = answers(TWO, [Seen(points, 4), Seen(points, 10)], said, 400, **options)
  for (a, s), (b, t) in zip(plain, blocks, strict=True):
    assert (a.query, a.choice, a.label, a.failed) == (b.query, b.choice, b.label, b.failed)
    np.testing.assert_allclose(a.deferring, b.deferring, atol=1e-5)
    assert (s.updates, s.calls, s.share) == (t.updates, t.calls, t.share)
  assert {1, 2} <= {row.choice.level for row, _ in plain}


def ready(**changes):
  """A state behind the warm-up."""
  return online.start(TWO, seed=0)._replace(updates=(500, 500), **changes)


def test_a_step_asks_the_expert_only_where_it_answers_and_changes_no_state_in_place():
  def never():
    raise AssertionError('the expert is asked')

  small = [Sure((0.9, 0.1)), Sure((0.2, 0.8))]
  state = ready(threshold=1.0)
  before = [np.array(leaf) for leaf in state.gates.values()]
  after, row = online_step(TWO, state, example(small, 3), never, [0.9, 0.9])
  assert (row.choice, row.label, row.probabilities) == ((0, 'answer'), 0, ((0.9, 0.1),))
  assert after == state
  asked = lambda: ExpertAnswer(1, price=2.5)
  deferring = ready(threshold=-1.0)
  for _ in range(2):  # the same state gives the same step
    after, row = online_step(TWO, deferring, example(small, 3), asked, [0.9, 0.9])
    assert (row.choice, row.label) == ((2, 'gate'), 1)
    assert (after.calls, after.spent) == (1, 2.5)
    assert after.caches == (((str(3), 1),),) * 2
  for leaf, value in zip(state.gates.values(), before, strict=True):
    np.testing.assert_array_equal(leaf, value)


def test_an_expert_that_fails_is_not_paid_and_nothing_is_learned():
  small = [Sure((0.9, 0.1)), Sure((0.2, 0.8))]
  state = ready(threshold=-1.0)
  failed = lambda: ExpertAnswer(None, failed='it is down')
  after, row = online_step(TWO, state, example(small, 0), failed, [0.9, 0.9])
  assert (row.choice.level, row.label, row.failed) == (2, 1, 'it is down')
  assert after == state


def test_every_level_may_be_read_for_the_row_and_decides_nothing():
  small = [Sure((0.9, 0.1)), Sure((0.2, 0.8))]
  state = ready(threshold=1.0)
  step = lambda every: online_step(
    TWO, state, example(small, 0), lambda: ExpertAnswer(1), [0.9, 0.9], every_level=every
  )
  (after, row), (same, short) = step(True), step(False)
  assert row.probabilities == ((0.9, 0.1), (0.2, 0.8))
  assert (after, row._replace(probabilities=row.probabilities[:1])) == (same, short)
