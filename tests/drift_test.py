import doctest
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from cascades import drift
from cascades.drift import Monitor

STREAMS, ALPHA = 400, 0.1
MOST = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / STREAMS)


def monitors(generator, *, rows=100, level=0.2, coarse=False):
  scores = generator.normal(size=(STREAMS, rows))
  scores = np.round(scores) if coarse else scores
  edges, ties, gaps = zip(*(drift.reference(s, seed=i) for i, s in enumerate(scores)), strict=True)
  alphas = np.full(2, ALPHA)
  return Monitor(
    np.stack(edges), np.stack(ties), np.stack(gaps), np.full((STREAMS, 1), level), alphas
  )


def run(
  monitor, generator, length, *, shift=0.0, mean=0.2, coarse=False, observe=1.0, uniform=None
):
  state = drift.start(monitor)
  for _ in range(length):
    score = generator.normal(size=STREAMS) + shift
    loss = np.where(generator.random(STREAMS) < observe, generator.random(STREAMS) < mean, np.nan)[
      :, None
    ]
    state = drift.update(
      monitor, state, np.round(score) if coarse else score, loss,
      uniform=generator.random(STREAMS) if uniform is None else np.full(STREAMS, uniform),
    )  # fmt: skip
  return state


def test_the_example_of_the_module_is_right():
  assert doctest.testmod(drift, extraglobs={'np': np}).failed == 0


def test_gaps_count_the_calibration_rows_between_the_edges():
  edges, ties, gaps = drift.reference(np.arange(9.0), seed=0, bins=2)
  assert edges.tolist() == [4.0]  # the fifth of nine rows: five gaps on each side
  assert gaps.tolist() == [5, 5]
  assert len(ties) == 1
  for rows in (2, 3, 7, 50, 101):
    assert drift.reference(np.random.default_rng(0).random(rows), seed=0)[2].sum() == rows + 1


def test_polya_urns_predict_the_bins_exactly():
  """All orders of 2 calibration rows and 2 others are equally likely: count them."""
  _, _, gaps = drift.reference(np.array([1.0, 2.0]), seed=0, bins=2)
  assert gaps.sum() == 3
  below = int(gaps[0])
  # Probability that both others fall below the edge: gaps are balls of the urn.
  urn = Fraction(below, 3) * Fraction(below + 1, 4)
  count = total = 0
  for order in itertools.permutations(range(4)):  # ranks of calibration rows 0, 1 and others 2, 3
    edge = sorted(order[:2])[below - 1]
    count += order[2] < edge and order[3] < edge
    total += 1
  assert Fraction(count, total) == urn


@pytest.mark.parametrize('coarse', [False, True])
def test_false_alarms_are_at_most_alpha(coarse):
  generator = np.random.default_rng(0)
  monitor = monitors(generator, coarse=coarse)
  state = run(monitor, generator, 500, coarse=coarse)
  assert (drift.alarms(monitor, state).mean(axis=0) <= MOST).all()


def test_without_random_numbers_ties_cause_false_alarms():
  """The control: scores of few values, of which equal ones always count as higher."""
  generator = np.random.default_rng(0)
  monitor = monitors(generator, coarse=True)
  state = run(monitor, generator, 500, coarse=True, uniform=2.0)
  assert drift.alarms(monitor, state)[:, 0].mean() > MOST


def test_changes_are_noticed():
  generator = np.random.default_rng(1)
  monitor = monitors(generator)
  state = run(monitor, generator, 300, shift=1.0, mean=0.5)
  assert drift.alarms(monitor, state).mean(axis=0).min() > 0.95


def test_a_loss_below_its_level_never_alarms_and_one_above_does():
  generator = np.random.default_rng(2)
  monitor = monitors(generator)
  assert drift.alarms(monitor, run(monitor, generator, 300, mean=0.1))[:, 1].mean() < 0.02


def test_rows_without_labels_leave_the_wealth_of_the_quality_alone():
  generator = np.random.default_rng(3)
  monitor = monitors(generator)
  state = run(monitor, generator, 100, mean=1.0, observe=0.0)
  assert (state.observed == 0).all()
  assert (state.peak[:, 1] == 1).all()
  assert not drift.alarms(monitor, state)[:, 1].any()
  assert state.rows[0] == 100


def test_the_wealth_of_a_bettor_is_1_on_average_over_what_may_come():
  """A martingale: the next row multiplies it by 1 on average, over the bins and over a loss."""
  generator = np.random.default_rng(4)
  monitor = Monitor(
    *drift.reference(generator.normal(size=40), seed=0), np.array([0.3]), np.ones(2)
  )
  state = drift.start(monitor)
  for score in generator.normal(size=30) + 1:
    state = drift.update(monitor, state, score, np.array([1.0]), uniform=0.5)
  expected = monitor.gaps + state.counts
  expected = expected / expected.sum()
  hits = np.eye(len(monitor.gaps))
  factors = [float(drift._score_factor(monitor, state, hit)) for hit in hits]
  assert np.dot(expected, factors) == pytest.approx(1)
  win, lose = (float(drift._bound_factors(monitor, state, np.array([x]))[0]) for x in (1.0, 0.0))
  assert 0.3 * win + 0.7 * lose == pytest.approx(1)
  assert lose > 0


def test_updates_are_pure_and_streams_side_by_side_are_streams_alone():
  generator = np.random.default_rng(5)
  monitor = monitors(generator)
  one = Monitor(*(a[7] for a in monitor[:4]), monitor.alphas)
  scores, uniforms = generator.normal(size=(2, 50, STREAMS))
  together, alone = drift.start(monitor), drift.start(one)
  before = [np.copy(a) for a in together]
  for score, uniform in zip(scores, np.abs(uniforms) % 1, strict=True):
    drift.update(monitor, together, score, uniform=uniform)
    for old, new in zip(before, together, strict=True):
      np.testing.assert_array_equal(old, new)
    together = drift.update(monitor, together, score, uniform=uniform)
    alone = drift.update(one, alone, score[7], uniform=uniform[7])
    before = [np.copy(a) for a in together]
  for left, right in zip(together, alone, strict=True):
    np.testing.assert_allclose(left[7], right)


def test_money_that_enters_later_never_exceeds_1():
  t = np.arange(1, 10_000)
  entering = t**-0.1 - (t + 1.0) ** -0.1
  assert entering.sum() + 10_000**-0.1 == pytest.approx(1)
