from functools import partial

import numpy as np
import pytest

from cascades import bootstrap, costs, metrics
from cascades.bootstrap import Resamples
from cascades.evaluation import quantities
from cascades.evaluation.quantities import (
  ABOVE_CHORD,
  AREA,
  COST_AT,
  DEFERRALS_SAVED,
  FLOPS_SAVED,
  LARGE,
  QUALITY,
  QUALITY_AT,
  RATE_AT,
  RATES,
  SMALL,
  Measurement,
)
from cascades.types import Curve

COST = partial(costs.cascade, small=2.0, large=8.0)


def measured(quality=(0.2, 0.8, 0.6), *, metric=metrics.accuracy):
  """Quantities of a curve of three points, with two resamples: the curve, and a constant."""
  rate, quality = np.array([0, 0.5, 1]), np.array(quality)
  curve = Curve(np.array([np.inf, 1, 0]), rate, quality, COST(rate))
  rates = np.append(RATES, [0.25, 0.0])
  drawn = np.stack([np.interp(rates, rate, quality), np.full(len(rates), 0.7)])
  resamples = Resamples(drawn, np.array([0.6, 0.7]), np.array([0.2, 0.0]))
  return quantities.measure(
    curve, resamples, COST, metric, costs=[4.0, 99.0], qualities=[0.5, 0.75]
  )


def test_quantities_agree_with_numbers_worked_by_hand():
  measurements = measured()
  values = {quantity: m.value for quantity, m in measurements.items() if quantity != QUALITY}
  expected = {
    SMALL: 0.2,
    LARGE: 0.6,
    AREA: 0.6,  # 0.5 (0.2 + 0.8) / 2 + 0.5 (0.8 + 0.6) / 2
    ABOVE_CHORD: 0.2,
    QUALITY_AT(4.0): 0.5,  # a cost of 4 = 2 + 8 r is a rate of 1/4
    QUALITY_AT(99.0): np.nan,
    RATE_AT(0.5): 0.25,
    COST_AT(0.5): 4.0,
    RATE_AT(0.75): 0.5 * 0.55 / 0.6,
    COST_AT(0.75): 2 + 8 * 0.5 * 0.55 / 0.6,
  }
  assert values == pytest.approx(expected, nan_ok=True)
  np.testing.assert_allclose(measurements[QUALITY].value[[0, 25, 50, 100]], [0.2, 0.5, 0.8, 0.6])


def test_resamples_are_measured_like_the_curve():
  measurements = measured()
  for quantity in (SMALL, LARGE, AREA, ABOVE_CHORD, QUALITY_AT(4.0), RATE_AT(0.5), COST_AT(0.5)):
    value, resampled = measurements[quantity]
    assert resampled[0] == pytest.approx(value)
  np.testing.assert_allclose(measurements[RATE_AT(0.5)].resampled, [0.25, 0])
  np.testing.assert_array_equal(measurements[RATE_AT(0.75)].resampled[1], np.inf)
  assert np.isnan(measurements[QUALITY_AT(99.0)].resampled).all()


def test_errors_reach_a_level_from_above():
  measurements = measured((0.8, 0.2, 0.4), metric=metrics.phoneme_error_rate)
  assert measurements[RATE_AT(0.5)].value == pytest.approx(0.25)
  assert measurements[RATE_AT(0.75)].value == pytest.approx(0.5 * 0.05 / 0.6)


def test_differences_are_model_minus_baseline_and_savings_the_other_way():
  better, baseline = measured((0.4, 0.8, 0.6)), measured()
  differences = quantities.differences(better, baseline, confidence=0.9)
  values = {quantity: difference.value for quantity, difference in differences.items()}
  assert values[SMALL] == pytest.approx(0.2)
  assert values[AREA] == pytest.approx(0.05)
  assert values[QUALITY_AT(4.0)] == pytest.approx(0.1)
  assert values[DEFERRALS_SAVED(0.5)] == pytest.approx(0.25 - 0.125)
  assert values[FLOPS_SAVED(0.5)] == pytest.approx(1 - 3 / 4)
  assert QUALITY not in values
  assert LARGE not in values


def test_reaching_a_quality_that_the_baseline_never_reaches_saves_without_bound():
  reached, never = np.array([10.0, 20.0]), np.full(2, np.inf)
  np.testing.assert_array_equal(quantities.share_saved(reached, never), np.inf)
  np.testing.assert_array_equal(quantities.share_saved(never, reached), -np.inf)
  np.testing.assert_allclose(quantities.share_saved(reached, 2 * reached), 0.5)


def test_resamples_that_both_miss_a_quality_count_as_equal():
  model = {RATE_AT(0.9): Measurement(np.array(0.5), np.array([np.inf, 0.5, 0.5, np.inf]))}
  baseline = {RATE_AT(0.9): Measurement(np.array(0.6), np.array([np.inf, 0.6, 0.6, 0.6]))}
  (difference,) = quantities.differences(model, baseline, confidence=0.5).values()
  expected = bootstrap.difference(0.1, np.array([0, 0.1, 0.1, -np.inf]), confidence=0.5)
  assert difference == pytest.approx(expected)
