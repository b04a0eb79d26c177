"""Quality and cost of a policy of any number of models on tables of predictions.

The same walk as that of a server: where each row begins, which models it asks, and who answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from cascades import chain_walk, costs
from cascades.costs import Axis, Prices
from cascades.evaluation import chain_policy, chain_rows
from cascades.evaluation import policy as policies
from cascades.evaluation.chain_policy import ChainLevel, ChainPolicy, Form
from cascades.evaluation.chain_rows import ModelTables
from cascades.evaluation.comparison import Settings
from cascades.evaluation.routers import NOBODY
from cascades.evaluation.routing_policy import Beginning
from cascades.types import Decider, Metric, Predictions


class PolicyOutcome(NamedTuple):
  """A policy on the rows of tables.

  Attributes:
    rows: Number of rows.
    metric: Name of the metric.
    quality: Quality of the answers; of rows that nobody answers, what the policy counts them for,
      or they are left out.
    cost: Mean cost of a row.
    axis: Axis of the cost.
    begins: Share of the rows that begin at each model.
    answers: Share of the rows that each model answers.
    unanswered: Share of the rows that nobody answers.
  """

  rows: int
  metric: str
  quality: float
  cost: float
  axis: Axis
  begins: Mapping[str, float]
  answers: Mapping[str, float]
  unanswered: float


class PassageRows(NamedTuple):
  """Rows that pass a chain: scores of each model's answers, their costs, and where rows begin.

  Attributes:
    scores: Deferral score of each answer; -inf of models without a decider.
    cost: Cost of each answer.
    start: Model that each row begins at; K leaves it to nobody.
    deciding: Cost of each model's decision.
    is_before: True for models whose decision comes before their answer.
  """

  scores: Float[np.ndarray, 'K N']
  cost: Float[np.ndarray, 'K N']
  start: Int[np.ndarray, 'N']
  deciding: Float[np.ndarray, 'K']
  is_before: Bool[np.ndarray, 'K']

  def walk(
    self, thresholds: Float[np.ndarray, 'K *N']
  ) -> tuple[Int[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
    """Model that answers each row, K for nobody, and the cost of each row."""
    answers = chain_walk.answering(self.start, self.scores, thresholds)
    return answers, chain_walk.paid(
      self.start, answers, self.cost, deciding=self.deciding, is_before=self.is_before
    )

  def select(self, rows: Int[np.ndarray, 'n']) -> PassageRows:
    """Some of the rows."""
    return self._replace(
      scores=self.scores[:, rows], cost=self.cost[:, rows], start=self.start[rows]
    )


def passage_rows(
  deciders: Sequence[Decider | None],
  tables: ModelTables,
  begins: Beginning | None,
  axis: Axis,
  *,
  prices: Mapping[str, Prices | None] = MappingProxyType({}),
) -> PassageRows:
  """Rows of tables for a chain.

  Args:
    deciders: Decider of each model's answers; None where they are final.
    tables: Tables by model, in the order of the chain, all of the same tasks and rows.
    begins: Model that each prompt begins at; None for the first one.
    axis: Axis of cost.
    prices: Prices of tokens by model, where the axis needs them.
  """
  names = [*tables]
  index = {name: number for number, name in enumerate(names)} | {NOBODY: len(names)}
  cost = [
    np.concatenate(
      [costs.per_row(table, axis, prices=prices.get(name), last=name == names[-1]) for table in own]
    )
    for name, own in tables.items()
  ]
  scores = [
    np.concatenate([_scores(decider, table) for table in own])
    for decider, own in zip(deciders, tables.values(), strict=True)
  ]
  inputs = [text for table in tables[names[0]] for text in table.inputs]
  chosen = [names[0]] * len(inputs)
  if begins is not None:
    chosen = [*begins(inputs, {name: _prompt_tokens(own) for name, own in tables.items()})]
  return PassageRows(
    np.stack(scores),
    np.stack(cost),
    np.array([index[name] for name in chosen], int),
    np.array([decider.flops if decider and axis == 'flops' else 0.0 for decider in deciders]),
    np.array([decider is not None and decider.before_answer for decider in deciders]),
  )


def _prompt_tokens(tables: Sequence[Predictions]) -> list[float]:
  unknown = [np.full(len(table.ids), np.nan) for table in tables]
  own = [
    table.columns.get('prompt_tokens', none) for table, none in zip(tables, unknown, strict=True)
  ]
  return np.concatenate(own).tolist()


def of_file(
  path: epath.PathLike,
  tables: ModelTables,
  choice: Callable[[epath.Path], Beginning],
  *,
  axis: Axis,
  prices: Callable[[Axis, str], Prices | None],
  metric: Metric | str | None,
) -> PolicyOutcome:
  """Quality and cost of a policy of any form.

  Args:
    path: File of the policy.
    tables: Tables by model, the large one last, whose name the policy need not know.
    choice: Function that opens the file of a routing policy.
    axis: Axis of cost of a policy that states none.
    prices: Prices of a model's tokens on an axis.
    metric: Metric of a policy that states none; None for the first metric of each table.

  Raises:
    ValueError: The policy is for other models.
  """
  stored = chain_policy.read_any(path)
  form = chain_policy.form(stored, path)
  given = names_of(form, tables)
  stated = stored if isinstance(stored, ChainPolicy) else None
  for name, own in given.items():
    for table in tables[own]:
      policies.check_model(name, stated.models[name] if stated else {}, table)
  axis = stated.cost_axis if stated else axis
  return outcome(
    form.levels,
    {name: tables[own] for name, own in given.items()},
    None if form.routing is None else choice(form.routing),
    axis=axis,
    prices={name: prices(axis, own) for name, own in given.items()},
    metric=stated.metric.name if stated else metric,
    unanswered=stated.unanswered_quality if stated else None,
  )


def names_of(form: Form, tables: Mapping[str, Sequence[Predictions]]) -> dict[str, str]:
  """Names of tables by the names of the models of a policy.

  Raises:
    ValueError: The policy is for other models.
  """
  *small, large = tables
  names = form.names or (small[0], large)
  absent = [name for name in names if name not in small]
  if len(absent) > 1:
    raise ValueError(
      f'The policy is for {", ".join(names)}, and SMALL has {", ".join(small)}: name the small '
      'models as the policy does; the one that is left is LARGE.'
    )
  return {name: large if name in absent else name for name in names}


def outcome(
  levels: Sequence[ChainLevel | None],
  tables: ModelTables,
  begins: Beginning | None,
  *,
  axis: Axis,
  prices: Mapping[str, Prices | None],
  metric: Metric | str | None,
  unanswered: float | None,
) -> PolicyOutcome:
  """Quality and cost of a policy.

  Args:
    levels: Decision about the answers of each model; None where they are final.
    tables: Tables by model, in the order of the chain, all of the same tasks and rows.
    begins: Model that each prompt begins at; None for the first one.
    axis: Axis of cost.
    prices: Prices of tokens by model, where the axis needs them.
    metric: Metric, or its name; None for the first metric of each table.
    unanswered: Quality of a row that nobody answers; None leaves such rows out.
  """
  pooled = chain_rows.pooled(tables, Settings(), metric, None)
  deciders = [None if level is None else policies.stored_decider(level) for level in levels]
  own_rows = passage_rows(deciders, tables, begins, axis, prices=prices)
  limits = [
    np.concatenate([np.full(len(table.ids), _threshold(level, table.task)) for table in own])
    for level, own in zip(levels, tables.values(), strict=True)
  ]
  answers, paid = own_rows.walk(np.stack(limits))
  names, rows = [*tables], np.arange(len(answers))
  statistics = np.stack([pooled.statistics[name] for name in names])
  answered = answers < len(names)
  quality = float('nan')
  if answered.any():
    own = statistics[answers[answered], rows[answered]]
    quality = float(pooled.finalize(own.sum(axis=0)))
  share = float(answered.mean())
  if unanswered is not None and share < 1:
    quality = unanswered if share == 0 else share * quality + (1 - share) * unanswered
  named = metric if isinstance(metric, str) else metric.name if metric else None
  return PolicyOutcome(
    len(rows),
    named or str(next(iter(tables.values()))[0].manifest['metrics'][0]),
    quality,
    float(paid.mean()),
    axis,
    _shares(own_rows.start, names),
    _shares(answers, names),
    1 - share,
  )


def _shares(models: Int[np.ndarray, 'N'], names: Sequence[str]) -> dict[str, float]:
  counts = np.bincount(models, minlength=len(names) + 1)
  return {name: float(counts[i] / len(models)) for i, name in enumerate(names)}


def _threshold(level: ChainLevel | None, task: str) -> float:
  return np.inf if level is None else level.threshold_of(task)


def _scores(decider: Decider | None, table: Predictions) -> Float[np.ndarray, 'N']:
  if decider is None:
    return np.full(len(table.ids), -np.inf)
  return np.asarray(decider.score(table), float)
