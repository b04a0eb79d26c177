"""Demo on real text: train one large and four small models, run inference, write the report.

    python -m launch.demo        (or: make demo)

Runs each stage as a command that a user would type and prints it. Finished stages are skipped, and
an interrupted stage resumes from its checkpoint.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from launch import stages
from launch.stages import ROOT, Stage

LOSSES = ('xent', 'cat_xent', 'dist', 'cat_dist')
MODELS = ('large', *LOSSES)

DIRECTORY = flags.DEFINE_string('output_dir', 'runs/demo', 'Output folder.')
_BINDINGS = flags.DEFINE_multi_string(
  'train', [], 'NAME=value, a gin binding for all training; repeat.'
)


def all_stages(directory: str, extra: dict[str, str]) -> list[Stage]:
  """Stages in the order of their dependencies."""

  def train(loss: str) -> Stage:
    bindings = {'LOSS': f'@losses.{loss}', 'MODEL_DIR': f'{directory}/{loss}', **extra}
    if loss != 'xent':  # needs no large model
      bindings['LARGE_CHECKPOINT_PATH'] = f'{directory}/large'
    return Stage(f'train {loss}', 'train', ('recipes/demo_small.gin',), bindings)

  def infer(model: str) -> Stage:
    path = f'{directory}/{model}'
    bindings = {'CHECKPOINT_PATH': path, 'INFER_OUTPUT_DIR': f'{path}/predictions'}
    return Stage(f'infer {model}', 'infer', ('recipes/demo_infer.gin',), bindings)

  small = {loss: f'{directory}/{loss}/predictions' for loss in LOSSES}
  compare = {
    'SMALL': repr(small),
    'LARGE': f'{directory}/large/predictions',
    'EVAL_OUTPUT_DIR': directory,
    'BASELINE': 'xent',
  }
  large = {'MODEL_DIR': f'{directory}/large', **extra}
  return [
    Stage('train large', 'train', ('recipes/demo_large.gin',), large),
    *(train(loss) for loss in LOSSES),
    *(infer(model) for model in MODELS),
    Stage('evaluate', 'evaluate', ('runs/evaluate.gin',), compare),
  ]


def main(argv: Sequence[str]) -> None:
  del argv
  began = time.monotonic()
  directory = DIRECTORY.value
  extra = dict(binding.split('=', 1) for binding in _BINDINGS.value)
  for stage in all_stages(directory, extra):
    try:
      finished = run(stage, directory)
    except KeyboardInterrupt:
      finished = False
    if not finished:
      sys.exit(f'{stage.name} did not finish; rerun the same command to resume.')
  print(f'\nDone in {time.monotonic() - began:.0f} s: open {directory}/report.html')


def run(stage: Stage, directory: str) -> bool:
  """Run the stage unless it has finished before, and return whether it has finished."""

  def start(words: list[str]) -> int:
    print(f'\n[{stage.name}] python -m {shlex.join(words)}', flush=True)
    began = time.monotonic()
    code = subprocess.run([sys.executable, '-m', *words], cwd=ROOT, check=False).returncode
    print(f'[{stage.name}] took {time.monotonic() - began:.0f} s', flush=True)
    return code

  try:
    code = stages.run(stage, ROOT / directory, start)
  except ValueError as error:
    sys.exit(str(error))
  if code is None:
    print(f'[{stage.name}] finished before')
  return not code


if __name__ == '__main__':
  app.run(main)
