"""Int8 weights, and models of them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from cascades.checkpoints import store
from cascades.models import decoder, layers, quantization
from cascades.models.abstract import DTYPES, abstract_model
from cascades.runtime import partitioning
from tests import testing

ONE = functools.cache(lambda: partitioning.make_mesh(devices=jax.devices()[:1]))


def random(*shape, seed=0):
  return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def test_by_hand():
  weight = jnp.array([[1.27, -0.5], [-0.63, 0.1]])
  quantized = quantization.quantize(weight, (0,))
  np.testing.assert_allclose(quantized.scale, [[0.01, 0.5 / 127]], rtol=1e-6)
  # 0.1 x 127 / 0.5 = 25.4
  np.testing.assert_array_equal(quantized.values, [[127, -127], [-63, 25]])
  assert quantized.values.dtype == jnp.int8


def oracle(weight, axes):
  values, scale = np.zeros(weight.shape, np.int8), np.zeros(weight.shape, np.float32)
  for index in np.ndindex(*weight.shape):
    group = tuple(slice(None) if i in axes else index[i] for i in range(weight.ndim))
    scale[index] = np.abs(weight[group]).max() / np.float32(127)
    values[index] = np.round(weight[index] / scale[index]) if scale[index] else 0
  return values, scale


@pytest.mark.parametrize('wrap', [jax.jit, lambda f: f], ids=['jit', 'no jit'])
@pytest.mark.parametrize(
  ('shape', 'axes'), [((5, 3), (0,)), ((2, 4, 3, 2), (1,)), ((2, 3, 2, 5), (1, 2)), ((7, 4), (1,))]
)
def test_against_its_oracle(shape, axes, wrap):
  weight = random(*shape)
  quantized = wrap(functools.partial(quantization.quantize, axes=axes))(weight)
  values, scale = oracle(weight, axes)
  # A compiler may multiply by 1 / 127: where that is a rounding error, the next step is as right.
  assert np.abs(quantized.values.astype(int) - values).max() <= 1
  assert (quantized.values == values).mean() > 0.95
  np.testing.assert_allclose(np.broadcast_to(quantized.scale, shape), scale, rtol=1e-6)


@pytest.mark.parametrize('seed', range(5))
def test_no_entry_moves_by_more_than_half_a_step_and_zeros_stay(seed):
  weight = random(9, 6, seed=seed) * 10.0 ** np.arange(-3, 3)
  weight[:, 2] = 0.0
  quantized = quantization.quantize(jnp.asarray(weight), (0,))
  dense = quantization.dequantize(quantized, jnp.float32)
  assert (np.abs(dense - weight) <= quantized.scale * (0.5 + 1e-5)).all()
  assert (dense[:, 2] == 0).all()
  again = quantization.quantize(dense, (0,))
  np.testing.assert_array_equal(again.values, quantized.values)


@functools.cache
def int8_model(config):
  """Graph definition of a tiny model, its parameters, and those in int8."""
  graph, params = testing.split(testing.build(config))
  with partitioning.use(ONE()):
    _, like = abstract_model(config, dtype='int8')
  quantized = jax.tree.map(
    lambda like, weight: quantization.convert(weight, like),
    like,
    params,
    is_leaf=lambda node: isinstance(node, quantization.Quantized),
  )
  return graph, params, quantized


@pytest.mark.parametrize('name', testing.CONFIGS)
def test_an_int8_model_is_the_model_of_the_rounded_weights_and_near_the_exact_one(name):
  config = testing.CONFIGS[name]
  graph, params, quantized = int8_model(config)
  rounded = jax.tree.map(
    lambda leaf: quantization.dequantize(leaf, jnp.float32),
    quantized,
    is_leaf=lambda node: isinstance(node, quantization.Quantized),
  )
  batch = testing.batch(config)
  actual = testing.logits(graph, quantized, batch)
  np.testing.assert_allclose(actual, testing.logits(graph, rounded, batch), atol=2e-4)
  exact = testing.logits(graph, params, batch)
  assert 0 < np.abs(actual - exact).mean() < 0.05 * np.std(exact)


def test_only_matrices_and_tables_are_quantized():
  _, _, quantized = int8_model(testing.TINY_EVERYTHING)
  flat = nnx.traversals.flatten_mapping(quantized, sep='/')
  for path, leaf in flat.items():
    matrix = path.endswith(('kernel', 'embedding'))
    assert isinstance(leaf, quantization.Quantized) == matrix, path
  assert flat['embedding'].scale.shape == (24, 1)  # a scale per row
  assert flat['blocks/attention/out/kernel'].scale.shape == (3, 1, 1, 16)  # of each layer
  assert flat['blocks/attention/query/kernel'].scale.shape == (3, 1, 4, 6)


def test_int8_takes_a_quarter_of_the_bytes():
  config = decoder.DecoderConfig(
    vocab_size=4096, emb_dim=256, num_heads=4, num_kv_heads=2, num_layers=4, head_dim=64,
    mlp_dim=1024,
  )  # fmt: skip
  with partitioning.use(ONE()):
    sizes = {
      dtype: sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_model(config, dtype=dtype)[1])
      )
      for dtype in DTYPES
    }
  assert sizes['bfloat16'] * 2 == sizes['float32']
  assert 0.25 < sizes['int8'] / sizes['float32'] < 0.26


def test_a_token_outside_the_vocabulary_embeds_as_nan():
  table = quantization.quantize(random(4, 3), (1,))
  rows = layers.embed(table, jnp.array([[0, 4]]), 'float32')
  assert np.isfinite(rows[0, 0]).all()
  assert np.isnan(rows[0, 1]).all()


def test_scales_are_sharded_as_their_features():
  with partitioning.use(partitioning.make_mesh(data=2, fsdp=2, tensor=2)):
    _, like = abstract_model(testing.TINY_DECODER, dtype='int8')
  kernel = like['blocks']['mlp']['wo']['kernel']
  assert kernel.values.sharding.spec == PartitionSpec(None, 'tensor', 'fsdp')
  assert kernel.scale.sharding.spec == PartitionSpec(None, None, 'fsdp')
  table = like['embedding']
  assert table.values.sharding.spec == PartitionSpec('tensor', 'fsdp')
  assert table.scale.sharding.spec == PartitionSpec('tensor', None)


@pytest.mark.parametrize('devices', [1, 8])
def test_a_float32_checkpoint_is_read_as_int8(tmp_path, devices):
  config = testing.TINY_DECODER
  _, params, quantized = int8_model(config)
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'params': jax.tree.map(jnp.asarray, params)})
  sizes = {'data': 2, 'fsdp': 2, 'tensor': 2} if devices == 8 else {}
  mesh = partitioning.make_mesh(**sizes, devices=jax.devices()[:devices])
  with partitioning.use(mesh):
    _, like = abstract_model(config, dtype='int8')
    restored = store.restore_params(tmp_path, like)
  jax.tree.map(np.testing.assert_array_equal, restored, quantized)
  equivalent = lambda x, like: x.sharding.is_equivalent_to(like.sharding, x.ndim)
  assert all(jax.tree.leaves(jax.tree.map(equivalent, restored, like)))


def test_an_unknown_dtype_of_weights_is_refused():
  with (
    partitioning.use(ONE()),
    pytest.raises(ValueError, match="'int4'; choose one of float32, bfloat16, int8"),
  ):
    abstract_model(testing.TINY_DECODER, dtype='int4')
