import doctest
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cascades import costs, curve_metrics, curves, metrics

COST, QUALITY = np.array([3.0, 1.0, 5.0, 3.0]), np.array([0.9, 0.5, 0.7, 0.2])
SMALL_LARGE = {'small': 0.5, 'large': 0.7}
BEST = {'best_quality': 0.7, 'best_cost': 4.0}


def test_the_worked_example_of_the_module_is_right():
  results = doctest.testmod(curve_metrics)
  assert results.attempted == 4
  assert not results.failed


def test_areas_agree_with_numbers_worked_by_hand():
  area = partial(curve_metrics.area, COST, QUALITY)
  assert area(low=1, high=5) == pytest.approx((0.7 * 2 + 0.8 * 2) / 4)
  assert area(low=2, high=3) == pytest.approx(0.8)  # from 0.7 to 0.9
  assert area(low=0, high=6) == pytest.approx((0.5 + 1.4 + 1.6 + 0.7) / 6)  # flat beyond the ends
  assert np.isnan(area(low=2, high=2))


def test_levels_agree_with_numbers_worked_by_hand():
  assert curve_metrics.quality_at(COST, QUALITY, 2) == pytest.approx(0.7)
  assert curve_metrics.quality_at(COST, QUALITY, 9) == pytest.approx(0.7)
  assert np.isnan(curve_metrics.quality_at(COST, QUALITY, 0.5))
  assert curve_metrics.cost_at(COST, QUALITY, 0.8) == pytest.approx(2.5)
  assert curve_metrics.cost_at(COST, QUALITY, 0.95) == np.inf
  assert curve_metrics.cost_at(COST, QUALITY, 0.1) == 1


def test_comparisons_with_the_best_single_model_agree_with_numbers_worked_by_hand():
  assert curve_metrics.quality_neutral_cost(COST, QUALITY, **BEST) == pytest.approx(2 / 4)
  assert curve_metrics.cost_saved(COST, QUALITY, **BEST) == pytest.approx(1 - 3 / 4)  # a point
  assert curve_metrics.performance_gain(QUALITY, best_quality=0.7) == pytest.approx(0.2 / 0.7)
  worse = {'best_quality': 0.95, 'best_cost': 4.0}
  assert curve_metrics.quality_neutral_cost(COST, QUALITY, **worse) == np.inf
  assert curve_metrics.cost_saved(COST, QUALITY, **worse) == -np.inf
  assert curve_metrics.performance_gain(QUALITY, best_quality=0.95) == pytest.approx(-0.05 / 0.95)


def test_numbers_over_large_calls_agree_with_numbers_worked_by_hand():
  """PGR is 0, 2 and 1 at shares of 0, 0.5 and 1 of large calls."""
  calls, quality = np.array([0, 0.5, 1]), np.array([0.5, 0.9, 0.7])
  np.testing.assert_allclose(curve_metrics.gap_recovered(quality, **SMALL_LARGE), [0, 2, 1])
  assert curve_metrics.average_gap_recovered(calls, quality, **SMALL_LARGE) == pytest.approx(1.25)
  assert curve_metrics.calls_for(calls, quality, 0.8, **SMALL_LARGE) == pytest.approx(0.2)
  assert curve_metrics.calls_for(calls, quality, 2.5, **SMALL_LARGE) == np.inf
  gain = curve_metrics.gain_over_random(calls, quality, **SMALL_LARGE)
  assert gain == pytest.approx(100 * (0.75 / 0.6 - 1))
  assert np.isnan(curve_metrics.average_gap_recovered(calls, quality, small=0.5, large=0.5))


def test_the_gap_recovered_is_that_of_the_code_of_routellm():
  calls, quality = np.linspace(0, 1, 11), np.sort(np.random.default_rng(0).random(11))
  small, large = quality[[0, -1]]
  areas = [
    np.trapezoid(values, calls) for values in (quality, small + 0 * calls, large + 0 * calls)
  ]
  expected = (areas[0] - areas[1]) / (areas[2] - areas[1])
  ends = {'small': small, 'large': large}
  assert curve_metrics.average_gap_recovered(calls, quality, **ends) == pytest.approx(expected)
  for share in (0.2, 0.5, 0.8):
    read = np.interp(small + share * (large - small), quality, calls)
    assert curve_metrics.calls_for(calls, quality, share, **ends) == pytest.approx(read)


def test_the_hull_agrees_with_one_worked_by_hand():
  cost, quality = np.array([0.0, 1, 2, 3, 4]), np.array([0.2, 0.3, 0.6, 0.65, 0.5])
  np.testing.assert_allclose(curve_metrics.hull(cost, quality), [[0, 2, 3], [0.2, 0.6, 0.65]])
  mean = curve_metrics.average_improvement(cost, quality, low=0, high=4)
  assert mean == pytest.approx((0.8 + 0.625 + 0.65) / 4)


@st.composite
def points(draw):
  generator = np.random.default_rng(draw(st.integers(0, 2**32)))
  count = draw(st.integers(1, 12))
  return generator.integers(1, 9, size=count) + 0.0, generator.integers(0, 9, size=count) / 8


@given(points(), st.floats(0, 10))
def test_the_hull_is_the_best_of_all_mixtures_of_two_points(curve, level):
  cost, quality = curve
  x, y = curve_metrics.hull(cost, quality)
  reached = np.interp(level, x, y, left=-np.inf)
  mixtures = [-np.inf]
  for c0, q0 in zip(cost, quality, strict=True):
    for c1, q1 in zip(cost, quality, strict=True):
      if c0 <= level:
        weight = 1.0 if c1 <= level else (level - c0) / (c1 - c0)
        mixtures.append(q0 + weight * (q1 - q0))
  assert reached == pytest.approx(max(mixtures))


@given(points())
def test_a_hull_is_never_below_its_curve(curve):
  limits = {'low': 0.5, 'high': 9.5}
  assert curve_metrics.average_improvement(*curve, **limits) >= (
    curve_metrics.area(*curve, **limits) - 1e-12
  )


def test_a_deferral_curve_has_the_areas_that_it_has_over_rates():
  generator = np.random.default_rng(0)
  quality = generator.integers(0, 2, size=(2, 50, 1))
  statistics = np.concatenate([quality, np.ones_like(quality)], axis=2)
  cost = partial(costs.cascade, small=2.0, large=8.0)
  curve = curves.deferral_curve(generator.random(50), *statistics, metrics.ratio, cost)
  expected = curves.area(curve)
  assert curve_metrics.area(curve.cost, curve.quality, low=2, high=10) == pytest.approx(expected)
  ends = {'small': curve.quality[0], 'large': curve.quality[-1]}
  gain = curve_metrics.gain_over_random(curve.deferral_rate, curve.quality, **ends)
  chord = (ends['small'] + ends['large']) / 2
  assert gain == pytest.approx(100 * curves.area_above_chord(curve) / chord)


@given(st.floats(0, 1), st.floats(0.1, 9))
def test_a_constant_curve_has_the_quality_of_its_only_model(quality, cost):
  line = np.array([cost]), np.array([quality])
  assert curve_metrics.area(*line, low=0, high=10) == pytest.approx(quality)
  assert curve_metrics.quality_neutral_cost(*line, best_quality=quality, best_cost=cost) == 1
  assert curve_metrics.cost_saved(*line, best_quality=quality, best_cost=cost) == 0
