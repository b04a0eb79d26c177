"""A tiny task with something to learn, and settings of tiny runs on it, for tests of programs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

from cascades import cache_teacher as cache_teacher_program
from cascades import infer as inference
from cascades.data import corpus
from cascades.inference import trained_model
from cascades.inference.answers import DecodingOptions
from cascades.models import t5
from cascades.runtime import partitioning
from cascades.tasks import local
from cascades.tokenizers import vocabularies
from cascades.training import optimizers, setup

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
  """Settings of `tiny.train`: a few steps of the small model on one device."""
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


# The programs' config objects, and the flat name of each field.
CONFIGS: dict[str, tuple[type, dict[str, str]]] = {
  'small': (setup.SmallModel, {
    'small': 'config', 'vocabulary': 'vocabulary', 'adapters': 'adapters',
    'initial_checkpoint_path': 'initial_checkpoint_path',
  }),
  'large': (setup.LargeModel, {
    'large': 'config', 'large_checkpoint_path': 'checkpoint_path', 'large_dtype': 'dtype',
    'large_rules': 'rules', 'teacher_cache': 'teacher_cache', 'large_steps': 'steps',
  }),
  'data': (corpus.Data, {
    'task': 'task', 'task_feature_lengths': 'lengths', 'batch_size': 'batch_size',
    'pack_length': 'pack_length', 'records_dir': 'records_dir', 'selection': 'selection',
    'sources': 'sources',
  }),
  'devices': (partitioning.Devices, {'mesh': 'mesh', 'rules': 'rules'}),
  'checkpoint': (trained_model.Checkpoint, {
    'checkpoint_path': 'path', 'which': 'which', 'precision': 'precision', 'weights': 'weights',
    'memory': 'memory',
  }),
  'answers': (cache_teacher_program.Answers, {
    'top_k': 'top_k', 'dtype': 'dtype', 'vocab_size': 'vocab_size', 'reference': 'reference',
    'tail_samples': 'tail_samples',
  }),
  'output': (inference.Output, {
    'infer_output_dir': 'directory', 'shard_rows': 'shard_rows', 'overwrite': 'overwrite',
    'embeddings': 'embeddings', 'alternatives': 'alternatives',
  }),
  'decoding_options': (DecodingOptions, {
    'temperature': 'temperature', 'top_k': 'top_k', 'top_p': 'top_p', 'seed': 'seed',
  }),
  **{name: (config, {field.name: field.name for field in dataclasses.fields(config)})
     for name, config in (('step', setup.Step), ('schedule', setup.Schedule),
                          ('failures', setup.Failures))},
}  # fmt: skip


def arguments(program: Callable[..., Any], **settings: Any) -> dict[str, Any]:
  """Arguments of a program from flat settings, which are grouped into its config objects."""
  parameters = inspect.signature(program).parameters
  grouped: dict[str, Any] = {}
  for name, (config, fields) in CONFIGS.items():
    if name in parameters:
      given = {field: settings.pop(flat) for flat, field in fields.items() if flat in settings}
      grouped |= {name: config(**given)} if given else {}
  return grouped | settings


def train(**settings: Any) -> Any:
  """`cascades.train` with flat settings."""
  from cascades import train

  return train.train(**arguments(train.train, **settings))


def infer(**settings: Any) -> None:
  """`cascades.infer` with flat settings."""
  inference.infer(**arguments(inference.infer, **settings))


def cache_teacher(**settings: Any) -> None:
  """`cascades.cache_teacher` with flat settings, computing as training does."""
  settings = {'precision': None, 'weights': 'float32'} | settings
  cache_teacher_program.cache_teacher(**arguments(cache_teacher_program.cache_teacher, **settings))


def one_device() -> Any:
  import jax

  return partitioning.make_mesh(devices=jax.devices()[:1])
