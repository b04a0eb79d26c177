"""Calibration of a score: a monotone map from the score to the expected target.

    isotonic     the monotone step function of least squares (Zadrozny and Elkan 2002,
                 https://doi.org/10.1145/775047.775151), linear between its steps
    temperature  log-odds divided by one number (Guo et al. 2017, https://arxiv.org/abs/1706.04599)

A temperature keeps the order of the scores; isotonic regression may make scores equal, and never
changes an order. Fit on other rows than the model that gives the scores, or they look too good.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, 'N']

TINY = float(np.finfo(float).tiny)


def fit_isotonic(score: Values, target: Values) -> Float[np.ndarray, '2 m']:
  """Knots (scores, values) of the isotonic regression of the target on the score.

  Args:
    score: Scores, in any order.
    target: What is expected to grow with them, for example 1 where the answer is wrong.
  """
  from sklearn import isotonic

  model = isotonic.IsotonicRegression(out_of_bounds='clip').fit(score, target)
  return np.stack([model.X_thresholds_, model.y_thresholds_]).astype(float)


def apply_isotonic(knots: Float[np.ndarray, '2 m'], score: Values) -> Values:
  """Values between the knots; those of the first and the last beyond them."""
  return np.interp(score, knots[0], knots[1])


def fit_temperature(log_odds: Values, target: Values) -> float:
  """Temperature T > 0 of the least negative log-likelihood of sigmoid(log_odds / T).

  The likelihood is convex in 1 / T; where it grows without end, T ends at a bound of 1e-6 or 1e6.

  Args:
    log_odds: Log-odds that the target is 1.
    target: 0 or 1, or a share.
  """
  from scipy import optimize

  def loss(log_temperature: float) -> float:
    z = log_odds / np.exp(log_temperature)
    return float(np.mean(np.logaddexp(0.0, z) - target * z))

  bounds = (np.log(1e-6), np.log(1e6))
  result = optimize.minimize_scalar(loss, bounds=bounds, method='bounded', options={'xatol': 1e-10})
  return float(np.exp(result.x))


def log_odds(probability: Values) -> Values:
  """log(p / (1 - p)), finite also at 0 and 1."""
  p = np.asarray(probability, float)
  return np.log(np.maximum(p, TINY)) - np.log(np.maximum(1.0 - p, TINY))


def log_odds_of_surprise(r: Values) -> Values:
  """Log-odds of 1 - exp(-r), the probability of any other answer than one of log-probability -r."""
  r = np.maximum(np.asarray(r, float), TINY)
  return np.where(
    r > 1.0, r + np.log1p(-np.exp(-np.maximum(r, 1.0))), np.log(np.expm1(np.minimum(r, 1.0)))
  )


def probability(log_odds: Values) -> Values:
  """1 / (1 + exp(-z))."""
  z = np.asarray(log_odds, float)
  with np.errstate(over='ignore'):
    return 1.0 / (1.0 + np.exp(-z))
