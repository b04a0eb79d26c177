"""Several `jax.distributed` processes on this machine's CPU, as a pod has them.

    python -m launch.local --processes=4 -- cascades.train --gin_file=... --gin.MODEL_DIR=...

Any program of `cascades`, one device a process. Shows what process 0 says, as it says it, and keeps
what each said in a file of --logs; the log of a process that failed is shown. When one process
dies the others are ended: SIGTERM, and SIGKILL after --grace seconds. Started again after a
preemption (exit code 75), and after a signal --max_restarts times.
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

from launch import logs, restarting, stages

SECONDS_BETWEEN_POLLS = 0.05

_PROCESSES = flags.DEFINE_integer('processes', 2, 'How many processes.', lower_bound=1)
_GRACE = flags.DEFINE_float('grace', 60.0, 'Seconds between SIGTERM and SIGKILL.')


def main(argv: Sequence[str]) -> None:
  command = stages.program(argv[1:])
  directory = logs.directory('cascades')
  print(f'{_PROCESSES.value} x {shlex.join(command)}\nlogs: {directory}', flush=True)
  attempt = functools.partial(
    run, command, processes=_PROCESSES.value, log_dir=directory, grace=_GRACE.value
  )
  sys.exit(
    restarting.exit_code(
      lambda: restarting.until_final(attempt, max_restarts=restarting.MAX_RESTARTS.value)
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
  """Starts the processes and waits until all have ended.

  Returns 0, or the exit code of the first that failed (a signal's is negative). `show` gets process
  0's lines. However this is left, no process is running afterwards.
  """
  log_dir.mkdir(parents=True, exist_ok=True)
  paths = [log_dir / f'process-{index}.log' for index in range(processes)]
  children: list[subprocess.Popen[bytes]] = []
  together = ['--coordinator_address', f'localhost:{_free_port()}', '--process_count']
  with contextlib.ExitStack() as stack:
    stack.enter_context(logs.following(paths[0], show or _show))
    for index, path in enumerate(paths):
      log = stack.enter_context(path.open('ab'))
      place = [*together, str(processes), '--process_index', str(index)]
      children.append(
        subprocess.Popen(
          [*restarting.UNINTERRUPTED, *command, *place],
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
  """One CPU device for each process; its thread pool starves with fewer threads than four."""
  flags = inherited.get('XLA_FLAGS', '')
  return {
    **inherited,
    'JAX_PLATFORMS': 'cpu',
    'NPROC': str(max(4, os.cpu_count() or 1)),
    'PYTHONUNBUFFERED': '1',
    'XLA_FLAGS': re.sub(r'--xla_force_host_platform_device_count=\d+', '', flags).strip(),
  }


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
  """Until one fails, and which, or until all have succeeded.

  A process that lost its peer fails soon after it: of those found at once, one that was killed
  comes first, then one that was preempted.
  """
  while True:
    codes = [child.poll() for child in children]
    failed = [index for index, code in enumerate(codes) if code]
    if failed:
      return min(failed, key=lambda i: (codes[i] > 0, codes[i] != restarting.PREEMPTED))
    if None not in codes:
      return None
    time.sleep(SECONDS_BETWEEN_POLLS)


def _end(children: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
  """TERM, and KILL for what is left after `grace` seconds, or at a second interruption."""
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


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def _show(line: str) -> None:
  print(f'[0] {line}', flush=True)


if __name__ == '__main__':
  app.run(main)
