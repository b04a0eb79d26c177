import numpy as np
import pytest

from cascades import costs, curves, metrics


def test_costs_agree_with_numbers_worked_by_hand():
  assert costs.flops_per_token(1_000_000) == 2e6
  assert costs.cascade(np.array(0.25), small=2.0, large=8.0) == 4.0
  assert costs.query(np.array([3]), np.array([2]), flops_per_token=10.0) == [50.0]


def test_deferring_everything_still_pays_for_the_small_model():
  np.testing.assert_array_equal(costs.cascade(np.array([0, 1]), small=2.0, large=8.0), [2, 10])


def test_the_deferral_rate_is_the_inverse_of_the_cost():
  rates = np.linspace(0, 1, 7)
  cost = costs.cascade(rates, small=3.0, large=11.0)
  np.testing.assert_allclose(costs.deferral_rate(cost, small=3.0, large=11.0), rates)
  assert costs.deferral_rate(np.array(1.0), small=3.0, large=11.0) < 0


def test_the_cost_per_query_is_a_curve_of_its_own():
  generator = np.random.default_rng(0)
  prompt, short, long = (generator.integers(1, 20, size=40) for _ in range(3))
  small = costs.query(prompt, short, flops_per_token=2.0)
  large = small + costs.query(prompt, long, flops_per_token=16.0)
  score = generator.integers(0, 9, size=40).astype(float)
  ones = np.ones(40)
  curve = curves.deferral_curve(
    score, np.stack([small, ones], 1), np.stack([large, ones], 1), metrics.ratio, lambda rate: rate
  )
  for threshold, cost in zip(curve.threshold, curve.quality, strict=True):
    expected = np.where(score >= threshold, large, small).mean()
    assert cost == pytest.approx(expected)
