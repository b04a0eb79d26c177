"""Seconds until `cascades.browse_tasks` prints, and whether it imports TensorFlow.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median
from typing import NamedTuple

from benchmarks import bars
from benchmarks.bars import Measured

SECONDS = 3.0
COMMANDS = (('list',), ('show', 'superglue_rte', '--sample'))

# The command as typed, followed by whether it has imported TensorFlow.
_RUN = """
import atexit, runpy, sys
atexit.register(lambda: print('tensorflow' in sys.modules, file=sys.stderr))
runpy.run_module('cascades.browse_tasks', run_name='__main__', alter_sys=True)
"""


class Run(NamedTuple):
  first: float  # seconds to the first line
  all: float
  lines: int
  tensorflow: bool  # whether it was imported


def run(command: tuple[str, ...]) -> Run:
  """Run the command once; raises CalledProcessError if it fails."""
  start = time.perf_counter()
  with subprocess.Popen(
    [sys.executable, '-c', _RUN, *command],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout
    assert process.stderr
    lines = [process.stdout.readline()]
    first = time.perf_counter() - start
    lines += process.stdout.readlines()
    errors = process.stderr.read()
  if process.returncode or not lines[0]:
    raise subprocess.CalledProcessError(process.returncode, command, ''.join(lines), errors)
  return Run(first, time.perf_counter() - start, len(lines), errors.split()[-1] == 'True')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--output', default=bars.RESULTS / 'startup.json')
  options = parser.parse_args()
  measured = []
  for command in COMMANDS:
    name, runs = ' '.join(command), [run(command) for _ in range(options.repeats)]
    for what, times, bar in (
      ('to the first line', [sample.first for sample in runs], SECONDS),
      ('to the end', [sample.all for sample in runs], None),
    ):
      note = f'best {min(times):.2f}; {runs[0].lines} lines'
      measured.append(Measured(f'{name}: {what}', median(times), 's', at_most=bar, note=note))
    imported = sum(sample.tensorflow for sample in runs)
    measured.append(Measured(f'{name}: TensorFlow imported', imported, 'times', at_most=1))
  bars.report(
    'python -m cascades.browse_tasks', measured, options.output, {'repeats': options.repeats}
  )


if __name__ == '__main__':
  main()
