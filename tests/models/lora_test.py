"""Low-rank adapters beside frozen weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from cascades import losses
from cascades.checkpoints import store
from cascades.models import configs, layers, lora, quantization
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.training import optimizers, train_step
from tests import testing

CONFIG = lora.LoraConfig(rank=3, alpha=6.0)
ONE = functools.cache(lambda: partitioning.make_mesh(devices=jax.devices()[:1]))

every = pytest.mark.parametrize('name', ['t5', 'everything'])


def abstract(config, adaptation=CONFIG, mesh=None):
  with partitioning.use(mesh or ONE()):
    _, base = abstract_model(config)
    return lora.abstract(base, configs.linear_maps(config), adaptation)


@functools.cache
def adapted(name, *, trained=True):
  """Definition, weights and adapters of a tiny model; untrained adapters are those of `init`."""
  config = testing.CONFIGS[name]
  graph, base = testing.split(testing.build(config))
  adapters = lora.init(jax.random.key(1), abstract(config))
  if trained:
    draw = np.random.RandomState(2).standard_normal
    adapters = jax.tree.map(lambda leaf: leaf + 0.1 * np.float32(draw(leaf.shape)), adapters)
  return train_step.ModelDef(graph, testing.VOCAB, CONFIG.scale), base, adapters


def merged(base, adapters):
  """Merged weights by an oracle."""
  weights = nnx.traversals.flatten_mapping(base)
  for path, adapter in nnx.traversals.flatten_mapping(adapters).items():
    product = np.einsum('...ir,...ro->...io', *adapter)
    weights[path] = weights[path] + CONFIG.scale * product.reshape(weights[path].shape)
  return nnx.traversals.unflatten_mapping(weights)


def is_quantized(node):
  return isinstance(node, quantization.Quantized)


def frozen_base(name, dtype):
  """Weights of a tiny model in `dtype`."""
  with partitioning.use(ONE()):
    _, like = abstract_model(testing.CONFIGS[name], dtype=dtype)
  convert = lambda like, leaf: quantization.convert(leaf, like)
  return jax.tree.map(convert, like, adapted(name)[1], is_leaf=is_quantized)


def dequantized(params):
  return jax.tree.map(
    lambda leaf: quantization.dequantize(leaf, 'float32'), params, is_leaf=is_quantized
  )


@functools.partial(jax.jit, static_argnums=0)
def logits(definition, params, base, batch):
  model = definition.bind(params, base)
  return model.readout(model.hidden(batch))


def test_by_hand():
  weight = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  adapter = lora.Adapter(jnp.array([[1.0], [2.0]]), jnp.array([[3.0, -1.0]]))
  adapted = lora.adapt({'w': weight}, {'w': adapter}, scale=0.5)['w']
  # x W = (1, 1); x A = 3; (x A) B / 2 = (4.5, -1.5)
  np.testing.assert_allclose(layers.matmul(jnp.ones((1, 2)), adapted), [[5.5, -0.5]])
  np.testing.assert_allclose(lora.merge(weight, adapter, scale=0.5), [[2.5, -0.5], [3.0, 0.0]])


@every
def test_a_run_starts_with_exactly_its_base(name):
  definition, base, adapters = adapted(name, trained=False)
  batch = testing.batch(testing.CONFIGS[name])
  np.testing.assert_array_equal(
    logits(definition, adapters, base, batch), logits(definition, base, None, batch)
  )


@every
def test_adapters_compute_what_the_merged_weights_do(name):
  definition, base, adapters = adapted(name)
  batch = testing.batch(testing.CONFIGS[name])
  actual = logits(definition, adapters, base, batch)
  np.testing.assert_allclose(
    actual, logits(definition, merged(base, adapters), None, batch), atol=1e-3, rtol=1e-3
  )
  assert np.abs(actual - logits(definition, base, None, batch)).max() > 0.1


@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_gradients_follow_from_those_of_the_merged_weights(dtype):
  definition, _, adapters = adapted('decoder')
  base = frozen_base('decoder', dtype)
  batch = testing.batch(testing.TINY_DECODER)

  def loss(params, base):
    model = definition.bind(params, base)
    total, count = losses.xent(model.readout(model.hidden(batch)), (), batch.targets, batch.weights)
    return total / count

  gradient = jax.jit(jax.grad(loss))
  of_weights = nnx.traversals.flatten_mapping(gradient(merged(dequantized(base), adapters), None))
  of_adapters = nnx.traversals.flatten_mapping(gradient(adapters, base))
  assert set(of_adapters) == {path for path in of_weights if path[-1] == 'kernel'}
  for path, (down, up) in of_adapters.items():
    adapter = nnx.traversals.flatten_mapping(adapters)[path]
    g = np.reshape(of_weights[path], (len(down), down.shape[1], up.shape[2]))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-3)
    close(down, CONFIG.scale * np.einsum('xio,xro->xir', g, adapter.up))
    close(up, CONFIG.scale * np.einsum('xir,xio->xro', adapter.down, g))


def test_only_adapters_are_trained_and_have_optimizer_state():
  definition, base, adapters = adapted('decoder', trained=False)
  large, large_params, _ = adapted('decoder')
  before = jax.tree.map(np.array, base)
  optimizer = optimizers.adamw(optimizers.constant(1e-2))
  step = jax.jit(
    functools.partial(
      train_step.train_step,
      small=definition, large=large, loss=losses.cat_dist, optimizer=optimizer,
    ),
    donate_argnums=0,
  )  # fmt: skip
  frozen = train_step.Frozen(large_params, jax.tree.map(jnp.asarray, base))
  size = sum(leaf.size for leaf in jax.tree.leaves(adapters))
  batch = testing.batch(testing.TINY_DECODER)
  certain = np.asarray(logits(large, large_params, None, batch).argmax(-1))
  batch = batch._replace(targets=certain)  # cat_dist learns where one of the two is right
  state = train_step.init_state(jax.tree.map(jnp.array, adapters), optimizer, 0)
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert sum(leaf.size for leaf in moments) == 2 * size
  objectives = []
  for _ in range(3):
    state, metrics = step(state, frozen, batch)
    objectives.append(float(metrics['objective']))
  assert objectives[2] < objectives[0]
  jax.tree.map(np.testing.assert_array_equal, frozen.base, before)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, adapters)
  assert all(jax.tree.leaves(moved))


def test_all_linear_maps_are_adapted_unless_targets_are_named():
  paths = lambda *targets: {
    '/'.join(path[:-1])
    for path in nnx.traversals.flatten_mapping(
      abstract(testing.TINY_T5, CONFIG._replace(targets=targets))
    )
  }
  assert len(paths()) == 3 * 4 + 2 * 3  # no table, no bias of positions
  assert paths('query', 'value') == {
    f'{stack}_attention/{name}'
    for stack in ('encoder/self', 'decoder/self', 'decoder/cross')
    for name in ('query', 'value')
  }
  assert len(paths('encoder')) == 4 + 3
  with pytest.raises(
    ValueError, match="no linear map has 'q_proj' on its path: choose the targets"
  ):
    paths('query', 'q_proj')


def test_adapters_have_low_rank_and_are_sharded_as_their_features():
  mesh = partitioning.make_mesh(data=2, fsdp=2, tensor=2)
  blocks = abstract(testing.TINY_DECODER, mesh=mesh)['blocks']
  down, up = blocks['attention']['out']['kernel']
  assert (down.shape, up.shape) == ((2, 4 * 6, 3), (2, 3, 16))
  assert down.sharding.spec == PartitionSpec(None, 'tensor', None)
  assert up.sharding.spec == PartitionSpec(None, None, 'fsdp')


def test_inputs_times_a_start_with_unit_variance_and_b_with_zero():
  shapes = lora.Adapter(
    jax.ShapeDtypeStruct((2, 64, 32), 'f4'), jax.ShapeDtypeStruct((2, 32, 8), 'f4')
  )
  adapters = lora.init(jax.random.key(0), {'a': {'w': shapes}, 'b': {'w': shapes}})
  down, up = adapters['a']['w']
  assert np.var(down) * 64 == pytest.approx(1.0, rel=0.1)
  assert (up == 0).all()
  assert (adapters['b']['w'].down != down).all()


@pytest.mark.parametrize(
  ('dtype', 'restored_dtype'),
  [('float32', 'bfloat16'), ('bfloat16', 'float32'), ('int8', 'float32'), ('int8', 'int8')],
)
def test_a_run_directory_gives_merged_weights_in_any_dtype(tmp_path, dtype, restored_dtype):
  _, _, adapters = adapted('decoder')
  base = frozen_base('decoder', dtype)
  store.write_description(tmp_path, {store.LORA: CONFIG._replace(dtype=dtype)._asdict()})
  with partitioning.use(ONE()), store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save_base(base)
    checkpoints.save(4, {'params': jax.tree.map(jnp.asarray, adapters)})
    _, like = abstract_model(testing.TINY_DECODER, dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_base(like), base)
  with partitioning.use(ONE()):
    _, like = abstract_model(testing.TINY_DECODER, dtype=restored_dtype)
    restored = store.restore_params(tmp_path, like)

  def close(weight, expected):
    dense, step = quantization.dequantize(weight, 'float32'), getattr(weight, 'scale', 0.0)
    relative = 2**-8 if restored_dtype == 'bfloat16' else 1e-6
    assert (np.abs(dense - expected) <= 0.5 * step + relative * (np.abs(expected) + 1)).all()

  jax.tree.map(close, restored, merged(dequantized(base), adapters), is_leaf=is_quantized)
