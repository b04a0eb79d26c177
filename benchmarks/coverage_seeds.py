"""Coverage of intervals of means over training seeds: of both examples and seeds.

    python -m benchmarks.coverage_seeds

Several small models whose skills are draws around that of their recipe, and a large model, answer
the same rows. Each sample has a 95 % interval of the mean area over seeds, a pointwise and a
simultaneous band (`bootstrap.over_seeds`). The population's numbers are means over all skills, by
quadrature, of a million rows each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

import numpy as np

from benchmarks import bars, coverage
from benchmarks.bars import Measured
from benchmarks.coverage import RATES, Coverage, Sample, curve_of, right_or_wrong
from cascades import bootstrap, metrics

SEEDS = (3, 5, 10)
SPREADS = {'dominating': 1.0, 'large': 0.3, 'small': 0.05}  # of skills, in log-odds


def trained(generator: np.random.Generator, rows: int, skills: Sequence[float]) -> list[Sample]:
  """Answers of one large model and of small models of these skills to the same rows."""
  hard = generator.normal(size=rows)
  large = right_or_wrong(generator.random(rows) < 1 / (1 + np.exp(hard - 1.8)))
  samples = []
  for skill in skills:
    small = generator.random(rows) < 1 / (1 + np.exp(hard - skill))
    score = hard + generator.normal(size=rows)
    samples.append(Sample((rows,), score, right_or_wrong(small), large))
  return samples


def cover(
  seeds: int, spread: float, *, rows: int, samples: int, resamples: int, seed: int = 0
) -> Coverage:
  """Coverage of the intervals of means over training seeds."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(9)
  population = trained(np.random.default_rng(seed), coverage.POPULATION, spread * nodes)
  areas, qualities = zip(*(curve_of(own, metrics.ratio) for own in population), strict=True)
  truth = tuple(np.average(values, axis=0, weights=weights) for values in (areas, qualities))
  covered = []
  for number in range(samples):
    generator = np.random.default_rng((seed, number))
    own = trained(generator, rows, spread * generator.normal(size=seeds))
    counts = bootstrap.draw((rows,), resamples=resamples, seed=number)
    resampled = bootstrap.over_seeds(
      [bootstrap.resample(counts, *sample[1:], metrics.ratio, rates=RATES) for sample in own],
      seed=(seed, number),
    )
    quality = np.mean([curve_of(sample, metrics.ratio)[1] for sample in own], axis=0)
    covered.append(coverage.inside(truth, quality, resampled))
  return Coverage(*np.mean(np.array(covered, float), axis=0).tolist())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=300)
  parser.add_argument('--samples', type=int, default=200)
  parser.add_argument('--resamples', type=int, default=199)
  parser.add_argument('--output', default=bars.RESULTS / 'coverage_seeds.json')
  options = parser.parse_args()
  measured = []
  for (name, spread), seeds in product(SPREADS.items(), SEEDS):
    result = cover(
      seeds, spread, rows=options.rows, samples=options.samples, resamples=options.resamples
    )
    what = f'{seeds} seeds of {name} spread'
    measured += [
      Measured(f'area: {what}', result.area, ''),
      Measured(f'pointwise band: {what}', result.pointwise, ''),
      Measured(f'simultaneous band: {what}', result.simultaneous, ''),
    ]
  bars.report('coverage of 95 % intervals over seeds', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
