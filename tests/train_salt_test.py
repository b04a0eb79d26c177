"""A model that learns from a smaller one at first: the switch, its ends, and resuming across it."""

import logging

import jax
import numpy as np
import pytest

from cascades import losses
from cascades.teachers import TeacherError
from cascades.training import metrics_log, optimizers
from tests import tiny
from tests.train_test import final_state

STEPS, SWITCH = 4, 2
DATA = ('task', 'task_feature_lengths', 'batch_size', 'mesh', 'records_dir')


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  directory = tmp_path_factory.mktemp('teacher')
  tiny.train(**tiny.settings(directory, train_steps=2, log_every=0))
  return str(directory / 'run')


def settings(directory, **changes):
  """A run of the larger model."""
  directory.mkdir(exist_ok=True)
  return tiny.settings(
    directory,
    **{
      'small': tiny.LARGE,
      'train_steps': STEPS,
      'optimizer': optimizers.adamw,
      'log_every': STEPS - 1,
      'save_every': STEPS,
    }
    | changes,
  )


def aided(teacher, steps, omega=0.5):
  """Settings of SALT with a teacher in the first `steps` steps."""
  loss = lambda *args, step=None: losses.salt(
    *args, omega=losses.hard_switch(omega, steps=steps), rho=0.5, step=step
  )
  return {'large_checkpoint_path': teacher, 'large_steps': steps, 'loss': loss}


def assert_equal_states(directory, other):
  jax.tree.map(
    np.testing.assert_array_equal, final_state(directory, STEPS), final_state(other, STEPS)
  )


@pytest.fixture(scope='module')
def straight(teacher, tmp_path_factory):
  directory = tmp_path_factory.mktemp('straight')
  with pytest.MonkeyPatch.context() as patch:
    lines = []
    patch.setattr(logging.getLogger('cascades.train'), 'info', lambda *args: lines.append(args))
    history = tiny.train(**settings(directory, **aided(teacher, SWITCH)))
  return directory, history, [line[0] % line[1:] for line in lines]


@pytest.mark.slow
def test_a_run_that_is_resumed_before_the_switch_is_the_same_bit_by_bit(
  teacher, straight, tmp_path
):
  tiny.train(**settings(tmp_path, **aided(teacher, SWITCH), train_steps=1))
  tiny.train(**settings(tmp_path, **aided(teacher, SWITCH)))
  assert_equal_states(tmp_path, straight[0])


@pytest.mark.slow
def test_the_ends_of_the_switch_are_the_plain_losses(teacher, straight, tmp_path):
  """No steps with a teacher are BASELINE, which needs none; all steps are RKD, a `dist` loss."""
  tiny.train(**settings(tmp_path / 'none', **aided(None, 0)))
  tiny.train(**settings(tmp_path / 'plain'))
  assert_equal_states(tmp_path / 'none', tmp_path / 'plain')
  first = final_state(straight[0], STEPS)['params']
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), first, final_state(tmp_path / 'plain', STEPS)['params']
  )
  assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_teacher_of_no_weight_changes_no_number_but_by_rounding(teacher, tmp_path):
  """Oracle 1, across the switch."""
  tiny.train(**settings(tmp_path / 'weightless', **aided(teacher, SWITCH, omega=0.0)))
  tiny.train(**settings(tmp_path / 'plain'))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    final_state(tmp_path / 'weightless', STEPS)['params'],
    final_state(tmp_path / 'plain', STEPS)['params'],
  )


@pytest.mark.slow
def test_a_cache_of_all_choices_teaches_as_the_model_does(teacher, straight, tmp_path):
  data = {key: value for key, value in tiny.settings(tmp_path).items() if key in DATA}
  tiny.cache_teacher(
    checkpoint_path=teacher, directory=str(tmp_path / 'cache'), top_k=24, dtype='float32', **data
  )
  cached = aided(None, SWITCH) | {'teacher_cache': str(tmp_path / 'cache')}
  history = tiny.train(**settings(tmp_path, **cached))
  for values, expected in zip(history, straight[1], strict=True):
    assert values['loss'] == pytest.approx(expected['loss'], rel=1e-5)


def test_the_log_says_which_model_teaches_which_and_lines_cross_the_switch(straight, teacher):
  directory, history, lines = straight
  (line,) = [line for line in lines if 'learns from' in line]
  assert f'frozen model of {teacher}' in line
  assert '7,152 (0.27 times as many)' in line
  assert 'in the first 2 of 4 steps' in line
  # A line of steps on both sides has the values that all of them have.
  assert set(history[0]) == {'loss', 'accuracy', 'row_accuracy', 'grad_norm'}
  assert list(metrics_log.read(directory / 'run')) == [3, 4]


def test_steps_to_learn_from_no_teacher_are_refused_and_so_is_a_loss_that_cannot_do_without(
  teacher, tmp_path
):
  with pytest.raises(ValueError, match='LARGE_STEPS=2 steps are to learn from a frozen model'):
    tiny.train(**settings(tmp_path, **aided(None, 2)))
  with pytest.raises(TeacherError, match='after LARGE_STEPS=2 steps there is no teacher'):
    tiny.train(**settings(tmp_path, **aided(teacher, 2) | {'loss': losses.cat_xent}))
