"""Abstract runs, and the step as a loop calls it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cascades import losses
from cascades.models import decoder
from cascades.performance import hlo, hlo_costs, topologies
from cascades.runtime import partitioning
from cascades.training import optimizers, setup, train_step, validation
from cascades.types import Batch
from tests import testing, tiny

STEP = setup.Step(
  learning_rate=optimizers.constant(1e-2), optimizer=optimizers.adamw, block_length=2
)


def abstract_run(large):
  return setup.abstract_run(setup.SmallModel(testing.TINY_T5), large, STEP.transform)


def test_the_large_model_may_lie_by_rules_of_its_own():
  mesh = partitioning.make_mesh(data=2, fsdp=2, tensor=2)
  with partitioning.use(mesh):
    alike = abstract_run(setup.LargeModel(testing.TINY_T5, dtype='bfloat16'))
    apart = abstract_run(setup.LargeModel(testing.TINY_T5, rules=[('embed', ('data', 'fsdp'))]))
  small, large = alike.state.params['embedding'], alike.frozen.large['embedding']
  assert (small.dtype, large.dtype) == (jnp.float32, jnp.bfloat16)
  assert small.sharding.spec == large.sharding.spec == PartitionSpec('tensor', 'fsdp')
  assert apart.state.params['embedding'].sharding.spec == PartitionSpec('tensor', 'fsdp')
  spec = apart.frozen.large['embedding'].sharding.spec
  assert spec == PartitionSpec(None, ('data', 'fsdp'))


@pytest.fixture
def run():
  """A step on batches, its state, and what it says when it compiles."""
  numbers = testing.split(testing.build(testing.TINY_T5))[1]
  with partitioning.use(tiny.one_device()):
    abstract = abstract_run(setup.LargeModel())
    shardings = setup.shardings(abstract.state.params)
    params = jax.device_put(jax.tree.map(jnp.array, numbers), shardings)
    state = train_step.init_state(params, STEP.transform, 0)
    step = setup.compiled_step(abstract, STEP)
    said = []
    called = setup.on_batches(step, train_step.Frozen(), lambda *program: said.append(program))
    yield called, state, said


def test_a_step_compiles_for_the_first_batch_and_never_again(run):
  called, state, said = run
  batch = jax.tree.map(np.asarray, testing.batch(testing.TINY_T5))
  for _ in range(3):
    state, totals = called(state, batch)
  ((program, placed),) = said
  assert program.memory_analysis().argument_size_in_bytes > 0
  assert placed.targets.shape == batch.targets.shape
  assert state.step == 3
  assert np.isfinite(totals['loss'])
  with pytest.raises(TypeError, match='compiled'):
    called(state, jax.tree.map(lambda x: x[:1], batch))


def test_no_moment_is_kept_twice():
  """Gradients, an update and its squares are temporary; other moments would be two more copies."""
  config = decoder.DecoderConfig(
    1024, emb_dim=128, num_heads=2, num_kv_heads=1, num_layers=4, head_dim=64, mlp_dim=256
  )
  rows = Batch(*(jnp.zeros((1, 4), dtype) for dtype in ('int32', 'int32', 'float32')))
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    abstract = setup.abstract_run(setup.SmallModel(config), setup.LargeModel(None), STEP.transform)
    step = setup.compiled_step(abstract, STEP)
    memory = step.lower(abstract.state, abstract.frozen, rows).compile().memory_analysis()
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract.state.params))
  assert memory.temp_size_in_bytes < 3 * size


def test_the_weights_of_tokens_reach_the_loss():
  weighed = []

  def loss(small, teachers, targets, weights, *, step=None):
    weighed.append(weights)
    return losses.xent(small, teachers, targets, weights, step=step)

  def token_weights(batch):
    return train_step.equal_answers(batch).astype('bfloat16')  # to be told from the others

  step = dataclasses.replace(STEP, loss=loss, token_weights=token_weights)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    abstract = abstract_run(setup.LargeModel())
    batch = jax.eval_shape(lambda: testing.batch(testing.TINY_T5))
    setup.compiled_step(abstract, step).trace(abstract.state, abstract.frozen, batch)
  assert {str(weights.dtype) for weights in weighed} == {'bfloat16'}


def test_states_that_are_given_away_are_gone(run):
  called, state, _ = run
  called(state, jax.tree.map(np.asarray, testing.batch(testing.TINY_T5)))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_on_tpu_the_missing_shards_are_sent_once_and_no_others():
  pytest.importorskip('libtpu')
  mesh = partitioning.make_mesh(fsdp=8, devices=topologies.of('v5e:2x4').devices)
  place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  x = jax.ShapeDtypeStruct((4096, 1024), 'bfloat16', sharding=place('fsdp'))
  weight = jax.ShapeDtypeStruct((1024, 2048), 'bfloat16', sharding=place('fsdp'))
  product = jax.jit(lambda x, weight: x @ weight, out_shardings=place('fsdp'))

  def sent(options):
    text = product.lower(x, weight).compile(compiler_options=options).as_text()
    return sum(one.sent for one in hlo_costs.collectives(hlo.parse(text)))

  missing = weight.size * 2 * 7 / 8
  assert sent(setup._compiler_options(mesh)) == missing
  assert setup._compiler_options(partitioning.make_mesh(devices=jax.devices()[:1])) is None


RATE = optimizers.constant(1e-2)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: setup.Step(learning_rate=RATE, microbatches=0), 'MICROBATCHES=0 must be'),
    (lambda: setup.Step(learning_rate=RATE, block_length=0), 'BLOCK_LENGTH=0 must be'),
    (lambda: setup.Step(learning_rate=RATE, normalizer=0.0), 'LOSS_NORMALIZING_FACTOR=0.0 must be'),
    (lambda: setup.Step(learning_rate=RATE, normalizer=-1), 'LOSS_NORMALIZING_FACTOR=-1 must be'),
    (lambda: setup.Step(learning_rate=RATE, readout_gradient_dtype='f8'), "READOUT_.*='f8' must"),
    (
      lambda: setup.Step(learning_rate=RATE, microbatches=2).check_batch(7),
      'BATCH_SIZE=7 is not divisible by MICROBATCHES=2',
    ),
    (lambda: setup.Step(learning_rate=RATE).check_batch(0), 'BATCH_SIZE=0 must be'),
    (lambda: setup.Schedule(train_steps=0), 'TRAIN_STEPS=0 must be'),
    (lambda: setup.Schedule(train_steps=9, keep=0), 'KEEP=0 must be'),
    (lambda: setup.Schedule(train_steps=9, log_every=-1), 'LOG_EVERY=-1 must be'),
    (lambda: setup.Schedule(train_steps=9, save_every=0.5), 'SAVE_EVERY=0.5 must be'),
    (lambda: validation.Validation(every=-5), 'VALIDATE_EVERY=-5 must be'),
    (lambda: validation.Validation(rows=0), 'VALIDATION_ROWS=0 must be'),
    (lambda: setup.Failures(hang_timeout=-1), 'HANG_TIMEOUT=-1 must be'),
  ],
)
def test_settings_out_of_range_are_refused_by_the_macro(make, message):
  with pytest.raises(ValueError, match=message):
    make()
