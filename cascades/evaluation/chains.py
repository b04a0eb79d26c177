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
- 'router NAME': a decider that reads no answer, between the first and the last model.

'pairs' and 'best chains' exist for more than two models only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cascades import costs
from cascades.bootstrap import Difference
from cascades.costs import Axis, Prices
from cascades.evaluation.quantities import Quantity

CHAIN, PAIRS, BEST = 'chain', 'pairs', 'best chains'
ORACLE, ORACLE_ROUTER = 'oracle', 'oracle router'
RANDOM, RANDOM_ROUTER = 'random deferral', 'random router'


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
    shares: Share of the rows that each model answers.
    thresholds: Thresholds of the models' scores, at or above which the next model that runs is
      asked: inf where the answer is final, nan where the model does not run; no column for a
      control that has none.
    fit_cost: Mean cost of each rule on the fit split; empty if nothing was chosen there.
    fit_quality: Mean quality there of single answers, which the rules were chosen by.
    metrics: Numbers of `curve_metrics`; inf where a level is not reached, nan where undefined.
  """

  cost: Float[np.ndarray, 'M']
  quality: Float[np.ndarray, 'M']
  shares: Float[np.ndarray, 'M K']
  thresholds: Float[np.ndarray, 'M J']
  fit_cost: Float[np.ndarray, 'M']
  fit_quality: Float[np.ndarray, 'M']
  metrics: Mapping[Quantity, float]


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
      the reported rows; empty for two models on the default axis.
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
  """

  models: Sequence[str] = ()
  axes: Sequence[Axis] = ('flops per token',)
  scores: Sequence[str] = ()
  fit_split: str | None = None
  dollars: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  seconds: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  charge_discarded: bool = True

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

  def prices(self, axis: Axis, model: str) -> Prices | None:
    """Prices of a model's tokens on an axis; None if they are not given.

    Raises:
      ValueError: They are no prices.
    """
    by_model = {'dollars': self.dollars, 'seconds': self.seconds}.get(axis, {})
    if model not in by_model:
      return None
    given: Any = by_model[model]
    try:
      return Prices(**given)
    except (TypeError, ValueError) as error:
      names = ', '.join(field.name for field in dataclasses.fields(Prices))
      raise ValueError(
        f'{axis.upper()}[{model!r}]={given!r:.80} gives no prices: {error} It takes '
        f'{names}, each per token; prompt and generated are needed.'
      ) from error
