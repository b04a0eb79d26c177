"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from cascades.models import decoder
from tests.golden import hf_weights

NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'pre_feedforward_layernorm': 'ffn_norm',
  'post_feedforward_layernorm': 'post_ffw_norm',
}


def interleave(weights: np.ndarray, heads: int) -> np.ndarray:
  """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, to the letter."""
  return (
    weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    .swapaxes(1, 2)
    .reshape(weights.shape)
  )


def tensors(architecture: str, config: decoder.DecoderConfig) -> dict[str, np.ndarray]:
  """The twin's weights under llama.cpp's names."""
  heads = {'attn_q': config.num_heads, 'attn_k': config.num_kv_heads}
  after = 'post_attention_norm' if config.post_norms else 'ffn_norm'
  gguf_tensors = {}
  for name, value in hf_weights.weights(config).items():
    stem, suffix = name.rsplit('.', 1)
    layer = ''
    if stem.startswith('model.layers.'):
      _, _, number, stem = stem.split('.', 3)
      layer = f'blk.{number}.'
    tensor_name = {**NAMES, 'post_attention_layernorm': after}[stem]
    if architecture == 'llama' and tensor_name in heads:
      value = interleave(value, heads[tensor_name])
    if architecture == 'gemma3' and tensor_name.endswith('norm'):
      value = value + np.float32(1)
    gguf_tensors[f'{layer}{tensor_name}.{suffix}'] = value
  return gguf_tensors


def fields(architecture: str, config: decoder.DecoderConfig) -> dict[str, Any]:
  """Fields that the converter writes."""
  options: dict[str, Any] = {
    'block_count': config.num_layers,
    'embedding_length': config.emb_dim,
    'feed_forward_length': config.mlp_dim,
    'attention.head_count': config.num_heads,
    'attention.head_count_kv': config.num_kv_heads,
    'attention.key_length': config.head_dim,
    'attention.value_length': config.head_dim,
    'attention.layer_norm_rms_epsilon': config.norm_eps,
    'rope.freq_base': config.rope_theta_pattern[-1],
  }
  if architecture == 'gemma3':
    options |= {
      'attention.sliding_window': config.window_pattern[0],
      'attention.sliding_window_pattern': len(config.window_pattern),
      'rope.freq_base_swa': config.rope_theta_pattern[0],
      'rope.scaling.type': 'linear',
      'rope.scaling.factor': config.rope_factor_pattern[-1],
    }
  return {f'{architecture}.{name}': value for name, value in options.items()}


def write(
  path: pathlib.Path,
  architecture: str,
  options: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray] | None = None,
  *,
  stored_as: Mapping[str, str] | None = None,
) -> pathlib.Path:
  """A file with these fields and tensors; `stored_as` names types other than float32."""
  writer = gguf.GGUFWriter(path, architecture)
  for name, value in options.items():
    if isinstance(value, bool):
      writer.add_bool(name, value)
    elif isinstance(value, int):
      writer.add_uint32(name, value)
    elif isinstance(value, float):
      writer.add_float32(name, value)
    elif isinstance(value, str):
      writer.add_string(name, value)
    else:
      writer.add_array(name, list(value))
  for name, value in (tensors or {}).items():
    quantization = gguf.GGMLQuantizationType[(stored_as or {}).get(name, 'F32')]
    writer.add_tensor(name, gguf.quants.quantize(value, quantization), raw_dtype=quantization)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
