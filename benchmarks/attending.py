"""Written-out attention compared with `jax.nn.dot_product_attention`: values and gradient.

    python -m benchmarks.attending

The reason why models call their own where there is no kernel: on CPUs the library materializes the
scores too, and it has no soft caps, no dropout, and no cache of several segments. Causal, grouped
queries, float32; both alternate within one run.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.training_step import by_turns, ratio
from cascades.models import attention

ROWS, HEADS, KEY_HEADS, SIZE = 4, 8, 4, 64
Attend = Callable[[Array, Array, Array], Array]


def ours(query: Array, keys: Array, values: Array) -> Array:
  positions = jnp.arange(query.shape[1])[None]
  seen = attention.causal(attention.self_attention_mask(positions, None)).visible
  return attention.attend(query, [attention.key_value(keys, values)], seen, scale=SIZE**-0.5)


WAYS: dict[str, Attend] = {
  'ours': ours,
  'library': functools.partial(jax.nn.dot_product_attention, is_causal=True),
}


def measure(length: int, turns: int) -> list[Measured]:
  draw = lambda number, heads: jax.random.normal(
    jax.random.key(number), (ROWS, length, heads, SIZE)
  )
  arrays = draw(0, HEADS), draw(1, KEY_HEADS), draw(2, KEY_HEADS)

  def program(attend: Attend) -> jax.stages.Compiled:
    total = lambda *arrays: jnp.sum(attend(*arrays) ** 2)
    return jax.jit(jax.value_and_grad(total, (0, 1, 2))).lower(*arrays).compile()

  programs = {name: program(attend) for name, attend in WAYS.items()}
  run = lambda compiled: lambda: jax.block_until_ready(compiled(*arrays))
  times = by_turns({name: run(compiled) for name, compiled in programs.items()}, turns)
  temporaries = {
    name: compiled.memory_analysis().temp_size_in_bytes for name, compiled in programs.items()
  }
  return [
    Measured(f'{length} tokens: library over ours', ratio(times, 'library', 'ours'), 'x'),
    Measured(
      f'{length} tokens: its temporaries', temporaries['library'] / temporaries['ours'], 'x'
    ),
  ]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--lengths', type=int, nargs='+', default=[128, 512, 1024])
  parser.add_argument('--turns', type=int, default=9)
  parser.add_argument('--output', default=bars.RESULTS / 'attending.json')
  options = parser.parse_args()
  measured = [row for length in options.lengths for row in measure(length, options.turns)]
  bars.report('attention', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
