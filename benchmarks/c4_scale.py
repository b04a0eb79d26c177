"""What materialising C4 costs for so many documents, and on paper, from the slope, for all of it.

    python -m benchmarks.c4_scale

Documents of about 2 kB are generated in the layout of the JSON release and made examples of span
corruption with a SentencePiece vocabulary. Each number of documents is materialised in a process of
its own, in small shards so that there are many; the cost is what all cores worked, those of the
worker processes too. Then the records are opened, as training opens them.
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
FLAT = 1.1  # the most that memory may grow, from the fewest documents to the most
HOUR, MEBIBYTE, GIBIBYTE, TEBIBYTE = 3600, 1 << 20, 1 << 30, 1 << 40


def write_documents(text: str, count: int, directory: pathlib.Path) -> int:
  """Writes a file as in the JSON release; its characters."""
  draw = random.Random(0)
  characters = 0
  with gzip.open(directory / 'c4-train.00000-of-01024.json.gz', 'wt', compresslevel=1) as file:
    for _ in range(count):
      start, length = draw.randrange(len(text) // 2), 1 + int(draw.lognormvariate(*CHARACTERS))
      document = text[start : start + length]
      characters += len(document)
      file.write(json.dumps({'text': document, 'timestamp': '', 'url': ''}) + '\n')
  return characters


def measure(directory: pathlib.Path, model: str, rows_per_shard: int) -> dict[str, float]:
  """What materialising takes, of this process and of its workers, and then opening."""
  task = c4.span_corruption(Sources(directory))
  start, before = time.perf_counter(), os.times()
  with Workers() as workers:
    made = materialize.materialize(
      task,
      'train',
      both(vocabularies.sentencepiece(model)),
      directory / 'records',
      rows_per_shard=rows_per_shard,
      workers=workers,
    )
    largest = max(bars.memory(process)['peak'] for process in children())
  worked = [now - then for now, then in zip(os.times()[:4], before[:4], strict=True)]
  found = {
    'rows': len(made),
    'seconds': time.perf_counter() - start,
    'cpu': sum(worked),
    'cpu of the reader': sum(worked[:2]),
    'memory of the reader': bars.memory()['peak'],
    'memory of a worker': largest,
    'bytes': sum(file.stat().length for file in made.directory.iterdir()),
  }
  tracemalloc.start()
  opened = MixtureRecords([Records(made.directory)])
  found['memory of the feed'] = tracemalloc.get_traced_memory()[0]
  assert len(opened) == len(made)
  return found


def children() -> Iterator[str]:
  """The processes that this one has started and that still run."""
  for file in pathlib.Path('/proc/self/task').glob('*/children'):
    yield from file.read_text().split()


def held_to_bars(found: Sequence[dict[str, float]]) -> Iterator[Measured]:
  for one in found:
    shared = f'{one["cpu of the reader"]:.1f} s of it read; {one["seconds"]:.1f} s of wall time'
    yield Measured(f'{one["documents"]:,} documents', one['cpu'], 's of CPU', note=shared)
  fewest, most = found[0], found[-1]
  yield Measured('linear: R squared', line(found, 'cpu').rvalue ** 2, '', at_least=LINEAR)
  for who in ('memory of the reader', 'memory of a worker'):
    sizes = f'{fewest[who] / MEBIBYTE:.0f} to {most[who] / MEBIBYTE:.0f} MiB at most'
    yield Measured(f'{who}: growth', most[who] / fewest[who], 'times', at_most=FLAT, note=sizes)

  def of_all(quantity: str) -> float:
    return line(found, quantity).slope * ALL

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


def line(found: Sequence[dict[str, float]], quantity: str) -> Any:
  """The least-squares line of a quantity over the number of documents."""
  return stats.linregress([one['documents'] for one in found], [one[quantity] for one in found])


def in_a_process(documents: int, text: str, model: str, options: argparse.Namespace) -> Any:
  """What `measure` finds there of so many new documents."""
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
  parser.add_argument('--directory', help='where they lie for the time being')
  parser.add_argument('--output', default='runs/benchmarks/c4_scale.json')
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
    found = [in_a_process(count, text, model, options) for count in sorted(options.documents)]
  characters = found[-1]['characters'] / found[-1]['documents']
  title = f'C4 span corruption of generated documents, {characters:,.0f} characters on average'
  settings = {'rows_per_shard': options.rows_per_shard, 'pieces': PIECES, 'all documents': ALL}
  bars.report(title, list(held_to_bars(found)), options.output, settings)


if __name__ == '__main__':
  main()
