"""Cascades of several models in order, on several axes of cost: what to compare, and the results.

Results are plain values. `Comparison.chains` holds one `ChainResult` for each chain, score and axis
of cost, with the curve of the chain and of its controls by name:

- 'chain': all models in order. Of two models, the deferral curve at every threshold of the reported
  rows, which chooses nothing; of more, the thresholds that the fit split prefers.
- 'pairs': the best pair, or single model, at each cost of the fit split: the pairwise envelope.
- 'best chains': the same over chains of any length.
- 'oracle': the model of each row to stop at, knowing all answers; it pays for the ones before, so
  that it bounds 'chain'.
- 'oracle router': the same before any answer, so that only the chosen model is paid; it bounds all.
- 'random deferral': a random share of the rows passes all models, the others stop at the first.
- 'random router': draws between single models before any answer, those of the fit split's hull.
- 'router NAME': a decider that reads no answer, between the first and the last model; a learned one
  chooses among all models, at prices of cost that the fit split prefers.
- 'router NAME and chain': the router before and the chain of two after the small answer.
- 'chain with abstention': the chain of two that leaves rows unanswered at a stated quality.

'pairs' and 'best chains' exist for more than two models only, the last two for two models with a
fit split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cascades import costs
from cascades.bootstrap import Difference
from cascades.costs import Axis, Prices
from cascades.evaluation.quantities import Quantity
from cascades.frontier import Measured
from cascades.types import Curve

CHAIN, PAIRS, BEST = 'chain', 'pairs', 'best chains'
ORACLE, ORACLE_ROUTER = 'oracle', 'oracle router'
RANDOM, RANDOM_ROUTER = 'random deferral', 'random router'
ROUTER, UNITED, ABSTAINING = 'router {}', 'router {} and chain', 'chain with abstention'

DECIDED: tuple[Axis, ...] = ('seconds', 'dollars')  # axes on which decisions have a given cost
MOST_POINTS = 200  # rules that are reported of a frontier


class Single(NamedTuple):
  """Mean cost and quality of one model alone on the reported rows."""

  cost: float
  quality: float


class ChainCurve(NamedTuple):
  """Points of a cascade or a control, in the order of the cost that they were chosen for.

  Between two points, quality is linear in cost: a draw between their thresholds reaches it.

  Attributes:
    cost: Mean cost of a query on the reported rows, in the unit of the axis.
    quality: Quality on the reported rows.
    shares: Share of the rows that each model answers; the rest stays unanswered.
    thresholds: Thresholds of the models' scores, at or above which the next model that runs is
      asked: inf where the answer is final, nan where the model does not run; no column for a
      control that has none.
    fit_cost: Mean cost of each rule on the fit split; empty if nothing was chosen there.
    fit_quality: Mean quality there of single answers, which the rules were chosen by.
    metrics: Numbers of `curve_metrics`; inf where a level is not reached, nan where undefined.
    outer: Other number of each rule: the score of 'router NAME and chain' at or above which prompts
      go to the last model at once, the chain's at or above which 'chain with abstention' leaves
      rows unanswered, the price of a unit of cost of a choice among models; empty for the others.
  """

  cost: Float[np.ndarray, 'M']
  quality: Float[np.ndarray, 'M']
  shares: Float[np.ndarray, 'M K']
  thresholds: Float[np.ndarray, 'M J']
  fit_cost: Float[np.ndarray, 'M']
  fit_quality: Float[np.ndarray, 'M']
  metrics: Mapping[Quantity, float]
  outer: Float[np.ndarray, 'M'] = np.empty(0)

  @property
  def unanswered(self) -> Float[np.ndarray, 'M']:
    """Share of the rows that nobody answers."""
    return np.maximum(0.0, 1 - self.shares.sum(axis=1)).round(12)


def measured_curve(measured: Measured) -> ChainCurve:
  """Curve of what was measured, without thresholds."""
  return ChainCurve(
    measured.cost,
    measured.quality,
    measured.shares,
    thresholds=np.empty((len(measured.cost), 0)),
    fit_cost=np.empty(0),
    fit_quality=np.empty(0),
    metrics={},
  )


def between_ends(curve: Curve, models: int) -> ChainCurve:
  """Curve between the first and the last model."""
  shares = np.zeros((len(curve.quality), models))
  shares[:, 0], shares[:, -1] = 1 - curve.deferral_rate, curve.deferral_rate
  return measured_curve(Measured(curve.quality, curve.cost, shares))


class ChainResult(NamedTuple):
  """One chain under one score on one axis of cost, over all tasks.

  Attributes:
    models: Names of the models in order.
    score: Name of the score of every model's answers but the last one's.
    axis: Axis of cost; `costs.UNITS` names its unit.
    discarded: True if answers that are thrown away are charged.
    fit_split: Split that thresholds and the best single model were chosen on; empty if there is
      none, and the best single model is that of the reported rows.
    singles: Each model alone.
    best_single: Name of the single model of highest quality on the fit split.
    curves: Curves by name, the chain first: see the head of this file.
    differences: Area of one curve minus that of another, by their names, on the same resamples of
      the reported rows; empty for two models alone on the default axis.
    uncharged: Deciders whose decisions have an unknown cost on this axis, which is left out.
  """

  models: tuple[str, ...]
  score: str
  axis: Axis
  discarded: bool
  fit_split: str
  singles: Mapping[str, Single]
  best_single: str
  curves: Mapping[str, ChainCurve]
  differences: Mapping[tuple[str, str], Difference] = MappingProxyType({})
  uncharged: tuple[str, ...] = ()


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Chains:
  """Chains to compare, and their costs.

  Attributes:
    models: Names of the small models of one chain in order, which the large one ends; if empty,
      each small model and the large one are a chain.
    axes: Axes of cost.
    scores: Names of the scores that decide; if empty, the first one of the comparison.
    fit_split: Split of the same tables on which thresholds are chosen; needed for three models.
    dollars: Prices per token by model; the tables' column for models without.
    seconds: Seconds per token by model, a measured profile; the tables' column for models without.
    charge_discarded: False leaves out the cost of answers that are thrown away.
    abstention: Quality of a row that nobody answers, from 0 to 1 of the metric's scale: 1 - p at a
      price p of abstaining. Chains of two are then compared with those that may abstain.
    decisions: Cost of one decision by decider, and in it by 'seconds' or 'dollars'.
  """

  models: Sequence[str] = ()
  axes: Sequence[Axis] = ('flops per token',)
  scores: Sequence[str] = ()
  fit_split: str | None = None
  dollars: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  seconds: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  charge_discarded: bool = True
  abstention: float | None = None
  decisions: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if isinstance(self.axes, str) or not set(costs.UNITS).issuperset(self.axes) or not self.axes:
      raise ValueError(
        f'COST_AXES={self.axes!r:.80} is no list of axes of cost among {", ".join(costs.UNITS)}.'
      )
    if isinstance(self.models, str) or len(set(self.models)) < len(self.models):
      raise ValueError(f'CHAIN={self.models!r:.80} is no list of different models.')
    for axis in ('dollars', 'seconds'):
      for model in getattr(self, axis):
        self.prices(axis, model)
    quality = self.abstention
    if quality is not None and not (_is_number(quality) and 0 <= quality <= 1):
      raise ValueError(
        f'ABSTENTION={quality!r:.80} is no quality from 0 to 1, of a row that nobody answers.'
      )
    if quality is not None and self.fit_split is None:
      raise ValueError(
        f'ABSTENTION={quality!r:.80} needs rows on which to choose who stays unanswered: name '
        "another split of the same tables, FIT_SPLIT='validation'."
      )
    for name, given in self.decisions.items():
      costly = isinstance(given, Mapping) and set(given) <= set(DECIDED) and all(
        _is_number(cost) and math.isfinite(cost) and cost >= 0 for cost in given.values()
      )  # fmt: skip
      if not costly:
        raise ValueError(
          f'DECISIONS[{name!r:.80}]={given!r:.80} is no cost of a decision: it takes '
          f'{" and ".join(DECIDED)}, numbers of 0 or more, such as {{"seconds": 0.002}}.'
        )

  def deciding(self, axis: Axis, name: str, flops: float) -> float | None:
    """Cost of one decision of a decider on an axis; None if it is unknown."""
    if axis in DECIDED:
      return self.decisions.get(name, {}).get(axis)
    return flops if axis == 'flops' else 0.0

  def prices(self, axis: Axis, model: str) -> Prices | None:
    """Prices of a model's tokens on an axis; None if they are not given.

    Raises:
      ValueError: They are no prices.
    """
    by_model = {'dollars': self.dollars, 'seconds': self.seconds}.get(axis, {})
    if model not in by_model:
      return None
    return costs.prices(by_model[model], f'{axis.upper()}[{model!r}]')
