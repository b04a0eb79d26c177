"""Weights of the twins under Hugging Face's names, independent of the tables of `interop`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cascades.models import bert, decoder, t5
from tests import testing

Array = np.ndarray
Layout = Callable[[Array], Array]

same: Layout = lambda x: x
transposed: Layout = lambda x: x.T
into_heads: Layout = lambda x: x.reshape(x.shape[0], -1).T  # (D, N, H) -> (N H, D)
out_of_heads: Layout = lambda x: x.reshape(-1, x.shape[-1]).T  # (N, H, D) -> (D, N H)
flat: Layout = lambda x: x.reshape(-1)

# Path below a stack of layers; Hugging Face's name below a layer; layout there.
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
DECODER_MODEL: list[tuple[str, str, Layout]] = [
  ('embedding', 'model.embed_tokens.weight', same),
  ('unembedding', 'lm_head.weight', same),
  ('norm/scale', 'model.norm.weight', same),
]


def _t5_layer(feed_forward: str, gated: bool, cross: bool) -> list[tuple[str, str, Layout]]:
  def attention(path: str, target: str) -> list[tuple[str, str, Layout]]:
    return [
      (f'{path}_attention/query/kernel', f'{target}.q.weight', into_heads),
      (f'{path}_attention/key/kernel', f'{target}.k.weight', into_heads),
      (f'{path}_attention/value/kernel', f'{target}.v.weight', into_heads),
      (f'{path}_attention/out/kernel', f'{target}.o.weight', out_of_heads),
      (f'{path}_norm/scale', f'{target.rsplit(".", 1)[0]}.layer_norm.weight', same),
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
T5_MODEL: list[tuple[str, str, Layout]] = [
  ('embedding', 'shared.weight', same),
  ('unembedding', 'lm_head.weight', same),
  ('encoder_norm/scale', 'encoder.final_layer_norm.weight', same),
  ('decoder_norm/scale', 'decoder.final_layer_norm.weight', same),
  ('encoder_bias/table', f'encoder.{_BIAS}', same),
  ('decoder_bias/table', f'decoder.{_BIAS}', same),
]


def _encoder(
  attention: tuple[str, str, str, str], norm: str
) -> tuple[list[tuple[str, str, Layout]], list[tuple[str, str, Layout]]]:
  """Names of one layer, and of the rest of the model."""

  def affine(path: str, target: str, layout: Layout, bias: Layout) -> list[tuple[str, str, Layout]]:
    kernel = 'scale' if 'norm' in path else 'kernel'
    return [
      (f'{path}/{kernel}', f'{target}.weight', layout),
      (f'{path}/bias', f'{target}.bias', bias),
    ]

  query, key, value, out = attention
  layer = [
    *affine('query', f'attention.{query}', into_heads, flat),
    *affine('key', f'attention.{key}', into_heads, flat),
    *affine('value', f'attention.{value}', into_heads, flat),
    *affine('out', f'attention.{out}', out_of_heads, same),
    *affine('attention_norm', f'attention.{norm}', same, same),
    *affine('wi', 'intermediate.dense', transposed, same),
    *affine('wo', 'output.dense', transposed, same),
    *affine('mlp_norm', 'output.LayerNorm', same, same),
  ]
  rest = [
    ('embedding', 'embeddings.word_embeddings.weight', same),
    ('positions', 'embeddings.position_embeddings.weight', same),
    ('segments', 'embeddings.token_type_embeddings.weight', same),
    ('bias/table', 'encoder.relative_attention_bias.weight', same),
    *affine('norm', 'embeddings.LayerNorm', same, same),
  ]
  return layer, rest


BERT = _encoder(('self.query', 'self.key', 'self.value', 'output.dense'), 'output.LayerNorm')
MPNET = _encoder(('attn.q', 'attn.k', 'attn.v', 'attn.o'), 'LayerNorm')


def weights(config: t5.T5Config | decoder.DecoderConfig | bert.BertConfig) -> dict[str, Array]:
  """Weights of a twin under Hugging Face's names; ValueError if a weight has no name there."""
  if isinstance(config, t5.T5Config):
    gated, model = len(config.mlp_activations) == 2, T5_MODEL
    stacks = {
      'encoder': ('encoder.block', _t5_layer('layer.1', gated, cross=False)),
      'decoder': ('decoder.block', _t5_layer('layer.2', gated, cross=True)),
    }
  elif isinstance(config, bert.BertConfig):
    layer, model = MPNET if config.relative_attention_num_buckets else BERT
    stacks = {'blocks': ('encoder.layer', layer)}
  else:
    norms, model = POST_NORMS if config.post_norms else PRE_NORMS, DECODER_MODEL
    stacks = {'blocks': ('model.layers', DECODER_LAYER + norms)}
  weights, renamed = testing.weights(config), {}
  for name, target, layout in model:
    if name in weights:
      renamed[target] = layout(weights.pop(name))
  for stack, (block, table) in stacks.items():
    for name, target, layout in table:
      for i, layer in enumerate(weights.pop(f'{stack}/{name}', ())):
        renamed[f'{block}.{i}.{target}'] = layout(layer)
  if weights:
    raise ValueError(f'no name in Hugging Face for {", ".join(weights)}')
  return {name: np.ascontiguousarray(value) for name, value in renamed.items()}
