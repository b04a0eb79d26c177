"""Export a trained model to Hugging Face (and the servers that read its format), or to T5X.

    python -m cascades.export --gin_file=runs/export.gin --gin.CHECKPOINT_PATH=runs/mine/small
      --gin.OUTPUT_DIR=exported/mine

OUTPUT_DIR gets safetensors, config.json, generation_config.json and the files of the tokenizer,
copied from the model that the run started from, or from TOKENIZER, another folder. Other settings
of its config.json, such as the length of the context, are copied too.

With FORMAT 't5x', OUTPUT_DIR gets a checkpoint_N in T5X's native layout, for its models: T5 1.0 and
1.1, the scanned T5 and the decoder-only example.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from etils import epath

from cascades.checkpoints import store
from cascades.interop import companions, families, huggingface, t5x, tensor_tables
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import files, locking, partitioning
from cascades.tokenizers import vocabularies
from cascades.tokenizers.export import end_prompts
from cascades.types import Params

log = logging.getLogger(__name__)


def export(
  checkpoint_path: str,
  output_dir: str,
  *,
  format: Literal['huggingface', 't5x'] = 'huggingface',
  tokenizer: str | None = None,
  prompt_end: bool = False,
  which: store.StepSelector = 'last',
  dtype: Literal['float32', 'bfloat16'] = 'float32',
  shard_bytes: int = huggingface.SHARD_BYTES,
  overwrite: bool = False,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
) -> None:
  """Writes the model of a checkpoint in the format of another program.

  Args:
    checkpoint_path: a run directory, or one of its checkpoints.
    output_dir: where to write the model.
    format: of the model.
    tokenizer: the folder of Hugging Face that the model came from, or the run directory that it
      was converted to; by default the files that the run itself keeps.
    prompt_end: make the exported tokenizer and chat template put an end of sequence after a prompt,
      as a model that was trained here without another format of prompts expects it.
    which: the checkpoint of a run directory: a step, the last, or the best.
    dtype: of the weights.
    shard_bytes: the size of a file of weights, for Hugging Face.
    overwrite: replace the model in `output_dir`; files that belong to no model stay.
    mesh: the devices that read the weights.
    rules: how parameters are sharded over the mesh.

  Raises:
    CheckpointError: the other program does not compute the model, or `output_dir` holds one,
      or other files.
  """
  if format not in ('huggingface', 't5x'):
    raise ValueError(f'FORMAT is {format!r}; it can be huggingface or t5x.')
  tensor_tables.check_dtype(dtype)
  output = files.absolute(output_dir)
  directory, step = store.locate(checkpoint_path, which)
  description, primary = store.read_description(directory)['model'], jax.process_index() == 0
  config = configs.from_description(description)
  write: Callable[[Params], object]
  if format == 't5x':
    write = functools.partial(
      t5x.write,
      output,
      configs.describe(config),
      step=step,
      dtype=dtype,
      fetch=partitioning.fetch,
      overwrite=overwrite,
      primary=primary,
    )
  else:
    huggingface.check_output(output, overwrite=overwrite)
    options, companion_files = _prepare(directory, description, tokenizer)
    if prompt_end:
      companion_files = end_prompts(companion_files, vocabularies.load(directory))
    write = lambda params: huggingface.write_folder(
      output,
      options | {'torch_dtype': dtype},
      tensor_tables.unload(families.table(description), params, fetch=partitioning.fetch),
      companion_files,
      shard_bytes=shard_bytes,
      overwrite=overwrite,
      primary=primary,
    )
  with partitioning.use(mesh(), rules), locking.held(output):
    _, abstract = abstract_model(config, rules, dtype=dtype)
    write(store.restore_params(directory, abstract, which=step))
  log.info('%s: step %d of %s in %s', output, step, directory, dtype)


def _prepare(
  directory: epath.Path, description: Mapping[str, Any], tokenizer: str | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
  """The content of config.json, and the companion files."""
  original = companions.find_original(directory if tokenizer is None else tokenizer)
  if original is None and tokenizer is not None:
    raise store.CheckpointError(
      f'{tokenizer} is neither a folder of Hugging Face nor a run directory that '
      f'`python -m cascades.convert` wrote: it has no {huggingface.CONFIG}.'
    )
  if original is None:
    log.warning(
      'TOKENIZER is not given: tokenizer files are generated from the vocabulary, if transformers '
      'has a tokenizer of its type, and config.json lacks options that the description of the '
      'model does not determine, such as the length of the context.'
    )
  return companions.for_export(description, vocabularies.load(directory), original)


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.export')
