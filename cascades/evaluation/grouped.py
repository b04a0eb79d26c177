"""Rows that are right only together, as all answers to one question of MultiRC are.

The share of groups that are wholly right (exact match by question) is no sum over rows. But in the
order of one score the rows of a group defer one after another, and each makes its group right,
wrong, or neither: given the order, there are statistics of rows that a curve can be summed from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cascades import bootstrap, curves
from cascades.bootstrap import Estimate
from cascades.curves import Scores, Statistics
from cascades.metrics import ratio


class Shares(NamedTuple):
  """The share of groups wholly right, by either model alone and by their cascade."""

  groups: int
  small: Estimate
  large: Estimate
  area: Estimate  # of the cascade's curve over the deferral rate of rows
  above_chord: Estimate


def statistics(
  score: Scores,
  groups: Sequence[str],
  small: Bool[np.ndarray, 'N'],
  large: Bool[np.ndarray, 'N'],
) -> tuple[Statistics, Statistics]:
  """Of (groups right, groups), for `curves.deferral_curve` under this score and no other.

      small_i = (v_0, 1) if i is the first of its group to defer, (0, 0) if not
      large_i = small_i + (v_j - v_(j-1), 0) if i is the j-th

  v_j is 1 if the group is wholly right once j of its rows have deferred, else 0. Sums telescope,
  so rows of equal score may defer in any order. `small` and `large` say which rows are right.
  Rows are not to be resampled one by one: `shares` draws whole groups.
  """
  order, _ = curves.reachable(score)
  number = _numbered(groups)
  rows = order[np.argsort(number[order], kind='stable')]  # group by group, as they defer
  group = number[rows]
  change = small[rows].astype(int) - large[rows].astype(int)  # of how many rows are wrong
  earlier = np.cumsum(np.bincount(group, change)) - np.bincount(group, change)
  after = np.bincount(group, ~small[rows])[group] + np.cumsum(change) - earlier[group]
  before = after - change
  first = np.diff(group, prepend=-1) > 0
  ours = np.zeros((len(rows), 2))
  ours[rows] = np.stack([first & (before == 0), first], axis=1)
  theirs = ours.copy()
  theirs[rows, 0] += (after == 0).astype(int) - (before == 0)
  return ours, theirs


def shares(
  score: Scores,
  groups: Sequence[str],
  small: Bool[np.ndarray, 'N'],
  large: Bool[np.ndarray, 'N'],
  *,
  resamples: int,
  confidence: float,
  seed: int,
) -> Shares:
  """With percentile intervals over resampled groups."""
  ours, theirs = statistics(score, groups, small, large)
  curve = curves.deferral_curve(score, ours, theirs, ratio, lambda rate: rate)
  number = _numbered(groups)
  size = 1 + int(number.max())
  counts = bootstrap.draw([size], resamples=resamples, seed=seed)[:, number]
  drawn = bootstrap.resample(counts, score, ours, theirs, ratio, rates=np.zeros(1))
  low, high = drawn.quality[:, 0], ratio(bootstrap.totals(counts, theirs))
  # A resample of groups has more or fewer rows than there are, and its curve is as much wider.
  area = drawn.area / counts.mean(axis=1)

  def estimate(value: float, resampled: Float[np.ndarray, 'R']) -> Estimate:
    return bootstrap.estimate(value, resampled, confidence=confidence)

  return Shares(
    groups=size,
    small=estimate(float(curve.quality[0]), low),
    large=estimate(float(curve.quality[-1]), high),
    area=estimate(curves.area(curve), area),
    above_chord=estimate(curves.area_above_chord(curve), area - (low + high) / 2),
  )


def _numbered(groups: Sequence[str]) -> Int[np.ndarray, 'N']:
  """Each row's group as a number, counting from 0 in order of appearance."""
  numbers: dict[str, int] = {}
  return np.array([numbers.setdefault(name, len(numbers)) for name in groups])
