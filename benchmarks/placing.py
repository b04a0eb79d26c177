"""Seconds that a program waits for its arguments and results, beside what it computes.

    python -m benchmarks.placing runs/demo/large

A model answers one test word of the demo's task at a time. Its program takes the prompt as global
arrays or as NumPy arrays, and its results are read by `jax.device_get` or by `np.asarray`. Turns
alternate; medians.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.speculative import WORD, in_batches, load, prompts
from benchmarks.speculative_rules import by_turns
from cascades.inference.answers import Generator
from cascades.runtime import partitioning
from cascades.types import Prompt

LEAST = 10  # seconds of turns
READING: dict[str, Callable[[Any], Any]] = {
  'device_get': jax.device_get,
  'asarray': lambda tree: jax.tree.map(np.asarray, tree),
}


def rows(run: str, words: int) -> Iterator[Measured]:
  """Microseconds of an answer by each way, and those of today over those of the first."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    model = load(run)
    asked = in_batches(prompts(model, words, None), 1)
    program = Generator(model, WORD)._generate
    sharding = NamedSharding(partitioning.active_mesh(), PartitionSpec(partitioning.BATCH))

    def globally(array: np.ndarray) -> jax.Array:
      return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    placing = {'global arrays': globally, 'NumPy arrays': lambda array: array}

    def answers(placed: str, read: str) -> Callable[[], Any]:
      def answer(prompt: Prompt) -> Any:
        arguments = jax.tree.map(placing[placed], (prompt, np.arange(1, dtype=np.int32)))
        return READING[read](program(model.params, *arguments))

      return lambda: [answer(prompt) for prompt in asked]

    ways = list(itertools.product(placing, READING))
    seconds = by_turns({', '.join(way): answers(*way) for way in ways}, 5, least=LEAST)
    medians = {way: float(np.median(own)) / len(asked) * 1e6 for way, own in seconds.items()}
    for way, own in medians.items():
      yield Measured(f'an answer: {way}', own, 'us')
    first, *_, last = medians.values()
    yield Measured('NumPy and asarray / global arrays and device_get', last / first, '')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('run', help='run directory of a model of the demo')
  parser.add_argument('--words', type=int, default=64)
  parser.add_argument('--output', default=bars.RESULTS / 'placing.json')
  options = parser.parse_args()
  settings = {'run': options.run, 'words': options.words}
  bars.report('Placing', rows(options.run, options.words), options.output, settings)


if __name__ == '__main__':
  main()
