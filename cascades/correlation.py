"""Correlation of answers that are numbers, with similarities from 0 to 5 as in STS-B.

A text that is no number from 0 to 5 counts as -1: T5 reads what it cannot parse so, and we do the
same with what is outside or not finite. Where all answers are equal, the correlation is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cascades.types import Metric

HIGHEST, NO_NUMBER = 5, -1
LEVELS = HIGHEST - NO_NUMBER + 1
ROUNDING = 1e-11  # a sum of squares this much below what it is a difference of is nothing


def similarity(text: str) -> float:
  """The number that a text says, from 0 to 5; -1 if it does not."""
  try:
    value = float(text)
  except ValueError:
    return NO_NUMBER
  return value if 0 <= value <= HIGHEST else NO_NUMBER


def _sums(targets: Sequence[str], prediction: str) -> Float[np.ndarray, '6']:
  x, y = similarity(targets[0]), similarity(prediction)
  return np.array([1, x, y, x * x, y * y, x * y])


def finalize_pearson(sums: Float[np.ndarray, '*M 6']) -> Float[np.ndarray, '*M']:
  """(n Sxy - Sx Sy) / sqrt((n Sxx - Sx^2) (n Syy - Sy^2)) of n, Sx, Sy, Sxx, Syy, Sxy."""
  n, x, y, xx, yy, xy = (sums[..., i] for i in range(6))
  spreads = [
    np.where(n * square - total**2 > ROUNDING * n * square, n * square - total**2, 0)
    for total, square in ((x, xx), (y, yy))
  ]
  return _normalized(n * xy - x * y, spreads[0] * spreads[1])


def _cell(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
  """One pair of rounded numbers in a table of LEVELS x LEVELS, as a row."""
  counts = np.zeros((LEVELS, LEVELS))
  counts[tuple(round(similarity(text)) - NO_NUMBER for text in (targets[0], prediction))] = 1
  return counts.ravel()


def finalize_spearman(sums: Float[np.ndarray, '*M K']) -> Float[np.ndarray, '*M']:
  """Pearson's correlation of ranks; equal values share the mean of their ranks."""
  table = sums.reshape(*sums.shape[:-1], LEVELS, LEVELS)
  rows, columns = table.sum(axis=-1), table.sum(axis=-2)
  x, y = _centred_ranks(rows), _centred_ranks(columns)
  together = ((table @ y[..., None])[..., 0] * x).sum(axis=-1)
  return _normalized(together, (rows * x**2).sum(axis=-1) * (columns * y**2).sum(axis=-1))


def _centred_ranks(counts: Float[np.ndarray, '*M L']) -> Float[np.ndarray, '*M L']:
  """The mean rank of each value's occurrences, less the mean rank of all."""
  upto = np.cumsum(counts, axis=-1)
  return upto - (counts + upto[..., -1:]) / 2


def _normalized(
  together: Float[np.ndarray, '*M'], product: Float[np.ndarray, '*M']
) -> Float[np.ndarray, '*M']:
  found = np.divide(together, np.sqrt(product), out=np.zeros(product.shape), where=product > 0)
  return np.clip(found, -1, 1)


pearson = Metric('pearson', _sums, finalize_pearson)
# Ranks do not add up over examples, but counts of pairs of values do: exact for integers, such as
# FLAN's answers; others are rounded first, halves to the even side.
spearman = Metric('spearman', _cell, finalize_spearman)
