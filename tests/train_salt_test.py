"""A model that learns from a smaller one at first: the switch, its ends, and resuming across it."""

import dataclasses
import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import losses
from cascades.runtime import partitioning
from cascades.teachers import TeacherError
from cascades.training import metrics_log, optimizers, setup, train_step
from tests import testing, tiny
from tests.train_test import final_state

STEPS, SWITCH = 4, 2
OMEGA, RHO = 0.5, 0.5
DATA = ('task', 'task_feature_lengths', 'batch_size', 'mesh', 'records_dir')
# It decays, so that the steps after a switch which restarted it would be longer.
STEP = setup.Step(
  learning_rate=optimizers.cosine(1e-2, total_steps=STEPS), optimizer=optimizers.adamw
)
DIST = partial(losses.dist, w=1 - OMEGA, rho=RHO)


def salt(steps, omega=OMEGA):
  return partial(losses.salt, omega=losses.hard_switch(omega, steps=steps), rho=RHO)


def assert_close(actual, expected, rtol=1e-5):
  jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=1e-7), actual, expected)


def differ(tree, other):
  return any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), tree, other)))


# -- steps in memory -------------------------------------------------------------------------------

MODEL = dataclasses.replace(testing.TINY_DECODER, num_layers=1)
TEACHER = dataclasses.replace(MODEL, emb_dim=8)


def program(loss, teacher=TEACHER):
  """A compiled step, as `train` makes it: the second of its stages has no teacher."""
  step = dataclasses.replace(STEP, loss=loss)
  params = testing.split(testing.build(TEACHER))[1] if teacher else None
  with partitioning.use(tiny.one_device()):
    run = setup.abstract_run(setup.SmallModel(MODEL), setup.LargeModel(TEACHER), step.transform)
    frozen = train_step.Frozen(jax.tree.map(jnp.array, params))
    compiled = setup.compiled_step(run if teacher else run.alone, step)
    return setup.on_batches(compiled, frozen, lambda *_: None)


def after_each_step(step, state=None):
  """States and losses after each step of a run, or after those that follow on a state."""
  params, history = testing.split(testing.build(MODEL))[1], []
  batches = [jax.tree.map(np.asarray, testing.batch(MODEL, seed=seed)) for seed in range(STEPS)]
  with partitioning.use(tiny.one_device()):
    state = state or train_step.init_state(params, STEP.transform, 0)
    state = jax.tree.map(jnp.array, state)
    for batch in batches[int(state.step) :]:
      state, totals = step(state, batch)
      # Copies, since the next step takes the arrays over.
      history.append((jax.tree.map(np.array, state), float(totals['loss'])))
  return history


@pytest.fixture(scope='module')
def stages():
  """The steps with a teacher, whose weight would last to the end, and those without."""
  loss = salt(STEPS)
  return program(loss), program(loss, teacher=None)


@pytest.fixture(scope='module')
def switched(stages):
  return after_each_step(setup.in_stages(stages, start=0, switch=SWITCH))


def test_a_switch_of_programs_is_a_switch_of_the_weight(switched):
  """Oracle 8: one program that does all steps has one optimizer state and one schedule."""
  at_once = after_each_step(program(salt(SWITCH)))
  assert_close(switched, at_once)


@pytest.mark.parametrize('start', [SWITCH - 1, SWITCH, SWITCH + 1])
def test_steps_that_follow_on_a_state_are_the_same_bit_by_bit(stages, switched, start):
  resumed = setup.in_stages(stages, start=start, switch=SWITCH)
  rest = after_each_step(resumed, state=switched[start - 1][0])
  assert len(rest) == STEPS - start
  jax.tree.map(np.testing.assert_array_equal, rest, switched[start:])


def test_the_ends_of_the_switch_are_a_plain_and_a_distilled_run(stages, switched):
  """Oracle 1: no steps with a teacher are BASELINE, bit by bit, and all steps are RKD."""
  baseline, rkd = (
    after_each_step(setup.in_stages(stages, start=0, switch=switch)) for switch in (0, STEPS)
  )
  plain = after_each_step(program(losses.xent, teacher=None))
  jax.tree.map(np.testing.assert_array_equal, baseline, plain)
  assert_close(rkd, after_each_step(program(DIST)))
  runs = [run[-1][0].params for run in (baseline, switched, rkd)]
  assert differ(*runs[:2])
  assert differ(*runs[1:])


# -- runs ------------------------------------------------------------------------------------------


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
      'learning_rate': STEP.learning_rate,
      'optimizer': STEP.optimizer,
      'log_every': STEPS - 1,
      'save_every': STEPS,
    }
    | changes,
  )


def aided(teacher, steps):
  """Settings of SALT with a teacher in the first `steps` steps."""
  return {'large_checkpoint_path': teacher, 'large_steps': steps, 'loss': salt(steps)}


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
def test_a_run_without_a_switch_of_programs_is_the_same_but_for_rounding(
  teacher, straight, tmp_path
):
  """Oracle 8: the teacher runs to the end, and its weight alone falls to 0."""
  tiny.train(**settings(tmp_path, large_checkpoint_path=teacher, loss=salt(SWITCH)))
  assert_close(final_state(straight[0], STEPS), final_state(tmp_path, STEPS))


@pytest.mark.slow
def test_the_ends_of_the_switch_are_runs_of_the_plain_losses(teacher, straight, tmp_path):
  """Oracle 1: no steps with a teacher are BASELINE; all are RKD, a run of `dist`."""
  tiny.train(**settings(tmp_path / 'none', **aided(None, 0)))
  tiny.train(**settings(tmp_path / 'plain'))
  assert_equal_states(tmp_path / 'none', tmp_path / 'plain')
  aided_values = tiny.train(**settings(tmp_path / 'all', **aided(teacher, STEPS)))
  values = tiny.train(**settings(tmp_path / 'dist', large_checkpoint_path=teacher, loss=DIST))
  for line, expected in zip(aided_values, values, strict=True):
    assert line['loss'] == pytest.approx(expected['loss'], rel=1e-5)
  params = {
    run: final_state(path, STEPS)['params']
    for run, path in {'salt': straight[0], **{p.name: p for p in tmp_path.iterdir()}}.items()
  }
  assert_close(params['all'], params['dist'])
  assert differ(params['salt'], params['plain'])
  assert differ(params['salt'], params['dist'])


@pytest.mark.slow
def test_a_teacher_of_no_weight_changes_no_number_but_by_rounding(teacher, tmp_path):
  """Oracle 1: bit by bit what the plain loss is beside the same teacher.

  A run without the teacher is another program, whose operations XLA fuses differently, with the
  plain loss as well: equal but for rounding.
  """
  beside = {'large_checkpoint_path': teacher}
  weightless = partial(losses.salt, omega=0.0, rho=RHO)
  tiny.train(**settings(tmp_path / 'weightless', **beside, loss=weightless))
  tiny.train(**settings(tmp_path / 'beside', **beside, loss=losses.xent))
  tiny.train(**settings(tmp_path / 'alone'))
  tiny.train(
    **settings(tmp_path / 'switched', **aided(teacher, SWITCH) | {'loss': salt(SWITCH, 0.0)})
  )
  assert_equal_states(tmp_path / 'weightless', tmp_path / 'beside')
  alone = final_state(tmp_path / 'alone', STEPS)['params']
  for run in ('weightless', 'switched'):
    assert_close(final_state(tmp_path / run, STEPS)['params'], alone)


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
