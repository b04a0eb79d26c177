"""Time of exact curves and of their bootstrap.

    python -m benchmarks.bootstrap --output=runs/benchmarks/bootstrap.json

Scores, answers and BLEU counts are random, every score distinct: the most points a curve can have.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import resource
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from cascades import bootstrap, curves, metrics

ORDERS = np.arange(4)


def accuracy(generator: np.random.Generator, rows: int, skill: float) -> np.ndarray:
  return np.stack([generator.random(rows) < skill, np.ones(rows)], axis=1).astype(float)


def bleu(generator: np.random.Generator, rows: int, skill: float) -> np.ndarray:
  length = generator.integers(6, 40, size=rows)
  totals = np.maximum(length[:, None] - ORDERS, 0)
  matches = generator.binomial(totals, skill ** (ORDERS + 1))
  reference = length + generator.integers(-2, 3, size=rows)
  return np.concatenate([length[:, None], reference[:, None], matches, totals], axis=1).astype(
    float
  )


def seconds(
  repeats: int, run: Callable[..., object], *arguments: object, **options: object
) -> float:
  """The shortest of several runs: other programs only ever add to it."""
  best = np.inf
  for _ in range(repeats):
    start = time.perf_counter()
    run(*arguments, **options)
    best = min(best, time.perf_counter() - start)
  return best


def by_rate(rate: np.ndarray) -> np.ndarray:
  return rate


def measure(rows: int, resamples: int, repeats: int) -> list[dict[str, object]]:
  generator = np.random.default_rng(0)
  draw = partial(bootstrap.draw, [rows], resamples=resamples, seed=0)
  counts, rates = draw(), np.linspace(0, 1, 101)
  found = [('drawing, once', rows, seconds(repeats, draw))]
  for name, statistics, finalize in (
    ('accuracy', accuracy, metrics.ratio),
    ('BLEU', bleu, metrics.finalize_bleu),
  ):
    for what, size in (('bootstrap', rows), ('exact curve', 10 * rows)):
      score = generator.normal(size=size)
      data = score, statistics(generator, size, 0.4), statistics(generator, size, 0.6), finalize
      if what == 'bootstrap':
        took = seconds(repeats, bootstrap.resample, counts, *data, rates=rates)
      else:
        took = seconds(repeats, curves.deferral_curve, *data, by_rate)
      found.append((f'{what}, {name}', size, took))
  return [dict(zip(('what', 'rows', 'seconds'), one, strict=True)) for one in found]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=10_000)
  parser.add_argument('--resamples', type=int, default=1000)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--output', default='runs/benchmarks/bootstrap.json')
  options = parser.parse_args()
  found = measure(options.rows, options.resamples, options.repeats)
  print(f'{options.resamples} resamples\n{"what":24}{"rows":>10}{"seconds":>10}')
  for one in found:
    print(f'{one["what"]:24}{one["rows"]:>10}{one["seconds"]:>10.3f}')
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(f'peak memory {peak:.2f} GB, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
  path = pathlib.Path(options.output)
  path.parent.mkdir(parents=True, exist_ok=True)
  machine = {
    'cores': os.cpu_count(),
    'load': os.getloadavg()[0],
    'python': platform.python_version(),
  }
  settings = {'resamples': options.resamples, 'numpy': np.__version__, 'machine': machine}
  path.write_text(json.dumps({**settings, 'measured': found}))


if __name__ == '__main__':
  main()
