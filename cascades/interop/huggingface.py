"""Folders as Hugging Face's `save_pretrained` leaves them: safetensors beside a config.json.

Reading goes through Orbax, which brings every device the bytes that it holds. Nothing here
unpickles.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import numpy as safetensors

from cascades.checkpoints import safetensors_files, store
from cascades.checkpoints.store import CheckpointError
from cascades.interop import families, hf_config, sentence_transformers
from cascades.interop.tensor_tables import Source, Tensor, Weights
from cascades.runtime import files

CONFIG = 'config.json'
GENERATION = 'generation_config.json'
INDEX = 'model.safetensors.index.json'
WEIGHTS = 'model.safetensors'
SHARD_BYTES = 1 << 30
COMPANIONS = 'huggingface'  # where a run directory keeps what was beside the weights
_POINTER = b'version https://git-lfs'
TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'decoder_start_token_id')
PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.pkl')
# What servers want beside the weights, and no fine-tuning changes.
COMPANION_FILES = (
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
# Gemma 3 with eyes keeps its language model under either prefix; the rest is for images.
_TEXT_PREFIXES = ('language_model.', 'model.language_model.')
_OTHER_PARTS = ('vision_tower', 'multi_modal_projector')


def open_folder(folder: epath.PathLike) -> Source:
  """The model in a folder.

  Raises CheckpointError if there is none, if it is stored as pickles, or if our models do not
  compute it.
  """
  folder = files.absolute(folder)
  config = read_config(folder)
  model = hf_config.describe(config)
  weights = _weights(folder, config)
  if hf_config.text_part(config) is not config:
    weights = _language_part(weights)
  if model['family'] == 'bert':
    model |= sentence_transformers.options(functools.partial(_beside, folder))
    weights = _encoder_part(weights, config['model_type'])
  return Source(model, families.table(model), weights)


def read_config(folder: epath.Path) -> dict[str, Any]:
  file = folder / CONFIG
  if not file.exists():
    raise CheckpointError(
      f'{folder} holds no {CONFIG}; give the folder of a Hugging Face model, as '
      '`huggingface-cli download` or `save_pretrained` leaves it.'
    )
  return store.read_json(file)


def companions(folder: epath.Path) -> dict[str, bytes]:
  """The tokenizer and what else stands beside the weights, by file name."""
  found = (folder / name for name in COMPANION_FILES)
  return {file.name: file.read_bytes() for file in found if file.exists()}


def generation(config: Mapping[str, Any]) -> bytes:
  """generation_config.json of a model that brings none: its special ids."""
  ids = {name: config[name] for name in TOKEN_IDS if config.get(name) is not None}
  return _text(ids).encode()


def pass_on(source: epath.PathLike | None, directory: epath.Path) -> None:
  """Keep in a run directory what the run that it goes on from kept, for its export."""
  if source is not None and jax.process_index() == 0:
    for file in (store.run_of(source) / COMPANIONS).glob('*'):
      files.write(directory / COMPANIONS / file.name, file.read_bytes())


def write_folder(
  folder: epath.PathLike,
  config: Mapping[str, Any],
  tensors: Mapping[str, Tensor],
  beside: Mapping[str, bytes],
  *,
  shard_bytes: int = SHARD_BYTES,
  primary: bool = True,
) -> None:
  """Write a model: the weights first, config.json last, without which the folder is none.

  All processes make the tensors, the primary one writes them. A shard is held in memory.
  """
  folder = files.absolute(folder)
  shards = list(_sharded(tensors, shard_bytes))
  index: dict[str, str] = {}

  def write(name: str, content: bytes | str) -> None:
    if primary:
      files.write(folder / name, content)

  for number, names in enumerate(shards, 1):
    name = f'model-{number:05}-of-{len(shards):05}.safetensors' if len(shards) > 1 else WEIGHTS
    index |= dict.fromkeys(names, name)
    arrays = {one: tensors[one].make() for one in names}
    if primary:  # transformers asks for the format
      files.write(folder / name, safetensors.save(arrays, {'format': 'pt'}))
  total = sum(map(_size, tensors.values()))
  if len(shards) > 1:
    write(INDEX, _text({'metadata': {'total_size': total}, 'weight_map': index}))
  for file, content in beside.items():
    write(file, content)
  write(CONFIG, _text(config))


def _sharded(tensors: Mapping[str, Tensor], limit: int) -> Iterator[list[str]]:
  """Names in order, as many as fit into `limit` bytes; at least one."""
  ends = itertools.accumulate(map(_size, tensors.values()))
  starts, shard, begin = [0, *ends], list[str](), 0
  for name, start, end in zip(tensors, starts, starts[1:], strict=False):
    if shard and end - begin > limit:
      yield shard
      shard, begin = [], start
    shard.append(name)
  yield shard


def _size(tensor: Tensor) -> int:
  return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _weights(folder: epath.Path, config: Mapping[str, Any]) -> Weights:
  stored = _files(folder, config)
  found: dict[str, jax.ShapeDtypeStruct] = {}
  where: dict[str, epath.Path] = {}
  for file in stored:
    _refuse_pointer(file)
    tensors = safetensors_files.shapes(file)
    if twice := found.keys() & tensors.keys():
      raise CheckpointError(
        f'{file} repeats tensors of other files: {", ".join(sorted(twice))}. Remove the files that '
        'are not of this model.'
      )
    found |= tensors
    where |= dict.fromkeys(tensors, file)

  def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    arrays: dict[str, jax.Array] = {}
    for file in {where[name]: None for name in wanted}:
      part = {name: like for name, like in wanted.items() if where[name] == file}
      arrays |= safetensors_files.load(file, part)
    return arrays

  return Weights(str(folder), found, read)


def _files(folder: epath.Path, config: Mapping[str, Any]) -> Sequence[epath.Path]:
  """The files that hold the weights; others of the same kind may lie beside them."""
  if (folder / INDEX).exists():
    names = sorted(set(store.read_json(folder / INDEX)['weight_map'].values()))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
      raise CheckpointError(
        f'{folder} is not whole: {INDEX} names {", ".join(missing)}, which are not there. Copy or '
        'download them again.'
      )
    return [folder / name for name in names]
  if (folder / WEIGHTS).exists():
    return [folder / WEIGHTS]
  pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
  if pickles:
    raise CheckpointError(_refusal(folder, pickles, config))
  others = ''.join(f' Is {file.name} what you mean?' for file in folder.glob('*.gguf'))
  raise CheckpointError(
    f'{folder} holds neither {WEIGHTS} nor {INDEX}: there are no weights.{others}'
  )


def _refuse_pointer(file: epath.Path) -> None:
  with file.open('rb') as content:
    if content.read(len(_POINTER)) == _POINTER:
      raise CheckpointError(
        f'{file} is a pointer of Git LFS to the weights, not the weights: run `git lfs pull` there.'
      )


def _refusal(folder: epath.Path, pickles: Sequence[str], config: Mapping[str, Any]) -> str:
  kinds = dict.fromkeys(('t5', 'mt5'), 'AutoModelForSeq2SeqLM')
  kinds |= dict.fromkeys((family.model_type for family in families.ENCODERS), 'AutoModel')
  kind = kinds.get(config.get('model_type', ''), 'AutoModelForCausalLM')
  return (
    f'{folder} holds its weights as {", ".join(pickles)}. These are pickles, which run code when '
    'they are opened, and are not read here. Where you trust them, and have torch and '
    'transformers, this writes safetensors beside them:\n'
    f'  python -c "from transformers import {kind} as M; '
    f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
  )


def _language_part(weights: Weights) -> Weights:
  """The tensors of the language model alone, under the names that it has when it is alone."""

  def renamed(name: str) -> str:
    prefix = next((p for p in _TEXT_PREFIXES if name.startswith(p)), '')
    bare = name.removeprefix(prefix).removeprefix('model.')
    return bare if bare.startswith('lm_head.') else f'model.{bare}'

  return _renamed(
    weights,
    {
      renamed(name): name
      for name in weights.tensors
      if name.removeprefix('model.').partition('.')[0] not in _OTHER_PARTS
    },
  )


def _encoder_part(weights: Weights, prefix: str) -> Weights:
  """The tensors of an encoder under the names that it has without a head, and has today."""
  today = lambda name: name.replace('Norm.gamma', 'Norm.weight').replace('Norm.beta', 'Norm.bias')
  names = {today(name.removeprefix(f'{prefix}.')): name for name in weights.tensors}
  return _renamed(weights, names)


def _renamed(weights: Weights, names: Mapping[str, str]) -> Weights:
  """The tensors that `names` gives, under their new names."""

  def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    arrays = weights.read({names[name]: like for name, like in wanted.items()})
    return {name: arrays[names[name]] for name in wanted}

  tensors = {name: weights.tensors[original] for name, original in names.items()}
  return Weights(weights.origin, tensors, read)


def _beside(folder: epath.Path, name: str) -> Any:
  file = folder / name
  return store.read_json(file) if file.exists() else {}


def _text(content: Mapping[str, Any]) -> str:
  return json.dumps(content, indent=2) + '\n'
