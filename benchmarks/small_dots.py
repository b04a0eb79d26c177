"""Seconds of the readout of SmolLM2 over a few tokens, relative to one token.

    python -m benchmarks.small_dots

What a call of the large model over a block of drafts can at best cost, and a step over a batch:
the product of 1 to 8 rows with a table that does not fit into the caches, in both layouts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import Array

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.speculative_rules import Call, by_turns

WIDTH, VOCABULARY, ROWS, TURNS = 576, 49152, (1, 2, 3, 4, 6, 8), 30
PRODUCTS: dict[str, Callable[[Array, Array], Array]] = {
  '[D, V], as kernels': lambda x, table: x @ table,
  '[V, D], as embeddings': lambda x, table: x @ table.T,
}


def calls(product: Callable[[Array, Array], Array], shape: tuple[int, int]) -> dict[str, Call]:
  """Products of each number of rows with one table."""
  run, table = jax.jit(product), jax.random.normal(jax.random.key(0), shape)

  def call(count: int) -> Call:
    rows = jax.random.normal(jax.random.key(1), (count, WIDTH))
    return lambda: jax.block_until_ready(run(rows, table))

  return {str(count): call(count) for count in ROWS}


def rows() -> Iterator[Measured]:
  """Least seconds over one row, and those of more rows over it, by layout."""
  shapes = (WIDTH, VOCABULARY), (VOCABULARY, WIDTH)
  for (layout, product), shape in zip(PRODUCTS.items(), shapes, strict=True):
    least = {
      count: float(np.min(own)) for count, own in by_turns(calls(product, shape), TURNS).items()
    }
    yield Measured(f'{layout}: one row', least['1'] * 1e3, 'ms')
    for count in map(str, ROWS[1:]):
      yield Measured(f'{layout}: {count} rows / one', least[count] / least['1'], 'x')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--output', default=bars.RESULTS / 'small_dots.json')
  options = parser.parse_args()
  settings = {'width': WIDTH, 'vocabulary': VOCABULARY, 'turns': TURNS}
  bars.report('Products of few rows', list(rows()), options.output, settings)


if __name__ == '__main__':
  main()
