"""Training by several processes, each with one device, as on a pod."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests import tiny

TASK = """from __gin__ import dynamic_registration
from cascades.tasks import local
TASK = @local.local_jsonl()
TASK_FEATURE_LENGTHS = {{'inputs': 16, 'targets': 16}}
local.local_jsonl.name = 'mine'
local.local_jsonl.splits = {splits}
"""


@pytest.fixture
def command(tmp_path):
  (tmp_path / 'task.gin').write_text(TASK.format(splits=tiny.write_rows(tmp_path)))
  return [
    *(sys.executable, '-m', 'cascades.train', '--gin_file=recipes/local_train.gin'),
    *(f'--gin_file={tmp_path}/task.gin', '--gin_file=models/t5_nano.gin'),
    *('--gin.t5.Config.emb_dim=16', '--gin.t5.Config.mlp_dim=16', '--gin.BATCH_SIZE=8'),
    *(f'--gin.MODEL_DIR={tmp_path}/run', f'--gin.RECORDS_DIR={tmp_path}/records'),
    *('--gin.train.validation=None', '--gin.train.log_every=2', '--gin.WARMUP_STEPS=1'),
  ]


def together(command, *bindings):
  """What both processes say, and how they end."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  processes = [
    subprocess.Popen(
      [
        *(*command, *bindings, f'--coordinator_address=localhost:{port}'),
        *('--process_count=2', f'--process_index={index}'),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      env=environment,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=240)[0] for process in processes]
  return said, [process.returncode for process in processes]


def test_two_processes_start_a_run_and_go_on_with_it(command, tmp_path):
  for steps, expected in ((4, 'step 4/4'), (6, 'going on from step 4')):
    said, codes = together(command, f'--gin.TRAIN_STEPS={steps}')
    assert codes == [0, 0], '\n'.join(said)
    assert expected.replace(' ', '') in said[0].replace(' ', '')
  kept = sorted(path.name for path in (tmp_path / 'run').glob('checkpoint_*'))
  assert kept == ['checkpoint_4', 'checkpoint_6']
