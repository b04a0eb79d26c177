import doctest
import itertools
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from cascades import costs, curves, metrics
from tests.curve_oracles import literal_curve


def by_rate(rate):
  return rate


def statistics(quality):
  """Statistics of a mean over examples."""
  quality = np.asarray(quality, float)
  return np.stack([quality, np.ones(len(quality))], axis=1)


def curve_of(score, small, large, cost=by_rate):
  return curves.deferral_curve(
    np.asarray(score, float), statistics(small), statistics(large), metrics.ratio, cost
  )


@st.composite
def cascades(draw, *, ties=True, largest=12):
  """Scores and qualities of both models, for the same examples."""
  n = draw(st.integers(1, largest))
  values = st.integers(0, 3) if ties else st.integers(-(10**6), 10**6)
  score = draw(st.lists(values, min_size=n, max_size=n, unique=not ties))
  quality = st.lists(st.floats(0, 1, width=16), min_size=n, max_size=n)
  return np.array(score, float), np.array(draw(quality)), np.array(draw(quality))


def test_the_worked_example_of_the_module_is_right():
  results = doctest.testmod(curves)
  assert results.attempted >= 10
  assert not results.failed


SMALL, LARGE, CONFIDENCE = [1, 0, 0, 1], [1, 1, 1, 0], np.array([0.9, 0.1, 0.5, 0.3])


def test_a_curve_agrees_with_numbers_worked_by_hand():
  curve = curve_of(-CONFIDENCE, SMALL, LARGE, cost=lambda rate: 2 + 8 * rate)
  np.testing.assert_allclose(curve.quality, [0.5, 0.75, 0.5, 0.75, 0.75])
  np.testing.assert_allclose(curve.deferral_rate, [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(curve.cost, [2, 4, 6, 8, 10])
  np.testing.assert_allclose(curve.threshold, [np.inf, -0.1, -0.3, -0.5, -0.9])
  assert curves.area(curve) == pytest.approx(0.65625)
  assert curves.area_above_chord(curve) == pytest.approx(0.65625 - 0.625)


def test_the_best_and_the_worst_order_agree_with_numbers_worked_by_hand():
  gain = np.array(LARGE) - np.array(SMALL)
  best = curve_of([0, 2, 1, -1], SMALL, LARGE)
  np.testing.assert_allclose(best.quality, [0.5, 0.75, 1, 1, 0.75])
  assert curves.area(best) == pytest.approx(0.84375)
  assert curves.area(curve_of(-gain - [0, 0, 0.1, 0], SMALL, LARGE)) == pytest.approx(0.40625)


@given(cascades())
def test_a_curve_equals_the_rule_applied_literally_at_every_threshold(cascade):
  score, small, large = cascade
  literal = literal_curve(score, statistics(small), statistics(large), metrics.ratio, by_rate)
  for actual, expected in zip(curve_of(score, small, large), literal, strict=True):
    np.testing.assert_allclose(actual, expected, atol=1e-12)


@given(cascades(), st.integers(0, 2**31))
def test_a_curve_of_a_corpus_metric_equals_the_rule_applied_literally(cascade, seed):
  score = cascade[0]
  generator = np.random.default_rng(seed)
  small, large = generator.integers(0, 9, size=(2, len(score), 10)).astype(float)
  finalize = metrics.finalize_bleu
  actual = curves.deferral_curve(score, small, large, finalize, by_rate)
  expected = literal_curve(score, small, large, finalize, by_rate)
  np.testing.assert_allclose(actual.quality, expected.quality, atol=1e-9)
  np.testing.assert_array_equal(actual.threshold, expected.threshold)


@given(cascades())
def test_a_curve_starts_at_the_small_model_and_ends_at_the_large(cascade):
  score, small, large = cascade
  curve = curve_of(score, small, large, cost=lambda rate: 2.0 + 8.0 * rate)
  assert curve.quality[0] == pytest.approx(small.mean())
  assert curve.quality[-1] == pytest.approx(large.mean(), abs=1e-12)
  assert (curve.cost[0], curve.cost[-1]) == (2, 10)
  assert (np.diff(curve.deferral_rate) > 0).all()
  assert (np.diff(curve.threshold) < 0).all()


@given(cascades())
def test_only_the_order_of_the_scores_matters(cascade):
  score, small, large = cascade
  curve = curve_of(score, small, large)
  for transform in (np.exp, lambda x: 3 * x - 7, np.arctan):
    other = curve_of(transform(score), small, large)
    np.testing.assert_array_equal(curve.quality, other.quality)
    np.testing.assert_array_equal(curve.deferral_rate, other.deferral_rate)


def test_the_average_over_all_orders_is_the_chord():
  generator = np.random.default_rng(0)
  small, large = generator.random((2, 6))
  every = [curve_of(order, small, large).quality for order in itertools.permutations(range(6))]
  chord = small.mean() + np.arange(7) / 6 * (large.mean() - small.mean())
  np.testing.assert_allclose(np.mean(every, axis=0), chord)


@given(cascades(ties=False))
def test_no_order_beats_the_gain_itself_or_loses_to_its_opposite(cascade):
  score, small, large = cascade
  ranks = np.argsort(np.argsort(large - small))  # breaks ties, so that all points are there
  middle, best, worst = (curve_of(order, small, large).quality for order in (score, ranks, -ranks))
  assert (middle <= best + 1e-12).all()
  assert (middle >= worst - 1e-12).all()


@given(cascades(ties=False))
def test_a_score_and_its_opposite_average_to_the_chord(cascade):
  score, small, large = cascade
  both = curves.area(curve_of(score, small, large)) + curves.area(curve_of(-score, small, large))
  assert both == pytest.approx(small.mean() + large.mean())


@given(cascades(ties=False))
def test_the_area_equals_its_closed_form(cascade):
  score, small, large = cascade
  n = len(score)
  gain = (large - small)[np.argsort(-score)]
  closed = small.mean() + np.sum(gain * (n - np.arange(n) - 0.5)) / n**2
  assert curves.area(curve_of(score, small, large)) == pytest.approx(closed)


@given(cascades())
def test_equal_models_give_a_flat_curve(cascade):
  score, small, _ = cascade
  np.testing.assert_allclose(curve_of(score, small, small).quality, small.mean())


def test_a_constant_score_reaches_two_points():
  curve = curve_of([4, 4, 4], [0, 1, 0], [1, 1, 0])
  np.testing.assert_allclose(curve.quality, [1 / 3, 2 / 3])
  np.testing.assert_array_equal(curve.threshold, [np.inf, 4])
  assert curves.area_above_chord(curve) == pytest.approx(0)


@given(cascades())
def test_the_two_parts_add_up_to_the_curve(cascade):
  score, small, large = cascade
  small_part, large_part = curves.decomposition(score, small, large)
  np.testing.assert_allclose(
    small_part + large_part, curve_of(score, small, large).quality, atol=1e-12
  )
  assert (small_part[0], large_part[0]) == (pytest.approx(small.mean()), 0)
  assert (small_part[-1], large_part[-1]) == (0, pytest.approx(large.mean()))


def test_the_two_parts_agree_with_numbers_worked_by_hand():
  small_part, large_part = curves.decomposition(-CONFIDENCE, np.array(SMALL), np.array(LARGE))
  np.testing.assert_allclose(small_part, [0.5, 0.5, 0.25, 0.25, 0])
  np.testing.assert_allclose(large_part, [0, 0.25, 0.25, 0.5, 0.75])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
  with pytest.raises(ValueError, match='1 of 3 scores are not finite'):
    curve_of([0, bad, 1], [0, 0, 0], [1, 1, 1])


def test_no_examples_are_refused():
  with pytest.raises(ValueError, match=r'0 of 0 scores .* needs one or more examples'):
    curve_of([], [], [])


def hill():
  """Through 0.2, 0.8, 0.6 at costs 1, 2, 3."""
  return curve_of([2, 1], [0.2, 0.2], [1.4, -0.2], cost=lambda rate: 1 + 2 * rate)


def test_quality_at_cost_is_linear_between_points_and_nan_outside():
  np.testing.assert_allclose(hill().quality, [0.2, 0.8, 0.6])
  assert curves.quality_at_cost(hill(), 1.5) == pytest.approx(0.5)
  assert curves.quality_at_cost(hill(), 3) == pytest.approx(0.6)
  assert np.isnan(curves.quality_at_cost(hill(), 0.99))
  assert np.isnan(curves.quality_at_cost(hill(), 3.01))


def test_cost_at_quality_is_the_first_crossing_or_nan():
  assert curves.cost_at_quality(hill(), 0.5) == pytest.approx(1.5)
  assert curves.cost_at_quality(hill(), 0.7) == pytest.approx(1 + 5 / 6)
  assert curves.cost_at_quality(hill(), 0.1) == 1
  assert curves.cost_at_quality(hill(), 0.8) == pytest.approx(2)
  assert np.isnan(curves.cost_at_quality(hill(), 0.81))


def test_cost_at_quality_goes_down_where_lower_is_better():
  errors = hill()._replace(quality=1 - hill().quality)
  assert curves.cost_at_quality(errors, 0.5, higher_is_better=False) == pytest.approx(1.5)
  assert np.isnan(curves.cost_at_quality(errors, 0.19, higher_is_better=False))


@given(
  hnp.arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=st.floats(0, 1)),
  st.floats(0, 1),
)
def test_first_reaching_equals_a_walk_along_the_line(lines, level):
  x = np.arange(lines.shape[1], dtype=float)
  for line, reached in zip(lines, curves.first_reaching(x, lines, level), strict=True):
    expected = np.nan
    for k, value in enumerate(line):
      if value >= level:
        expected = k if k == 0 else k - 1 + (level - line[k - 1]) / (value - line[k - 1])
        break
    np.testing.assert_allclose(reached, expected, atol=1e-12)


def test_savings_at_equal_quality_agree_with_numbers_worked_by_hand():
  def straight(start):
    return curve_of([2, 1], [start] * 2, [1, 1], cost=lambda rate: 10 + 100 * rate)

  model, baseline = straight(0.5), straight(0.0)  # quality 0.75 at rates 0.5 and 0.75
  assert curves.deferrals_saved(model, baseline, 0.75) == pytest.approx(0.25)
  assert curves.flops_saved(model, baseline, 0.75) == pytest.approx(1 - 60 / 85)
  assert curves.deferrals_saved(baseline, model, 0.75) == pytest.approx(-0.25)
  assert np.isnan(curves.flops_saved(model, baseline, 1.5))


def test_savings_in_an_error_rate_are_those_in_its_opposite():
  model, baseline = (
    curve_of([2, 1], [start] * 2, [0, 0], cost=lambda rate: 10 + 100 * rate) for start in (0.5, 1.0)
  )  # error rate 0.25 at rates 0.5 and 0.75
  lower = {'higher_is_better': False}
  assert curves.deferrals_saved(model, baseline, 0.25, **lower) == pytest.approx(0.25)
  assert curves.flops_saved(model, baseline, 0.25, **lower) == pytest.approx(1 - 60 / 85)


@given(cascades(), st.floats(0, 1))
def test_the_threshold_for_a_budget_defers_as_much_as_it_can_within_it(cascade, budget):
  score, small, large = cascade
  curve = curve_of(score, small, large)
  share = np.mean(score >= curves.threshold_for(curve, budget))
  assert share <= budget
  larger = curve.deferral_rate[curve.deferral_rate > share]
  assert not larger.size or larger[0] > budget


def test_evenly_spaced_points_have_both_ends_and_equal_steps():
  assert curves.evenly_spaced(3, 10).tolist() == [0, 1, 2]
  assert curves.evenly_spaced(1000, 10).tolist() == list(range(0, 1000, 111))
  assert curves.evenly_spaced(1, 5).tolist() == [0]


def test_stacked_tasks_have_rows_and_columns_of_their_own():
  first, second = np.array([[1.0, 2], [3, 4]]), np.array([[5.0, 6, 7]])
  expected = [[1, 2, 0, 0, 0], [3, 4, 0, 0, 0], [0, 0, 5, 6, 7]]
  np.testing.assert_array_equal(curves.stack_tasks([first, second]), expected)


def test_pooled_tasks_are_the_weighted_mean_of_the_tasks_at_a_common_threshold():
  generator = np.random.default_rng(0)
  sizes = (30, 50, 7)
  scores = [generator.integers(0, 12, size=n).astype(float) for n in sizes]
  small, large = ([statistics(generator.random(n) < p) for n in sizes] for p in (0.4, 0.8))
  score = np.concatenate(scores)
  stacked = [curves.stack_tasks(side) for side in (small, large)]
  for weights in (sizes, (1, 1, 1)):
    finalize = curves.mean_over_tasks([metrics.ratio] * 3, [2, 2, 2], weights)
    pooled = curves.deferral_curve(score, *stacked, finalize, by_rate)
    for threshold, quality in zip(pooled.threshold, pooled.quality, strict=True):
      each = [
        np.where(task_score >= threshold, task_large[:, 0], task_small[:, 0]).mean()
        for task_score, task_small, task_large in zip(scores, small, large, strict=True)
      ]
      assert quality == pytest.approx(np.average(each, weights=weights))
  by_size = curves.mean_over_tasks([metrics.ratio] * 3, [2, 2, 2], sizes)
  np.testing.assert_allclose(
    curves.deferral_curve(score, *stacked, by_size, by_rate).quality,
    curves.deferral_curve(
      score, np.vstack(small), np.vstack(large), metrics.ratio, by_rate
    ).quality,
  )


def test_costs_of_single_examples_agree_with_numbers_worked_by_hand():
  """The examples defer in the order 2, 4, 3, 1, at costs of 5, 2, 4 and 1."""
  base, extra = np.array([1.0, 2.0, 3.0, 2.0]), np.array([1.0, 5.0, 4.0, 2.0])
  cost = curves.cost_by_rate(-CONFIDENCE, base, extra)
  np.testing.assert_allclose(
    curve_of(-CONFIDENCE, SMALL, LARGE, cost).cost, [2, 3.25, 3.75, 4.75, 5]
  )
  np.testing.assert_allclose(cost(np.array([0.125, np.inf])), [2.625, np.inf])


@given(cascades(), st.floats(0, 1e12), st.floats(0, 1e12))
def test_equal_costs_of_examples_give_todays_curve_bit_for_bit(cascade, small, large):
  score, *qualities = cascade
  by_example = curves.cost_by_rate(score, np.full(len(score), small), np.full(len(score), large))
  constant = partial(costs.cascade, small=small, large=large)
  for actual, expected in zip(
    curve_of(score, *qualities, by_example), curve_of(score, *qualities, constant), strict=True
  ):
    np.testing.assert_array_equal(actual, expected)


@given(cascades())
def test_costs_of_single_examples_equal_those_of_every_threshold(cascade):
  score, base, extra = cascade
  curve = curve_of(score, base, extra, curves.cost_by_rate(score, base, extra))
  for threshold, cost in zip(curve.threshold, curve.cost, strict=True):
    expected = np.where(score >= threshold, base + extra, base).mean()
    assert cost == pytest.approx(expected, abs=1e-12)
