"""Damaged checkpoints, for real: every file of one, in every way. Nobody reads them unknowingly."""

import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cascades.checkpoints import checksums, finished, store
from cascades.training.train_step import init_state


@pytest.fixture(scope='module')
def state():
  params = {'block': {'w': jax.random.normal(jax.random.key(0), (60, 50))}, 'b': jnp.ones(3)}
  return init_state(params, optax.adam(1e-3), seed=7)


@pytest.fixture(scope='module')
def complete(state, tmp_path_factory):
  """Checkpoint 1, and 2 of a lower loss."""
  directory = tmp_path_factory.mktemp('whole')
  with store.Checkpoints(directory) as checkpoints:
    for step, loss in ((1, 0.5), (2, 0.1)):
      checkpoints.save(step, jax.tree.map(lambda x, n=step: x * n, state), validation_loss=loss)
  return directory


@pytest.fixture
def run(complete, tmp_path):
  return pathlib.Path(shutil.copytree(complete, tmp_path / 'run'))


def empty(path):
  path.write_bytes(b'')


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path):
  path.unlink()


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def files_of(directory, step):
  return [path for path in (directory / f'checkpoint_{step}').rglob('*') if path.is_file()]


def data_file(directory, step):
  """The one with the arrays' bytes."""
  return max(files_of(directory, step), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize('harm', [empty, truncate, delete, flip])
def test_whatever_happens_to_whichever_file_the_previous_checkpoint_is_read_loudly(
  complete, state, tmp_path, caplog, harm
):
  """Damage to a file without information on the arrays may leave the checkpoint readable."""
  read = set()
  for path in files_of(complete, 2):
    run = pathlib.Path(shutil.copytree(complete, tmp_path / 'run', dirs_exist_ok=True))
    harm(run / path.relative_to(complete))
    caplog.clear()
    step = store.locate(run)[1]
    if step == 1:
      assert 'checkpoint_2 is damaged: ' in caplog.text
      assert path.name in caplog.text or path.name == checksums.MANIFEST
      assert 'Going back to checkpoint_1.' in caplog.text
    else:
      read.add(path.name)
      actual = store.restore_params(run, state.params)
      np.testing.assert_array_equal(actual['block']['w'], 2 * state.params['block']['w'])
  # Whether it is whole is then not known; the other two say when it was finished, and that it was.
  unknown = {checksums.MANIFEST} if harm is delete else set()
  assert unknown <= read <= unknown | {'commit_success.txt', finished.METADATA}


def test_a_step_that_was_asked_for_by_number_is_an_error_if_it_is_damaged(run, state):
  flip(data_file(run, 2))
  for path, which in ((run, 2), (run / 'checkpoint_2', 'last')):
    with pytest.raises(store.CheckpointError, match=r'checkpoint_2 is damaged: .* other content'):
      store.restore_params(path, state.params, which=which)


def test_the_best_checkpoint_is_passed_over_like_the_last(run, caplog):
  assert store.locate(run, 'best')[1] == 2
  truncate(data_file(run, 2))
  assert store.locate(run, 'best')[1] == 1
  assert 'Going back to checkpoint_1' in caplog.text


def test_if_all_are_damaged_it_is_an_error_that_names_each_and_says_what_to_do(run):
  empty(data_file(run, 1))
  delete(data_file(run, 2))
  for ask in (store.locate, finished.recover):
    with pytest.raises(store.CheckpointError) as refused:
      ask(run)
    message = str(refused.value)
    assert re.search(r'checkpoint_2 is damaged: \S* is missing; checkpoint_1 is damaged: ', message)
    assert re.search(r'has 0 of \d+ bytes\. Copy it again', message)


def test_a_run_goes_on_from_the_previous_one_and_writes_the_damaged_one_anew(run, state, caplog):
  flip(data_file(run, 2))
  assert finished.recover(run) == 1
  assert 'renamed to damaged_checkpoint_2' in caplog.text
  assert (run / 'damaged_checkpoint_2' / 'state').is_dir()
  with store.Checkpoints(run) as checkpoints:
    assert checkpoints.latest() == 1
    checkpoints.save(2, state)
  assert store.locate(run)[1] == 2
  flip(data_file(run, 2))
  assert finished.recover(run) == 1  # also where one was set aside before


def test_an_older_checkpoint_whose_metrics_cannot_be_read_does_not_stop_the_run(run):
  truncate(run / 'checkpoint_1' / 'metrics' / 'metrics')
  assert finished.recover(run) == 2
  with store.Checkpoints(run) as checkpoints:
    assert checkpoints.latest() == 2


def test_a_checkpoint_that_was_never_finished_is_named_and_not_read(run, caplog):
  (run / 'checkpoint_2').rename(run / 'checkpoint_2.orbax-checkpoint-tmp')
  assert finished.recover(run) == 1
  assert 'unfinished, and not read: checkpoint_2.orbax-checkpoint-tmp' in caplog.text


def test_a_checkpoint_without_checksums_is_read_with_a_warning(run, caplog):
  (run / 'checkpoint_2' / checksums.MANIFEST).unlink()
  assert store.locate(run)[1] == 2
  assert 'its files cannot be verified' in caplog.text


@pytest.mark.parametrize('content', ['{}', '[]', 'null', '{"a": 3}'])
def test_checksums_that_list_nothing_vouch_for_nothing(content, run, caplog):
  (run / 'checkpoint_2' / checksums.MANIFEST).write_text(content)
  assert store.locate(run)[1] == 1
  assert f'checkpoint_2 is damaged: {checksums.MANIFEST}' in caplog.text


def test_a_file_that_the_checksums_do_not_list_is_damage(run):
  file = run / 'checkpoint_2' / checksums.MANIFEST
  manifest = json.loads(file.read_text())
  name = max(manifest)
  del manifest[name]
  file.write_text(json.dumps(manifest))
  assert store.locate(run)[1] == 1
  (run / 'checkpoint_1' / '.DS_Store').write_text('')  # of a file manager
  assert store.locate(run)[1] == 1


def test_arrays_that_cannot_be_read_are_a_named_error_even_without_checksums(run, state):
  (run / 'checkpoint_2' / checksums.MANIFEST).unlink()
  truncate(data_file(run, 2))
  with pytest.raises(store.CheckpointError, match=r'checkpoint_2/state is damaged'):
    store.restore_params(run, state.params)


def test_a_damaged_base_of_adapters_is_a_named_error(state, tmp_path):
  with store.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save_base(state.params)
    flip(max((tmp_path / store.BASE).rglob('*'), key=lambda path: path.stat().st_size))
    with pytest.raises(store.CheckpointError, match=r'base is damaged: .* adapters'):
      checkpoints.restore_base(state.params)


def test_a_directory_without_checkpoints_is_where_a_run_begins(tmp_path):
  assert finished.recover(tmp_path) is None
