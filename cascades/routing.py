"""Routing before an answer, routing together with cascading, and abstention.

A router decides from the prompt alone and pays for one answer; a cascade sees the small answer, and
pays for it too where it is discarded. Both are thresholds, and both are rules of `union`:

    r(x) >= a    the large model answers, the small one never runs
    s(x) >= b    else, after the small answer: the large model answers too

so that the best rules of a fit split are never below a router (b = inf) or a cascade (a = inf) at
equal cost there. The idea is of Dekoninck et al. 2024, https://arxiv.org/abs/2410.10347, who choose
by estimated quality minus a price of cost at each step; thresholds in the place of their estimates
are of this package, and need no calibrated estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import curve_metrics, curves

Values = Float[np.ndarray, 'N']
Statistics = Float[np.ndarray, 'N S']
Finalize = Callable[[Float[np.ndarray, '*M S']], Float[np.ndarray, '*M']]

MOST_THRESHOLDS = 64  # of the outer of two thresholds; the inner one takes every value
PRICES = 32  # besides 0, of the choice among models
LEAST_GAIN = 1e-3  # of quality, that prices are scaled by
MOST_CELLS = 1 << 24  # rows times neighbors whose similarities are computed at a time


def shrunk_gain(gains: Float[np.ndarray, 'N k'], mean: float) -> Values:
  """Gain of the large model among neighbors, with the guard of the pinned model in one score.

      m = mean_j d_j,    e = std_j(d_j) / sqrt(k)
      score = mean + sign(m - mean) max(|m - mean| - e, 0)

  At a price p of deferral, the pinned model is the better one of the fit split: the large one iff
  mean > p. The guard keeps it unless the paired gain of the other among the neighbors, m - p or
  p - m, exceeds its standard error e. Over all prices, this is the threshold score >= p.

  Args:
    gains: Paired gains d = Q_L - Q_S of the k nearest rows of the fit split.
    mean: Mean gain on the fit split.
  """
  error = standard_error(gains)
  difference = gains.mean(axis=1) - mean
  return mean + np.sign(difference) * np.maximum(np.abs(difference) - error, 0.0)


def guarded_choice(
  quality: Float[np.ndarray, 'N k K'], fit_quality: Float[np.ndarray, 'K'],
  cost: Float[np.ndarray, 'K'], *, price: float,
) -> Int[np.ndarray, 'N']:  # fmt: skip
  """Model of each prompt, of K models, from the qualities of its k neighbors.

  The pinned model maximizes fit_quality - price cost; it is kept unless the mean paired gain of the
  best other one among the neighbors exceeds its standard error. Of equals, the first wins.

  Args:
    quality: Quality of each model's answers to the neighbors.
    fit_quality: Mean quality of each model on the fit split.
    cost: Cost of each model.
    price: Quality that a unit of cost must gain.
  """
  pinned = int(np.argmax(fit_quality - price * cost))
  best = np.argmax(quality.mean(axis=1) - price * cost, axis=1)
  chosen = np.take_along_axis(quality, best[:, None, None], axis=2)[..., 0]
  gains = chosen - quality[..., pinned] - price * (cost[best] - cost[pinned])[:, None]
  return np.where(gains.mean(axis=1) > standard_error(gains), best, pinned)


def prices(quality: Float[np.ndarray, 'K'], cost: Float[np.ndarray, 'K']) -> Float[np.ndarray, 'P']:
  """Falling prices of a unit of cost, from far above the models' gain of quality by cost to 0.

  Args:
    quality: Mean quality of each model.
    cost: Mean cost of each model.
  """
  if not np.ptp(cost):
    return np.zeros(1)
  ratio = max(float(np.ptp(quality)), LEAST_GAIN) / float(np.ptp(cost))
  return ratio * np.append(np.logspace(3, -3, PRICES), 0.0)


def standard_error(gains: Float[np.ndarray, 'N k']) -> Values:
  """Standard error of the mean of each row; inf of a single value, which has none."""
  k = gains.shape[1]
  return gains.std(axis=1, ddof=1) / np.sqrt(k) if k > 1 else np.full(len(gains), np.inf)


def nearest(
  queries: Float[np.ndarray, 'N D'], keys: Float[np.ndarray, 'M D'], k: int
) -> Int[np.ndarray, 'N k']:
  """Indices of the k keys of highest cosine similarity, the first of equals, best first.

  Similarities are rounded to 1e-9, so that the rounding of a matrix product makes no order.
  """
  queries, keys = _directions(queries), _directions(keys)
  step = max(1, MOST_CELLS // len(keys))
  blocks = [
    np.argsort(-np.round(queries[start : start + step] @ keys.T, 9), axis=1, kind='stable')[:, :k]
    for start in range(0, len(queries), step)
  ]
  return np.concatenate(blocks)


def _directions(rows: Float[np.ndarray, 'N D']) -> Float[np.ndarray, 'N D']:
  length = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.where(length > 0, length, 1.0)


class Costs(NamedTuple):
  """Costs of rows: of either answer, and of deciding before and after the small one.

  Without `discarded`, small answers that the large model's replace cost nothing.
  """

  small: Values
  large: Values
  before: float = 0.0
  after: float = 0.0
  discarded: bool = True

  @property
  def deferring(self) -> Values:
    """Cost that the large model adds to rows with a small answer."""
    return self.large if self.discarded else self.large - self.small


class Points(NamedTuple):
  """Rules of two thresholds with their cost and quality, by ascending cost."""

  first: Float[np.ndarray, 'M']
  second: Float[np.ndarray, 'M']
  cost: Float[np.ndarray, 'M']
  quality: Float[np.ndarray, 'M']


def union(
  before: Values, after: Values, small: Statistics, large: Statistics,
  finalize: Finalize, costs: Costs, *, most: int = MOST_THRESHOLDS,
) -> Points:  # fmt: skip
  """Rules (a, b) that send prompts of r >= a to the large model, and defer answers of s >= b.

  Every a with b = inf, every b with a = inf, and every b with `most` quantiles of a. A rule pays
  for the decisions that it takes: none before the answer if a = inf, none after it if b = inf.

  Args:
    before: Score r of each prompt, of a router.
    after: Score s of each small answer.
    small: Statistics of the small model's answers.
    large: Statistics of the large model's answers.
    finalize: Quality of summed statistics, higher is better.
    costs: Costs of each row.
    most: Number of quantiles of a that are crossed with b.

  Returns:
    All rules, of which `envelope` keeps the best.

  Raises:
    ValueError: if there is no row, or a score is not finite.
  """
  order, counts = curves.reachable(before)
  chosen = np.append(0, counts[curves.evenly_spaced(len(counts), most)])
  pieces = [_router(before, small, large, finalize, costs)]
  for direct in chosen:
    rest = np.sort(order[direct:])
    if not len(rest):
      continue
    a = before[order[direct - 1]] if direct else np.inf
    gone = order[:direct]
    deciding = costs.before if direct else 0.0
    base = np.sum(costs.large[gone] + deciding) + np.sum(costs.small[rest] + deciding)
    inner, deferred = curves.reachable(after[rest])
    ends = np.append(0, deferred)
    added = np.append(0, np.cumsum(costs.deferring[rest][inner]))[ends]
    looking = np.where(ends > 0, costs.after * len(rest), 0.0)
    gain = np.vstack([0 * small[:1], np.cumsum((large - small)[rest][inner], axis=0)])[ends]
    sums = large[gone].sum(axis=0) + small[rest].sum(axis=0) + gain
    b = np.append(np.inf, after[rest][inner[deferred - 1]])
    cost = (base + added + looking) / len(before)
    pieces.append(Points(np.full(len(b), a), b, cost, finalize(sums)))
  return _by_cost(pieces)


def _router(
  before: Values, small: Statistics, large: Statistics, finalize: Finalize, costs: Costs
) -> Points:
  cost = curves.cost_by_rate(before, costs.small + costs.before, costs.large - costs.small)
  curve = curves.deferral_curve(before, small, large, finalize, cost)
  routed = slice(1, None)  # without a decision, nothing is paid for it
  never = np.full(len(curve.cost) - 1, np.inf)
  return Points(curve.threshold[routed], never, curve.cost[routed], curve.quality[routed])


def apply(
  rules: Points, before: Values, after: Values, small: Statistics, large: Statistics,
  finalize: Finalize, costs: Costs,
) -> Points:  # fmt: skip
  """Cost and quality of rules on other rows, such as those of a report, in their order."""
  cost, sums = [], []
  for a, b in zip(rules.first, rules.second, strict=True):
    answers, paid = decide(a, b, before, after, costs)
    cost.append(np.mean(paid))
    sums.append(np.where(answers[:, None] == 1, large, small).sum(axis=0))
  return rules._replace(cost=np.array(cost), quality=finalize(np.array(sums)))


def decide(
  a: float, b: float, before: Values, after: Values, costs: Costs
) -> tuple[Int[np.ndarray, 'N'], Values]:
  """Model of each row under a rule of `union`, 0 or 1, and the cost of the row."""
  direct = before >= a
  deferred = ~direct & (after >= b)
  deciding = costs.before * np.isfinite(a) + costs.after * np.isfinite(b) * ~direct
  paid = deciding + np.where(direct, costs.large, costs.small + deferred * costs.deferring)
  return (direct | deferred).astype(int), paid


def decide_or_abstain(
  a: float, b: float, score: Values, costs: Costs
) -> tuple[Int[np.ndarray, 'N'], Values]:
  """Model of each row under a rule of `with_abstention`, 2 for nobody, and the cost of the row."""
  nobody, deferred = score >= a, score >= b
  paid = costs.small + costs.after * np.isfinite(b) + (deferred & ~nobody) * costs.deferring
  return np.where(nobody, 2, deferred.astype(int)), paid


def with_abstention(
  score: Values, small: Values, large: Values, costs: Costs, *, value: float | Values,
  most: int = MOST_THRESHOLDS,
) -> Points:  # fmt: skip
  """Rules (a, b), a >= b, that abstain where s >= a and else defer where s >= b.

  Nobody answers a row of s >= a: its quality is `value`, and it pays for the small answer alone.
  With a = inf, rules are the deferral curve, and a = b never asks the large model.

  Args:
    score: Score s of each small answer; the hardest rows abstain.
    small: Quality of each answer of the small model.
    large: Quality of each answer of the large model.
    costs: Costs of each row; `before` is not charged.
    value: Quality of a row without an answer, or of each: 1 - p at a price p of abstaining.
    most: Number of quantiles of a, besides inf.

  Returns:
    All rules, of which `envelope` keeps the best.

  Raises:
    ValueError: if there is no row, or a score is not finite.
  """
  order, counts = curves.reachable(score)
  ends = np.append(0, counts)
  threshold = np.append(np.inf, score[order[counts - 1]])
  gain = np.append(0, np.cumsum((large - small)[order]))[ends]
  own = np.append(0, np.cumsum(small[order]))[ends]
  extra = np.append(0, np.cumsum(costs.deferring[order]))[ends]
  unanswered = np.append(0, np.cumsum(np.broadcast_to(value, score.shape)[order]))[ends]
  base = np.sum(costs.small) + np.where(ends > 0, costs.after * len(score), 0.0)
  pieces = []
  for index in np.append(0, 1 + curves.evenly_spaced(len(counts), most)):
    inner = slice(index, None)
    quality = own[-1] - own[index] + unanswered[index] + gain[inner] - gain[index]
    cost = base[inner] + extra[inner] - extra[index]
    a = np.full(len(quality), threshold[index])
    pieces.append(Points(a, threshold[inner], cost / len(score), quality / len(score)))
  return _by_cost(pieces)


def envelope(points: Points) -> Points:
  """Rules on the upper concave hull of quality over cost, from the cheapest to the best.

  Between two of them, drawing one at random gives what lies on the line.
  """
  corners = curve_metrics.hull_points(points.cost, points.quality)
  return Points(*(column[corners] for column in points))


def _by_cost(pieces: list[Points]) -> Points:
  """All points by ascending cost, the best of equal cost first."""
  joined = Points(*map(np.concatenate, zip(*pieces, strict=True)))
  order = np.lexsort((-joined.quality, joined.cost))
  return Points(*(column[order] for column in joined))
