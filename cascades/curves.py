"""Deferral curves: quality against cost over every threshold that a score can be cut at.

Equations (4) to (6) and (9) of Wang et al. 2024, https://arxiv.org/abs/2406.00060: the large model
answers where score >= threshold. Quality is `finalize` of summed statistics, so each curve is a
sort and a cumulative sum, exact for corpus metrics too. Examples of equal score defer together:
a threshold cannot split them, and no point pretends to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from cascades.types import Curve

Score = Float[np.ndarray, 'N']
Statistics = Float[np.ndarray, 'N K']
Points = Float[np.ndarray, 'M']
Finalize = Callable[[Float[np.ndarray, '*M K']], Float[np.ndarray, '*M']]
Cost = Callable[[Float[np.ndarray, '*M']], Float[np.ndarray, '*M']]


def deferral_curve(
  score: Score, small: Statistics, large: Statistics, finalize: Finalize, cost: Cost
) -> Curve:
  """Every reachable point, from none deferred (threshold inf) to all.

  quality_k = finalize(sum_{deferred} large + sum_{kept} small), where the k of highest score are
  deferred; `cost` maps deferral rates to costs.
  """
  order, deferred = reachable(score)
  gain = np.cumsum((large - small)[order], axis=0)[deferred - 1]
  kept = small.sum(axis=0)
  sums = np.vstack([kept, kept + gain])
  rate = np.append(0, deferred) / len(score)
  threshold = np.append(np.inf, score[order[deferred - 1]])
  return Curve(threshold, rate, finalize(sums), cost(rate))


def reachable(score: Score) -> tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'M']]:
  """The order in which examples defer, and how many have at each distinct score, going down."""
  if not len(score) or not np.isfinite(score).all():
    raise ValueError(
      f'A score gives each of one or more examples a finite number; of {len(score)} numbers, '
      f'{np.sum(~np.isfinite(score))} are not finite. Map them to how early they should defer.'
    )
  order = np.argsort(-score, kind='stable')
  last_of_equals = np.append(np.diff(score[order]) != 0, True)
  return order, np.flatnonzero(last_of_equals) + 1


def decomposition(
  score: Score, small: Score, large: Score
) -> tuple[Float[np.ndarray, 'M'], Float[np.ndarray, 'M']]:
  """Who contributes what to the mean quality at each point of the curve: (A1, A2), equation (9).

      A1 = (1/N) sum_{kept} small_i,    A2 = (1/N) sum_{deferred} large_i

  Takes qualities of single examples. Unnormalised: A1 + A2 is the mean quality. Compare models at
  equal deferral rate, not at equal threshold.
  """
  order, deferred = reachable(score)
  ends = np.append(0, deferred)
  left = np.append(0, np.cumsum(small[order]))[ends]
  answered = np.append(0, np.cumsum(large[order]))[ends]
  return (left[-1] - left) / len(score), answered / len(score)


def area(curve: Curve) -> float:
  """Mean quality over the deferral rate: trapezoids between reachable points."""
  return float(np.trapezoid(curve.quality, curve.deferral_rate))


def area_above_chord(curve: Curve) -> float:
  """Area above the line between the models alone, which random deferral gives on average."""
  return area(curve) - float(curve.quality[0] + curve.quality[-1]) / 2


def quality_at_cost(curve: Curve, cost: float) -> float:
  """Linear between points; nan where no threshold costs so little or so much."""
  return float(np.interp(cost, curve.cost, curve.quality, left=np.nan, right=np.nan))


def cost_at_quality(curve: Curve, quality: float, *, higher_is_better: bool = True) -> float:
  """The least cost that reaches the quality, linear between points; nan if none does."""
  sign = 1 if higher_is_better else -1
  return float(first_reaching(curve.cost, sign * curve.quality, sign * quality))


def first_reaching(
  x: Float[np.ndarray, '*M P'], y: Float[np.ndarray, '*M P'], level: float
) -> Float[np.ndarray, '*M']:
  """The least x at which the line through (x, y) is at `level` or above; nan if it never is."""
  at = np.argmax(y >= level, axis=-1)[..., None]
  before = np.maximum(at - 1, 0)
  (x0, y0), (x1, y1) = (
    (np.take_along_axis(np.broadcast_to(x, y.shape), k, -1), np.take_along_axis(y, k, -1))
    for k in (before, at)
  )
  # At the first point there is no step to go up, and none is divided by.
  share = np.where(at > 0, (level - y0) / np.where(y1 > y0, y1 - y0, 1), 0)
  return np.where(y1 >= level, x0 + share * (x1 - x0), np.nan)[..., 0]


def deferrals_saved(
  ours: Curve, theirs: Curve, quality: float, *, higher_is_better: bool = True
) -> float:
  """How much less often `ours` defers at equal quality: d_theirs(q) - d_ours(q)."""
  rates = [
    cost_at_quality(
      curve._replace(cost=curve.deferral_rate), quality, higher_is_better=higher_is_better
    )
    for curve in (theirs, ours)
  ]
  return rates[0] - rates[1]


def flops_saved(
  ours: Curve, theirs: Curve, quality: float, *, higher_is_better: bool = True
) -> float:
  """The share of the cost that `ours` saves at equal quality: 1 - C_ours(q) / C_theirs(q)."""
  cheap, dear = (
    cost_at_quality(curve, quality, higher_is_better=higher_is_better) for curve in (ours, theirs)
  )
  return 1 - cheap / dear


def threshold_for(curve: Curve, budget: float) -> float:
  """The threshold that defers most without deferring more than a share `budget` of examples."""
  within = np.searchsorted(curve.deferral_rate, budget, side='right') - 1
  return float(curve.threshold[within])


def thinned(length: int, points: int) -> Int[np.ndarray, 'P']:
  """Which points of a long curve to draw: evenly spaced along it, ends included."""
  return np.unique(np.linspace(0, length - 1, min(length, points)).round().astype(int))


def stack_tasks(statistics: Sequence[Statistics]) -> Statistics:
  """Statistics of several tasks, one below the other, each in columns of its own."""
  sizes, widths = zip(*(one.shape for one in statistics), strict=True)
  stacked = np.zeros((sum(sizes), sum(widths)))
  for one, row, column in zip(
    statistics, np.cumsum(sizes) - sizes, np.cumsum(widths) - widths, strict=True
  ):
    stacked[row : row + len(one), column : column + one.shape[1]] = one
  return stacked


def mean_over_tasks(
  finalizes: Sequence[Finalize], widths: Sequence[int], weights: Sequence[float]
) -> Finalize:
  """Finishes stacked statistics: each task by its own metric, then their weighted mean.

  Weights of the tasks' sizes make a mean over all examples of a mean over examples; equal weights
  are usual for corpus metrics such as BLEU.
  """
  edges = np.cumsum(np.append(0, widths))
  shares = np.asarray(weights, float) / np.sum(weights)

  def finalize(sums: Float[np.ndarray, '*M K']) -> Float[np.ndarray, '*M']:
    return sum(
      share * one(sums[..., start:stop])
      for share, one, start, stop in zip(shares, finalizes, edges, edges[1:], strict=False)
    )

  return finalize
