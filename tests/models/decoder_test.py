from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from cascades.models import configs, decoder
from cascades.types import Batch
from tests import testing
from tests.golden import twins

NAMES = [
  name for name, config in twins.CONFIGS.items() if isinstance(config, decoder.DecoderConfig)
]


def _logits(config: decoder.DecoderConfig, name: str) -> jax.Array:
  batch = Batch(twins.load(name)['inputs'], None, None)
  return testing.logits(*testing.split(testing.build(config)), batch)


@pytest.mark.parametrize('name', NAMES)
def test_logits_equal_the_reference_implementation(name):
  got = _logits(twins.CONFIGS[name], name)
  np.testing.assert_allclose(got, twins.load(name)['logits'], atol=1e-5)


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('llama', {'rope_llama3': None}),
    ('gemma2', {'window_pattern': (5, None)}),
    ('gemma2', {'attention_softcap': None}),
    ('gemma3', {'rope_factor_pattern': (1.0,)}),
  ],
)
def test_the_golden_logits_notice_another_configuration(name, change):
  config = dataclasses.replace(twins.CONFIGS[name], **change)
  assert np.abs(_logits(config, name) - twins.load(name)['logits']).max() > 1e-3


def test_patterns_repeat_over_the_layers():
  config = dataclasses.replace(
    testing.TINY_DECODER,
    num_layers=5,
    rope_theta_pattern=(10.0, 10.0, 1000.0),
    rope_factor_pattern=(1.0, 2.0),
  )
  got = decoder.frequencies(config)
  assert got.shape == (5, 3)
  second = [theta ** (-1 / 3) for theta in (10, 10, 1000, 10, 10)]
  np.testing.assert_allclose(got[:, 1], np.divide(second, [1, 2, 1, 2, 1]))


def test_logits_stay_below_their_cap():
  model = testing.build(testing.TINY_EVERYTHING)
  hidden = 100 * np.random.RandomState(0).standard_normal((7, 16)).astype(np.float32)
  assert 2.9 < np.abs(model.readout(hidden)).max() <= 3.0


def test_a_batch_of_the_wrong_kind_is_refused_in_a_sentence():
  model = testing.build(testing.TINY_DECODER)
  with pytest.raises(ValueError, match='carries its prompt in `inputs`'):
    model.hidden(testing.batch(testing.TINY_T5))


def test_heads_that_do_not_share_evenly_are_refused():
  with pytest.raises(ValueError, match='num_heads=4 is not a multiple of num_kv_heads=3'):
    dataclasses.replace(testing.TINY_DECODER, num_kv_heads=3)


def _published(
  vocab: int, width: int, layers: int, heads: int, kv_heads: int, size: int, mlp: int
) -> decoder.DecoderConfig:
  return decoder.DecoderConfig(vocab, width, heads, kv_heads, layers, size, mlp)


@pytest.mark.parametrize(
  ('config', 'parameters'),
  [
    (_published(49152, 576, 30, 9, 3, 64, 1536), 134_515_008),
    (_published(128256, 2048, 16, 32, 8, 64, 8192), 1_235_814_400),
    (
      dataclasses.replace(_published(151936, 896, 24, 14, 2, 64, 4864), qkv_bias=True),
      494_032_768,
    ),
    (
      dataclasses.replace(_published(151936, 1024, 28, 16, 8, 128, 3072), qk_norm=True),
      596_049_920,
    ),
    (_published(256000, 2048, 18, 8, 1, 256, 16384), 2_506_172_416),
    (
      dataclasses.replace(_published(256000, 2304, 26, 8, 4, 256, 9216), post_norms=True),
      2_614_341_888,
    ),
    (
      dataclasses.replace(
        _published(262144, 1152, 26, 4, 1, 256, 6912), post_norms=True, qk_norm=True
      ),
      999_885_952,
    ),
  ],
  ids=['smollm2', 'llama-3.2-1b', 'qwen2.5', 'qwen3', 'gemma-2b', 'gemma-2-2b', 'gemma-3-1b'],
)
def test_published_models_have_their_size(config, parameters):
  assert configs.count_parameters(config) == parameters
