"""LITE: its equations by loops, its size, what it sees, and what it can represent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cascades import ranking
from cascades.models import lite
from cascades.models.lite import LiteConfig

SIZES = LiteConfig(query_tokens=3, document_tokens=5, query_mlp=4, document_mlp=6)


def _random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _scorer(form='lite', config=SIZES, *, seed=0):
  """A scorer whose biases and norms are not those of the start."""
  graph, params = nnx.split(lite.FORMS[form](config, jax.random.key(seed)))
  random = np.random.default_rng(seed)
  noisy = lambda leaf: leaf + 0.3 * random.standard_normal(leaf.shape).astype(np.float32)
  return nnx.merge(graph, jax.tree.map(noisy, params))


def _layer_by_loops(layer, x):
  kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
  y = np.array([max(float(x @ kernel[:, j] + bias[j]), 0) for j in range(len(bias))])
  y = (y - y.mean()) / np.sqrt(y.var() + layer.norm.eps)
  return y * np.asarray(layer.norm.scale[...]) + np.asarray(layer.norm.bias[...])


def _mlp_by_loops(mlp, x):
  return _layer_by_loops(mlp.down, _layer_by_loops(mlp.up, x))


def test_the_separable_score_equals_a_loop_over_rows_and_then_columns():
  scorer, similarities = _scorer(), _random(2, 3, 5)
  expected = []
  for own in similarities:
    rows = np.array([_mlp_by_loops(scorer.rows, row) for row in own])
    columns = np.array([_mlp_by_loops(scorer.columns, column) for column in rows.T]).T
    expected.append((columns * np.asarray(scorer.output[...])).sum())
  actual = scorer(similarities)
  assert actual.shape == (2,)
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_the_flattened_score_equals_one_layer_over_all_similarities():
  scorer, similarities = _scorer('flattened_lite'), _random(2, 3, 5)
  expected = [
    _layer_by_loops(scorer.hidden, own.reshape(-1)) @ np.asarray(scorer.output[...])
    for own in similarities
  ]
  np.testing.assert_allclose(scorer(similarities), expected, rtol=1e-4)


def test_any_number_of_batch_axes():
  scorer, similarities = _scorer(), _random(2, 4, 3, 5)
  np.testing.assert_allclose(scorer(similarities)[1], scorer(similarities[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('config', [SIZES, LiteConfig(query_tokens=7, document_tokens=2)])
def test_the_number_of_parameters_is_that_of_the_formula(config):
  scorer = lite.Separable(config, jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(scorer)))
  assert count == lite.separable_parameters(config)


def test_the_sizes_of_the_paper_have_996570_parameters():
  assert lite.separable_parameters(LiteConfig()) == 990_590 + 5_980
  abstract = jax.eval_shape(lambda: nnx.state(lite.Separable(LiteConfig(), jax.random.key(0))))
  assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == 996_570


def test_steps_commute_with_permutations_and_the_score_does_not():
  scorer, similarities, random = _scorer(), _random(3, 5), np.random.default_rng(3)
  rows, columns = np.roll(np.arange(3), 1), random.permutation(5)
  np.testing.assert_allclose(
    scorer.rows(similarities[rows]), scorer.rows(similarities)[rows], atol=1e-5
  )
  step = lambda s: scorer.columns(jnp.swapaxes(s, -1, -2))
  np.testing.assert_allclose(step(similarities[:, columns]), step(similarities)[columns], atol=1e-5)
  for permuted in (similarities[rows], similarities[:, columns]):
    assert abs(scorer(permuted) - scorer(similarities)) > 1e-3


@pytest.mark.parametrize('form', lite.FORMS)
def test_gradients_reach_every_parameter_and_the_similarities(form):
  graph, params = nnx.split(_scorer(form))
  score = lambda params, s: jnp.sin(nnx.merge(graph, params)(s)).sum()
  own, through = jax.jit(jax.grad(score, argnums=(0, 1)))(params, jnp.asarray(_random(8, 3, 5)))
  assert all(np.abs(leaf).max() > 1e-7 for leaf in jax.tree.leaves(own))
  assert np.abs(through).max(axis=(1, 2)).all()


def test_without_biases_and_epsilon_the_row_step_does_not_see_scale():
  config = LiteConfig(3, 5, 4, 6, norm_eps=0.0)
  scorer, similarities = lite.Separable(config, jax.random.key(0)), _random(3, 5)
  scale = np.array([[0.1], [1.0], [30.0]], np.float32)
  np.testing.assert_allclose(
    scorer.rows(scale * similarities), scorer.rows(similarities), rtol=1e-3, atol=1e-4
  )


def test_a_second_layer_of_zeros_gives_zeros():
  mlp = lite.TokenMLP(5, 6, jax.random.key(0), eps=1e-5)
  mlp.down.kernel[...] *= 0
  assert not mlp(_random(3, 5)).any()


def test_rows_of_padding_have_a_finite_gradient():
  graph, params = nnx.split(lite.Separable(SIZES, jax.random.key(0)))
  padded = _random(3, 5)
  padded[2:], padded[:, 3:] = 0, 0
  score = lambda params, s: nnx.merge(graph, params)(s)
  gradient = jax.jit(jax.grad(score, argnums=(0, 1)))(params, padded)
  assert all(np.abs(leaf).max() < 1e3 for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_lite_fits_max_sim():
  """R^2 on pairs that it was not trained on, with similarities drawn at random."""
  similarities = jnp.asarray(_random(8192, 3, 4))
  ones = jnp.ones(3, bool), jnp.ones(4, bool)
  targets = ranking.max_sim(similarities, *ones)
  graph, params = nnx.split(lite.Separable(LiteConfig(3, 4, 128, 128), jax.random.key(0)))
  steps, test = 6000, slice(7000, None)
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
  loss = lambda params, x, y: jnp.square(nnx.merge(graph, params)(x) - y).mean()

  @jax.jit
  def train(params):
    def step(carry, key):
      params, state = carry
      rows = jax.random.randint(key, (256,), 0, test.start)
      gradient = jax.grad(loss)(params, similarities[rows], targets[rows])
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(7), steps)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

  error = loss(train(params), similarities[test], targets[test])
  assert 1 - error / targets[test].var() > 0.95


def _set(layer, kernel, bias):
  layer.kernel[...], layer.bias[...] = jnp.array(kernel, float), jnp.array(bias, float)


def test_lite_represents_equality_of_more_items_than_dimensions():
  """A dot product of d dimensions has a score matrix of rank d at most, and equality of P has P.

  With two equal tokens on each side, a norm of (a, 0) is (1, -1) for a > 0, and 0 for 0.
  """
  items, width, threshold = 12, 3, 0.995
  vectors = _random(items, 1, width)
  vectors = np.repeat(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), 2, axis=1)
  similarities = ranking.similarity(vectors[:, None], vectors[None])
  assert np.linalg.matrix_rank(similarities[..., 0, 0]) == width
  assert np.sort(similarities[..., 0, 0], axis=1)[:, -2].max() < threshold - 1e-3
  scorer = lite.Separable(LiteConfig(2, 2, 2, 2, norm_eps=1e-12), jax.random.key(0))
  first = [[1, 0], [0, 0]]
  _set(scorer.rows.up, first, [-threshold, 0])
  for layer in (scorer.rows.down, scorer.columns.up, scorer.columns.down):
    _set(layer, first, [0, 0])
  scorer.output[...] = jnp.array([[1.0, 0.0], [0.0, 0.0]])
  np.testing.assert_allclose(scorer(similarities), np.eye(items), atol=1e-3)
