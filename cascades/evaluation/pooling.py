"""Several tasks under one threshold: one table, one matrix of statistics, one metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from cascades import curves
from cascades.curves import Finalize, Statistics
from cascades.types import Metric, Predictions

Weights: TypeAlias = Literal['size', 'uniform']

POOLED = 'all tasks'


class Group(NamedTuple):
  """What one curve is drawn over: rows and columns of the matrix, and the metric of their sum."""

  task: str
  rows: slice
  columns: slice
  finalize: Finalize


class Layout(NamedTuple):
  """How each model's statistics are stacked, and the groups: all tasks, then each if several."""

  weights: Weights
  stack: Callable[[Sequence[Statistics]], Statistics]
  groups: tuple[Group, ...]


def pool(tables: Sequence[Predictions]) -> Predictions:
  """One model's tables of several tasks below each other; ids become task/id, and so do groups.

  Beside tasks with groups, a row of one without is a group by itself. Statistics stay behind:
  those of one metric add up only within a task.
  """
  width = max(table.logprobs.shape[1] for table in tables)

  def padded(values: np.ndarray) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))

  return tables[0]._replace(
    task=POOLED,
    ids=[f'{table.task}/{name}' for table in tables for name in table.ids],
    inputs=[text for table in tables for text in table.inputs],
    targets=[answers for table in tables for answers in table.targets],
    predictions=[text for table in tables for text in table.predictions],
    logprobs=np.concatenate([padded(table.logprobs) for table in tables]),
    mask=np.concatenate([padded(table.mask) for table in tables]),
    statistics={},
    groups=[f'{table.task}/{name}' for table in tables for name in table.groups or table.ids]
    if any(table.groups for table in tables)
    else (),
  )


def layout(
  models: Sequence[Sequence[Predictions]], metrics: Sequence[Metric], weights: Weights | None
) -> Layout:
  """For models that answered the same tasks, each judged by its own metric.

  Weights of None are the tasks' sizes if every metric is a mean over examples (then all tasks
  together are one mean, over fewer columns) and equal if not, as for BLEU.
  """
  _check_kind(metrics)
  if weights not in (None, *get_args(Weights)):
    raise ValueError(
      f'Tasks are weighted by {", ".join(get_args(Weights))} or None, not {weights!r}.'
    )
  stored = [statistics(model, metrics) for model in models]
  means = all(one.shape[1] == 2 and (one[:, 1] == 1).all() for own in stored for one in own)
  weights = weights or ('size' if means else 'uniform')
  sizes, widths = zip(*(one.shape for one in stored[0]), strict=True)
  finalizes = [metric.finalize for metric in metrics]
  together = finalizes[0]
  stack: Callable[[Sequence[Statistics]], Statistics] = np.vstack
  columns = [slice(None)] * len(sizes)
  if not (means and weights == 'size' and len(set(finalizes)) == 1):
    stack, columns = curves.stack_tasks, list(_slices(widths))
    shares = sizes if weights == 'size' else [1] * len(sizes)
    together = curves.mean_over_tasks(finalizes, widths, shares)
  names = [table.task for table in models[0]]
  single = list(map(Group, names, _slices(sizes), columns, finalizes)) if len(names) > 1 else []
  return Layout(weights, stack, (Group(POOLED, slice(None), slice(None), together), *single))


def statistics(tables: Sequence[Predictions], metrics: Sequence[Metric]) -> list[Statistics]:
  """Each task's, by its own metric."""
  return [one.statistics[metric.name] for one, metric in zip(tables, metrics, strict=True)]


def _slices(widths: Sequence[int]) -> Iterator[slice]:
  ends = np.cumsum(widths)
  return (slice(end - width, end) for width, end in zip(widths, ends, strict=True))


def _check_kind(metrics: Sequence[Metric]) -> None:
  if len({(metric.scale, metric.higher_is_better) for metric in metrics}) > 1:
    raise ValueError(
      f'The metrics {", ".join(sorted({metric.name for metric in metrics}))} have different scales '
      'or directions; their mean over tasks means nothing. Choose one metric, or fewer tasks.'
    )
