"""Coverage of bootstrap intervals: how often they hold the number of the population.

    python -m benchmarks.coverage

Draws many samples of each of three populations: independent right or wrong answers; tasks of very
different sizes, skills and scores; and answers of heavy-tailed lengths judged by corpus BLEU. Each
sample has a 95 % interval of its area, a pointwise and a simultaneous band. The population's own
curve is that of a sample of a million rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import bootstrap, curves, metrics

RATES = np.linspace(0, 1, 21)
LOW, HIGH = 0.93, 0.97
POPULATION = 1_000_000
SIZES = (600, 150, 40, 12, 5)  # of tasks, in proportion
ORDERS = np.arange(4)


class Sample(NamedTuple):
  """Sizes of tasks, scores, and statistics of both models."""

  sizes: Sequence[int]
  score: np.ndarray
  small: np.ndarray
  large: np.ndarray


class Coverage(NamedTuple):
  """Shares of samples: intervals of the area, points of bands, and whole bands."""

  area: float
  pointwise: float
  simultaneous: float


def right_or_wrong(right: np.ndarray) -> np.ndarray:
  return np.stack([right, np.ones(len(right))], axis=1).astype(float)


def independent(generator: np.random.Generator, rows: int) -> Sample:
  score = generator.random(rows)
  small, large = generator.random((2, rows)) < [0.9 - 0.6 * score, 0.85 - 0.2 * score]
  return Sample((rows,), score, right_or_wrong(small), right_or_wrong(large))


def tasks(generator: np.random.Generator, rows: int) -> Sample:
  sizes = [rows * size // sum(SIZES) for size in SIZES]
  sizes[0] += rows - sum(sizes)
  task = np.repeat(np.arange(len(sizes)), sizes)
  hard = generator.normal(size=rows) + 0.7 * task
  skill = 1 / (1 + np.exp(hard - 1))
  small = generator.random(rows) < skill
  large = generator.random(rows) < np.minimum(skill + 0.25 - 0.1 * (task == 1), 1)
  score = hard + generator.normal(size=rows) * (1 + task)
  return Sample(sizes, score, right_or_wrong(small), right_or_wrong(large))


def corpus(generator: np.random.Generator, rows: int) -> Sample:
  length = np.ceil(np.minimum(4 + generator.lognormal(2, 0.9, size=rows), 300)).astype(int)
  hard = generator.normal(size=rows)

  def answers(skill: float) -> np.ndarray:
    words = 1 / (1 + np.exp(hard - skill + 0.3 * generator.normal(size=rows)))
    totals = np.maximum(length[:, None] - ORDERS, 0)
    matches = generator.binomial(totals, words[:, None] ** (ORDERS / 2 + 1))
    reference = length + generator.integers(-2, 3, size=rows)
    return np.column_stack([length, reference, matches, totals]).astype(float)

  return Sample((rows,), hard + generator.normal(size=rows), answers(1.0), answers(1.8))


KINDS: Mapping[str, tuple[Callable[[np.random.Generator, int], Sample], curves.Finalize]] = (
  MappingProxyType({
    'independent answers': (independent, metrics.ratio),
    'tasks of different sizes': (tasks, metrics.ratio),
    'corpus BLEU of heavy-tailed lengths': (corpus, metrics.finalize_bleu),
  })
)  # fmt: skip


def curve_of(sample: Sample, finalize: curves.Finalize) -> tuple[float, np.ndarray]:
  """Area, and quality at RATES."""
  curve = curves.deferral_curve(*sample[1:], finalize, lambda rate: rate)
  return curves.area(curve), np.interp(RATES, curve.deferral_rate, curve.quality)


def cover(kind: str, *, rows: int, samples: int, resamples: int, seed: int = 0) -> Coverage:
  """Coverage of the intervals of one kind of data."""
  draw, finalize = KINDS[kind]
  truth = curve_of(draw(np.random.default_rng(seed), POPULATION), finalize)
  covered = []
  for number in range(samples):
    sample = draw(np.random.default_rng((seed, number)), rows)
    counts = bootstrap.draw(sample.sizes, resamples=resamples, seed=number)
    resampled = bootstrap.resample(counts, *sample[1:], finalize, rates=RATES)
    covered.append(inside(truth, curve_of(sample, finalize)[1], resampled))
  return Coverage(*np.mean(np.array(covered, float), axis=0).tolist())


def inside(
  truth: tuple[float, np.ndarray], quality: np.ndarray, resampled: bootstrap.Resamples
) -> tuple[bool, float, bool]:
  """What one sample's interval and bands hold of the population's area and quality."""
  low, high = bootstrap.interval(resampled.area)
  bands = (
    bootstrap.interval(resampled.quality),
    bootstrap.simultaneous(quality, resampled.quality),
  )
  pointwise, simultaneous = ((lower <= truth[1]) & (truth[1] <= upper) for lower, upper in bands)
  return bool(low <= truth[0] <= high), float(pointwise.mean()), bool(simultaneous.all())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, nargs='+', default=[300, 1000])
  parser.add_argument('--samples', type=int, default=2000)
  parser.add_argument('--resamples', type=int, default=399)
  parser.add_argument('--output', default=bars.RESULTS / 'coverage.json')
  options = parser.parse_args()
  measured = []
  for kind in KINDS:
    for rows in options.rows:
      coverage = cover(kind, rows=rows, samples=options.samples, resamples=options.resamples)
      what = f'{kind}, {rows:,} rows'
      measured += [
        Measured(f'area: {what}', coverage.area, '', at_least=LOW),
        Measured(f'area: {what}', coverage.area, '', at_most=HIGH),
        Measured(f'pointwise band: {what}', coverage.pointwise, ''),
        Measured(f'simultaneous band: {what}', coverage.simultaneous, '', at_least=LOW),
      ]
  bars.report('coverage of 95 % intervals', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
