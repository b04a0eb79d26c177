"""Aligning tables of predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascades.types import Metric, Predictions


def join(small: Predictions, large: Predictions) -> tuple[Predictions, Predictions]:
  """Both tables in the large one's order. Refuses tables that do not answer the same questions.

  Vocabularies may differ: deferral compares texts.
  """
  where = f'task {large.task!r}, split {large.split!r}'
  if (small.task, small.split) != (large.task, large.split):
    raise ValueError(
      f'The small model answered task {small.task!r}, split {small.split!r}, the large one '
      f'{where}; infer both on the same.'
    )
  if set(small.statistics) != set(large.statistics):
    raise ValueError(
      f'Metrics of {where} differ: small {sorted(small.statistics)}, large '
      f'{sorted(large.statistics)}; infer both with the same task definition.'
    )
  for here, there, name in ((small, large, 'large'), (large, small, 'small')):
    if missing := sorted(set(here.ids) - set(there.ids)):
      raise ValueError(
        f'{where}: {len(missing)} of {len(here.ids)} examples have no answer by the {name} model, '
        f'such as {", ".join(map(repr, missing[:3]))}; infer both on the whole split.'
      )
  position = {name: i for i, name in enumerate(small.ids)}
  aligned = select(small, [position[name] for name in large.ids])
  for name, ours, theirs in zip(large.ids, aligned.targets, large.targets, strict=True):
    if set(ours) != set(theirs):
      raise ValueError(
        f'{where}: targets of {name!r} differ: small {list(ours)!r:.200}, large '
        f'{list(theirs)!r:.200}; the tables come from different versions of the data.'
      )
  if aligned.groups and large.groups and list(aligned.groups) != list(large.groups):
    raise ValueError(
      f'{where}: the two tables group their rows differently; they come from different versions '
      'of the data.'
    )
  return aligned, large


def select(table: Predictions, rows: Sequence[int]) -> Predictions:
  """The given rows of a table, in that order."""
  index = np.asarray(rows, int)
  return table._replace(
    ids=[table.ids[i] for i in rows],
    inputs=[table.inputs[i] for i in rows],
    targets=[table.targets[i] for i in rows],
    predictions=[table.predictions[i] for i in rows],
    logprobs=table.logprobs[index],
    mask=table.mask[index],
    statistics={name: values[index] for name, values in table.statistics.items()},
    groups=[table.groups[i] for i in rows] if table.groups else (),
  )


def distinct_inputs(table: Predictions) -> list[int]:
  """The first row of each distinct input."""
  first = {text: row for row, text in reversed([*enumerate(table.inputs)])}
  return sorted(first.values())


def judge(table: Predictions, metric: Metric) -> Predictions:
  """With the metric's statistics, computed from the texts if inference did not store them."""
  if metric.name in table.statistics:
    return table
  found = np.array(list(map(metric.statistics, table.targets, table.predictions)))
  return table._replace(statistics={**table.statistics, metric.name: found})
