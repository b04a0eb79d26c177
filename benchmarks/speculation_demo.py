"""Frontier of speculative cascades on the demo's pair: the sweep of docs/speculative.md.

    python -m benchmarks.speculation_demo --demo=runs/demo

`--demo` is the folder of `python -m launch.demo`. Runs `python -m cascades.speculate`, which
resumes, and writes the numbers of its frontier.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import bars
from benchmarks.bars import Measured

RULES = (
  'lossless', 'lossy', 'lossy_normalized', 'ensemble', 'chow', 'diff', 'opt', 'bild', 'token_v1',
  'token_v3', 'typical',
)  # fmt: skip
SPLIT = 'validation'


def run(demo: pathlib.Path, small: str, output: pathlib.Path) -> dict[str, Any]:
  """Numbers of the frontier, after the points that are missing."""
  command = [
    '--gin_file=runs/speculate.gin',
    '--gin.MIXTURE_OR_TASK_NAME=cmudict_g2p',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 24}",
    f'--gin.SMALL_CHECKPOINT_PATH={demo / small}',
    f'--gin.LARGE_CHECKPOINT_PATH={demo / "large"}',
    f'--gin.SPECULATE_OUTPUT_DIR={output}',
    f'--gin.SPLITS={SPLIT}',
    '--gin.BATCH_SIZE=512',
    '--gin.TEMPERATURES=(0.0, 1.0)',
    f'--gin.RULES={dict.fromkeys(RULES)}',
  ]
  done = subprocess.run([sys.executable, '-m', 'cascades.speculate', *command], check=False)
  if done.returncode:
    raise SystemExit(done.returncode)  # it has said why
  numbers: dict[str, Any] = json.loads((output / SPLIT / 'frontier.json').read_text())
  return numbers


def rows(frontier: Mapping[str, Any]) -> Iterator[Measured]:
  """Quality and costs of each point."""
  metric = frontier['metric']
  for point in frontier['points']:
    difference, name = point['difference'], point['name']
    note = f'{difference["value"]:+.4f} ({difference["low"]:+.4f} to {difference["high"]:+.4f})'
    yield Measured(f'{name}: {metric}', point['quality'], '', note=note)
    for size, seconds in point['seconds'].items():
      modeled = point['modeled'].get(size)
      note = '' if modeled is None else f'modeled {modeled:.2f}'
      yield Measured(f'{name}: relative seconds, batch {size}', seconds, '', note=note)
    yield Measured(f'{name}: large calls', point['large_calls'], '')
    if point['rejection_rate'] is not None:
      yield Measured(f'{name}: rejection rate', point['rejection_rate'], '')
    yield Measured(f'{name}: relative length', point['length'], '')
    yield Measured(f'{name}: FLOPs', point['flops'], '')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--demo', type=pathlib.Path, default=pathlib.Path('runs/demo'))
  parser.add_argument('--small', default='xent', help='model that drafts')
  parser.add_argument('--output', default=bars.RESULTS / 'speculation_demo.json')
  options = parser.parse_args()
  frontier = run(options.demo, options.small, options.demo / 'speculation')
  settings = {'small': options.small, 'split': SPLIT, 'rows': frontier['rows']}
  details = {'methods': frontier['methods'], 'sequence': frontier['sequence']}
  bars.report('Speculation on the demo', list(rows(frontier)), options.output, settings, details)


if __name__ == '__main__':
  main()
