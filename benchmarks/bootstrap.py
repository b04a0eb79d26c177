"""Time of exact curves and of their bootstrap.

    python -m benchmarks.bootstrap

Scores, answers, and BLEU counts are random and all scores distinct, so curves have the maximum
number of points.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
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
  """Shortest of several runs, since other programs can only add to it."""
  best = np.inf
  for _ in range(repeats):
    start = time.perf_counter()
    run(*arguments, **options)
    best = min(best, time.perf_counter() - start)
  return best


def by_rate(rate: np.ndarray) -> np.ndarray:
  return rate


def measure(rows: int, resamples: int, repeats: int) -> list[Measured]:
  generator = np.random.default_rng(0)
  draw = partial(bootstrap.draw, [rows], resamples=resamples, seed=0)
  counts, rates = draw(), np.linspace(0, 1, 101)
  measured = [Measured(f'drawing, once, {rows:,} rows', seconds(repeats, draw), 's')]
  for name, statistics, finalize in (
    ('accuracy', accuracy, metrics.ratio),
    ('BLEU', bleu, metrics.finalize_bleu),
  ):
    for what, size in (('bootstrap', rows), ('exact curve', 10 * rows)):
      score = generator.normal(size=size)
      data = score, statistics(generator, size, 0.4), statistics(generator, size, 0.6), finalize
      if what == 'bootstrap':
        duration = seconds(repeats, bootstrap.resample, counts, *data, rates=rates)
      else:
        duration = seconds(repeats, curves.deferral_curve, *data, by_rate)
      measured.append(Measured(f'{what}, {name}, {size:,} rows', duration, 's'))
  return measured


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=10_000)
  parser.add_argument('--resamples', type=int, default=1000)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--output', default=bars.RESULTS / 'bootstrap.json')
  options = parser.parse_args()
  measured = measure(options.rows, options.resamples, options.repeats)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  measured.append(Measured('peak memory', peak, 'GiB'))
  bars.report('curves and their bootstrap', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
