"""Checkpoints: what comes back is what was saved, and what is wrong is said by name."""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cascades.checkpoints import store
from cascades.runtime import partitioning
from cascades.training.train_step import TrainState, init_state


@pytest.fixture
def state() -> TrainState:
  params = {'block': {'w': jnp.arange(12.0).reshape(3, 4)}, 'b': jnp.ones(3)}
  return init_state(params, optax.adam(1e-3), seed=7)


def steps_in(directory):
  return sorted(int(path.name.split('_')[1]) for path in directory.glob('checkpoint_*'))


def test_what_is_saved_comes_back_bit_by_bit(tmp_path, state):
  with store.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(3, state)
  with store.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 3
    restored = checkpoints.restore(3, state)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_directories_may_be_relative(tmp_path, state, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with store.Checkpoints('run') as checkpoints:
    checkpoints.save(1, state)
  jax.tree.map(
    np.testing.assert_array_equal, store.restore_params('run', state.params), state.params
  )


def test_later_steps_do_not_change_what_is_being_saved(tmp_path, state, monkeypatch):
  """The next steps donate the buffers of the state, as in training."""
  go, write = threading.Event(), store.checksums.write
  monkeypatch.setattr(store.checksums, 'write', lambda path: go.wait(60) and write(path))
  params = jax.tree.map(lambda x: x + 0, state.params)  # the fixture's is compared below
  step = jax.jit(lambda params: jax.tree.map(lambda x: x + 1, params), donate_argnums=0)
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'params': params})
    for _ in range(3):
      params = step(params)
    assert not (tmp_path / 'checkpoint_1').exists()
    go.set()
  restored = store.restore_params(tmp_path, params)
  jax.tree.map(np.testing.assert_array_equal, restored, state.params)


def test_the_newest_and_the_best_are_kept(tmp_path, state):
  losses = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.8, 5: 0.7}
  with store.Checkpoints(tmp_path, keep=2) as checkpoints:
    for step, loss in losses.items():
      checkpoints.save(step, state, validation_loss=loss)
  assert steps_in(tmp_path) == [2, 4, 5]
  assert store.locate(tmp_path)[1] == 5
  assert store.locate(tmp_path, 'best')[1] == 2
  assert store.locate(tmp_path, 4)[1] == 4
  assert store.locate(tmp_path / 'checkpoint_4')[1] == 4


def test_without_validation_the_best_is_the_last(tmp_path, state):
  with store.Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, state)
  assert steps_in(tmp_path) == [2, 3]
  assert store.locate(tmp_path, 'best')[1] == 3


def test_a_step_is_saved_once(tmp_path, state):
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.save(1, jax.tree.map(lambda x: x * 0, state))
    restored = checkpoints.restore(1, state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_an_unfinished_checkpoint_does_not_count(tmp_path, state):
  with store.Checkpoints(tmp_path, keep=3) as checkpoints:
    checkpoints.save(1, state)
  half = tmp_path / 'checkpoint_2.orbax-checkpoint-tmp'
  (half / 'state').mkdir(parents=True)
  with store.Checkpoints(tmp_path, keep=3) as checkpoints:
    assert checkpoints.latest() == 1
    checkpoints.save(2, state)
  assert store.locate(tmp_path)[1] == 2


def test_a_base_is_not_taken_for_the_rest_of_a_killed_save(tmp_path, state):
  rest = tmp_path / 'base.orbax-checkpoint-tmp'
  (rest / 'd').mkdir(parents=True)
  for number in range(8):
    (rest / 'd' / str(number)).write_text('half')
  with store.Checkpoints(tmp_path) as checkpoints:
    assert not rest.exists()  # at once, and nothing is removed from here on
    checkpoints.save_base(state.params)
    restored = checkpoints.restore_base(state.params)
  jax.tree.map(np.testing.assert_array_equal, restored, state.params)


def test_parameters_alone_can_be_restored_in_another_type_and_place(tmp_path, state):
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
  mesh = partitioning.make_mesh(data=2, fsdp=4)
  sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'fsdp'))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  like = {
    'block': {'w': jax.ShapeDtypeStruct((3, 4), jnp.bfloat16, sharding=sharded)},
    'b': jax.ShapeDtypeStruct((3,), jnp.float32, sharding=everywhere),
  }
  params = store.restore_params(tmp_path, like)
  assert params['block']['w'].dtype == jnp.bfloat16
  assert params['block']['w'].sharding == sharded
  np.testing.assert_array_equal(params['block']['w'], state.params['block']['w'])


def test_other_arrays_are_an_error_that_names_them(tmp_path, state):
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
  wider = {'block': {'w': jnp.ones((3, 5))}, 'b': jnp.ones(3)}
  with pytest.raises(store.CheckpointError, match=r'params/block/w is \(3, 4\), expected \(3, 5\)'):
    store.restore_params(tmp_path, wider)
  with pytest.raises(store.CheckpointError, match='params/c is missing'):
    store.restore_params(tmp_path, {'c': jnp.ones(3)})


@pytest.mark.parametrize(
  ('path', 'which', 'message'),
  [
    ('nowhere', 'last', 'there is no run directory'),
    ('', 'last', 'no finished checkpoint'),
    ('run', 9, r'no checkpoint of step 9; it holds: 1'),
    ('run/checkpoint_8', 'last', 'no checkpoint of step 8'),
  ],
)
def test_a_missing_checkpoint_is_an_error_that_says_what_there_is(
  tmp_path, state, path, which, message
):
  with store.Checkpoints(tmp_path / 'run') as checkpoints:
    checkpoints.save(1, state)
  with pytest.raises(store.CheckpointError, match=message):
    store.locate(tmp_path / path, which)


def test_a_damaged_checkpoint_is_an_error(tmp_path, state):
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
  (tmp_path / 'checkpoint_1' / 'state' / '_METADATA').write_text('{')
  with pytest.raises(store.CheckpointError, match=r'checkpoint_1.* is damaged'):
    store.restore_params(tmp_path, state.params)


def test_a_directory_says_what_its_checkpoints_are_and_refuses_another_model(tmp_path):
  mine = {'model': {'family': 't5', 'layers': (1, 2)}, 'vocabulary': 'abc'}
  store.write_description(tmp_path, mine)
  store.write_description(tmp_path, mine)
  assert store.read_description(tmp_path)['model'] == {'family': 't5', 'layers': [1, 2]}
  assert store.read_description(tmp_path / 'checkpoint_3')['vocabulary'] == 'abc'
  other = mine | {'model': {'family': 't5', 'layers': (1, 3)}}
  with pytest.raises(store.CheckpointError, match=r'model layers is \[1, 2\] there and \[1, 3\]'):
    store.write_description(tmp_path, other)
  assert store.read_description(tmp_path)['model']['layers'] == [1, 2]


def test_no_or_a_damaged_description_is_an_error(tmp_path):
  with pytest.raises(store.CheckpointError, match='is missing'):
    store.read_description(tmp_path)
  (tmp_path / 'model.json').write_text('{"model": ')
  with pytest.raises(store.CheckpointError, match='damaged'):
    store.read_description(tmp_path)


def test_a_checkpoint_written_in_place_of_another_has_another_identity(tmp_path, state):
  identities = set()
  for _ in range(2):
    with store.Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(1, state)
    identities.add(store.identity(tmp_path, 1))
    assert store.identity(tmp_path, 1) in identities
    shutil.rmtree(tmp_path / 'checkpoint_1')
  assert len(identities) == 2
  assert all(json.loads(identity) for identity in identities)


def test_saving_goes_on_beside_the_next_steps(tmp_path, state, monkeypatch):
  """The writer is held up; `save` returns all the same, and nothing counts before it is done."""
  go, write = threading.Event(), store.checksums.write
  monkeypatch.setattr(store.checksums, 'write', lambda path: go.wait(60) and write(path))
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state)
    checkpoints.check()
    assert not (tmp_path / 'checkpoint_1').exists()
    go.set()
  assert store.locate(tmp_path)[1] == 1


def test_the_type_that_is_asked_for_is_the_type_that_is_written(tmp_path):
  import orbax.checkpoint as ocp

  params = {'w': jnp.arange(6, dtype=jnp.bfloat16), 'n': jnp.arange(3, dtype=jnp.int8)}
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'params': params})
  stored = ocp.StandardCheckpointer().metadata(tmp_path / 'checkpoint_1' / 'state')
  types = {name: leaf.dtype for name, leaf in stored.item_metadata.tree['params'].items()}
  assert types == {'w': jnp.bfloat16, 'n': jnp.int8}


def saved(directory, state, losses, *, keep, trained=lambda step: True):
  with store.Checkpoints(directory, keep=keep) as checkpoints:
    for step, loss in losses.items():
      checkpoints.save(step, state, validation_loss=loss, trained=trained(step))
  return steps_in(directory)


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
  ('losses', 'steps', 'best'),
  [
    ({1: 1.0, 2: 3.0, 3: 2.5, 4: NAN}, [1, 3, 4], 1),
    ({1: NAN, 2: 3.0, 3: INF, 4: NAN}, [2, 3, 4], 2),
    ({1: 1.0, 2: -INF, 3: 2.5, 4: 2.5}, [1, 3, 4], 1),
    ({1: 2.0, 2: 1.0, 3: 1.0, 4: 3.0, 5: 3.0}, [3, 4, 5], 3),  # the newer of two ties
    ({1: None, 2: 2.0, 3: None, 4: None}, [2, 3, 4], 2),
    ({1: None, 2: NAN}, [1, 2], 1),
  ],
)
def test_a_loss_that_is_not_finite_is_never_the_best(losses, steps, best, tmp_path, state):
  assert saved(tmp_path, state, losses, keep=2) == steps
  assert store.locate(tmp_path, 'best')[1] == best
  assert store.locate(tmp_path)[1] == max(losses)


def test_a_run_without_any_finite_loss_says_so(tmp_path, state, caplog):
  saved(tmp_path, state, {1: NAN, 2: NAN}, keep=2)
  assert store.locate(tmp_path, 'best')[1] == 2
  assert 'no validation loss of a checkpoint is finite' in caplog.text


def test_the_last_checkpoint_that_trained_on_stays_beside_a_ruined_one(tmp_path, state):
  """Without validations, a checkpoint is known to be sound by the updates after it."""
  ruined = lambda step: step <= 2  # of step 2: no update is applied after it
  losses = dict.fromkeys((1, 2, 3, 4))
  assert saved(tmp_path, state, losses, keep=1, trained=ruined) == [1, 4]
  # Resumed, and still no update: what is sound is unknown, so nothing goes.
  assert saved(tmp_path, state, {5: None}, keep=1, trained=ruined) == [1, 4, 5]
  assert saved(tmp_path, state, {6: None}, keep=1) == [5, 6]


def test_one_checkpoint_is_enough_if_its_validation_is_finite(tmp_path, state):
  assert saved(tmp_path, state, {1: 3.0, 2: 2.0}, keep=1) == [2]
  assert saved(tmp_path, state, {3: NAN}, keep=1) == [2, 3]
