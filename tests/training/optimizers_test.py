"""Schedules at their corners; optimizers do what their names promise."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cascades.training import optimizers


@pytest.mark.parametrize(
  ('schedule', 'points'),
  [
    (optimizers.constant(0.1), {0: 0.1, 9: 0.1}),
    (optimizers.constant(0.1, warmup_steps=10), {0: 0.0, 5: 0.05, 10: 0.1, 99: 0.1}),
    (
      optimizers.linear(0.1, total_steps=110, warmup_steps=10, final=0.02),
      {5: 0.05, 10: 0.1, 60: 0.06, 110: 0.02, 200: 0.02},
    ),
    (
      optimizers.cosine(0.1, total_steps=110, warmup_steps=10),
      {5: 0.05, 10: 0.1, 60: 0.05, 110: 0.0},
    ),
    (optimizers.rsqrt(1.0, warmup_steps=100), {0: 0.1, 100: 0.1, 400: 0.05}),
  ],
)
def test_schedules_pass_through_their_corners(schedule, points):
  for step, rate in points.items():
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, atol=1e-9)


PARAMS = {'mlp': {'kernel': jnp.full((4, 4), 2.0)}, 'norm': {'scale': jnp.full(4, 2.0)}}
GRADIENT = {'mlp': {'kernel': jnp.full((4, 4), 3.0)}, 'norm': {'scale': jnp.full(4, 3.0)}}


def updated(optimizer, gradient=GRADIENT):
  updates, _ = optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)
  return optax.apply_updates(PARAMS, updates)


def test_adamw_takes_steps_of_its_rate_and_decays_no_scales():
  rate = optimizers.constant(0.1)
  plain = updated(optimizers.adamw(rate))
  np.testing.assert_allclose(plain['mlp']['kernel'], 1.9, rtol=1e-5)
  decayed = updated(optimizers.adamw(rate, weight_decay=0.5))
  np.testing.assert_allclose(decayed['mlp']['kernel'], 1.9 - 0.1 * 0.5 * 2.0, rtol=1e-5)
  np.testing.assert_allclose(decayed['norm']['scale'], 1.9, rtol=1e-5)


def test_adafactor_takes_steps_relative_to_the_parameter():
  moved = updated(optimizers.adafactor(optimizers.constant(0.1)))
  np.testing.assert_allclose(moved['mlp']['kernel'], 2.0 - 0.1 * 2.0, rtol=1e-4)
  absolute = updated(
    optimizers.adafactor(optimizers.constant(0.1), multiply_by_parameter_scale=False)
  )
  np.testing.assert_allclose(absolute['mlp']['kernel'], 2.0 - 0.1, rtol=1e-4)


def test_clipping_bounds_the_gradient_and_not_the_step():
  sgd = lambda rate: optax.sgd(rate)
  clipped = optimizers._clipped(sgd(1.0), 0.5)
  change = updated(clipped)['mlp']['kernel'] - PARAMS['mlp']['kernel']
  norm = optax.global_norm(GRADIENT)
  np.testing.assert_allclose(change, -3.0 * 0.5 / norm, rtol=1e-5)
  unclipped = updated(optimizers._clipped(sgd(1.0), None))
  np.testing.assert_allclose(unclipped['mlp']['kernel'], 2.0 - 3.0)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: optimizers.cosine(1e-3, total_steps=50, warmup_steps=100),
      'WARMUP_STEPS=100 is not below TRAIN_STEPS=50',
    ),
    (
      lambda: optimizers.linear(1e-3, total_steps=50, warmup_steps=50),
      'WARMUP_STEPS=50 is not below TRAIN_STEPS=50',
    ),
    (lambda: optimizers.constant(-1e-3), 'LEARNING_RATE=-0.001 must be'),
    (lambda: optimizers.rsqrt(float('inf')), 'LEARNING_RATE=inf must be'),
    (lambda: optimizers.rsqrt(1.0, warmup_steps=0), 'WARMUP_STEPS=0 makes'),
    (lambda: optimizers.linear(1e-3, total_steps=9, warmup_steps=-1), 'WARMUP_STEPS=-1 must be'),
    (lambda: optimizers.linear(1e-3, total_steps=0), 'TRAIN_STEPS=0 must be'),
    (lambda: optimizers.cosine(1e-3, total_steps=9, final=-1.0), 'final=-1.0 must be'),
    (lambda: optimizers.adamw(len, b2=1.0), 'adamw.b2=1.0 must be .* below 1'),
    (lambda: optimizers.adamw(len, weight_decay=-0.1), 'adamw.weight_decay=-0.1 must be'),
    (lambda: optimizers.adafactor(len, clip_norm=0.0), 'adafactor.clip_norm=0.0 must be'),
    (lambda: optimizers.adafactor(len, weight_decay=float('nan')), 'adafactor.weight_decay=nan'),
  ],
)
def test_settings_out_of_range_are_refused_by_name(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_rate_of_zero_is_no_division_by_zero():
  assert optimizers.cosine(0.0, total_steps=9)(3) == 0.0


SHAPES = {'blocks': {'kernel': (2, 4, 8)}, 'embedding': (4, 8), 'norm': {'scale': (8,)}}
# Of 104 numbers below 1e18 in size the sum of squares is finite.
NUMBERS = st.builds(lambda x, e: x * 10.0**e, st.floats(-1, 1), st.integers(-46, 18))
OFFERED = {
  'adamw': functools.partial(optimizers.adamw, clip_norm=None, weight_decay=0.1),
  'adamw, clipped': optimizers.adamw,
  'adafactor': functools.partial(optimizers.adafactor, min_size_to_factor=2, weight_decay=0.1),
  'adafactor, full': optimizers.adafactor,
  'adafactor, clipped': functools.partial(optimizers.adafactor, clip_norm=1.0),
}


@functools.cache
def _optimizer(name):
  """An optimizer that is offered, and its compiled update."""
  optimizer = OFFERED[name](optimizers.constant(1e-2))
  return optimizer, jax.jit(optimizer.update)


@pytest.mark.parametrize('name', OFFERED)
@hypothesis.given(st.lists(st.lists(NUMBERS, min_size=1, max_size=5), min_size=2, max_size=2))
@hypothesis.settings(max_examples=30)
def test_finite_gradients_have_finite_updates_and_moments(name, numbers):
  """`train_step` relies on it: the gradient alone decides whether it is used."""
  optimizer, update = _optimizer(name)
  tree = lambda values: jax.tree.map(
    lambda shape: jnp.asarray(np.resize(np.float32(values), shape)), SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )  # fmt: skip
  params = tree([1.0, -0.5, 0.0])
  state = optimizer.init(params)
  for values in numbers:
    updates, state = update(tree(values), state, params)
    params = optax.apply_updates(params, updates)
    for leaf in jax.tree.leaves((updates, state, params)):
      assert np.isfinite(leaf).all()
