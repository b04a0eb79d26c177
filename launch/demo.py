"""The whole job on real text: one large and four small models, their answers, the report.

    python -m launch.demo        (or: make demo)

Runs the programs as a user would, one command a stage, and prints each. A stage that has finished
is not run again; a stage that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from absl import app, flags
from etils import epath

from cascades import files

ROOT = pathlib.Path(__file__).parents[1]
LOSSES = ('xent', 'cat_xent', 'dist', 'cat_dist')
MODELS = ('large', *LOSSES)

_DIRECTORY = flags.DEFINE_string('output_dir', 'runs/demo', 'Where everything goes.')
_BINDINGS = flags.DEFINE_multi_string('train', [], 'More bindings for all training, NAME=value.')


class Stage(NamedTuple):
  """One command, and the name under which its completion is remembered."""

  name: str
  program: str
  recipe: str
  bindings: dict[str, str]

  def command(self) -> list[str]:
    bindings = [f'--gin.{name}={value}' for name, value in self.bindings.items()]
    program = [sys.executable, '-m', f'cascades.{self.program}', f'--gin_file={self.recipe}']
    return [*program, *bindings]


def stages(directory: str, extra: dict[str, str]) -> list[Stage]:
  """All stages, each after those that it needs."""

  def train(loss: str) -> Stage:
    bindings = {'LOSS': f'@losses.{loss}', 'MODEL_DIR': f'{directory}/{loss}', **extra}
    if loss != 'xent':  # which asks the large model nothing
      bindings['LARGE_CHECKPOINT_PATH'] = f'{directory}/large'
    return Stage(f'train {loss}', 'train', 'recipes/demo_small.gin', bindings)

  def infer(model: str) -> Stage:
    path = f'{directory}/{model}'
    bindings = {'CHECKPOINT_PATH': path, 'INFER_OUTPUT_DIR': f'{path}/predictions'}
    return Stage(f'infer {model}', 'infer', 'recipes/demo_infer.gin', bindings)

  small = {loss: f'{directory}/{loss}/predictions' for loss in LOSSES}
  compare = {
    'SMALL': repr(small),
    'LARGE': f'{directory}/large/predictions',
    'EVAL_OUTPUT_DIR': directory,
    'BASELINE': 'xent',
  }
  large = {'MODEL_DIR': f'{directory}/large', **extra}
  return [
    Stage('train large', 'train', 'recipes/demo_large.gin', large),
    *(train(loss) for loss in LOSSES),
    *(infer(model) for model in MODELS),
    Stage('evaluate', 'evaluate', 'runs/evaluate.gin', compare),
  ]


def main(argv: Sequence[str]) -> None:
  del argv
  began = time.monotonic()
  directory = _DIRECTORY.value
  extra = dict(binding.split('=', 1) for binding in _BINDINGS.value)
  for stage in stages(directory, extra):
    try:
      finished = run(stage, directory)
    except KeyboardInterrupt:
      finished = False
    if not finished:
      sys.exit(f'{stage.name} did not finish; the same command goes on from there.')
  print(f'\nDone in {time.monotonic() - began:.0f} s: open {directory}/report.html')


def run(stage: Stage, directory: str) -> bool:
  """Run the stage unless it has finished; whether it has now."""
  marker = ROOT / directory / '.finished' / stage.name.replace(' ', '-')
  fingerprint = _fingerprint(stage)
  if marker.exists():
    if marker.read_text() != fingerprint:
      sys.exit(
        f'{stage.name} finished under another recipe or command than {stage.recipe} says now: '
        f'remove {directory}, or give another --output_dir.'
      )
    print(f'[{stage.name}] finished before')
    return True
  print(f'\n[{stage.name}] python {shlex.join(stage.command()[1:])}', flush=True)
  began = time.monotonic()
  if subprocess.run(stage.command(), cwd=ROOT, check=False).returncode:
    return False
  print(f'[{stage.name}] took {time.monotonic() - began:.0f} s', flush=True)
  files.write(epath.Path(marker), fingerprint)
  return True


def _fingerprint(stage: Stage) -> str:
  """Changes with the command and with what its recipe says."""
  digest = hashlib.sha256(shlex.join(stage.command()[1:]).encode())
  configs = ROOT / 'gin_configs'
  for file in [
    configs / stage.recipe,
    *sorted(configs.glob('models/*')),
    *sorted(configs.glob('runs/*')),
  ]:
    digest.update(file.read_bytes())
  return digest.hexdigest()


if __name__ == '__main__':
  app.run(main)
