"""Each option of transformers' configurations changes the model, is refused, or has no effect.

`transformers_options.json` lists the options by model_type, as transformers 5.24 declares and
writes them: the fields of the class, the names that it maps to them, and the older rotary options.
"""

from __future__ import annotations

import json
import logging
import re

import pytest

from cascades.checkpoints import store
from cascades.interop import families, hf_config, known_options
from cascades.models import configs
from tests.golden import twins
from tests.interop import hf_config_test, twin_folders

OPTIONS = json.loads((twins.FOLDER / 'transformers_options.json').read_text())
BASES = {
  **{name: twin_folders.config(name) for name in ('llama', 'qwen2', 'qwen3', 'gemma', 'gemma2')},
  **{name: twin_folders.config(name) for name in ('bert', 'mpnet')},
  'gemma3_text': twin_folders.config('gemma3'),
  't5': twin_folders.config('t5_1_1'),
  'mt5': hf_config_test._MT5_SMALL | {'is_gated_act': True},
}
# Another value of each option that may change what some model computes.
OTHER = {
  **dict.fromkeys(('vocab_size', 'hidden_size', 'intermediate_size', 'd_model', 'd_ff'), 40),
  **dict.fromkeys(('num_hidden_layers', 'num_layers', 'num_decoder_layers'), 7),
  **dict.fromkeys(('num_attention_heads', 'num_heads'), 8),
  **dict.fromkeys(('d_kv', 'head_dim'), 10),
  'num_key_value_heads': 1,
  'max_position_embeddings': 99,
  'type_vocab_size': 5,
  **dict.fromkeys(('hidden_act', 'hidden_activation', 'dense_act_fn'), 'relu'),
  'feed_forward_proj': 'gated-silu',
  **dict.fromkeys(('rms_norm_eps', 'layer_norm_eps', 'layer_norm_epsilon'), 0.5),
  'query_pre_attn_scalar': 3.0,
  **dict.fromkeys(('attn_logit_softcapping', 'final_logit_softcapping'), 7.0),
  **dict.fromkeys(('attention_bias', 'mlp_bias', 'use_bidirectional_attention'), True),
  **dict.fromkeys(('is_encoder_decoder', 'is_decoder', 'add_cross_attention'), True),
  **dict.fromkeys(('pad_token_id', 'decoder_start_token_id'), 3),
  **dict.fromkeys(('relative_attention_num_buckets', 'relative_attention_max_distance'), 22),
  'dropout_rate': 0.5,
  'rope_parameters': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 77.0},
  'rope_scaling': {'rope_type': 'linear', 'factor': 2.0},
  'rope_theta': 77.0,
  'partial_rotary_factor': 0.5,
  'per_layer_config': {'0': {'num_attention_heads': 1}},
  'layer_types': ['sliding_attention'],
  'sliding_window': 2,
  'position_embedding_type': 'relative_key',
}
WINDOWED = ['full_attention', 'sliding_attention']
FLIPPED = ('tie_word_embeddings', 'scale_decoder_outputs', 'use_sliding_window', 'is_gated_act')
# transformers decides these by other options of the same file.
DECIDED_ELSEWHERE = {
  'max_window_layers': 'layer_types',
  '_sliding_window_pattern': 'layer_types',
  'rope_theta': 'rope_parameters',
  'rope_local_base_freq': 'rope_parameters',
  'tie_word_embeddings': 'scale_decoder_outputs',
}


def _outcome(config):
  try:
    return hf_config.describe(config)
  except store.CheckpointError as error:
    return str(error)


@pytest.mark.parametrize('model_type', OPTIONS)
def test_every_option_of_transformers_is_known(model_type, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('cascades'), 'propagate', True)
  family = families.FAMILIES[model_type]
  known = known_options.read_options(family) | known_options.WITHOUT_EFFECT
  known |= known_options.NEUTRAL.keys() | family.unread.keys()
  known |= known_options._T5_ALIASES.keys() if family in families.T5S else set()
  assert not set(OPTIONS[model_type]) - known
  hf_config.describe(BASES[model_type])
  assert 'not known' not in caplog.text


@pytest.mark.parametrize('model_type', OPTIONS)
def test_an_option_that_counts_changes_the_model_or_is_refused(model_type):
  base, family = BASES[model_type], families.FAMILIES[model_type]
  expected, dropped = hf_config.describe(base), []
  read = known_options.read_options(family)
  for option in sorted({*OPTIONS[model_type], *read} - {'model_type', 'architectures'}):
    counts = option in read or option not in known_options.WITHOUT_EFFECT
    other = not base.get(option) if option in FLIPPED else OTHER.get(option)
    if not counts or DECIDED_ELSEWHERE.get(option) in base:
      continue
    if other is None or _outcome(base | {option: other}) == expected:
      dropped.append(option)
  # These have no effect in the class, or none without an option that is not set.
  ignored = {'mt5': {'scale_decoder_outputs', 'tie_word_embeddings'}, 'mpnet': {'type_vocab_size'}}
  assert set(dropped) <= {
    *('is_decoder', 'is_encoder_decoder', 'original_max_position_embeddings', 'max_window_layers'),
    *('sliding_window', 'sliding_window_pattern', 'use_sliding_window', 'query_pre_attn_scalar'),
    *('attention_bias', *ignored.get(model_type, ())),
  }, dropped


def test_what_is_dropped_is_only_what_the_class_ignores():
  # The exceptions above, where they do count.
  for option, config in (
    ('is_decoder', BASES['t5']),
    ('is_decoder', BASES['bert']),
    ('is_encoder_decoder', BASES['llama']),
    ('sliding_window', BASES['gemma2']),
    ('query_pre_attn_scalar', BASES['gemma2']),
    ('attention_bias', BASES['llama']),
  ):
    assert _outcome(config | {option: OTHER[option]}) != hf_config.describe(config), option


@pytest.mark.parametrize(
  'option', [n for n in known_options.NEUTRAL if n not in ('is_decoder', 'rope_parameters')]
)
def test_every_option_of_other_models_is_refused_where_it_does_something(option):
  config = hf_config_test._LLAMA_2
  for value in known_options.NEUTRAL[option]:
    if option not in ('rope_scaling', 'partial_rotary_factor'):
      hf_config.describe(config | {option: value})
  value = {'position_embedding_type': 'alibi', 'is_causal': False}.get(option, {'rope_type': 7})
  with pytest.raises(store.CheckpointError, match=re.escape(option) + '|rope_type'):
    hf_config.describe(config | {option: value})


@pytest.mark.parametrize(
  ('config', 'change', 'words'),
  [
    ('llama', {'no_rope_layers': [1, 0]}, 'no_rope_layers=[1, 0]'),
    ('llama', {'num_layers': 9}, 'num_layers=9 and num_hidden_layers=2'),
    ('llama', {'rotary_emb_base': 5e5}, 'rotary_emb_base=500000.0 and rope_theta=10000.0'),
    ('llama', {'norm_eps': 0.1}, 'contradict each other'),
    ('llama', {'hidden_activation': 'gelu'}, "hidden_activation='gelu' and hidden_act='silu'"),
    ('llama', {'attention_multiplier': 0.1}, 'attention_multiplier=0.1'),
    ('llama', {'embedding_multiplier': 12.0}, 'embedding_multiplier=12.0'),
    ('llama', {'tie_word_embeddings': 'false'}, "tie_word_embeddings='false'"),
    ('gemma2', {'hidden_act': 'relu'}, "hidden_act='relu'"),
    ('qwen2', {'layer_types': ['full_attention', 'linear_attention']}, 'layer_types='),
    ('qwen2', {'layer_types': ['full_attention']}, 'layer_types='),
    ('qwen2', {'use_sliding_window': False, 'layer_types': WINDOWED}, 'contradict each other'),
    ('gemma2', {'sliding_window': None}, 'sliding_window=None'),
    ('t5_1_1', {'is_gated_act': False}, 'is_gated_act=False'),
    ('t5_1_1', {'dense_act_fn': 'silu'}, "dense_act_fn='silu'"),
    ('t5_1_1', {'num_hidden_layers': 3}, 'num_hidden_layers=3 and num_layers=2'),
    ('t5_1_1', {'is_encoder_decoder': False}, 'is_encoder_decoder=False'),
    ('bert', {'hidden_act': 'relu'}, "hidden_act='relu'"),
  ],
)
def test_contradictions_are_refused_by_name(config, change, words):
  config = twin_folders.config(config) | {'rope_parameters': None}
  if 'rotary_emb_base' in change:
    config.pop('rope_parameters')
  with pytest.raises(store.CheckpointError, match=re.escape(words)):
    hf_config.describe(config | change)


def test_a_refusal_reaches_the_configuration_around_the_language_model():
  quantized, config = {'quantization_config': {'bits': 4}}, hf_config_test._GEMMA_3_4B
  inside = config | {'text_config': config['text_config'] | quantized}
  for refused in (config | quantized, inside):
    with pytest.raises(store.CheckpointError, match='quantized weights cannot be read'):
      hf_config.describe(refused)


@pytest.mark.parametrize('name', hf_config_test.PUBLISHED)
def test_nothing_in_a_published_configuration_is_unknown(name, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('cascades'), 'propagate', True)
  hf_config.describe(hf_config_test.PUBLISHED[name][0])
  assert not caplog.text


def test_an_unknown_option_is_named_and_not_refused(caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('cascades'), 'propagate', True)
  config = hf_config_test._LLAMA_2 | {'flux\x1b[31m': 3, 'written_by': 'someone'}
  assert hf_config.describe(config) == hf_config.describe(hf_config_test._LLAMA_2)
  assert "not read: 'flux\\x1b[31m', 'written_by'" in caplog.text


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    *(('num_hidden_layers', v) for v in (10**6, 10**30, 0, -1, 2.0, '2', None, True, [2])),
    *(('vocab_size', v) for v in (10**12, 0, -5, 1.5, 'many', None)),
    *(('num_attention_heads', v) for v in (0, -4, '4', 3.0)),
    *(('num_key_value_heads', v) for v in (-1, 1.0, 'x')),
    *(('head_dim', v) for v in (7, -8, 0, 8.0, 'x')),
    *(('rms_norm_eps', v) for v in ('1e-5', -1e-5, None, float('inf'))),
    ('model_type', ['llama']),
    ('hidden_size', 4097),  # without head_dim
  ],
)
def test_sizes_are_checked_before_anything_is_made_of_them(option, value):
  with pytest.raises(store.CheckpointError, match=option):
    hf_config.describe(hf_config_test._LLAMA_2 | {option: value})


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    *(('num_decoder_layers', v) for v in (10**6, -1, 'x')),
    *(('relative_attention_max_distance', v) for v in (10**9, 0, 16, 'far')),
    *(('relative_attention_num_buckets', v) for v in (0, 1, -32, 2.5)),
    *(('dropout_rate', v) for v in (-0.1, 1, '0.1')),
    ('feed_forward_proj', ['relu']),
  ],
)
def test_sizes_of_t5_are_checked(option, value):
  with pytest.raises(store.CheckpointError, match=option):
    hf_config.describe(hf_config_test._FLAN_T5_SMALL | {option: value})


@pytest.mark.parametrize('model_type', OPTIONS)
def test_no_value_of_any_option_ends_in_anything_but_a_sentence(model_type):
  junk = (None, [], {}, [[1]], {'a': []}, 'x', '', -1, 0, 0.5, 1e400, float('nan'), True, 10**30)
  base = BASES[model_type]
  for option in {*base, *OPTIONS[model_type]}:
    for value in junk:
      try:
        description = hf_config.describe(base | {option: value})
        build = configs.encoder if description['family'] == 'bert' else configs.from_description
        build(description)
      except ValueError as error:  # of any other type it would be a traceback
        assert str(error)  # noqa: PT017
