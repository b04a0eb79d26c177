"""Cost of materializing with Apache Beam beside that of local processes, on the same documents.

    python -m benchmarks.beam

Documents are those of `benchmarks.c4_scale`, in files as in the JSON release, and become examples
of span corruption with a SentencePiece vocabulary. Either way runs in a process of its own with two
workers; seconds are those from the call to the finished records, Beam's start included. Needs
the extra `beam`. Numbers of documents that an interrupted run has measured are not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import bars, c4_scale, tokenizing
from benchmarks.bars import Measured
from cascades.data import beam_shards, materialize
from cascades.data.workers import Workers
from cascades.tasks import c4
from cascades.tasks.sources import Sources
from cascades.tasks.task import both
from cascades.tokenizers import train_sentencepiece, vocabularies

OVERHEAD = 1.3
LINEAR = 0.99  # R squared
WORKERS = 2
FILES = 4
ROWS_PER_SHARD = 1000
WAYS = ('local', 'beam')
FLAGS = (
  '--runner=DirectRunner', '--direct_running_mode=multi_processing',
  f'--direct_num_workers={WORKERS}',
)  # fmt: skip


def measure(directory: pathlib.Path, model: str, way: str) -> dict[str, Any]:
  """Seconds of one way, and a digest of the records."""
  vocabulary = both(vocabularies.sentencepiece(model))
  began = time.perf_counter()
  with Workers(WORKERS) as workers:
    records = materialize.materialize(
      c4.span_corruption(Sources(directory)),
      'train',
      vocabulary,
      directory / way,
      rows_per_shard=ROWS_PER_SHARD,
      workers=workers,
      write_shards=beam_shards.ShardPipeline(FLAGS, WORKERS) if way == 'beam' else None,
    )
  seconds = time.perf_counter() - began
  digest = hashlib.sha256()
  for path in sorted(records.directory.iterdir()):
    digest.update(path.name.encode() + path.read_bytes())
  return {'seconds': seconds, 'digest': digest.hexdigest()}


def measured_runs(
  options: argparse.Namespace, known: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
  """Seconds of both ways for each number of documents."""
  text = tokenizing.generated(200_000)
  with tempfile.TemporaryDirectory(dir=options.directory) as directory:
    model = f'{directory}/sentences.model'
    train_sentencepiece.train_sentencepiece(tokenizing.cut(text), model, size=c4_scale.PIECES)
    for count in sorted(options.documents):
      if str(count) in known:
        yield known[str(count)]
        continue
      folder = pathlib.Path(directory) / str(count)
      folder.mkdir()
      for number in range(FILES):
        c4_scale.write_documents(text, count // FILES, folder, number)
      ways = {way: in_a_process(folder, model, way) for way in WAYS}
      if ways['local']['digest'] != ways['beam']['digest']:
        raise ValueError(f'{count} documents: the records of both ways differ.')
      yield {'documents': count, **{way: ways[way]['seconds'] for way in WAYS}}


def in_a_process(directory: pathlib.Path, model: str, way: str) -> Any:
  command = [sys.executable, '-m', 'benchmarks.beam', f'--measure={directory}']
  done = subprocess.run(
    [*command, f'--model={model}', f'--way={way}'], check=True, stdout=subprocess.PIPE, text=True
  )
  return json.loads(done.stdout.splitlines()[-1])


def held_to_bars(runs: Sequence[Mapping[str, Any]]) -> Iterator[Measured]:
  for run in runs:
    local = f'local processes {run["local"]:.1f} s; the same bytes'
    yield Measured(f'{run["documents"]:,} documents with Beam', run['beam'], 's', note=local)
  most = runs[-1]
  yield Measured(
    'Beam / local, most documents', most['beam'] / most['local'], 'times', at_most=OVERHEAD
  )
  lines = {way: c4_scale.line(runs, way) for way in WAYS}
  slopes = {way: 1e3 * line.slope for way, line in lines.items()}
  yield Measured(
    'Beam / local, each further document',
    slopes['beam'] / slopes['local'],
    'times',
    at_most=OVERHEAD,
    note=', '.join(f'{way} {slope:.3f} ms' for way, slope in slopes.items()),
  )
  yield Measured('Beam: linear, R squared', lines['beam'].rvalue ** 2, '', at_least=LINEAR)
  yield Measured('Beam: start', lines['beam'].intercept - lines['local'].intercept, 's')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--documents', type=int, nargs='+', default=[32_000, 64_000, 128_000, 192_000]
  )
  parser.add_argument('--directory', help='for temporary files')
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'beam.json')
  parser.add_argument('--model', help=argparse.SUPPRESS)
  parser.add_argument('--way', choices=WAYS, help=argparse.SUPPRESS)
  parser.add_argument('--measure', type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  logging.disable(logging.WARNING)
  if options.measure:
    print(json.dumps(measure(options.measure, options.model, options.way)))
    return
  settings = {'workers': WORKERS, 'files': FILES, 'rows_per_shard': ROWS_PER_SHARD}
  progress = options.output.with_suffix('.partial.json')
  known = json.loads(progress.read_text()) if progress.exists() else {}
  for run in measured_runs(options, known):
    known[str(run['documents'])] = run
    progress.parent.mkdir(parents=True, exist_ok=True)
    progress.write_text(json.dumps(known))
  runs = [known[str(count)] for count in sorted(options.documents)]
  bars.report(
    'C4 span corruption by Apache Beam and by local processes',
    list(held_to_bars(runs)), options.output, settings,
  )  # fmt: skip
  progress.unlink()


if __name__ == '__main__':
  main()
