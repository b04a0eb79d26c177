"""A program of `cascades` as a workload on GKE, through xpk.

    python -m launch.xpk --name=me --cluster=mine --zone=us-east5-a --tpu_type=v5litepod-16 \\
      --base_docker_image=python:3.11 -- cascades.train --gin_file=recipes/... --gin.MODEL_DIR=gs://...

xpk adds a wheel of this checkout to --base_docker_image, and the pods install it; an image of
--docker_image must contain the package. GKE restarts programs that were preempted, stopped or
failed, --max_restarts times in all: it knows no progress. Waits
for the end, and deletes the workload unless --keep. With --replicas so many workloads, NAME-0 and
so on, run the same command and divide its shards. Requires `xpk`, logged in; xpk prints a link to
the logs.
"""

from __future__ import annotations

import pathlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence

from absl import app, flags

from launch import remote, replicas, restarting, stages

_CLUSTER = flags.DEFINE_string('cluster', None, 'GKE cluster.')
_TYPE = flags.DEFINE_string('tpu_type', None, 'v4-32, v5litepod-16, v5p-128, v6e-64, ...')
_SLICES = flags.DEFINE_integer('num_slices', 1, 'Number of slices.', lower_bound=1)
_BASE = flags.DEFINE_string('base_docker_image', 'python:3.11', 'Image to add the package to.')
_IMAGE = flags.DEFINE_string('docker_image', None, 'Image that contains the package.')
_PRIORITY = flags.DEFINE_string('priority', 'medium', 'Priority in the queue of the cluster.')
_GRACE = flags.DEFINE_integer('grace_seconds', 300, 'Seconds between SIGTERM and SIGKILL, to save.')

INSTALL = "pip install --quiet -c constraints.txt {requirement} 'jax[tpu]' && "


def main(argv: Sequence[str]) -> None:
  name = remote.named()
  replicas.launch_if_requested('launch.xpk', sys.argv[1:], name=name)
  words = stages.program(argv[1:], python='python', is_replica=replicas.is_replica())
  multihost = ['--multihost'] if stages.has_process_flags(argv[1]) else []
  missing = {'--cluster': _CLUSTER.value, '--tpu_type': _TYPE.value}
  if absent := [flag for flag, value in missing.items() if not value]:
    raise app.UsageError(f'{" and ".join(absent)} must be given.')
  run = remote.executor()
  # With exec, the SIGTERM that a pod gets reaches the program.
  program = f'exec {shlex.join([*remote.environment(), *words, *multihost])}'
  try:
    sys.exit(restarting.exit_code(lambda: launch(name, program, run)))
  except (RuntimeError, OSError) as error:
    sys.exit(f'launch.xpk: error: {error}')


def launch(name: str, program: str, run: remote.Execute) -> int:
  """Run the workload, and return 0 if it completed, else the exit code of xpk."""
  where, program = image(program, run)
  try:
    remote.checked(
      remote.until_capacity(lambda: run(create(name, program, where))), f'creating {name}'
    )
    return run(_xpk('list', f'--wait-for-job-completion={name}')).code
  finally:
    if not remote.KEEP.value and run(_xpk('delete', f'--workload={name}', '--force')).code:
      print(
        f'{name} COULD NOT BE DELETED and may continue to incur costs: see `xpk workload list`.'
      )


def image(program: str, run: remote.Execute) -> tuple[list[str], str]:
  """Options for the image, and the command to run in it."""
  if _IMAGE.value:
    return [f'--docker-image={_IMAGE.value}'], program
  package = remote.package(run)
  directory = pathlib.Path(tempfile.mkdtemp(prefix='cascades-image-'))
  if not remote.DRY_RUN.value:
    for file in package.files:
      shutil.copy(file, directory)
  options = [f'--base-docker-image={_BASE.value}', f'--script-dir={directory}']
  return options, INSTALL.format(requirement=package.requirement) + program


def create(name: str, program: str, where: Sequence[str]) -> list[str]:
  return _xpk(
    'create',
    f'--workload={name}',
    f'--tpu-type={_TYPE.value}',
    f'--num-slices={_SLICES.value}',
    f'--priority={_PRIORITY.value}',
    f'--max-restarts={restarting.MAX_RESTARTS.value}',
    '--restart-on-user-code-failure',  # GKE knows no exit code that asks for a restart
    f'--termination-grace-period-seconds={_GRACE.value}',
    *where,
    f'--command={program}',
  )


def _xpk(verb: str, *options: str) -> list[str]:
  return ['xpk', 'workload', verb, f'--cluster={_CLUSTER.value}', *remote.location(), *options]


if __name__ == '__main__':
  app.run(main)
