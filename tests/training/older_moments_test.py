"""Moments of optax's Adafactor, which earlier versions stored, give those of today."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cascades.checkpoints import store
from cascades.checkpoints.store import CheckpointError
from cascades.runtime import partitioning
from cascades.training import older_moments, optimizers, train_step

RATE = optimizers.constant(1e-3)
SHAPES = {
  'embedding': (130, 140),  # factored then and now
  'blocks': {
    'query': {'kernel': (2, 160, 4, 40)},  # with all entries then
    'out': {'kernel': (2, 2, 128, 150)},  # by width and features of a head then
    'norm': {'scale': (2, 160)},
  },
}


def is_shape(node):
  return isinstance(node, tuple)


def abstract(mesh, shape):
  """The first long axis is sharded."""
  axes = ['fsdp' if size > 100 else None for size in shape]
  axes = [axis if axis not in axes[:i] else None for i, axis in enumerate(axes)]
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def random(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda shape: rng.normal(size=shape).astype('f'), SHAPES, is_leaf=is_shape)


def test_a_run_of_an_earlier_version_resumes_with_the_moments_that_it_would_have(tmp_path):
  mesh = partitioning.make_mesh(1, 2, 1, devices=jax.devices()[:2])
  with partitioning.use(mesh):
    like = jax.tree.map(functools.partial(abstract, mesh), SHAPES, is_leaf=is_shape)
    params, states = random(0), []
    for optimizer in (optax.adafactor(RATE), optimizers.adafactor(RATE)):
      state = train_step.init_state(params, optimizer, seed=0)
      for seed in (1, 2):
        _, opt_state = jax.jit(optimizer.update)(random(seed), state.opt_state, params)
        state = state._replace(opt_state=opt_state)
      states.append(state)
    old, expected = states
    assert old.opt_state[0].v['blocks']['query']['kernel'].shape == (2, 160, 4, 40)
    assert old.opt_state[0].v_row['blocks']['out']['kernel'].shape == (2, 2, 128)
    init = functools.partial(train_step.init_state, optimizer=optimizers.adafactor(RATE), seed=0)
    described = partitioning.like_parameters(jax.eval_shape(init, like), like)
    with store.Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(2, old)
    with store.Checkpoints(tmp_path) as checkpoints:
      with pytest.raises(CheckpointError, match='opt_state/0/v'):
        checkpoints.restore(2, described)
      restored = checkpoints.restore(2, described, adapt=older_moments.adapt)
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), restored.opt_state, expected.opt_state
  )
  jax.tree.map(np.testing.assert_array_equal, restored.params, old.params)


def test_todays_state_is_read_as_it_is():
  optimizer = optimizers.adafactor(RATE)
  params = {'blocks': {'query': {'kernel': jnp.ones((2, 160, 4, 40))}}}
  state = jax.eval_shape(lambda: train_step.init_state(params, optimizer, 0))
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  assert older_moments.adapt(state, shapes)[0] is state
