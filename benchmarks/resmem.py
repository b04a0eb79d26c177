"""ResMem beside kNN-LM and the model alone: texts, phonemes, bytes, and cascades.

    nice python -m benchmarks.resmem --runs_dir runs/resmem

The protocol is in docs/memory.md. Each run is written to RUNS_DIR when it ends, and a second call
measures those that are missing. `--parts` chooses among texts, G2P, LM and cascade; the rows of the
report are of the runs that exist.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from scipy import stats

from benchmarks import bars, resmem_texts, resmem_tokens
from benchmarks.bars import Measured

SETS = ('TREC', 'SST-2', 'AG News')
PARTS = ('texts', 'cascade', 'G2P', 'LM')
SEEDS = 3
WAYS = ('resmem', 'knn_lm')
TITLES = {'resmem': 'ResMem', 'knn_lm': 'kNN-LM'}


def band(values: Sequence[float]) -> tuple[float, str]:
  """Mean over seeds, and Student's 95 % interval as text."""
  mean, count = float(np.mean(values)), len(values)
  if count < 2:
    return mean, '1 seed'
  half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
  return mean, f'[{mean - half:+.4f}, {mean + half:+.4f}] over {count} seeds'


def equal_cost(
  plain: Mapping[str, Any], memory: Mapping[str, Any]
) -> tuple[float, Float[np.ndarray, '101']]:
  """Mean of the memory's quality less that of the plain cascade at the same cost, and all of it.

  Cost is C_small + d C_large. Where the plain cascade has deferred everything for less, it has the
  quality of the large model.
  """
  rates = np.linspace(0, 1, 101)
  cost = memory['small'] + rates * memory['large']
  quality = np.interp((cost - plain['small']) / plain['large'], rates, plain['quality'])
  difference = np.asarray(memory['quality']) - quality
  return float(difference.mean()), difference


def jobs(data: pathlib.Path, root: pathlib.Path, parts: Sequence[str], seeds: int) -> Iterator[Any]:
  """Name and function of each run, seed by seed."""
  for seed in range(seeds if 'texts' in parts else 0):
    for name in SETS:
      yield f'texts {name} {seed}', functools.partial(resmem_texts.run, data, name, seed)
  for seed, (name, language) in itertools.product(range(seeds), resmem_tokens.LANGUAGES.items()):
    for width in language.widths if name in parts else ():
      run = functools.partial(resmem_tokens.run, root, name, width, seed)
      yield f'{name} {width} {seed}', run
    if name == 'G2P' and 'cascade' in parts and not seed:
      yield 'cascade G2P 0', functools.partial(resmem_tokens.cascade, root)


def rows(results: Mapping[str, Mapping[str, Any]]) -> Iterator[Measured]:
  """All rows of the report."""
  for name in SETS:
    runs = [result for key, result in results.items() if key.startswith(f'texts {name} ')]
    if runs:
      yield from text_rows(name, runs)
  for name, language in resmem_tokens.LANGUAGES.items():
    for width in language.widths:
      own = [result for key, result in results.items() if key.startswith(f'{name} {width} ')]
      if own:
        yield from token_rows(name, width, language.rows, own)
  if (cascade := results.get('cascade G2P 0')) is not None:
    yield from cascade_rows('G2P', [cascade])


def text_rows(name: str, runs: Sequence[Mapping[str, Any]]) -> Iterator[Measured]:
  """Accuracy of a set by width and memory, the gain of a fresh memory, and cascades."""
  gains: dict[int, float] = {}
  for width in resmem_texts.WIDTHS:
    own = [run['widths'][str(width)] for run in runs]
    base, note = band([entry['base'] for entry in own])
    yield Measured(f'{name}, width {width}: accuracy', base, '', note=note)
    for share in resmem_texts.SHARES:
      for way in WAYS:
        gain, note = band([entry[f'{way} {share}'] - entry['base'] for entry in own])
        smallest = width == resmem_texts.WIDTHS[0] and share == 1.0 and way == 'resmem'
        what = f'{name}, width {width}, {share:.0%}: {TITLES[way]} - base'
        yield Measured(what, gain, '', at_least=0.005 if smallest else None, note=note)
        if share == 1.0 and way == 'resmem':
          gains[width] = gain
    beside = [entry['resmem 1.0'] - entry['knn_lm 1.0'] for entry in own]
    mean, note = band(beside)
    what = f'{name}, width {width}, 100%: ResMem - kNN-LM'
    yield Measured(what, mean, '', at_least=-0.005, note=note)
    for memory in ('seen', 'fresh'):
      half = [run['fresh'][str(width)] for run in runs]
      gain, note = band([entry[memory] - entry['base'] for entry in half])
      yield Measured(f'{name}, width {width}, {memory} half: ResMem - base', gain, '', note=note)
  narrow, wide = gains[resmem_texts.WIDTHS[0]], gains[resmem_texts.WIDTHS[-1]]
  yield Measured(f'{name}: gain at width 2 less that at 64', narrow - wide, '', at_least=0.0)
  yield from cascade_rows(name, [run['cascades'] for run in runs])


def token_rows(
  name: str, width: int, sizes: Sequence[int], runs: Sequence[Mapping[str, Any]]
) -> Iterator[Measured]:
  """Token error and log loss by memory, and the differences to the model alone."""
  for measure in ('error', 'log loss'):
    base, note = band([run['base'][measure] for run in runs])
    yield Measured(f'{name}, width {width}: token {measure}', base, '', note=note)
    for size in sizes:
      for way in WAYS:
        own = [run[f'{way} {size}'][measure] - run['base'][measure] for run in runs]
        mean, note = band(own)
        barred = measure == ('error' if name == 'G2P' else 'log loss')
        barred = barred and way == 'resmem' and size == sizes[-1]
        what = f'{name}, width {width}, {size} rows: {TITLES[way]} - base, {measure}'
        yield Measured(what, mean, '', at_most=0.0 if barred else None, note=note)


def cascade_rows(name: str, runs: Sequence[Mapping[str, Any]]) -> Iterator[Measured]:
  """Curves with a memory less the plain one, at equal deferral rates and at equal FLOPs."""
  first = runs[0]
  note = f'small {first["base"]["small"]:.3g}, large {first["base"]["large"]:.3g} FLOPs'
  large = float(np.mean([run['base']['quality'][-1] for run in runs]))
  yield Measured(f'{name} cascade: large alone', large, '', note=note)
  for way in WAYS:
    rate, note = band(
      [float(np.mean(np.subtract(r[way]['quality'], r['base']['quality']))) for r in runs]
    )
    yield Measured(f'{name} cascade, {TITLES[way]}: at equal rates', rate, '', note=note)
    mean, note = band([equal_cost(run['base'], run[way])[0] for run in runs])
    note += f'; {first[way]["small"]:.3g} FLOPs, {first[way]["bytes"]:,} bytes'
    if 'milliseconds' in first[way]:
      note += f', {first[way]["milliseconds"]:.2f} ms a query'
    bar = 0.0 if way == 'resmem' else None
    what = f'{name} cascade, {TITLES[way]}: at equal FLOPs'
    yield Measured(what, mean, '', at_least=bar, note=note)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--runs_dir', type=pathlib.Path, default=pathlib.Path('runs/resmem'))
  parser.add_argument('--data', type=pathlib.Path, default=resmem_tokens.DATA)
  parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
  parser.add_argument('--seeds', type=int, default=SEEDS)
  parser.add_argument('--output', default=bars.RESULTS / 'resmem.json')
  options = parser.parse_args()
  root = options.runs_dir.resolve()
  root.mkdir(parents=True, exist_ok=True)
  jax.config.update('jax_compilation_cache_dir', str(root / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  measure: Callable[[], dict[str, Any]]
  for name, measure in jobs(options.data, root, options.parts, options.seeds):
    path = root / f'{name.replace(" ", "_")}.json'
    if not path.exists():
      path.write_text(json.dumps(measure()))
      print(f'{name} is measured', flush=True)
  results = {
    name: json.loads(path.read_text())
    for name, _ in jobs(options.data, root, PARTS, options.seeds)
    if (path := root / f'{name.replace(" ", "_")}.json').exists()
  }
  bars.report(
    'ResMem', list(rows(results)), options.output,
    {'seeds': options.seeds, 'runs': len(results)}, results,
  )  # fmt: skip


if __name__ == '__main__':
  main()
