"""Compares cascades of several models, and their controls, from tables of predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import bootstrap, costs, curve_metrics, curves, frontier, model_choice
from cascades.bootstrap import Difference
from cascades.costs import Axis
from cascades.evaluation import chain_differences, chain_metrics, chain_routing, chain_rows
from cascades.evaluation import chains as names
from cascades.evaluation.applied import Applied
from cascades.evaluation.chain_differences import area_differences, rules_of
from cascades.evaluation.chain_routing import ChainRows, Router
from cascades.evaluation.chain_rows import ModelTables, SplitRows
from cascades.evaluation.chains import (
  MOST_POINTS,
  ChainCurve,
  ChainResult,
  Chains,
  Single,
  between_ends,
  measured_curve,
)
from cascades.evaluation.comparison import Settings
from cascades.frontier import Measured, Outcomes, Rule
from cascades.learned_deferral import Fitted, LeakError
from cascades.types import Decider, Metric, Predictions

log = logging.getLogger(__name__)


def compare_chains(
  report: ModelTables,
  fit: ModelTables | None,
  *,
  deciders: Sequence[Decider],
  chains: Chains,
  settings: Settings,
  metric: Metric | str | None = None,
  learned: Mapping[str, Mapping[str, Fitted]] = MappingProxyType({}),
) -> tuple[ChainResult, ...]:
  """Compares chains of the models under every decider on every axis of cost.

  Args:
    report: Tables to report on by model, the large model's last; all of the same tasks and rows.
    fit: Tables of the split that thresholds are chosen on; None for chains of two models.
    deciders: Scores of answers, and routers, which decide before any answer.
    chains: Models in order, axes of cost, prices.
    settings: Settings of the comparison, for the weights of the tasks and repeated inputs.
    metric: Metric, or its name, of all tasks; None for the first metric of each table.
    learned: Learned deciders by name and model, of which routers choose among more than two models.

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
    chain_rows.check_splits(report, fit)
  if chains.abstention is not None and (long := [order for order in orders if len(order) > 2]):
    raise ValueError(
      f'ABSTENTION={chains.abstention} is for chains of two models; CHAIN gives '
      f'{", ".join(long[0])}: leave one of them out.'
    )
  reported = chain_rows.pooled(report, settings, metric, chains.abstention)
  fitted = None if fit is None else chain_rows.pooled(fit, settings, metric, chains.abstention)
  scores = [decider for decider in deciders if not decider.before_answer]
  draw = cache(
    partial(bootstrap.draw, reported.sizes, resamples=settings.resamples, seed=settings.seed)
  )
  results: list[ChainResult] = []
  for order in orders:
    routers = [
      _router(decider, order, reported, fitted, learned.get(decider.name, {}))
      for decider in deciders
      if decider.before_answer
    ]
    for axis in chains.axes:
      controls: dict[str, ChainCurve] = {}
      for decider in scores:
        chain = _chain(order, axis, decider, chains, reported, fitted)
        controls = controls or chain.controls()  # they do not depend on the score
        ruled = chain_routing.beside(chain.rows, routers, axis, chains)
        if chains.abstention is not None and fitted is not None:
          ruled[names.ABSTAINING] = chain_routing.abstaining(
            chain.rows, reported.unanswered, fitted.unanswered
          )
        beside = controls | {name: own.curve for name, own in ruled.items()}
        result = chain.result(order, axis, decider.name, beside)
        asked = [decider, *(router.decider for router in routers)]
        unknown = [d.name for d in asked if chains.deciding(axis, d.name, d.flops) is None]
        result = result._replace(uncharged=tuple(unknown))
        if len(order) > 2 or axis != 'flops per token' or len(ruled) > len(routers):
          compared = chain_differences.pairs(result.curves, [r.decider.name for r in routers])
          applied = {name: own.applied for name, own in ruled.items()}
          result = result._replace(
            differences=chain.differences(result, applied, compared, draw(), settings.confidence)
          )
        results.append(result)
  return tuple(results)


def _router(
  decider: Decider,
  order: Sequence[str],
  reported: SplitRows,
  fitted: SplitRows | None,
  learned: Mapping[str, Fitted],
) -> Router:
  """Router with what it says of the rows of both splits; of the fit split only if it may."""
  own = [learned[model] for model in order[:-1]] if learned else []
  if len(order) > 2 and own and model_choice.chooses(own[0]):
    decider = decider._replace(flops=model_choice.flops(own))
    ask: Callable[[Predictions], Any] = partial(model_choice.among, own)
  else:
    ask = decider.score
  on_fit = None
  if fitted is not None:
    try:
      on_fit = ask(fitted.tables[order[0]])
    except LeakError as error:
      log.warning('No rule of router %r is chosen on FIT_SPLIT: %s', decider.name, error)
  return Router(decider, ask(reported.tables[order[0]]), on_fit)


def _orders(chains: Chains, tables: ModelTables) -> list[tuple[str, ...]]:
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


def _outcomes(
  rows: SplitRows, order: Sequence[str], axis: Axis, decider: Decider, chains: Chains
) -> Outcomes:
  return Outcomes(
    scores=np.stack([decider.score(rows.tables[name]) for name in order[:-1]]),
    quality=np.stack([rows.quality[name] for name in order]),
    cost=np.stack(
      [_cost(rows.tables[name], name, axis, chains, last=name == order[-1]) for name in order]
    ),
    deciding=np.full(len(order) - 1, chains.deciding(axis, decider.name, decider.flops) or 0.0),
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


def _chain(
  order: Sequence[str],
  axis: Axis,
  decider: Decider,
  chains: Chains,
  reported: SplitRows,
  fitted: SplitRows | None,
) -> _Chain:
  outcomes = _outcomes(reported, order, axis, decider, chains)
  chosen_on = outcomes if fitted is None else _outcomes(fitted, order, axis, decider, chains)
  statistics = np.stack([reported.statistics[name] for name in order])
  split = '' if fitted is None else fitted.tables[order[-1]].split
  rows = ChainRows(outcomes, statistics, reported.finalize, chosen_on, reported.sign)
  return _Chain(rows, split)


class _Chain(NamedTuple):
  """Models of one chain on one axis: the rows to report, and those that thresholds come from."""

  rows: ChainRows
  fit_split: str

  def result(
    self, models: tuple[str, ...], axis: Axis, score: str, controls: Mapping[str, ChainCurve]
  ) -> ChainResult:
    singles = self.measure([Rule((model,), ()) for model in range(len(models))])
    best = int(np.argmax(self.rows.fit.quality.mean(axis=1)))
    return ChainResult(
      models=models,
      score=score,
      axis=axis,
      discarded=self.rows.reported.discarded,
      fit_split=self.fit_split,
      singles={
        name: Single(float(cost), float(quality))
        for name, cost, quality in zip(models, singles.cost, singles.quality, strict=True)
      },
      best_single=models[best],
      curves={
        name: curve._replace(metrics=chain_metrics.of_curve(curve, singles, best, self.rows.sign))
        for name, curve in {**self.curves(), **controls}.items()
      },
    )

  def differences(
    self,
    result: ChainResult,
    applied: Mapping[str, Applied],
    compared: Sequence[tuple[str, str]],
    counts: Int[np.ndarray, 'R N'],
    confidence: float,
  ) -> dict[tuple[str, str], Difference]:
    """Differences of area, between the costs of the cheapest and the dearest single model."""
    cost = [single.cost for single in result.singles.values()]
    rows = self.rows
    by_rules = {
      name: Applied(
        [partial(frontier.apply, rows.reported, rule) for rule in rules_of(curve)],
        rows.statistics,
        rows.finalize,
      )
      for name, curve in result.curves.items()
      if curve.thresholds.size and name not in applied
    }
    return area_differences(
      by_rules | dict(applied), compared, counts,
      limits=(min(cost), max(cost)), sign=rows.sign, confidence=confidence,
    )  # fmt: skip

  def measure(self, rules: Sequence[Rule]) -> Measured:
    return frontier.measure(self.rows.reported, self.rows.statistics, self.rows.finalize, rules)

  def curves(self) -> dict[str, ChainCurve]:
    """The chain of all models, and for more than two the best pairs and the best chains."""
    models = len(self.rows.statistics)
    if models == 2:
      curve = frontier.pair_curve(
        self.rows.reported, self.rows.statistics, self.rows.finalize, (0, 1)
      )
      thresholds = np.stack([curve.threshold, np.full(len(curve.threshold), np.inf)], axis=1)
      return {names.CHAIN: between_ends(curve, models)._replace(thresholds=thresholds)}
    families = {
      names.CHAIN: [tuple(range(models))],
      names.PAIRS: frontier.chains(models, longest=2),
      names.BEST: frontier.chains(models),
    }
    return {name: self.fitted(subsets) for name, subsets in families.items()}

  def fitted(self, subsets: Sequence[tuple[int, ...]]) -> ChainCurve:
    """Best rules of some chains where thresholds are chosen, measured on the reported rows."""
    points = frontier.fit(self.rows.fit, subsets)
    points = [points[i] for i in curves.evenly_spaced(len(points), MOST_POINTS)]
    return self.by_rules([point.rule for point in points])._replace(
      fit_cost=np.array([point.cost for point in points]),
      fit_quality=self.rows.sign * np.array([point.quality for point in points]),
    )

  def by_rules(self, rules: Sequence[Rule]) -> ChainCurve:
    """Curve of some rules, with their thresholds."""
    thresholds = np.full((len(rules), len(self.rows.statistics)), np.nan)
    for row, rule in zip(thresholds, rules, strict=True):
      row[list(rule.models)] = [*rule.thresholds, np.inf]
    return measured_curve(self.measure(rules))._replace(thresholds=thresholds)

  def controls(self) -> dict[str, ChainCurve]:
    """Oracles, and random choices."""
    models, outcomes = len(self.rows.statistics), self.rows.reported
    free = outcomes._replace(deciding=np.zeros(models - 1))  # no decision to pay for
    cost, quality = self.rows.fit.cost.mean(axis=1), self.rows.fit.quality.mean(axis=1)
    corners = curve_metrics.hull_points(cost, quality)
    ends = [Rule((0,), ()), Rule(tuple(range(models)), (-np.inf,) * (models - 1))]
    paid = {
      names.ORACLE: np.cumsum(free.added(range(models)), axis=0),
      names.ORACLE_ROUTER: outcomes.cost,
    }
    measured = {
      name: frontier.oracle(outcomes.quality, costs, self.rows.statistics, self.rows.finalize)
      for name, costs in paid.items()
    }
    measured[names.RANDOM] = frontier.measure(free, self.rows.statistics, self.rows.finalize, ends)
    mixed = self.by_rules([Rule((int(model),), ()) for model in corners])
    return {name: measured_curve(values) for name, values in measured.items()} | {
      names.RANDOM_ROUTER: mixed
    }
