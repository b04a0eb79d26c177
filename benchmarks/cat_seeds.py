"""Does cascade-aware training beat the plain losses? The demo for several seeds, summed up.

    python -m benchmarks.cat_seeds --seeds=3

Every seed trains its own large model and, beside it, a small one with each loss, from the same
initial weights and the same stream. Each difference to plain cross-entropy comes with two
intervals: over seeds (Student's t over the seeds' differences), and over test words (the mean of
the seeds' paired bootstrap intervals, which knows nothing of training noise).
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

LOSSES = ('xent', 'cat_xent', 'dist', 'cat_dist')
BASELINE = 'xent'
QUANTITIES = ('small alone', 'area', 'area above chord')
SCORE = 'average'


def run(seed: int, directory: pathlib.Path) -> None:
  command = [sys.executable, '-m', 'launch.demo', f'--output_dir={directory}']
  subprocess.run([*command, f'--train=SEED={seed}'], check=True)


def read(directory: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The demo's numbers under the paper's rule, with their intervals."""
  with (directory / 'summary.csv').open() as file:
    for record in csv.DictReader(file):
      wanted = record['score'] == SCORE and record['task'] == 'all tasks'
      if wanted and record['quantity'] in QUANTITIES:
        yield {**record, **{name: float(record[name]) for name in ('value', 'low', 'high')}}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
  """Mean and 95 % interval of Student's t; the interval is infinite for a single seed."""
  mean, count = float(np.mean(values)), len(values)
  error = float(stats.sem(values)) if count > 1 else np.inf
  half = float(stats.t.ppf(0.975, count - 1)) * error if count > 1 else np.inf
  return {'mean': mean, 'low': mean - half, 'high': mean + half}


def summarise(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
  """One record for each quantity of each model, and of its difference to the baseline."""
  found = []
  for quantity in QUANTITIES:
    for model in LOSSES:
      for baseline in ('', BASELINE):
        same = [
          record
          for records in seeds
          for record in records
          if (record['quantity'], record['model'], record['baseline'])
          == (quantity, model, baseline)
        ]
        if not same:
          continue
        words = {
          f'{end}_over_words': float(np.mean([r[end] for r in same])) for end in ('low', 'high')
        }
        values = [record['value'] for record in same]
        found.append(
          {'quantity': quantity, 'model': model, 'baseline': baseline, 'values': values}
          | over_seeds(values)
          | words
        )
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--directory', default='runs/seeds')
  options = parser.parse_args()
  directories = [pathlib.Path(options.directory).resolve() / str(s) for s in range(options.seeds)]
  for seed, directory in enumerate(directories):
    run(seed, directory)
  found = summarise([list(read(directory)) for directory in directories])
  print(f'{"quantity":18}{"model":22}{"mean":>9}  {"95 % over seeds":20}{"over words":20}values')
  for one in found:
    name = one['model'] + (f' - {one["baseline"]}' if one['baseline'] else '')
    seeds = f'{one["low"]:.4f} .. {one["high"]:.4f}'
    words = f'{one["low_over_words"]:.4f} .. {one["high_over_words"]:.4f}'
    values = ' '.join(f'{value:.4f}' for value in one['values'])
    print(f'{one["quantity"]:18}{name:22}{one["mean"]:9.4f}  {seeds:20}{words:20}{values}')
  path = pathlib.Path(options.directory) / 'seeds.json'
  path.write_text(json.dumps({'seeds': options.seeds, 'measured': found}, indent=2))


if __name__ == '__main__':
  main()
