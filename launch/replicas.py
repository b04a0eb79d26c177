"""Replicas of a program: the same command several times, each with a launcher of its own.

Replicas need no `jax.distributed`: programs that write shards claim them (`runtime.claims`), so
that replicas divide the work, may be lost and added, and each ends when all of it is done. One that
succeeds is enough; one that is lost is restarted by its launcher while the others go on.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from absl import app, flags

from cascades.runtime import environment
from launch import restarting

_REPLICAS = flags.DEFINE_integer(
  'replicas', 1, 'Number of replicas, each on machines or processes of its own.', lower_bound=1
)
_REPLICA = flags.DEFINE_integer('replica', None, 'Number of this replica; --replicas sets it.')

SECONDS_BETWEEN_POLLS = 0.05


def is_replica() -> bool:
  """True for the launcher of a replica."""
  return _REPLICA.value is not None


def launch_if_requested(module: str, argv: Sequence[str], *, name: str = '') -> None:
  """With --replicas, run a launcher for each until all have ended, and exit.

  The exit code is 0 if a replica succeeded, else that of the first that failed.

  Args:
    module: Launcher, such as `launch.local`.
    argv: Arguments of this launcher, without its name.
    name: Name of its machines, to which a replica adds its number; empty where they have none.
  """
  if _REPLICAS.value == 1 or is_replica():
    return
  split = list(argv).index('--') if '--' in argv else len(argv)
  given, program = argv[:split], argv[split:]
  replicated = ' '.join(program[1:2])
  if replicated.rpartition('.')[2] not in environment.REPLICATED:
    raise app.UsageError(
      f'--replicas is for programs that divide their work by shards, cascades.'
      f'{", cascades.".join(environment.REPLICATED)}; found {replicated or "nothing"!r} after two '
      'dashes.'
    )
  named = lambda number: [f'--name={name}-{number}'] if name else []
  commands = [
    [sys.executable, '-m', module, *given, f'--replica={number}', *named(number), *program]
    for number in range(_REPLICAS.value)
  ]
  sys.exit(restarting.exit_code(lambda: run(commands)))


def run(commands: Sequence[Sequence[str]]) -> int:
  """Run commands until all have ended, and print their output, each line with its number."""
  children = [
    subprocess.Popen(
      [*restarting.UNINTERRUPTED, *command],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors='replace',
    )
    for command in commands
  ]
  readers = [
    threading.Thread(target=_show, args=(number, child), daemon=True)
    for number, child in enumerate(children)
  ]
  for reader in readers:
    reader.start()
  failures: list[int] = []
  running = list(children)
  try:
    while running:
      ended = [child for child in running if child.poll() is not None]
      failures += [child.returncode for child in ended if child.returncode]
      running = [child for child in running if child not in ended]
      time.sleep(SECONDS_BETWEEN_POLLS)
  finally:
    for child in running:
      child.terminate()
    for child in running:  # a launcher stops its program, and deletes its machine
      child.wait()
    for reader in readers:
      reader.join()
  return 0 if len(failures) < len(children) else failures[0]


def _show(number: int, child: subprocess.Popen[str]) -> None:
  for line in child.stdout or ():
    print(f'replica {number}: {line}', end='', flush=True)
