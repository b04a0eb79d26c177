"""The model families of Hugging Face: their options, and the names of their tensors.

Models are not known here, only their descriptions, as in model.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from cascades.interop.tensor_tables import Row, Table

Config: TypeAlias = Mapping[str, Any]  # of Hugging Face
Description: TypeAlias = Mapping[str, Any]  # ours


class Family(NamedTuple):
  """What sets a family apart.

  `only`: the values of an option that our models compute, all meaning the first. `silent`: what an
  option is that config.json does not name. `ours`: what the family switches on in our description.
  `slides`: whether a layer sees a window only, if `layer_types` does not say; None if none does.
  """

  model_type: str
  architecture: str
  only: Mapping[str, tuple[Any, ...]]
  silent: Mapping[str, Any] = {}
  ours: Mapping[str, Any] = {}
  slides: Callable[[Config, int], bool] | None = None
  optional: Sequence[str] = ()  # options that only some families have


_NEVER = (None, False)
_LLAMA = {'num_key_value_heads': None, 'head_dim': None, 'rms_norm_eps': 1e-6}
_QWEN = {'num_key_value_heads': 32, 'head_dim': None, 'rms_norm_eps': 1e-6}
_GEMMA = {'head_dim': 256, 'rms_norm_eps': 1e-6, 'tie_word_embeddings': True}
_GEMMA_OURS = {'mlp_activations': ('gelu', 'linear'), 'norm_offset': 1.0}
_GEMMA_ONLY = {
  'hidden_activation': ('gelu_pytorch_tanh',),
  'attention_bias': _NEVER[::-1],
  'use_bidirectional_attention': _NEVER,
}
SCALED = ('query_pre_attn_scalar', 'attn_logit_softcapping', 'final_logit_softcapping')
_T5_ONLY = {'layer_norm_epsilon': (1e-6,), 'pad_token_id': (0,), 'decoder_start_token_id': (0,)}


def _qwen_slides(config: Config, layer: int) -> bool:
  return bool(config.get('use_sliding_window')) and layer >= config.get('max_window_layers', 28)


DECODERS = (
  Family(
    'llama',
    'LlamaForCausalLM',
    {'hidden_act': ('silu',), 'attention_bias': (False,), 'mlp_bias': (False,)},
    _LLAMA,
  ),
  Family(
    'qwen2',
    'Qwen2ForCausalLM',
    {'hidden_act': ('silu',)},
    _QWEN,
    {'qkv_bias': True},
    slides=_qwen_slides,
  ),
  Family(
    'qwen3',
    'Qwen3ForCausalLM',
    {'hidden_act': ('silu',), 'attention_bias': (False,)},
    _QWEN | {'head_dim': 128},
    {'qk_norm': True},
    slides=_qwen_slides,
  ),
  Family(
    'gemma',
    'GemmaForCausalLM',
    # The first releases say gelu and mean its tanh form.
    {
      **_GEMMA_ONLY,
      'hidden_activation': ('gelu_pytorch_tanh', None),
      'hidden_act': ('gelu_pytorch_tanh', 'gelu'),
    },
    _GEMMA | {'num_key_value_heads': 16},
    _GEMMA_OURS,
  ),
  Family(
    'gemma2',
    'Gemma2ForCausalLM',
    _GEMMA_ONLY,
    _GEMMA
    | {'num_key_value_heads': 4, 'sliding_window': 4096, 'query_pre_attn_scalar': 256}
    | {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0},
    _GEMMA_OURS | {'post_norms': True},
    slides=lambda _, layer: layer % 2 == 0,
    optional=SCALED,
  ),
  Family(
    'gemma3_text',
    'Gemma3ForCausalLM',
    _GEMMA_ONLY,
    _GEMMA
    | {'num_attention_heads': 8, 'num_key_value_heads': 4, 'vocab_size': 262_208}
    | {'sliding_window': 4096, 'query_pre_attn_scalar': 256}
    | {'rope_theta': 1e6, 'rope_local_base_freq': 1e4},
    _GEMMA_OURS | {'post_norms': True, 'qk_norm': True},
    slides=lambda config, layer: (layer + 1) % config.get('sliding_window_pattern', 6) > 0,
    optional=SCALED,
  ),
)
T5S = (
  Family(
    't5',
    'T5ForConditionalGeneration',
    _T5_ONLY,
    {'feed_forward_proj': 'relu', 'tie_word_embeddings': True},
  ),
  Family(
    'mt5',
    'MT5ForConditionalGeneration',
    _T5_ONLY,
    {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
  ),
)
_ENCODER_ONLY = {'hidden_act': ('gelu',), 'is_decoder': (False,), 'add_cross_attention': (False,)}
ENCODERS = (
  Family(
    'bert',
    'BertModel',
    {**_ENCODER_ONLY, 'position_embedding_type': ('absolute',)},
    {'type_vocab_size': 2, 'layer_norm_eps': 1e-12},
  ),
  Family(
    'mpnet',
    'MPNetModel',
    # Transformers has these numbers in its code, whatever the file says.
    {**_ENCODER_ONLY, 'relative_attention_num_buckets': (32,), 'pad_token_id': (1,)},
    {'layer_norm_eps': 1e-12},
    {'num_segments': 0, 'first_position': 2, 'relative_attention_num_buckets': 32},
  ),
)
FAMILIES = {family.model_type: family for family in (*DECODERS, *T5S, *ENCODERS)}


def table(model: Description) -> Table:
  """The tensors of the model that is described."""
  tables = {'decoder': _decoder_table, 't5': _t5_table, 'bert': _encoder_table}
  return tables[model['family']](model)


def _attention(ours: str, theirs: str, names: Sequence[str]) -> list[Row]:
  query, key, value, out = (f'{theirs}.{name}.weight' for name in names)
  return [
    Row(query, f'{ours}/query/kernel', '(n h) d -> d n h'),
    Row(key, f'{ours}/key/kernel', '(n h) d -> d n h'),
    Row(value, f'{ours}/value/kernel', '(n h) d -> d n h'),
    Row(out, f'{ours}/out/kernel', 'd (n h) -> n h d'),
  ]


def _decoder_table(model: Description) -> Table:
  layer, tied = 'model.layers.{}', model['logits_via_embedding']
  dense = lambda ours, theirs: Row(
    f'{layer}.mlp.{theirs}.weight', f'blocks/mlp/{ours}/kernel', 'o i -> i o'
  )
  norm = lambda ours, theirs: Row(f'{layer}.{theirs}.weight', f'blocks/{ours}/scale')
  # `post_attention_layernorm` stands before the MLP where nothing stands after attention.
  norms = [norm('mlp_norm', 'post_attention_layernorm')]
  if model.get('post_norms'):
    norms = [
      norm('post_attention_norm', 'post_attention_layernorm'),
      norm('mlp_norm', 'pre_feedforward_layernorm'),
      norm('post_mlp_norm', 'post_feedforward_layernorm'),
    ]
  rows = [
    Row('model.embed_tokens.weight', 'embedding', copies=('lm_head.weight',) if tied else ()),
    *([] if tied else [Row('lm_head.weight', 'unembedding')]),
    *_attention('blocks/attention', f'{layer}.self_attn', ('q_proj', 'k_proj', 'v_proj', 'o_proj')),
    *(
      Row(f'{layer}.self_attn.{name[0]}_proj.bias', f'blocks/attention/{name}/bias', '(n h) -> n h')
      for name in ('query', 'key', 'value')
      if model.get('qkv_bias')
    ),
    *(
      norm(f'{name}_norm', f'self_attn.{name[0]}_norm')
      for name in ('query', 'key')
      if model.get('qk_norm')
    ),
    norm('attention_norm', 'input_layernorm'),
    *norms,
    dense('wi_0', 'gate_proj'),
    dense('wi_1', 'up_proj'),
    dense('wo', 'down_proj'),
    Row('model.norm.weight', 'norm/scale'),
  ]
  # Frequencies that old Llama files store, which configurations give.
  return Table(rows, ignored=('model.layers.*.self_attn.rotary_emb.inv_freq',))


def _t5_table(model: Description) -> Table:
  tied, gated = model['logits_via_embedding'], len(model['mlp_activations']) == 2
  copies = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
  bias = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  rows = [
    Row('shared.weight', 'embedding', copies=(*copies, 'lm_head.weight') if tied else copies),
    *([] if tied else [Row('lm_head.weight', 'unembedding')]),
  ]
  for stack, sublayers in (('encoder', ('self',)), ('decoder', ('self', 'cross'))):
    layer, last = f'{stack}.block.{{}}.layer', len(sublayers)
    for i, name in enumerate(sublayers):
      theirs = 'SelfAttention' if name == 'self' else 'EncDecAttention'
      rows += [
        *_attention(f'{stack}/{name}_attention', f'{layer}.{i}.{theirs}', 'qkvo'),
        Row(f'{layer}.{i}.layer_norm.weight', f'{stack}/{name}_norm/scale'),
      ]
    inner = {'wi_0': 'wi_0', 'wi_1': 'wi_1'} if gated else {'wi_0': 'wi'}
    rows += [
      *(
        Row(
          f'{layer}.{last}.DenseReluDense.{theirs}.weight',
          f'{stack}/mlp/{ours}/kernel',
          'o i -> i o',
        )
        for ours, theirs in {**inner, 'wo': 'wo'}.items()
      ),
      Row(f'{layer}.{last}.layer_norm.weight', f'{stack}/mlp_norm/scale'),
      Row(f'{stack}.{bias}', f'{stack}_bias/table'),
      Row(f'{stack}.final_layer_norm.weight', f'{stack}_norm/scale'),
    ]
  # A leftover of the first conversions from Mesh TensorFlow; no T5 looks at it.
  unused = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  return Table(rows, ignored=(unused,))


def _encoder_table(model: Description) -> Table:
  layer, mpnet = 'encoder.layer.{}', model.get('relative_attention_num_buckets')
  names = ('self.query', 'self.key', 'self.value', 'output.dense')
  if mpnet:
    names = ('attn.q', 'attn.k', 'attn.v', 'attn.o')
  dense = lambda ours, theirs: [
    Row(f'{layer}.{theirs}.dense.weight', f'blocks/{ours}/kernel', 'o i -> i o'),
    Row(f'{layer}.{theirs}.dense.bias', f'blocks/{ours}/bias'),
  ]
  norm = lambda ours, theirs: [
    Row(f'{theirs}.LayerNorm.weight', f'{ours}/scale'),
    Row(f'{theirs}.LayerNorm.bias', f'{ours}/bias'),
  ]
  rows = [
    Row('embeddings.word_embeddings.weight', 'embedding'),
    Row('embeddings.position_embeddings.weight', 'positions'),
    Row('encoder.relative_attention_bias.weight', 'bias/table')
    if mpnet
    else Row('embeddings.token_type_embeddings.weight', 'segments'),
    *norm('norm', 'embeddings'),
    *_attention('blocks', f'{layer}.attention', names),
    *(
      Row(f'{layer}.attention.{theirs}.bias', f'blocks/{ours}/bias', '(n h) -> n h')
      for ours, theirs in zip(('query', 'key', 'value'), names, strict=False)
    ),
    Row(f'{layer}.attention.{names[3]}.bias', 'blocks/out/bias'),
    *norm('blocks/attention_norm', f'{layer}.attention' + ('' if mpnet else '.output')),
    *dense('wi', 'intermediate'),
    *dense('wo', 'output'),
    *norm('blocks/mlp_norm', f'{layer}.output'),
  ]
  # What classifies or predicts from the states, and a count from 0 that old files store.
  return Table(rows, ignored=('pooler.*', 'cls.*', 'lm_head.*', 'embeddings.position_ids'))
