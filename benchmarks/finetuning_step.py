"""A fine-tuning step of 135 M parameters on CPU, beside PyTorch's: AdamW and Adafactor.

    python -m benchmarks.finetuning_step

One row of 128 and of 256 tokens, all of them targets, random weights in the shape of SmolLM2-135M,
float32, as many threads as cores. The steps take turns. "gradient" is the step without its passes
over parameters and moments. Requires the extra `reference`. On Linux, large pages save these passes
half a million page faults a step: `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, for both alike.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Mapping
from statistics import median

import jax.numpy as jnp
import numpy as np

from benchmarks import bars, training_step
from benchmarks.ahead_of_time import SMOLLM2
from benchmarks.bars import Measured
from cascades import losses
from cascades.runtime import partitioning
from cascades.training import optimizers
from cascades.types import Batch

OPTIMIZERS: Mapping[str, tuple[optimizers.Optimizer, str]] = {
  'AdamW': (training_step.ADAMW, 'AdamW'),
  'Adafactor': (optimizers.adafactor, 'Adafactor'),
}
MOST = 1.15  # of PyTorch's time


def row(length: int) -> Batch:
  drawn = np.random.default_rng(0).integers(3, SMOLLM2.vocab_size, (1, length))
  tokens = jnp.asarray(drawn, jnp.int32)
  return Batch(jnp.roll(tokens, 1, 1), tokens, jnp.ones(tokens.shape, jnp.float32))


def measure(lengths: tuple[int, ...], turns: int) -> Iterator[Measured]:
  for length in lengths:
    examples = row(length)
    for name, (ours, theirs) in OPTIMIZERS.items():
      steps = {
        'ours': training_step.ours(SMOLLM2, None, losses.xent, itertools.repeat(examples), ours),
        'theirs': training_step.theirs(SMOLLM2, None, examples=examples, optimizer=theirs),
        'gradient': training_step.theirs(SMOLLM2, None, examples=examples, update=False),
      }
      times = training_step.by_turns(steps, turns)
      where = f'{length} tokens, {name}'
      yield Measured(
        f'{where}: ours over PyTorch', training_step.ratio(times, 'ours', 'theirs'), 'ratio',
        at_most=MOST, note=f'{median(times["ours"]):.0f} / {median(times["theirs"]):.0f} ms',
      )  # fmt: skip
      yield Measured(f'{where}: PyTorch, gradient alone', median(times['gradient']), 'ms')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--lengths', type=int, nargs='+', default=[128, 256])
  parser.add_argument('--turns', type=int, default=7)
  parser.add_argument('--output', default=bars.RESULTS / 'finetuning_step.json')
  options = parser.parse_args()
  pages = {'large pages': 'hugetlb=1' in os.environ.get('GLIBC_TUNABLES', '')}
  with partitioning.use(partitioning.make_mesh()):
    bars.report(
      'a fine-tuning step of 135 M parameters', measure(tuple(options.lengths), options.turns),
      options.output, vars(options) | pages,
    )  # fmt: skip


if __name__ == '__main__':
  main()
