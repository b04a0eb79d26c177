"""Convert a model that others trained to a run directory.

    python -m cascades.convert --gin_file=runs/convert.gin --gin.SOURCE=downloads/SmolLM2-135M
      --gin.MODEL_DIR=runs/smollm2

SOURCE is a folder of Hugging Face (safetensors, config.json and a tokenizer), a GGUF file, or a
checkpoint_N of T5X. MODEL_DIR is then a CHECKPOINT_PATH, LARGE_CHECKPOINT_PATH or
INITIAL_CHECKPOINT_PATH of the other programs, and its model.json lists the model's sizes. Every
device reads its own shards of the weights, by the same rules as in training.

T5X stores neither tokenizer nor settings beside the weights; they are arguments:

    --gin.VOCABULARY=@vocabularies.sentencepiece()
    --gin.vocabularies.sentencepiece.path=downloads/sentencepiece.model
    --gin.MODEL_OPTIONS="{'dropout_rate': 0.1}"
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from cascades.checkpoints import made_runs, store
from cascades.interop import companions, tensor_tables
from cascades.interop.pretrained import open_pretrained
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import files, locking, partitioning
from cascades.tokenizers import named, vocabularies
from cascades.types import Vocabulary

log = logging.getLogger(__name__)


def convert(
  source: str,
  model_dir: str,
  *,
  vocabulary: Vocabulary | str | None = None,
  model_options: Mapping[str, Any] | None = None,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  overwrite: bool = False,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Writes a pretrained model as checkpoint 0 of a run directory.

  Args:
    source: a folder of Hugging Face, a GGUF file, or a checkpoint_N of T5X.
    model_dir: the run directory. If it holds this conversion already, nothing is written.
    vocabulary: the tokenizer, or its name or path, for T5X which stores none.
    model_options: fields of the model's configuration that the source lacks, or to replace.
    dtype: of the stored weights.
    overwrite: replace another conversion in `model_dir`.
    mesh: the devices that read the weights.
    rules: how parameters are sharded over the mesh.
    provenance: the operative configuration, stored beside the checkpoint.

  Raises:
    CheckpointError: the models here do not compute the source's, whose option is named; its
      tensors are not that model's, and are named; or `model_dir` holds another run or other files.
    ValueError: there is no vocabulary, or one that is larger than the model's embedding table.
  """
  tensor_tables.check_dtype(dtype)
  directory = files.absolute(model_dir)
  if isinstance(vocabulary, str):
    vocabulary = named.named(vocabulary)
  pretrained = open_pretrained(source, vocabulary=vocabulary, model_options=model_options)
  description = {
    'model': configs.describe(pretrained.config),
    'vocabulary': pretrained.vocabulary.fingerprint,
    'vocabulary_size': pretrained.vocabulary.size,
  }
  origin = {'converted_from': str(files.absolute(source)), 'dtype': dtype}
  if made_runs.check(directory, description, origin, source=source, overwrite=overwrite):
    log.info('%s already holds this checkpoint.', model_dir)
    return
  with partitioning.use(mesh(), rules), locking.held(directory):
    _, abstract = abstract_model(pretrained.config, rules, dtype=dtype)
    params = pretrained.tensors.load(abstract)
    made_runs.begin(directory, description, origin, overwrite=overwrite)
    if jax.process_index() == 0:
      vocabularies.save(pretrained.vocabulary, directory)
      for name, content in pretrained.companions().items():
        files.write(directory / companions.FOLDER / name, content)
    store.make(directory, params, description, origin, config=provenance().get('config', ''))
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  log.info('%s: %s parameters in %s', model_dir, f'{size:,}', dtype)


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.convert')
