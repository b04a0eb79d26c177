"""Alignment and selection of rows of tables of predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascades.types import Metric, Predictions


def join(small: Predictions, large: Predictions) -> tuple[Predictions, Predictions]:
  """Align two tables of the same examples, in the order of the large model's.

  Vocabularies may differ, since deferral compares texts.

  Args:
    small: Table of the small model.
    large: Table of the large model.

  Returns:
    Both tables, row by row of the same example.

  Raises:
    ValueError: if task, split, metrics, examples, targets or groups of the tables differ.
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
  for table, other, name in ((small, large, 'large'), (large, small, 'small')):
    if missing := sorted(set(table.ids) - set(other.ids)):
      raise ValueError(
        f'{where}: {len(missing)} of {len(table.ids)} examples have no answer by the {name} model, '
        f'such as {", ".join(map(repr, missing[:3]))}; infer both on the whole split.'
      )
  aligned = select(small, positions(small, large.ids))
  for name, targets, large_targets in zip(large.ids, aligned.targets, large.targets, strict=True):
    if set(targets) != set(large_targets):
      raise ValueError(
        f'{where}: targets of {name!r} differ: small {list(targets)!r:.200}, large '
        f'{list(large_targets)!r:.200}; the tables come from different versions of the data.'
      )
  if aligned.groups and large.groups and list(aligned.groups) != list(large.groups):
    raise ValueError(
      f'{where}: groups of rows differ between small and large; the tables come from different '
      'versions of the data.'
    )
  return aligned, large


def positions(table: Predictions, ids: Sequence[str]) -> list[int]:
  """Rows of a table with these ids, in the order of the ids.

  Args:
    table: A table.
    ids: Ids of some of its rows, for example of a table that was selected from it.

  Raises:
    KeyError: if the table has no row of an id.
  """
  position = {name: i for i, name in enumerate(table.ids)}
  return [position[name] for name in ids]


def select(table: Predictions, rows: Sequence[int]) -> Predictions:
  """Table of the given rows, in that order."""
  index = np.asarray(rows, int)
  return table._replace(
    ids=[table.ids[i] for i in rows],
    inputs=[table.inputs[i] for i in rows],
    targets=[table.targets[i] for i in rows],
    predictions=[table.predictions[i] for i in rows],
    token_logprobs=table.tokens(index),
    lengths=table.lengths[index],
    statistics={name: values[index] for name, values in table.statistics.items()},
    groups=[table.groups[i] for i in rows] if table.groups else (),
    slices=[table.slices[i] for i in rows] if table.slices else (),
    columns={name: values[index] for name, values in table.columns.items()},
    alternatives=None if table.alternatives is None else table.alternatives[table.positions(index)],
    embeddings={name: values[index] for name, values in table.embeddings.items()},
    by_token={name: values[table.positions(index)] for name, values in table.by_token.items()},
  )


def distinct_inputs(table: Predictions) -> list[int]:
  """Index of the first row of each distinct input."""
  first = {text: row for row, text in reversed([*enumerate(table.inputs)])}
  return sorted(first.values())


def judge(table: Predictions, metric: Metric) -> Predictions:
  """Table with the statistics of a metric, computed from the texts unless inference stored them."""
  if metric.name in table.statistics:
    return table
  statistics = np.array(list(map(metric.statistics, table.targets, table.predictions)))
  return table._replace(statistics={**table.statistics, metric.name: statistics})
