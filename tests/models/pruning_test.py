import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades.models import configs, decoder, pruning, t5
from cascades.types import Batch
from tests import testing

DECODER = decoder.DecoderConfig(
  vocab_size=11, emb_dim=8, num_heads=2, num_kv_heads=1, num_layers=4, head_dim=4, mlp_dim=6,
  window_pattern=(3, None), rope_theta_pattern=(10.0, 100.0),
)  # fmt: skip
T5 = t5.T5Config(
  vocab_size=11, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=6, num_encoder_layers=3,
  num_decoder_layers=4,
)  # fmt: skip


def params_of(config):
  return jax.tree.map(jnp.asarray, testing.split(testing.build(config))[1])


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, batch):
  graph, _ = testing.split(testing.build(config))
  return nnx.merge(graph, params).hidden(batch)


def batch_of(length):
  tokens = np.arange(1, length + 1, dtype=np.int32)[None]
  return Batch(tokens, tokens, np.ones_like(tokens, np.float32))


def pruned(config, layers, mlp_dim=None):
  selected = pruning.select_layers(config, layers)
  importance = {
    stack: np.ones((getattr(config, field), config.mlp_dim))
    for stack, field in configs.STACKS[type(config)].items()
  }
  params = pruning.prune(params_of(config), selected, mlp_dim, importance)
  return pruning.pruned_config(config, selected, mlp_dim), params


@pytest.mark.parametrize(
  ('layers', 'expected'),
  [
    (functools.partial(pruning.ends, head=2), [0, 1]),
    (functools.partial(pruning.ends, head=2, tail=1), [0, 1, 5]),
    (functools.partial(pruning.every, step=2), [0, 2, 4]),
    (functools.partial(pruning.chosen, numbers=[5, 1]), [5, 1]),
  ],
)
def test_choices_of_six_layers(layers, expected):
  assert list(layers(6)) == expected


@pytest.mark.parametrize('numbers', [[], [0, 0], [4], [-1]])
def test_an_impossible_choice_of_layers_is_refused(numbers):
  choice = functools.partial(pruning.chosen, numbers=numbers)
  with pytest.raises(ValueError, match=r'num_layers is 4, and layers \[.*from 0 to 3'):
    pruning.select_layers(DECODER, choice)


@pytest.mark.parametrize('mlp_dim', [0, 7])
def test_an_mlp_without_channels_or_with_more_is_refused(mlp_dim):
  selected = pruning.select_layers(DECODER, functools.partial(pruning.ends, head=2))
  with pytest.raises(ValueError, match=f'mlp_dim={mlp_dim} must be from 1 to 6'):
    pruning.pruned_config(DECODER, selected, mlp_dim)
  for possible in (1, 6):
    assert pruning.pruned_config(DECODER, selected, possible).mlp_dim == possible


@pytest.mark.parametrize('config', [DECODER, T5], ids=['decoder', 't5'])
def test_the_parameters_are_those_of_the_smaller_configuration(config):
  smaller, params = pruned(config, functools.partial(pruning.ends, head=1, tail=1), mlp_dim=4)
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, params_of(smaller))


@pytest.mark.parametrize('config', [DECODER, T5], ids=['decoder', 't5'])
def test_keeping_everything_keeps_the_model(config):
  same, params = pruned(config, functools.partial(pruning.every, step=1), mlp_dim=6)
  assert same == config
  jax.tree.map(np.testing.assert_array_equal, params, params_of(config))


def test_remaining_layers_compute_what_they_did():
  """Removed layers add nothing; the others keep their windows and rotary frequencies."""
  params = params_of(DECODER)
  for output in (params['blocks']['attention']['out'], params['blocks']['mlp']['wo']):
    output['kernel'] = output['kernel'].at[1:3].set(0)
  selected = pruning.select_layers(DECODER, functools.partial(pruning.chosen, numbers=[0, 3]))
  smaller = pruning.pruned_config(DECODER, selected)
  assert (smaller.window_pattern, smaller.rope_theta_pattern) == ((3, None), (10.0, 100.0))
  np.testing.assert_allclose(
    hidden(smaller, pruning.prune(params, selected), batch_of(8)),
    hidden(DECODER, params, batch_of(8)),
    atol=1e-6,
  )


def test_equal_layers_have_a_pattern_of_length_1():
  selected = pruning.select_layers(DECODER, functools.partial(pruning.every, step=2))
  smaller = pruning.pruned_config(DECODER, selected)
  assert (smaller.window_pattern, smaller.rope_theta_pattern) == ((3,), (10.0,))


def wo(params):
  return {stack: params[stack]['mlp']['wo']['kernel'] for stack in params}


def test_the_importance_of_a_channel_by_hand():
  """L = 2 w_00 + 3 w_01 + w_10 x: channel 0 does (2 x 1 + 3 x 2)^2, channel 1 (5 x)^2."""
  params = {'blocks': {'mlp': {'wo': {'kernel': np.array([[[1.0, 2.0], [5.0, 7.0]]])}}}}

  def loss(params, x):
    ((first, second),) = wo(params)['blocks']
    return 2 * first[0] + 3 * first[1] + second[0] * x

  batches = [np.float32(0), np.float32(2)]
  importance = pruning.channel_importance(loss, params, batches, ['blocks'])
  np.testing.assert_allclose(importance['blocks'], [[2 * 64.0, 100.0]])


def test_importance_is_the_slope_of_the_loss_as_a_channel_fades():
  params, batch = params_of(DECODER), batch_of(8)
  loss = lambda params, batch: (hidden(DECODER, params, batch) ** 3).sum()
  importance = pruning.channel_importance(loss, params, [batch], ['blocks'])['blocks']
  kernel = wo({'blocks': params['blocks']})['blocks']

  def loss_at(strength):
    faded = kernel.at[1, 4].multiply(strength)
    blocks = {**params['blocks'], 'mlp': {**params['blocks']['mlp'], 'wo': {'kernel': faded}}}
    return float(loss({**params, 'blocks': blocks}, batch))

  slope = (loss_at(1.01) - loss_at(0.99)) / 0.02
  assert importance[1, 4] == pytest.approx(slope**2, rel=0.02)


def test_the_least_important_channels_go_and_nothing_is_lost():
  config = dataclasses.replace(T5, num_encoder_layers=2, num_decoder_layers=2)
  params = params_of(config)
  unused = np.array([[0, 3], [2, 5]])  # channels, by layer
  for stack in ('encoder', 'decoder'):
    output = params[stack]['mlp']['wo']
    output['kernel'] = output['kernel'].at[np.arange(2)[:, None], unused].set(0)
  selected = pruning.select_layers(config, functools.partial(pruning.ends, head=2))
  narrow = pruning.pruned_config(config, selected, 4)
  batch = batch_of(6)._replace(encoder=batch_of(6).inputs)
  loss = lambda params, batch: (hidden(config, params, batch) ** 3).sum()
  importance = pruning.channel_importance(loss, params, [batch], selected)
  np.testing.assert_allclose(
    hidden(narrow, pruning.prune(params, selected, 4, importance), batch),
    hidden(config, params, batch),
    atol=1e-6,
  )


def test_negative_numbers_of_layers_are_refused():
  for head, tail in ((-1, 0), (2, -1)):
    with pytest.raises(ValueError, match='must be a whole number at least 0'):
      pruning.ends(6, head=head, tail=tail)
  with pytest.raises(ValueError, match=r'pruning\.every\.step=0 must be'):
    pruning.every(6, step=0)
