"""Model folders as Hugging Face's `save_pretrained` writes them: safetensors and config.json.

Orbax reads the tensors, every device the bytes of its own shard. Pickles are refused.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import numpy as safetensors

from cascades.checkpoints import json_files, store
from cascades.checkpoints.safetensors_files import read_shapes, read_tensors
from cascades.checkpoints.store import CheckpointError
from cascades.interop import families, hf_config, sentence_transformers, sizes
from cascades.interop.tensor_tables import (
  PretrainedTensors,
  PretrainedWeights,
  StoredTensors,
  TensorToWrite,
)
from cascades.runtime import files, locking

log = logging.getLogger(__name__)

CONFIG = 'config.json'
INDEX = 'model.safetensors.index.json'
WEIGHTS = 'model.safetensors'
GENERATION = 'generation_config.json'
# Files that servers read, and fine-tuning does not change.
COMPANIONS = (
  GENERATION,
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  'added_tokens.json',
  'spiece.model',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
  'chat_template.json',
)
SHARD_BYTES = 1 << 30
PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl')
_UNFINISHED = '.unfinished'  # where an export is until it is complete
_GIT_LFS_POINTER = b'version https://git-lfs'
# Gemma 3 for images stores its language model under either prefix.
_TEXT_PREFIXES = ('language_model.', 'model.language_model.')
_T5_TABLES = ('shared.weight', 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
_IMAGE_MODULES = ('vision_tower', 'multi_modal_projector')


def open_folder(folder: epath.PathLike) -> PretrainedWeights:
  """Opens the model in a folder; of its tensors only names and shapes are read.

  Args:
    folder: the folder, local or remote.

  Returns:
    The description of the model, and its tensors.

  Raises:
    CheckpointError: the folder holds no model, pickles, or a model that the models here do not
      compute.
  """
  folder = files.absolute(folder)
  config = read_config(folder)
  description = hf_config.describe(config)
  stored = _stored_tensors(folder, config)
  sizes.check(stored.origin, description, stored.shapes)
  if hf_config.text_config(config) is not config:
    stored = _language_model_tensors(stored)
  if description['family'] == 'bert':
    description |= sentence_transformers.options(functools.partial(_read_optional, folder))
    stored = _encoder_tensors(stored, config['model_type'])
  if description['family'] == 't5' and not description['logits_via_embedding']:
    stored = _with_readout(stored)
  tensors = PretrainedTensors(families.table(description), stored)
  return PretrainedWeights(description, tensors)


def read_config(folder: epath.Path) -> dict[str, Any]:
  """Reads config.json. Raises CheckpointError if there is none."""
  file = folder / CONFIG
  if not file.exists():
    raise CheckpointError(
      f'{folder} has no {CONFIG}; give the folder of a Hugging Face model, as '
      '`hf download` or `save_pretrained` writes it.'
    )
  return json_files.read_object(file)


def write_folder(
  folder: epath.PathLike,
  config: Mapping[str, Any],
  tensors: Mapping[str, TensorToWrite],
  companions: Mapping[str, bytes],
  *,
  shard_bytes: int = SHARD_BYTES,
  overwrite: bool = False,
  primary: bool = True,
) -> None:
  """Writes a model: to a folder inside, moved when complete, with config.json last.

  Args:
    folder: the folder, created if it does not exist.
    config: the content of config.json.
    tensors: the weights by name; computed by all processes, a file at a time.
    companions: other files by name, such as the tokenizer's.
    shard_bytes: the size of a file of weights, which is held in memory when it is written.
    overwrite: replaces the model in the folder; files that belong to no model stay.
    primary: whether this process writes the files.

  Raises:
    CheckpointError: the folder is not empty, and `overwrite` is False.
  """
  folder = files.absolute(folder)
  check_output(folder, overwrite=overwrite)
  remote = '://' in os.fspath(folder)  # where files are not moved
  unfinished = folder if remote else folder / _UNFINISHED
  shards = list(_sharded(tensors, shard_bytes))
  index: dict[str, str] = {}
  if primary:
    _remove_model(folder) if remote else _remove(unfinished)

  def write(name: str, content: bytes | str) -> None:
    if primary:
      files.write(unfinished / name, content)

  for number, names in enumerate(shards, 1):
    name = f'model-{number:05}-of-{len(shards):05}.safetensors' if len(shards) > 1 else WEIGHTS
    index |= dict.fromkeys(names, name)
    arrays = {tensor: tensors[tensor].compute() for tensor in names}
    if primary:  # transformers requires the metadata
      files.write(unfinished / name, safetensors.save(arrays, {'format': 'pt'}))
  total = sum(map(_size, tensors.values()))
  if len(shards) > 1:
    write(INDEX, _text({'metadata': {'total_size': total}, 'weight_map': index}))
  for file, content in companions.items():
    write(file, content)
  write(CONFIG, _text(config))
  if primary and not remote:
    _remove_model(folder)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == CONFIG):
      path.replace(folder / path.name)
    unfinished.rmdir()


def check_output(folder: epath.Path, *, overwrite: bool = False) -> None:
  """Raises CheckpointError if a model cannot be written to a folder: it holds other things."""
  if folder.exists() and not folder.is_dir():
    raise CheckpointError(f'{folder} is a file: choose another OUTPUT_DIR.')
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  names = sorted({*names} - {_UNFINISHED, locking.LOCK})
  if store.DESCRIPTION in names:
    raise CheckpointError(f'{folder} is a run directory: choose another OUTPUT_DIR.')
  if names and not overwrite:
    listed = f'{", ".join(map(repr, names[:5]))}{" ..." if len(names) > 5 else ""}'
    model = 'a model already' if CONFIG in names else 'files already, but no complete model'
    raise CheckpointError(
      f'{folder} holds {model} ({listed}): choose another OUTPUT_DIR, or set OVERWRITE=True to '
      'replace the files of a model in it.'
    )


def _remove_model(folder: epath.Path) -> None:
  """Removes the model in a folder, config.json first: without it no program reads the rest."""
  patterns = (CONFIG, *COMPANIONS, '*.safetensors', '*.safetensors.index.json', *PICKLES)
  for path in (path for pattern in patterns for path in folder.glob(pattern)):
    path.unlink(missing_ok=True)


def _remove(folder: epath.Path) -> None:
  """Removes what an interrupted export left; never what a link points to."""
  if os.path.islink(folder):
    folder.unlink()
  elif folder.exists():
    folder.rmtree()


def _sharded(tensors: Mapping[str, TensorToWrite], limit: int) -> Iterator[list[str]]:
  """Splits the names, in order, into files of at most `limit` bytes or one tensor."""
  ends = itertools.accumulate(map(_size, tensors.values()))
  starts, shard, begin = [0, *ends], list[str](), 0
  for name, start, end in zip(tensors, starts, starts[1:], strict=False):
    if shard and end - begin > limit:
      yield shard
      shard, begin = [], start
    shard.append(name)
  yield shard


def _size(tensor: TensorToWrite) -> int:
  return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _stored_tensors(folder: epath.Path, config: Mapping[str, Any]) -> StoredTensors:
  shapes: dict[str, jax.ShapeDtypeStruct] = {}
  file_of: dict[str, epath.Path] = {}
  for file in _files(folder, config):
    with file.open('rb') as content:
      if content.read(len(_GIT_LFS_POINTER)) == _GIT_LFS_POINTER:
        raise CheckpointError(
          f'{file} is a Git LFS pointer to the weights, not the weights: run `git lfs pull` in its '
          'folder.'
        )
    tensors = read_shapes(file)
    if repeated := shapes.keys() & tensors.keys():
      raise CheckpointError(
        f'{file} repeats tensors of other files: {", ".join(sorted(repeated))}. Remove the files '
        'that do not belong to the model.'
      )
    shapes |= tensors
    file_of |= dict.fromkeys(tensors, file)

  def read(specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    arrays: dict[str, jax.Array] = {}
    for file in {file_of[name]: None for name in specs}:
      arrays |= read_tensors(file, {name: x for name, x in specs.items() if file_of[name] == file})
    return arrays

  return StoredTensors(str(folder), shapes, read)


def _files(folder: epath.Path, config: Mapping[str, Any]) -> Sequence[epath.Path]:
  """The files of the weights; the folder may have safetensors of other models too."""
  if (folder / INDEX).exists():
    names = _indexed_files(folder)
    if (folder / WEIGHTS).exists() and names != [WEIGHTS]:
      raise CheckpointError(
        f'{folder} holds {WEIGHTS} and {INDEX} of other files: remove those that do not belong to '
        'the model.'
      )
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
      raise CheckpointError(
        f'{folder} is incomplete: {INDEX} lists {", ".join(missing)}, which are missing. Copy or '
        'download them again.'
      )
    return [folder / name for name in names]
  if (folder / WEIGHTS).exists():
    return [folder / WEIGHTS]
  pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
  if pickles:
    raise CheckpointError(_pickle_message(folder, pickles, config))
  hints = ''.join(f' Did you mean {file.name}?' for file in folder.glob('*.gguf'))
  raise CheckpointError(f'{folder} has neither {WEIGHTS} nor {INDEX}: there are no weights.{hints}')


def _indexed_files(folder: epath.Path) -> list[str]:
  """Names of the files that the index lists, all of them in its folder."""
  index = json_files.read_object(folder / INDEX).get('weight_map')
  names = index.values() if isinstance(index, dict) else ()
  outside = lambda name: not isinstance(name, str) or name != epath.Path(name).name
  if not names or any(map(outside, names)):
    raise CheckpointError(
      f'{folder / INDEX} is damaged: its weight_map must give the name of a file beside it for '
      'every tensor.'
    )
  return sorted(set(names))


def _pickle_message(folder: epath.Path, pickles: Sequence[str], config: Mapping[str, Any]) -> str:
  classes = dict.fromkeys(('t5', 'mt5'), 'AutoModelForSeq2SeqLM')
  classes |= dict.fromkeys((family.model_type for family in families.ENCODERS), 'AutoModel')
  name = classes.get(config.get('model_type', ''), 'AutoModelForCausalLM')
  return (
    f'{folder} holds its weights as {", ".join(pickles)}. These are pickles, which run code when '
    'they are opened, and are not read here. If you trust them, and have torch and transformers, '
    'this command writes safetensors beside them:\n'
    f'  python -c "from transformers import {name} as M; '
    f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
  )


def _language_model_tensors(stored: StoredTensors) -> StoredTensors:
  """The tensors of an image-text model's language model, named as if it were alone."""

  def rename(name: str) -> str:
    prefix = next((p for p in _TEXT_PREFIXES if name.startswith(p)), '')
    suffix = name.removeprefix(prefix).removeprefix('model.')
    return suffix if suffix.startswith('lm_head.') else f'model.{suffix}'

  return _renamed(
    stored,
    {
      rename(name): name
      for name in stored.shapes
      if name.removeprefix('model.').partition('.')[0] not in _IMAGE_MODULES
    },
  )


def _with_readout(stored: StoredTensors) -> StoredTensors:
  """Reads out with the embedding table if there is no other.

  transformers 5 ties the two tables of every T5, also of those without the scaling that tied
  models had before, and then writes them once.
  """
  table = next((name for name in _T5_TABLES if name in stored.shapes), None)
  if 'lm_head.weight' in stored.shapes or table is None:
    return stored
  log.warning(
    '%s has no lm_head.weight: %s is read in its place, as in transformers 5. In training the two '
    'are separate.',
    stored.origin,
    table,
  )
  return _renamed(stored, {**{name: name for name in stored.shapes}, 'lm_head.weight': table})


def _encoder_tensors(stored: StoredTensors, prefix: str) -> StoredTensors:
  """The tensors of an encoder, named as in recent versions and without the prefix of a head."""
  new = lambda name: name.replace('Norm.gamma', 'Norm.weight').replace('Norm.beta', 'Norm.bias')
  return _renamed(stored, {new(name.removeprefix(f'{prefix}.')): name for name in stored.shapes})


def _renamed(stored: StoredTensors, names: Mapping[str, str]) -> StoredTensors:
  """The tensors that are the values of `names`, under the keys."""

  def read(specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    arrays = stored.read({names[name]: like for name, like in specs.items()})
    return {name: arrays[names[name]] for name in specs}

  shapes = {name: stored.shapes[original] for name, original in names.items()}
  return StoredTensors(stored.origin, shapes, read)


def _read_optional(folder: epath.Path, name: str) -> Any:
  file = folder / name
  return json_files.read(file) if file.exists() else {}


def _text(content: Mapping[str, Any]) -> str:
  return json.dumps(content, indent=2) + '\n'
