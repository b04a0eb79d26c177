from __future__ import annotations

import dataclasses
import json
import re

import pytest

from cascades.checkpoints import store
from cascades.interop import families, hf_config
from cascades.models import configs, decoder, t5
from tests.golden import twins
from tests.interop import twin_folders

_T5_SMALL = {
  'model_type': 't5',
  'd_ff': 2048,
  'd_kv': 64,
  'd_model': 512,
  'num_heads': 8,
  'num_layers': 6,
  'layer_norm_epsilon': 1e-06,
  'n_positions': 512,
  'task_specific_params': {'summarization': {'prefix': 'summarize: '}},
  'vocab_size': 32128,
}
_FLAN_T5_SMALL = {
  'model_type': 't5',
  'd_ff': 1024,
  'd_kv': 64,
  'd_model': 512,
  'decoder_start_token_id': 0,
  'feed_forward_proj': 'gated-gelu',
  'num_decoder_layers': 8,
  'num_heads': 6,
  'num_layers': 8,
  'relative_attention_max_distance': 128,
  'relative_attention_num_buckets': 32,
  'tie_word_embeddings': False,
  'vocab_size': 32128,
}
_SMOLLM2 = {
  'model_type': 'llama',
  'attention_bias': False,
  'bos_token_id': 1,
  'hidden_act': 'silu',
  'hidden_size': 576,
  'intermediate_size': 1536,
  'is_llama_config': True,
  'max_position_embeddings': 8192,
  'mlp_bias': False,
  'num_attention_heads': 9,
  'num_hidden_layers': 30,
  'num_key_value_heads': 3,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-05,
  'rope_interleaved': False,
  'rope_scaling': None,
  'rope_theta': 100000,
  'tie_word_embeddings': True,
  'vocab_size': 49152,
}
_LLAMA_3_2 = {
  'model_type': 'llama',
  'head_dim': 64,
  'hidden_act': 'silu',
  'hidden_size': 2048,
  'intermediate_size': 8192,
  'num_attention_heads': 32,
  'num_hidden_layers': 16,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-05,
  'rope_scaling': {
    'factor': 32.0,
    'high_freq_factor': 4.0,
    'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  },
  'rope_theta': 500000.0,
  'tie_word_embeddings': True,
  'vocab_size': 128256,
}
_LLAMA_2 = {
  'model_type': 'llama',
  'hidden_act': 'silu',
  'hidden_size': 4096,
  'intermediate_size': 11008,
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'rms_norm_eps': 1e-05,
  'vocab_size': 32000,
}
_QWEN_2_5 = {
  'model_type': 'qwen2',
  'hidden_act': 'silu',
  'hidden_size': 896,
  'intermediate_size': 4864,
  'max_window_layers': 21,
  'num_attention_heads': 14,
  'num_hidden_layers': 24,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-06,
  'rope_theta': 1000000.0,
  'sliding_window': 32768,
  'tie_word_embeddings': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}
_QWEN_3 = {
  'model_type': 'qwen3',
  'attention_bias': False,
  'head_dim': 128,
  'hidden_act': 'silu',
  'hidden_size': 1024,
  'intermediate_size': 3072,
  'max_window_layers': 28,
  'num_attention_heads': 16,
  'num_hidden_layers': 28,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-06,
  'rope_scaling': None,
  'rope_theta': 1000000,
  'sliding_window': None,
  'tie_word_embeddings': True,
  'use_sliding_window': False,
  'vocab_size': 151936,
}
_GEMMA = {
  'model_type': 'gemma',
  'head_dim': 256,
  'hidden_act': 'gelu',
  'hidden_activation': None,
  'hidden_size': 2048,
  'intermediate_size': 16384,
  'num_attention_heads': 8,
  'num_hidden_layers': 18,
  'num_key_value_heads': 1,
  'rms_norm_eps': 1e-06,
  'rope_theta': 10000.0,
  'vocab_size': 256000,
}
_GEMMA_2 = {
  'model_type': 'gemma2',
  'attn_logit_softcapping': 50.0,
  'cache_implementation': 'hybrid',
  'final_logit_softcapping': 30.0,
  'head_dim': 256,
  'hidden_act': 'gelu_pytorch_tanh',
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size': 2304,
  'intermediate_size': 9216,
  'num_attention_heads': 8,
  'num_hidden_layers': 26,
  'num_key_value_heads': 4,
  'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-06,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'vocab_size': 256000,
}
_GEMMA_3 = {
  'model_type': 'gemma3_text',
  'attention_bias': False,
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size': 1152,
  'intermediate_size': 6912,
  'num_attention_heads': 4,
  'num_hidden_layers': 26,
  'num_key_value_heads': 1,
  'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-06,
  'rope_local_base_freq': 10000,
  'rope_scaling': None,
  'rope_theta': 1000000,
  'sliding_window': 512,
  'sliding_window_pattern': 6,
  'vocab_size': 262144,
}
# What the 4B's configuration does not say is what transformers assumes.
_GEMMA_3_4B = {
  'model_type': 'gemma3',
  'text_config': {
    'hidden_size': 2560,
    'intermediate_size': 10240,
    'model_type': 'gemma3_text',
    'num_hidden_layers': 34,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
    'sliding_window': 1024,
  },
  'vision_config': {'model_type': 'siglip_vision_model'},
}
_MT5_SMALL = {
  'model_type': 'mt5',
  'd_ff': 1024,
  'd_kv': 64,
  'd_model': 512,
  'feed_forward_proj': 'gated-gelu',
  'num_decoder_layers': 8,
  'num_heads': 6,
  'num_layers': 8,
  'tie_word_embeddings': False,
  'vocab_size': 250112,
}
# As they were published before transformers 5, with the published number of parameters.
PUBLISHED = {
  't5-small': (_T5_SMALL, 60_506_624),
  'flan-t5-small': (_FLAN_T5_SMALL, 76_961_152),
  'mt5-small': (_MT5_SMALL, 300_176_768),
  'SmolLM2-135M': (_SMOLLM2, 134_515_008),
  'Llama-3.2-1B': (_LLAMA_3_2, 1_235_814_400),
  'Llama-2-7b': (_LLAMA_2, 6_738_415_616),
  'Qwen2.5-0.5B': (_QWEN_2_5, 494_032_768),
  'Qwen3-0.6B': (_QWEN_3, 596_049_920),
  'gemma-2b': (_GEMMA, 2_506_172_416),
  'gemma-2-2b': (_GEMMA_2, 2_614_341_888),
  'gemma-3-1b': (_GEMMA_3, 999_885_952),
  'gemma-3-4b': (_GEMMA_3_4B, 3_880_263_168),
}


def _ours(config):
  return configs.from_description(hf_config.describe(config))


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_configurations_have_the_published_size(name):
  config, parameters = PUBLISHED[name]
  assert configs.count_parameters(_ours(config)) == parameters


def test_what_a_published_configuration_means_in_detail():
  assert _ours(_LLAMA_3_2) == decoder.DecoderConfig(
    vocab_size=128256,
    emb_dim=2048,
    num_heads=32,
    num_kv_heads=8,
    num_layers=16,
    head_dim=64,
    mlp_dim=8192,
    norm_eps=1e-5,
    rope_theta_pattern=(500_000.0,),
    rope_llama3=(32.0, 1.0, 4.0, 8192),
  )
  assert _ours(_LLAMA_2).logits_via_embedding is False
  gemma2 = _ours(_GEMMA_2)
  assert gemma2.window_pattern == (4096, None)
  assert (gemma2.attention_softcap, gemma2.logit_softcap) == (50.0, 30.0)
  assert (gemma2.embedding_scale, gemma2.query_scale) == (48.0, 1 / 16)
  gemma3 = _ours(_GEMMA_3_4B)
  assert gemma3.window_pattern == (*[1024] * 5, None)
  assert gemma3.rope_theta_pattern == (*[1e4] * 5, 1e6)
  assert gemma3.rope_factor_pattern == (*[1.0] * 5, 8.0)
  assert _ours(_FLAN_T5_SMALL) == t5.T5Config(vocab_size=32128, dropout_rate=0.1)
  small = _ours(_T5_SMALL)
  assert (small.mlp_activations, small.logits_via_embedding) == (('relu',), True)
  assert _ours(_QWEN_2_5).window_pattern == (None,)


def test_later_layers_of_qwen_see_a_window_if_it_is_switched_on():
  switched_on = _QWEN_2_5 | {'use_sliding_window': True, 'sliding_window': 64}
  assert _ours(switched_on).window_pattern == (*[None] * 21, *[64] * 3)


def test_llama_has_no_windows_whatever_the_file_says():
  config = _LLAMA_2 | {'sliding_window': 7, 'layer_types': ['sliding_attention'] * 32}
  assert _ours(config).window_pattern == (None,)


@pytest.mark.parametrize('name', twins.CONFIGS)
def test_the_words_of_transformers_5_mean_the_same(name):
  config = _ours(twin_folders.config(name))
  assert dataclasses.replace(config, dropout_rate=0.0) == twins.CONFIGS[name]


@pytest.mark.parametrize('name', [*twins.CONFIGS, *PUBLISHED])
def test_what_is_written_means_the_same_model(name):
  config = PUBLISHED[name][0] if name in PUBLISHED else twin_folders.config(name)
  model = configs.describe(_ours(config))
  model = json.loads(json.dumps(model))  # as model.json holds it
  written = hf_config.configuration(model, hf_config.text_config(config)['model_type'])
  assert _ours(written) == _ours(config)
  # Without being told, the family is one that computes the same.
  again = _ours(hf_config.configuration(model))
  assert again == _ours(config)


@pytest.mark.parametrize(
  ('config', 'change', 'words'),
  [
    (_LLAMA_2, {'model_type': 'mixtral'}, "model_type='mixtral' of config.json is not supported"),
    (_LLAMA_2, {'attention_bias': True}, 'attention_bias=True in config.json of a llama model'),
    (_LLAMA_2, {'mlp_bias': True}, 'mlp_bias=True'),
    (_LLAMA_2, {'hidden_act': 'gelu'}, "hidden_act='gelu'"),
    (_LLAMA_2, {'quantization_config': {'bits': 4}}, 'quantized weights cannot be read'),
    (_LLAMA_2, {'rope_scaling': {'type': 'yarn', 'factor': 2.0}}, "rope_type='yarn'"),
    (_QWEN_3, {'rope_parameters': {'rope_type': 'dynamic'}}, "rope_type='dynamic'"),
    (_LLAMA_2, {'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    (_GEMMA_2, {'hidden_activation': 'gelu'}, "hidden_activation='gelu'"),
    (_GEMMA_3, {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True'),
    (_T5_SMALL, {'feed_forward_proj': 'gelu'}, "feed_forward_proj='gelu'"),
    (_T5_SMALL, {'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon=1e-05'),
    (_T5_SMALL, {'decoder_start_token_id': 2}, 'decoder_start_token_id=2'),
  ],
)
def test_an_option_that_is_not_supported_is_named(config, change, words):
  with pytest.raises(store.CheckpointError, match=re.escape(words)):
    hf_config.describe(config | change)


def test_a_configuration_without_sizes_is_refused():
  without = {name: value for name, value in _LLAMA_2.items() if name != 'hidden_size'}
  with pytest.raises(store.CheckpointError, match="lacks 'hidden_size'"):
    hf_config.describe(without)


@pytest.mark.parametrize(
  ('name', 'change', 'words'),
  [
    ('qwen3', {'qkv_bias': True}, 'nearest is qwen2, but qk_norm is True, not False'),
    ('llama', {'window_pattern': (3, None)}, 'nearest is llama, but window_pattern is (3, None)'),
    ('gemma2', {'query_scale': 0.3}, 'nearest is gemma2, but query_scale is 0.3, not 0.30'),
    ('gemma', {'embedding_scale': 1.0}, 'nearest is gemma, but embedding_scale is 1.0, not 4.0'),
    ('t5_1_1', {'mlp_activations': ('relu', 'linear')}, "mlp_activations is ('relu', 'linear')"),
  ],
)
def test_a_model_that_no_family_computes_is_refused_with_what_differs(name, change, words):
  model = configs.describe(dataclasses.replace(twins.CONFIGS[name], **change))
  with pytest.raises(store.CheckpointError, match=re.escape(words)):
    hf_config.configuration(model)


def test_a_family_of_the_other_architecture_is_refused():
  model = configs.describe(twins.CONFIGS['llama'])
  with pytest.raises(store.CheckpointError, match="a decoder model cannot be written as 't5'"):
    hf_config.configuration(model, 't5')


@pytest.mark.parametrize('name', PUBLISHED)
def test_every_option_that_a_family_reads_is_ours_to_decide(name):
  read: set[str] = set()

  class Spy(dict):
    def get(self, name, default=None):
      read.add(name)
      return super().get(name, default)

    def __getitem__(self, name):
      read.add(name)
      return super().__getitem__(name)

  config = hf_config.text_config(PUBLISHED[name][0])
  family = families.FAMILIES[config['model_type']]
  describe = hf_config._describe_t5 if family in families.T5S else hf_config._describe_decoder
  describe(Spy({**family.defaults, **config}), family)
  assert read - hf_config.determined_options(family.model_type) <= {'partial_rotary_factor'}


def test_what_only_other_families_decide_is_kept():
  assert 'pad_token_id' in hf_config.determined_options('t5')
  assert 'pad_token_id' not in hf_config.determined_options('llama')
