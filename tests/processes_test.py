"""Several processes of one device each, as on a pod: training, and answering as one."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cascades.predictions import shards
from cascades.training import teacher_cache
from launch import local
from tests import tiny

TASK = """from __gin__ import dynamic_registration
from cascades.tasks import local
TASK = @local.local_jsonl()
TASK_FEATURE_LENGTHS = {{'inputs': 16, 'targets': 16}}
local.local_jsonl.name = 'mine'
local.local_jsonl.splits = {splits}
"""


@pytest.fixture
def here(tmp_path):
  """A folder with a task, whose 19 rows to answer divide by no number of processes."""
  splits = tiny.write_rows(tmp_path, rows=38)
  (tmp_path / 'task.gin').write_text(TASK.format(splits=splits))
  return tmp_path


def train(here):
  return [
    *(sys.executable, '-m', 'cascades.train', '--gin_file=recipes/local_train.gin'),
    *(f'--gin_file={here}/task.gin', '--gin_file=models/t5_nano.gin'),
    *('--gin.t5.Config.emb_dim=16', '--gin.t5.Config.mlp_dim=16', '--gin.BATCH_SIZE=8'),
    *(f'--gin.MODEL_DIR={here}/run', f'--gin.RECORDS_DIR={here}/records'),
    *('--gin.train.validation=None', '--gin.LOG_EVERY=2', '--gin.WARMUP_STEPS=1'),
  ]


def infer(here, name, *bindings):
  return [
    *(sys.executable, '-m', 'cascades.infer', '--gin_file=runs/infer.gin'),
    *(f'--gin_file={here}/task.gin', f'--gin.RECORDS_DIR={here}/records'),
    *(f'--gin.CHECKPOINT_PATH={here}/run', f'--gin.INFER_OUTPUT_DIR={here}/{name}'),
    *('--gin.BATCH_SIZE=8', '--gin.SHARD_ROWS=7', *bindings),
  ]


def together(command, here, processes=2):
  """What each process says; all must succeed."""
  fresh = next(path for n in itertools.count() if not (path := here / f'logs-{n}').exists())
  code = local.run(command, processes=processes, log_dir=fresh, grace=10.0, show=lambda _: None)
  said = [path.read_text() for path in sorted(fresh.iterdir())]
  assert code == 0, '\n'.join(said)
  return said


def test_two_processes_start_a_run_and_go_on_with_it(here):
  for steps, expected in ((4, 'step 4/4'), (6, 'resuming from step 4')):
    constant = '--gin.SCHEDULE=@optimizers.constant()'  # others depend on TRAIN_STEPS
    said = together([*train(here), f'--gin.TRAIN_STEPS={steps}', constant], here)
    assert expected.replace(' ', '') in said[0].replace(' ', '')
  kept = sorted(path.name for path in (here / 'run').glob('checkpoint_*'))
  assert kept == ['checkpoint_4', 'checkpoint_6']


@pytest.mark.slow
@pytest.mark.parametrize('processes', [2, 4])
def test_processes_answer_and_score_as_one_does(here, processes):
  together([*train(here), '--gin.TRAIN_STEPS=30'], here, processes=1)
  check_answers(here, processes=processes, modes=('predict', 'score'))


def check_answers(here, *, processes, modes):
  """The same ids and texts, log-probabilities to 1e-5; a row has as many tokens in both."""
  for mode in modes:
    tables = []
    for count in (1, processes):
      name = f'{mode}-{count}'
      together(infer(here, name, f'--gin.MODE={mode}'), here, processes=count)
      (table,) = shards.read(here / name / 'test', mode=mode)
      tables.append(table)
    one, many = tables
    assert len(one.ids) == 19
    assert (many.ids, list(many.predictions)) == (one.ids, list(one.predictions))
    np.testing.assert_array_equal(many.mask, one.mask)
    np.testing.assert_allclose(many.token_logprobs, one.token_logprobs, atol=1e-5)
    assert many.manifest['shards'] == 3


# Process 1 has a disk of its own, on which it sees nothing of what process 0 wrote.
ON_OTHER_DISKS = """
import runpy, sys
if sys.argv[-1] == '1':
  sys.argv = [word.replace('/answers', '/elsewhere') for word in sys.argv]
runpy.run_module('cascades.infer', run_name='__main__', alter_sys=True)
"""


@pytest.mark.slow
def test_processes_make_a_lost_shard_again_and_agree_which_it_is(here):
  together([*train(here), '--gin.TRAIN_STEPS=2'], here, processes=1)
  python, _, _, *words = infer(here, 'answers')
  command = [python, '-c', ON_OTHER_DISKS, *words]
  together(command, here)
  table = here / 'answers' / 'test'
  before = {path.name: path.read_bytes() for path in table.glob('*.jsonl-*')}
  assert len(before) == 6  # three shards, each with its marker
  (table / 'mine-predict.jsonl-00001-of-00003').unlink()
  said = together(command, here)
  assert {path.name: path.read_bytes() for path in table.glob('*.jsonl-*')} == before
  assert all('(2 shards existed)' in text for text in said)
  assert not (here / 'elsewhere').exists()


@pytest.mark.slow
@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_is_started_again_with_the_others_and_the_run_goes_on(here, sent):
  python, _, *words = train(here)
  launcher = subprocess.Popen(
    [
      *(python, '-m', 'launch.local', '--processes=2', f'--logs={here}/logs', '--', *words),
      *('--gin.TRAIN_STEPS=200', '--gin.SAVE_EVERY=20', '--heartbeat_timeout=20'),
    ]
  )
  said = lambda: ''.join(path.read_text() for path in here.glob('logs/*/process-0.log'))
  deadline = time.monotonic() + 300
  while not re.search(r'step +60/200', said()):
    assert launcher.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.1)
  children = pathlib.Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()
  os.kill(int(children[1]), sent)
  assert launcher.wait(400) == 0
  assert re.search(r'resuming from step (\d+)', said())
  assert 'step 200/200' in said()


@pytest.mark.slow
@pytest.mark.parametrize('processes', [2, 4])
def test_processes_make_the_teacher_cache_of_one_and_train_from_it(here, processes):
  together([*train(here), '--gin.TRAIN_STEPS=30'], here, processes=1)
  caches = []
  for count in (1, processes):
    command = [
      *(sys.executable, '-m', 'cascades.cache_teacher', '--gin_file=runs/cache_teacher.gin'),
      *(f'--gin_file={here}/task.gin', f'--gin.RECORDS_DIR={here}/records', '--gin.TOP_K=3'),
      *(f'--gin.CHECKPOINT_PATH={here}/run', f'--gin.TEACHER_CACHE={here}/cache-{count}'),
      *('--gin.BATCH_SIZE=8', '--gin.DTYPE=float32', '--gin.cache_teacher.shard_rows=15'),
    ]
    together(command, here, processes=count)
    place = teacher_cache.location(here / f'cache-{count}', 'mine', 'train')
    caches.append(teacher_cache.CachedAnswers.open(place).read(range(38)))
  one, many = caches
  np.testing.assert_array_equal(many.ids, one.ids)
  np.testing.assert_allclose(many.top_logprobs, one.top_logprobs, atol=1e-5)
  np.testing.assert_allclose(many.tail, one.tail, atol=1e-5)
  small = [*train(here), f'--gin.MODEL_DIR={here}/small', '--gin.TRAIN_STEPS=4']
  said = together(
    [*small, '--gin.LOSS=@losses.cat_dist', f'--gin.TEACHER_CACHE={here}/cache-{processes}'],
    here, processes=processes,
  )  # fmt: skip
  assert 'only_large' in said[0]
