"""Server of the demo's models, with a page: type a word, get its phonemes.

    python -m launch.serve_demo        (or: make serve-demo; after make demo)

Calibrates a policy once: at most 5 points of word accuracy below the large model alone, with 90 %
confidence. Then `python -m cascades.serve` takes the place of this process.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from absl import app, flags

from launch import demo
from launch.stages import ROOT, Stage

SMALL = 'cat_dist'
MARGIN = 0.05

_PORT = flags.DEFINE_integer('port', 8080, 'Port of the server.')


def calibration(directory: str) -> Stage:
  """Stage that writes the policy."""
  bindings = {
    'SMALL': f'{directory}/{SMALL}/predictions',
    'LARGE': f'{directory}/large/predictions',
    'MARGIN': str(MARGIN),
    'POLICY': f'{directory}/policy.json',
  }
  return Stage('calibrate', 'calibrate', ('runs/calibrate.gin',), bindings)


def server(directory: str, port: int) -> Stage:
  """Command of the server; its models read words of up to 31 letters."""
  bindings = {
    'SMALL': f'{directory}/{SMALL}',
    'LARGE': f'{directory}/large',
    'POLICY': f'{directory}/policy.json',
    'LOG_DIR': f'{directory}/served',
    'MAX_PROMPT': '32',
    'MAX_TOKENS': '32',
    'SLOTS': '4',
    'PORT': str(port),
  }
  return Stage('serve', 'serve', ('runs/serve.gin',), bindings)


def main(argv: Sequence[str]) -> None:
  del argv
  directory = demo.DIRECTORY.value
  absent = [
    path
    for model in (SMALL, 'large')
    if not (ROOT / (path := f'{directory}/{model}/predictions/validation')).is_dir()
  ]
  if absent:
    sys.exit(f'{absent[0]} is absent: run `make demo` first, which trains the models.')
  if not demo.run(calibration(directory), directory):
    sys.exit('calibrate did not finish; rerun the same command.')
  words = server(directory, _PORT.value).words()
  print(f'\n[serve] python -m {shlex.join(words)}')
  print(f'\nWhen it is ready, open http://127.0.0.1:{_PORT.value}/?spell', flush=True)
  os.chdir(ROOT)
  os.execv(sys.executable, [sys.executable, '-m', *words])


if __name__ == '__main__':
  app.run(main)
