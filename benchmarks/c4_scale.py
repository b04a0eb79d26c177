"""Cost of materializing C4 for several numbers of documents, extrapolated to all of it.

    python -m benchmarks.c4_scale

Documents of about 2 kB are generated in the layout of the JSON release and converted to examples of
span corruption with a SentencePiece vocabulary. Each number of documents is materialized in its own
process, in many small shards; the cost is the CPU time of all processes. Then the records are
opened as in training.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

from scipy import stats

from benchmarks import bars, tokenizing
from benchmarks.bars import Measured
from cascades.data import materialize
from cascades.data.records import MixtureRecords, Records
from cascades.data.workers import Workers
from cascades.tasks import c4
from cascades.tasks.sources import Sources
from cascades.tasks.task import both
from cascades.tasks.tokenize import ROWS_PER_SHARD
from cascades.tokenizers import train_sentencepiece, vocabularies

CHARACTERS = (7.3, 0.8)  # mean and deviation of the logarithm of a document's length
PIECES = 4000
ALL = c4.dataset().sizes['train']  # documents
LINEAR = 0.99  # R squared
FLAT = 1.1  # bound on the growth of memory from the fewest documents to the most
HOUR, MEBIBYTE, GIBIBYTE, TEBIBYTE = 3600, 1 << 20, 1 << 30, 1 << 40


def write_documents(text: str, count: int, directory: pathlib.Path, number: int = 0) -> int:
  """Write a file of this number as in the JSON release, and return its number of characters."""
  draw = random.Random(number)
  characters = 0
  name = f'c4-train.{number:05d}-of-01024.json.gz'
  with gzip.open(directory / name, 'wt', compresslevel=1) as file:
    for _ in range(count):
      start, length = draw.randrange(len(text) // 2), 1 + int(draw.lognormvariate(*CHARACTERS))
      document = text[start : start + length]
      characters += len(document)
      file.write(json.dumps({'text': document, 'timestamp': '', 'url': ''}) + '\n')
  return characters


def measure(directory: pathlib.Path, model: str, rows_per_shard: int) -> dict[str, float]:
  """Resources of materializing, in this process and its workers, and of opening the records."""
  task = c4.span_corruption(Sources(directory))
  start, before = time.perf_counter(), os.times()
  with Workers() as workers:
    records = materialize.materialize(
      task,
      'train',
      both(vocabularies.sentencepiece(model)),
      directory / 'records',
      rows_per_shard=rows_per_shard,
      workers=workers,
    )
    largest = max(bars.memory(process)['peak'] for process in children())
  cpu_seconds = [now - then for now, then in zip(os.times()[:4], before[:4], strict=True)]
  measured = {
    'rows': len(records),
    'seconds': time.perf_counter() - start,
    'cpu': sum(cpu_seconds),
    'cpu of the reader': sum(cpu_seconds[:2]),
    'memory of the reader': bars.memory()['peak'],
    'memory of a worker': largest,
    'bytes': sum(file.stat().length for file in records.directory.iterdir()),
  }
  tracemalloc.start()
  opened = MixtureRecords([Records(records.directory)])
  measured['memory of the feed'] = tracemalloc.get_traced_memory()[0]
  assert len(opened) == len(records)
  return measured


def children() -> Iterator[str]:
  """Ids of the running child processes."""
  for file in pathlib.Path('/proc/self/task').glob('*/children'):
    yield from file.read_text().split()


def held_to_bars(runs: Sequence[dict[str, float]]) -> Iterator[Measured]:
  for run in runs:
    shared = f'{run["cpu of the reader"]:.1f} s of it read; {run["seconds"]:.1f} s of wall time'
    yield Measured(f'{run["documents"]:,} documents', run['cpu'], 's of CPU', note=shared)
  fewest, most = runs[0], runs[-1]
  yield Measured('linear: R squared', line(runs, 'cpu').rvalue ** 2, '', at_least=LINEAR)
  for who in ('memory of the reader', 'memory of a worker'):
    sizes = f'{fewest[who] / MEBIBYTE:.0f} to {most[who] / MEBIBYTE:.0f} MiB at most'
    yield Measured(f'{who}: growth', most[who] / fewest[who], 'times', at_most=FLAT, note=sizes)

  def of_all(quantity: str) -> float:
    return line(runs, quantity).slope * ALL

  yield Measured('estimate: all of C4, on one core', of_all('cpu') / HOUR, 'hours')
  yield Measured('estimate: with many cores, at least', of_all('cpu of the reader') / HOUR, 'hours')
  yield Measured('estimate: on disk', of_all('bytes') / TEBIBYTE, 'TiB')
  yield Measured('estimate: rows', of_all('rows') / 1e6, 'million')
  yield Measured(
    'estimate: memory of the feed',
    of_all('memory of the feed') / GIBIBYTE,
    'GiB',
    note=f'at most: shards of training are of {ROWS_PER_SHARD:,} documents',
  )


def line(runs: Sequence[dict[str, float]], quantity: str) -> Any:
  """The least-squares line of a quantity over the number of documents."""
  return stats.linregress([run['documents'] for run in runs], [run[quantity] for run in runs])


def in_a_process(documents: int, text: str, model: str, options: argparse.Namespace) -> Any:
  """`measure` of newly generated documents, in a process of its own."""
  with tempfile.TemporaryDirectory(dir=options.directory) as directory:
    characters = write_documents(text, documents, pathlib.Path(directory))
    command = [sys.executable, '-m', 'benchmarks.c4_scale', f'--measure={directory}']
    command += [f'--model={model}', f'--rows_per_shard={options.rows_per_shard}']
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return {'documents': documents, 'characters': characters, **json.loads(done.stdout)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--documents', type=int, nargs='+', default=[4000, 8000, 16_000, 32_000])
  parser.add_argument('--rows_per_shard', type=int, default=1000, help='of documents (1000)')
  parser.add_argument('--directory', help='for temporary files')
  parser.add_argument('--output', default=bars.RESULTS / 'c4_scale.json')
  parser.add_argument('--model', help=argparse.SUPPRESS)
  parser.add_argument('--measure', type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  logging.disable(logging.WARNING)
  if options.measure:
    print(json.dumps(measure(options.measure, options.model, options.rows_per_shard)))
    return
  text = tokenizing.generated(200_000)
  with tempfile.TemporaryDirectory() as directory:
    model = f'{directory}/sentences.model'
    train_sentencepiece.train_sentencepiece(tokenizing.cut(text), model, size=PIECES)
    runs = [in_a_process(count, text, model, options) for count in sorted(options.documents)]
  characters = runs[-1]['characters'] / runs[-1]['documents']
  title = f'C4 span corruption of generated documents, {characters:,.0f} characters on average'
  settings = {'rows_per_shard': options.rows_per_shard, 'pieces': PIECES, 'all documents': ALL}
  bars.report(title, list(held_to_bars(runs)), options.output, settings)


if __name__ == '__main__':
  main()
