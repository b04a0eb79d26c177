"""Rows of a chain with the losses of its models' answers, and promises as bounds of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades.evaluation import calibration, policy_outcome, pooling
from cascades.evaluation.calibration import MARGIN, QUALITY, RATE, Demands
from cascades.evaluation.chain_rows import ModelTables
from cascades.evaluation.policy import CostAxis
from cascades.evaluation.policy_outcome import PassageRows
from cascades.evaluation.routing_policy import Beginning
from cascades.rule_guarantees import RuleRisk
from cascades.runtime import ranges
from cascades.types import Decider, Metric


class JudgedRows(NamedTuple):
  """Rows of a chain, of one task or of all, with the losses of the models' answers.

  Attributes:
    task: Name of the task, or POOLED.
    names: Models in order.
    decided: True for models that have a decider.
    routed: True if a router says where rows begin.
    metric: Metric of the promises.
    rows: Scores, costs, and where rows begin.
    losses: Loss in [0, 1] of each model's answer and, last, of none.
  """

  task: str
  names: Sequence[str]
  decided: Sequence[bool]
  routed: bool
  metric: Metric
  rows: PassageRows
  losses: Float[np.ndarray, 'K+1 N']

  def select(self, rows: Int[np.ndarray, 'n']) -> JudgedRows:
    """Some of the rows."""
    return self._replace(rows=self.rows.select(rows), losses=self.losses[:, rows])

  def measure(
    self, thresholds: Sequence[float]
  ) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N'], Int[np.ndarray, 'N']]:
    """Loss and cost of each row under thresholds, and who answers."""
    answers, paid = self.rows.walk(np.array(thresholds))
    return self.losses[answers, np.arange(len(answers))], paid, answers


def judged(
  tables: ModelTables,
  deciders: Sequence[Decider | None],
  begins: Beginning | None,
  metric: Metric,
  *,
  cost_axis: CostAxis,
  abstention: float | None = None,
  surrogate: bool = False,
  by_task: bool = False,
  labels: bool = True,
) -> list[JudgedRows]:
  """Rows of tables, of all tasks together or task by task.

  Args:
    tables: Tables by model in order, with the statistics of the metric.
    deciders: Decider of each model's answers; None where they are final.
    begins: Model that each prompt begins at; None for the first one.
    metric: Metric of the promises.
    cost_axis: Axis of the costs.
    abstention: Quality from 0 to 1 of a row that nobody answers.
    surrogate: Judge a corpus metric by its mean over single examples.
    by_task: True for thresholds of their own for each task.
    labels: False if rows have no targets; losses are nan then.

  Raises:
    ValueError: Rows are right only in groups, or the metric is no bounded mean over rows.
  """
  if grouped := [table.task for own in tables.values() for table in own if table.groups]:
    raise ValueError(
      f'Rows of task {grouped[0]!r} come in groups, so they are not independent and no promise '
      'about them would hold: calibrate on one row a group.'
    )
  count = len(next(iter(tables.values())))
  subsets = [[index] for index in range(count)] if by_task else [range(count)]
  nobody = 1.0 if abstention is None else 1 - abstention
  result = []
  quality = (
    functools.partial(calibration.row_quality, metric=metric, surrogate=surrogate)
    if labels
    else lambda table: np.full(len(table.ids), np.nan)
  )
  for subset in subsets:
    chosen = {name: [own[index] for index in subset] for name, own in tables.items()}
    losses = [
      loss_of(np.concatenate([quality(table) for table in own]), metric) for own in chosen.values()
    ]
    result.append(
      JudgedRows(
        next(iter(chosen.values()))[0].task if by_task else pooling.POOLED,
        [*chosen],
        [decider is not None for decider in deciders],
        begins is not None,
        metric,
        policy_outcome.passage_rows(deciders, chosen, begins, cost_axis),
        np.stack([*losses, np.full(losses[0].shape, nobody)]),
      )
    )
  return result


def loss_of(quality: Float[np.ndarray, '*N'], metric: Metric) -> Float[np.ndarray, '*N']:
  share = quality / metric.scale
  return 1 - share if metric.higher_is_better else share


def quality_of(loss: Float[np.ndarray, '*N'], metric: Metric) -> Float[np.ndarray, '*N']:
  return metric.scale * (1 - loss if metric.higher_is_better else loss)


def promised_risks(
  rows: JudgedRows, rules: Sequence[Sequence[float]], demands: Demands
) -> list[RuleRisk]:
  """Demands as bounds of mean losses under rules.

  Raises:
    ValueError: A demand is out of range, or a row costs more than MOST_COST.
  """
  measured, metric = [rows.measure(rule) for rule in rules], rows.metric
  loss = np.stack([loss for loss, _, _ in measured])
  paid = np.stack([paid for _, paid, _ in measured])
  passed = np.stack([answers > rows.rows.start for _, _, answers in measured]).astype(float)
  risks = []
  for name, value in demands.levels().items():
    delta = demands.deltas.get(name, demands.delta)
    if name == QUALITY:
      ranges.check({f'QUALITY ({metric.name})': value}, least=0, most=metric.scale)
      risks.append(RuleRisk(name, loss, float(loss_of(np.array(value), metric)), delta))
    elif name == MARGIN:
      risks.append(RuleRisk(name, loss - rows.losses[-2], value / metric.scale, delta))
    elif name == RATE:
      risks.append(RuleRisk(name, passed, value, delta, falls=False))
    else:
      most = calibration.cost_bound(float(paid.max()), value, demands)
      risks.append(RuleRisk(name, paid / most, value / most, delta, falls=False))
  return risks
