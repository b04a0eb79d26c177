"""Overhead of a training step besides its program: Python, dispatch, and the next batch.

    python -m benchmarks.waiting

The loop of a run, which logs every 100 steps, alternates with the same compiled program called in a
bare loop, with batches on the device in both; then also transferring the rows at every step, as in
a run. The model is tiny, because the overhead would disappear in the noise of a 50 ms step. Finally
the rate of the demo's input pipeline over the rate at which the program consumes rows.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import jax
import numpy as np

from benchmarks import bars, training_step
from benchmarks.bars import Measured
from cascades import losses
from cascades.data.corpus import Corpus
from cascades.models import t5
from cascades.runtime import partitioning
from cascades.tasks import cmudict
from cascades.training import loop
from cascades.types import Batch

ROWS = 64
LENGTHS = {'inputs': 16, 'targets': 16}
LOG_EVERY = 100


def model(emb_dim: int, vocab_size: int) -> t5.T5Config:
  return t5.T5Config(
    vocab_size, emb_dim=emb_dim, num_heads=4, num_encoder_layers=2, num_decoder_layers=2,
    mlp_dim=2 * emb_dim,
  )  # fmt: skip


class Step:
  """A compiled step and its current state."""

  def __init__(self, small: t5.T5Config, batch: Batch):
    step, self.state, self.frozen = training_step.prepared(small, None, losses.xent)
    self.batch = partitioning.place_batch(batch)
    self.program: Any = step.lower(self.state, self.frozen, self.batch).compile()

  def bare(self, steps: int) -> float:
    start = time.perf_counter()
    state = self.state
    for _ in range(steps):
      state, totals = self.program(state, self.frozen, self.batch)
    jax.block_until_ready(totals)
    self.state = state
    return time.perf_counter() - start

  def looped(self, steps: int, batches: Iterator[Batch], put: Callable[[Batch], Any]) -> float:
    def step(state: Any, batch: Batch) -> Any:
      return self.program(state, self.frozen, put(batch))

    last: list[Any] = []
    start = time.perf_counter()
    loop.run(
      self.state,
      step,
      lambda _state, _step: next(batches),
      start=0,
      total=steps,
      intervals=loop.Intervals(LOG_EVERY, 0, steps),
      report=lambda *_: None,
      validate=lambda _: {},
      save=lambda _, state, __: last.append(state),
      on_rejected=lambda *_: None,
      asked_to_stop=lambda _: False,
      profile=lambda _: contextlib.nullcontext(),
    )
    seconds = time.perf_counter() - start
    self.state = last[0]
    return seconds


def measure(emb_dim: int, steps: int, turns: int) -> Iterator[Measured]:
  task = cmudict.task()
  vocabulary = task.vocabulary()
  small = model(emb_dim, vocabulary.size)
  with tempfile.TemporaryDirectory() as directory:
    corpus = Corpus(task, vocabulary, small.architecture, LENGTHS, directory)
    feed = corpus.training(0, batch_size=ROWS, seed=0)
    rows = next(feed)
    step = Step(small, rows)
    step.bare(3)
    times: dict[str, list[float]] = {'bare': [], 'loop': [], 'placing': []}
    for _ in range(turns):
      times['bare'].append(step.bare(steps))
      on_device = itertools.repeat(step.batch)
      times['loop'].append(step.looped(steps, on_device, lambda batch: batch))
      own = itertools.repeat(rows)
      times['placing'].append(step.looped(steps, own, partitioning.place_batch))
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 3:
      count += len(next(feed).targets)
    fed = count / (time.perf_counter() - start)
  bare = median(times['bare']) / steps
  yield Measured('the compiled program alone', 1e3 * bare, 'ms')
  overhead = lambda name: [a / b - 1 for a, b in zip(times[name], times['bare'], strict=True)]
  milliseconds = 1e3 * bare * median(overhead('loop'))
  yield Measured('the loop adds', milliseconds, 'ms')
  yield Measured('the loop adds, at 50 ms steps', milliseconds / 50, 'of 1', at_most=0.02)
  placing = median(np.subtract(overhead('placing'), overhead('loop')))
  yield Measured('placing the rows adds besides', 1e3 * bare * placing, 'ms')
  yield Measured('the feed', fed, 'rows/s')
  yield Measured('the feed over the step', fed * bare / ROWS, 'x', at_least=1.0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--emb_dim', type=int, default=16, help='of the model')
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--turns', type=int, default=7)
  parser.add_argument('--output', default=bars.RESULTS / 'waiting.json')
  options = parser.parse_args()
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    measured = list(measure(options.emb_dim, options.steps, options.turns))
  bars.report('what a step waits for', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
