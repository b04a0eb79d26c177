"""Write a trained model as other programs read it: Hugging Face's, servers built on them, or T5X.

    python -m cascades.export --gin_file=runs/export.gin --gin.CHECKPOINT_PATH=runs/mine/small
      --gin.OUTPUT_DIR=exported/mine

OUTPUT_DIR gets safetensors, config.json, generation_config.json and the files of the tokenizer,
which are those of the model that the run started from, or of TOKENIZER, another folder. Other
settings of its config.json, such as the length of the context, are taken along.

With FORMAT 't5x', OUTPUT_DIR gets a checkpoint_N in T5X's native layout, for its models: T5 1.0 and
1.1, the scanned T5 and the decoder-only example.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
from etils import epath

from cascades.checkpoints import store
from cascades.interop import families, hf_config, huggingface, t5x
from cascades.interop import tensor_tables as conversion
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import files, partitioning
from cascades.tokenizers import export as tokenizer_files
from cascades.tokenizers import from_folder, vocabularies
from cascades.types import Params, Vocabulary

log = logging.getLogger(__name__)


def export(
  checkpoint_path: str,
  output_dir: str,
  *,
  format: Literal['huggingface', 't5x'] = 'huggingface',
  tokenizer: str | None = None,
  which: store.Which = 'last',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  shard_bytes: int = huggingface.SHARD_BYTES,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
) -> None:
  """Write the model of `checkpoint_path` into `output_dir`, in `dtype`.

  Raises CheckpointError if nothing that is known here of the other program computes it, or if
  `output_dir` holds a model already.
  """
  if format not in ('huggingface', 't5x'):
    raise ValueError(f'FORMAT is {format!r}; it can be huggingface or t5x.')
  conversion.check_dtype(dtype)
  output = files.absolute(output_dir)
  directory, step = store.locate(checkpoint_path, which)
  model, primary = store.read_description(directory)['model'], jax.process_index() == 0
  config = configs.from_description(model)
  write: Callable[[Params], object]
  if format == 't5x':
    write = functools.partial(
      t5x.write,
      output,
      configs.describe(config),
      step=step,
      dtype=dtype,
      fetch=partitioning.fetch,
      primary=primary,
    )
  else:
    written, beside = _prepare(output, directory, model, tokenizer)
    write = lambda params: huggingface.write_folder(
      output,
      written | {'torch_dtype': dtype},
      conversion.unload(families.table(model), params, fetch=partitioning.fetch),
      beside,
      shard_bytes=shard_bytes,
      primary=primary,
    )
  with partitioning.use(mesh(), rules):
    _, abstract = abstract_model(config, rules, dtype=dtype)
    write(store.restore_params(directory, abstract, which=step))
  log.info('%s: step %d of %s in %s', output, step, directory, dtype)


def _prepare(
  output: epath.Path, directory: epath.Path, model: Mapping[str, Any], tokenizer: str | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
  """config.json and what stands beside it."""
  if (output / huggingface.CONFIG).exists():
    raise store.CheckpointError(f'{output} holds a model already: remove it, or name another.')
  vocabulary = vocabularies.load(directory)
  original = _original(tokenizer, directory)
  written = _configuration(model, vocabulary, original)
  return written, _beside(original, vocabulary, written)


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
      'TOKENIZER is not given: the tokenizer is made from the vocabulary, if transformers has one '
      'of its kind, and config.json says nothing that our programs do not need, such as the length '
      'of the context.'
    )
    return None
  if not (path / huggingface.CONFIG).exists():
    raise store.CheckpointError(
      f'{tokenizer} is neither a folder of Hugging Face nor a run directory that '
      f'`python -m cascades.convert` made: it holds no {huggingface.CONFIG}.'
    )
  return Original(path, from_folder.vocabulary(path))


def _configuration(
  model: Mapping[str, Any], vocabulary: Vocabulary, original: Original | None
) -> dict[str, Any]:
  """config.json: what our description says, and of the original's what it does not decide."""
  if original is None:
    return tokenizer_files.special_ids(vocabulary, hf_config.configuration(model))
  if original.vocabulary.fingerprint != vocabulary.fingerprint:
    raise store.CheckpointError(
      f'the tokenizer of {original.folder} is not the vocabulary that the model was trained with: '
      'give the folder that the model comes from.'
    )
  theirs = hf_config.text_part(huggingface.read_config(original.folder))
  ours = hf_config.decided(theirs['model_type'])
  kept = {name: value for name, value in theirs.items() if name not in ours}
  return kept | hf_config.configuration(model, theirs['model_type'])


def _beside(
  original: Original | None, vocabulary: Vocabulary, config: Mapping[str, Any]
) -> dict[str, bytes]:
  """The tokenizer's files and generation_config.json."""
  made = tokenizer_files.tokenizer_files
  found = huggingface.companions(original.folder) if original else made(vocabulary)
  return {huggingface.GENERATION: huggingface.generation(config)} | found


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.export')
