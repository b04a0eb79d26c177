"""A disk that is really full: a small file system of its own, in a mount namespace of its own."""

import os
import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import pathlib, sys, threading
import jax, jax.numpy as jnp
from cascades.checkpoints import finished, store
from cascades.runtime import locking
from tests import tiny

MOUNT = pathlib.Path(sys.argv[1])
filler = MOUNT / 'filler'
state = lambda step: {'params': {'w': step * jax.random.normal(jax.random.key(0), (256, 256))}}
like = state(1)

def fill():
  with filler.open('wb', buffering=0) as file:
    try:
      while file.write(bytes(1 << 14)):
        pass
    except OSError as error:
      print('full:', error)

def whole(step):
  assert finished.recover(MOUNT / 'run') == step
  found = store.restore_params(MOUNT / 'run', like['params'])
  assert (found['w'] == state(step)['params']['w']).all()

# It stops: the failure is raised at the end at the latest, and what was there is whole.
with store.Checkpoints(MOUNT / 'run') as checkpoints:
  checkpoints.save(1, state(1))
fill()
try:
  with store.Checkpoints(MOUNT / 'run') as checkpoints:
    checkpoints.save(2, state(2))
except store.SaveError as error:
  print('stopped:', error)
whole(1)  # threads that still write to what was begun may leave some of it: the next run removes it

# It goes on: the failure is told, and when there is room again checkpoints are written again.
def make_room(error):
  print('told:', error)
  filler.unlink()

with store.Checkpoints(MOUNT / 'run', keep=3, on_failure=make_room) as checkpoints:
  checkpoints.save(2, state(2))
  checkpoints.save(3, state(3))
  checkpoints.save(4, state(4))
whole(4)
print('kept:', sorted(finished.steps(store.files.absolute(MOUNT / 'run'))))

# No directory can be made: the failure names it, and no thread waits for it.
spare = []
try:
  with locking.held(MOUNT / 'run'), store.Checkpoints(MOUNT / 'run') as checkpoints:
    try:
      while True:
        spare.append(MOUNT / f'spare-{len(spare)}')
        spare[-1].mkdir()
    except OSError:
      checkpoints.save(5, state(5))
except store.SaveError as error:
  print('no room for a name:', error)
names = ('serialize_shardings', 'array_type_handler', 'write_metadata_after_commits')
print('waiting:', [thread.name for thread in threading.enumerate() if thread.name in names])
"""


@pytest.fixture(scope='module')
def said(tmp_path_factory):
  mount = tmp_path_factory.mktemp('disk')
  if not shutil.which('unshare'):
    pytest.skip('there is no unshare to make a file system with')
  script = f'mount -t tmpfs -o size=3m,nr_inodes=400 tmpfs {mount} && exec "$@"'
  namespace = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c']
  if subprocess.run(
    [*namespace, script, 'sh', 'true'], check=False, capture_output=True
  ).returncode:
    pytest.skip('this machine lets nobody mount a file system of their own')
  done = subprocess.run(
    [*namespace, script, 'sh', sys.executable, '-c', PROGRAM, str(mount)],
    capture_output=True, text=True, check=False, env={**os.environ}, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  return dict(line.split(': ', 1) for line in done.stdout.splitlines() if ': ' in line)


def test_a_full_disk_stops_the_run_and_leaves_the_earlier_checkpoints_whole(said):
  assert 'No space left on device' in said['full']
  assert 'the checkpoint of step 2 could not be written to ' in said['stopped']
  assert 'Earlier checkpoints are intact: 1.' in said['stopped']


def test_a_run_that_is_to_go_on_writes_again_when_there_is_room(said):
  assert 'the checkpoint of step 2 could not be written to ' in said['told']
  assert said['kept'] == '[1, 3, 4]'


def test_a_directory_that_cannot_be_made_is_named_and_no_thread_waits_for_it(said):
  assert 'the checkpoint of step 5 could not be written to ' in said['no room for a name']
  assert "checkpoint_5.orbax-checkpoint-tmp'" in said['no room for a name']
  assert said['waiting'] == '[]'
