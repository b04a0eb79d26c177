"""Thresholds of a policy: demands become promises about mean losses, and the path is walked.

Pooled by default, one threshold for the rows of all tasks together; by task on request, a threshold
and the promises for each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float

from cascades import costs, drift, guarantees, risk_tests
from cascades.evaluation import pooling
from cascades.evaluation.policy import CostAxis, Interval, Promise, Threshold
from cascades.guarantees import Risk, Simulation, Walk
from cascades.runtime import ranges
from cascades.types import Decider, Metric, Predictions

Rows: TypeAlias = Float[np.ndarray, 'N']
QUALITY, MARGIN, COST, RATE = 'quality', 'margin', 'cost', 'deferral rate'


class NotCertifiedError(ValueError):
  """No threshold keeps the promises on these rows with the probability that is asked for."""

  exit_code = 3


@dataclasses.dataclass(frozen=True)
class Demands:
  """Promises that a policy must keep.

  Attributes:
    quality: Least quality of the cascade, in the unit of the metric; the largest for error rates.
    margin: The quality may be lower than that of the large model by at most this much.
    cost: Largest mean cost of a query.
    deferral_rate: Largest share of queries that the large model answers.
    delta: Largest probability that a promise is broken, for each.
    deltas: The same for single promises: {'quality': 0.05, 'margin': ..., 'cost': ...,
      'deferral rate': ...}.
    cost_axis: Axis of the cost.
    most_cost: Cost that no query exceeds; needed for costs that differ between queries.
  """

  quality: float | None = None
  margin: float | None = None
  cost: float | None = None
  deferral_rate: float | None = None
  delta: float = 0.1
  deltas: Mapping[str, float] = dataclasses.field(default_factory=dict)
  cost_axis: CostAxis = 'flops per token'
  most_cost: float | None = None

  def __post_init__(self) -> None:
    if not self.levels():
      raise ValueError(
        'There is nothing to promise: give one or more of QUALITY, MARGIN, COST and DEFERRAL_RATE.'
      )
    for name, value in self.levels().items():
      if not math.isfinite(value):
        raise ValueError(f'{_macro(name)}={value} must be a finite number.')
    if unknown := sorted(set(self.deltas) - {QUALITY, MARGIN, COST, RATE}):
      raise ValueError(f'DELTAS names {unknown}; it can name {QUALITY}, {MARGIN}, {COST}, {RATE}.')
    for name, delta in {'DELTA': self.delta, **self.deltas}.items():
      if not 0 < delta < 1:
        raise ValueError(f'The probability {name}={delta} must lie between 0 and 1.')
    if self.cost_axis not in get_args(CostAxis):
      raise ValueError(f'COST_AXIS={self.cost_axis!r:.80} is none of {get_args(CostAxis)}.')
    if self.margin is not None and self.margin <= 0:
      raise ValueError(
        f'MARGIN={self.margin}: no number of rows shows that a cascade is as good as the large '
        'model to the last digit. Give the loss of quality that is tolerated, above 0.'
      )
    if self.deferral_rate is not None and not 0 <= self.deferral_rate <= 1:
      raise ValueError(f'DEFERRAL_RATE={self.deferral_rate} must lie in [0, 1].')

  def levels(self) -> dict[str, float]:
    """Demanded values by name."""
    values = {
      QUALITY: self.quality, MARGIN: self.margin, COST: self.cost, RATE: self.deferral_rate
    }  # fmt: skip
    return {name: float(value) for name, value in values.items() if value is not None}


def _macro(name: str) -> str:
  return name.upper().replace(' ', '_')


class Judged(NamedTuple):
  """Rows of one task, or of all, with their scores, qualities and costs.

  Attributes:
    task: Name of the task, or POOLED.
    score: Deferral score of each row.
    small: Quality of each row if the small model answers, in the unit of the metric.
    large: Quality if the large model does.
    small_cost: Cost if the small model answers.
    large_cost: Cost if both do.
    metric: Their metric; its values are divided by `scale` for losses.
    scale: Range of the quality.
  """

  task: str
  score: Rows
  small: Rows
  large: Rows
  small_cost: Rows
  large_cost: Rows
  metric: Metric
  scale: float

  def loss(self, quality: Any) -> Any:
    """Loss in [0, 1] of a quality."""
    return 1 - quality / self.scale if self.metric.higher_is_better else quality / self.scale


def judged(
  small: Sequence[Predictions],
  large: Sequence[Predictions],
  metric: Metric,
  decider: Decider,
  *,
  surrogate: bool,
  by_task: bool,
  cost_axis: CostAxis,
) -> list[Judged]:
  """Rows of aligned tables, of all tasks together or task by task.

  Args:
    small: The small model's tables, with the statistics of the metric.
    large: The large model's tables of the same rows.
    metric: Metric of the promises.
    decider: Score of the small model's tables.
    surrogate: Judge a corpus metric by its mean over single examples.
    by_task: True for a threshold of its own for each task.
    cost_axis: Axis of the costs.

  Raises:
    ValueError: Rows are right only in groups, or the metric is no bounded mean over rows.
  """
  subsets = []
  for own, other in zip(small, large, strict=True):
    if own.groups or other.groups:
      raise ValueError(
        f'Rows of task {own.task!r} come in groups, such as all answers to one question, so they '
        'are not independent and no promise about them would hold: calibrate on one row a group.'
      )
    small_cost, large_cost = _costs(own, other, cost_axis, decider.flops)
    score = np.asarray(decider.score(own), float)
    quality, best = (row_quality(table, metric, surrogate=surrogate) for table in (own, other))
    subsets.append(
      Judged(own.task, score, quality, best, small_cost, large_cost, metric, metric.scale)
    )
  if by_task or len(subsets) == 1:
    return subsets
  columns = ('score', 'small', 'large', 'small_cost', 'large_cost')
  pooled: Any = {
    name: np.concatenate([getattr(rows, name) for rows in subsets]) for name in columns
  }
  return [subsets[0]._replace(task=pooling.POOLED, **pooled)]


def row_quality(table: Predictions, metric: Metric, *, surrogate: bool) -> Rows:
  """Quality of each row, of a metric that is a mean over rows in [0, scale].

  Args:
    table: Table with the statistics of the metric.
    metric: The metric.
    surrogate: Take the metric of each single row, for one that is no mean over rows.

  Raises:
    ValueError: The metric is no mean over rows, or its values are not bounded.
  """
  statistics = table.statistics[metric.name]
  if not pooling.is_mean(statistics) and not surrogate:
    raise ValueError(
      f'{metric.name} is a function of sums over the whole corpus, not a mean over rows, so no '
      'finite-sample test applies to it. Choose a METRIC that judges each row, or promise its '
      f'stand-in, the mean over rows of the {metric.name} of each row by itself, with '
      'SURROGATE=True.'
    )
  quality = metric.finalize(statistics)
  if not math.isfinite(metric.scale) or quality.min() < 0 or quality.max() > metric.scale:
    raise ValueError(
      f'{metric.name} of single rows of task {table.task!r} lies in [{quality.min():g}, '
      f'{quality.max():g}], and has no bounds that a promise could rest on: choose a METRIC with '
      'values in [0, 1] or [0, 100].'
    )
  return quality


def _costs(
  small: Predictions, large: Predictions, axis: CostAxis, deciding: float
) -> tuple[Rows, Rows]:
  """Cost of each row if the small model answers, and if both do."""
  if axis == 'flops per token':
    own = [np.full(len(small.ids), float(t.manifest['flops_per_token'])) for t in (small, large)]
    return own[0], own[0] + own[1]
  own = [costs.per_row(small, axis), costs.per_row(large, axis, last=True)]
  cheap, further = costs.added(own, [deciding if axis == 'flops' else 0.0])
  return cheap, cheap + further


def risks(rows: Judged, demands: Demands) -> list[Risk]:
  """Demands as bounds of mean losses of rows.

  Raises:
    ValueError: A demand is out of range, or a row costs more than MOST_COST.
  """
  zeros, promises = np.zeros(len(rows.score)), []
  for name, value in demands.levels().items():
    delta = demands.deltas.get(name, demands.delta)
    if name == QUALITY:
      ranges.check({f'QUALITY ({rows.metric.name})': value}, least=0, most=rows.scale)
      losses = rows.loss(rows.small), rows.loss(rows.large)
      promises.append(Risk(name, *losses, rows.loss(value), delta))
    elif name == MARGIN:
      difference = rows.loss(rows.small) - rows.loss(rows.large)
      promises.append(Risk(name, difference, zeros, value / rows.scale, delta))
    elif name == RATE:
      promises.append(Risk(name, zeros, zeros + 1, value, delta, falls=False))
    else:
      promises.append(_cost_risk(rows, value, demands, delta))
  return promises


def _cost_risk(rows: Judged, cost: float, demands: Demands, delta: float) -> Risk:
  """Promise of a mean cost: a deferral rate where both models cost the same for every query."""
  low, high = rows.small_cost, rows.large_cost
  zeros = np.zeros(len(low))
  if np.ptp(low) == 0 and np.ptp(high) == 0:
    rate = (cost - low[0]) / max(high[0] - low[0], np.finfo(float).tiny)
    if rate < 0:
      raise ValueError(
        f'COST={cost:g} is less than the small model costs by itself, {low[0]:g} '
        f'{demands.cost_axis}, which is always charged.'
      )
    return Risk(COST, zeros, zeros + 1, min(rate, 1.0), delta, falls=False)
  most = cost_bound(float(high.max()), cost, demands)
  return Risk(COST, low / most, high / most, cost / most, delta, falls=False)


def cost_bound(dearest: float, cost: float, demands: Demands) -> float:
  """MOST_COST. Raises ValueError if it is missing, below the dearest row, or below the promise."""
  most = demands.most_cost
  if most is None or dearest > most or not 0 < cost <= most:
    raise ValueError(
      f'Costs of queries differ: give MOST_COST, in {demands.cost_axis}, that none exceeds, and a '
      f'COST below it. The dearest row costs {dearest:g}; MOST_COST is {most}, COST {cost:g}.'
    )
  return most


def calibrate(rows: Judged, demands: Demands) -> Threshold:
  """Certifies a threshold.

  Raises:
    NotCertifiedError: No threshold is certified; the message says how many rows would be needed.
    ValueError: There are fewer than two rows, or a demand is out of range.
  """
  if len(rows.score) < 2:
    raise ValueError(f'Task {rows.task!r} has one row; a promise needs at least two, and more.')
  walk, promises = guarantees.path(rows.score), risks(rows, demands)
  sign = 1 if rows.metric.higher_is_better else -1
  quality = sign * guarantees.total(walk, rows.small, rows.large)
  point = guarantees.choose(walk, promises, quality)
  if point is None:
    raise NotCertifiedError(_refusal(rows, walk, promises, demands))
  return _threshold(rows, walk, promises, demands, point)


def _refusal(rows: Judged, walk: Walk, promises: Sequence[Risk], demands: Demands) -> str:
  N = len(rows.score)
  texts = []
  for risk in promises:
    allowed = np.flatnonzero(guarantees.certified(walk, risk))
    bound = 'nowhere'
    if len(allowed):
      rate = walk.rate[allowed[0] if risk.falls else allowed[-1]]
      bound = f'from a deferral rate of {rate:.1%}' if risk.falls else f'up to one of {rate:.1%}'
    demanded = demands.levels()[risk.name]
    texts.append(f'{_macro(risk.name)}={demanded:g} (delta {risk.delta:g}) is certified {bound}')
  needed = guarantees.rows_needed(walk, promises)
  if math.isinf(needed):
    way = (
      'At the means of these rows no number of rows would do: lower the demands, or choose another '
      'decider or another model.'
    )
  else:
    way = (
      f'About {max(int(needed) - N, 1):,} more rows, {max(int(needed), N + 1):,} in all, would '
      f'certify a threshold with a probability of {guarantees.POWER:.0%}, if their means are as on '
      'these. Or lower the demands, or raise DELTA.'
    )
  return f'No threshold for {rows.task!r} keeps the promises on {N} rows: {"; ".join(texts)}. {way}'


def _threshold(
  rows: Judged, walk: Walk, promises: Sequence[Risk], demands: Demands, point: int
) -> Threshold:
  edges, ties, gaps = drift.reference(rows.score, seed=0)
  count, threshold = len(rows.score), float(walk.threshold[point])
  deferred = rows.score >= threshold
  answered = np.where(deferred, rows.large, rows.small)
  quality, low, high = quality_at(answered, rows.scale, demands.delta)
  losses = [float(guarantees.mean_loss(walk, risk)[point]) for risk in promises]
  cost = float(guarantees.total(walk, rows.small_cost, rows.large_cost)[point]) / count
  observed = {QUALITY: quality, RATE: float(deferred.mean()), COST: cost}
  return Threshold(
    task=rows.task,
    threshold=None if math.isinf(threshold) else threshold,
    rows=count,
    promises=[
      Promise(
        name=risk.name,
        demanded=demands.levels()[risk.name],
        delta=risk.delta,
        observed=observed.get(risk.name, loss * rows.scale),
        loss=loss,
        level=risk.level,
        test=guarantees.test_of(risk),
      )
      for risk, loss in zip(promises, losses, strict=True)
    ],
    deferral_rate=Interval(*rate_at(deferred, demands.delta)),
    quality=Interval(quality, low, high),
    cost=cost,
    edges=edges.tolist(),
    ties=ties.tolist(),
    gaps=gaps.tolist(),
    cost_interval=cost_at(rows, deferred, demands),
  )


def rate_at(deferred: Bool[np.ndarray, 'N'], delta: float) -> tuple[float, float, float]:
  """Share of deferred rows, and an interval that misses it with `delta`."""
  count = int(deferred.sum())
  return count / len(deferred), *risk_tests.binomial_interval(count, len(deferred), delta)


def cost_at(rows: Judged, deferred: Bool[np.ndarray, 'N'], demands: Demands) -> Interval | None:
  """Mean cost where some rows are deferred, and an interval that misses it with `demands.delta`.

  None where costs differ between queries and no MOST_COST bounds them.
  """
  low, high = rows.small_cost, rows.large_cost
  mean, most = float(np.where(deferred, high, low).mean()), demands.most_cost
  if np.ptp(low) == 0 and np.ptp(high) == 0:
    _, *ends = rate_at(deferred, demands.delta)
    return Interval(mean, *(float(low[0] + rate * (high[0] - low[0])) for rate in ends))
  if most is None or high.max() > most:
    return None
  least, largest = risk_tests.mean_interval(mean / most, len(deferred), demands.delta)
  return Interval(mean, most * least, most * largest)


def quality_at(quality: Rows, scale: float, delta: float) -> tuple[float, float, float]:
  """Mean of qualities in [0, scale], and an interval that misses it with `delta`."""
  values = quality / scale
  mean, count = float(values.mean()), len(values)
  if np.isin(values, (0, 1)).all():
    low, high = risk_tests.binomial_interval(round(mean * count), count, delta)
  else:
    low, high = risk_tests.mean_interval(mean, count, delta)
  return mean * scale, low * scale, high * scale


def check(
  rows: Judged, demands: Demands, *, draws: int, seed: int
) -> tuple[list[Risk], dict[str, Simulation]]:
  """Calibrates many times on draws from the rows, by the method and by the plug-in threshold.

  Args:
    rows: Rows that stand for the population.
    demands: Demands of each calibration.
    draws: Number of draws, of as many rows each.
    seed: Seed of the draws.

  Returns:
    The promises, and the simulation of each method.
  """
  promises = risks(rows, demands)
  sign = 1 if rows.metric.higher_is_better else -1
  return promises, {
    name: guarantees.simulate_thresholds(
      rows.score,
      promises,
      (sign * rows.small, sign * rows.large),
      rows=len(rows.score),
      draws=draws,
      seed=seed,
      plug_in=name == 'plug-in',
    )
    for name in ('certified', 'plug-in')
  }
