"""The linear theory of ResMem: a base that is too short, and 1-NN on its residuals.

    python -m benchmarks.resmem_theory

y = <theta*, x> with ||theta*|| = 1, x uniform in the unit ball of d dimensions, base <theta, x>
with ||theta|| <= Lc < 1. The base's risk stays at (1 - Lc)^2 E<theta*, x>^2 = (1 - Lc)^2 / (d + 2);
ResMem's vanishes with n. Writes docs/resmem_theory.png, if Matplotlib is there, and JSON.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import resmem

DIMENSIONS = (2, 3, 4)
SIZES = (30, 100, 300, 1000, 3000, 10_000, 30_000)
SHORT = 0.5  # Lc
QUERIES = 2000
FIGURE = pathlib.Path(__file__).parents[1] / 'docs' / 'resmem_theory.png'


class Risks(NamedTuple):
  """Mean squared errors on new points."""

  base: float
  resmem: float


def ball(rng: np.random.Generator, n: int, d: int) -> Float[np.ndarray, 'n d']:
  """Points that are uniform in the unit ball."""
  directions = rng.standard_normal((n, d))
  radii = rng.random((n, 1)) ** (1 / d)
  return radii * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def risks(d: int, bound: float, n: int, *, seed: int, queries: int = QUERIES) -> Risks:
  """Risks of the best base in the ball of radius `bound`, and of ResMem with one neighbor.

  The least squares solution within the ball is theta* shortened to `bound` as n grows, since
  E x x^T is a multiple of the identity; here it is that at every n, by projected gradient descent.
  """
  rng = np.random.default_rng(seed)
  x, points = ball(rng, n, d), ball(rng, queries, d)
  theta = np.eye(d)[0]
  base = constrained(x, x @ theta, bound)
  keys, query = (jnp.asarray(array, jnp.float32) for array in (x, points))
  residual = jnp.asarray(x @ (theta - base), jnp.float32)[:, None]
  index = resmem.nearest(query, keys, 1)
  weight = resmem.weights(resmem.distances(query, keys, index), 1.0)
  predicted = np.asarray(resmem.add(query @ jnp.asarray(base)[:, None], weight, residual[index]))
  return Risks(
    float(np.mean((points @ (theta - base)) ** 2)),
    float(np.mean((points @ theta - predicted[:, 0]) ** 2)),
  )


def constrained(
  x: Float[np.ndarray, 'n d'], y: Float[np.ndarray, 'n'], bound: float, steps: int = 200
) -> Float[np.ndarray, 'd']:
  """Least squares in the ball of a radius, by projected gradient descent."""
  gram, cross = x.T @ x / len(x), x.T @ y / len(x)
  theta, rate = np.zeros(x.shape[1]), 1 / float(np.linalg.norm(gram, 2))
  for _ in range(steps):
    theta = theta - rate * (gram @ theta - cross)
    theta *= bound / max(bound, float(np.linalg.norm(theta)))
  return theta


def measured(seeds: int) -> Iterator[tuple[int, int, Risks]]:
  """Mean risks over seeds, by dimension and size."""
  for d, n in itertools.product(DIMENSIONS, SIZES):
    runs = [risks(d, SHORT, n, seed=seed) for seed in range(seeds)]
    yield d, n, Risks(*np.mean(runs, axis=0).tolist())


def rows(points: list[tuple[int, int, Risks]]) -> Iterator[Measured]:
  """The base's plateau against its formula, and ResMem's fall, by dimension."""
  for d in DIMENSIONS:
    own = {n: risk for dimension, n, risk in points if dimension == d}
    formula = (1 - SHORT) ** 2 / (d + 2)
    last, first = own[SIZES[-1]], own[SIZES[0]]
    off = abs(last.base / formula - 1)
    yield Measured(f'd={d}: base risk off (1-Lc)^2/(d+2)', off, '', at_most=0.05)
    yield Measured(f'd={d}: base risk, last n over first', last.base / first.base, '')
    fall = last.resmem / first.resmem
    yield Measured(f'd={d}: ResMem risk, last n over first', fall, '', at_most=0.2)
    slope = np.polyfit(np.log(list(own)), np.log([risk.resmem for risk in own.values()]), 1)[0]
    yield Measured(f'd={d}: ResMem exponent of n', float(slope), '', note=f'-2/d = {-2 / d:.3f}')


def figure(points: list[tuple[int, int, Risks]], path: pathlib.Path) -> None:
  """Risks against n on logarithmic axes."""
  try:
    from matplotlib.figure import Figure
  except ImportError:
    print('no figure: pip install matplotlib')
    return
  drawing = Figure(figsize=(6, 4), layout='constrained')
  axes = drawing.subplots()
  for d, color in zip(DIMENSIONS, ('C0', 'C1', 'C2'), strict=True):
    own = [(n, risk) for dimension, n, risk in points if dimension == d]
    sizes = [n for n, _ in own]
    axes.loglog(sizes, [r.base for _, r in own], '--', color=color, label=f'base, d = {d}')
    axes.loglog(sizes, [r.resmem for _, r in own], 'o-', color=color, label=f'ResMem, d = {d}')
  axes.set(xlabel='training points n', ylabel='mean squared error')
  axes.set_title(f'Linear target, base of length Lc = {SHORT}')
  axes.legend(fontsize=8, ncols=2)
  drawing.savefig(path, dpi=120)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--figure', type=pathlib.Path, default=FIGURE)
  parser.add_argument('--output', default=bars.RESULTS / 'resmem_theory.json')
  options = parser.parse_args()
  points = list(measured(options.seeds))
  details = [{'d': d, 'n': n, **risk._asdict()} for d, n, risk in points]
  settings = {'seeds': options.seeds, 'Lc': SHORT, 'queries': QUERIES}
  bars.report('ResMem, linear theory', rows(points), options.output, settings, details)
  figure(points, options.figure)


if __name__ == '__main__':
  main()
