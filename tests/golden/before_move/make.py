"""Makes the artefacts beside it, with the code of the checkout that it is run in.

    python -m tests.golden.before_move.make   # in a checkout of commit 8380362 with these files

The numbers are those of the functions that `tests.before_move_test` adapts, which at that commit
are under the names that modules had then. The programs are run in /tmp/before_move: manifests name
the folder of a checkpoint in full, and that one belongs to no machine.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import tests.conftest  # noqa: F401  (how everything is compiled, before JAX is imported)

GOLDEN = pathlib.Path(__file__).parent
ROOT = GOLDEN.parents[2]
WORK = pathlib.Path('/tmp/before_move')


def main() -> None:
  from tests import before_move_test as golden

  (GOLDEN / 'host.json').write_text(json.dumps(golden.host(), indent=2) + '\n')
  _write_numbers(golden)
  shutil.rmtree(WORK, ignore_errors=True)
  WORK.mkdir()
  _write_rows()
  commands = [
    *(golden.training(run, steps) for run, steps in golden.STEPS.items()),
    *map(golden.caching, golden.CACHES),
    *(golden.inference(*table) for table in golden.TABLES),
    *map(golden.evaluation, golden.REPORTS),
  ]
  for command in commands:
    _run(golden, command)
  _copy(golden)
  for run in golden.CONTINUED:
    _run(golden, golden.training(run, golden.STEPS[run] + 2))
  for cache in golden.CACHES:
    _run(golden, golden.training_by(cache))
  _write_states(golden)
  shutil.rmtree(WORK)


def _write_rows() -> None:
  """Words of one to three letters, to be written backwards in capitals."""
  rng = random.Random(0)
  for split, size in (('train', 48), ('validation', 16), ('test', 24)):
    lines = []
    for number in range(size):
      word = [rng.choice('abc') for _ in range(rng.randint(1, 3))]
      texts = {'inputs': ' '.join(word), 'targets': ' '.join(reversed(word)).upper()}
      lines.append(json.dumps({'id': f'{split}-{number}', **texts}) + '\n')
    (WORK / f'{split}.jsonl').write_text(''.join(lines))


def _run(golden, command) -> None:
  print(command.program, *command.arguments, flush=True)
  environment = {**os.environ, **golden.ENVIRONMENT, 'PYTHONPATH': str(ROOT)}
  arguments = [sys.executable, '-m', command.program, *command.arguments]
  subprocess.run(arguments, cwd=WORK, env=environment, check=True)


def _copy(golden) -> None:
  """What the programs have left, but for pictures, and events: their names say host and time."""
  shutil.rmtree(GOLDEN / 'work', ignore_errors=True)
  unwanted = shutil.ignore_patterns('figures', 'report.html')
  shutil.copytree(WORK, GOLDEN / 'work', ignore=unwanted)
  for run in golden.STEPS:
    shutil.rmtree(GOLDEN / 'work' / run / 'train')
  (GOLDEN / 'work' / 'report' / 'score' / 'curves.json').unlink()  # long, and like the other


def _write_states(golden) -> None:
  import numpy as np

  runs = {run: golden.arrays(WORK / run, golden.STEPS[run] + 2) for run in golden.CONTINUED}
  for cache in golden.CACHES:
    runs[f'by_{cache}'] = golden.parameters(WORK / f'by_{cache}', 2)
  states = {f'{run}/{name}': array for run, state in runs.items() for name, array in state.items()}
  np.savez_compressed(GOLDEN / 'continued.npz', **states)


def _write_numbers(golden) -> None:
  import numpy as np

  def save(name, **groups) -> None:
    numbers = {
      f'{group}/{key}': np.asarray(value)
      for group, values in groups.items()
      for key, value in values.items()
    }
    np.savez_compressed(GOLDEN / f'{name}.npz', **numbers)

  given = golden.loss_inputs()
  save('losses', given=given, expected=golden.loss_numbers(given))
  small, large = golden.initial_parameters()
  expected = golden.step_numbers(small, large)
  save('train_step', small=golden.flat(small), large=golden.flat(large), expected=expected)
  given = golden.curve_inputs()
  save(
    'curves',
    given=given,
    expected=golden.curve_numbers(given),
    compared=golden.compared_numbers(),
  )


if __name__ == '__main__':
  main()
