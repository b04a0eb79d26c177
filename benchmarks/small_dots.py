"""Seconds of the readout of SmolLM2 over a few tokens, relative to one token.

    python -m benchmarks.small_dots

What a call of the large model over a block of drafts can at best cost, and a step over a batch:
the product of 1 to 8 rows with a table that does not fit into the caches, in both layouts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import jax
from jax import Array

from benchmarks import bars
from benchmarks.bars import Measured

WIDTH, VOCABULARY, ROWS, TURNS = 576, 49152, (1, 2, 3, 4, 6, 8), 30
PRODUCTS: dict[str, Callable[[Array, Array], Array]] = {
  '[D, V], as kernels': lambda x, table: x @ table,
  '[V, D], as embeddings': lambda x, table: x @ table.T,
}


def seconds(run: Callable[[Array, Array], Array], *arguments: Array) -> float:
  """The least of TURNS calls, after one that compiles."""
  jax.block_until_ready(run(*arguments))
  taken = []
  for _ in range(TURNS):
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    taken.append(time.perf_counter() - start)
  return min(taken)


def rows() -> Iterator[Measured]:
  """Seconds over one row, and of more rows over it, by layout."""
  shapes = (WIDTH, VOCABULARY), (VOCABULARY, WIDTH)
  for (layout, product), shape in zip(PRODUCTS.items(), shapes, strict=True):
    run, table = jax.jit(product), jax.random.normal(jax.random.key(0), shape)
    by_rows = {
      count: seconds(run, jax.random.normal(jax.random.key(1), (count, WIDTH)), table)
      for count in ROWS
    }
    yield Measured(f'{layout}: one row', by_rows[1] * 1e3, 'ms')
    for count in ROWS[1:]:
      yield Measured(f'{layout}: {count} rows / one', by_rows[count] / by_rows[1], 'x')


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
