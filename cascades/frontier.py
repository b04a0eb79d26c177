"""Cascades of any number of models: thresholds, their frontier, and its controls.

A chain runs its models in order and stops at the first answer whose score is below that model's
threshold; the last model's answer is final. A `Rule` names the models and the thresholds.

**Thresholds by dynamic programming.** With gains v_(j+1) - v_j of quality, or costs that a model
adds, the sum over all rows is

    V(t_1 .. t_L) = sum_i v_1(i) + sum_j sum_{i: s_1 >= t_1, ..., s_j >= t_j} (v_(j+1) - v_j)(i).

The state after level j is the tuple of bins of a row's first j scores. The inner sums of all tuples
of thresholds come from the histogram of these states by one cumulative sum an axis, level by level,
so that `sweep` values every tuple of the grid exactly, whatever the dependence of the scores. The
only approximation is the grid: the scores of a chain of two are not quantized, those of longer
chains at so many quantiles that their tuples stay below a limit. A grid of twice the quantiles
contains the coarser one.

**Frontier.** Thresholds are chosen on one set of rows and reported on another (`measure`). Besides
the chain of all models there are its parts: pairs, and subsets of any length. Chains often lose to
the upper envelope of pairs: https://arxiv.org/abs/2605.06350.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import costs, curves
from cascades.curves import Finalize
from cascades.types import Curve

MOST_MODELS = 8
MOST_TUPLES = 1 << 18  # of thresholds of one chain


class Outcomes(NamedTuple):
  """Answers of K models to the same N rows, in the order of the chain.

  Attributes:
    scores: Deferral score of each answer of a model but the last; the highest defers first.
    quality: Quality of each answer; higher is better.
    cost: Cost of each answer by itself.
    deciding: Cost of each decision about an answer, of every model but the last: one number, or
      one for each row.
    discarded: False to leave out the cost of answers that are thrown away.
  """

  scores: Float[np.ndarray, 'L N']
  quality: Float[np.ndarray, 'K N']
  cost: Float[np.ndarray, 'K N']
  deciding: Float[np.ndarray, 'L *N']
  discarded: bool = True

  def added(self, models: Sequence[int]) -> Float[np.ndarray, 'k N']:
    """Cost that each model of a chain of some models adds to a row that reaches it."""
    deciding = [self.deciding[model] for model in models[:-1]]
    return costs.added([self.cost[model] for model in models], deciding, discarded=self.discarded)


class Rule(NamedTuple):
  """Indices of the models that run, in order, and the threshold of every one but the last."""

  models: tuple[int, ...]
  thresholds: tuple[float, ...]


class Point(NamedTuple):
  """A rule with its mean quality and cost on the rows that it was chosen on."""

  rule: Rule
  quality: float
  cost: float


class Measured(NamedTuple):
  """Quality, mean cost, and each model's share of the answers under M rules."""

  quality: Float[np.ndarray, 'M']
  cost: Float[np.ndarray, 'M']
  shares: Float[np.ndarray, 'M K']


def chains(models: int, *, longest: int | None = None) -> list[tuple[int, ...]]:
  """Subsets of the models in their order, the shortest first.

  Args:
    models: Number of models.
    longest: Largest size of a subset; None for all.

  Raises:
    ValueError: There are too many models for all subsets.
  """
  if models > MOST_MODELS:
    raise ValueError(f'A chain of {models} models is longer than {MOST_MODELS}, the maximum.')
  sizes = range(1, (longest or models) + 1)
  return [subset for size in sizes for subset in combinations(range(models), size)]


def fit(
  outcomes: Outcomes, subsets: Iterable[tuple[int, ...]], *, most_tuples: int = MOST_TUPLES
) -> list[Point]:
  """Rules that no other rule of these chains beats in both quality and cost.

  Args:
    outcomes: Answers to the rows on which thresholds are chosen.
    subsets: Chains to choose from, as indices of their models.
    most_tuples: Largest number of tuples of thresholds of one chain.

  Returns:
    Points of ascending cost and quality.

  Raises:
    ValueError: There is no row, or a number is not finite.
  """
  check(outcomes)
  swept = [sweep(outcomes, models, most_tuples=most_tuples) for models in subsets]
  cost = np.array([point.cost for points in swept for point in points])
  points = [point for points in swept for point in points]
  return [points[i] for i in best(cost, np.array([point.quality for point in points]))]


def check(outcomes: Outcomes) -> None:
  """Raise ValueError if there is no row, or a number is not finite."""
  if not outcomes.quality.size:
    raise ValueError('A frontier needs one or more rows, found none.')
  for name in ('scores', 'quality', 'cost'):
    if bad := int(np.sum(~np.isfinite(getattr(outcomes, name)))):
      raise ValueError(f'A frontier needs finite numbers; {bad} of {name} are not.')


def sweep(
  outcomes: Outcomes, models: tuple[int, ...], *, most_tuples: int = MOST_TUPLES
) -> list[Point]:
  """Best tuples of thresholds of one chain at each cost: see the head of this file.

  Args:
    outcomes: Answers to the rows on which thresholds are chosen.
    models: Indices of the models of the chain.
    most_tuples: Largest number of tuples; chains of one or two models are never quantized.

  Returns:
    Points of ascending cost and quality.
  """
  rows = outcomes.quality.shape[1]
  levels = outcomes.scores[list(models[:-1])]
  quantiles = rows if len(levels) < 2 else max(1, int(most_tuples ** (1 / len(levels)) + 1e-9) - 1)
  grid = [_candidates(score, quantiles) for score in levels]
  bins = [
    np.searchsorted(axis, score, side='right') - 1 for axis, score in zip(grid, levels, strict=True)
  ]
  gains = np.diff(outcomes.quality[list(models)], axis=0, prepend=0.0)
  sizes = [len(axis) - 1 for axis in grid]
  quality, cost = (
    _totals(bins, sizes, values).ravel() / rows for values in (gains, outcomes.added(models))
  )
  chosen = best(cost, quality)
  tuples = zip(*np.unravel_index(chosen, [size + 1 for size in sizes]), strict=True) if grid else ()
  thresholds = [
    tuple(float(axis[i]) for axis, i in zip(grid, index, strict=True)) for index in tuples
  ]
  return [
    Point(Rule(models, t), float(quality[i]), float(cost[i]))
    for t, i in zip(thresholds or [()], chosen, strict=True)
  ]


def _candidates(score: Float[np.ndarray, 'N'], quantiles: int) -> Float[np.ndarray, 'B']:
  """Thresholds at so many quantiles of a score, the lowest defers all; and inf, which defers none.

  Ranks are multiples of N / quantiles, so that twice the quantiles contain them.
  """
  ranks = np.arange(min(quantiles, len(score))) * len(score) // min(quantiles, len(score))
  return np.append(np.unique(np.sort(score)[ranks]), np.inf)


def _totals(
  bins: Sequence[Int[np.ndarray, 'N']], sizes: Sequence[int], steps: Float[np.ndarray, 'k N']
) -> Float[np.ndarray, '*B']:
  """V of every tuple of thresholds, [sizes + 1]: index i of an axis defers the bins from i on."""
  total = np.full([1] * len(bins), steps[0].sum())
  for level, step in enumerate(steps[1:], 1):
    shape = sizes[:level]
    states = np.ravel_multi_index(bins[:level], shape)
    table = np.bincount(states, weights=step, minlength=int(np.prod(shape))).reshape(shape)
    for axis in range(level):
      tails = np.flip(np.cumsum(np.flip(table, axis), axis), axis)
      table = np.pad(tails, [(0, int(axis == other)) for other in range(level)])
    total = total + table.reshape(*table.shape, *[1] * (len(bins) - level))
  return total


def best(cost: Float[np.ndarray, 'M'], quality: Float[np.ndarray, 'M']) -> Int[np.ndarray, 'm']:
  """Indices of the points that no other point beats, by ascending cost and quality.

  Of equal points, the first one remains.

  Args:
    cost: Cost of each point.
    quality: Quality of each point; higher is better.
  """
  order = np.lexsort((-quality, cost))
  highest = np.maximum.accumulate(quality[order])
  return order[np.append(True, highest[1:] > highest[:-1])]


def answering(scores: Float[np.ndarray, 'L N'], rule: Rule, rows: int) -> Int[np.ndarray, 'N']:
  """Index of the model that answers each row under a rule.

  Args:
    scores: Deferral score of each answer of a model but the last.
    rule: Models and thresholds.
    rows: Number of rows N.
  """
  answers = np.full(rows, rule.models[-1])
  for model, threshold in reversed([*zip(rule.models, rule.thresholds, strict=False)]):
    answers = np.where(scores[model] >= threshold, answers, model)
  return answers


def apply(outcomes: Outcomes, rule: Rule) -> tuple[Int[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """Index of the model that answers each row under a rule, and the cost of each row."""
  rows = np.arange(outcomes.cost.shape[1])
  answers = answering(outcomes.scores, rule, len(rows))
  paid = np.cumsum(outcomes.added(rule.models), axis=0)
  return answers, paid[np.searchsorted(rule.models, answers), rows]


def measure(
  outcomes: Outcomes,
  statistics: Float[np.ndarray, 'K N S'],
  finalize: Finalize,
  rules: Sequence[Rule],
) -> Measured:
  """Quality and cost of rules on other rows than those that they were chosen on.

  Chains of two are read off their deferral curve, `curves.deferral_curve`.

  Args:
    outcomes: Answers to the rows to report on.
    statistics: Statistics of each model's answers, whose sum gives the quality.
    finalize: Quality of summed statistics, as in `Metric.finalize`.
    rules: Models and thresholds.

  Raises:
    ValueError: There is no row, or a number is not finite.
  """
  check(outcomes)
  rows, models = statistics.shape[1], len(statistics)
  quality, cost, shares = np.empty(len(rules)), np.empty(len(rules)), np.zeros((len(rules), models))
  pairs: dict[tuple[int, ...], Curve] = {
    models: pair_curve(outcomes, statistics, finalize, models)
    for models in {rule.models for rule in rules if len(rule.models) == 2}
  }
  for i, rule in enumerate(rules):
    if rule.models in pairs:
      curve = pairs[rule.models]
      point = np.searchsorted(-curve.threshold, -rule.thresholds[0], side='right') - 1
      quality[i], cost[i] = curve.quality[point], curve.cost[point]
      rate = curve.deferral_rate[point]
      shares[i, list(rule.models)] = 1 - rate, rate
      continue
    answers, paid = apply(outcomes, rule)
    shares[i] = np.bincount(answers, minlength=models) / rows
    quality[i] = finalize(statistics[answers, np.arange(rows)].sum(axis=0))
    cost[i] = paid.mean()
  return Measured(quality, cost, shares)


def pair_curve(
  outcomes: Outcomes,
  statistics: Float[np.ndarray, 'K N S'],
  finalize: Finalize,
  models: tuple[int, ...],
) -> Curve:
  """Deferral curve of two of the models, at every reachable threshold, with the costs of rows."""
  first, last = models
  score = outcomes.scores[first]
  cost = curves.cost_by_rate(score, *outcomes.added(models))
  return curves.deferral_curve(score, statistics[first], statistics[last], finalize, cost)


def routed(
  outcomes: Outcomes,
  statistics: Float[np.ndarray, 'K N S'],
  finalize: Finalize,
  score: Float[np.ndarray, 'N'],
  *,
  deciding: float = 0.0,
) -> Curve:
  """Curve of a router, which sends each query to the first or to the last model.

  It decides before any answer, so that a query costs the decision and one answer.

  Args:
    outcomes: Answers to the rows to report on.
    statistics: Statistics of each model's answers.
    finalize: Quality of summed statistics.
    score: Score of each query; the highest go to the last model first.
    deciding: Cost of a decision.
  """
  first, last = outcomes.cost[0], outcomes.cost[-1]
  cost = curves.cost_by_rate(score, first + deciding, last - first)
  return curves.deferral_curve(score, statistics[0], statistics[-1], finalize, cost)


def oracle(
  quality: Float[np.ndarray, 'K N'],
  cost: Float[np.ndarray, 'K N'],
  statistics: Float[np.ndarray, 'K N S'],
  finalize: Finalize,
) -> Measured:
  """Best choice of a model for every row at each cost, knowing the quality of all answers.

  Each row starts at its cheapest model and moves along the upper concave hull of its answers. The
  steps of all rows are taken by falling gain per cost, so that no choice of equal or lower mean
  cost has a higher mean quality than a point of this curve.

  Args:
    quality: Quality of each model's answer, higher is better.
    cost: Cost of each query if that model answers it.
    statistics: Statistics of each model's answers.
    finalize: Quality of summed statistics.

  Returns:
    Points from the cheapest choice to the cheapest of the best ones.
  """
  models, N = quality.shape
  rows = np.arange(N)
  current = np.lexsort((-quality, cost), axis=0)[0]
  start, steps = current.copy(), [np.empty((4, 0))]
  for _ in range(models - 1):
    extra, gain = cost - cost[current, rows], quality - quality[current, rows]
    better = (gain > 0) & (extra > 0)
    rate = np.where(better, gain, 0) / np.where(better, extra, 1)
    to = rate.argmax(axis=0)
    moved = np.flatnonzero(better.any(axis=0))
    steps.append(np.stack([rate[to, rows], rows, current, to])[:, moved])
    current[moved] = to[moved]
  rate, *moves = np.concatenate(steps, axis=1)
  row, before, after = np.array(moves, int)[:, np.argsort(-rate, kind='stable')]
  choices = np.eye(models)

  def along(values: Float[np.ndarray, 'K N S']) -> Float[np.ndarray, 'M S']:
    changes = values[after, row] - values[before, row]
    return np.vstack([np.zeros(values.shape[2]), np.cumsum(changes, axis=0)]) + values[
      start, rows
    ].sum(axis=0)

  shares = along(np.broadcast_to(choices[:, None], (models, N, models))) / N
  return Measured(finalize(along(statistics)), along(cost[..., None])[:, 0] / N, shares)
