"""Run a program of `cascades` on all workers of a TPU VM.

    python -m launch.tpu_vm --name=me --zone=us-east5-a --accelerator_type=v5litepod-16 --spot \\
      -- cascades.train --gin_file=recipes/... --gin.MODEL_DIR=gs://...

Creates the machine or reuses the one of that name, installs the package with its constraints, runs
the program on every worker with --multihost, prints the log of worker 0, and stores all logs in
--logs. A preempted machine is created again and the same command rerun. At the end the machine is
deleted unless --keep. --queued uses a queued resource. With --replicas so many machines, NAME-0 and
so on, run the same command and divide its shards. Requires `gcloud`, logged in.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from launch import logs, remote, replicas, restarting, stages

_TYPE = flags.DEFINE_string('accelerator_type', None, 'v4-32, v5litepod-16, v5p-128, v6e-64, ...')
_RUNTIME = flags.DEFINE_string(
  'runtime_version', None, 'Runtime version; by default that of the TPU generation.'
)
_SPOT = flags.DEFINE_boolean('spot', False, 'Cheaper, but preempted at any time.')
_RESERVED = flags.DEFINE_boolean('reserved', False, 'Use a reservation.')
_QUEUED = flags.DEFINE_boolean('queued', False, 'Request a queued resource and wait for it.')
_NETWORK = flags.DEFINE_string('network', None, 'Network of the machine.')
_SUBNETWORK = flags.DEFINE_string('subnetwork', None, 'Subnetwork of the machine.')
_INTERNAL = flags.DEFINE_boolean('internal_ips', False, 'No external IP addresses.')
_ACCOUNT = flags.DEFINE_string('service_account', None, 'Service account of the machine.')
_POLL = flags.DEFINE_float('poll', 15.0, 'Seconds between queries of a state.')

TPU = ['gcloud', 'compute', 'tpus']
RUNTIMES = {
  'v2': 'tpu-ubuntu2204-base',
  'v3': 'tpu-ubuntu2204-base',
  'v4': 'tpu-ubuntu2204-base',
  'v5litepod': 'v2-alpha-tpuv5-lite',
  'v5p': 'v2-alpha-tpuv5',
  'v6e': 'v2-alpha-tpuv6e',
}
GONE = {'PREEMPTED', 'TERMINATED', 'STOPPED', 'STOPPING', 'FAILED', 'SUSPENDED', 'SUSPENDING', ''}
NOT_FOUND = 'NOT_FOUND'  # in the output of gcloud
LOST = 255  # ssh's own: no connection, or a signal ended the program
# The images have an older Python than the package needs; uv installs its own.
INSTALL = """set -e; cd cascades
python3 -m pip install --quiet --user uv
test -x venv/bin/python || ~/.local/bin/uv venv --quiet --python 3.11 venv
~/.local/bin/uv pip install --quiet --python venv/bin/python --reinstall-package lm-cascades \
-c constraints.txt {requirement} 'jax[tpu]'"""
# gcloud reruns a command when its connection breaks: the old program is stopped and saves.
STOP = (
  'p=$(cat pid 2>/dev/null) && grep -qa cascades /proc/$p/cmdline 2>/dev/null && kill -TERM $p '
  '&& timeout 120 tail --pid=$p -f /dev/null'
)


def main(argv: Sequence[str]) -> None:
  name = remote.named()
  replicas.launch_if_requested('launch.tpu_vm', sys.argv[1:], name=name)
  words = stages.program(argv[1:], python='venv/bin/python', is_replica=replicas.is_replica())
  multihost = ['--multihost'] if stages.has_process_flags(argv[1]) else []
  if not _TYPE.value:
    raise app.UsageError('--accelerator_type is missing: name a type, such as v5litepod-16.')
  run = remote.executor()
  command = shlex.join([*remote.environment(), *words, *multihost])
  try:
    sys.exit(restarting.exit_code(lambda: launch(name, command, run)))
  except (RuntimeError, OSError) as error:
    sys.exit(f'launch.tpu_vm: error: {error}')


def launch(name: str, command: str, run: remote.Execute) -> int:
  """Run the program to its final exit code, and delete the machine in any case unless --keep."""
  package, progress = remote.package(run), restarting.Progress()
  begun = False

  def attempt() -> int:
    nonlocal begun
    ensure(name, run)
    install(name, package, run)
    begun = True
    code = start(name, command, run, progress)
    # When the machine is gone, so is the program, whatever code ssh returns.
    return restarting.PREEMPTED if code and state(name, run) in GONE else code

  try:
    return restarting.until_final(
      attempt,
      max_restarts=restarting.MAX_RESTARTS.value,
      progress=progress.value,
      first_wait=restarting.RESTART_WAIT.value,
      was_killed=lambda code: code == LOST,
    )
  except KeyboardInterrupt:
    if begun:
      print('asking the program to save; interrupt again to stop waiting.', flush=True)
      run(_ssh(name, f'cd cascades; {STOP}'))
    raise
  finally:
    if not remote.KEEP.value:
      delete(name, run)


def ensure(name: str, run: remote.Execute) -> None:
  """Wait until a machine of this name is ready, and create it if necessary."""
  current = state(name, run)
  if current in GONE:
    ask = create_queued if _QUEUED.value else create
    if current:
      remote.checked(_delete(name, run), f'deleting {name}, which is {current},')
    remote.checked(remote.until_capacity(lambda: ask(name, run)), f'creating {name}')
    current = state(name, run) or 'READY'  # a dry run has no states
  while current != 'READY':
    if current in GONE:
      raise RuntimeError(f'{name} is {current} instead of READY: inspect and delete it.')
    time.sleep(_POLL.value)
    current = state(name, run)


def create(name: str, run: remote.Execute) -> remote.Answer:
  """Request the machine once."""
  return run([*TPU, 'tpu-vm', 'create', name, f'--version={_version()}', *_options()])


def create_queued(name: str, run: remote.Execute) -> remote.Answer:
  """Request a queued resource unless it is queued already, wait, and delete it on failure."""
  resource = 'queued-resources'
  current = _state(resource, name, run, 'state.state')
  if not current:
    node = [f'--node-id={name}', f'--runtime-version={_version()}']
    asked = run([*TPU, resource, 'create', name, *node, *_options()])
    if asked.code:
      return asked
    current = _state(resource, name, run, 'state.state') or 'ACTIVE'  # a dry run has no states
  while current != 'ACTIVE':
    if current in GONE:
      _delete(name, run)
      return remote.Answer(1, f'the queued resource is {current or "deleted"}: no more capacity')
    time.sleep(_POLL.value)
    current = _state(resource, name, run, 'state.state')
  return remote.Answer(0, '')


def _version() -> str:
  version = _RUNTIME.value or RUNTIMES.get(_TYPE.value.split('-')[0])
  if not version:
    raise RuntimeError(
      f'no runtime version is known for {_TYPE.value}: give --runtime_version, of '
      '`gcloud compute tpus tpu-vm versions list`.'
    )
  return version


def _options() -> list[str]:
  """Options of the machine, for both ways to create it."""
  switches = {'spot': _SPOT, 'reserved': _RESERVED, 'internal-ips': _INTERNAL}
  values = {'network': _NETWORK, 'subnetwork': _SUBNETWORK, 'service-account': _ACCOUNT}
  return [
    f'--accelerator-type={_TYPE.value}',
    *remote.location(),
    *(f'--{option}' for option, flag in switches.items() if flag.value),
    *(f'--{option}={flag.value}' for option, flag in values.items() if flag.value),
    '--quiet',
  ]


def state(name: str, run: remote.Execute) -> str:
  """State of the machine, such as READY or PREEMPTED; empty if it does not exist."""
  return _state('tpu-vm', name, run, 'state')


def _state(resource: str, name: str, run: remote.Execute, field: str) -> str:
  describe = [*TPU, resource, 'describe', name, *remote.location(), f'--format=value({field})']
  answer = run(describe)
  if answer.code and NOT_FOUND in answer.text:
    return ''
  lines = [line.strip() for line in remote.checked(answer, f'looking for {name}').text.splitlines()]
  return next((line for line in lines if re.fullmatch('[A-Z_]+', line)), '')  # among warnings


def install(name: str, package: remote.Package, run: remote.Execute) -> None:
  everywhere = [*remote.location(), '--worker=all', '--quiet']
  scp = [*TPU, 'tpu-vm', 'scp', *map(str, package.files), f'{name}:cascades/', *everywhere]
  script = INSTALL.format(requirement=package.requirement)
  for command in (_ssh(name, 'mkdir -p cascades'), scp, _ssh(name, script)):
    remote.checked(run(command), f'installing the package on {name}')


def start(name: str, command: str, run: remote.Execute, progress: restarting.Progress) -> int:
  """Run the program on all workers, print the log of worker 0, and return the first error code."""
  directory = logs.directory(name)  # one per attempt: gcloud truncates old logs
  script = f'cd cascades; {STOP}; echo $$ > pid; exec {command}'

  def show(line: str) -> None:
    progress.read(line)
    print(f'[0] {line}', flush=True)

  with logs.following(directory / '0.log', show):
    code = run(_ssh(name, script, f'--output-directory={directory}')).code
  if code:
    print(f'exit code {code}; the logs of all workers are in {directory}', flush=True)
  return code


def _ssh(name: str, script: str, *options: str) -> list[str]:
  """Command for all workers; a silent connection ends, as a preempted machine never closes it."""
  alive = '--ssh-flag=-o ServerAliveInterval=30'
  everywhere = [*remote.location(), '--worker=all', '--quiet', alive, *options]
  return [*TPU, 'tpu-vm', 'ssh', name, *everywhere, f'--command={script}']


def delete(name: str, run: remote.Execute) -> None:
  answer = _delete(name, run)
  if answer.code and NOT_FOUND not in answer.text:
    print(
      f'{name} COULD NOT BE DELETED and may continue to incur costs: see `gcloud compute tpus`.'
    )


def _delete(name: str, run: remote.Execute) -> remote.Answer:
  if _QUEUED.value:
    command = [*TPU, 'queued-resources', 'delete', name, *remote.location(), '--force']
  else:
    command = [*TPU, 'tpu-vm', 'delete', name, *remote.location()]
  return run([*command, '--quiet'])


if __name__ == '__main__':
  app.run(main)
