"""Deferral curves: quality against cost at every threshold of a deferral score.

Equations (4) to (6) and (9) of Wang et al. 2024, https://arxiv.org/abs/2406.00060: the large model
answers where score >= threshold. Quality is `finalize` of summed statistics, so each curve is a
sort and a cumulative sum, exact for corpus metrics too. Examples of equal score defer together,
since no threshold separates them.

A table of four examples, of which the small model answers the first and the last correctly, and
the large model the first three. Statistics are (correct, 1) and the quality is their ratio, the
accuracy. Scores are minus the small model's confidence, so the least confident example, the second
one, defers first. The costs of the models are 2 and 8 FLOPs per token.

>>> confidence = np.array([0.9, 0.1, 0.5, 0.3])
>>> small = np.array([[1, 1], [0, 1], [0, 1], [1, 1]])
>>> large = np.array([[1, 1], [1, 1], [1, 1], [0, 1]])
>>> accuracy = lambda sums: sums[..., 0] / sums[..., 1]
>>> curve = deferral_curve(-confidence, small, large, accuracy, lambda rate: 2 + 8 * rate)
>>> curve.threshold
array([ inf, -0.1, -0.3, -0.5, -0.9])
>>> curve.deferral_rate
array([0.  , 0.25, 0.5 , 0.75, 1.  ])
>>> curve.quality
array([0.5 , 0.75, 0.5 , 0.75, 0.75])
>>> curve.cost
array([ 2.,  4.,  6.,  8., 10.])

One deferral in four corrects the second example, at a cost of 4 instead of 2; the next one replaces
a correct answer by a wrong one.

>>> threshold_for(curve, budget=0.3)
-0.1
>>> area_above_chord(curve)
0.03125
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from cascades.types import Curve

Scores = Float[np.ndarray, 'N']
Statistics = Float[np.ndarray, 'N K']
Points = Float[np.ndarray, 'M']
Finalize = Callable[[Float[np.ndarray, '*M K']], Float[np.ndarray, '*M']]
Cost = Callable[[Float[np.ndarray, '*M']], Float[np.ndarray, '*M']]


def deferral_curve(
  score: Scores, small: Statistics, large: Statistics, finalize: Finalize, cost: Cost
) -> Curve:
  """Curve of all reachable points, from no deferral (threshold inf) to full deferral.

      quality_k = finalize(sum_{deferred} large_i + sum_{not deferred} small_i)

  where the k examples of highest score are deferred.

  Args:
    score: Deferral score of each example; the highest defers first.
    small: Statistics of the small model's answers.
    large: Statistics of the large model's answers to the same examples, in the same order.
    finalize: Quality of summed statistics, as in `Metric.finalize`.
    cost: Maps deferral rates to costs, in any unit: see `costs.cascade`.

  Returns:
    A curve of M points, one for no deferral and one for each distinct score.

  Raises:
    ValueError: if there is no example, or a score is not finite.
  """
  order, deferred = reachable(score)
  gain = np.cumsum((large - small)[order], axis=0)[deferred - 1]
  small_alone = small.sum(axis=0)
  sums = np.vstack([small_alone, small_alone + gain])
  rate = np.append(0, deferred) / len(score)
  threshold = np.append(np.inf, score[order[deferred - 1]])
  return Curve(threshold, rate, finalize(sums), cost(rate))


def reachable(score: Scores) -> tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'M']]:
  """Order of deferral, and number of examples deferred at each distinct score.

  Args:
    score: Deferral score of each example.

  Returns:
    Indices of the examples from the highest score to the lowest, equal scores in their given order;
    and the number of examples that are deferred at each distinct score, from the highest to the
    lowest.

  Raises:
    ValueError: if there is no example, or a score is not finite.
  """
  if not len(score) or not np.isfinite(score).all():
    raise ValueError(
      f'{np.sum(~np.isfinite(score))} of {len(score)} scores are not finite; a curve needs one or '
      'more examples and a finite score for each. Replace them by finite scores; the highest score '
      'defers first.'
    )
  order = np.argsort(-score, kind='stable')
  last_of_equals = np.append(np.diff(score[order]) != 0, True)
  return order, np.flatnonzero(last_of_equals) + 1


def cost_by_rate(score: Scores, base: Scores, extra: Scores) -> Cost:
  """Mean cost at each deferral rate, of examples of different costs.

      C(k / N) = (1/N) (sum_i base_i + sum_{deferred} extra_i)

  Only the deviations from the first example are summed, so that equal costs C_S and C_L give
  exactly C_S + d C_L, as in `costs.cascade`.

  Args:
    score: Deferral score of each example, as in `deferral_curve`.
    base: Cost of each example if it is not deferred.
    extra: Cost that deferring it adds.

  Returns:
    A function of deferral rates: exact at reachable ones, linear between them, inf at inf.

  Raises:
    ValueError: if there is no example, or a score is not finite.
  """
  order, deferred = reachable(score)
  rates = np.append(0, deferred) / len(score)
  deviations = np.append(0, np.cumsum((extra - extra[0])[order])[deferred - 1]) / len(score)
  start = base[0] + np.mean(base - base[0])

  def cost(rate: Points) -> Points:
    within = np.minimum(rate, 1)
    costs = start + within * extra[0] + np.interp(within, rates, deviations)
    return np.where(np.isinf(rate), np.inf, costs)

  return cost


def decomposition(
  score: Scores, small: Scores, large: Scores
) -> tuple[Float[np.ndarray, 'M'], Float[np.ndarray, 'M']]:
  """Contributions of the two models to the mean quality, (A1, A2) of equation (9).

      A1 = (1/N) sum_{not deferred} small_i,    A2 = (1/N) sum_{deferred} large_i

  They are not normalized by the number of their examples: A1 + A2 is the mean quality. Models are
  to be compared at equal deferral rate, not at equal threshold.

  Args:
    score: Deferral score of each example.
    small: Quality of the small model's answer to each example.
    large: Quality of the large model's answer to each example.

  Returns:
    A1 and A2 at each point of the curve, in the order of `deferral_curve`.

  Raises:
    ValueError: if there is no example, or a score is not finite.
  """
  order, deferred = reachable(score)
  ends = np.append(0, deferred)
  replaced = np.append(0, np.cumsum(small[order]))[ends]
  answered = np.append(0, np.cumsum(large[order]))[ends]
  return (replaced[-1] - replaced) / len(score), answered / len(score)


def area(curve: Curve) -> float:
  """Area under the quality over the deferral rate: the mean quality over all rates.

  Args:
    curve: A curve; between its points, quality is linear in the rate.

  Returns:
    The area, in the unit of the quality.
  """
  return float(np.trapezoid(curve.quality, curve.deferral_rate))


def area_above_chord(curve: Curve) -> float:
  """Area between the curve and the line between its ends, which random deferral gives on average.

  Args:
    curve: A curve.

  Returns:
    The signed area, in the unit of the quality; 0 for random deferral.
  """
  return area(curve) - float(curve.quality[0] + curve.quality[-1]) / 2


def quality_at_cost(curve: Curve, cost: float) -> float:
  """Quality at a cost, linear between points.

  Args:
    curve: A curve.
    cost: Cost in the unit of `curve.cost`.

  Returns:
    The quality, or nan if the cost is below or above that of every point.
  """
  return float(np.interp(cost, curve.cost, curve.quality, left=np.nan, right=np.nan))


def cost_at_quality(curve: Curve, quality: float, *, higher_is_better: bool = True) -> float:
  """Least cost that reaches a quality, linear between points.

  Args:
    curve: A curve.
    quality: Quality to be reached.
    higher_is_better: False for error rates, where a lower quality value is better.

  Returns:
    The cost, or nan if no point reaches the quality.
  """
  sign = 1 if higher_is_better else -1
  return float(first_reaching(curve.cost, sign * curve.quality, sign * quality))


def first_reaching(
  x: Float[np.ndarray, '*M P'], y: Float[np.ndarray, '*M P'], level: float
) -> Float[np.ndarray, '*M']:
  """Least x at which the line through (x, y) is at `level` or above.

  Args:
    x: Ascending abscissas of the P points of each line; one row for all lines is broadcast.
    y: Ordinates.
    level: Level to be reached.

  Returns:
    The abscissa for each line, nan where it never reaches the level.
  """
  at = np.argmax(y >= level, axis=-1)[..., None]
  before = np.maximum(at - 1, 0)
  (x0, y0), (x1, y1) = (
    (np.take_along_axis(np.broadcast_to(x, y.shape), k, -1), np.take_along_axis(y, k, -1))
    for k in (before, at)
  )
  # At the first point the step is 0: nothing must be divided by it.
  fraction = np.where(at > 0, (level - y0) / np.where(y1 > y0, y1 - y0, 1), 0)
  return np.where(y1 >= level, x0 + fraction * (x1 - x0), np.nan)[..., 0]


def deferrals_saved(
  model: Curve, baseline: Curve, quality: float, *, higher_is_better: bool = True
) -> float:
  """Difference of the deferral rates at equal quality: d_baseline(q) - d_model(q).

  Args:
    model: Curve of the model that is compared.
    baseline: Curve of the model that it is compared with.
    quality: Quality q that both reach.
    higher_is_better: False for error rates.

  Returns:
    The difference; above 0 if the model defers less often, nan if either never reaches q.
  """
  model_rate, baseline_rate = (
    cost_at_quality(
      curve._replace(cost=curve.deferral_rate), quality, higher_is_better=higher_is_better
    )
    for curve in (model, baseline)
  )
  return baseline_rate - model_rate


def flops_saved(
  model: Curve, baseline: Curve, quality: float, *, higher_is_better: bool = True
) -> float:
  """Saved fraction of the cost at equal quality: 1 - C_model(q) / C_baseline(q).

  Args:
    model: Curve of the model that is compared.
    baseline: Curve of the model that it is compared with, its cost in the same unit.
    quality: Quality q that both reach.
    higher_is_better: False for error rates.

  Returns:
    The fraction; above 0 if the model is cheaper, nan if either never reaches q.
  """
  model_cost, baseline_cost = (
    cost_at_quality(curve, quality, higher_is_better=higher_is_better)
    for curve in (model, baseline)
  )
  return 1 - model_cost / baseline_cost


def threshold_for(curve: Curve, budget: float) -> float:
  """Threshold that defers as many examples as a budget allows.

  Args:
    curve: A curve.
    budget: Largest deferral rate, in [0, 1].

  Returns:
    The threshold of a reachable point; inf defers nothing.
  """
  last = np.searchsorted(curve.deferral_rate, budget, side='right') - 1
  return float(curve.threshold[last])


def evenly_spaced(length: int, points: int) -> Int[np.ndarray, 'P']:
  """Indices of at most `points` points of a curve, evenly spaced and with both ends, for drawing.

  Args:
    length: Number of points of the curve.
    points: Largest number of points to draw.
  """
  return np.unique(np.linspace(0, length - 1, min(length, points)).round().astype(int))


def stack_tasks(statistics: Sequence[Statistics]) -> Statistics:
  """Block-diagonal matrix of the statistics of several tasks, which share no row and no column.

  Args:
    statistics: Statistics of each task, [N_t, K_t].

  Returns:
    An array of sum_t N_t rows and sum_t K_t columns, 0 outside the blocks.
  """
  rows, columns = zip(*(task.shape for task in statistics), strict=True)
  stacked = np.zeros((sum(rows), sum(columns)))
  for task, row, column in zip(
    statistics, np.cumsum(rows) - rows, np.cumsum(columns) - columns, strict=True
  ):
    stacked[row : row + len(task), column : column + task.shape[1]] = task
  return stacked


def mean_over_tasks(
  finalizes: Sequence[Finalize], widths: Sequence[int], weights: Sequence[float]
) -> Finalize:
  """Weighted mean of the tasks' qualities as a function of stacked statistics.

  Weights that are the sizes of the tasks make a mean over all examples of a mean over examples;
  equal weights are usual for corpus metrics such as BLEU.

  Args:
    finalizes: `finalize` of each task's metric.
    widths: Number of statistics of each task, in the order of `stack_tasks`.
    weights: Weight of each task; they are normalized to a sum of 1.
  """
  edges = np.cumsum(np.append(0, widths))
  shares = np.asarray(weights, float) / np.sum(weights)

  def finalize(sums: Float[np.ndarray, '*M K']) -> Float[np.ndarray, '*M']:
    return sum(
      share * task(sums[..., start:stop])
      for share, task, start, stop in zip(shares, finalizes, edges, edges[1:], strict=False)
    )

  return finalize
