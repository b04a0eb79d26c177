"""Throughput and resources of feeding the 69-task FLAN mixture to an idle training step.

    python -m benchmarks.feeding

Rows are generated with realistic lengths and materialized once. Each input format is then measured
in a process of its own, through the same calls as training, with one reading thread; one of them
alternates with a pipeline that makes every row an element of Grain's. Times of first batches start
at the opening of materialized records; 'from disk' means that none was in the kernel's cache. Rows
per second of CPU do not depend on other work on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from benchmarks import bars, mixture
from benchmarks.bars import Measured
from cascades.data import converters
from cascades.data.batches import train_batches
from cascades.data.corpus import Corpus
from cascades.data.records import MixtureRecords
from cascades.tokenizers import vocabularies
from cascades.tokenizers.conventions import EOS_ID
from cascades.types import Batch

LENGTHS = {'inputs': 512, 'targets': 128}
PACK = 640
WAYS = ('encoder-decoder', 'decoder-only', 'decoder-only, packed')
STEPS = (0, 1000, 1_000_000)
COMPARED = 4  # batches
ROWS_PER_SECOND, SECONDS, GIBIBYTE = 20_000, 1.0, 1 << 30

Feed = Callable[[int], Iterator[Batch]]  # from a step on


@dataclasses.dataclass(frozen=True)
class Settings:
  rows: int  # of each task, at most
  directory: str
  batch_size: int
  intervals: int
  seconds: float  # of an interval

  def corpus(self, way: str) -> Corpus:
    architecture = 'encoder_decoder' if way == 'encoder-decoder' else 'decoder_only'
    return Corpus(
      task=mixture.flan(self.rows),
      vocabulary=vocabularies.bytes_vocabulary(),
      architecture=architecture,
      lengths=LENGTHS,
      directory=self.directory,
    )


class Interval(NamedTuple):
  """Rates in rows per second."""

  rows: float
  examples: float  # packed rows have several
  of_cpu: float  # examples for each second that a core worked


def measure(way: str, settings: Settings) -> dict[str, Any]:
  """Measure one input format in this process."""
  jax.process_index()  # starts JAX's backend, which training has done before
  before = bars.memory()
  corpus, pack = settings.corpus(way), PACK if way.endswith('packed') else None

  def opened() -> Iterator[Batch]:
    return corpus.training(0, batch_size=settings.batch_size, seed=0, pack=pack)

  measured: dict[str, Any] = {}
  start = time.perf_counter()
  batches = opened()
  next(batches)
  measured['first'] = time.perf_counter() - start
  measured['steady'] = [interval(batches, settings) for _ in range(settings.intervals)]
  after = bars.memory()
  measured['memory'] = {name: after[name] - before[name] for name in ('private', 'mapped')}
  joined = corpus.open('train')
  measured['lengths'] = joined.lengths.mean(axis=0).tolist()
  if way == WAYS[0]:
    baseline = row_by_row(joined, settings.batch_size)
    turns = [[interval(feed, settings).rows for feed in (batches, baseline)] for _ in range(3)]
    measured['by turns'] = turns

  def feed(step: int) -> Iterator[Batch]:
    return train_batches(
      joined,
      convert=converters.CONVERTERS[corpus.architecture],
      lengths=LENGTHS,
      batch_size=settings.batch_size,
      seed=0,
      rates=[task.rate or 1 for task in corpus.tasks],
      start_step=step,
      pack=pack,
    )

  measured['resumed'] = [resumed(feed, step) for step in STEPS]
  forget(settings.directory)
  measured['first from disk'] = seconds(lambda: next(opened()))
  return measured


def seconds(call: Callable[[], object]) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def interval(batches: Iterator[Any], settings: Settings) -> Interval:
  rows = examples = 0
  start, cpu = time.perf_counter(), time.process_time()
  while (taken := time.perf_counter() - start) < settings.seconds:
    batch = next(batches)
    segments = getattr(batch, 'segments', None)
    rows += settings.batch_size
    examples += settings.batch_size if segments is None else int(segments.max(axis=1).sum())
  return Interval(rows / taken, examples / taken, examples / (time.process_time() - cpu))


def resumed(feed: Feed, step: int) -> dict[str, Any]:
  """Milliseconds to the batch of `step`, and the number of batches that differ from a full run."""
  times = [1000 * seconds(lambda: next(feed(step))) for _ in range(5)]
  back = min(step, 1000)  # uninterrupted from so many steps before
  expected = itertools.islice(feed(step - back), back, back + COMPARED)
  pairs = zip(expected, feed(step), strict=False)
  others = sum(digest(batch) != digest(reference) for batch, reference in pairs)
  return {'step': step, 'milliseconds': median(times), 'others': others}


def digest(batch: Batch) -> str:
  content = hashlib.sha256()
  for array in batch:
    content.update(b'-' if array is None else np.ascontiguousarray(array).tobytes())
  return content.hexdigest()


def row_by_row(records: MixtureRecords, batch_size: int) -> Iterator[Any]:
  """Pipeline that shuffles, mixes, and pads one row after the other, in two threads."""

  def row(tokens: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    padded = {}
    for (name, length), ids in zip(LENGTHS.items(), tokens, strict=True):
      padded[name] = np.zeros(length, np.int32)
      truncated = ids[: length - 1]
      padded[name][: len(truncated)] = truncated
      padded[name][len(truncated)] = EOS_ID
    return padded

  class Source:
    def __init__(self, number: int) -> None:
      self._records = records.per_task[number]

    def __len__(self) -> int:
      return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
      return self._records.tokens([index])[0]

  sources = [
    grain.MapDataset.source(Source(number)).shuffle(seed=number).repeat().map(row)
    for number in range(len(records.per_task))
  ]
  rates = [float(min(len(task), mixture.suite.LARGEST_RATE)) for task in records.per_task]
  mixed = grain.MapDataset.mix(sources, weights=rates).batch(batch_size)
  return iter(mixed.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def forget(directory: str) -> None:
  """Ask the kernel to drop its cache of the records."""
  for path in pathlib.Path(directory).rglob('*'):
    if path.is_file():
      with path.open('rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_a_process(way: str, settings: Settings) -> dict[str, Any]:
  options = [f'--{name}={value}' for name, value in dataclasses.asdict(settings).items()]
  command = [sys.executable, '-m', 'benchmarks.feeding', f'--way={way}', *options]
  return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def held_to_bars(way: str, measurements: dict[str, Any]) -> Iterator[Measured]:
  rows, examples, of_cpu = zip(*measurements['steady'], strict=True)
  best = f'best interval {max(examples):,.0f}; {median(of_cpu):,.0f} a second of CPU'
  yield Measured(f'{way}: first batch', measurements['first'], 's', at_most=SECONDS)
  yield Measured(f'{way}: first batch, from disk', measurements['first from disk'], 's')
  yield Measured(f'{way}: steady', median(examples), 'rows/s', at_least=ROWS_PER_SECOND, note=best)
  if way.endswith('packed'):
    filled = f'{sum(examples) / sum(rows):.2f} rows in a pack'
    yield Measured(f'{way}: steady', median(rows), 'packs/s', note=filled)
  for fast, slow in sorted(measurements.get('by turns', ()), key=lambda turn: turn[0] / turn[1])[
    1:2
  ]:
    yield Measured(f'{way}: steady, by turns with the next', fast, 'rows/s')
    times = f'{fast / slow:.1f} times slower'
    yield Measured(f'{way}: row by row with Grain', slow, 'rows/s', note=times)
  private, mapped = (measurements['memory'][pages] / GIBIBYTE for pages in ('private', 'mapped'))
  yield Measured(f'{way}: memory beyond imports', private, 'GiB', at_most=1.0)
  yield Measured(f'{way}: mapped pages of the files beside it', mapped, 'GiB')
  for resume in measurements['resumed']:
    what = f'{way}: first batch, resumed at {resume["step"]:,}'
    yield Measured(what, resume['milliseconds'], 'ms')
  others = sum(resume['others'] for resume in measurements['resumed'])
  yield Measured(f'{way}: resumed, unlike uninterrupted', others, 'batches', at_most=1)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=3000, help='of each task at most (3000)')
  parser.add_argument('--directory', default='runs/benchmarks/records', help='where records go')
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--intervals', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=1.0, help='of each interval (1)')
  parser.add_argument('--output', default=bars.RESULTS / 'feeding.json')
  parser.add_argument('--way', choices=('materialize', *WAYS), help=argparse.SUPPRESS)
  options = vars(parser.parse_args())
  output, way = options.pop('output'), options.pop('way')
  settings = Settings(**options)
  bars.use_cores(2)
  logging.disable(logging.WARNING)
  if way == 'materialize':
    print(json.dumps(len(settings.corpus(WAYS[0]).open('train'))))
    return
  if way:
    print(json.dumps(measure(way, settings)))
    return
  rows = in_a_process('materialize', settings)
  results = {way: in_a_process(way, settings) for way in WAYS}
  measured = [row for way in WAYS for row in held_to_bars(way, results[way])]
  inputs, targets = results[WAYS[0]]['lengths']
  title = (
    f'FLAN mixture of 69 tasks, {rows:,} generated rows of {inputs:.0f} tokens of inputs and '
    f'{targets:.0f} of targets on average, cut to {" and ".join(map(str, LENGTHS.values()))}; '
    'training idle'
  )
  bars.report(title, measured, output, dataclasses.asdict(settings))


if __name__ == '__main__':
  main()
