"""Make the golden logits: `python -m tests.golden.make`, with the extra `reference`.

Hugging Face's implementations get the weights of our twins and answer the same inputs in float32.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
import transformers as hf

from cascades.models import decoder, t5
from tests import testing
from tests.golden import twins

Array = np.ndarray
Layout = Callable[[Array], Array]

same: Layout = lambda x: x
transposed: Layout = lambda x: x.T
into_heads: Layout = lambda x: x.reshape(x.shape[0], -1).T  # (D, N, H) -> (N H, D)
out_of_heads: Layout = lambda x: x.reshape(-1, x.shape[-1]).T  # (N, H, D) -> (D, N H)
flat: Layout = lambda x: x.reshape(-1)

# Ours below a stack of layers; Hugging Face's below one layer; how ours becomes theirs.
DECODER_LAYER: list[tuple[str, str, Layout]] = [
  ('attention/query/kernel', 'self_attn.q_proj.weight', into_heads),
  ('attention/key/kernel', 'self_attn.k_proj.weight', into_heads),
  ('attention/value/kernel', 'self_attn.v_proj.weight', into_heads),
  ('attention/out/kernel', 'self_attn.o_proj.weight', out_of_heads),
  ('attention/query/bias', 'self_attn.q_proj.bias', flat),
  ('attention/key/bias', 'self_attn.k_proj.bias', flat),
  ('attention/value/bias', 'self_attn.v_proj.bias', flat),
  ('query_norm/scale', 'self_attn.q_norm.weight', same),
  ('key_norm/scale', 'self_attn.k_norm.weight', same),
  ('attention_norm/scale', 'input_layernorm.weight', same),
  ('mlp/wi_0/kernel', 'mlp.gate_proj.weight', transposed),
  ('mlp/wi_1/kernel', 'mlp.up_proj.weight', transposed),
  ('mlp/wo/kernel', 'mlp.down_proj.weight', transposed),
]
# The name `post_attention_layernorm` means two things.
PRE_NORMS: list[tuple[str, str, Layout]] = [
  ('mlp_norm/scale', 'post_attention_layernorm.weight', same),
]
POST_NORMS: list[tuple[str, str, Layout]] = [
  ('post_attention_norm/scale', 'post_attention_layernorm.weight', same),
  ('mlp_norm/scale', 'pre_feedforward_layernorm.weight', same),
  ('post_mlp_norm/scale', 'post_feedforward_layernorm.weight', same),
]
DECODER_WHOLE: list[tuple[str, str, Layout]] = [
  ('embedding', 'model.embed_tokens.weight', same),
  ('unembedding', 'lm_head.weight', same),
  ('norm/scale', 'model.norm.weight', same),
]


def _t5_layer(feed_forward: str, gated: bool, cross: bool) -> list[tuple[str, str, Layout]]:
  def attention(ours: str, theirs: str) -> list[tuple[str, str, Layout]]:
    return [
      (f'{ours}_attention/query/kernel', f'{theirs}.q.weight', into_heads),
      (f'{ours}_attention/key/kernel', f'{theirs}.k.weight', into_heads),
      (f'{ours}_attention/value/kernel', f'{theirs}.v.weight', into_heads),
      (f'{ours}_attention/out/kernel', f'{theirs}.o.weight', out_of_heads),
      (f'{ours}_norm/scale', f'{theirs.rsplit(".", 1)[0]}.layer_norm.weight', same),
    ]

  wi = ['wi_0', 'wi_1'] if gated else ['wi']
  dense = f'{feed_forward}.DenseReluDense'
  return [
    *attention('self', 'layer.0.SelfAttention'),
    *(attention('cross', 'layer.1.EncDecAttention') if cross else []),
    *((f'mlp/wi_{i}/kernel', f'{dense}.{name}.weight', transposed) for i, name in enumerate(wi)),
    ('mlp/wo/kernel', f'{dense}.wo.weight', transposed),
    ('mlp_norm/scale', f'{feed_forward}.layer_norm.weight', same),
  ]


_BIAS = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
T5_WHOLE: list[tuple[str, str, Layout]] = [
  ('embedding', 'shared.weight', same),
  ('unembedding', 'lm_head.weight', same),
  ('encoder_norm/scale', 'encoder.final_layer_norm.weight', same),
  ('decoder_norm/scale', 'decoder.final_layer_norm.weight', same),
  ('encoder_bias/table', f'encoder.{_BIAS}', same),
  ('decoder_bias/table', f'decoder.{_BIAS}', same),
]


def their_weights(config: t5.Config | decoder.Config) -> dict[str, torch.Tensor]:
  """The twin's weights under Hugging Face's names; an error if one has no name there."""
  if isinstance(config, t5.Config):
    gated, whole = len(config.mlp_activations) == 2, T5_WHOLE
    stacks = {
      'encoder': ('encoder.block', _t5_layer('layer.1', gated, cross=False)),
      'decoder': ('decoder.block', _t5_layer('layer.2', gated, cross=True)),
    }
  else:
    norms, whole = POST_NORMS if config.post_norms else PRE_NORMS, DECODER_WHOLE
    stacks = {'blocks': ('model.layers', DECODER_LAYER + norms)}
  ours, theirs = testing.weights(config), {}
  for name, target, layout in whole:
    if name in ours:
      theirs[target] = layout(ours.pop(name))
  for stack, (block, table) in stacks.items():
    for name, target, layout in table:
      for i, layer in enumerate(ours.pop(f'{stack}/{name}', ())):
        theirs[f'{block}.{i}.{target}'] = layout(layer)
  if ours:
    raise ValueError(f'no name in Hugging Face for {", ".join(ours)}')
  return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in theirs.items()}


def their_config(name: str, config: t5.Config | decoder.Config) -> hf.PreTrainedConfig:
  if isinstance(config, t5.Config):
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
  kinds = [
    'sliding_attention' if w else 'full_attention'
    for w in (config.window_pattern * config.num_layers)[: config.num_layers]
  ]
  gemma = {
    'layer_types': kinds,
    'sliding_window': config.window_pattern[0],
    'query_pre_attn_scalar': round(config.query_scale**-2),
    'attn_logit_softcapping': config.attention_softcap,
    'final_logit_softcapping': config.logit_softcap,
  }
  if name == 'gemma2':
    return hf.Gemma2Config(**shared, **gemma, rope_parameters=rope(theta))
  whole = rope(config.rope_theta_pattern[2])
  whole |= {'rope_type': 'linear', 'factor': config.rope_factor_pattern[2]}
  ropes = {'sliding_attention': rope(theta), 'full_attention': whole}
  return hf.Gemma3TextConfig(**shared, **gemma, rope_parameters=ropes)


def their_logits(name: str) -> Array:
  """What Hugging Face's implementation answers."""
  config = twins.CONFIGS[name]
  theirs = hf.AutoModelForSeq2SeqLM if isinstance(config, t5.Config) else hf.AutoModelForCausalLM
  model = theirs.from_config(their_config(name, config)).eval()
  if not config.logits_via_embedding:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  missing, unexpected = model.load_state_dict(their_weights(config), strict=False)
  aliases = {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight', 'lm_head.weight'}
  if unexpected or set(missing) - aliases:
    raise ValueError(f'{name}: missing {missing}, unexpected {unexpected}')
  rows = {key: torch.tensor(value) for key, value in twins.inputs(config).items()}
  with torch.no_grad():
    if isinstance(config, t5.Config):
      mask = (rows['encoder'] != 0).long()
      out = model(input_ids=rows['encoder'], attention_mask=mask, decoder_input_ids=rows['inputs'])
    else:
      out = model(input_ids=rows['inputs'])
  return out.logits.numpy()


def main() -> None:
  for name, config in twins.CONFIGS.items():
    target = twins.FOLDER / f'{name}.npz'
    unfinished = target.with_suffix('.unfinished.npz')
    np.savez_compressed(unfinished, logits=their_logits(name), **twins.inputs(config))
    os.replace(unfinished, target)
    print(target.name, target.stat().st_size, 'bytes')


if __name__ == '__main__':
  main()
