"""Options of config.json besides those that a family reads: which may be ignored, which may not.

An option that changes what some model of transformers computes is refused unless its value is
neutral. Options without effect on the logits are ignored, and unknown ones are named in a warning:
they are mostly notes of the program that wrote the file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from cascades.checkpoints.store import CheckpointError
from cascades.interop import option_values
from cascades.interop.families import DECODERS, T5S, Family, HuggingFaceConfig
from cascades.interop.option_values import unsupported

log = logging.getLogger(__name__)

DECODER_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'hidden_size',
  'num_heads': 'num_attention_heads',
  'num_layers': 'num_hidden_layers',
  'mlp_dim': 'intermediate_size',
}
T5_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'd_model',
  'num_heads': 'num_heads',
  'num_encoder_layers': 'num_layers',
  'head_dim': 'd_kv',
  'mlp_dim': 'd_ff',
}
ENCODER_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'hidden_size',
  'num_heads': 'num_attention_heads',
  'num_layers': 'num_hidden_layers',
  'mlp_dim': 'intermediate_size',
  'num_positions': 'max_position_embeddings',
}
WINDOWS = (
  *('layer_types', 'sliding_window', 'use_sliding_window', 'max_window_layers'),
  *('sliding_window_pattern', '_sliding_window_pattern'),
)
# What `hf_config` reads; the families' `supported` and `optional` come on top.
_DECODER_READ = {
  *DECODER_SIZES.values(),
  *('num_key_value_heads', 'head_dim', 'rms_norm_eps', 'tie_word_embeddings'),
  *('rope_parameters', 'rope_scaling', 'rope_theta', 'partial_rotary_factor'),
  'original_max_position_embeddings',
}
_T5_READ = {
  *T5_SIZES.values(),
  *('num_decoder_layers', 'feed_forward_proj', 'is_gated_act', 'dense_act_fn', 'dropout_rate'),
  *('relative_attention_num_buckets', 'relative_attention_max_distance'),
  *('scale_decoder_outputs', 'tie_word_embeddings'),
}
_ENCODER_READ = {*ENCODER_SIZES.values(), 'type_vocab_size', 'layer_norm_eps'}

_OFF = (None, False, 0)
_UNIT = (None, 1)
_EMPTY: tuple[Any, ...] = (None, {}, [])
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  **dict.fromkeys(
    (
      *('attention_bias', 'attention_out_bias', 'mlp_bias', 'qkv_bias', 'add_qkv_bias', 'use_bias'),
      *('bias', 'lm_head_bias', 'add_bias_linear', 'add_cross_attention', 'is_encoder_decoder'),
      *('use_qk_norm', 'qk_norm', 'qk_layernorm', 'post_norm', 'use_parallel_residual'),
      *('parallel_residual', 'parallel_attn', 'alibi', 'use_alibi', 'tie_encoder_decoder'),
      *('use_bidirectional_attention', 'attn_temperature_tuning', 'rope_interleaved'),
      *('rope_interleave', 'attn_logit_softcapping', 'final_logit_softcapping', 'logit_softcap'),
      *('attn_logit_softcap', 'num_experts', 'num_local_experts', 'n_routed_experts'),
      *('num_experts_per_tok', 'num_kv_shared_layers', 'hidden_size_per_layer_input'),
    ),
    _OFF,
  ),
  **dict.fromkeys(
    (
      *('embedding_multiplier', 'residual_multiplier', 'residual_scale', 'embedding_scale'),
      *('scale_emb', 'emb_scale', 'lm_head_multiplier', 'key_multiplier', 'mup_scale'),
      *('attention_in_multiplier', 'attention_out_multiplier', 'logits_scaling', 'logit_scale'),
      *('logits_scale', 'output_multiplier_scale', 'rotary_pct', 'rotary_percent', 'rope_pct'),
      *('rope_percent', 'rope_ratio', 'rope_factor', 'rope_scaling_factor'),
      *('partial_rotary_factor', 'rotary_scaling_factor'),
    ),
    _UNIT,
  ),
  **dict.fromkeys(
    (
      *('query_pre_attn_scalar', 'attention_multiplier', 'attention_scale', 'softmax_scale'),
      *('attn_scale', 'scale_depth', 'dim_model_base', 'clip_qkv', 'attention_chunk_size'),
      *('rotary_dim', 'rotary_emb_dim', 'rope_dim', 'no_rope_layer_interval', 'emb_size'),
      *('rope_local_base_freq', 'embedding_size', 'moe_intermediate_size', 'rope_parameters'),
      *('rope_scaling', 'mrope_section'),
    ),
    (None,),
  ),
  **dict.fromkeys(
    ('per_layer_config', 'pruned_heads', 'quantization', 'compression_config'), _EMPTY
  ),
  'is_causal': (None, True),
  'position_embedding_type': (None, 'absolute', 'rope', 'rotary'),
  'is_decoder': (None, False, True),  # whether it has a cache; T5 and encoders refuse it
}
# Other spellings of options that a family reads, which may repeat them.
_DECODER_ALIASES = {
  **dict.fromkeys(('n_layer', 'n_layers', 'num_layers'), 'num_hidden_layers'),
  **dict.fromkeys(('n_head', 'n_heads', 'num_heads'), 'num_attention_heads'),
  **dict.fromkeys(('n_kv_heads', 'num_kv_heads', 'n_head_kv'), 'num_key_value_heads'),
  **dict.fromkeys(('n_embd', 'd_model', 'dim'), 'hidden_size'),
  **dict.fromkeys(('ffn_dim', 'd_ff', 'n_inner', 'ffn_hidden_size'), 'intermediate_size'),
  **dict.fromkeys(('norm_eps', 'layer_norm_eps', 'layer_norm_epsilon'), 'rms_norm_eps'),
  **dict.fromkeys(('rotary_emb_base', 'rotary_base', 'rope_base', 'rope_freq_base'), 'rope_theta'),
  **dict.fromkeys(('hidden_activation', 'activation_function'), 'hidden_act'),
}
# transformers takes the first spelling for the second, and the last one that the file gives.
_T5_ALIASES = {
  'hidden_size': 'd_model',
  'num_attention_heads': 'num_heads',
  'num_hidden_layers': 'num_layers',
  'head_dim': 'd_kv',
  'intermediate_size': 'd_ff',
}
WITHOUT_EFFECT = frozenset(
  {
    # Notes, and settings of programs.
    *('_name_or_path', 'name_or_path', 'architectures', 'model_type', 'transformers_version'),
    *('dtype', 'torch_dtype', 'auto_map', '_commit_hash', 'is_llama_config', 'unsloth_version'),
    *('unsloth_fixed', 'transformers.js_config', 'task_specific_params', 'finetuning_task'),
    *('id2label', 'label2id', 'num_labels', 'problem_type', 'tokenizer_class', 'prefix'),
    *('attn_implementation', '_attn_implementation', '_attn_implementation_autoset'),
    *('_flash_attn_2_enabled', 'use_flash_attention_2', 'cache_implementation', 'use_cache'),
    *('gradient_checkpointing', 'torchscript', 'use_bfloat16', 'tf_legacy_loss', 'return_dict'),
    *('output_attentions', 'output_hidden_states', 'chunk_size_feed_forward', 'pretraining_tp'),
    *('return_dict_in_generate', 'output_scores', 'base_model_tp_plan', 'tie_last_hidden_states'),
    # Of training.
    *('initializer_range', 'initializer_factor', 'attention_dropout', 'hidden_dropout_prob'),
    *('attention_probs_dropout_prob', 'classifier_dropout', 'resid_pdrop', 'embd_pdrop'),
    *('attn_pdrop', 'hidden_dropout', 'dropout', 'router_aux_loss_coef'),
    # Of tokens, generation and the length of texts.
    *('bos_token_id', 'eos_token_id', 'pad_token_id', 'sep_token_id', 'decoder_start_token_id'),
    *('unk_token_id', 'cls_token_id', 'mask_token_id', 'max_position_embeddings', 'n_positions'),
    *('max_sequence_length', 'model_max_length', 'max_length', 'min_length', 'do_sample'),
    *('temperature', 'top_k', 'top_p', 'typical_p', 'num_beams', 'num_beam_groups'),
    *('early_stopping', 'repetition_penalty', 'length_penalty', 'no_repeat_ngram_size'),
    *('bad_words_ids', 'num_return_sequences', 'diversity_penalty', 'forced_bos_token_id'),
    *('forced_eos_token_id', 'remove_invalid_values', 'exponential_decay_length_penalty'),
    *('suppress_tokens', 'begin_suppress_tokens', 'encoder_no_repeat_ngram_size'),
    *('max_new_tokens', 'output_past', 'image_token_index', 'boi_token_index'),
    *('eoi_token_index', 'mm_tokens_per_image'),
    # Of models without rotary positions, and of BERT's heads, which are not read.
    'rope_theta',
    *('directionality', 'pooler_fc_size', 'pooler_num_attention_heads', 'pooler_num_fc_layers'),
    *('pooler_size_per_head', 'pooler_type', 'type_vocab_size', 'tie_word_embeddings'),
    # transformers' classes of the families without windows ignore these.
    *WINDOWS,
  }
)


def read_options(family: Family) -> frozenset[str]:
  """Options of config.json that the description of a family's model depends on."""
  read = _DECODER_READ if family in DECODERS else _T5_READ if family in T5S else _ENCODER_READ
  windows = WINDOWS if family.has_window else ()
  return frozenset({*read, *windows, *family.supported, *family.optional, *family.defaults})


def check(config: HuggingFaceConfig, family: Family) -> None:
  """Refuses options that the models here do not compute, and warns of unknown ones.

  Raises:
    CheckpointError: the message names the option, its value and what is supported.
  """
  check_unquantized(config)
  for option, values in family.supported.items():
    if option in config and config[option] not in values:
      raise unsupported(family.model_type, option, config[option], values)
  read, unknown = read_options(family), []
  aliases = _DECODER_ALIASES if family in DECODERS else _T5_ALIASES if family in T5S else {}
  for option in config.keys() - read:
    value = config[option]
    if option in NEUTRAL or option in family.unread:
      values = family.unread.get(option) or NEUTRAL[option]
      if value not in values:
        raise unsupported(family.model_type, option, value, values)
    elif option in aliases:
      _check_alias(config, family, option, aliases[option])
    elif option in ('no_rope_layers', 'use_rope'):
      if value is not None and not all(value if isinstance(value, list) else [value]):
        raise unsupported(family.model_type, option, value, (None, 'rotary positions everywhere'))
    elif option not in WITHOUT_EFFECT:
      unknown.append(option)
  if unknown:
    log.warning(
      'config.json of a %s model has options that are not known here, and are not read: %s. If one '
      'changes what the model computes, its answers are wrong.',
      family.model_type,
      ', '.join(map(repr, sorted(unknown))),
    )


def check_unquantized(config: HuggingFaceConfig) -> None:
  """Refuses weights that are stored quantized."""
  if config.get('quantization_config'):
    raise CheckpointError(
      'config.json has a quantization_config: quantized weights cannot be read; give the folder '
      'of the original weights, or a GGUF file.'
    )


def _check_alias(config: HuggingFaceConfig, family: Family, alias: str, option: str) -> None:
  """Refuses a second spelling that says something else."""
  value = config[alias]
  default = next(iter(family.supported.get(option, ())), family.defaults.get(option))
  expected = config.get(option, 10_000.0 if option == 'rope_theta' else default)
  if value is not None and value != expected:
    raise CheckpointError(
      f'{alias}={option_values.shortened(value)} and {option}='
      f'{option_values.shortened(expected)} in config.json of a {family.model_type} model '
      'contradict each other: remove the one that the model was not trained with.'
    )
