"""Numbers and columns of a point: what its answers are worth under each deferral score."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import cat_statistics
from benchmarks.cat_statistics import Rows
from cascades import deferral, learned_deferral, metrics
from cascades.evaluation import pooling
from cascades.types import Predictions

SPLITS = ('validation', 'test')
RULES = {
  'average': deferral.average,
  'sum': deferral.total,
  'minimum': deferral.minimum,
  'maximum': deferral.maximum,
  'quantile 0.4': functools.partial(deferral.quantile, q=0.4),
  'quantile 0.8': functools.partial(deferral.quantile, q=0.8),
}
LEARNED = ('edge_inference', 'post_hoc_quantile')


def agreement(run: pathlib.Path) -> list[dict[str, float]]:
  """Shares of the training tokens that both models, one or neither predicts, by step."""
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  names = ('both', 'only_small', 'only_large', 'neither')
  return [
    {'step': line['step'], **{name: line[name] for name in names}}
    for line in lines
    if all(name in line for name in names)
  ]


Tables = Mapping[str, Sequence[Predictions]]


def summarize(small: Tables, large: Tables) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Columns of the test rows, and the numbers of a point's summary."""
  names = [table.manifest['metrics'][0] for table in small['test']]
  each = [metrics.by_name(name) for name in names]
  statistics = {
    (role, split): pooling.statistics(tables[split], each)
    for role, tables in (('small', small), ('large', large))
    for split in SPLITS
  }
  quality = {
    key: np.concatenate([metric.finalize(s) for metric, s in zip(each, own, strict=True)])
    for key, own in statistics.items()
  }
  pooled = {split: pooling.pool(small[split]) for split in SPLITS}
  columns = {name: deferral.as_score(rule)(pooled['test']) for name, rule in RULES.items()}
  columns['average without the end'] = without_end(pooled['test'])
  for name in LEARNED:
    scale = max(1.0, *(float(quality[role, 'validation'].max()) for role in ('small', 'large')))
    judged = [quality[role, 'validation'] / scale for role in ('small', 'large')]
    with contextlib.suppress(learned_deferral.FitError):
      fitted = learned_deferral.fit(
        name, learned_deferral.METHODS[name], pooled['validation'], *judged
      )
      columns[name] = fitted.decider().score(pooled['test'])
  finalize = finalizer(names)
  columns |= {role: np.concatenate(statistics[role, 'test']) for role in ('small', 'large')}
  rows = Rows(columns['average'], columns['small'], columns['large'])
  ones = np.ones((1, len(rows.score)))
  numbers: dict[str, Any] = {
    name: float(value[0]) for name, value in cat_statistics.quantities(rows, ones, finalize).items()
  }
  numbers['large alone'] = float(finalize(rows.large.sum(axis=0)))
  numbers['validation alone'] = float(
    finalize(np.concatenate(statistics['small', 'validation']).sum(axis=0))
  )
  return columns, {'metric': names[0], 'rows': len(rows.score)} | numbers


def finalizer(names: Sequence[str]) -> Any:
  """The tasks' common metric; tasks are pooled as one set of rows."""
  if len(set(names)) > 1:
    raise ValueError(f'the tasks have the metrics {sorted(set(names))}: pool tasks of one metric.')
  return metrics.by_name(names[0]).finalize


def without_end(table: Predictions) -> np.ndarray:
  """The average rule over all tokens but the last, the end of sequence; all of one token."""
  logprobs, mask = table.logprobs, table.mask.copy()
  last = table.lengths - 1
  longer = np.flatnonzero(last > 0)
  mask[longer, last[longer]] = False
  return deferral.average(logprobs, mask)
