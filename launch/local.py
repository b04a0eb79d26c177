"""Several `jax.distributed` processes on the CPU of this machine, as on a pod.

    python -m launch.local --processes=4 -- cascades.train --gin_file=... --gin.MODEL_DIR=...
    python -m launch.local --replicas=4 -- cascades.infer --gin_file=... --gin.INFER_OUTPUT_DIR=...

Runs a program of `cascades` with one device per process, but `evaluate`, `plan` and `browse_tasks`,
which run in one process and need no launcher. Prints the log of process 0 as it is
written, and the end of the log of a process that failed; all logs are kept in a folder of --logs.
When one process dies the others are stopped with SIGTERM, and with SIGKILL after --grace seconds.
The program is restarted after a preemption or a lost process (exit code 75) and after a signal, and
at most --max_restarts times in a row without progress.

With --replicas the program runs so many times independently, and the replicas divide its shards;
each has --processes processes, by default one, and when one dies the other replicas go on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags

from launch import logs, replicas, restarting, stages

SECONDS_BETWEEN_POLLS = 0.05

_PROCESSES = flags.DEFINE_integer(
  'processes', None, 'Number of processes; 2 by default, and 1 of a replica.', lower_bound=1
)
_GRACE = flags.DEFINE_float('grace', 60.0, 'Seconds between SIGTERM and SIGKILL.')


def main(argv: Sequence[str]) -> None:
  replicas.launch_if_requested('launch.local', sys.argv[1:])
  is_single = replicas.is_replica() and _PROCESSES.value in (None, 1)
  processes = 1 if is_single else _PROCESSES.value or 2
  command = stages.program(argv[1:], is_replica=is_single)
  directory = logs.directory('cascades')
  print(f'{processes} x {shlex.join(command)}\nlogs: {directory}', flush=True)
  progress = restarting.Progress()

  def show(line: str) -> None:
    progress.read(line)
    print(f'[0] {line}', flush=True)

  attempt = functools.partial(
    run, command, processes=processes, log_dir=directory, grace=_GRACE.value, show=show
  )
  sys.exit(
    restarting.exit_code(
      lambda: restarting.until_final(
        attempt,
        max_restarts=restarting.MAX_RESTARTS.value,
        progress=progress.value,
        first_wait=restarting.RESTART_WAIT.value,
      )
    )
  )


def run(
  command: Sequence[str],
  *,
  processes: int,
  log_dir: pathlib.Path,
  grace: float,
  show: Callable[[str], None] | None = None,
) -> int:
  """Start the processes and wait until all have ended; none is left running in any case.

  Several processes are those of one `jax.distributed` run.

  Args:
    command: Program and its arguments.
    processes: Number of processes.
    log_dir: Folder for `process-N.log`.
    grace: Seconds between SIGTERM and SIGKILL.
    show: Receives the lines of process 0; by default they are printed.

  Returns:
    0, or the exit code of the first process that failed; negative for a signal.
  """
  log_dir.mkdir(parents=True, exist_ok=True)
  paths = [log_dir / f'process-{index}.log' for index in range(processes)]
  children: list[subprocess.Popen[bytes]] = []
  show = show or (lambda line: print(f'[0] {line}', flush=True))
  with socket.socket() as unbound:
    unbound.bind(('localhost', 0))  # any free port
    address = f'localhost:{unbound.getsockname()[1]}'
  shared = ['--coordinator_address', address, '--process_count', str(processes)]
  flags_of = lambda index: [*shared, '--process_index', str(index)] if processes > 1 else []
  with contextlib.ExitStack() as stack:
    stack.enter_context(logs.following(paths[0], show))
    for index, path in enumerate(paths):
      log = stack.enter_context(path.open('ab'))
      children.append(
        subprocess.Popen(
          [*restarting.UNINTERRUPTED, *command, *flags_of(index)],
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=subprocess.STDOUT,
          env=environment(os.environ),
        )
      )
    try:
      failed = _wait(children)
    finally:
      _end(children, grace)
  if failed is None:
    return 0
  code = children[failed].returncode
  if failed and code != restarting.PREEMPTED:
    print(f'process {failed} failed; the end of {paths[failed]}:\n{logs.last_lines(paths[failed])}')
  return code


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
  """Environment for one CPU device per process, whose thread pool needs at least 4 threads."""
  flags = inherited.get('XLA_FLAGS', '')
  return {
    **inherited,
    'JAX_PLATFORMS': 'cpu',
    'NPROC': str(max(4, os.cpu_count() or 1)),
    'PYTHONUNBUFFERED': '1',
    'XLA_FLAGS': re.sub(r'--xla_force_host_platform_device_count=\d+', '', flags).strip(),
  }


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
  """Wait until a process fails, and return its index, or until all have succeeded.

  A process that lost its peer ends with 75 soon after it: of several failures seen together, a
  killed process comes first, then one with an error of its own.
  """
  while True:
    codes = [child.poll() for child in children]
    failed = [index for index, code in enumerate(codes) if code]
    if failed:
      return min(failed, key=lambda i: (codes[i] > 0, codes[i] == restarting.PREEMPTED))
    if None not in codes:
      return None
    time.sleep(SECONDS_BETWEEN_POLLS)


def _end(children: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
  """Send SIGTERM, and SIGKILL after `grace` seconds or at a second interruption."""
  running = [child for child in children if child.poll() is None]
  for child in running:
    child.terminate()
  deadline = time.monotonic() + grace
  try:
    for child in running:
      with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(max(0.0, deadline - time.monotonic()))
  finally:
    for child in running:
      child.kill()
      child.wait()


if __name__ == '__main__':
  app.run(main)
