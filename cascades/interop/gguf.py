"""GGUF files of llama.cpp: the Llama, Qwen 2, Qwen 3 and Gemma 3 architectures, dequantized.

Tensors are renamed to those of Hugging Face, whose tables then say which parameters they are, and
the changes that llama.cpp's converter made to them are undone. Read with the package `gguf`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import einops
import numpy as np
from etils import epath
from jaxtyping import Float

from cascades.checkpoints.store import CheckpointError
from cascades.interop import families, gguf_options, hf_config, sizes, tensor_tables
from cascades.interop.tensor_tables import PretrainedTensors, PretrainedWeights
from cascades.runtime import files
from cascades.tokenizers import gguf_files

if TYPE_CHECKING:
  import gguf

Transform: TypeAlias = Callable[[np.ndarray], np.ndarray]

# llama.cpp's names of a layer's tensors, and Hugging Face's.
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
_OUTSIDE_LAYERS = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
}
_ROPE_FACTORS = 'rope_freqs.weight'  # of Llama 3.1 and later
# (factor, low_freq_factor, high_freq_factor, original length); files store the resulting factors.
_LLAMA3_ROPES = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))
_GEMMA3_27B_LAYERS = 62


class GGUFArchitecture(NamedTuple):
  """A `general.architecture`: its equivalent in Hugging Face, and constants of llama.cpp's code."""

  model_type: str
  norms: Mapping[str, str]
  interleaved: bool = False  # rotary pairs are adjacent rows, not halves of a head
  norm_offset: float = 0.0  # added by the converter to the scales of all norms


ARCHITECTURES = {
  'llama': GGUFArchitecture('llama', _PRE_NORM, interleaved=True),
  'qwen2': GGUFArchitecture('qwen2', _PRE_NORM),
  'qwen3': GGUFArchitecture('qwen3', _PRE_NORM),
  'gemma3': GGUFArchitecture('gemma3_text', _POST_NORMS, norm_offset=1.0),
}


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
  """A tensor under Hugging Face's name, dequantized to float32 by `np.asarray`."""

  stored: gguf.ReaderTensor
  transform: Transform

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
    array = self.transform(values.astype(np.float32, copy=False).reshape(self.shape))
    return array if dtype is None else array.astype(dtype)


def open_file(path: epath.PathLike) -> PretrainedWeights:
  """Opens the model in a GGUF file; a tensor is dequantized when it is read.

  Raises:
    CheckpointError: the file is damaged, or of a model that the models here do not compute.
  """
  file = files.absolute(path)
  try:
    reader = gguf_files.read(file)
    config = read_config(reader)
  except ValueError as error:
    raise CheckpointError(str(error)) from error
  description = hf_config.describe(config)
  stored = tensor_tables.from_arrays(os.fspath(file), _tensors(reader, config))
  sizes.check(stored.origin, description, stored.shapes)
  return PretrainedWeights(description, PretrainedTensors(families.table(description), stored))


def read_config(reader: gguf.GGUFReader) -> dict[str, Any]:
  """The config.json that Hugging Face would have for the model."""
  name = gguf_files.required(reader, 'general.architecture')
  if name not in ARCHITECTURES:
    raise CheckpointError(
      f'general.architecture={name!r} of the GGUF file is not supported; these are: '
      f'{", ".join(ARCHITECTURES)}. Use the safetensors of the original model.'
    )
  gguf_options.check(reader, name)
  option = functools.partial(_option, reader, name)
  size_of = functools.partial(gguf_options.layer_size, option, name)
  shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
  if len(shapes.get('token_embd.weight', ())) != 2:
    raise CheckpointError('The GGUF file lacks the matrix token_embd.weight: it is no whole model.')
  heads, width = size_of('attention.head_count'), size_of('embedding_length')
  head_dim = size_of('attention.key_length', width // heads)
  for length in ('attention.value_length', 'rope.dimension_count'):
    if option(length, None) not in (None, head_dim):
      raise gguf_options.unsupported(f'{name}.{length}', option(length), (None, head_dim))
  config = {
    'model_type': ARCHITECTURES[name].model_type,
    'vocab_size': shapes['token_embd.weight'][1],
    'hidden_size': width,
    'intermediate_size': size_of('feed_forward_length'),
    'num_hidden_layers': size_of('block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': size_of('attention.head_count_kv', heads),
    'head_dim': head_dim,
    'rms_norm_eps': _decimal(option('attention.layer_norm_rms_epsilon')),
    'rope_theta': _decimal(option('rope.freq_base', 10_000.0)),
    'tie_word_embeddings': 'output.weight' not in shapes,
  }
  factor = gguf_options.linear_factor(option, name)
  if factor != 1.0:
    config['rope_scaling'] = {'rope_type': 'linear', 'factor': factor}
  if name == 'gemma3':
    config |= _gemma3_options(config, option)
  scaling = _llama3_scaling(reader, config) if _ROPE_FACTORS in shapes else None
  if scaling and (factor != 1.0 or name != 'llama'):
    raise CheckpointError(
      f'{_ROPE_FACTORS} of the GGUF file scales the rotary frequencies of a {name} model, '
      f'{name}.rope.scaling.factor={factor:g} too: this is not supported. Use the safetensors of '
      'the original model.'
    )
  return config | ({'rope_scaling': scaling} if scaling else {})


def _option(reader: gguf.GGUFReader, architecture: str, name: str, *default: Any) -> Any:
  key = f'{architecture}.{name}'
  return gguf_files.field(reader, key, *default) if default else gguf_files.required(reader, key)


def _decimal(value: object) -> float | object:
  """The shortest number that is `value` in float32: 1e-5, not 9.999999747378752e-06."""
  return float(str(np.float32(value))) if isinstance(value, float) else value


def _gemma3_options(config: Mapping[str, Any], option: Callable[..., Any]) -> dict[str, Any]:
  """Options of Gemma 3 that are constants in llama.cpp."""
  largest = config['num_hidden_layers'] == _GEMMA3_27B_LAYERS
  width_per_head = config['hidden_size'] // config['num_attention_heads']
  pattern = option('attention.sliding_window_pattern', 6)
  if isinstance(pattern, list):  # for each layer, whether it has a window
    names = (hf_config.FULL, hf_config.SLIDING)
    windows = {'layer_types': [names[bool(windowed)] for windowed in pattern]}
  else:
    windows = {'sliding_window_pattern': pattern}
  return {
    'hidden_activation': 'gelu_pytorch_tanh',
    'query_pre_attn_scalar': width_per_head if largest else config['head_dim'],
    'sliding_window': option('attention.sliding_window'),
    **windows,
    'rope_local_base_freq': _decimal(option('rope.freq_base_swa', 10_000.0)),
  }


def _llama3_scaling(reader: gguf.GGUFReader, config: Mapping[str, Any]) -> dict[str, Any] | None:
  """The published scaling that gives the factors in the file; None if they are all 1."""
  stored = next(tensor for tensor in reader.tensors if tensor.name == _ROPE_FACTORS)
  factors = np.asarray(GGUFTensor(stored, lambda x: x))
  if factors.shape == (config['head_dim'] // 2,):
    if (factors == 1).all():
      return None
    for rope in _LLAMA3_ROPES:
      if np.allclose(_llama3_factors(config, *rope), factors, rtol=1e-4):
        names = (
          'factor',
          'low_freq_factor',
          'high_freq_factor',
          'original_max_position_embeddings',
        )
        return {'rope_type': 'llama3', **dict(zip(names, rope, strict=True))}
  raise CheckpointError(
    f'{_ROPE_FACTORS} of the GGUF file scales rotary frequencies in a way that is not supported; '
    'those of Llama 3.1 and 3.2 are. Use the safetensors of the original model.'
  )


def _llama3_factors(
  config: Mapping[str, Any], factor: float, low: float, high: float, length: int
) -> Float[np.ndarray, 'H/2']:
  """Divisors of the frequencies of the rotary pairs.

  1 for pairs with more than `high` periods in `length`, `factor` for those with less than `low`,
  interpolated in between (llama.cpp, convert_hf_to_gguf.py).
  """
  size = config['head_dim']
  frequencies = config['rope_theta'] ** (-np.arange(0, size, 2) / size)
  keep = np.clip((length * frequencies / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
  return 1 / (keep + (1 - keep) / factor)


def _tensors(reader: gguf.GGUFReader, config: Mapping[str, Any]) -> dict[str, GGUFTensor]:
  """Tensors by Hugging Face's names; unknown ones keep their own, and the table refuses them."""
  architecture = ARCHITECTURES[gguf_files.required(reader, 'general.architecture')]
  heads = {'attn_q': config['num_attention_heads'], 'attn_k': config['num_key_value_heads']}
  tensors = {}
  for tensor in reader.tensors:
    if tensor.name == _ROPE_FACTORS:
      continue
    match = re.fullmatch(r'(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)', tensor.name)
    layer, name, suffix = match.groups() if match else (None, '', '')
    names = _OUTSIDE_LAYERS if layer is None else {**_LAYER, **architecture.norms}
    prefix = '' if layer is None else f'model.layers.{layer}.'
    transform: Transform = lambda x: x
    if name.endswith('norm') and architecture.norm_offset:
      transform = lambda x: x - np.float32(architecture.norm_offset)
    elif name in heads and architecture.interleaved:
      transform = functools.partial(_deinterleave, heads=heads[name])
    key = f'{prefix}{names[name]}.{suffix}' if name in names else tensor.name
    tensors[key] = GGUFTensor(tensor, transform)
  return tensors


def _deinterleave(x: np.ndarray, *, heads: int) -> np.ndarray:
  """Moves the rows of rotary pairs, adjacent in llama.cpp, to the two halves of their head."""
  return einops.rearrange(x, '(n h pair) ... -> (n pair h) ...', n=heads, pair=2)
