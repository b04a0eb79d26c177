"""Seconds from a command to its first line: help, listings, and an evaluation of the demo's tables.

    python -m benchmarks.startup
    python -m benchmarks.startup --demo=runs/demo

Each sample is the real command in its own process; the commands take turns, so that a busy machine
slows all alike. Every start but the first finds the files of the interpreter in memory. The way of
`cascades.train` to its first step is measured by `benchmarks.first_step`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from statistics import median
from typing import NamedTuple

from benchmarks import bars
from benchmarks.bars import Measured

HELP_SECONDS, LIST_SECONDS = 0.7, 3.0
HELP: Mapping[str, tuple[str, ...]] = {
  f'cascades.{name} --help': (f'cascades.{name}', '--help')
  for name in ('train', 'infer', 'evaluate', 'serve')
}
LISTS: Mapping[str, tuple[str, ...]] = {
  'browse_tasks list': ('cascades.browse_tasks', 'list'),
  'browse_tasks show': ('cascades.browse_tasks', 'show', 'superglue_rte', '--sample'),
}
HEAVY = ('jax', 'tensorflow')

# The command as typed, followed by what it has imported of `HEAVY`.
_RUN = f"""
import atexit, runpy, sys
atexit.register(lambda: print(*{{*{HEAVY}}} & {{*sys.modules}}, file=sys.stderr))
sys.argv, sys.orig_argv = ['-m', *sys.argv[2:]], [sys.executable, '-m', *sys.argv[1:]]
runpy.run_module(sys.orig_argv[2], run_name='__main__', alter_sys=True)
"""


class Run(NamedTuple):
  first: float  # seconds to the first line
  all: float
  imported: frozenset[str]  # of `HEAVY`


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
    line = process.stdout.readline()
    first = time.perf_counter() - start
    process.stdout.read()
    errors = process.stderr.read()
  if process.returncode or not line:
    raise subprocess.CalledProcessError(process.returncode, command, line, errors)
  return Run(first, time.perf_counter() - start, frozenset(errors.splitlines()[-1].split()))


def measure(demo: str | None, repeats: int) -> Iterator[Measured]:
  with tempfile.TemporaryDirectory() as output:
    evaluations = {
      'cascades.evaluate, of two tables': (
        'cascades.evaluate', '--gin_file=runs/evaluate.gin', f'--gin.EVAL_OUTPUT_DIR={output}',
        f'--gin.SMALL={demo}/cat_xent/predictions', f'--gin.LARGE={demo}/large/predictions',
      )
    } if demo else {}  # fmt: skip
    commands = {**HELP, **LISTS, **evaluations}
    samples: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(repeats):
      for name, command in commands.items():
        samples[name].append(run(command))
  for name, runs in samples.items():
    bar = HELP_SECONDS if name in HELP else LIST_SECONDS if name in LISTS else None
    imported = ' and '.join(sorted(frozenset.union(*(each.imported for each in runs))))
    yield Measured(
      f'{name}: to the first line', median(each.first for each in runs), 's', at_most=bar,
      note=f'best {min(each.first for each in runs):.2f}; imports {imported or "neither"}',
    )  # fmt: skip
    yield Measured(f'{name}: to the end', median(each.all for each in runs), 's')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--demo', help='a directory of `make demo`, to start an evaluation too')
  parser.add_argument('--output', default=bars.RESULTS / 'startup.json')
  options = parser.parse_args()
  bars.report(
    'seconds of a start', measure(options.demo, options.repeats), options.output, vars(options)
  )


if __name__ == '__main__':
  main()
