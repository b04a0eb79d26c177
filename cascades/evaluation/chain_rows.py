"""Rows of one split that chains are compared on: all tasks together, by model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from cascades.curves import Finalize
from cascades.evaluation import pooling
from cascades.evaluation.compare import task_metric, without_repeats
from cascades.evaluation.comparison import Settings
from cascades.predictions import alignment
from cascades.types import Metric, Predictions

log = logging.getLogger(__name__)

ModelTables: TypeAlias = Mapping[str, Sequence[Predictions]]


class SplitRows(NamedTuple):
  """All tasks of a split: by model, the pooled table, statistics [N, S] and quality of answers.

  Qualities are multiplied by `sign`, so that higher is better, and weighted as the tasks are;
  `unanswered` is that of rows without an answer, nan if they are not asked for.
  """

  tables: Mapping[str, Predictions]
  statistics: Mapping[str, Float[np.ndarray, 'N S']]
  quality: Mapping[str, Float[np.ndarray, 'N']]
  finalize: Finalize
  sign: int
  sizes: Sequence[int]
  unanswered: Float[np.ndarray, 'N']


def pooled(
  tables: ModelTables, settings: Settings, metric: Metric | str | None, abstention: float | None
) -> SplitRows:
  """Pools the tables of all tasks of a split.

  Args:
    tables: Tables by model, all of the same tasks and rows.
    settings: Settings of the comparison, for the weights of the tasks and repeated inputs.
    metric: Metric, or its name, of all tasks; None for the first metric of each table.
    abstention: Quality of a row that nobody answers; None if each row is answered.

  Raises:
    ValueError: The metrics do not fit together, or judge no single rows that nobody answers.
  """
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
  unanswered = np.nan if abstention is None else _unanswered(abstention, metrics[0], by_task)
  return SplitRows(
    tables={name: pooling.pool(own) for name, own in judged.items()},
    statistics={name: layout.stack(own) for name, own in by_task.items()},
    quality={name: sign * weight * _quality(own, metrics) for name, own in by_task.items()},
    finalize=layout.subsets[0].finalize,
    sign=sign,
    sizes=sizes,
    unanswered=sign * weight * unanswered,
  )


def _unanswered(
  abstention: float, metric: Metric, by_task: Mapping[str, Sequence[Float[np.ndarray, 'n S']]]
) -> float:
  """Quality of a row that nobody answers, in the unit of the metric."""
  means = all(pooling.is_mean(statistics) for own in by_task.values() for statistics in own)
  if not means or not np.isfinite(metric.scale):
    raise ValueError(
      f'ABSTENTION={abstention} is the quality of single rows that nobody answers, and '
      f'{metric.name} is no bounded mean over rows: choose another METRIC, or leave ABSTENTION out.'
    )
  return metric.scale * (abstention if metric.higher_is_better else 1 - abstention)


def _quality(
  statistics: Sequence[Float[np.ndarray, 'n S']], metrics: Sequence[Metric]
) -> Float[np.ndarray, 'N']:
  """Quality of each answer by itself, from the statistics of each task."""
  by_task = zip(metrics, statistics, strict=True)
  return np.concatenate([metric.finalize(values) for metric, values in by_task])


def check_splits(report: ModelTables, fit: ModelTables) -> None:
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
