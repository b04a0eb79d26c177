from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from cascades.models import layers
from tests import testing

KEY = jax.random.key(0)
RULES = (('batch', ('data', 'fsdp')), ('activation_mlp', 'tensor'), ('activation_heads', 'tensor'))


def _random(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _spec(shape: tuple[int, ...], names: tuple[str, ...], rules: tuple = RULES) -> PartitionSpec:
  """The layout that `constrain` gives under a mesh of 2 x 2 x 2."""
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
    out = jax.jit(lambda x: layers.constrain(x, *names))(jnp.zeros(shape))
  # Trailing None may be left out.
  return PartitionSpec(*out.sharding.spec, *[None] * (len(shape) - len(out.sharding.spec)))


def test_activations_are_laid_out_by_the_rules():
  names = ('batch', 'length', 'activation_mlp')
  assert _spec((4, 3, 6), names) == PartitionSpec(('data', 'fsdp'), None, 'tensor')


def test_a_mesh_axis_that_does_not_divide_is_not_used():
  assert _spec((6, 2), ('batch', 'activation_mlp')) == PartitionSpec(None, 'tensor')
  assert _spec((4, 5), ('batch', 'activation_mlp')) == PartitionSpec(('data', 'fsdp'), None)


def test_a_mesh_axis_splits_only_one_dimension():
  names = ('activation_heads', 'activation_mlp')
  assert _spec((2, 2), names) == PartitionSpec('tensor', None)


def test_the_first_rule_that_fits_wins():
  rules = (('batch', ('data', 'fsdp', 'tensor')), ('batch', 'fsdp'), ('batch', 'data'))
  assert _spec((2,), ('batch',), rules) == PartitionSpec('fsdp')


def test_without_rules_or_mesh_nothing_is_constrained():
  x = jnp.zeros((2, 3))
  assert layers.constrain(x, 'batch', 'length') is x
  with nnx.logical_axis_rules(RULES):
    assert layers.constrain(x, 'batch', 'length') is x


def test_dropout_without_key_or_rate_changes_nothing():
  x = _random(2, 3, 4)
  assert layers.dropout(x, 0.5, None) is x
  assert layers.dropout(x, 0.0, KEY) is x


def test_dropout_zeroes_a_feature_at_every_position_and_scales_the_others():
  x = jnp.ones((5, 7, 40))
  y = np.asarray(layers.dropout(x, 0.25, KEY))
  assert (y == y[:, :1]).all()
  np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.75], rtol=1e-6)
  assert 0.6 < (y > 0).mean() < 0.9


def test_dropout_keeps_the_expectation():
  drop = jax.jit(jax.vmap(lambda key: layers.dropout(jnp.full((1, 3), 2.0), 0.3, key)))
  y = drop(jax.random.split(KEY, 4000))
  # Standard error 2 sqrt(0.3 / 0.7 / 4000) = 0.02.
  np.testing.assert_allclose(y.mean(0), 2.0, atol=0.09)


def test_softcap_by_hand():
  np.testing.assert_allclose(layers.softcap(np.float32([0, 2]), 2.0), [0, 2 * np.tanh(1.0)], 1e-6)
  x = _random(50) * 100
  assert (jnp.abs(layers.softcap(x, 3.0)) <= 3.0).all()
  assert layers.softcap(x, None) is x
  slope = jax.jit(jax.vmap(jax.grad(lambda x: layers.softcap(x, 3.0))))(x)
  np.testing.assert_allclose(slope, 1 - np.tanh(x / 3.0) ** 2, atol=1e-5)


def test_rms_norm_by_hand():
  norm = layers.RMSNorm(2, eps=0.0)
  np.testing.assert_allclose(norm(jnp.asarray([3.0, 4.0])), np.array([3, 4]) / 12.5**0.5, rtol=1e-6)


@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_rms_norm_against_its_oracle(offset):
  norm = layers.RMSNorm(6, eps=1e-3, offset=offset)
  np.testing.assert_allclose(offset + norm.scale[...], 1.0)
  scale = _random(6, seed=1)
  norm.scale[...] = jnp.asarray(scale)
  x = _random(2, 3, 6)
  expected = np.empty(x.shape)
  for row, column in np.ndindex(2, 3):
    v = np.float64(x[row, column])
    expected[row, column] = v / np.sqrt(np.mean(v**2) + 1e-3) * (offset + np.asarray(scale))
  np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
  check_grads(jax.jit(norm), (x,), 1, modes='rev', rtol=1e-2)


def test_rms_norm_does_not_see_the_scale_of_its_input():
  norm, x = layers.RMSNorm(8, eps=0.0), _random(3, 8)
  np.testing.assert_allclose(norm(x), norm(1000 * x), rtol=1e-5)
  assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_token_outside_the_vocabulary_embeds_as_nan():
  x = layers.embed(_random(4, 3), jnp.asarray([[0, 3, 4]]), 'float32')
  assert jnp.isfinite(x[0, :2]).all()
  assert jnp.isnan(x[0, 2]).all()


@pytest.mark.parametrize('shape', [(3,), (4, 3), (2, 4, 3)])
def test_logits_are_float32_inner_products(shape):
  table, hidden = _random(5, 3), _random(*shape, seed=1)
  logits = layers.unembed(table, jnp.asarray(hidden, jnp.bfloat16))
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(layers.unembed(table, hidden), hidden @ table.T, rtol=1e-5, atol=1e-6)


def test_a_projection_is_an_einsum_over_its_named_axes():
  into = layers.Projection(KEY, {'embed': 5}, {'heads': 2, 'head_dim': 3}, bias=True)
  back = layers.Projection(KEY, {'heads': 2, 'head_dim': 3}, {'embed': 5})
  into.bias[...] = jnp.asarray(_random(2, 3, seed=1))
  x = _random(4, 6, 5, seed=2)
  expected = jnp.einsum('BTD,DNH->BTNH', x, into.kernel[...]) + into.bias[...]
  np.testing.assert_allclose(into(x), expected, atol=1e-6)
  expected = jnp.einsum('BTNH,NHD->BTD', into(x), back.kernel[...])
  np.testing.assert_allclose(back(into(x)), expected, atol=1e-6)
  assert back.bias is None
  assert into.kernel.get_metadata('out_sharding') == ('embed', 'heads', 'head_dim')
  assert into.bias.get_metadata('out_sharding') == ('heads', 'head_dim')


def test_a_projection_keeps_the_variance_unless_told_otherwise():
  y = layers.Projection(KEY, {'embed': 400}, {'mlp': 300})(_random(1, 50, 400))
  narrow = layers.Projection(KEY, {'embed': 400}, {'mlp': 300}, stddev=0.01)
  np.testing.assert_allclose(y.std(), 1.0, atol=0.05)
  np.testing.assert_allclose(narrow.kernel[...].std(), 0.01, rtol=0.02)


@pytest.mark.parametrize('activations', [('relu',), ('gelu', 'linear'), ('silu', 'linear')])
def test_mlp_against_its_oracle(activations):
  def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

  by_hand = {
    'relu': lambda x: np.maximum(x, 0),
    'gelu': gelu,
    'silu': lambda x: x / (1 + np.exp(-x)),
    'linear': lambda x: x,
  }
  mlp = layers.MLP(KEY, 4, 6, activations)
  x = _random(2, 3, 4)
  inner = np.ones((2, 3, 6))
  for i, name in enumerate(activations):
    inner *= by_hand[name](np.asarray(x @ getattr(mlp, f'wi_{i}').kernel[...], np.float64))
  np.testing.assert_allclose(mlp(x), inner @ np.asarray(mlp.wo.kernel[...]), atol=1e-5)


class _Affine(nnx.Module):
  def __init__(self, key: jax.Array):
    self.weight = layers.normal_parameter(key, (3, 3), 'embed', 'mlp', stddev=1.0)

  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ self.weight[...])


@functools.cache
def _stacked() -> _Affine:
  return layers.stack_layers(_Affine, KEY, 4)


def test_stacked_layers_differ_and_are_named_by_layer():
  weight = _stacked().weight
  assert weight.shape == (4, 3, 3)
  assert weight.get_metadata('out_sharding') == ('layers', 'embed', 'mlp')
  assert len({float(w[0, 0]) for w in weight[...]}) == 4


def test_scanning_layers_is_a_loop():
  def step(layer, x, scanned, key):
    return layer(x) + scanned + jax.random.normal(key, ()), x

  x, shifts = _random(2, 3), jnp.arange(4.0)
  scan = jax.jit(lambda x, shifts: layers.scan_layers(_stacked(), step, x, shifts, key=KEY))
  last, inputs = scan(x, shifts)
  for i in range(4):
    np.testing.assert_allclose(inputs[i], x, atol=1e-6)
    noise = jax.random.normal(jax.random.fold_in(KEY, i), ())
    x = jnp.tanh(x @ _stacked().weight[...][i]) + i + noise
  np.testing.assert_allclose(last, x, atol=1e-6)


@pytest.mark.parametrize('policy', sorted(layers.REMAT_POLICIES))
def test_recomputing_changes_neither_values_nor_gradients(policy):
  def loss(x, policy):
    step = lambda layer, x, *_: (layer(x), None)
    return layers.scan_layers(_stacked(), step, x, None, remat_policy=policy)[0].sum()

  x = _random(2, 3)
  expected, got = (
    jax.jit(jax.value_and_grad(loss), static_argnums=1)(x, p) for p in ('none', policy)
  )
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), got, expected)


def test_policies_trade_memory_for_products_computed_again():
  def products_and_memory(policy):
    step = lambda layer, x, *_: (jnp.sin(layer(x)), None)
    loss = lambda x: layers.scan_layers(_stacked(), step, x, None, remat_policy=policy)[0].sum()
    x = _random(2, 3)
    saved = jax.eval_shape(lambda x: jax.vjp(loss, x)[1], x)
    products = str(jax.make_jaxpr(jax.grad(loss))(x)).count('dot_general')
    return products, sum(leaf.size for leaf in jax.tree.leaves(saved))

  (none, most), (elementwise, less), (full, _) = map(
    products_and_memory, ('none', 'elementwise', 'full')
  )
  assert none == elementwise < full
  assert less < most


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'mlp_activations': ('swish', 'linear')},
      "Unknown mlp_activations 'swish'; choose one of relu",
    ),
    ({'dtype': 'float16'}, "Unknown dtype 'float16'; choose one of float32, bfloat16"),
    ({'remat_policy': 'all'}, "Unknown remat_policy 'all'; choose one of none, elementwise"),
  ],
)
def test_unknown_options_are_named_with_the_known_ones(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(testing.TINY_T5, **change)


def test_lists_in_a_configuration_become_tuples():
  config = dataclasses.replace(testing.TINY_T5, mlp_activations=['gelu', 'linear'])
  assert config == testing.TINY_T5
  assert hash(config) == hash(testing.TINY_T5)
