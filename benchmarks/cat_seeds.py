"""Comparison of cascade-aware training with plain losses: the demo over several seeds.

    python -m benchmarks.cat_seeds --seeds=3

Every seed trains its own large model and one small model per loss, from the same initial weights
and the same stream of data. Each difference to plain cross-entropy has two intervals: over seeds
(Student's t over the seeds' differences), and over test words (the mean of the seeds' paired
bootstrap intervals, which excludes training noise).
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import bars
from benchmarks.bars import Measured

LOSSES = ('xent', 'cat_xent', 'dist', 'cat_dist')
BASELINE = 'xent'
QUANTITIES = ('small alone', 'area', 'area above chord')
SCORE = 'average'


def run(seed: int, directory: pathlib.Path) -> None:
  command = [sys.executable, '-m', 'launch.demo', f'--output_dir={directory}']
  subprocess.run([*command, f'--train=SEED={seed}'], check=True)


def read(directory: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Numbers of a demo run under the paper's rule, with their intervals."""
  with (directory / 'summary.csv').open() as file:
    for record in csv.DictReader(file):
      selected = record['score'] == SCORE and record['task'] == 'all tasks'
      if selected and record['quantity'] in QUANTITIES:
        yield {**record, **{name: float(record[name]) for name in ('value', 'low', 'high')}}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
  """Mean and 95 % interval of Student's t; the interval is infinite for a single seed."""
  mean, count = float(np.mean(values)), len(values)
  error = float(stats.sem(values)) if count > 1 else np.inf
  half = float(stats.t.ppf(0.975, count - 1)) * error if count > 1 else np.inf
  return {'mean': mean, 'low': mean - half, 'high': mean + half}


def summarize(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
  """One record per quantity and model, and per difference to the baseline."""
  records = []
  for quantity in QUANTITIES:
    for model in LOSSES:
      for baseline in ('', BASELINE):
        same = [
          record
          for run_records in seeds
          for record in run_records
          if (record['quantity'], record['model'], record['baseline'])
          == (quantity, model, baseline)
        ]
        if not same:
          continue
        words = {
          f'{end}_over_words': float(np.mean([r[end] for r in same])) for end in ('low', 'high')
        }
        values = [record['value'] for record in same]
        records.append(
          {'quantity': quantity, 'model': model, 'baseline': baseline, 'values': values}
          | over_seeds(values)
          | words
        )
  return records


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--directory', default='runs/seeds')
  parser.add_argument('--output', default=bars.RESULTS / 'cat_seeds.json')
  options = parser.parse_args()
  directories = [pathlib.Path(options.directory).resolve() / str(s) for s in range(options.seeds)]
  for seed, directory in enumerate(directories):
    run(seed, directory)
  records = summarize([list(read(directory)) for directory in directories])
  measured = []
  for record in records:
    name = record['model'] + (f' - {record["baseline"]}' if record['baseline'] else '')
    note = f'over seeds {record["low"]:.4f} .. {record["high"]:.4f}, over words '
    note += f'{record["low_over_words"]:.4f} .. {record["high_over_words"]:.4f}'
    measured.append(Measured(f'{record["quantity"]}: {name}', record['mean'], '', note=note))
  bars.report('the demo over seeds', measured, options.output, vars(options), records)


if __name__ == '__main__':
  main()
