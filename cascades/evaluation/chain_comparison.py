"""Compares cascades of several models, and their controls, from tables of predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import bootstrap, costs, curve_metrics, curves, frontier
from cascades.bootstrap import Difference
from cascades.costs import Axis
from cascades.curves import Finalize
from cascades.evaluation import chains as names
from cascades.evaluation import pooling
from cascades.evaluation.chain_differences import area_differences
from cascades.evaluation.chains import ChainCurve, ChainResult, Chains, Single
from cascades.evaluation.compare import task_metric, without_repeats
from cascades.evaluation.comparison import Settings
from cascades.evaluation.quantities import Quantity
from cascades.frontier import Measured, Outcomes, Rule
from cascades.predictions import alignment
from cascades.types import Curve, Decider, Metric, Predictions

log = logging.getLogger(__name__)

MOST_POINTS = 200  # rules that are reported of a frontier
CPT = (0.5, 0.8)  # shares of the gap between first and last model, as in RouteLLM
SHARES = (0.25, 0.5, 0.75)  # of the dearest model's cost, and of the gap between first and last

Tables = Mapping[str, Sequence[Predictions]]


class _Rows(NamedTuple):
  """All tasks of a split: by model, the pooled table, statistics [N, S] and quality of answers.

  Qualities are multiplied by `sign`, so that higher is better, and weighted as the tasks are.
  """

  tables: Mapping[str, Predictions]
  statistics: Mapping[str, Float[np.ndarray, 'N S']]
  quality: Mapping[str, Float[np.ndarray, 'N']]
  finalize: Finalize
  sign: int
  sizes: Sequence[int]


def compare_chains(
  report: Tables,
  fit: Tables | None,
  *,
  deciders: Sequence[Decider],
  chains: Chains,
  settings: Settings,
  metric: Metric | str | None = None,
) -> tuple[ChainResult, ...]:
  """Compares chains of the models under every decider on every axis of cost.

  Args:
    report: Tables to report on by model, the large model's last; all of the same tasks and rows.
    fit: Tables of the split that thresholds are chosen on; None for chains of two models.
    deciders: Scores of answers, and routers, which decide before any answer.
    chains: Models in order, axes of cost, prices.
    settings: Settings of the comparison, for the weights of the tasks and repeated inputs.
    metric: Metric, or its name, of all tasks; None for the first metric of each table.

  Raises:
    ValueError: A model of the chain is unknown, thresholds have no split to be chosen on, the
      splits have other tasks, a cost or a score is missing, or the metrics do not fit together.
  """
  orders = _orders(chains, report)
  if fit is None and (long := [order for order in orders if len(order) > 2]):
    raise ValueError(
      f'Thresholds of the chain {", ".join(long[0])} must be chosen on other rows than it is '
      "reported on: name a split of the same tables, FIT_SPLIT='validation'."
    )
  if fit is not None:
    _check_splits(report, fit)
  reported = _rows(report, settings, metric)
  fitted = None if fit is None else _rows(fit, settings, metric)
  scores = [decider for decider in deciders if not decider.before_answer]
  routers = [decider for decider in deciders if decider.before_answer]
  draw = cache(
    partial(bootstrap.draw, reported.sizes, resamples=settings.resamples, seed=settings.seed)
  )
  results: list[ChainResult] = []
  for order, axis in product(orders, chains.axes):
    controls: dict[str, ChainCurve] = {}
    for decider in scores:
      chain = _chain(order, axis, decider, chains, reported, fitted)
      if not controls:  # they do not depend on the score
        controls = chain.controls()
        for router in routers:
          score = router.score(reported.tables[order[0]])
          controls[f'router {router.name}'] = chain.routed(score, _flops(router, axis))
      result = chain.result(order, axis, decider.name, controls)
      if len(order) > 2 or axis != 'flops per token':
        result = result._replace(differences=chain.differences(result, draw(), settings.confidence))
      results.append(result)
  return tuple(results)


def _orders(chains: Chains, tables: Tables) -> list[tuple[str, ...]]:
  """Models of each chain, the large one last."""
  *small, large = tables
  if unknown := sorted(set(chains.models) - set(small)):
    raise ValueError(
      f'CHAIN names {", ".join(map(repr, unknown))}, and the small models are '
      f'{", ".join(map(repr, small))}; the large one always ends a chain.'
    )
  for axis in ('dollars', 'seconds'):
    if unknown := sorted(set(getattr(chains, axis)) - set(tables)):
      raise ValueError(
        f'{axis.upper()} has prices of {", ".join(map(repr, unknown))}, and the models are '
        f'{", ".join(map(repr, tables))}.'
      )
  if chains.models:
    return [(*chains.models, large)]
  return [(name, large) for name in small]


def _check_splits(report: Tables, fit: Tables) -> None:
  """Raise ValueError if thresholds would be chosen on what is reported, or on other tasks."""
  own, other = ([*tables.values()][-1] for tables in (report, fit))
  if own[0].split == other[0].split:
    raise ValueError(
      f'FIT_SPLIT={other[0].split!r} is the split that is reported: thresholds must be chosen on '
      'other rows.'
    )
  tasks, fit_tasks = (sorted(table.task for table in tables) for tables in (own, other))
  if tasks != fit_tasks:
    raise ValueError(
      f'The reported split has the tasks {tasks} and the one of FIT_SPLIT {fit_tasks}: infer the '
      'missing tasks, or choose common ones with TASKS.'
    )
  seen = {text for table in other for text in table.inputs}
  if repeated := sum(text in seen for table in own for text in table.inputs):
    log.warning('%d reported rows have inputs that thresholds were chosen on too.', repeated)


def _rows(tables: Tables, settings: Settings, metric: Metric | str | None) -> _Rows:
  if settings.dedupe_inputs:
    *_, large = tables
    small, distinct = without_repeats(
      {name: own for name, own in tables.items() if name != large}, tables[large]
    )
    tables = {**small, large: distinct}
  metrics = [task_metric(metric, table) for table in next(iter(tables.values()))]
  judged = {name: list(map(alignment.judge, own, metrics)) for name, own in tables.items()}
  layout = pooling.layout([*judged.values()], metrics, settings.weights)
  sizes = [len(table.ids) for table in next(iter(tables.values()))]
  sign = 1 if metrics[0].higher_is_better else -1
  weight = np.ones(sum(sizes))
  if layout.weights == 'uniform':
    weight = np.repeat(sum(sizes) / (len(sizes) * np.maximum(sizes, 1)), sizes)
  by_task = {name: pooling.statistics(own, metrics) for name, own in judged.items()}
  return _Rows(
    tables={name: pooling.pool(own) for name, own in judged.items()},
    statistics={name: layout.stack(own) for name, own in by_task.items()},
    quality={name: sign * weight * _quality(own, metrics) for name, own in by_task.items()},
    finalize=layout.subsets[0].finalize,
    sign=sign,
    sizes=sizes,
  )


def _quality(
  statistics: Sequence[Float[np.ndarray, 'n S']], metrics: Sequence[Metric]
) -> Float[np.ndarray, 'N']:
  """Quality of each answer by itself, from the statistics of each task."""
  by_task = zip(metrics, statistics, strict=True)
  return np.concatenate([metric.finalize(values) for metric, values in by_task])


def _outcomes(
  rows: _Rows, order: Sequence[str], axis: Axis, decider: Decider, chains: Chains
) -> Outcomes:
  return Outcomes(
    scores=np.stack([decider.score(rows.tables[name]) for name in order[:-1]]),
    quality=np.stack([rows.quality[name] for name in order]),
    cost=np.stack(
      [_cost(rows.tables[name], name, axis, chains, last=name == order[-1]) for name in order]
    ),
    deciding=np.full(len(order) - 1, _flops(decider, axis)),
    discarded=chains.charge_discarded,
  )


def _cost(
  table: Predictions, model: str, axis: Axis, chains: Chains, *, last: bool
) -> Float[np.ndarray, 'N']:
  """Cost of each answer of a model."""
  prices = chains.prices(axis, model)
  try:
    return costs.per_row(table, axis, prices=prices, last=last)
  except ValueError as error:
    way = ''
    if axis in ('dollars', 'seconds') and prices is None:
      way = f' Or give {axis.upper()}={{{model!r}: {{"prompt": ..., "generated": ...}}}} per token.'
    raise ValueError(
      f'COST_AXES has {axis!r}, and model {model!r} lacks it: {error}{way}'
    ) from error


def _flops(decider: Decider, axis: Axis) -> float:
  """Cost of a decision; seconds and dollars of decisions are unknown, and small."""
  return decider.flops if axis == 'flops' else 0.0


def _chain(
  order: Sequence[str],
  axis: Axis,
  decider: Decider,
  chains: Chains,
  reported: _Rows,
  fitted: _Rows | None,
) -> _Chain:
  outcomes = _outcomes(reported, order, axis, decider, chains)
  chosen_on = outcomes if fitted is None else _outcomes(fitted, order, axis, decider, chains)
  statistics = np.stack([reported.statistics[name] for name in order])
  split = '' if fitted is None else fitted.tables[order[-1]].split
  return _Chain(outcomes, statistics, reported.finalize, chosen_on, split, reported.sign)


class _Chain(NamedTuple):
  """Models of one chain on one axis: the rows to report, and those that thresholds come from."""

  outcomes: Outcomes
  statistics: Float[np.ndarray, 'K N S']
  finalize: Finalize
  chosen_on: Outcomes
  fit_split: str
  sign: int

  def result(
    self, models: tuple[str, ...], axis: Axis, score: str, controls: Mapping[str, ChainCurve]
  ) -> ChainResult:
    singles = self.measure([Rule((model,), ()) for model in range(len(models))])
    best = int(np.argmax(self.chosen_on.quality.mean(axis=1)))
    return ChainResult(
      models=models,
      score=score,
      axis=axis,
      discarded=self.outcomes.discarded,
      fit_split=self.fit_split,
      singles={
        name: Single(float(cost), float(quality))
        for name, cost, quality in zip(models, singles.cost, singles.quality, strict=True)
      },
      best_single=models[best],
      curves={
        name: curve._replace(metrics=_metrics(curve, singles, best, self.sign))
        for name, curve in {**self.curves(), **controls}.items()
      },
    )

  def differences(
    self, result: ChainResult, counts: Int[np.ndarray, 'R N'], confidence: float
  ) -> dict[tuple[str, str], Difference]:
    """Differences of area, between the costs of the cheapest and the dearest single model."""
    cost = [single.cost for single in result.singles.values()]
    return area_differences(
      {name: curve for name, curve in result.curves.items() if curve.thresholds.size},
      self.outcomes,
      self.statistics,
      self.finalize,
      counts,
      limits=(min(cost), max(cost)),
      sign=self.sign,
      confidence=confidence,
    )

  def measure(self, rules: Sequence[Rule]) -> Measured:
    return frontier.measure(self.outcomes, self.statistics, self.finalize, rules)

  def curves(self) -> dict[str, ChainCurve]:
    """The chain of all models, and for more than two the best pairs and the best chains."""
    models = len(self.statistics)
    if models == 2:
      curve = frontier.pair_curve(self.outcomes, self.statistics, self.finalize, (0, 1))
      thresholds = np.stack([curve.threshold, np.full(len(curve.threshold), np.inf)], axis=1)
      return {names.CHAIN: _between_ends(curve, models)._replace(thresholds=thresholds)}
    families = {
      names.CHAIN: [tuple(range(models))],
      names.PAIRS: frontier.chains(models, longest=2),
      names.BEST: frontier.chains(models),
    }
    return {name: self.fitted(subsets) for name, subsets in families.items()}

  def fitted(self, subsets: Sequence[tuple[int, ...]]) -> ChainCurve:
    """Best rules of some chains where thresholds are chosen, measured on the reported rows."""
    points = frontier.fit(self.chosen_on, subsets)
    points = [points[i] for i in curves.evenly_spaced(len(points), MOST_POINTS)]
    return self.by_rules([point.rule for point in points])._replace(
      fit_cost=np.array([point.cost for point in points]),
      fit_quality=self.sign * np.array([point.quality for point in points]),
    )

  def by_rules(self, rules: Sequence[Rule]) -> ChainCurve:
    """Curve of some rules, with their thresholds."""
    thresholds = np.full((len(rules), len(self.statistics)), np.nan)
    for row, rule in zip(thresholds, rules, strict=True):
      row[list(rule.models)] = [*rule.thresholds, np.inf]
    return _from_measured(self.measure(rules))._replace(thresholds=thresholds)

  def controls(self) -> dict[str, ChainCurve]:
    """Oracles, and random choices."""
    models, outcomes = len(self.statistics), self.outcomes
    free = outcomes._replace(deciding=np.zeros(models - 1))  # no decision to pay for
    cost, quality = self.chosen_on.cost.mean(axis=1), self.chosen_on.quality.mean(axis=1)
    corners = curve_metrics.hull_points(cost, quality)
    ends = [Rule((0,), ()), Rule(tuple(range(models)), (-np.inf,) * (models - 1))]
    paid = {
      names.ORACLE: np.cumsum(free.added(range(models)), axis=0),
      names.ORACLE_ROUTER: outcomes.cost,
    }
    measured = {
      name: frontier.oracle(outcomes.quality, costs, self.statistics, self.finalize)
      for name, costs in paid.items()
    }
    measured[names.RANDOM] = frontier.measure(free, self.statistics, self.finalize, ends)
    mixed = self.by_rules([Rule((int(model),), ()) for model in corners])
    return {name: _from_measured(values) for name, values in measured.items()} | {
      names.RANDOM_ROUTER: mixed
    }

  def routed(self, score: Float[np.ndarray, 'N'], deciding: float) -> ChainCurve:
    """Curve of a router between the first and the last model."""
    curve = frontier.routed(self.outcomes, self.statistics, self.finalize, score, deciding=deciding)
    return _between_ends(curve, len(self.statistics))


def _from_measured(measured: Measured) -> ChainCurve:
  return ChainCurve(
    measured.cost,
    measured.quality,
    measured.shares,
    thresholds=np.empty((len(measured.cost), 0)),
    fit_cost=np.empty(0),
    fit_quality=np.empty(0),
    metrics={},
  )


def _between_ends(curve: Curve, models: int) -> ChainCurve:
  """Curve between the first and the last model."""
  shares = np.zeros((len(curve.quality), models))
  shares[:, 0], shares[:, -1] = 1 - curve.deferral_rate, curve.deferral_rate
  return _from_measured(Measured(curve.quality, curve.cost, shares))


def _metrics(curve: ChainCurve, singles: Measured, best: int, sign: int) -> dict[Quantity, float]:
  """All numbers of a curve: between the costs of the single models, and the ends of the chain."""
  cost, quality, calls = curve.cost, sign * curve.quality, curve.shares[:, -1]
  alone = sign * singles.quality
  ends = {'small': float(alone[0]), 'large': float(alone[-1])}
  limits = {'low': float(singles.cost.min()), 'high': float(singles.cost.max())}
  reference = {'best_quality': float(alone[best]), 'best_cost': float(singles.cost[best])}
  values = {
    'area': sign * curve_metrics.area(cost, quality, **limits),
    'normalized area': sign * curve_metrics.area(cost, quality, low=0.0, high=limits['high']),
    'AIQ': sign * curve_metrics.average_improvement(cost, quality, **limits),
    'QNC': curve_metrics.quality_neutral_cost(cost, quality, **reference),
    'CostSave': curve_metrics.cost_saved(cost, quality, **reference),
    'PerfGain': curve_metrics.performance_gain(quality, best_quality=reference['best_quality']),
    'APGR': curve_metrics.average_gap_recovered(calls, quality, **ends),
    'gain over random': curve_metrics.gain_over_random(calls, quality, **ends),
  }
  metrics = {Quantity(name): value for name, value in values.items()}
  for share in CPT:
    metrics[Quantity('CPT', share)] = curve_metrics.calls_for(calls, quality, share, **ends)
  for share in SHARES:
    level = share * limits['high']
    metrics[Quantity('quality at cost', level)] = sign * curve_metrics.quality_at(
      cost, quality, level
    )
    level = ends['small'] + share * (ends['large'] - ends['small'])
    metrics[Quantity('cost at quality', sign * level)] = curve_metrics.cost_at(cost, quality, level)
  return metrics
