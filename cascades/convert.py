"""Make a run directory of a model that others trained.

    python -m cascades.convert --gin_file=runs/convert.gin --gin.SOURCE=downloads/SmolLM2-135M
      --gin.MODEL_DIR=runs/smollm2

SOURCE is a folder of Hugging Face: safetensors, config.json and a tokenizer. MODEL_DIR can then be
the CHECKPOINT_PATH, LARGE_CHECKPOINT_PATH or INITIAL_CHECKPOINT_PATH of the other programs, and its
model.json names the model's sizes. Every device reads its own part of the weights, by the same
rules that place them in training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import jax
from etils import epath

from cascades import files, partitioning
from cascades.checkpoints import convert as conversion
from cascades.checkpoints import huggingface, store
from cascades.models import configs
from cascades.tasks import released, vocabularies
from cascades.types import Vocabulary

log = logging.getLogger(__name__)


def convert(
  source: str,
  model_dir: str,
  *,
  vocabulary: Vocabulary | None = None,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write `source` as checkpoint 0 of `model_dir`, in `dtype`.

  Raises CheckpointError if our models do not compute its model, naming the option, or if its
  tensors are not that model's, naming them.
  """
  folder, directory = files.absolute(source), files.absolute(model_dir)
  found = huggingface.open_folder(folder)
  vocabulary = vocabulary or released.vocabulary(folder)
  config = configs.from_description(found.model)
  if config.vocab_size < vocabulary.size:
    raise ValueError(
      f'the model of {source} has {config.vocab_size} vocabulary entries and its tokenizer '
      f'{vocabulary.size}: they are not of one model.'
    )
  description = {
    'model': configs.describe(config),
    'vocabulary': vocabulary.fingerprint,
    'vocabulary_size': vocabulary.size,
  }
  store.check_description(directory, description)
  with store.Checkpoints(directory) as checkpoints, partitioning.use(mesh(), rules):
    if checkpoints.latest() is not None:
      log.info('%s holds a checkpoint already.', model_dir)
      return
    _, abstract = partitioning.abstract_model(config, rules, dtype=dtype)
    params = conversion.load(found.table, found.weights, abstract)
    if jax.process_index() == 0:
      store.write_description(directory, description)
      vocabularies.save(vocabulary, directory)
      _keep_companions(folder, directory)
      files.write(directory / 'config.gin', provenance().get('config', ''))
    checkpoints.save(0, {'params': params})
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  log.info('%s: %s parameters in %s', model_dir, f'{size:,}', dtype)


def _keep_companions(folder: epath.Path, directory: epath.Path) -> None:
  config = {huggingface.CONFIG: (folder / huggingface.CONFIG).read_bytes()}
  for name, content in (huggingface.companions(folder) | config).items():
    files.write(directory / huggingface.COMPANIONS / name, content)


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.convert')
