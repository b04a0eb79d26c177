"""Numbers and columns of a point: what its answers are worth under each deferral score."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from benchmarks import cat_statistics
from benchmarks.cat_statistics import Rows
from cascades import deferral, infer, learned_deferral, metrics
from cascades.data.corpus import Data
from cascades.evaluation import pooling
from cascades.inference.trained_model import Checkpoint
from cascades.predictions import shards
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


Tables: TypeAlias = Mapping[str, Sequence[Predictions]]
Columns: TypeAlias = dict[str, np.ndarray]


class Answering(NamedTuple):
  """How the models of a task answer, and what a point stores of it.

  Fields: `answer` writes the answers of a run into its folder; `summarize` gives the columns of the
  test rows and the numbers of the summary, from the folders of a small and of the large model.
  """

  answer: Callable[[pathlib.Path, Data], None]
  summarize: Callable[[pathlib.Path, pathlib.Path], tuple[Columns, dict[str, Any]]]


def decode(run: pathlib.Path, data: Data) -> None:
  """Write the tables of greedy answers to the validation and test rows."""
  infer.infer(
    Checkpoint(str(run)), infer.Output(str(run / 'predictions')), data=data, splits=SPLITS
  )


def of_tables(small: pathlib.Path, large: pathlib.Path) -> tuple[Columns, dict[str, Any]]:
  """`summarize`, of the tables of both runs."""
  return summarize(
    *({split: shards.read(run / 'predictions' / split) for split in SPLITS}
      for run in (small, large))
  )  # fmt: skip


DECODED = Answering(decode, of_tables)


def summarize(small: Tables, large: Tables) -> tuple[Columns, dict[str, Any]]:
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
  columns |= {role: np.concatenate(statistics[role, 'test']) for role in ('small', 'large')}
  if len(names) > 1:
    columns['task'] = np.repeat([table.task for table in small['test']],
                                [len(table.ids) for table in small['test']])  # fmt: skip
  validation = np.concatenate(statistics['small', 'validation'])
  return columns, numbers(common(names), columns, validation)


def numbers(metric: str, columns: Columns, validation: np.ndarray) -> dict[str, Any]:
  """Numbers of a summary: of the test rows by the average, and alone on the validation rows."""
  finalize = metrics.by_name(metric).finalize
  rows = Rows(columns['average'], columns['small'], columns['large'])
  ones = np.ones((1, len(rows.score)))
  values: dict[str, Any] = {
    name: float(value[0]) for name, value in cat_statistics.quantities(rows, ones, finalize).items()
  }
  values['large alone'] = float(finalize(rows.large.sum(axis=0)))
  values['validation alone'] = float(finalize(validation.sum(axis=0)))
  return {'metric': metric, 'rows': len(rows.score)} | values


def common(names: Sequence[str]) -> str:
  """The tasks' common metric; tasks are pooled as one set of rows."""
  if len(set(names)) > 1:
    raise ValueError(f'the tasks have the metrics {sorted(set(names))}: pool tasks of one metric.')
  return names[0]


def without_end(table: Predictions) -> np.ndarray:
  """The average rule over all tokens but the last, the end of sequence; all of one token."""
  logprobs, mask = table.logprobs, table.mask.copy()
  last = table.lengths - 1
  longer = np.flatnonzero(last > 0)
  mask[longer, last[longer]] = False
  return deferral.average(logprobs, mask)
