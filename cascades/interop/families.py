"""The model families of Hugging Face: their options, and the names of their tensors.

Models are represented by their descriptions, as in model.json, and not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from cascades.interop.option_values import boolean, integer
from cascades.interop.tensor_tables import TensorRule, TensorTable

HuggingFaceConfig: TypeAlias = Mapping[str, Any]  # the content of a config.json
Description: TypeAlias = Mapping[str, Any]  # of a model of `cascades.models`, as in model.json


class Family(NamedTuple):
  """Properties of a model family of Hugging Face.

  Attributes:
    model_type: the option of that name in config.json.
    architecture: transformers' class.
    supported: for options of config.json, the values that the models here compute; all of them
      mean the same as the first.
    defaults: values of options that a config.json leaves out.
    fields: fields of the description that are the same for the whole family.
    has_window: whether a layer attends to a window, where `layer_types` is not given; None if no
      layer does.
    optional: options that only some families have.
    unread: options that transformers' class ignores, and their values that contradict nothing.
  """

  model_type: str
  architecture: str
  supported: Mapping[str, tuple[Any, ...]]
  defaults: Mapping[str, Any] = {}
  fields: Mapping[str, Any] = {}
  has_window: Callable[[HuggingFaceConfig, int], bool] | None = None
  optional: Sequence[str] = ()
  unread: Mapping[str, tuple[Any, ...]] = {}


_OFF = (None, False)
_LLAMA = {'num_key_value_heads': None, 'head_dim': None, 'rms_norm_eps': 1e-6}
_QWEN = {
  **{'num_key_value_heads': 32, 'head_dim': None, 'rms_norm_eps': 1e-6},
  **{'use_sliding_window': False, 'sliding_window': 4096, 'max_window_layers': 28},
}
_GEMMA = {'head_dim': 256, 'rms_norm_eps': 1e-6, 'tie_word_embeddings': True}
_GEMMA_FIELDS = {'mlp_activations': ('gelu', 'linear'), 'norm_offset': 1.0}
_GEMMA_SUPPORTED = {
  'hidden_activation': ('gelu_pytorch_tanh',),
  'attention_bias': _OFF[::-1],
  'use_bidirectional_attention': _OFF,
}
SCALED = ('query_pre_attn_scalar', 'attn_logit_softcapping', 'final_logit_softcapping')
_TANH_GELU = ('gelu_pytorch_tanh', 'gelu', None)  # the first releases write gelu and mean this
_T5_SUPPORTED = {
  'layer_norm_epsilon': (1e-6,),
  'pad_token_id': (0,),
  'decoder_start_token_id': (0,),
}
_T5_UNREAD = {'is_decoder': (None, False), 'is_encoder_decoder': (None, True)}


def _qwen_has_window(config: HuggingFaceConfig, layer: int) -> bool:
  if not boolean(config, 'use_sliding_window') or config['sliding_window'] is None:
    return False
  return layer >= integer(config, 'max_window_layers', least=0)


def _gemma3_has_window(config: HuggingFaceConfig, layer: int) -> bool:
  pattern = {'sliding_window_pattern': 6, **config}
  return (layer + 1) % integer(pattern, 'sliding_window_pattern') > 0


DECODERS = (
  Family(
    'llama',
    'LlamaForCausalLM',
    {'hidden_act': ('silu',), 'attention_bias': _OFF[::-1], 'mlp_bias': _OFF[::-1]},
    _LLAMA,
  ),
  Family(
    'qwen2',
    'Qwen2ForCausalLM',
    {'hidden_act': ('silu',)},
    _QWEN,
    {'qkv_bias': True},
    has_window=_qwen_has_window,
    unread=dict.fromkeys(('attention_bias', 'qkv_bias'), (None, False, True)),
  ),
  Family(
    'qwen3',
    'Qwen3ForCausalLM',
    {'hidden_act': ('silu',), 'attention_bias': _OFF[::-1]},
    _QWEN | {'head_dim': 128},
    {'qk_norm': True},
    has_window=_qwen_has_window,
    unread=dict.fromkeys(('use_qk_norm', 'qk_norm'), (None, True)),
  ),
  Family(
    'gemma',
    'GemmaForCausalLM',
    {
      **_GEMMA_SUPPORTED,
      'hidden_activation': ('gelu_pytorch_tanh', None),
      'hidden_act': _TANH_GELU[:2],
    },
    _GEMMA | {'num_key_value_heads': 16},
    _GEMMA_FIELDS,
  ),
  Family(
    'gemma2',
    'Gemma2ForCausalLM',
    _GEMMA_SUPPORTED,
    _GEMMA
    | {'num_key_value_heads': 4, 'sliding_window': 4096, 'query_pre_attn_scalar': 256}
    | {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0},
    _GEMMA_FIELDS | {'post_norms': True},
    has_window=lambda _, layer: layer % 2 == 0,
    optional=SCALED,
    unread={'hidden_act': _TANH_GELU},
  ),
  Family(
    'gemma3_text',
    'Gemma3ForCausalLM',
    _GEMMA_SUPPORTED,
    _GEMMA
    | {'num_attention_heads': 8, 'num_key_value_heads': 4, 'vocab_size': 262_208}
    | {'sliding_window': 4096, 'query_pre_attn_scalar': 256}
    | {'rope_theta': 1e6, 'rope_local_base_freq': 1e4},
    _GEMMA_FIELDS | {'post_norms': True, 'qk_norm': True},
    has_window=_gemma3_has_window,
    optional=SCALED,
    unread={'hidden_act': _TANH_GELU},
  ),
)
T5S = (
  Family(
    't5',
    'T5ForConditionalGeneration',
    _T5_SUPPORTED,
    {'feed_forward_proj': 'relu', 'tie_word_embeddings': True},
    unread=_T5_UNREAD,
  ),
  Family(
    'mt5',
    'MT5ForConditionalGeneration',
    _T5_SUPPORTED,
    {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False},
    unread=_T5_UNREAD,
  ),
)
_ENCODER_SUPPORTED = {
  'hidden_act': ('gelu',),
  'is_decoder': (False,),
  'add_cross_attention': (False,),
}
ENCODERS = (
  Family(
    'bert',
    'BertModel',
    {**_ENCODER_SUPPORTED, 'position_embedding_type': ('absolute',)},
    {'type_vocab_size': 2, 'layer_norm_eps': 1e-12},
  ),
  Family(
    'mpnet',
    'MPNetModel',
    # Constants in transformers' code, which ignores the file.
    {**_ENCODER_SUPPORTED, 'relative_attention_num_buckets': (32,), 'pad_token_id': (1,)},
    {'layer_norm_eps': 1e-12},
    {'num_segments': 0, 'first_position': 2, 'relative_attention_num_buckets': 32},
  ),
)
FAMILIES = {family.model_type: family for family in (*DECODERS, *T5S, *ENCODERS)}


def table(model: Description) -> TensorTable:
  """The tensors of the model with this description."""
  tables = {'decoder': _decoder_table, 't5': _t5_table, 'bert': _encoder_table}
  return tables[model['family']](model)


def _attention(parameter: str, tensor: str, projections: Sequence[str]) -> list[TensorRule]:
  query, key, value, out = (f'{tensor}.{projection}.weight' for projection in projections)
  return [
    TensorRule(query, f'{parameter}/query/kernel', '(n h) d -> d n h'),
    TensorRule(key, f'{parameter}/key/kernel', '(n h) d -> d n h'),
    TensorRule(value, f'{parameter}/value/kernel', '(n h) d -> d n h'),
    TensorRule(out, f'{parameter}/out/kernel', 'd (n h) -> n h d'),
  ]


def _decoder_table(model: Description) -> TensorTable:
  layer, tied = 'model.layers.{}', model['logits_via_embedding']
  dense = lambda parameter, tensor: TensorRule(
    f'{layer}.mlp.{tensor}.weight', f'blocks/mlp/{parameter}/kernel', 'o i -> i o'
  )
  norm = lambda parameter, tensor: TensorRule(
    f'{layer}.{tensor}.weight', f'blocks/{parameter}/scale'
  )
  # `post_attention_layernorm` precedes the MLP in models without a norm after attention.
  norms = [norm('mlp_norm', 'post_attention_layernorm')]
  if model.get('post_norms'):
    norms = [
      norm('post_attention_norm', 'post_attention_layernorm'),
      norm('mlp_norm', 'pre_feedforward_layernorm'),
      norm('post_mlp_norm', 'post_feedforward_layernorm'),
    ]
  rules = [
    TensorRule(
      'model.embed_tokens.weight', 'embedding', copies=('lm_head.weight',) if tied else ()
    ),
    *([] if tied else [TensorRule('lm_head.weight', 'unembedding')]),
    *_attention('blocks/attention', f'{layer}.self_attn', ('q_proj', 'k_proj', 'v_proj', 'o_proj')),
    *(
      TensorRule(
        f'{layer}.self_attn.{name[0]}_proj.bias', f'blocks/attention/{name}/bias', '(n h) -> n h'
      )
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
    TensorRule('model.norm.weight', 'norm/scale'),
  ]
  # Old Llama files store the rotary frequencies, which follow from the configuration.
  return TensorTable(rules, ignored=('model.layers.*.self_attn.rotary_emb.inv_freq',))


def _t5_table(model: Description) -> TensorTable:
  tied, gated = model['logits_via_embedding'], len(model['mlp_activations']) == 2
  copies = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
  bias = 'block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  rules = [
    TensorRule(
      'shared.weight', 'embedding', copies=(*copies, 'lm_head.weight') if tied else copies
    ),
    *([] if tied else [TensorRule('lm_head.weight', 'unembedding')]),
  ]
  for stack, sublayers in (('encoder', ('self',)), ('decoder', ('self', 'cross'))):
    layer, last = f'{stack}.block.{{}}.layer', len(sublayers)
    for i, name in enumerate(sublayers):
      tensor = 'SelfAttention' if name == 'self' else 'EncDecAttention'
      rules += [
        *_attention(f'{stack}/{name}_attention', f'{layer}.{i}.{tensor}', 'qkvo'),
        TensorRule(f'{layer}.{i}.layer_norm.weight', f'{stack}/{name}_norm/scale'),
      ]
    inner = {'wi_0': 'wi_0', 'wi_1': 'wi_1'} if gated else {'wi_0': 'wi'}
    rules += [
      *(
        TensorRule(
          f'{layer}.{last}.DenseReluDense.{tensor}.weight',
          f'{stack}/mlp/{parameter}/kernel',
          'o i -> i o',
        )
        for parameter, tensor in {**inner, 'wo': 'wo'}.items()
      ),
      TensorRule(f'{layer}.{last}.layer_norm.weight', f'{stack}/mlp_norm/scale'),
      TensorRule(f'{stack}.{bias}', f'{stack}_bias/table'),
      TensorRule(f'{stack}.final_layer_norm.weight', f'{stack}_norm/scale'),
    ]
  # A leftover of the first conversions from Mesh TensorFlow; no T5 reads it.
  unused = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
  return TensorTable(rules, ignored=(unused,))


def _encoder_table(model: Description) -> TensorTable:
  layer, mpnet = 'encoder.layer.{}', model.get('relative_attention_num_buckets')
  projections = ('self.query', 'self.key', 'self.value', 'output.dense')
  if mpnet:
    projections = ('attn.q', 'attn.k', 'attn.v', 'attn.o')
  dense = lambda parameter, tensor: [
    TensorRule(f'{layer}.{tensor}.dense.weight', f'blocks/{parameter}/kernel', 'o i -> i o'),
    TensorRule(f'{layer}.{tensor}.dense.bias', f'blocks/{parameter}/bias'),
  ]
  norm = lambda parameter, tensor: [
    TensorRule(f'{tensor}.LayerNorm.weight', f'{parameter}/scale'),
    TensorRule(f'{tensor}.LayerNorm.bias', f'{parameter}/bias'),
  ]
  rules = [
    TensorRule('embeddings.word_embeddings.weight', 'embedding'),
    TensorRule('embeddings.position_embeddings.weight', 'positions'),
    TensorRule('encoder.relative_attention_bias.weight', 'bias/table')
    if mpnet
    else TensorRule('embeddings.token_type_embeddings.weight', 'segments'),
    *norm('norm', 'embeddings'),
    *_attention('blocks', f'{layer}.attention', projections),
    *(
      TensorRule(f'{layer}.attention.{tensor}.bias', f'blocks/{parameter}/bias', '(n h) -> n h')
      for parameter, tensor in zip(('query', 'key', 'value'), projections, strict=False)
    ),
    TensorRule(f'{layer}.attention.{projections[3]}.bias', 'blocks/out/bias'),
    *norm('blocks/attention_norm', f'{layer}.attention' + ('' if mpnet else '.output')),
    *dense('wi', 'intermediate'),
    *dense('wo', 'output'),
    *norm('blocks/mlp_norm', f'{layer}.output'),
  ]
  # Heads for classification and prediction, and position ids that old files store.
  return TensorTable(rules, ignored=('pooler.*', 'cls.*', 'lm_head.*', 'embeddings.position_ids'))
