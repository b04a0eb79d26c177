"""ResMem on tokens: phonemes of words, and bytes of text, for `resmem`. Trains by real commands."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import salt
from benchmarks.resmem_texts import deferral_curve
from cascades import memorize, resmem
from cascades.data.corpus import Data
from cascades.inference import memories, trained_model
from cascades.predictions import shards
from cascades.resmem import Datastore
from cascades.runtime import partitioning
from cascades.tasks import c4, cmudict, sources

LENGTH = 128
QUERIES = 256


class Language(NamedTuple):
  """A task, its models by width, and the rows of its memories and tests."""

  lengths: Mapping[str, int]
  widths: tuple[int, ...]
  rows: tuple[int, ...]
  test_rows: int
  steps: int


LANGUAGES = {
  'G2P': Language({'inputs': 24, 'targets': 24}, (16, 32), (1000, 8000), 400, 300),
  'LM': Language({'inputs': 1, 'targets': LENGTH}, (24, 48), (100, 1000), 16, 250),
}


def command(program: str, recipe: str, **settings: Any) -> None:
  """Run a program of `cascades`."""
  bindings = [f'--gin.{name.replace("__", ".")}={value}' for name, value in settings.items()]
  words = ['-m', f'cascades.{program}', f'--gin_file={recipe}', *bindings]
  subprocess.run([sys.executable, *words], check=True)


def train(root: pathlib.Path, name: str, width: int, seed: int) -> pathlib.Path:
  """Run directory of a model, which is trained unless it is finished."""
  language = LANGUAGES[name]
  directory = root / f'{name}-{width}-{seed}'
  if (directory / f'checkpoint_{language.steps}').exists():
    return directory
  shared = {
    'MODEL_DIR': directory, 'SEED': seed, 'TRAIN_STEPS': language.steps, 'SAVE_EVERY': 1000,
    'RECORDS_DIR': root / 'records',
  }  # fmt: skip
  if name == 'G2P':
    command('train', 'recipes/demo_small.gin', **shared, t5__Config__emb_dim=width)
  else:
    if not (root / 'data').exists():
      salt.write_data(DATA / 'pretrain_en' / 'docs.jsonl.gz', root / 'data')
    sizes = {**salt.TEACHER, 'emb_dim': width}
    command(
      'train', 'recipes/salt_lm.gin', **shared, DATA_DIR=root / 'data', DISTILL_STEPS=0,
      **{f'decoder__Config__{key}': value for key, value in sizes.items()},
    )  # fmt: skip
  return directory


DATA = pathlib.Path(__file__).parents[2] / 'shared' / 'data'


def run(root: pathlib.Path, name: str, width: int, seed: int) -> dict[str, Any]:
  """Token error and clipped log loss of a model alone and with memories."""
  language = LANGUAGES[name]
  directory = train(root, name, width, seed)
  task = (
    cmudict.task()
    if name == 'G2P'
    else c4.causal_lm(sources.Sources(data_dir=str(root / 'data')), length=LENGTH)
  )
  devices = partitioning.Devices(mesh=one_device)
  with devices.use():
    model = trained_model.load(trained_model.Checkpoint(str(directory)), rules=devices.rules)
    data = Data(
      task=task, lengths=language.lengths, batch_size=64, records_dir=str(root / 'records')
    )
    corpus = data.corpus(model.vocabulary, model.architecture)
    read = memorize.reader(model, 0)

    def entries(split: str, count: int) -> tuple[np.ndarray, ...]:
      (records,) = corpus.open(split).per_task
      numbers = np.sort(np.random.default_rng(seed).permutation(len(records))[:count])
      rows = memorize.entries(read, corpus, records, numbers, 64)
      parts = [(np.full(len(tokens), row), keys, tokens) for row, (keys, tokens) in rows]
      owner, keys, tokens = (np.concatenate(part) for part in zip(*parts, strict=True))
      return owner, keys, tokens

    merged = nnx.merge(model.graph, model.params)
    _, states, targets = entries('validation', language.test_rows)
    result: dict[str, Any] = {'parameters': model.described['parameters'], 'tokens': len(targets)}
    alone = jax.nn.softmax(merged.readout(jnp.asarray(states)))
    result['base'] = quality(alone, targets)
    for count in language.rows:
      owner, keys, tokens = entries('train', count)
      memory = Datastore(jnp.asarray(keys), jnp.asarray(tokens))
      sample = np.random.default_rng(seed).permutation(len(tokens))[:QUERIES]
      chosen, errors = memorize.choose(merged, memory, owner, sample, resmem.log_loss)
      near = resmem.nearest(jnp.asarray(states), memory.keys, max(x.k for x in chosen.values()))
      distance = resmem.distances(jnp.asarray(states), memory.keys, near)
      for way, lookup in chosen.items():
        began = time.perf_counter()
        p = resmem.next_token(
          merged.readout(jnp.asarray(states)), distance, near, memory, merged.readout, lookup
        )
        result[f'{way} {count}'] = quality(p, targets) | {
          'entries': len(tokens), 'lookup': lookup._asdict(), 'leave one out': errors[way],
          'alone': errors['alone'], 'seconds': time.perf_counter() - began,
        }  # fmt: skip
  return result


def quality(p: Any, targets: Any) -> dict[str, float]:
  """Mean error and log loss of tokens."""
  y = jnp.asarray(targets)
  means = (criterion(p, y).mean() for criterion in (resmem.error, resmem.log_loss))
  return dict(zip(('error', 'log loss'), map(float, means), strict=True))


def one_device() -> Any:
  """A mesh of the first device."""
  return partitioning.make_mesh(devices=jax.devices()[:1])


def cascade(root: pathlib.Path, seed: int = 0) -> dict[str, Any]:
  """Deferral curves of the small G2P model, plain and with a memory, by the real programs."""
  large = root / 'G2P-large'
  records = {'RECORDS_DIR': root / 'records'}
  if not (large / 'checkpoint_500').exists():
    command('train', 'recipes/demo_large.gin', **records, MODEL_DIR=large, TRAIN_STEPS=500)
  small = train(root, 'G2P', 32, seed)
  asked = {**records, 'SPLITS': "['validation']"}
  memory = small / 'memory'
  command(
    'memorize', 'runs/memorize.gin', **records, CHECKPOINT_PATH=small, MEMORY=memory, ROWS=8000,
    MIXTURE_OR_TASK_NAME='cmudict_g2p', TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 24},
    QUERIES=QUERIES,
  )  # fmt: skip
  ways: dict[str, dict[str, Any]] = {
    'large': {'CHECKPOINT_PATH': large},
    'base': {'CHECKPOINT_PATH': small},
    **{
      way: {'CHECKPOINT_PATH': small, 'MEMORY': memory, 'COMBINE': way}
      for way in memories.COMBINATIONS
    },
  }
  tables = {}
  for way, settings in ways.items():
    output = root / 'G2P-tables' / way
    if not list(output.glob('validation/*.manifest.json')):
      command('infer', 'recipes/demo_infer.gin', **asked, **settings, INFER_OUTPUT_DIR=output)
    (tables[way],) = shards.read(output / 'validation')
  right = {way: table.statistics['word_accuracy'][:, 0] for way, table in tables.items()}
  seconds = json.loads((memory / 'lookups.json').read_text())['milliseconds_per_token'] / 1e3
  tokens = lambda table: float((table.lengths + table.column('prompt_tokens')).mean())
  result = {}
  for way, table in tables.items():
    sums = np.bincount(
      np.repeat(np.arange(len(table.ids)), table.lengths), table.token_logprobs, len(table.ids)
    )
    flops = {
      name: float(t.manifest['flops_per_token']) * tokens(t)
      for name, t in (('small', table), ('large', tables['large']))
    }
    result[way] = {
      'quality': deferral_curve(-sums, right[way], right['large']).tolist(),
      **flops,
      'bytes': table.manifest.get('memory', {}).get('bytes', 0),
      'milliseconds': 0
      if way in ('base', 'large')
      else 1e3 * seconds * float(table.lengths.mean()),
    }
  return result
