"""Calibration: monotone, equal to the reference, and of the least loss."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from sklearn.isotonic import IsotonicRegression

from cascades import score_calibration

pairs = st.lists(
  st.tuples(st.floats(-5, 5), st.sampled_from([0.0, 1.0])), min_size=3, max_size=30
).map(lambda rows: np.array(rows).T)


@given(pairs)
def test_isotonic_regression_is_that_of_scikit_learn_and_monotone(rows):
  score, target = rows
  knots = score_calibration.fit_isotonic(score, target)
  grid = np.linspace(-6, 6, 50)
  values = score_calibration.apply_isotonic(knots, grid)
  expected = IsotonicRegression(out_of_bounds='clip').fit(score, target).predict(grid)
  np.testing.assert_allclose(values, expected, atol=1e-9)
  assert (np.diff(values) >= 0).all()


def test_isotonic_regression_agrees_with_numbers_worked_by_hand():
  """Targets 0, 1, 0, 1 at 1, 2, 3, 4: the violators 2 and 3 share their mean."""
  knots = score_calibration.fit_isotonic(np.arange(1.0, 5), np.array([0.0, 1, 0, 1]))
  values = score_calibration.apply_isotonic(knots, np.array([0.0, 1, 1.5, 2, 3, 9]))
  np.testing.assert_allclose(values, [0, 0, 0.25, 0.5, 0.5, 1])


def test_the_temperature_has_the_least_loss():
  rng = np.random.default_rng(0)
  log_odds = rng.normal(size=4000) * 2
  target = (rng.random(4000) < score_calibration.probability(log_odds / 2.5)).astype(float)
  temperature = score_calibration.fit_temperature(log_odds, target)
  assert temperature == pytest.approx(2.5, rel=0.1)

  def loss(t):
    p = score_calibration.probability(log_odds / t)
    return -np.mean(np.where(target == 1, np.log(p), np.log(1 - p)))

  grid = np.geomspace(0.5, 10, 400)
  assert loss(temperature) <= min(map(loss, grid)) + 1e-12


def test_the_temperature_agrees_with_a_number_worked_by_hand():
  """Log-odds +-1, right three times in four: sigmoid(1 / T) = 3/4, so T = 1 / log 3."""
  temperature = score_calibration.fit_temperature(
    np.array([1.0, 1, 1, -1]), np.array([1.0, 1, 0, 0])
  )
  assert temperature == pytest.approx(1 / np.log(3), rel=1e-6)


@given(st.lists(st.floats(1e-9, 500), min_size=2, max_size=9, unique=True))
def test_log_odds_keep_the_order_of_scores(values):
  r = np.sort(values)
  assert (np.diff(score_calibration.log_odds_of_surprise(r)) >= 0).all()
  p = np.exp(-r[r < 30])
  np.testing.assert_allclose(
    score_calibration.log_odds_of_surprise(r[r < 30]),
    np.log1p(-p) - np.log(p),
    rtol=1e-6,
    atol=1e-9,
  )


def test_log_odds_are_finite_at_the_ends():
  assert np.isfinite(score_calibration.log_odds(np.array([0.0, 0.5, 1.0]))).all()
  assert np.isfinite(score_calibration.log_odds_of_surprise(np.array([0.0, 1e300]))).all()
