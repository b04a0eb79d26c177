"""Answers of any number of models to the same prompts, from an outcome matrix or from tables.

Rows of tables are called `task/id`. Models need not have answered the same rows: what one of them
lacks is a missing answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

from cascades import costs
from cascades.costs import Axis
from cascades.evaluation.compare import task_metric
from cascades.predictions import alignment, outcomes, shards, sidecars
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.predictions.rows import Mode
from cascades.runtime import files
from cascades.types import Predictions

PROMPT = 'prompt'  # sidecar of `python -m cascades.embed`


@dataclasses.dataclass(frozen=True)
class ModelAnswers:
  """Answers of models.

  Attributes:
    outcomes: File of qualities, as `outcomes.read` takes it; None to read tables.
    prompts: Texts by id; None if they stand in the outcomes.
    costs: Cost of each model, or a file of them or of those of each answer; None for the costs of
      the tables' rows.
    tables: Output directory of `infer` by model; None to read outcomes.
    split: Split of the tables.
    mode: Mode of the tables.
    metric: Name of the metric; None for the first one of each table.
    axis: Axis of cost of the tables.
    dollars: Prices of tokens in dollars by model; else the tables' column is read.
    seconds: The same in seconds.
  """

  outcomes: str | None = None
  prompts: str | None = None
  costs: str | Mapping[str, float] | None = None
  tables: Mapping[str, str] | None = None
  split: str = 'validation'
  mode: Mode = 'predict'
  metric: str | None = None
  axis: Axis = 'flops per token'
  dollars: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  seconds: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

  def read(self, *, with_prompts: bool = False) -> OutcomeMatrix:
    """Matrix of the answers.

    Args:
      with_prompts: Refuse answers without the texts of the prompts.

    Raises:
      FileNotFoundError: A file or a table is missing.
      ValueError: There is neither a file nor a table, or both; `outcomes.read` refuses the file; or
        tables disagree about a prompt, are not labeled, or have no quality from 0 to 1.
    """
    if (self.outcomes is None) == (not self.tables):
      raise ValueError(
        'OUTCOMES and COSTS are needed, or TABLES: give the file of qualities and the costs, or '
        "the tables by model, TABLES={'small': 'runs/small/predictions', ...}; not both."
      )
    if self.tables:
      matrix = self._of_tables(self.tables)
    elif self.costs is None:
      raise ValueError('OUTCOMES and COSTS are needed: give the cost of each model.')
    else:
      matrix = outcomes.read(self.outcomes or '', prompts=self.prompts, costs=self.costs)
    if with_prompts and not all(matrix.prompts):
      missing = sum(not prompt for prompt in matrix.prompts)
      raise ValueError(
        f'{missing} of {len(matrix.ids)} rows have no prompts to route by: give their texts, '
        'PROMPTS, or infer tables with inputs.'
      )
    return matrix

  def vectors(self) -> tuple[dict[str, Float[np.ndarray, 'D']], str]:
    """Vectors of the prompts by id, of the sidecars beside the tables, and their encoder's name.

    Raises:
      FileNotFoundError: A table has no sidecar of its prompts.
      ValueError: There are no tables, or their encoders differ.
    """
    by_id: dict[str, np.ndarray] = {}
    encoders = set()
    for _, path, table in self._read(self.tables or {}):
      sidecar = sidecars.read(path, PROMPT, table)
      encoders.add(str(sidecar.manifest['origin'].get('encoder')))
      by_id |= dict(zip(_names(table), sidecar.array(), strict=True))
    if len(encoders) != 1:
      raise ValueError(
        f"EMBEDDINGS='tables' takes vectors of one encoder beside TABLES; found "
        f'{", ".join(sorted(encoders)) or "no table"}: embed all prompts by one.'
      )
    return by_id, encoders.pop()

  def _read(self, tables: Mapping[str, str]) -> list[tuple[str, epath.Path, Predictions]]:
    split = files.component(self.split, 'a split')
    return [
      (model, files.absolute(directory) / split, table)
      for model, directory in tables.items()
      for table in shards.read(files.absolute(directory) / split, mode=self.mode)
    ]

  def _of_tables(self, tables: Mapping[str, str]) -> OutcomeMatrix:
    texts: dict[str, tuple[str, frozenset[str]]] = {}
    qualities: dict[str, dict[str, float]] = {model: {} for model in tables}
    costs_by_model: dict[str, dict[str, float]] = {model: {} for model in tables}
    tokens_by_model: dict[str, dict[str, float]] = {model: {} for model in tables}
    price: dict[str, float] = {}
    for model, path, table in self._read(tables):
      if count := table.manifest.get('unlabelled', 0):
        raise ValueError(
          f'{count} of {len(table.ids)} rows of task {table.task!r} in {path} have no target, so '
          'that no metric can judge them: take a split that has targets.'
        )
      for name, text, targets in zip(_names(table), table.inputs, table.targets, strict=True):
        own = (text, frozenset(targets))
        if texts.setdefault(name, own) != own:
          raise ValueError(
            f'{path}: the prompt or the targets of {name!r} are not those that another model of '
            'TABLES answered: infer all on the same data.'
          )
      qualities[model] |= dict(zip(_names(table), self._quality(table), strict=True))
      if self.costs is None:
        cost, tokens, own_price = self._charges(model, table)
        costs_by_model[model] |= dict(zip(_names(table), cost, strict=True))
        tokens_by_model[model] |= dict(zip(_names(table), tokens, strict=True))
        price[model] = own_price if price.setdefault(model, own_price) == own_price else np.nan
    quality, by_answer, prompt_tokens = (
      np.array([[own.get(name, np.nan) for own in by_model.values()] for name in texts])
      for by_model in (qualities, costs_by_model, tokens_by_model)
    )
    ids, models = tuple(texts), tuple(tables)
    costs_of = (
      outcomes.answer_costs(by_answer, ids, models, quality)
      if self.costs is None
      else outcomes.read_costs(self.costs, ids, models, quality)
    )
    matrix = OutcomeMatrix(
      ids, tuple(text for text, _ in texts.values()), models, quality, *costs_of
    )
    if matrix.prompt_cost is None or np.isnan(prompt_tokens).all():
      return matrix
    return matrix._replace(tokens=prompt_tokens, token_price=np.array([price[m] for m in models]))

  def _quality(self, table: Predictions) -> Sequence[float]:
    metric = task_metric(self.metric, table)
    if not np.isfinite(metric.scale):
      raise ValueError(
        f'{metric.name} is not bounded, and a router needs a loss from 0 to 1 of each answer: '
        'choose another METRIC.'
      )
    shares = metric.finalize(alignment.judge(table, metric).statistics[metric.name]) / metric.scale
    quality = shares if metric.higher_is_better else 1 - shares
    if not ((quality >= 0) & (quality <= 1)).all():
      raise ValueError(
        f'{metric.name} of task {table.task!r} is no number from 0 to {metric.scale:g} of each '
        'answer: choose another METRIC.'
      )
    return [float(value) for value in quality]

  def _charges(
    self, model: str, table: Predictions
  ) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N'], float]:
    """Cost of each answer, the tokens of its prompt if they are charged for, and their price."""
    given = {'dollars': self.dollars, 'seconds': self.seconds}.get(self.axis, {})
    prices = (
      costs.prices(given[model], f'{self.axis.upper()}[{model!r}]') if model in given else None
    )
    cost, price = (
      costs.per_row(table, self.axis, prices=prices),
      costs.token_price(table, self.axis, prices),
    )
    unknown = np.full(len(table.ids), np.nan)
    return cost, unknown if np.isnan(price) else costs.tokens(table)[0], price


def _names(table: Predictions) -> list[str]:
  return [f'{table.task}/{name}' for name in table.ids]
