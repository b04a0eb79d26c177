"""GGUF files of llama.cpp: the Llama, Qwen 2, Qwen 3 and Gemma 3 architectures, dequantised.

llama.cpp's tensors become those of Hugging Face, whose tables then say which parameters they are;
what its converter did to them on the way is undone. Read with the package `gguf`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Float

from cascades.checkpoints.store import CheckpointError
from cascades.interop import families, hf_config, tensor_tables
from cascades.interop.tensor_tables import Source
from cascades.runtime import files
from cascades.tokenizers import gguf_files

if TYPE_CHECKING:
  import gguf

Undo: TypeAlias = Callable[[np.ndarray], np.ndarray]

# llama.cpp's names and Hugging Face's; {} is the layer.
_LAYER = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_PRE_NORM = {'ffn_norm': 'post_attention_layernorm'}
_POST_NORMS = {
  'post_attention_norm': 'post_attention_layernorm',
  'ffn_norm': 'pre_feedforward_layernorm',
  'post_ffw_norm': 'post_feedforward_layernorm',
}
_WHOLE = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
_ROPE_FACTORS = 'rope_freqs.weight'  # of Llama 3.1 and later
# (factor, low_freq_factor, high_freq_factor, original length): the file has what follows from them.
_LLAMA3_ROPES = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))
_GEMMA3_27B_LAYERS = 62


class Architecture(NamedTuple):
  """One `general.architecture`: its Hugging Face twin, and what the file does not say."""

  model_type: str
  norms: Mapping[str, str]
  interleaved: bool = False  # rotary pairs are neighbours, not halves
  norm_offset: float = 0.0  # was added to the scales of all norms


ARCHITECTURES = {
  'llama': Architecture('llama', _PRE_NORM, interleaved=True),
  'qwen2': Architecture('qwen2', _PRE_NORM),
  'qwen3': Architecture('qwen3', _PRE_NORM),
  'gemma3': Architecture('gemma3_text', _POST_NORMS, norm_offset=1.0),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One of Hugging Face's tensors, made in float32 by `np.asarray`."""

  stored: gguf.ReaderTensor
  undo: Undo

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(np.float32)

  @property
  def shape(self) -> tuple[int, ...]:
    return tuple(reversed(self.stored.shape.tolist()))

  def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
    import gguf

    del copy
    values = gguf.quants.dequantize(self.stored.data, self.stored.tensor_type)
    made = self.undo(values.astype(np.float32, copy=False).reshape(self.shape))
    return made if dtype is None else made.astype(dtype)


def open_file(path: epath.PathLike) -> Source:
  """The model in a GGUF file; a tensor is dequantised when it is read.

  Raises CheckpointError if our models do not compute it, naming what they lack.
  """
  file = files.absolute(path)
  try:
    reader = gguf_files.read(file)
    config = read_config(reader)
  except ValueError as error:
    raise CheckpointError(str(error)) from error
  model = hf_config.describe(config)
  weights = tensor_tables.from_arrays(os.fspath(file), _tensors(reader, config))
  return Source(model, families.table(model), weights)


def read_config(reader: gguf.GGUFReader) -> dict[str, Any]:
  """The config.json that Hugging Face would have for the model."""
  name = gguf_files.required(reader, 'general.architecture')
  if name not in ARCHITECTURES:
    raise CheckpointError(
      f'general.architecture={name!r} of the GGUF file is not supported; these are: '
      f'{", ".join(ARCHITECTURES)}. Use the safetensors of the original model.'
    )
  said = functools.partial(_said, reader, name)
  _refuse(reader, name)
  shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
  heads, width = said('attention.head_count'), said('embedding_length')
  config = {
    'model_type': ARCHITECTURES[name].model_type,
    'vocab_size': shapes['token_embd.weight'][1],
    'hidden_size': width,
    'intermediate_size': said('feed_forward_length'),
    'num_hidden_layers': said('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': said('attention.head_count_kv', heads),
    'head_dim': said('attention.key_length', width // heads),
    'rms_norm_eps': _decimal(said('attention.layer_norm_rms_epsilon')),
    'rope_theta': _decimal(said('rope.freq_base', 10_000.0)),
    'rope_scaling': _linear(said),
    'tie_word_embeddings': 'output.weight' not in shapes,
  }
  if name == 'gemma3':
    config |= _gemma3(config, said)
  if _ROPE_FACTORS in shapes:
    config['rope_scaling'] = _llama3(reader, config)
  return config


def _said(reader: gguf.GGUFReader, architecture: str, name: str, *default: Any) -> Any:
  key = f'{architecture}.{name}'
  return gguf_files.field(reader, key, *default) if default else gguf_files.required(reader, key)


def _refuse(reader: gguf.GGUFReader, architecture: str) -> None:
  """Options that change what is computed, and that our models do not have."""
  head = _said(reader, architecture, 'attention.key_length', None)
  wanted = {
    'expert_count': (None, 0),
    'attention.value_length': (None, head),
    'rope.dimension_count': (None, head or _head_dim(reader, architecture)),
    'rope.scaling.type': (None, 'none', 'linear'),
    'attention.causal': (None, True),
    'final_logit_softcapping': (None,),
  }
  for name, known in wanted.items():
    value = _said(reader, architecture, name, None)
    if value not in known:
      raise CheckpointError(
        f'{architecture}.{name}={value!r} of the GGUF file is not supported; our models compute '
        f'{", ".join(map(repr, known))}.'
      )


def _head_dim(reader: gguf.GGUFReader, architecture: str) -> int:
  said = functools.partial(_said, reader, architecture)
  return said('embedding_length') // said('attention.head_count')


def _decimal(value: float) -> float:
  """The shortest number that is `value` in float32: 1e-5, not 9.999999747378752e-06."""
  return float(str(np.float32(value)))


def _linear(said: Callable[..., Any]) -> dict[str, Any] | None:
  if said('rope.scaling.type', None) != 'linear':
    return None
  return {'rope_type': 'linear', 'factor': said('rope.scaling.factor')}


def _gemma3(config: Mapping[str, Any], said: Callable[..., Any]) -> dict[str, Any]:
  """What llama.cpp knows of Gemma 3 without being told."""
  largest = config['num_hidden_layers'] == _GEMMA3_27B_LAYERS
  width_per_head = config['hidden_size'] // config['num_attention_heads']
  return {
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': width_per_head if largest else config['head_dim'],
    'sliding_window': said('attention.sliding_window'),
    'sliding_window_pattern': said('attention.sliding_window_pattern', 6),
    'rope_local_base_freq': _decimal(said('rope.freq_base_swa', 10_000.0)),
  }


def _llama3(reader: gguf.GGUFReader, config: Mapping[str, Any]) -> dict[str, Any]:
  """The published scaling whose factors are those of the file."""
  stored = next(tensor for tensor in reader.tensors if tensor.name == _ROPE_FACTORS).data
  for rope in _LLAMA3_ROPES:
    if np.allclose(_llama3_factors(config, *rope), stored, rtol=1e-4):
      names = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
      return {'rope_type': 'llama3', **dict(zip(names, rope, strict=True))}
  raise CheckpointError(
    f'{_ROPE_FACTORS} of the GGUF file scales rotary frequencies in a way that is not supported; '
    'those of Llama 3.1 and 3.2 are. Use the safetensors of the original model.'
  )


def _llama3_factors(
  config: Mapping[str, Any], factor: float, low: float, high: float, length: int
) -> Float[np.ndarray, 'H/2']:
  """What divides the frequency of each rotary pair.

  1 for those that turn more than `high` times in `length`, `factor` for those that turn less than
  `low` times, and between in between (llama.cpp, convert_hf_to_gguf.py).
  """
  size = config['head_dim']
  frequencies = config['rope_theta'] ** (-np.arange(0, size, 2) / size)
  keep = np.clip((length * frequencies / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
  return 1 / (keep + (1 - keep) / factor)


def _tensors(reader: gguf.GGUFReader, config: Mapping[str, Any]) -> dict[str, Tensor]:
  """By Hugging Face's names; what has no such name keeps its own, for the table to refuse."""
  architecture = ARCHITECTURES[gguf_files.required(reader, 'general.architecture')]
  heads = {'attn_q': config['num_attention_heads'], 'attn_k': config['num_key_value_heads']}
  found = {}
  for tensor in reader.tensors:
    if tensor.name == _ROPE_FACTORS:
      continue
    parts = re.fullmatch(r'(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)', tensor.name)
    layer, name, kind = parts.groups() if parts else (None, '', '')
    theirs = _WHOLE.get(name) if layer is None else {**_LAYER, **architecture.norms}.get(name)
    prefix = '' if layer is None else f'model.layers.{layer}.'
    undo: Undo = lambda x: x
    if name.endswith('norm') and architecture.norm_offset:
      undo = functools.partial(_less, offset=architecture.norm_offset)
    elif name in heads and architecture.interleaved:
      undo = functools.partial(_halves, heads=heads[name])
    found[f'{prefix}{theirs}.{kind}' if theirs else tensor.name] = Tensor(tensor, undo)
  return found


def _less(x: np.ndarray, *, offset: float) -> np.ndarray:
  return x - np.float32(offset)


def _halves(x: np.ndarray, *, heads: int) -> np.ndarray:
  """Rows of rotary pairs, as two halves per head.

  llama.cpp turns neighbours: its row 2i of a head is row i here, 2i + 1 is i + head_dim / 2.
  """
  size = x.shape[0] // heads
  return x.reshape(heads, size // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
