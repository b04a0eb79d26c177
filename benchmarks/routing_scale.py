"""Scale of routing: the exact curve of a million prompts, and the time of a decision.

    python -m benchmarks.routing_scale

Predicted losses are random, so that every prompt changes its model at prices of its own; those of
clusters change together. A decision starts at the vector of the prompt. Memory is the peak of this
process.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import price_path
from cascades.evaluation import router_fits, routers
from cascades.evaluation.router_fits import Embedded
from cascades.predictions.outcomes import OutcomeMatrix

DIMENSION, CLUSTERS, VALIDATION = 128, 100, 1000


def curve(prompts: int, models: int) -> tuple[float, int]:
  """Seconds of the exact curve, and its number of points."""
  rng = np.random.default_rng(0)
  losses = rng.random((prompts, models), np.float32)
  quality = (rng.random((prompts, models), np.float32) > losses).astype(np.float32)
  cost = np.sort(rng.random(models)) + 0.1
  started = time.perf_counter()
  path = price_path.price_path(losses, cost, quality)
  return time.perf_counter() - started, len(path.price)


def router(models: int) -> routers.ClusterRouter:
  """Router of random models on random prompts, as it is read from its file."""
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(VALIDATION, DIMENSION)).astype(np.float32)
  ids = tuple(map(str, range(VALIDATION)))
  names = tuple(f'model {i}' for i in range(models))
  quality = (rng.random((VALIDATION, models)) < 0.5).astype(float)
  matrix = OutcomeMatrix(ids, ids, names, quality, rng.random(models) + 0.1)
  embedded = Embedded(vectors, vectors, {}, 'random vectors')
  fitted = router_fits.fit(matrix, embedded, clusters=CLUSTERS, strength=24.0)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'router.json'
    routers.write(path, fitted)
    return routers.read(path)


def each(function: Callable[[np.ndarray], object], blocks: list[np.ndarray]) -> float:
  """Microseconds of a prompt, the median over blocks."""
  seconds = []
  for block in blocks:
    started = time.perf_counter()
    function(block)
    seconds.append((time.perf_counter() - started) / len(block))
  return 1e6 * float(np.median(seconds))


def measured(prompts: int, models: int) -> Iterator[Measured]:
  fitted = router(models)
  decide = fitted.rule(0.05)
  rng = np.random.default_rng(1)
  vectors = rng.normal(size=(20_000, DIMENSION)).astype(np.float32)
  for size in (1, 1000):
    blocks = np.split(vectors[: 20 * size if size > 1 else 2000], 20 if size > 1 else 2000)
    yield Measured(
      f'decision after the embedding, {size} together', each(decide, blocks), 'us', at_most=50
    )
  # Time, then cost by the number of prompts.
  few, _ = curve(prompts // 4, models)
  every, points = curve(prompts, models)
  what = f'exact curve, {prompts:,} prompts x {models} models'
  yield Measured(what, every, 's', at_most=60, note=f'{points:,} points')
  yield Measured('peak memory', bars.memory()['peak'] / 2**30, 'GiB', at_most=8)
  yield Measured('time of 4 times the prompts', every / few, 'x', note='4 is linear')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--prompts', type=int, default=1_000_000)
  parser.add_argument('--models', type=int, default=100)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'routing_scale.json')
  options = parser.parse_args()
  bars.use_cores(options.cores)
  rows = measured(options.prompts, options.models)
  bars.report('scale of routing', rows, options.output, vars(options))


if __name__ == '__main__':
  main()
