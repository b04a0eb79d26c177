"""Cascades of three models whose small and middle ones are trained for their places, or plainly.

    python -m benchmarks.reproduce_cat --only 'g2p: base' 'g2p: three models'
    python -m benchmarks.cat_three

Reads the tables of predictions of finished points, which `benchmarks.reproduce_cat` leaves in its
folder, and trains nothing. A system is a small, a middle and the large model of a seed. Thresholds
of the average log-probability are chosen on the validation rows, for the chain of all three, for
every pair, for the best pair or single model at each cost (the pairwise envelope), and for the best
chain of any length. Areas are measured on the test rows: the mean quality over costs from the small
model's FLOPs per token to the large one's.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from benchmarks import bars, cat_runs, cat_statistics
from benchmarks.bars import Measured
from benchmarks.cat_grid import SEEDS, SIZES, Cell
from benchmarks.cat_report import RESAMPLES
from benchmarks.cat_runs import Bench
from benchmarks.cat_tasks import Folders
from cascades import bootstrap, comparisons, costs, curves, deferral, frontier, metrics
from cascades.evaluation import chain_differences, pooling
from cascades.evaluation.applied import Applied
from cascades.frontier import Outcomes
from cascades.predictions import shards

MARGIN = 0.005  # of area, the least effect that matters
CURVES: Mapping[str, Sequence[tuple[int, ...]]] = {
  'three models': [(0, 1, 2)],
  'small and middle': [(0, 1)],
  'small and large': [(0, 2)],
  'middle and large': [(1, 2)],
  'pairs': frontier.chains(3, longest=2),
  'best chains': frontier.chains(3),
}
# Each a name, and the curves of systems whose areas are compared.
COMPARED = (
  ('CAT above Xent', ('cat', 'three models'), ('xent', 'three models')),
  ('CAT above Xent, pairs', ('cat', 'pairs'), ('xent', 'pairs')),
  ('CAT above Xent, best chains', ('cat', 'best chains'), ('xent', 'best chains')),
  ('taught by both later models above by the large one alone',
   ('cat', 'three models'), ('cat, the large model alone', 'three models')),
  ('three above pairs, CAT', ('cat', 'three models'), ('cat', 'pairs')),
  ('three above pairs, Xent', ('xent', 'three models'), ('xent', 'pairs')),
)  # fmt: skip


class Rows(NamedTuple):
  """Answers of three models to the rows of a split: what decides, and the statistics of answers."""

  outcomes: Outcomes
  statistics: Float[np.ndarray, 'K N S']


def systems(task: str, seed: int) -> dict[str, tuple[Cell, Cell]]:
  """Small and middle model of each system of a seed."""
  small, *_, middle = SIZES[task]
  plain, aware = (Cell(task, small, loss, seed=seed) for loss in ('xent', 'cat_xent'))
  return {
    'xent': (plain, plain._replace(size=middle)),
    'cat': (aware._replace(middle='cat_xent'), aware._replace(size=middle)),
    'cat, the large model alone': (aware, aware._replace(size=middle)),
  }


def read(bench: Bench, cells: Sequence[Cell], split: str) -> tuple[Rows, metrics.Metric]:
  """Rows of a split that the points of a seed, and their large model, have answered."""
  runs = [*(bench.run(cell) for cell in cells), bench.large_run(cells[0])]
  tables = [shards.read(run / 'predictions' / split) for run in runs]
  (metric,) = {metrics.by_name(table.manifest['metrics'][0]) for table in tables[0]}
  each = [metric] * len(tables[0])
  statistics = np.stack([np.concatenate(pooling.statistics(own, each)) for own in tables])
  pooled = [pooling.pool(own) for own in tables]
  decide = deferral.as_score(deferral.average)
  sizes = [bench.summary(cells[0])['parameters'], bench.summary(cells[1])['parameters']]
  flops = [costs.flops_per_token(n) for n in (*(s['small'] for s in sizes), sizes[0]['large'])]
  outcomes = Outcomes(
    scores=np.stack([decide(table) for table in pooled[:-1]]),
    quality=np.stack([metric.finalize(values) for values in statistics]),
    cost=np.repeat(np.array(flops)[:, None], statistics.shape[1], axis=1),
    deciding=np.zeros(len(pooled) - 1),
  )
  return Rows(outcomes, statistics), metric


def areas(
  fitted: Rows, reported: Rows, finalize: Callable[..., np.ndarray], *, resamples: int = RESAMPLES
) -> dict[str, Float[np.ndarray, 'R+1']]:
  """Area of each curve on the reported rows: first on all, then on resamples of them."""
  outcomes, statistics = reported
  rows = statistics.shape[1]
  drawn = bootstrap.draw([rows], resamples=resamples, seed=0)
  counts = np.concatenate([np.ones((1, rows), drawn.dtype), drawn])
  limits = float(outcomes.cost[0, 0]), float(outcomes.cost[-1, 0])
  by_curve = {}
  for name, chains in CURVES.items():
    points = frontier.fit(fitted.outcomes, chains)
    reported_points = curves.evenly_spaced(len(points), chain_differences.MOST_RULES)
    rules = [points[number].rule for number in reported_points]
    applied = Applied(
      [functools.partial(frontier.apply, outcomes, rule) for rule in rules], statistics, finalize
    )
    by_curve[name] = chain_differences.resampled_areas(applied, counts, limits)
  return by_curve


Areas = Mapping[tuple[str, str], Float[np.ndarray, 'S R+1']]


def measured_areas(bench: Bench, task: str, seeds: Sequence[int]) -> Areas:
  """Areas of each system and curve, by seed and resample."""
  by_seed: dict[tuple[str, str], list[np.ndarray]] = {}
  for seed in seeds:
    for name, cells in systems(task, seed).items():
      fitted, metric = read(bench, cells, 'validation')
      reported, _ = read(bench, cells, 'test')
      for curve, values in areas(fitted, reported, metric.finalize).items():
        by_seed.setdefault((name, curve), []).append(values)
  return {key: np.stack(values) for key, values in by_seed.items()}


def report(by_curve: Areas, rows: int, *, complete: bool) -> Iterator[Measured]:
  """Rows of the mean areas, and of the compared ones with their tests, which Holm corrects."""
  for (system, curve), values in by_curve.items():
    note = f'{len(values)} seeds'
    yield Measured(f'{system}: {curve}', float(values[:, 0].mean()), 'area', note=note)
  effects = []
  for _, first, second in COMPARED:
    differences = by_curve[first] - by_curve[second]
    row_variance = float(differences[:, 1:].mean(axis=0).var(ddof=1))
    effects.append(cat_statistics.mixed(differences[:, 0].tolist(), row_variance, rows))
  adjusted = comparisons.holm(np.array([effect.p for effect in effects])).tolist()
  for (name, *_), effect, p in zip(COMPARED, effects, adjusted, strict=True):
    verdict = cat_statistics.verdict(effect, p, MARGIN, complete=complete)
    note = f'{effect.low:+.4f} .. {effect.high:+.4f}, p {effect.p:.3g}, Holm {p:.3g}: {verdict}'
    yield Measured(name, effect.mean, 'area', note=note)


def complete_seeds(bench: Bench, task: str) -> list[int]:
  """Planned seeds of which all points are complete, and their tables still there."""
  return [
    seed
    for seed in range(SEEDS[task])
    if all(
      bench.is_done(cell) and (bench.run(cell) / 'predictions').exists()
      for cells in systems(task, seed).values()
      for cell in cells
    )
  ]


def main() -> None:
  parser = cat_runs.arguments(__doc__)
  parser.add_argument('--task', default='g2p', choices=sorted(SEEDS))
  parser.add_argument('--output', default=bars.RESULTS / 'cat_three.json')
  options = parser.parse_args()
  bench = Bench(Folders(options.data.resolve(), options.work.resolve()))
  seeds = complete_seeds(bench, options.task)
  if not seeds:
    sys.exit(f'{options.work} has no seed with all points of a cascade of three: run them first.')
  by_curve = measured_areas(bench, options.task, seeds)
  rows = bench.summary(systems(options.task, seeds[0])['xent'][0])['rows']
  measured = list(report(by_curve, rows, complete=len(seeds) == SEEDS[options.task]))
  details = {f'{system}: {curve}': v[:, 0].tolist() for (system, curve), v in by_curve.items()}
  settings = {'task': options.task, 'seeds': seeds}
  bars.report('cascades of three models', measured, options.output, settings, details)


if __name__ == '__main__':
  main()
