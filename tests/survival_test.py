"""Runs that are killed, ended and started again, as processes of their own."""

import functools
import os
import pathlib
import random
import re
import signal

import jax
import numpy as np
import pytest

from cascades.training import metrics_log
from tests.killing import SAVED_EVERY, Run, Topology

TOPOLOGIES = {
  'one device': Topology(1, 1),
  'eight devices': Topology(1, 8),
  'two processes': Topology(2, 1),
}
ONE = TOPOLOGIES['one device']
STEPS = 8


def final_state(directory, step):
  """All arrays of a checkpoint as they lie on disk, wherever they were before."""
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    path = directory / 'run' / f'checkpoint_{step}' / 'state'
    tree = checkpointer.metadata(path).item_metadata.tree
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=plain))


def metrics_by_step(directory):
  """The values of every step, exactly; each is logged once, whatever the run went through."""
  timing = ('steps_per_second', 'tokens_per_second', 'seconds_left', 'memory', 'mfu')
  lines = (directory / 'run' / metrics_log.METRICS).read_text().splitlines()
  metrics = metrics_log.read(directory / 'run')
  assert len(lines) == len(metrics)
  return {
    (step, name): value
    for step, values in metrics.items()
    for name, value in values.items()
    if name not in timing
  }


def assert_same_run(first: pathlib.Path, second: pathlib.Path, step: int) -> None:
  """Bit by bit: parameters, optimiser, step, key, and the metrics of every step, so also data."""
  jax.tree.map(np.testing.assert_array_equal, final_state(first, step), final_state(second, step))
  found = metrics_by_step(second)
  assert metrics_by_step(first) == found
  assert {(number, 'loss') for number in range(1, step + 1)} <= set(found)


def kill_somewhere(run, dice):
  """After up to two more checkpoints, and half of the time while the next is written."""
  run.wait_for('compiling included')
  run.wait_for_checkpoint(run.newest() + SAVED_EVERY * dice.randrange(3))
  if dice.random() < 0.5:
    run.wait_for_writing()
  run.kill()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Runs that nothing happens to; each is made once."""

  @functools.cache
  def make(topology, steps):
    directory = tmp_path_factory.mktemp('whole')
    Run(directory, topology, steps=steps).finish()
    return directory

  return make


def kill_and_resume(whole, directory, topology, *, kills, steps):
  """A run that is killed so often comes out as one that is not."""
  seed = random.SystemRandom().randrange(1 << 32)
  print('seed of the moments:', seed)  # shown if the test fails
  dice = random.Random(seed)
  for _ in range(kills):
    kill_somewhere(Run(directory, topology, steps=steps), dice)
    assert not (directory / 'run' / f'checkpoint_{steps}').exists()
  output = Run(directory, topology, steps=steps).finish()
  assert_same_run(whole(topology, steps), directory, steps)
  return output


@pytest.mark.parametrize(
  'name',
  ['one device', *(pytest.param(name, marks=pytest.mark.slow) for name in [*TOPOLOGIES][1:])],
)
def test_a_killed_run_goes_on_bit_by_bit(whole, tmp_path, name):
  kill_and_resume(whole, tmp_path, TOPOLOGIES[name], kills=1, steps=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize('topology', [Topology(1, 1), Topology(1, 8), Topology(4, 1)], ids=str)
def test_a_run_killed_twenty_times_goes_on_bit_by_bit(whole, tmp_path, topology):
  output = kill_and_resume(whole, tmp_path, topology, kills=20, steps=160)
  assert 'resuming from step' in output


# -- ended by SIGTERM ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def terminated(tmp_path_factory):
  """A run that is sent SIGTERM: how it ended, what it left, and what was said on its resumption."""
  directory = tmp_path_factory.mktemp('terminated')
  run = Run(directory, ONE, steps=STEPS, pause=0.3)
  run.wait_for(r'step 3/')
  run.send(signal.SIGTERM)
  codes = run.codes()
  left = [path.name for path in (directory / 'run').iterdir()]
  return run, codes, left, Run(directory, ONE, steps=STEPS).finish()


def test_sigterm_saves_the_step_that_is_under_way_and_exits_with_75(terminated):
  run, codes, left, resumed = terminated
  assert codes == [os.EX_TEMPFAIL] == [75]
  last = re.findall(r'^step (\d+)/', run.said(), re.MULTILINE)[-1]
  assert f'checkpoint_{last}' in left
  assert not [name for name in left if 'tmp' in name or name == '.lock']
  assert f'resuming from step {last}.' in resumed


def test_a_run_that_sigterm_ended_goes_on_bit_by_bit(whole, terminated):
  assert_same_run(whole(ONE, STEPS), terminated[0].directory, STEPS)


def test_sigterm_before_the_first_step_ends_at_once_and_breaks_nothing(tmp_path):
  run = Run(tmp_path, ONE, steps=40)
  run.wait_for('trained: ')
  run.send(signal.SIGTERM)
  assert run.codes() == [75]
  assert not list((tmp_path / 'run').glob('checkpoint_*'))
