"""Uses of a table of predictions: the scores, costs and metrics that its columns allow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from etils import epath

from cascades import deferral
from cascades.predictions import shards
from cascades.predictions.rows import Mode
from cascades.types import COLUMNS, Predictions


def describe(directory: epath.PathLike, *, mode: Mode = 'predict') -> list[str]:
  """Lines about every table of a directory, which is validated.

  Args:
    directory: Directory of a split.
    mode: Mode of the tables.

  Raises:
    FileNotFoundError: if there is no table, or one is unfinished.
    ValueError: naming the file, line and field of what is invalid.
  """
  return [line for table in shards.read(directory, mode=mode) for line in _lines(table)]


def _lines(table: Predictions) -> Iterator[str]:
  manifest, N = table.manifest, len(table.ids)
  name = manifest['model'].get('name', manifest['model'].get('type', manifest['checkpoint']))
  yield f'{table.task}, split {table.split}: {N} rows by {name}'
  unlabelled = manifest.get('unlabelled')
  metrics = [
    f'{metric} {values[:, 0].sum() / values[:, 1].sum():.4f}'
    if values.shape[1] == 2 and values[:, 1].sum() and not unlabelled
    else metric
    for metric, values in table.statistics.items()
  ]
  yield f'  metrics: {", ".join(metrics)}'
  if unlabelled:
    yield f'  {unlabelled} rows have no target: no metric can judge them'
  if cut := manifest.get('cut_off'):
    yield f'  {cut} answers were cut off at the largest number of tokens'
  if repeats := N - len(set(table.inputs)):
    yield f'  {repeats} prompts are repeated'
  yield f'  columns: {", ".join(_columns(table)) or "none"}'
  missing = {each.name: deferral.missing(each.reads, table) for each in deferral.DECIDERS.values()}
  yield f'  scores: {", ".join(each for each, names in missing.items() if not names)}'
  for names in sorted({tuple(names) for names in missing.values() if names}):
    of = [each for each, absent in missing.items() if tuple(absent) == names]
    yield f'    not {", ".join(of)}: no {", ".join(names)}'
  yield from _costs(table)


def _columns(table: Predictions) -> Iterator[str]:
  if len(table.token_logprobs):
    yield 'token_logprobs'
  if table.alternatives is not None and table.alternatives.size:
    yield f'alternatives ({table.alternatives.shape[1]} a token)'
  for name, values in table.columns.items():
    share = np.mean(~np.isnan(values))
    yield name if share == 1 else f'{name} ({share:.1%} of the rows)'
  for name, texts in (('groups', table.groups), ('slices', table.slices)):
    if texts:
      yield f'{len(set(texts))} {name}'


def _costs(table: Predictions) -> Iterator[str]:
  has = {name: not deferral.missing([name], table) for name in COLUMNS}
  tokens = has['prompt_tokens'] and (has['generated_tokens'] or len(table.token_logprobs) > 0)
  axes = {
    'flops': '' if tokens else 'prompt_tokens and generated_tokens',
    'seconds': '' if has['seconds'] else 'seconds',
    'dollars': '' if has['dollars'] or tokens else 'dollars, or tokens that prices apply to',
    'large calls': '',
  }
  yield f'  costs: {", ".join(name for name, absent in axes.items() if not absent)}'
  for name, absent in axes.items():
    if absent:
      yield f'    not {name}: no {absent}'
