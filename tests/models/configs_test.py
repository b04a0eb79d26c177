from __future__ import annotations

import json

import jax
import pytest
from flax import nnx

from cascades.models import configs, t5
from tests import testing
from tests.golden import twins

CONFIGS = dict(testing.CONFIGS) | twins.CONFIGS


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_a_description_survives_json(config):
  description = json.loads(json.dumps(configs.describe(config)))
  assert configs.from_description(description) == config
  hash(configs.from_description(description))


def test_what_has_a_default_may_be_left_out():
  assert configs.from_description({'family': 't5', 'vocab_size': 9}) == t5.T5Config(vocab_size=9)


@pytest.mark.parametrize(
  ('description', 'message'),
  [
    ({'vocab_size': 9}, 'Unknown model family None; this version knows decoder, t5'),
    ({'family': 'bert'}, "Unknown model family 'bert'"),
    ({'family': 't5', 'vocab_size': 9, 'width': 3}, 't5 model has unknown fields width;'),
    ({'family': 'decoder', 'vocab_size': 9}, 'decoder model lacks the fields emb_dim, head_dim'),
    ({'family': 't5', 'vocab_size': 9, 'dtype': 'int8'}, "Unknown dtype 'int8'; choose one of"),
  ],
)
def test_a_wrong_description_is_refused_in_a_sentence(description, message):
  with pytest.raises(ValueError, match=message):
    configs.from_description(description)


def test_only_our_configurations_are_described():
  with pytest.raises(ValueError, match='dict is not a model configuration'):
    configs.describe({})


def test_counting_parameters_makes_none_and_misses_none():
  config = testing.TINY_T5
  _, params = testing.split(testing.build(config))
  assert configs.count_parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(params))
  # 2 tables of 24 x 16, 2 bias tables of 8 x 2, norms, 6 attentions of 4 x 16 x 12, 4 MLPs.
  by_hand = 2 * 24 * 16 + 2 * 8 * 2 + (2 * 2 + 2 * 3 + 2) * 16 + 6 * 4 * 16 * 12 + 4 * 3 * 16 * 20
  assert configs.count_parameters(config) == by_hand


def test_parameters_are_a_plain_dict_of_names():
  _, params = testing.split(testing.build(testing.TINY_DECODER))
  paths = nnx.traversals.flatten_mapping(params, sep='/')
  assert 'blocks/mlp/wi_0/kernel' in paths
  assert all(isinstance(name, str) for path in paths for name in path)


def test_linear_maps_are_the_projections_with_their_inputs():
  inputs = {'/'.join(path): axes for path, axes in configs.linear_maps(testing.TINY_T5).items()}
  _, params = testing.split(testing.build(testing.TINY_T5))
  paths = nnx.traversals.flatten_mapping(params, sep='/')
  assert set(inputs) == {path for path in paths if path.endswith('kernel')}
  assert inputs['encoder/self_attention/query/kernel'] == (-3,)
  assert inputs['encoder/self_attention/out/kernel'] == (-3, -2)
  assert inputs['encoder/mlp/wo/kernel'] == (-2,)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    *(('num_layers', v, 'a whole number from 1 to 1000') for v in (10**6, 0, -1, 2.0, '2', True)),
    *(('vocab_size', v, 'a whole number from 1 to') for v in (2**31, 0, None, [9])),
    *(('norm_eps', v, 'a finite number') for v in ('small', float('nan'), None, True)),
    ('relative_attention_max_distance', 10**9, 'from 1 to 65536'),
    ('qk_norm', 'false', 'of type bool'),
    ('window_pattern', 7, 'a list'),
    ('dtype', 3, 'of type str'),
  ],
)
def test_values_of_a_description_are_checked_before_they_are_used(field, value, message):
  description = configs.describe(CONFIGS['llama']) | {field: value}
  with pytest.raises(ValueError, match=f'{field}=.* of a decoder model must be .*{message}'):
    configs.from_description(description)


def test_an_embedding_table_follows_the_vocabulary_unless_its_size_is_given():
  def size(given, vocabulary):
    return configs.with_vocabulary(t5.T5Config(vocab_size=given), vocabulary).vocab_size

  assert [size(0, 259), size(0, 384), size(0, 385), size(100, 259)] == [384, 384, 512, 100]
