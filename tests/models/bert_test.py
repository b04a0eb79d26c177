from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades.models import bert
from cascades.tokenizers import vocabularies
from tests import testing
from tests.golden import twins

MASK = np.array([[True, True, False], [True, True, True], [False, False, False]])
STATES = np.arange(18, dtype=np.float32).reshape(3, 3, 2)


@pytest.fixture(scope='module', params=twins.ENCODERS)
def encoder(request):
  """Golden arrays, a twin's function from tokens to states, and its states of the golden tokens."""
  config, golden = twins.ENCODERS[request.param], twins.load(request.param)
  graphdef, params = testing.split(testing.build(config))
  function = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params).hidden(*inputs))
  hidden = functools.partial(function, params)
  return golden, hidden, np.asarray(hidden(golden['tokens'], golden['mask']))


def test_states_equal_the_reference_implementation(encoder):
  golden, _, states = encoder
  mask = golden['mask']
  np.testing.assert_allclose(states[mask], golden['states'][mask], atol=1e-5)


def test_tokens_of_padding_change_nothing(encoder):
  golden, hidden, states = encoder
  tokens = np.where(golden['mask'], golden['tokens'], 7)
  assert (tokens != golden['tokens']).any()
  again = np.asarray(hidden(tokens, golden['mask']))
  np.testing.assert_array_equal(again[golden['mask']], states[golden['mask']])


def test_a_token_sees_those_before_and_after_it_and_its_position(encoder):
  golden, hidden, states = encoder
  tokens = np.array(golden['tokens'])
  tokens[0, 9] = (tokens[0, 9] + 1) % twins.VOCAB
  change = np.abs(np.asarray(hidden(tokens, golden['mask'])) - states).max(-1)
  assert (change[0] > 1e-6).all()
  assert not change[1].any()
  reversed_states = np.asarray(hidden(golden['tokens'][:, ::-1], golden['mask'][:, ::-1]))[:, ::-1]
  assert np.abs(reversed_states[0] - states[0]).max() > 1e-3


def test_layer_norm_of_1_and_3_is_minus_and_plus_its_scale():
  norm = bert.LayerNorm(2, eps=0.0)
  norm.scale[...], norm.bias[...] = jnp.array([2.0, 3.0]), jnp.array([10.0, 20.0])
  np.testing.assert_allclose(norm(jnp.array([1.0, 3.0])), [8.0, 23.0])


@pytest.mark.parametrize('shape', [(5,), (2, 3, 7)])
def test_layer_norm_equals_a_loop(shape):
  random = np.random.RandomState(0)
  x = random.standard_normal(shape).astype(np.float32) + 100
  scale, bias = random.standard_normal((2, shape[-1])).astype(np.float32)
  norm = bert.LayerNorm(shape[-1], eps=0.1)
  norm.scale[...], norm.bias[...] = scale, bias
  expected = np.zeros(shape)
  for index in np.ndindex(shape[:-1]):
    row = x[index].astype(np.float64)
    center = sum(row) / len(row)
    variance = sum((value - center) ** 2 for value in row) / len(row)
    expected[index] = (row - center) / (variance + 0.1) ** 0.5 * scale + bias
  np.testing.assert_allclose(norm(x), expected, atol=2e-4)
  assert norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_pooling_is_the_mean_of_the_tokens_or_the_first_one():
  # Means of (0, 1), (2, 3) and of (6, 7), (8, 9), (10, 11), and of nothing.
  np.testing.assert_allclose(bert.mean(STATES, MASK), [[1.0, 2.0], [8.0, 9.0], [0.0, 0.0]])
  np.testing.assert_array_equal(bert.first(STATES, MASK), [[0, 1], [6, 7], [12, 13]])


def test_masked_tokens_get_no_gradient():
  gradient = jax.grad(lambda states: jnp.square(bert.mean(states, MASK)).sum())(STATES)
  np.testing.assert_array_equal(np.asarray(gradient).any(-1), MASK)


def test_vectors_have_length_one_if_they_are_normalized():
  golden = twins.load('bert')
  unit, first = (
    _with(**options).embed(golden['tokens'], golden['mask'])
    for options in ({'normalize': True}, {'pooling': 'cls'})
  )
  mean = np.asarray(bert.mean(golden['states'], golden['mask']))
  lengths = np.linalg.norm(mean, axis=-1, keepdims=True)
  assert np.abs(lengths - 1).min() > 0.1
  np.testing.assert_allclose(unit, mean / lengths, atol=1e-5)
  np.testing.assert_allclose(first, golden['states'][:, 0], atol=1e-5)


def _with(**options):
  """A twin with the same weights, which depend on names and shapes alone."""
  return testing.build(dataclasses.replace(twins.ENCODERS['bert'], **options))


VOCABULARY = vocabularies.symbols(list('abcdefghijklmnopq'))
TEXTS = ['a', 'b c d', ' '.join('abcdefghijklmnopq' * 2), '', 'd c b', 'e f g h i j k']


@pytest.fixture(scope='module')
def embed():
  return bert.embedder(testing.build(twins.ENCODERS['bert']), VOCABULARY, batch_size=4)


def test_vectors_are_in_the_order_of_the_texts(embed):
  together = embed(TEXTS)
  assert together.shape == (6, twins.WIDTH)
  assert together.dtype == np.float32
  distances = np.linalg.norm(together[:, None] - together, axis=-1)
  assert (distances + np.eye(6)).min() > 1e-3
  np.testing.assert_allclose(embed(TEXTS[::-1])[::-1], together, atol=1e-5)
  assert embed([]).shape == (0, twins.WIDTH)


def test_a_text_stands_between_the_special_tokens_and_is_cut_to_the_longest_length(embed):
  model = testing.build(twins.ENCODERS['bert'])
  vectors = embed(TEXTS)
  for i in (1, 2):
    ids = [0, *VOCABULARY.encode(TEXTS[i])[:18], 1]
    expected = model.embed(jnp.array([ids]), jnp.ones((1, len(ids)), bool))
    np.testing.assert_allclose(vectors[[i]], expected, atol=1e-5)
  longer = [f'{text} a b c' if len(text) > 20 else text for text in TEXTS]
  np.testing.assert_array_equal(embed(longer), vectors)


def test_batches_have_few_shapes():
  rows = [[5, 6, 7], [8], [9, 9, 9, 9, 9]]
  tokens, mask = bert.pad_rows(rows, 2, 20)
  assert tokens.shape == mask.shape == (4, 8)
  assert [list(row[seen]) for row, seen in zip(tokens, mask, strict=True)] == [*rows, []]
  assert (tokens[~mask] == 2).all()
  assert bert.pad_rows([[1] * 19], 0, 20)[0].shape == (1, 20)


@pytest.mark.parametrize(('count', 'most', 'sizes'), [
  (36, 64, [32, 4]), (100, 64, [64, 32, 4]), (28, 64, [28]), (22, 64, [16, 6]), (5, 50, [4, 1]),
  (100, 50, [50, 50]), (1, 64, [1]), (0, 64, []),
])  # fmt: skip
def test_batches_are_hardly_filled_up(count, most, sizes):
  rows = [[0] * (7 * i % 11 + 1) for i in range(count)]
  batches = [*bert.batches(rows, most)]
  assert [len(batch) for batch in batches] == sizes
  order = [i for batch in batches for i in batch]
  assert sorted(order) == [*range(count)]
  assert [len(rows[i]) for i in order] == sorted(map(len, rows))


def test_bfloat16_is_nearly_the_same():
  narrow, golden = _with(dtype='bfloat16'), twins.load('bert')
  states = narrow.hidden(golden['tokens'], golden['mask'])
  assert states.dtype == jnp.bfloat16
  error = np.abs(np.float32(states) - golden['states'])[golden['mask']]
  assert 0 < error.max() < 0.2
  assert narrow.embed(golden['tokens'], golden['mask']).dtype == jnp.float32


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'pooling': 'max'}, "Unknown pooling 'max'; choose one of mean, cls"),
    ({'max_length': 513}, 'max_length=513 must be from 2 to 512'),
    ({'max_length': 511, 'first_position': 2}, 'must be from 2 to 510'),
    ({'num_heads': 5}, 'emb_dim=768 is not a multiple of num_heads=5'),
    ({'dtype': 'int8'}, "Unknown dtype 'int8'"),
  ],
)
def test_a_configuration_that_cannot_be_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    bert.BertConfig(vocab_size=9, **options)


def test_what_does_not_fit_the_encoder_is_refused():
  model = testing.build(twins.ENCODERS['mpnet'])
  with pytest.raises(ValueError, match='21 tokens, but this model has 20 positions'):
    model.hidden(jnp.zeros((1, 21), int), jnp.ones((1, 21), bool))
  with pytest.raises(ValueError, match='has 259 entries and the encoder 20: use the encoder'):
    bert.embedder(model, vocabularies.bytes_vocabulary())
