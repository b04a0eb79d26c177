"""The TPU VM launcher against a gcloud that notes what it is asked and answers by a script."""

import re
import shlex
import signal
import subprocess
import sys

import pytest

from launch import tpu_vm
from launch.stages import ROOT
from tests.launch.fake_tool import Fake

PLACE = ['--zone=us-east5-a', '--project=mine']
GIVEN = [
  '--name=me', *PLACE, '--accelerator_type=v5litepod-16', '--version=0.1.0', '--backoff=0.01',
  '--poll=0.01', '--attempts=4',
]  # fmt: skip
BINDING = """--gin.SMALL={'it\'s "x"': 'gs://b/$HOME `x`', 'n': [1, 2]}"""
PROGRAM = ['--', 'cascades.train', '--gin_file=recipes/demo_small.gin', BINDING]
ABSENT = ['tpu-vm describe', 1, 'ERROR: (gcloud...) NOT_FOUND: no such node']
READY = ['tpu-vm describe', 0, 'READY']
NO_CAPACITY = 'There is no more capacity in the zone "us-east5-a" [EID: 0x9f4]'


@pytest.fixture
def gcloud(tmp_path):
  return Fake(tmp_path, 'gcloud')


def launch(gcloud, *more, script=(ABSENT,), program=PROGRAM):
  gcloud.answer([*script, *[READY] * 9])
  return gcloud.run('launch.tpu_vm', *GIVEN, '--restart_wait=0', *more, *program)


def verbs(gcloud):
  """Requests other than queries of the state."""
  return [call[3:5] for call in gcloud.calls() if call[4] != 'describe']


VM = [['tpu-vm', verb] for verb in ('create', 'ssh', 'scp', 'ssh', 'ssh', 'delete')]


def test_the_calls_of_a_run_that_goes_well(gcloud):
  code, output = launch(gcloud)
  assert code == 0, output
  assert verbs(gcloud) == VM
  tpu = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  look, create, _, mkdir, scp, install, run, delete = gcloud.calls()
  assert look == [*tpu, 'describe', 'me', *PLACE, '--format=value(state)']
  assert create == [
    *tpu, 'create', 'me', '--version=v2-alpha-tpuv5-lite', '--accelerator-type=v5litepod-16',
    *PLACE, '--quiet',
  ]  # fmt: skip
  everywhere = [*PLACE, '--worker=all', '--quiet']
  ssh = [*tpu, 'ssh', 'me', *everywhere, '--ssh-flag=-o ServerAliveInterval=30']
  assert mkdir == [*ssh, '--command=mkdir -p cascades']
  assert scp == [*tpu, 'scp', f'{ROOT}/constraints.txt', 'me:cascades/', *everywhere]
  assert install[: len(ssh)] == ssh
  assert "-c constraints.txt 'lm-cascades[gcs]==0.1.0' 'jax[tpu]'" in install[-1]
  assert run[: len(ssh)] == ssh
  assert delete == [*tpu, 'delete', 'me', *PLACE, '--quiet']


def test_a_shell_there_reads_the_programs_words_as_they_were_given_here(gcloud):
  launch(gcloud, '--env=LIBTPU_INIT_ARGS=--a=1 --b=2')
  script = gcloud.calls()[-2][-1].removeprefix('--command=')
  command = script.rpartition('; exec ')[2]
  read = subprocess.run(
    ['bash', '-c', f'printf "%s\\0" {command}'], capture_output=True, text=True, check=True
  ).stdout.split('\0')[:-1]
  assert read == [
    'env', 'PYTHONUNBUFFERED=1', 'LIBTPU_INIT_ARGS=--a=1 --b=2', 'venv/bin/python', '-m',
    *PROGRAM[1:], '--multihost',
  ]  # fmt: skip


@pytest.mark.parametrize('script', [tpu_vm.STOP, tpu_vm.INSTALL], ids=['stop', 'install'])
def test_what_is_run_there_is_shell(script):
  subprocess.run(['bash', '-n', '-c', script.replace('{requirement}', 'x')], check=True)


def test_what_still_runs_there_is_asked_to_stop_and_nothing_else_is(tmp_path):
  """The same shell as there, on a program of that name and on another one."""
  waits = 'import time; time.sleep(60)'
  for word, ended in (('cascades.train', True), ('another', False)):
    with subprocess.Popen([sys.executable, '-c', waits, word], stdin=subprocess.DEVNULL) as child:
      (tmp_path / 'pid').write_text(f'{child.pid}\n')
      # The child is waited for while the shell does: an ended child that nobody waits for is there.
      shell = subprocess.Popen(['bash', '-c', tpu_vm.STOP], cwd=tmp_path)
      if ended:
        assert child.wait(20) == -signal.SIGTERM
      shell.wait(20)
      assert (child.poll() is None) != ended
      child.kill()
  (tmp_path / 'pid').unlink()
  subprocess.run(['bash', '-c', f'{tpu_vm.STOP}; exit 0'], cwd=tmp_path, check=True)


def test_worker_0s_log_is_shown(gcloud):
  script = [ABSENT, ['exec env', 0, 'step 1, compiling included: 2 s\nstep 2\n']]
  _, output = launch(gcloud, script=script)
  assert '[0] step 1, compiling included: 2 s\n[0] step 2\n' in output


def test_options_of_the_machine(gcloud):
  launch(
    gcloud, '--spot', '--reserved', '--internal_ips', '--network=n', '--subnetwork=s',
    '--service_account=a@b', '--runtime_version=special',
  )  # fmt: skip
  create = gcloud.calls()[1]
  options = {'--spot', '--reserved', '--internal-ips', '--network=n', '--subnetwork=s'}
  assert options | {'--service-account=a@b', '--version=special'} <= set(create)


def test_a_machine_that_is_there_is_used_and_kept_if_asked(gcloud):
  launch(gcloud, '--keep', script=[READY])
  assert verbs(gcloud) == VM[1:-1]


@pytest.mark.parametrize('how', [NO_CAPACITY, 'RESOURCE_EXHAUSTED: try later'])
def test_a_stockout_is_tried_again(gcloud, how):
  code, output = launch(gcloud, script=[ABSENT, *[['create', 1, f'ERROR: {how}']] * 2])
  assert code == 0
  assert verbs(gcloud) == [['tpu-vm', 'create']] * 2 + VM
  assert 'trying again in 0.01 s' in output
  assert 'trying again in 0.02 s' in output


@pytest.mark.parametrize(
  ('times', 'says', 'asked'),
  [
    (9, NO_CAPACITY, 4),
    (1, 'PERMISSION_DENIED', 1),
    (1, 'RESOURCE_EXHAUSTED: Quota limit TPUV5s has been exceeded', 1),
  ],
  ids=['too often', 'another error', 'a quota'],
)
def test_what_cannot_be_created_is_an_error_that_says_why(gcloud, times, says, asked):
  code, output = launch(gcloud, script=[ABSENT, *[['create', 1, f'ERROR: {says}']] * times])
  assert code == 1
  assert verbs(gcloud) == [['tpu-vm', 'create']] * asked + [['tpu-vm', 'delete']]
  assert 'launch.tpu_vm: error: creating me failed with exit code 1' in output
  assert says in output
  assert 'Traceback' not in output


@pytest.mark.parametrize('keep', [(), ('--keep',)], ids=['deleted', 'kept'])
def test_the_programs_exit_code_is_the_launchers(gcloud, keep):
  script = [ABSENT, ['exec env', 3, 'cascades.train: error: no such file\n']]
  code, output = launch(gcloud, *keep, script=script)
  assert code == 3
  assert verbs(gcloud) == (VM[:-1] if keep else VM)
  assert 'no such file' in output


def test_a_failed_installation_runs_nothing(gcloud):
  code, output = launch(gcloud, script=[ABSENT, ['scp', 1, 'disk full']])
  assert code == 1
  assert verbs(gcloud) == [*VM[:3], VM[-1]]
  assert 'disk full' in output


@pytest.mark.parametrize('seen', ['PREEMPTED', 'TERMINATED'])
def test_a_preempted_machine_is_made_anew_and_the_same_command_goes_on(gcloud, seen):
  script = [ABSENT, READY, ['exec env', 255, ''], *[['tpu-vm describe', 0, seen]] * 2]
  code, _ = launch(gcloud, script=script)
  assert code == 0
  assert verbs(gcloud) == [*VM[:-1], *[['tpu-vm', 'delete']], *VM]
  runs = [
    re.sub('--output-directory=[^ ]*', '', shlex.join(c))
    for c in gcloud.calls()
    if 'exec env' in c[-1]
  ]
  assert len(runs) == 2
  assert runs[0] == runs[1]


def test_a_program_that_saved_and_stopped_is_started_again_on_the_same_machine(gcloud):
  code, _ = launch(gcloud, script=[ABSENT, ['exec env', 75, '']])
  assert code == 0
  assert verbs(gcloud) == [*VM[:-1], *VM[1:]]


def test_a_lost_connection_is_tried_again_a_few_times(gcloud):
  script = [ABSENT, *[['exec env', 255, '']] * 3]
  code, output = launch(gcloud, '--max_restarts=1', script=script)
  assert code == 255
  assert sum('exec env' in call[-1] for call in gcloud.calls()) == 2
  assert 'lost with exit code 255, and made no progress; restart 1 of 1' in output


@pytest.mark.parametrize(('sent', 'expected'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_an_interruption_lets_the_program_save_and_deletes_the_machine(gcloud, sent, expected):
  gcloud.answer([ABSENT, READY, ['exec env', 'hang', 'step 1']])
  launcher = gcloud.start('launch.tpu_vm', *GIVEN, *PROGRAM)
  gcloud.wait_for('exec env')
  launcher.send_signal(sent)
  output = launcher.communicate(timeout=60)[0]
  assert launcher.returncode == expected, output
  assert verbs(gcloud) == [*VM[:-1], ['tpu-vm', 'ssh'], ['tpu-vm', 'delete']]
  assert gcloud.calls()[-2][-1] == f'--command=cd cascades; {tpu_vm.STOP}'


def test_a_machine_that_cannot_be_deleted_is_said_loudly(gcloud):
  code, output = launch(gcloud, script=[ABSENT, ['delete', 1, 'PERMISSION_DENIED']])
  assert code == 0
  assert 'me COULD NOT BE DELETED' in output


QUEUE = 'queued-resources describe'


def test_a_queued_resource_is_asked_for_waited_for_and_deleted(gcloud):
  states = [[QUEUE, 0, state] for state in ('WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE')]
  absent = [[QUEUE, 1, 'NOT_FOUND']]
  code, output = launch(gcloud, '--queued', '--spot', script=[ABSENT, *absent, *states])
  assert code == 0, output
  create = next(call for call in gcloud.calls() if 'create' in call)
  assert create == [
    'gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'me', '--node-id=me',
    '--runtime-version=v2-alpha-tpuv5-lite', '--accelerator-type=v5litepod-16', *PLACE, '--spot',
    '--quiet',
  ]  # fmt: skip
  assert gcloud.calls()[-1] == [
    'gcloud', 'compute', 'tpus', 'queued-resources', 'delete', 'me', *PLACE, '--force', '--quiet'
  ]  # fmt: skip
  assert sum('queued-resources' in call and 'describe' in call for call in gcloud.calls()) == 4


def test_a_queued_resource_that_failed_is_asked_for_again(gcloud):
  states = [[QUEUE, 1, 'NOT_FOUND'], [QUEUE, 0, 'FAILED'], [QUEUE, 1, 'NOT_FOUND']]
  code, _ = launch(gcloud, '--queued', script=[ABSENT, *states, [QUEUE, 0, 'ACTIVE']])
  assert code == 0
  asked = [call[4] for call in gcloud.calls() if call[3] == 'queued-resources']
  assert asked == [
    'describe', 'create', 'describe', 'delete', 'describe', 'create', 'describe', 'delete'
  ]  # fmt: skip


def test_one_that_stands_in_the_queue_keeps_its_place(gcloud):
  states = [[QUEUE, 0, 'WAITING_FOR_RESOURCES'], [QUEUE, 0, 'ACTIVE']]
  launch(gcloud, '--queued', script=[ABSENT, *states])
  assert not any('create' in call for call in gcloud.calls())


def test_a_rehearsal_prints_every_command_as_a_shell_takes_it_and_runs_none(gcloud):
  code, rehearsed = launch(gcloud, '--dry_run')
  assert code == 0
  assert gcloud.calls() == []
  launch(gcloud)
  clean = lambda text: re.sub(r'--output-directory=\S*', '', text)
  assert clean(rehearsed) == clean(''.join(shlex.join(call) + '\n' for call in gcloud.calls()))


def test_a_rehearsal_of_a_queued_resource_ends(gcloud):
  code, output = launch(gcloud, '--dry_run', '--queued')
  assert code == 0
  assert 'queued-resources create me' in output


def test_this_checkout_is_built_and_copied_with_its_constraints(gcloud):
  given = [word for word in GIVEN if '--version' not in word]
  _, output = gcloud.run('launch.tpu_vm', *given, '--dry_run', *PROGRAM)
  build, *_, scp = [line for line in output.splitlines() if 'wheel' in line and 'ssh' not in line]
  assert shlex.split(build)[1:4] == ['-m', 'pip', 'wheel']
  directory = re.search(r'--wheel-dir=(\S+)', build)[1]
  assert (
    f'{directory}/lm_cascades-0.1.0-py3-none-any.whl {ROOT}/constraints.txt me:cascades/' in scp
  )
  assert '"lm-cascades[gcs] @ file://$PWD/lm_cascades-0.1.0-py3-none-any.whl"' in output


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--name=Me'], "--name is 'Me'"),
    (['--name=me'], '--accelerator_type is missing'),
    (['--name=me', '--accelerator_type=v99-8'], 'no runtime version is known for v99-8'),
    (['--name=me', '--accelerator_type=v4-8', '--env=X'], "--env='X' must be NAME=value"),
  ],
  ids=str,
)
def test_what_is_missing_is_said(gcloud, arguments, message):
  gcloud.answer([ABSENT])
  code, output = gcloud.run('launch.tpu_vm', *arguments, '--version=1', *PROGRAM)
  assert code == 1
  assert message in output


def test_a_missing_gcloud_is_said(tmp_path):
  fake = Fake(tmp_path, 'xpk')
  code, output = fake.run('launch.tpu_vm', *GIVEN, *PROGRAM)
  assert code == 1
  assert 'gcloud is not on PATH: install it' in output
  assert 'Traceback' not in output


def test_replicas_are_machines_of_their_own_and_share_a_command(gcloud):
  """Those of a program without flags of several processes get none."""
  for program in ('cascades.infer', 'cascades.speculate'):
    done = subprocess.run(
      [
        *(sys.executable, '-m', 'launch.tpu_vm', *GIVEN, '--dry_run', '--replicas=2'),
        *('--', program, '--gin.SPLITS=("test",)'),
      ],
      cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(2):
      lines = [line for line in done.stdout.splitlines() if line.startswith(f'replica {number}: ')]
      assert any(f'tpu-vm create me-{number} ' in line for line in lines)
      assert any(f'tpu-vm delete me-{number} ' in line for line in lines)
      (run,) = [line for line in lines if 'exec env' in line]
      assert ('--multihost' in run) == (program == 'cascades.infer')
