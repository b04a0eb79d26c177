"""Write a trained model as Hugging Face's libraries, and servers built on them, read it.

    python -m cascades.export --gin_file=runs/export.gin --gin.CHECKPOINT_PATH=runs/mine/small
      --gin.OUTPUT_DIR=exported/mine --gin.TOKENIZER=downloads/SmolLM2-135M

OUTPUT_DIR gets safetensors, config.json, generation_config.json and the files of the tokenizer,
which are those of TOKENIZER: the folder that the model was converted from, or the run directory
that it was converted into. Other settings of its config.json, such as the length of the context,
are taken along.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
from etils import epath

from cascades import files, partitioning
from cascades.checkpoints import configuration, families, huggingface, store
from cascades.checkpoints import convert as conversion
from cascades.models import configs
from cascades.tasks import released, vocabularies
from cascades.types import Vocabulary

log = logging.getLogger(__name__)

TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'decoder_start_token_id')


def export(
  checkpoint_path: str,
  output_dir: str,
  *,
  tokenizer: str | None = None,
  which: store.Which = 'last',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  shard_bytes: int = huggingface.SHARD_BYTES,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
) -> None:
  """Write the model of `checkpoint_path` into `output_dir`, in `dtype`.

  Raises CheckpointError if no architecture of transformers that is known here computes it, or if
  `output_dir` holds a model already.
  """
  output = files.absolute(output_dir)
  if (output / huggingface.CONFIG).exists():
    raise store.CheckpointError(f'{output} holds a model already: remove it, or name another.')
  directory, step = store.locate(checkpoint_path, which)
  description = store.read_description(directory)
  model, vocabulary = description['model'], vocabularies.load(directory)
  original = _original(tokenizer, directory)
  written = _configuration(model, vocabulary, original)
  beside = _beside(original, written)
  with partitioning.use(mesh(), rules):
    config = configs.from_description(model)
    _, abstract = partitioning.abstract_model(config, rules, dtype=dtype)
    params = store.restore_params(directory, abstract, which=step)
    tensors = conversion.unload(families.table(model), params, fetch=partitioning.fetch)
    huggingface.write_folder(
      output,
      written | {'torch_dtype': dtype},
      tensors,
      beside,
      shard_bytes=shard_bytes,
      primary=jax.process_index() == 0,
    )
  log.info('%s: step %d of %s, %d tensors in %s', output, step, directory, len(tensors), dtype)


class Original(NamedTuple):
  """The folder that the model goes back to, and its vocabulary."""

  folder: epath.Path
  vocabulary: Vocabulary


def _original(tokenizer: str | None, directory: epath.Path) -> Original | None:
  path = directory if tokenizer is None else files.absolute(tokenizer)
  kept = path / huggingface.COMPANIONS
  if kept.exists():
    return Original(kept, vocabularies.load(path))
  if tokenizer is None:
    log.warning(
      'TOKENIZER is not given: no tokenizer is exported, and config.json says nothing that our '
      'programs do not need, such as the length of the context.'
    )
    return None
  if not (path / huggingface.CONFIG).exists():
    raise store.CheckpointError(
      f'{tokenizer} is neither a folder of Hugging Face nor a run directory that '
      f'`python -m cascades.convert` made: it holds no {huggingface.CONFIG}.'
    )
  return Original(path, released.vocabulary(path))


def _configuration(
  model: Mapping[str, Any], vocabulary: Vocabulary, original: Original | None
) -> dict[str, Any]:
  """config.json: what our description says, and of the original's what it does not decide."""
  if original is None:
    written = configuration.configuration(model)
    ids: dict[str, int | None] = {
      'eos_token_id': vocabulary.eos_id,
      'pad_token_id': vocabulary.pad_id,
    }
    if 'decoder_start_token_id' not in written:
      ids['bos_token_id'] = vocabulary.bos_id
    return ids | written
  if original.vocabulary.fingerprint != vocabulary.fingerprint:
    raise store.CheckpointError(
      f'the tokenizer of {original.folder} is not the vocabulary that the model was trained with: '
      'give the folder that the model comes from.'
    )
  theirs = configuration.text_part(huggingface.read_config(original.folder))
  kept = {name: value for name, value in theirs.items() if name not in configuration.DECIDED}
  return kept | configuration.configuration(model, theirs['model_type'])


def _beside(original: Original | None, config: Mapping[str, Any]) -> dict[str, bytes]:
  """The tokenizer's files and generation_config.json."""
  found = huggingface.companions(original.folder) if original else {}
  ids = {name: value for name, value in config.items() if name in TOKEN_IDS and value is not None}
  text = json.dumps(ids, indent=2) + '\n'
  return {huggingface.GENERATION: text.encode()} | found


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.export')
