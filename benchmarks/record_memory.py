"""Memory of token records that are open for training, by their number of rows, up to all of C4.

    python -m benchmarks.record_memory

Short rows are written in shards of the usual size and fed as batches, in a process of its own for
each number. Memory is what Python and NumPy allocate; files that are mapped belong to the kernel's
cache and take none. The line through the numbers gives that of as many rows as C4 has documents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

from scipy import stats

from benchmarks import bars
from benchmarks.bars import Measured
from cascades.data import batches, converters, materialize
from cascades.data.records import MixtureRecords, Records
from cascades.data.workers import Workers
from cascades.tasks import c4
from cascades.tasks.task import Row, Task, both
from cascades.tasks.tokenize import ROWS_PER_SHARD
from cascades.tokenizers import vocabularies

ALL = c4.dataset().sizes['train']
MEGABYTE = 1e6
MOST = 300.0  # megabytes
BATCHES = 50


def write(directory: pathlib.Path, rows: int) -> pathlib.Path:
  """Records of so many rows, each of a few bytes."""
  task = Task(
    'short',
    ('train',),
    read=lambda _: (Row(f'{n:x}', f'{n % 97}', ('b',)) for n in range(rows)),
    fingerprint=lambda _: str(rows),
    joins_rows=True,  # so that ids are not remembered
  )
  with Workers() as workers:
    vocabulary = both(vocabularies.bytes_vocabulary())
    written = materialize.materialize(task, 'train', vocabulary, directory, workers=workers)
  return pathlib.Path(written.directory)


def measure(directory: pathlib.Path) -> dict[str, int]:
  """Bytes after opening, and at most, through the first batches of training."""
  tracemalloc.start()
  opened = MixtureRecords([Records(directory)])
  fed = batches.train_batches(
    opened, convert=converters.encoder_decoder, lengths={'inputs': 8, 'targets': 8}, batch_size=256,
    seed=0,
  )  # fmt: skip
  for _ in itertools.islice(fed, BATCHES):
    pass
  current, peak = tracemalloc.get_traced_memory()
  return {'current': current, 'peak': peak}


def in_a_process(directory: pathlib.Path) -> Any:
  command = [sys.executable, '-m', 'benchmarks.record_memory', f'--measure={directory}']
  return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def held_to_bars(runs: Sequence[tuple[int, dict[str, int]]]) -> Iterator[Measured]:
  for rows, run in runs:
    peak = f'{run["peak"] / MEGABYTE:.2f} MB at most'
    yield Measured(f'{rows:,} rows', run['current'] / MEGABYTE, 'MB', note=peak)
  for what in ('current', 'peak'):
    line = stats.linregress([rows for rows, _ in runs], [run[what] for _, run in runs])
    yield Measured(
      f'all {ALL:,} rows, {what}',
      (line.intercept + line.slope * ALL) / MEGABYTE,
      'MB',
      at_most=MOST,
      note=f'{line.slope:.3f} bytes a row',
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--shards', type=int, nargs='+', default=[8, 16, 32, 64], help=f'of {ROWS_PER_SHARD:,} rows'
  )
  parser.add_argument('--output', default=bars.RESULTS / 'record_memory.json')
  parser.add_argument('--measure', type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  logging.disable(logging.WARNING)
  if options.measure:
    print(json.dumps(measure(options.measure)))
    return
  runs = []
  with tempfile.TemporaryDirectory() as directory:
    for count in options.shards:
      rows = count * ROWS_PER_SHARD
      runs.append((rows, in_a_process(write(pathlib.Path(directory), rows))))
  settings = {'rows of a shard': ROWS_PER_SHARD, 'batches': BATCHES}
  bars.report('Memory of open token records', list(held_to_bars(runs)), options.output, settings)


if __name__ == '__main__':
  main()
