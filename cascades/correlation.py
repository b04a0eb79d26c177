"""Correlation of answers that are numbers, with similarities from 0 to 5 as in STS-B.

A text that is no number from 0 to 5 counts as -1, as in T5 for texts that are no number at all.
Where all answers are equal, the correlation is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cascades.types import Metric

HIGHEST, NO_NUMBER = 5, -1
LEVELS = HIGHEST - NO_NUMBER + 1
ROUNDING = 1e-11  # a variance below this share of its terms is rounding error


def similarity(text: str) -> float:
  """Number from 0 to 5 that a text consists of; -1 if there is none."""
  try:
    value = float(text)
  except ValueError:
    return NO_NUMBER
  return value if 0 <= value <= HIGHEST else NO_NUMBER


def _moments(targets: Sequence[str], prediction: str) -> Float[np.ndarray, '6']:
  """Summands of n, Sx, Sy, Sxx, Syy and Sxy."""
  x, y = similarity(targets[0]), similarity(prediction)
  return np.array([1, x, y, x * x, y * y, x * y])


def finalize_pearson(sums: Float[np.ndarray, '*M 6']) -> Float[np.ndarray, '*M']:
  """Correlation (n Sxy - Sx Sy) / sqrt((n Sxx - Sx^2) (n Syy - Sy^2)), from the six sums."""
  n, x, y, xx, yy, xy = (sums[..., i] for i in range(6))
  spreads = [
    np.where(n * square - total**2 > ROUNDING * n * square, n * square - total**2, 0)
    for total, square in ((x, xx), (y, yy))
  ]
  return _normalized(n * xy - x * y, spreads[0] * spreads[1])


def _contingency(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
  """Contingency table of one pair of rounded numbers, LEVELS x LEVELS, flattened."""
  counts = np.zeros((LEVELS, LEVELS))
  counts[tuple(round(similarity(text)) - NO_NUMBER for text in (targets[0], prediction))] = 1
  return counts.ravel()


def finalize_spearman(sums: Float[np.ndarray, '*M K']) -> Float[np.ndarray, '*M']:
  """Pearson's correlation of ranks, from contingency tables; ties share their mean rank."""
  table = sums.reshape(*sums.shape[:-1], LEVELS, LEVELS)
  rows, columns = table.sum(axis=-1), table.sum(axis=-2)
  x, y = _centered_ranks(rows), _centered_ranks(columns)
  covariance = ((table @ y[..., None])[..., 0] * x).sum(axis=-1)
  return _normalized(covariance, (rows * x**2).sum(axis=-1) * (columns * y**2).sum(axis=-1))


def _centered_ranks(counts: Float[np.ndarray, '*M L']) -> Float[np.ndarray, '*M L']:
  """Mean rank of each value's occurrences, minus the mean of all ranks."""
  cumulative = np.cumsum(counts, axis=-1)
  return cumulative - (counts + cumulative[..., -1:]) / 2


def _normalized(
  covariance: Float[np.ndarray, '*M'], variances: Float[np.ndarray, '*M']
) -> Float[np.ndarray, '*M']:
  """Covariance over the root of the product of the variances; 0 where that is 0."""
  correlation = np.divide(
    covariance, np.sqrt(variances), out=np.zeros(variances.shape), where=variances > 0
  )
  return np.clip(correlation, -1, 1)


pearson = Metric('pearson', _moments, finalize_pearson)
# Ranks do not add up over examples, but counts of pairs of values do. Exact for integers, such as
# FLAN's answers; other numbers are rounded first, halves to even.
spearman = Metric('spearman', _contingency, finalize_spearman)
