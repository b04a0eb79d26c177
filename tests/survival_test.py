"""Runs that are killed, ended and started again, as processes of their own."""

import pathlib
import random
import signal

import jax
import numpy as np
import pytest

from tests.killing import Run, Topology
from tests.progress_test import read_events

TOPOLOGIES = {
  'one device': Topology(1, 1),
  'eight devices': Topology(1, 8),
  'two processes': Topology(2, 1),
}
STEPS = 8


def final_state(directory, step):
  """All arrays of a checkpoint as they lie on disk."""
  import orbax.checkpoint as ocp

  return ocp.StandardCheckpointer().restore(directory / 'run' / f'checkpoint_{step}' / 'state')


def metrics_by_step(directory):
  """The values of the last time that each step was logged, exactly."""
  timing = ('steps_per_second', 'tokens_per_second', 'seconds_left')
  events = read_events(directory / 'run' / 'train')
  return {(step, name): value for step, name, value in events if name not in timing}


def assert_same_run(first: pathlib.Path, second: pathlib.Path, step: int) -> None:
  """Bit by bit: parameters, optimiser, step, key, and the metrics of every step, so also data."""
  jax.tree.map(np.testing.assert_array_equal, final_state(first, step), final_state(second, step))
  found = metrics_by_step(second)
  assert metrics_by_step(first) == found
  assert {(number, 'loss') for number in range(1, step + 1)} <= set(found)


def kill_somewhere(run, dice):
  """While a checkpoint is written, or some steps after the first."""
  if dice.random() < 0.5:
    run.wait_for_writing()
  else:
    run.wait_for(r'compiling included')
    seen = len(run.said().splitlines())
    run.wait_for(rf'(?:.*\n){{{seen + dice.randrange(3)}}}')
  run.kill()


def kill_and_resume(tmp_path, topology, *, kills, steps):
  """A run that is killed so often, and one that is not."""
  dice = random.SystemRandom()
  seed = dice.randrange(1 << 32)
  print('seed of the moments:', seed)  # shown if the test fails
  dice = random.Random(seed)
  whole = Run(tmp_path / 'whole', topology, steps=steps)
  whole.finish()
  for number in range(kills):
    run = Run(tmp_path / 'killed', topology, steps=steps)
    kill_somewhere(run, dice)
    assert not (tmp_path / 'killed' / 'run' / f'checkpoint_{steps}').exists(), number
  output = Run(tmp_path / 'killed', topology, steps=steps).finish()
  assert_same_run(tmp_path / 'whole', tmp_path / 'killed', steps)
  return output


@pytest.mark.parametrize('name', TOPOLOGIES)
def test_a_killed_run_goes_on_bit_by_bit(tmp_path, name):
  kill_and_resume(tmp_path, TOPOLOGIES[name], kills=1, steps=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize('topology', [Topology(1, 1), Topology(1, 8), Topology(4, 1)], ids=str)
def test_a_run_killed_twenty_times_goes_on_bit_by_bit(tmp_path, topology):
  output = kill_and_resume(tmp_path, topology, kills=20, steps=80)
  assert 'going on from step' in output
