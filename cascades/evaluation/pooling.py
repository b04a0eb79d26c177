"""Pooling of several tasks under one threshold: one table, one matrix of statistics, one metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from cascades import curves, types
from cascades.curves import Finalize, Statistics
from cascades.types import Metric, Predictions

TaskWeights: TypeAlias = Literal['size', 'uniform']

POOLED = types.POOLED


class Subset(NamedTuple):
  """Examples of one curve: their rows and columns in the matrix, and the metric of their sum."""

  task: str
  rows: slice
  columns: slice
  finalize: Finalize


class StatisticsLayout(NamedTuple):
  """Arrangement of several tasks' statistics in one matrix.

  Attributes:
    weights: Weights of the tasks in the mean over all tasks.
    stack: Function that stacks one model's statistics, task by task, into the matrix [N, K].
    subsets: All tasks together, then each task if there are several.
  """

  weights: TaskWeights
  stack: Callable[[Sequence[Statistics]], Statistics]
  subsets: tuple[Subset, ...]


def pool(tables: Sequence[Predictions]) -> Predictions:
  """Concatenates one model's tables of several tasks; ids and groups become task/name.

  If only some tasks have groups, each row of the others is a group of its own. Statistics are left
  out: those of one metric add up only within a task.
  """
  return tables[0]._replace(
    task=POOLED,
    ids=[f'{table.task}/{name}' for table in tables for name in table.ids],
    inputs=[text for table in tables for text in table.inputs],
    targets=[answers for table in tables for answers in table.targets],
    predictions=[text for table in tables for text in table.predictions],
    token_logprobs=np.concatenate([table.token_logprobs for table in tables]),
    lengths=np.concatenate([table.lengths for table in tables]),
    statistics={},
    groups=[f'{table.task}/{name}' for table in tables for name in table.groups or table.ids]
    if any(table.groups for table in tables)
    else (),
    slices=[name for table in tables for name in table.slices or [''] * len(table.ids)]
    if any(table.slices for table in tables)
    else (),
    columns=_pool_columns(tables),
    alternatives=_pool_alternatives([table.alternatives for table in tables]),
    embeddings={
      name: np.concatenate([table.embeddings[name] for table in tables])
      for name in set.intersection(*(set(table.embeddings) for table in tables))
    },
    by_token={
      name: np.concatenate([table.by_token[name] for table in tables])
      for name in set.intersection(*(set(table.by_token) for table in tables))
    },
  )


def _pool_columns(tables: Sequence[Predictions]) -> dict[str, np.ndarray]:
  """Columns of any of the tables, unknown (nan) in the others."""
  return {
    name: np.concatenate(
      [table.columns.get(name, np.full(len(table.ids), np.nan)) for table in tables]
    )
    for name in dict.fromkeys(name for table in tables for name in table.columns)
  }


def _pool_alternatives(tables: Sequence[np.ndarray | None]) -> np.ndarray | None:
  """Alternatives of all tokens, padded to the largest number; None unless all tables have them."""
  arrays = [array for array in tables if array is not None]
  if len(arrays) < len(tables):
    return None
  most = max(array.shape[1] for array in arrays)
  return np.concatenate(
    [
      np.pad(array, ((0, 0), (0, most - array.shape[1])), constant_values=-np.inf)
      for array in arrays
    ]
  )


def layout(
  models: Sequence[Sequence[Predictions]], metrics: Sequence[Metric], weights: TaskWeights | None
) -> StatisticsLayout:
  """Chooses the layout for models that answered the same tasks, one metric per task.

  Args:
    models: Each model's tables, in the same order of tasks.
    metrics: Metric of each task; the tables hold its statistics.
    weights: 'size', 'uniform', or None: by size if every metric is a mean over examples (then all
      tasks share their columns and together are one mean), else uniform, as is usual for BLEU.

  Raises:
    ValueError: The weights are unknown, or the metrics differ in scale or direction.
  """
  if len({(metric.scale, metric.higher_is_better) for metric in metrics}) > 1:
    raise ValueError(
      f'The metrics {", ".join(sorted({metric.name for metric in metrics}))} have different scales '
      'or directions, so their mean over tasks has no meaning. Choose one metric, or fewer tasks.'
    )
  if weights not in (None, *get_args(TaskWeights)):
    raise ValueError(
      f'Unknown task weights {weights!r}; expected {", ".join(get_args(TaskWeights))} or None.'
    )
  stored = [statistics(tables, metrics) for tables in models]
  means = all(is_mean(matrix) for model in stored for matrix in model)
  weights = weights or ('size' if means else 'uniform')
  sizes, widths = zip(*(matrix.shape for matrix in stored[0]), strict=True)
  finalizes = [metric.finalize for metric in metrics]
  finalize_all = finalizes[0]
  stack: Callable[[Sequence[Statistics]], Statistics] = np.vstack
  columns = [slice(None)] * len(sizes)
  if not (means and weights == 'size' and len(set(finalizes)) == 1):
    stack, columns = curves.stack_tasks, list(_slices(widths))
    shares = sizes if weights == 'size' else [1] * len(sizes)
    finalize_all = curves.mean_over_tasks(finalizes, widths, shares)
  subsets = [Subset(POOLED, slice(None), slice(None), finalize_all)]
  if len(sizes) > 1:
    names = [table.task for table in models[0]]
    subsets += map(Subset, names, task_rows(models[0]), columns, finalizes)
  return StatisticsLayout(weights, stack, tuple(subsets))


def statistics(tables: Sequence[Predictions], metrics: Sequence[Metric]) -> list[Statistics]:
  """Each task's statistics of its metric."""
  return [table.statistics[metric.name] for table, metric in zip(tables, metrics, strict=True)]


def is_mean(statistics: Statistics) -> bool:
  """True for statistics of a metric that is a mean over rows, and no function of all their sums."""
  return statistics.shape[1] == 2 and bool((statistics[:, 1] == 1).all())


def task_rows(tables: Sequence[Predictions]) -> list[slice]:
  """Each task's rows in the pooled table."""
  return list(_slices([len(table.ids) for table in tables]))


def _slices(widths: Sequence[int]) -> Iterator[slice]:
  ends = np.cumsum(widths)
  return (slice(end - width, end) for width, end in zip(widths, ends, strict=True))
