"""Tests and power of differences that are paired over examples and mixed over training seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from cascades import bootstrap
from cascades.curves import Finalize

RATE = 0.2  # of deferral, at which a cascade's quality is read
QUANTITIES = ('area', 'quality at 20 %', 'alone', 'ordering')
ALPHA = 0.05

Verdict = Literal['confirmed', 'refuted', 'undecided']


class Rows(NamedTuple):
  """A small model's answers to the test rows, under a deferral score, and the large model's."""

  score: Float[np.ndarray, 'N']
  small: Float[np.ndarray, 'N K']
  large: Float[np.ndarray, 'N K']


class Effect(NamedTuple):
  """A mean difference over S seeds, its 95 % interval, and the two-sided p-value of no difference.

  Fields: `deviation` is that of the seeds' differences; `row_variance` that of their mean over
  resamples of the rows; `freedom` the degrees of freedom of Student's t.
  """

  mean: float
  low: float
  high: float
  p: float
  error: float
  freedom: float
  deviation: float
  row_variance: float


def quantities(
  rows: Rows, counts: Float[np.ndarray, 'R N'], finalize: Finalize
) -> dict[str, Float[np.ndarray, 'R']]:
  """Each quantity on resamples of the rows.

  `area` is that under the quality over the deferral rate. Models beside one large model share the
  chord from the baseline's own quality, so the difference of their areas is that of their areas
  above this chord. `ordering` is the area above the model's own chord.
  """
  resampled = bootstrap.resample(counts, *rows, finalize, rates=np.array([0.0, RATE]))
  alone, deferring = resampled.quality.T
  values = resampled.area, deferring, alone, resampled.above_chord
  return dict(zip(QUANTITIES, values, strict=True))


def mixed(
  differences: Sequence[float], row_variance: float, rows: int, *, confidence: float = 1 - ALPHA
) -> Effect:
  """Student's t of a mean difference over S seeds on the same N rows, both of which are samples.

      SE^2 = s^2 / S + v,    df = SE^4 / ((s^2 / S)^2 / (S - 1) + v^2 / (N - 1))

  s^2 is the variance of the seeds' differences and v that of their mean over resamples of the rows.
  The part of s^2 that is an interaction of seeds and rows counts in both terms, so the test is
  mildly conservative. Degrees of freedom are Welch's and Satterthwaite's (1946).

  Args:
    differences: One value a seed, each paired over the rows.
    row_variance: v.
    rows: N.
    confidence: Of the interval.

  Returns:
    The effect; of a single seed, with an infinite interval and p = 1.
  """
  count, mean = len(differences), float(np.mean(differences))
  if count < 2:
    return Effect(mean, -math.inf, math.inf, 1.0, math.inf, 0.0, math.nan, row_variance)
  variance = float(np.var(differences, ddof=1))
  parts = variance / count, row_variance
  error = math.sqrt(sum(parts))
  if error == 0:
    return Effect(mean, mean, mean, float(mean == 0), 0.0, count - 1.0, 0.0, 0.0)
  freedom = sum(parts) ** 2 / (parts[0] ** 2 / (count - 1) + parts[1] ** 2 / (rows - 1))
  half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
  p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
  return Effect(
    mean, mean - half, mean + half, p, error, freedom, math.sqrt(variance), row_variance
  )


def verdict(effect: Effect, adjusted: float, margin: float, *, complete: bool) -> Verdict:
  """Verdict of the claim that the effect is above 0.

  Confirmed: above 0 at an adjusted p of at most 0.05. Refuted: below 0 likewise, or the 90 %
  interval ends below the margin, so that the effect is too small to matter (a one-sided test at
  5 %). Undecided: neither, or both, or some planned seeds are not run.
  """
  if not complete or effect.freedom == 0:
    return 'undecided'
  reach = effect.mean + float(stats.t.ppf(1 - ALPHA, effect.freedom)) * effect.error
  significant = adjusted <= ALPHA
  confirmed = significant and effect.mean > 0
  refuted = (significant and effect.mean < 0) or reach < margin
  if confirmed == refuted:
    return 'undecided'
  return 'confirmed' if confirmed else 'refuted'


def power(
  effect: float, deviation: float, seeds: int, *, row_variance: float = 0.0, alpha: float = ALPHA
) -> float:
  """Probability that a two-sided t-test over seeds rejects, if the effect is as large.

  Args:
    effect: The true mean difference.
    deviation: Standard deviation of the seeds' differences.
    seeds: Number of seeds S.
    row_variance: Variance of the mean over samples of the rows; it adds no degrees of freedom here.
    alpha: Level of the test.
  """
  freedom = seeds - 1
  shift = effect / math.sqrt(deviation**2 / seeds + row_variance)
  critical = float(stats.t.ppf(1 - alpha / 2, freedom))
  wrong_side = stats.nct.cdf(-critical, freedom, abs(shift))  # nan where it is below 1e-16
  return float(stats.nct.sf(critical, freedom, abs(shift)) + np.nan_to_num(wrong_side))


def detectable(
  deviation: float, seeds: int, *, row_variance: float = 0.0, alpha: float = ALPHA,
  wanted: float = 0.8,
) -> float:  # fmt: skip
  """The least effect that the test finds with this power."""
  error = math.sqrt(deviation**2 / seeds + row_variance)

  def excess(effect: float) -> float:
    return power(effect, deviation, seeds, row_variance=row_variance, alpha=alpha) - wanted

  return float(optimize.brentq(excess, 0.0, 10 * error))
