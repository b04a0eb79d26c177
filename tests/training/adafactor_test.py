"""Adafactor on stacked layers: T5X's step of every layer, written as slow NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

from cascades import losses
from cascades.models import lora
from cascades.models.abstract import abstract_model, init_params
from cascades.runtime import partitioning
from cascades.training import adafactor, optimizers, train_step
from tests import testing

MIN_SIZE = 16
CONFIGS = {
  't5': testing.TINY_T5,
  't5, a bias per layer': dataclasses.replace(testing.TINY_T5, relative_bias_per_layer=True),
  'decoder': testing.TINY_DECODER,
  'everything': testing.TINY_EVERYTHING,
}


def axes_of(config):
  """Logical axes and the inputs of products, by path, as parameters are created."""
  state = jax.eval_shape(lambda: nnx.state(config.build(jax.random.key(0))))
  metadata = {path: leaf.get_metadata() for path, leaf in nnx.to_flat_state(state)}
  return {path: (data['out_sharding'], data['inputs']) for path, data in metadata.items()}


def t5x_step(parameter, gradient, moments, names, step, rate):
  """One parameter of one layer: T5X's adafactor.py with its standard logical factor rules.

  `names` are its logical axes. The width is a row, all else of a matrix a column, and what has no
  row and column is not factored. T5X's minimum for plain T5 holds for whole sides.
  """
  parameter, gradient = np.float64(parameter), np.float64(gradient)
  row = [i for i, name in enumerate(names) if name == 'embed']
  column = [i for i, name in enumerate(names) if name not in ('embed', 'norm', 'relpos_buckets')]
  size = lambda side: np.prod([parameter.shape[i] for i in side])
  is_factored = (
    row and column and 'relpos_buckets' not in names and min(size(row), size(column)) >= MIN_SIZE
  )
  decay = 1 - (step + 1.0) ** -0.8
  square = gradient**2 + 1e-30
  if is_factored:
    rows, columns = (np.mean(square, tuple(side), keepdims=True) for side in (column, row))
    old = moments or (np.zeros_like(rows), np.zeros_like(columns))
    moments = tuple(decay * o + (1 - decay) * n for o, n in zip(old, (rows, columns), strict=True))
    second = moments[0] / moments[0].mean() * moments[1]
  else:
    old = moments or (np.zeros_like(square),)
    moments = (decay * old[0] + (1 - decay) * square,)
    second = moments[0]
  update = gradient / np.sqrt(second)
  update /= max(1.0, np.sqrt(np.mean(update**2)))
  scale = max(np.sqrt(np.mean(parameter**2)), 1e-3)
  return parameter - rate * scale * update, moments


RECORD = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda gradient, state, params=None: (gradient, gradient),
)


@pytest.mark.parametrize('name', [pytest.param('t5', marks=pytest.mark.slow), 'everything'])
def test_training_steps_of_stacked_layers_are_those_of_t5x_on_each_layer(name):
  config, rate = CONFIGS[name], 1e-2
  optimizer = optax.chain(
    RECORD, optimizers.adafactor(optimizers.constant(rate), min_size_to_factor=MIN_SIZE)
  )
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    graph, abstract = abstract_model(config)
    flat = traverse_util.flatten_dict(init_params(config, 0, abstract))
    axes = axes_of(config)
    for path, leaf in flat.items():  # layers of unlike scales, the case that a stack would mix
      if axes[path][0][0] == 'layers':
        factors = 0.3 * 4.0 ** np.arange(len(leaf))
        flat[path] = leaf * factors.reshape(-1, *[1] * (leaf.ndim - 1)).astype(np.float32)
    state = train_step.init_state(traverse_util.unflatten_dict(flat), optimizer, 0)
    step = jax.jit(
      functools.partial(
        train_step.train_step,
        small=train_step.ModelDef(graph, config.vocab_size), large=None, loss=losses.xent,
        optimizer=optimizer,
      )
    )  # fmt: skip
    moments = {}
    for number in range(2):
      before = traverse_util.flatten_dict(jax.device_get(state.params))
      state, _ = step(state, train_step.Frozen(), testing.batch(config, seed=number))
      gradients = traverse_util.flatten_dict(jax.device_get(state.opt_state[0]))
      after = traverse_util.flatten_dict(jax.device_get(state.params))
      for path, (names, _) in axes.items():
        layers = range(len(before[path])) if names[0] == 'layers' else [...]
        for layer in layers:
          expected, moments[path, layer] = t5x_step(
            before[path][layer], gradients[path][layer], moments.get((path, layer)),
            [name for name in names if name != 'layers'], number, rate,
          )  # fmt: skip
          scale = np.sqrt(np.mean(np.square(expected)))
          np.testing.assert_allclose(
            after[path][layer], expected, rtol=1e-5, atol=1e-6 * scale, err_msg=f'{path} {layer}'
          )


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_paths_say_what_the_logical_axes_of_parameters_say(config):
  for path, (names, inputs) in axes_of(config).items():
    keys = tuple(jax.tree_util.DictKey(key) for key in path)
    stacked = names[0] == 'layers'
    assert adafactor.layer_axes(keys, len(names)) == tuple(range(stacked, len(names))), path
    assert jax.tree.leaves(adafactor.matrices(traverse_util.unflatten_dict({path: 0}))) == [
      bool(inputs)
    ], path
    sides = adafactor.factors(keys, (3,) * len(names), 1)
    assert (sides is not None) == bool(inputs), path
    if sides is not None:
      width = {names.index('embed')}
      others = {axis for axis, name in enumerate(names) if name not in ('layers', 'embed')}
      assert [set(side) for side in sides] in ([width, others], [others, width]), path


def test_a_stack_moves_as_its_layers_do_alone():
  """Also adapters beside stacked weights, biases, and parameters outside of stacks."""
  rng = np.random.default_rng(0)
  optimizer = optimizers.adafactor(optimizers.constant(1e-3), min_size_to_factor=4)

  def tree(*leading):
    normal = lambda *shape: jnp.asarray(rng.normal(size=(*leading, *shape)), jnp.float32)
    attention = {
      'query': {'kernel': normal(5, 2, 3), 'bias': normal(2, 3)},
      'out': {'kernel': lora.Adapter(normal(6, 4), normal(4, 5))},
    }
    return {'attention': attention, 'norm': {'scale': normal(5)}}

  scales = jnp.array([1e-4, 0.1, 3.0])
  scaled = lambda x: x * scales.reshape(-1, *[1] * (x.ndim - 1))
  params, gradient = jax.tree.map(scaled, tree(3)), tree(3)
  outside = {'embedding': jnp.ones((6, 5))}
  stacked = lambda tree: {'blocks': tree, **outside}
  update = jax.jit(optimizer.update)
  updates, state = update(stacked(gradient), optimizer.init(stacked(params)), stacked(params))
  layer = lambda tree, i: {'layer': jax.tree.map(lambda x: x[i], tree)}
  for i in range(3):
    alone, _ = update(layer(gradient, i), optimizer.init(layer(params, i)), layer(params, i))
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5),
      layer(updates['blocks'], i), alone,
    )  # fmt: skip
  moments = state[0]
  assert moments.v_row['blocks']['attention']['query']['kernel'].shape == (3, 5)
  assert moments.v_col['blocks']['attention']['query']['kernel'].shape == (3, 2, 3)
  assert moments.v['blocks']['attention']['query']['bias'].shape == (3, 2, 3)


def random_like(tree, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


def test_a_sharded_state_gives_the_same_updates():
  config = testing.TINY_DECODER
  optimizer = optimizers.adafactor(optimizers.constant(1e-3), min_size_to_factor=4)
  results = []
  for sizes in ((1, 1, 1), (2, 2, 2)):
    devices = jax.devices()[: int(np.prod(sizes))]
    with partitioning.use(partitioning.make_mesh(*sizes, devices=devices)):
      abstract = abstract_model(config)[1]
      state = partitioning.like_parameters(jax.eval_shape(optimizer.init, abstract), abstract)
      params, gradient = (
        jax.device_put(random_like(abstract, seed), jax.tree.map(lambda x: x.sharding, abstract))
        for seed in range(2)
      )
      shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
      placed = jax.jit(optimizer.init, out_shardings=shardings)(params)
      update = jax.jit(optimizer.update, out_shardings=(None, shardings))
      results.append(jax.device_get(update(gradient, placed, params)))
  row = state[0].v_row['blocks']['mlp']['wi_0']['kernel']
  assert row.sharding.spec == jax.sharding.PartitionSpec(None, 'fsdp')
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), *results)


@pytest.mark.parametrize('optimizer', [optimizers.adafactor, optimizers.adamw])
@pytest.mark.parametrize('rate', [1e-3, 1e-2])
def test_weight_decay_is_times_the_rate_and_spares_all_but_matrices(optimizer, rate):
  decaying = optimizer(optimizers.constant(rate), weight_decay=0.5)
  for config in (testing.TINY_T5, testing.TINY_EVERYTHING):
    params = traverse_util.unflatten_dict(
      {path: jnp.ones([2] * len(names)) for path, (names, _) in axes_of(config).items()}
    )
    state, zeros = decaying.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
      updates, state = decaying.update(zeros, state, params)
      params = optax.apply_updates(params, updates)
    for path, (_, inputs) in axes_of(config).items():
      left = (1 - 0.5 * rate) ** 2 if inputs else 1.0
      np.testing.assert_allclose(
        functools.reduce(lambda node, key: node[key], path, params), left, rtol=1e-6
      )
