"""Rotary positions given in one place, in two, and in the wrong one."""

from __future__ import annotations

import re

import pytest

from cascades.checkpoints import store
from cascades.interop import hf_config

QWEN = {
  **{'model_type': 'qwen3', 'vocab_size': 128, 'hidden_size': 32, 'intermediate_size': 64},
  **{'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 8},
}
LLAMA = QWEN | {'model_type': 'llama'}
GEMMA = QWEN | {'model_type': 'gemma3_text', 'sliding_window_pattern': 2, 'hidden_size': 36}
SAVED = {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6}}  # by transformers 5
LINEAR = {'rope_type': 'linear', 'factor': 4.0}
YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 64}
LLAMA3 = {
  **{'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0},
  'original_max_position_embeddings': 64,
}


def _ropes(config):
  model = hf_config.describe(config)
  return model['rope_theta_pattern'], model['rope_factor_pattern'], model['rope_llama3']


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({'rope_scaling': LINEAR}, ((1e4,), (4.0,), None)),
    ({'rope_scaling': LINEAR, 'rope_theta': 5e5}, ((5e5,), (4.0,), None)),
    ({'rope_scaling': {'type': 'linear', 'factor': 2}}, ((1e4,), (2.0,), None)),
    ({'rope_scaling': LLAMA3}, ((1e4,), (1.0,), (8.0, 1.0, 4.0, 64))),
    ({'rope_parameters': LINEAR | {'rope_theta': 1e6}}, ((1e6,), (4.0,), None)),
    (SAVED, ((1e6,), (1.0,), None)),
    # The base inside counts, as in transformers 5.
    (SAVED | {'rope_theta': 5e5}, ((1e6,), (1.0,), None)),
    (SAVED | {'rope_scaling': None}, ((1e6,), (1.0,), None)),
    (SAVED | {'rope_scaling': {}}, ((1e6,), (1.0,), None)),
    # Twice the same is no contradiction.
    (
      {'rope_parameters': LINEAR | {'rope_theta': 1e6}, 'rope_scaling': LINEAR, 'rope_theta': 1e6},
      ((1e6,), (4.0,), None),
    ),
  ],
)
@pytest.mark.parametrize('base', [QWEN, LLAMA])
def test_rotary_positions_are_those_of_transformers_5(base, options, expected):
  assert _ropes(base | options) == expected


@pytest.mark.parametrize('scaling', [LINEAR, LLAMA3, YARN])
def test_a_scaling_beside_other_parameters_is_never_dropped(scaling):
  with pytest.raises(store.CheckpointError) as caught:
    hf_config.describe(QWEN | SAVED | {'rope_scaling': scaling})
  if scaling is not YARN:  # which is refused by its name
    assert 'rope_scaling=' in str(caught.value)
    assert 'rope_parameters=' in str(caught.value)


def test_two_bases_that_differ_are_refused():
  # transformers 5 would compute with 10,000.
  config = LLAMA | {'rope_scaling': LLAMA3, 'rope_parameters': LLAMA3 | {'rope_theta': 5e5}}
  with pytest.raises(store.CheckpointError, match='twice, and they differ'):
    hf_config.describe(config)


def test_the_scaling_of_gemma_3_is_of_its_layers_without_window():
  bases = {'rope_theta': 7.0, 'rope_local_base_freq': 3.0}
  assert _ropes(GEMMA | bases | {'rope_scaling': LINEAR}) == ((3.0, 7.0), (1.0, 4.0), None)
  nested = {'full_attention': LINEAR | {'rope_theta': 7.0}, 'sliding_attention': {'rope_theta': 3}}
  assert _ropes(GEMMA | {'rope_parameters': nested}) == ((3.0, 7.0), (1.0, 4.0), None)
  assert _ropes(GEMMA) == ((1e4, 1e6), (1.0,), None)
  with pytest.raises(store.CheckpointError, match='they differ'):
    hf_config.describe(GEMMA | {'rope_parameters': nested, 'rope_scaling': {'factor': 8.0}})


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    (QWEN | {'rope_parameters': YARN}, "rope_type='yarn'"),
    (QWEN | {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, "rope_type='dynamic'"),
    (QWEN | {'rope_scaling': {'rope_type': None, 'factor': 2.0}}, 'rope_type=None'),
    (QWEN | {'rope_scaling': LINEAR | {'type': 'yarn'}}, "type='yarn'"),
    (QWEN | {'rope_scaling': {'factor': 4.0}}, "factor=4.0 beside rope_type='default'"),
    (QWEN | {'rope_scaling': LINEAR | {'attention_factor': 1.2}}, 'attention_factor=1.2 beside'),
    (QWEN | {'rope_scaling': {'rope_type': 'linear'}}, "lacks 'factor'"),
    (QWEN | {'rope_scaling': {'rope_type': 'linear', 'factor': '4'}}, "factor='4'"),
    (QWEN | {'rope_scaling': {'rope_type': 'linear', 'factor': 0}}, 'factor=0'),
    (QWEN | {'rope_scaling': [4.0]}, 'rope_scaling=[4.0]'),
    (QWEN | {'rope_scaling': 'linear'}, "rope_scaling='linear'"),
    (QWEN | {'rope_theta': None}, 'rope_theta=None'),
    (QWEN | {'rope_theta': float('nan')}, 'rope_theta=nan'),
    (QWEN | {'rope_scaling': LLAMA3 | {'high_freq_factor': 1.0}}, 'high_freq_factor=1.0'),
    (LLAMA | {'rope_scaling': LLAMA3, 'original_max_position_embeddings': 32}, '=32'),
    (LLAMA | {'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    (LLAMA | {'rope_scaling': LINEAR | {'partial_rotary_factor': 0.5}}, 'partial_rotary_factor'),
    # Only Gemma 3 has one of each; transformers would drop the others.
    (QWEN | {'rope_parameters': {'full_attention': LINEAR}}, 'rope_parameters of full_attention'),
    (GEMMA | {'rope_parameters': LINEAR}, 'one for sliding_attention and full_attention each'),
    (GEMMA | {'rope_parameters': {'full_attention': [1]}}, 'rope_parameters='),
    (GEMMA | {'rope_scaling': LLAMA3}, "rope_type='llama3'"),
    (GEMMA | {'rope_scaling': {'type': 'linear', 'factor': 8.0}}, "type='linear'"),
  ],
)
def test_what_is_not_computed_is_refused_by_name(config, words):
  with pytest.raises(store.CheckpointError, match=re.escape(words)):
    hf_config.describe(config)
