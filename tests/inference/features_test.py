"""Embeddings of a model are its hidden states; see infer_test for what is written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades import infer as inference
from cascades.inference import features
from cascades.inference.trained_model import TrainedModel
from cascades.models import attention, decoder, layers, positions
from cascades.runtime import partitioning
from tests import testing, tiny


def loaded(config):
  graph, params = testing.split(testing.build(config))
  return TrainedModel(graph, params, config.vocab_size, tiny.VOCABULARY, config.architecture, {})


def embed(config, name, batch):
  with partitioning.use(tiny.one_device()):
    return features.StateEmbedder(loaded(config), name).embed(batch)


@functools.partial(jax.jit, static_argnums=0)
def states(graph, params, batch):
  return nnx.merge(graph, params).hidden(batch)


def first_layer(stack):
  graph, state = nnx.split(stack)
  return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], state))


@pytest.mark.parametrize('name', ['t5', 'everything'])
def test_the_embedding_of_an_answer_is_the_mean_state_of_its_tokens(name):
  config = testing.CONFIGS[name]
  batch = testing.batch(config)
  weights = np.array(batch.weights)
  weights[0, -2:] = 0  # a shorter answer
  batch = batch._replace(weights=jnp.asarray(weights))
  hidden = np.asarray(states(*testing.split(testing.build(config)), batch))
  expected = [
    np.mean([state for state, weight in zip(row, of, strict=True) if weight], axis=0)
    for row, of in zip(hidden, weights, strict=True)
  ]
  np.testing.assert_allclose(embed(config, 'answer', batch), expected, atol=1e-5)


def test_the_first_layer_of_t5_is_its_first_block_at_the_start_token():
  config, batch = testing.TINY_T5, testing.batch(testing.TINY_T5)
  model = testing.build(config)
  encoded = model._encode(batch.encoder, jnp.ones_like(batch.encoder), None)
  block = first_layer(model.decoder)
  mask = attention.causal(attention.self_attention_mask(jnp.zeros((1, 1), int), None))
  bias = positions.bias(model.decoder_bias, mask.relative_positions)
  x = layers.embed(model.embedding[...], jnp.zeros((3, 1), jnp.int32), config.dtype)
  x, _ = block.attend_self(x, mask, bias)
  x = block.attend_cross(x, block.cross_attention.key_value(encoded), jnp.ones((1, 1, 1), bool))
  np.testing.assert_allclose(
    embed(config, 'first_layer', batch), block.feed_forward(x)[:, 0], atol=1e-5
  )


def test_the_first_layer_of_a_decoder_is_its_first_block_at_the_last_prompt_token():
  config = testing.TINY_EVERYTHING
  batch = testing.batch(config, source=7)
  model = testing.build(config)
  block = first_layer(model.blocks)
  mask = attention.causal(attention.self_attention_mask(jnp.arange(7)[None], None))
  if window := config.window_pattern[0]:
    mask = mask._replace(visible=mask.visible & (mask.relative_positions > -window))
  x = layers.embed(model.embedding[...], batch.inputs[:, :7], config.dtype) * config.embedding_scale
  x, _ = block(x, mask, jnp.asarray(decoder.frequencies(config)[0], jnp.float32), None)
  np.testing.assert_allclose(embed(config, 'first_layer', batch), x[:, -1], atol=1e-5)


@pytest.mark.parametrize('name', ['t5', 'everything'])
def test_the_first_layer_does_not_depend_on_the_answer(name):
  config = testing.CONFIGS[name]
  first, second = testing.batch(config, seed=0), testing.batch(config, seed=0)
  changed = second.inputs.at[:, -2:].set(5)  # tokens of the answer
  np.testing.assert_allclose(
    embed(config, 'first_layer', first),
    embed(config, 'first_layer', second._replace(inputs=changed)),
    atol=1e-6,
  )


def test_unknown_embeddings_are_refused():
  with pytest.raises(ValueError, match="EMBEDDINGS names 'prompt'; expected answer, first_layer"):
    inference.Output('out', embeddings=['prompt'])
