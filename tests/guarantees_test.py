import doctest
import math

import numpy as np
import pytest

from cascades import guarantees, risk_tests
from cascades.guarantees import Risk


def table(rows=600, seed=0):
  """Scores, and correctness of the two models' answers."""
  generator = np.random.default_rng(seed)
  difficulty = generator.normal(size=rows)
  small, large = (
    (generator.random(rows) < 1 / (1 + np.exp(difficulty - skill))).astype(float)
    for skill in (0.0, 1.8)
  )
  return difficulty + 0.7 * generator.normal(size=rows), small, large


def quality(small, large, level, delta=0.1):
  return Risk('quality', 1 - small, 1 - large, 1 - level, delta)


def margin(small, large, level, delta=0.1):
  return Risk('margin', large - small, np.zeros(len(small)), level, delta)


def rate(rows, level, delta=0.1):
  return Risk('deferral rate', np.zeros(rows), np.ones(rows), level, delta, falls=False)


def chosen(score, small, large, *risks, **options):
  walk = guarantees.path(score)
  return guarantees.choose(walk, risks, guarantees.total(walk, small, large), **options)


def test_the_example_of_the_module_is_right():
  assert doctest.testmod(guarantees, extraglobs={'np': np}).failed == 0


def test_certified_points_are_those_of_a_slow_walk():
  score, small, large = table(80)
  score = np.round(score, 1)  # ties
  risk = quality(small, large, 0.62)
  slow = {}
  for threshold in sorted(set(score)):  # from deferring everything
    failures = sum(
      (1 - large[i]) if score[i] >= threshold else (1 - small[i]) for i in range(len(score))
    )
    if risk_tests.binomial(np.array(failures), 80, risk.level) > risk.delta:
      break
    slow[threshold] = True
  walk = guarantees.path(score)
  assert {*walk.threshold[guarantees.certified(walk, risk)]} == {*slow}
  assert 0 < len(slow) < len(set(score))


def test_a_point_after_a_failure_is_not_certified_although_its_own_test_would_pass():
  score, small, large = np.arange(60.0), np.ones(60), np.ones(60)
  large[:20] = 0  # the large model fails on the rows that would defer last
  risk = quality(small, large, 0.85)
  walk = guarantees.path(score)
  assert guarantees.mean_loss(walk, risk)[0] == 0
  assert not guarantees.certified(walk, risk).any()


def test_each_loss_gets_the_most_powerful_exact_test():
  _, small, large = table(50)
  graded = quality(0.5 * small, large, 0.5)
  assert guarantees.test_of(quality(small, large, 0.5)) == 'binomial'
  assert guarantees.test_of(margin(small, large, 0.1)) == 'trinomial'
  assert guarantees.test_of(graded) == 'betting'
  many = np.zeros(guarantees.MOST_BETS + 1)
  assert guarantees.test_of(Risk('', many + 0.5, many, 0.6, 0.1)) == 'Hoeffding-Bentkus'


def test_graded_differences_are_tested_as_losses_of_the_unit_interval():
  score, small, large = table(300)
  difference, walk = 0.9 * (large - small), guarantees.path(score)
  risk = Risk('margin', difference, np.zeros(300), 0.1, 0.1)
  in_unit_interval = Risk('margin', (1 + difference) / 2, np.full(300, 0.5), 0.55, 0.1)
  points = guarantees.certified(walk, risk)
  assert 0 < points.sum() < 300
  assert (points == guarantees.certified(walk, in_unit_interval)).all()


@pytest.mark.parametrize('demand', [quality, margin])
def test_stricter_demands_never_lower_the_deferral_rate(demand):
  score, small, large = table(250)
  levels = (0.55, 0.6, 0.65, 0.7) if demand is quality else (0.2, 0.15, 0.1, 0.05)
  points = [chosen(score, small, large, demand(small, large, level)) for level in levels]
  assert points == sorted(points)
  deltas = [
    chosen(score, small, large, demand(small, large, levels[1], d)) for d in (0.3, 0.1, 0.01)
  ]
  assert deltas == sorted(deltas)


def test_more_demands_never_help():
  score, small, large = table()
  alone = chosen(score, small, large, quality(small, large, 0.65))
  both = chosen(score, small, large, quality(small, large, 0.65), rate(600, 0.8))
  assert alone == both
  assert chosen(score, small, large, quality(small, large, 0.65), rate(600, 0.3)) is None


def test_without_a_demand_of_quality_the_best_certified_quality_is_chosen():
  score, small, large = table()
  point = chosen(score, small, large, rate(600, 0.4))
  walk = guarantees.path(score)
  assert walk.rate[point] < 0.4
  certified = guarantees.certified(walk, rate(600, 0.4))
  totals = guarantees.total(walk, small, large)
  assert totals[point] == totals[certified].max()


def test_thresholds_are_unchanged_by_the_order_of_the_rows():
  score, small, large = table(200)
  risk = quality(small, large, 0.6)
  walk = guarantees.path(score)
  shuffled = np.random.default_rng(1).permutation(200)
  other = guarantees.path(score[shuffled])
  at = guarantees.choose(walk, [risk], guarantees.total(walk, small, large))
  again = guarantees.choose(other, [risk.select(shuffled)], guarantees.total(other, small, large))
  assert walk.threshold[at] == other.threshold[again]


DRAWS = 400


def broken(risk, score, small, large, **options):
  simulation = guarantees.simulate_thresholds(
    score, [risk], (small, large), rows=250, draws=DRAWS, seed=3, **options
  )
  return 1 - simulation.fulfilled[:, 0].mean(), simulation


@pytest.mark.parametrize('demand', ['quality', 'margin', 'rate', 'graded'])
def test_promises_are_broken_with_at_most_delta_and_by_the_plug_in_far_more_often(demand):
  score, small, large = table(500)
  risk = {
    'quality': quality(small, large, 0.65),
    'margin': margin(small, large, 0.1),
    'rate': rate(500, 0.4),
    'graded': quality(0.2 + 0.7 * small, 0.2 + 0.7 * large, 0.2 + 0.7 * 0.65),
  }[demand]
  most = 0.1 + 3 * math.sqrt(0.09 / DRAWS)
  share, simulation = broken(risk, score, small, large)
  assert share <= most
  assert not simulation.refused.any()
  control, _ = broken(risk, score, small, large, plug_in=True)
  assert control > most
  assert control > 2 * share


def test_certifying_each_point_by_itself_would_break_the_promise(monkeypatch):
  """The walk must end at its first failure: here every threshold breaks the promise."""
  score = np.arange(400.0)
  small = score % 2
  large = 1 - small  # so that every threshold has a quality of 0.5, or next to it
  risk = quality(small, large, 0.504)
  most = 0.1 + 3 * math.sqrt(0.09 / DRAWS)
  assert broken(risk, score, small, large)[0] <= most
  monkeypatch.setattr(guarantees, 'until_failure', lambda passes, falls: passes)
  assert broken(risk, score, small, large)[0] > most


def test_the_rows_that_are_asked_for_certify_a_threshold():
  score, small, large = table(4000)
  risk = quality(small, large, float(large.mean()) - 0.05)
  first = slice(0, 60)
  walk = guarantees.path(score[first])
  few = quality(small[first], large[first], float(large[first].mean()) - 0.05)
  needed = guarantees.rows_needed(walk, [few])
  assert guarantees.choose(walk, [few], np.zeros(len(walk.deferred))) is None
  assert 60 < needed < 4000
  simulation = guarantees.simulate_thresholds(
    score, [risk], (small, large), rows=int(guarantees.rows_needed(guarantees.path(score), [risk])),
    draws=200, seed=0,
  )  # fmt: skip
  assert 0.68 < 1 - simulation.refused.mean() < 0.92  # POWER, by a normal approximation


def test_no_number_of_rows_is_asked_for_where_none_would_do():
  score, small, large = table(100)
  walk = guarantees.path(score)
  assert math.isinf(guarantees.rows_needed(walk, [quality(small, large, 0.99)]))
  assert math.isinf(guarantees.rows_needed(walk, [quality(small, large, 0.7), rate(100, 0.001)]))


def test_a_score_that_is_not_finite_is_refused():
  with pytest.raises(ValueError, match='not finite'):
    guarantees.path(np.array([1.0, np.nan]))


def test_rows_of_equal_score_defer_together():
  walk = guarantees.path(np.array([2.0, 2.0, 1.0]))
  assert walk.deferred.tolist() == [0, 2, 3]
  assert [walk.point(t) for t in (np.inf, 2.5, 2.0, 1.5, 1.0, 0.0)] == [0, 0, 1, 1, 2, 2]
