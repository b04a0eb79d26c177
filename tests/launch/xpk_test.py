"""The GKE launcher against an xpk that notes what it is asked and answers by a script."""

import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest

from launch.stages import ROOT
from tests.launch.fake_tool import Fake

PLACE = ['--cluster=c', '--zone=us-east5-a', '--project=mine']
GIVEN = ['--name=me', *PLACE, '--tpu_type=v5litepod-16', '--backoff=0.01']
PROGRAM = ['--', 'cascades.infer', """--gin.X={'it\'s "x"': '$HOME'}""", '--gin.SPLITS=("test",)']
READY_MADE = '--docker_image=gcr.io/mine/cascades:1'
DELETE = ['xpk', 'workload', 'delete', *PLACE, '--workload=me', '--force']


@pytest.fixture
def xpk(tmp_path):
  return Fake(tmp_path, 'xpk')


def verbs(xpk):
  return [call[2] for call in xpk.calls()]


def test_a_workload_is_made_waited_for_and_deleted(xpk):
  code, output = xpk.run('launch.xpk', *GIVEN, READY_MADE, '--max_restarts=7', *PROGRAM)
  assert code == 0, output
  create, wait, delete = xpk.calls()
  assert create[:-1] == [
    'xpk', 'workload', 'create', *PLACE, '--workload=me', '--tpu-type=v5litepod-16',
    '--num-slices=1', '--priority=medium', '--max-restarts=7', '--restart-on-user-code-failure',
    '--termination-grace-period-seconds=300', '--docker-image=gcr.io/mine/cascades:1',
  ]  # fmt: skip
  assert wait == ['xpk', 'workload', 'list', *PLACE, '--wait-for-job-completion=me']
  assert delete == DELETE


def test_a_shell_there_reads_the_programs_words_as_they_were_given_here(xpk):
  xpk.run('launch.xpk', *GIVEN, READY_MADE, '--env=A=b c', *PROGRAM)
  command = xpk.calls()[0][-1].removeprefix('--command=exec ')
  read = subprocess.run(
    ['bash', '-c', f'printf "%s\\0" {command}'], capture_output=True, text=True, check=True
  ).stdout.split('\0')[:-1]
  assert read == [
    'env', 'PYTHONUNBUFFERED=1', 'A=b c', 'python', '-m', *PROGRAM[1:], '--multihost'
  ]  # fmt: skip


def test_the_package_is_put_on_a_base_image_and_installed(xpk):
  xpk.run('launch.xpk', *GIVEN, '--version=0.1.0', *PROGRAM)
  create = xpk.calls()[0]
  assert '--base-docker-image=python:3.11' in create
  (directory,) = [word.partition('=')[2] for word in create if word.startswith('--script-dir=')]
  assert [file.name for file in pathlib.Path(directory).iterdir()] == ['constraints.txt']
  assert create[-1].startswith(
    '--command=pip install --quiet -c constraints.txt '
    "'lm-cascades[gcs]==0.1.0' 'jax[tpu]' && exec env"
  )


@pytest.mark.parametrize(
  ('script', 'code', 'expected'),
  [
    ([['create', 1, 'no such cluster']], 1, ['create', 'delete']),
    ([['create', 1, 'stockout']], 0, ['create', 'create', 'list', 'delete']),
    ([['list', 125, 'it failed']], 125, ['create', 'list', 'delete']),
  ],
  ids=['not made', 'no capacity', 'failed'],
)
def test_failures(xpk, script, code, expected):
  xpk.answer(script)
  exit_code, output = xpk.run('launch.xpk', *GIVEN, READY_MADE, *PROGRAM)
  assert exit_code == code
  assert verbs(xpk) == expected
  assert script[0][2] in output


def test_a_workload_is_kept_if_asked(xpk):
  xpk.run('launch.xpk', *GIVEN, READY_MADE, '--keep', *PROGRAM)
  assert verbs(xpk) == ['create', 'list']


def test_an_interrupted_launcher_deletes_its_workload(xpk):
  xpk.answer([['list', 'hang', 'waiting']])
  launcher = xpk.start('launch.xpk', *GIVEN, READY_MADE, *PROGRAM)
  xpk.wait_for('wait-for-job-completion')
  launcher.send_signal(signal.SIGINT)
  output = launcher.communicate(timeout=60)[0]
  assert launcher.returncode == 130, output
  assert xpk.calls()[-1] == DELETE


def test_a_rehearsal_prints_every_command_as_a_shell_takes_it_and_runs_none(xpk):
  code, rehearsed = xpk.run('launch.xpk', *GIVEN, '--version=0.1.0', '--dry_run', *PROGRAM)
  assert (code, xpk.calls()) == (0, [])
  xpk.run('launch.xpk', *GIVEN, '--version=0.1.0', *PROGRAM)
  clean = lambda text: re.sub(r'--script-dir=\S*', '', text)
  assert clean(rehearsed) == clean(''.join(shlex.join(call) + '\n' for call in xpk.calls()))


def test_what_is_missing_is_said(xpk):
  code, output = xpk.run('launch.xpk', '--name=me', *PROGRAM)
  assert code == 1
  assert '--cluster and --tpu_type must be given' in output


def test_replicas_are_workloads_of_their_own():
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'launch.xpk', *GIVEN, READY_MADE, '--dry_run', '--replicas=2'),
      *PROGRAM,
    ],
    cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  for number in range(2):
    assert f'replica {number}: xpk workload create ' in done.stdout
    assert f'--workload=me-{number} ' in done.stdout
