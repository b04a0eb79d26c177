"""Several processes of one run: ended together, and never left waiting for one that is gone."""

import re
import shutil
import signal

import jax
import numpy as np
import pytest

from tests.killing import Run, Topology
from tests.survival_test import final_state

TWO, FOUR = Topology(2, 1), Topology(4, 1)


@pytest.fixture(scope='module')
def preempted(tmp_path_factory):
  """SIGTERM to one process of two."""
  directory = tmp_path_factory.mktemp('preempted')
  run = Run(directory, TWO, steps=400)
  run.wait_for(r'step   3/400')
  run.send(signal.SIGTERM, to=1)
  return run, run.codes()


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all_at_the_same_step(preempted):
  run, codes = preempted
  assert codes == [75, 75]
  last = re.findall(r'^step +(\d+)/400', run.said(), re.MULTILINE)[-1]
  assert (run.directory / 'run' / f'checkpoint_{last}').is_dir()


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(preempted, tmp_path):
  run, _ = preempted
  shutil.copytree(run.directory / 'run', tmp_path / 'run')
  last = max(int(path.name[11:]) for path in (tmp_path / 'run').glob('checkpoint_*'))
  output = Run(tmp_path, Topology(1, 1), steps=last + 2).finish()
  assert f'resuming from step {last}.' in output


@pytest.mark.slow
def test_a_killed_process_ends_the_other_in_bounded_time_with_a_sentence(tmp_path):
  run = Run(tmp_path, TWO, steps=4000)
  run.wait_for(r'step    3/4000')
  run.send(signal.SIGKILL, to=1)
  (code, killed) = run.codes(seconds=60)  # heartbeats stop counting after 10
  assert killed == -signal.SIGKILL
  if code == 75:
    assert 'another process of the run failed or was lost' in run.said()
  else:  # JAX noticed it first
    assert code == -signal.SIGABRT, run.said()
    assert 'stopped sending heartbeats' in run.said() or 'task' in run.said()


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_four_to_the_same_numbers(tmp_path):
  Run(tmp_path / 'four', FOUR, steps=8).finish()
  shutil.copytree(tmp_path / 'four' / 'run', tmp_path / 'one' / 'run')
  shutil.rmtree(tmp_path / 'one' / 'run' / 'checkpoint_8')
  output = Run(tmp_path / 'one', Topology(1, 1), steps=8).finish()
  assert 'resuming from step 6.' in output
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
  four, one = (final_state(tmp_path / name, 8)['params'] for name in ('four', 'one'))
  jax.tree.map(close, one, four)
