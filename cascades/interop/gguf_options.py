"""Metadata of GGUF files: which keys a model is described by, which may be ignored, which not.

Keys are given without the architecture before them: `rope.scaling.factor`, not
`llama.rope.scaling.factor`. https://github.com/ggml-org/llama.cpp/blob/master/src/llama-arch.cpp
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cascades.checkpoints.store import CheckpointError
from cascades.interop.option_values import shortened
from cascades.tokenizers import gguf_files

if TYPE_CHECKING:
  import gguf

log = logging.getLogger(__name__)

READ = {
  *('block_count', 'embedding_length', 'feed_forward_length', 'attention.head_count'),
  *('attention.head_count_kv', 'attention.key_length', 'attention.value_length'),
  *('attention.layer_norm_rms_epsilon', 'rope.freq_base', 'rope.dimension_count'),
  *('rope.scaling.type', 'rope.scaling.factor', 'rope.scale_linear'),
}
GEMMA3_READ = {
  *('attention.sliding_window', 'attention.sliding_window_pattern', 'rope.freq_base_swa'),
}
_OFF = (None, 0, False)
_UNIT = (None, 0, 1)
# Keys that change what some model of llama.cpp computes, and the values that do not.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  **dict.fromkeys(
    (
      *('expert_count', 'expert_used_count', 'expert_shared_count', 'expert_group_count'),
      *('expert_group_used_count', 'expert_feed_forward_length', 'expert_gating_func'),
      *('expert_shared_feed_forward_length', 'expert_chunk_feed_forward_length'),
      *('expert_weights_scale', 'expert_weights_norm', 'expert_group_scale', 'experts_per_group'),
      *('moe_every_n_layers', 'interleave_moe_layer_step', 'moe_latent_size'),
      *('leading_dense_block_count', 'nextn_predict_layers', 'n_deepstack_layers'),
      *('use_parallel_residual', 'attn_logit_softcapping', 'router_logit_softcapping'),
      *('final_logit_softcapping', 'swin_norm', 'rescale_every_n_layers', 'token_shift_count'),
      *('full_attention_interval', 'activation_sparsity_scale', 'altup.active_idx'),
      *('altup.num_inputs', 'embedding_length_per_layer_input', 'embedding_length_out'),
      *('swiglu_clamp_exp', 'swiglu_clamp_shexp', 'decoder_block_count', 'hidden_activation'),
      *('attention.max_alibi_bias', 'attention.clamp_kqv', 'attention.q_lora_rank'),
      *('attention.kv_lora_rank', 'attention.relative_buckets_count', 'attention.scale'),
      *('attention.group_norm_epsilon', 'attention.group_norm_groups', 'attention.key_length_mla'),
      *('attention.value_length_mla', 'attention.key_length_swa', 'attention.value_length_swa'),
      *('attention.shared_kv_layers', 'attention.temperature_length'),
      *('attention.temperature_scale', 'attention.sliding_window_pattern', 'rope.freq_base_swa'),
      *('rope.dimension_count_swa', 'rope.dimension_sections', 'rope.scaling.yarn_log_multiplier'),
    ),
    _OFF,
  ),
  **dict.fromkeys(
    (
      *('logit_scale', 'residual_scale', 'embedding_scale', 'attention.output_scale'),
      *('attention.value_scale', 'rope.scaling.alpha'),
    ),
    _UNIT,
  ),
  'attention.causal': (None, True),
  'rope.scaling.attn_factor': (None, 1),
  'rope.scaling.yarn_attn_factor': (None, 1),
  'rope.scaling.yarn_ext_factor': (None, 0, -1),
  'rope.scaling.yarn_beta_fast': (None, 0, -1, 32),
  'rope.scaling.yarn_beta_slow': (None, 0, -1, 1),
}
WITHOUT_EFFECT = frozenset(
  {
    *('vocab_size', 'context_length', 'tensor_data_layout', 'pooling_type', 'features_length'),
    *('rope.scaling.original_context_length', 'rope.scaling.finetuned'),
    *('attention.layer_norm_epsilon', 'classifier.output_labels', 'decoder_start_token_id'),
  }
)
ROPE_TYPES = ('none', 'linear')


def check(reader: gguf.GGUFReader, architecture: str) -> None:
  """Refuses keys that change the computation and are not read; warns of unknown ones.

  Raises:
    CheckpointError: the message names the key, its value and what is supported.
  """
  read = READ | (GEMMA3_READ if architecture == 'gemma3' else set())
  unknown = []
  for key in reader.fields:
    name = key.removeprefix(f'{architecture}.')
    if name == key or name in read or name in WITHOUT_EFFECT:
      continue
    value = gguf_files.field(reader, key)
    if name == 'attention.sliding_window':
      length = gguf_files.field(reader, f'{architecture}.context_length', math.inf)
      if value and not value >= length:
        raise unsupported(key, value, (None, f'{length}, the length of the context, and above'))
    elif name in NEUTRAL:
      if value not in NEUTRAL[name]:
        raise unsupported(key, value, NEUTRAL[name])
    else:
      unknown.append(key)
  if unknown:
    log.warning(
      'The GGUF file of a %s model has keys that are not known here, and are not read: %s. If one '
      'changes what the model computes, its answers are wrong.',
      architecture,
      ', '.join(map(repr, sorted(unknown))),
    )


def linear_factor(option: Callable[..., Any], architecture: str) -> float:
  """The divisor of positions, as llama.cpp reads it: scaling is linear unless a type is given.

  Raises:
    CheckpointError: another type of scaling, or a factor that is no positive number.
  """
  scaling_type = option('rope.scaling.type', 'linear')
  if scaling_type not in ROPE_TYPES:
    raise unsupported(f'{architecture}.rope.scaling.type', scaling_type, (None, *ROPE_TYPES))
  factor = option('rope.scaling.factor', None)
  factor = option('rope.scale_linear', 0.0) if factor is None else factor
  if not isinstance(factor, int | float) or not math.isfinite(factor) or factor < 0:
    raise unsupported(f'{architecture}.rope.scaling.factor', factor, ('positive numbers',))
  return float(factor) if factor and scaling_type == 'linear' else 1.0


def layer_size(option: Callable[..., Any], architecture: str, name: str, *default: Any) -> int:
  """A size, which some files list for each layer.

  Raises:
    CheckpointError: it is no positive whole number, or differs between layers.
  """
  value = option(name, *default)
  values = {*value} if isinstance(value, list) and value else {value if value != [] else None}
  size = values.pop()
  if values or not isinstance(size, int) or isinstance(size, bool) or size < 1:
    raise unsupported(f'{architecture}.{name}', value, ('one positive whole number',))
  return size


def unsupported(key: str, value: object, supported: tuple[Any, ...]) -> CheckpointError:
  """The error for a value that the models here do not compute."""
  return CheckpointError(
    f'{key}={shortened(value)} of the GGUF file is not supported; supported: '
    f'{", ".join(map(repr, supported))}.'
  )
