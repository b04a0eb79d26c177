"""A tiny task with something to learn, and settings of tiny runs on it, for tests of programs."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

from cascades.models import t5
from cascades.runtime import partitioning
from cascades.tasks import local
from cascades.tokenizers import vocabularies
from cascades.training import optimizers

LETTERS = 'abcdefgh'
LENGTHS = {'inputs': 8, 'targets': 8}
VOCABULARY = vocabularies.symbols([*LETTERS, *LETTERS.upper()])
SMALL = t5.T5Config(
  vocab_size=24, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
  num_decoder_layers=1, dropout_rate=0.1,
)  # fmt: skip
LARGE = t5.T5Config(
  vocab_size=24, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=1,
  num_decoder_layers=1,
)  # fmt: skip


def write_rows(directory: pathlib.Path, rows: int = 64) -> dict[str, str]:
  """Words to be copied in capitals, backwards; one file a split."""
  rng = random.Random(0)
  paths = {}
  for split in ('train', 'validation', 'test'):
    path = directory / f'{split}.jsonl'
    lines = []
    for number in range(rows if split == 'train' else rows // 2):
      word = [rng.choice(LETTERS) for _ in range(rng.randint(2, 5))]
      row = {
        'id': f'{split}-{number}',
        'inputs': ' '.join(word),
        'targets': ' '.join(reversed(word)).upper(),
      }
      lines.append(json.dumps(row))
    path.write_text('\n'.join(lines) + '\n')
    paths[split] = str(path)
  return paths


def task(directory: pathlib.Path, **options: Any) -> Any:
  return local.local_jsonl('backwards', write_rows(directory), **options)


def settings(directory: pathlib.Path, **changes: Any) -> dict[str, Any]:
  """Arguments of `train.train`: a few steps of the small model on one device."""
  return {
    'model_dir': str(directory / 'run'),
    'small': SMALL,
    'task': task(directory),
    'vocabulary': VOCABULARY,
    'task_feature_lengths': LENGTHS,
    'train_steps': 6,
    'batch_size': 16,
    'learning_rate': optimizers.constant(1e-2),
    'mesh': one_device,
    'log_every': 2,
    'save_every': 4,
    'records_dir': str(directory / 'records'),
  } | changes


def one_device() -> Any:
  import jax

  return partitioning.make_mesh(devices=jax.devices()[:1])
