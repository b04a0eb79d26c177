"""Tests of several comparisons at once, and of single points of two cascades."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special


class McNemar(NamedTuple):
  """Examples that exactly one of two answers gets right, and the exact two-sided p-value."""

  first_only: int
  second_only: int
  p: float


def holm(p: Float[np.ndarray, 'M']) -> Float[np.ndarray, 'M']:
  """Adjusts p-values so that all M comparisons together err with the probability of one.

      adjusted_(i) = max_{j <= i} min(1, (M - j + 1) p_(j)),    p_(1) <= ... <= p_(M)

  Rejecting every hypothesis with an adjusted p-value of at most alpha rejects a true one with
  probability at most alpha, however the tests depend on each other. Holm 1979.

  Args:
    p: P-values of one family of comparisons.

  Returns:
    Adjusted p-values in the same order, none of them below its p-value.
  """
  p = np.asarray(p, float)
  order = np.argsort(p, kind='stable')
  adjusted = np.empty(len(p))
  scaled = np.minimum(1, np.arange(len(p), 0, -1) * p[order])
  adjusted[order] = np.maximum.accumulate(scaled)
  return adjusted


def mcnemar(first: Bool[np.ndarray, 'N'], second: Bool[np.ndarray, 'N']) -> McNemar:
  """Exact test of two systems' right and wrong answers to the same examples.

      p = min(1, 2 P(X <= min(b, c))),    X ~ Binomial(b + c, 1/2)

  b and c count the examples that only the first or only the second gets right; the others say
  nothing about the difference. McNemar 1947. Examples are taken as independent, and both systems as
  chosen before looking at them.

  Args:
    first: Examples that the first system gets right.
    second: Examples that the second system gets right.
  """
  first_only, second_only = int(np.sum(first & ~second)), int(np.sum(second & ~first))
  fewer, discordant = min(first_only, second_only), first_only + second_only
  p = min(1.0, 2 * float(special.bdtr(fewer, discordant, 0.5)))
  return McNemar(first_only, second_only, p)
