"""Make a run directory of a model that others trained.

    python -m cascades.convert --gin_file=runs/convert.gin --gin.SOURCE=downloads/SmolLM2-135M
      --gin.MODEL_DIR=runs/smollm2

SOURCE is a folder of Hugging Face (safetensors, config.json and a tokenizer), a GGUF file, or a
checkpoint_N of T5X. MODEL_DIR can then be the CHECKPOINT_PATH, LARGE_CHECKPOINT_PATH or
INITIAL_CHECKPOINT_PATH of the other programs, and its model.json names the model's sizes. Every
device reads its own part of the weights, by the same rules that place them in training.

T5X keeps neither tokenizer nor settings beside the weights. Say them:

    --gin.VOCABULARY=@vocabularies.sentencepiece()
    --gin.vocabularies.sentencepiece.path=downloads/sentencepiece.model
    --gin.MODEL_OPTIONS="{'dropout_rate': 0.1}"
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from etils import epath

from cascades.checkpoints import store
from cascades.interop import formats, hf_config, huggingface
from cascades.interop import tensor_tables as conversion
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import files, partitioning
from cascades.tokenizers import export, from_folder, gguf_files, vocabularies
from cascades.types import Vocabulary

log = logging.getLogger(__name__)


def convert(
  source: str,
  model_dir: str,
  *,
  vocabulary: Vocabulary | None = None,
  model_options: Mapping[str, Any] | None = None,
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write `source` as checkpoint 0 of `model_dir`, in `dtype`.

  `model_options` are fields of the model's configuration that the source does not say, or says
  otherwise. Raises CheckpointError if our models do not compute its model, naming the option, or
  if its tensors are not that model's, naming them.
  """
  conversion.check_dtype(dtype)
  place, directory = files.absolute(source), files.absolute(model_dir)
  kind = formats.recognize(place)
  found = formats.open_source(place)
  if found.model['family'] in configs.ENCODERS:
    raise store.CheckpointError(
      f'{place} holds an encoder, which answers nothing: models.bert reads it where texts become '
      'vectors, and needs no run directory.'
    )
  vocabulary = vocabulary or _vocabulary(place, kind)
  config = configs.from_description({**found.model, **(model_options or {})})
  if config.vocab_size < vocabulary.size:
    raise ValueError(
      f'the model of {source} has {config.vocab_size} vocabulary entries and its tokenizer '
      f'{vocabulary.size}: they are not of one model.'
    )
  model = configs.describe(config)
  description = {
    'model': model,
    'vocabulary': vocabulary.fingerprint,
    'vocabulary_size': vocabulary.size,
  }
  origin = {'converted_from': str(place), 'dtype': dtype}
  if store.is_made(directory, description, origin):
    log.info('%s holds a checkpoint already.', model_dir)
    return
  with partitioning.use(mesh(), rules):
    _, abstract = abstract_model(config, rules, dtype=dtype)
    params = conversion.load(found.table, found.weights, abstract)
    if jax.process_index() == 0:
      vocabularies.save(vocabulary, directory)
      for name, content in _companions(place, kind, model, vocabulary).items():
        files.write(directory / huggingface.COMPANIONS / name, content)
    store.make(directory, params, description, origin, config=provenance().get('config', ''))
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  log.info('%s: %s parameters in %s', model_dir, f'{size:,}', dtype)


def _vocabulary(place: epath.Path, kind: formats.Format) -> Vocabulary:
  if kind == 't5x':
    raise ValueError(
      f'{place} holds no tokenizer, as all checkpoints of T5X: say which SentencePiece model its '
      'text was cut with, --gin.VOCABULARY=@vocabularies.sentencepiece() '
      '--gin.vocabularies.sentencepiece.path=FILE.'
    )
  return (
    vocabularies.gguf(place, allow_remote=True) if kind == 'gguf' else from_folder.vocabulary(place)
  )


def _companions(
  place: epath.Path, kind: formats.Format, model: Mapping[str, Any], vocabulary: Vocabulary
) -> dict[str, bytes]:
  """What export needs to give the model back to Hugging Face, by file name; made if not there."""
  if kind == 'huggingface':
    return {
      **huggingface.companions(place),
      huggingface.CONFIG: (place / huggingface.CONFIG).read_bytes(),
    }
  try:
    config = hf_config.configuration(model)
  except store.CheckpointError:
    return {}  # T5X has models that transformers has not
  template = None
  if kind == 'gguf':
    reader = gguf_files.read(place)
    architecture = gguf_files.required(reader, 'general.architecture')
    config['max_position_embeddings'] = gguf_files.field(reader, f'{architecture}.context_length')
    template = gguf_files.field(reader, 'tokenizer.chat_template')
  config = export.special_ids(vocabulary, config)
  return {
    **export.tokenizer_files(vocabulary, chat_template=template),
    huggingface.CONFIG: json.dumps(config).encode(),
    huggingface.GENERATION: huggingface.generation(config),
  }


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.convert')
