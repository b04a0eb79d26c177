"""Counts of operations against closed forms."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from cascades import losses
from cascades.models import layers
from cascades.models.abstract import abstract_model
from cascades.performance import flops
from cascades.runtime import partitioning
from cascades.training import train_step
from tests import testing, tiny

B, T, D, F, LAYERS = 3, 5, 8, 12, 7


def shape(*sizes, dtype='float32'):
  return jax.ShapeDtypeStruct(sizes, dtype)


def test_a_matrix_product_is_two_operations_for_each_multiplication():
  work = flops.work_of(lambda a, b: a @ b, shape(B, D), shape(D, F))
  assert work.flops == 2 * B * D * F
  assert work.bytes == 4 * (B * D + D * F + B * F)
  assert work.elementwise == 0


def test_bytes_are_those_of_the_types_that_are_multiplied():
  narrow = shape(B, D, dtype='bfloat16'), shape(D, F, dtype='int8')
  product = lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32)
  assert flops.work_of(product, *narrow).bytes == 2 * B * D + D * F + 4 * B * F


def test_elementwise_work_is_one_a_number_and_a_reduction_reads_all():
  work = flops.work_of(lambda x: jnp.sum(jnp.tanh(x) * x), shape(B, T))
  assert work == flops.Work(0, 3 * B * T, 0)


def mlp(x, into, out, *, remat_policy='none'):
  """LAYERS residual MLPs under a scan."""

  def layer(x, weights):
    into, out = weights
    return x + jnp.tanh(x @ into) @ out, None

  step = layers.REMAT_POLICIES[remat_policy](layer)
  return jnp.sum(jax.lax.scan(step, x, (into, out))[0])


MLP = (shape(B, D), shape(LAYERS, D, F), shape(LAYERS, F, D))
MLP_FLOPS = LAYERS * 2 * (2 * B * D * F)


def test_a_scanned_mlp_counts_every_layer():
  assert flops.flops_of(mlp, *MLP) == MLP_FLOPS
  assert flops.flops_of(jax.jit(mlp), *MLP) == MLP_FLOPS


@pytest.mark.parametrize(
  ('remat_policy', 'forwards'),
  # 'full' recomputes all but a layer's last product, of which the gradient needs nothing.
  [('none', 1), ('elementwise', 1), ('full', 1.5)],
)
def test_a_gradient_is_twice_the_forward_pass_and_what_is_recomputed(remat_policy, forwards):
  gradient = jax.grad(functools.partial(mlp, remat_policy=remat_policy), argnums=(0, 1, 2))
  assert flops.flops_of(gradient, *MLP) == (forwards + 2) * MLP_FLOPS


def test_the_gradient_of_weights_alone_omits_that_of_the_input():
  gradient = jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w)))
  assert flops.flops_of(gradient, shape(D, F), shape(B, D)) == 2 * (2 * B * D * F)


def attention(query, keys, values):
  return jax.nn.softmax(jnp.einsum('btd,bsd->bts', query, keys)) @ values


def test_attention_is_two_products_and_its_gradient_four():
  arguments = (shape(B, T, D), shape(B, F, D), shape(B, F, D))
  product = 2 * B * T * F * D
  assert flops.flops_of(attention, *arguments) == 2 * product
  loss = lambda *a: jnp.sum(attention(*a))
  assert flops.flops_of(jax.grad(loss, argnums=(0, 1, 2)), *arguments) == (2 + 4) * product - (
    product  # the sum of the outputs needs no output
  )


def test_unused_products_are_not_counted():
  product = lambda a, b: (a @ b, a @ b @ b.T)[0]
  assert flops.flops_of(product, shape(B, D), shape(D, F)) == 2 * B * D * F
  inside = lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0.0, None, length=3)[0]
  assert flops.flops_of(inside, shape(B, D), shape(D, F)) == 0


def test_a_condition_counts_its_most_expensive_branch():
  choose = lambda p, a, b: jax.lax.cond(p, lambda: a @ b, lambda: 0 * (a @ b @ b.T @ b))
  product = 2 * B * D * F
  assert flops.flops_of(choose, shape(dtype='bool'), shape(B, D), shape(D, F)) == 3 * product


def test_loops_between_constants_are_counted_and_others_refused():
  fixed = lambda a, b: jax.lax.fori_loop(0, 4, lambda _, c: c @ b, a)
  assert flops.flops_of(fixed, shape(B, D), shape(D, D)) == 4 * 2 * B * D * D
  free = lambda n, a, b: jax.lax.fori_loop(0, n, lambda _, c: c @ b, a)
  with pytest.raises(ValueError, match='unknown length'):
    flops.flops_of(free, shape(dtype='int32'), shape(B, D), shape(D, D))
  harmless = lambda n, a: jax.lax.fori_loop(0, n, lambda _, c: c + 1, a)
  assert flops.flops_of(harmless, shape(dtype='int32'), shape(B, D)) == 0


def test_custom_gradients_count_their_own_products():
  @jax.custom_vjp
  def product(a, b):
    return a @ b

  def backward(saved, g):
    _, b = saved
    return g @ b.T, jnp.zeros_like(b)

  product.defvjp(lambda a, b: (a @ b, (a, b)), backward)
  arguments = shape(B, D), shape(D, F)
  expected = 2 * B * D * F
  assert flops.flops_of(product, *arguments) == expected
  pullback = lambda a, b: jax.vjp(product, a, b)[1](jnp.ones((B, F)))
  assert flops.flops_of(pullback, *arguments) == expected


def test_every_device_of_a_shard_map_counts():
  mesh = partitioning.make_mesh(data=2, fsdp=4, devices=jax.devices()[:8])
  spec = jax.sharding.PartitionSpec(('data', 'fsdp'))
  product = jax.shard_map(
    lambda a, b: a @ b, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec
  )
  assert flops.flops_of(product, shape(16, D), shape(D, F)) == 2 * 16 * D * F


def test_convolutions_and_grouped_products_are_counted():
  convolve = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
  )
  length, width = 10, 3
  assert flops.flops_of(convolve, shape(B, length, D), shape(width, D, F)) == (
    2 * B * (length - width + 1) * F * width * D
  )
  grouped = flops.flops_of(jax.lax.ragged_dot, shape(B, D), shape(4, D, F), shape(4, dtype='int32'))
  assert grouped == 2 * B * D * F


def forward_flops(config, rows, length):
  """FLOPs of the hidden states of a decoder, and of its readout."""
  heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  weights = config.emb_dim * (2 * heads + 2 * kv_heads + 3 * config.mlp_dim)
  attention = 2 * length * heads  # every query with every key, then every value
  tokens = rows * length
  hidden = config.num_layers * 2 * tokens * (weights + attention)
  return hidden, 2 * tokens * config.emb_dim * config.vocab_size


@pytest.mark.parametrize('block_length', [8, 2])
def test_a_training_step_is_three_forward_passes_and_the_large_model_s(block_length):
  """Readout in blocks may recompute the logits of both models for the gradient."""
  config, rows, length = testing.TINY_DECODER, 8, 8
  batch = train_step.Batch(*(shape(rows, length, dtype=d) for d in ('int32', 'int32', 'float32')))
  optimizer = optax.sgd(0.1)
  with partitioning.use(tiny.one_device()):
    graph, params = abstract_model(config)
    definition = train_step.ModelDef(graph, config.vocab_size)
    state = jax.eval_shape(
      functools.partial(train_step.init_state, optimizer=optimizer, seed=0), params
    )
    step = functools.partial(
      train_step.train_step,
      small=definition,
      large=definition,
      loss=losses.cat_dist,
      optimizer=optimizer,
      block_length=block_length,
    )
    counted = flops.flops_of(step, state, train_step.Frozen(params), batch)
  hidden, readout = forward_flops(config, rows, length)
  least = 3 * (hidden + readout) + hidden + readout
  assert least <= counted <= least + 2 * readout * (block_length < length)
