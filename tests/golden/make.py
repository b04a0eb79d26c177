"""Compute the golden logits and states: `python -m tests.golden.make`, with the extra `reference`.

Hugging Face's implementations get the weights of the twins and the same inputs in float32. Their
configurations are stored beside the logits.
"""

from __future__ import annotations

import json
import os

import numpy as np
import torch
import transformers as hf

from cascades.models import bert, decoder, t5
from tests.golden import hf_weights, twins


def reference_config(
  name: str, config: t5.T5Config | decoder.DecoderConfig | bert.BertConfig
) -> hf.PreTrainedConfig:
  if isinstance(config, bert.BertConfig):
    config_class = hf.MPNetConfig if name == 'mpnet' else hf.BertConfig
    return config_class(
      vocab_size=config.vocab_size,
      hidden_size=config.emb_dim,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      intermediate_size=config.mlp_dim,
      max_position_embeddings=config.num_positions,
      layer_norm_eps=config.norm_eps,
    )
  if isinstance(config, t5.T5Config):
    return hf.T5Config(
      vocab_size=config.vocab_size,
      d_model=config.emb_dim,
      d_kv=config.head_dim,
      d_ff=config.mlp_dim,
      num_heads=config.num_heads,
      num_layers=config.num_encoder_layers,
      num_decoder_layers=config.num_decoder_layers,
      relative_attention_num_buckets=config.relative_attention_num_buckets,
      relative_attention_max_distance=config.relative_attention_max_distance,
      feed_forward_proj='gated-gelu' if len(config.mlp_activations) == 2 else 'relu',
      tie_word_embeddings=config.logits_via_embedding,
    )
  shared = {
    'vocab_size': config.vocab_size,
    'hidden_size': config.emb_dim,
    'intermediate_size': config.mlp_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.logits_via_embedding,
    'attn_implementation': 'eager',
  }
  theta = config.rope_theta_pattern[0]
  rope = lambda theta: {'rope_theta': theta, 'rope_type': 'default'}
  if name == 'llama':
    factor, low, high, length = config.rope_llama3
    llama3 = {
      'rope_type': 'llama3',
      'rope_theta': theta,
      'factor': factor,
      'low_freq_factor': low,
      'high_freq_factor': high,
      'original_max_position_embeddings': length,
    }
    return hf.LlamaConfig(**shared, rope_parameters=llama3, max_position_embeddings=128)
  if name == 'qwen2':
    return hf.Qwen2Config(**shared, rope_parameters=rope(theta))
  if name == 'qwen3':
    return hf.Qwen3Config(**shared, rope_parameters=rope(theta))
  if name == 'gemma':
    return hf.GemmaConfig(**shared, rope_parameters=rope(theta))
  layer_types = [
    'sliding_attention' if w else 'full_attention'
    for w in (config.window_pattern * config.num_layers)[: config.num_layers]
  ]
  gemma = {
    'layer_types': layer_types,
    'sliding_window': config.window_pattern[0],
    'query_pre_attn_scalar': round(config.query_scale**-2),
    'attn_logit_softcapping': config.attention_softcap,
    'final_logit_softcapping': config.logit_softcap,
  }
  if name == 'gemma2':
    return hf.Gemma2Config(**shared, **gemma, rope_parameters=rope(theta))
  full = rope(config.rope_theta_pattern[2])
  full |= {'rope_type': 'linear', 'factor': config.rope_factor_pattern[2]}
  ropes = {'sliding_attention': rope(theta), 'full_attention': full}
  return hf.Gemma3TextConfig(**shared, **gemma, rope_parameters=ropes)


def reference_logits(name: str) -> Array:
  """Logits of Hugging Face's implementation."""
  config = twins.CONFIGS[name]
  model_class = (
    hf.AutoModelForSeq2SeqLM if isinstance(config, t5.T5Config) else hf.AutoModelForCausalLM
  )
  model = model_class.from_config(reference_config(name, config)).eval()
  if not config.logits_via_embedding:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  weights = {key: torch.tensor(value) for key, value in hf_weights.weights(config).items()}
  missing, unexpected = model.load_state_dict(weights, strict=False)
  aliases = {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight'}
  if unexpected or set(missing) - aliases:
    raise ValueError(f'{name}: missing {missing}, unexpected {unexpected}')
  rows = {key: torch.tensor(value) for key, value in twins.inputs(config).items()}
  with torch.no_grad():
    if isinstance(config, t5.T5Config):
      mask = (rows['encoder'] != 0).long()
      out = model(input_ids=rows['encoder'], attention_mask=mask, decoder_input_ids=rows['inputs'])
    else:
      out = model(input_ids=rows['inputs'])
  return out.logits.numpy()


def reference_states(name: str) -> np.ndarray:
  """Final states of Hugging Face's encoder."""
  config = twins.ENCODERS[name]
  model = hf.AutoModel.from_config(reference_config(name, config), add_pooling_layer=False).eval()
  model.load_state_dict(
    {key: torch.tensor(value) for key, value in hf_weights.weights(config).items()}
  )
  rows = {key: torch.tensor(value) for key, value in twins.texts().items()}
  with torch.no_grad():
    out = model(input_ids=rows['tokens'], attention_mask=rows['mask'].long())
  return out.last_hidden_state.numpy()


def main() -> None:
  for name, config in {**twins.CONFIGS, **twins.ENCODERS}.items():
    target = twins.FOLDER / f'{name}.npz'
    unfinished = target.with_suffix('.unfinished.npz')
    if name in twins.ENCODERS:
      arrays = {'states': reference_states(name), **twins.texts()}
    else:
      arrays = {'logits': reference_logits(name), **twins.inputs(config)}
    np.savez_compressed(unfinished, **arrays)
    os.replace(unfinished, target)
    described = reference_config(name, config).to_dict()
    target.with_suffix('.json').write_text(json.dumps(described, indent=1, sort_keys=True) + '\n')
    print(target.name, target.stat().st_size, 'bytes')


if __name__ == '__main__':
  main()
