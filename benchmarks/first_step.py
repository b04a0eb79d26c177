"""Seconds from a training command to its first step: without a compilation cache, and with one.

  python -m benchmarks.first_step

Each start is the real command in its own process: one step of the demo's small model, T5 nano with
batches of 64. "without" compiles everything at every start; "first" fills a new cache;
"second" finds all programs in it. The starts take turns, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from benchmarks import bars
from benchmarks.bars import Measured

SECONDS = 5.0  # with a full cache


def start(home: str, run: str, **environment: str) -> float:
  """Run the command for one step, and return its seconds until the line of that step."""
  command = [
    *(sys.executable, '-m', 'cascades.train', '--gin_file=recipes/demo_small.gin'),
    *(
      '--gin.TRAIN_STEPS=1',
      '--gin.WARMUP_STEPS=0',
      '--gin.VALIDATE_EVERY=0',
      f'--gin.MODEL_DIR={home}/{run}',
    ),
    f'--gin.RECORDS_DIR={home}/records',
  ]
  begin = time.perf_counter()
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=os.environ | {'HOME': home} | environment
  ) as process:
    assert process.stdout
    for line in process.stdout:
      if 'step 1/1' in line:
        seconds = time.perf_counter() - begin
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  return seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--output', default=bars.RESULTS / 'first_step.json')
  options = parser.parse_args()
  seconds: dict[str, list[float]] = {'without': [], 'first': [], 'second': []}
  with tempfile.TemporaryDirectory() as root:
    start(f'{root}/records', 'run', JAX_ENABLE_COMPILATION_CACHE='false')  # reads the disk once
    for turn in range(options.repeats):
      home = f'{root}/{turn}'
      seconds['without'].append(start(home, 'a', JAX_ENABLE_COMPILATION_CACHE='false'))
      seconds['first'].append(start(home, 'b'))
      seconds['second'].append(start(home, 'c'))
  ratios = [a / b for a, b in zip(seconds['without'], seconds['second'], strict=True)]
  measured = [
    Measured(f'{name} cache', median(times), 's', at_most=SECONDS if name == 'second' else None)
    for name, times in seconds.items()
  ]
  measured.append(Measured('without over second', median(ratios), 'ratio', at_least=1.2))
  bars.report('seconds to the first step', measured, options.output, {'repeats': options.repeats})


if __name__ == '__main__':
  main()
