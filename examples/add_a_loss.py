"""Train a few steps with a loss of your own.

    python examples/add_a_loss.py [FOLDER]

The focal loss (https://arxiv.org/abs/1708.02002) scales the cross-entropy of a token by
(1 - p)^gamma, so that tokens which the model already predicts count less. It is a token loss; with
a token mask it becomes a training loss. `masks.either_correct` instead of `masks.all_tokens`, and
--gin.LARGE_CHECKPOINT_PATH=..., would make it cascade-aware.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from functools import partial

import jax.numpy as jnp

from cascades import losses, masks

GAMMA = 2.0
SETTINGS = """
from __gin__ import dynamic_registration
from cascades.tasks import local
import add_a_loss
include 'recipes/local_train.gin'
include 'models/t5_nano.gin'
TASK = @local.local_jsonl()
TASK_FEATURE_LENGTHS = {{'inputs': 12, 'targets': 12}}
local.local_jsonl.name = 'uppercase'
local.local_jsonl.splits = {{'train': '{rows}', 'validation': '{rows}'}}
LOSS = @add_a_loss.focal
TRAIN_STEPS = 61
WARMUP_STEPS = 10
BATCH_SIZE = 32
LEARNING_RATE = 1e-2
VALIDATE_EVERY = 60
MODEL_DIR = '{folder}/run'
RECORDS_DIR = '{folder}/records'
"""


def focal_token_loss(small, teachers, targets):
  """`l_i = -(1 - p_i)^gamma log p_i` with p_i = p_S(y_i | x, y_<i). [*n, V] -> [*n]"""
  cross_entropy = losses.cross_entropy(small, teachers, targets)
  return (1 - jnp.exp(-cross_entropy)) ** GAMMA * cross_entropy


focal = partial(losses.cascade_loss, token_loss=focal_token_loss, token_mask=masks.all_tokens)


def main(folder: pathlib.Path) -> None:
  words = [f'{a}{b}{c}' for a in 'bcdfgh' for b in 'aeiou' for c in 'klmnp']
  rows = [{'id': word, 'inputs': word, 'targets': word.upper()} for word in words]
  (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (folder / 'run.gin').write_text(SETTINGS.format(rows=folder / 'rows.jsonl', folder=folder))
  # In this folder, so that the gin file can import this module.
  here = pathlib.Path(__file__).parent
  command = [sys.executable, '-m', 'cascades.train', f'--gin_file={folder / "run.gin"}']
  sys.exit(subprocess.run(command, cwd=here, check=False).returncode)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()).resolve())
