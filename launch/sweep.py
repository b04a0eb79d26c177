"""Train, infer and evaluate every point of a grid of gin bindings, into one table.

    python -m launch.sweep --config=launch/sweeps/demo.py --config.seeds='(0, 1)' --parallel=2

Each point has a run directory named after its values. Rerunning the same command resumes a sweep:
finished stages are skipped. A failed point is listed at the end with the last lines of its log, and
the others continue. With --launcher='launch.tpu_vm --name={point} ...' training and inference go
through that launcher, and {point} is a short unique name of the point; `evaluate` runs here. Writes
results.csv, results.json, and the logs of every stage.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from cascades.runtime import files
from launch import logs, points, restarting, results, stages

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Sweep to run, such as launch/sweeps/demo.py.', lock_config=False
)
_PARALLEL = flags.DEFINE_integer('parallel', 1, 'Number of points to run at a time.', lower_bound=1)
_MORE = flags.DEFINE_multi_string(
  'binding', [], 'NAME=value, a gin binding for all training; repeat.'
)
_LAUNCHER = flags.DEFINE_string('launcher', '', 'Launcher of training and inference.')
_LARGE_LAUNCHER = flags.DEFINE_string(
  'large_launcher', None, 'Launcher of the large model, if it is another.'
)

FIRST_STEP = 'compiling included'  # in the line that `train` writes after its first step
GRACE = 600.0  # seconds between SIGTERM and SIGKILL: launchers delete machines


def main(argv: Sequence[str]) -> None:
  del argv
  config = located(_CONFIG.value)
  check_launchers(_LAUNCHER.value, _LARGE_LAUNCHER.value or '')
  for binding in _MORE.value:
    points.bind(config.large.bindings, binding)
    points.bind(config.train.bindings, binding)
  try:
    everyone = points.all_points(config)
  except ValueError as error:
    sys.exit(f'launch.sweep: error: {error}')
  print(f'{len(everyone)} points in {config.output_dir}; logs in {config.log_dir}', flush=True)
  running = Running(restarting.MAX_RESTARTS.value)
  codes: dict[str, int] = {}

  def sweep() -> int:
    try:
      _run_all(config, running, everyone, codes)
    except BaseException:
      running.end()
      raise
    return int(any(codes.values()))

  code = restarting.exit_code(sweep)
  rows = _rows(config, everyone, codes)
  results.write(pathlib.Path(config.log_dir), rows)
  results.show(rows)
  _list_failures(config, codes)
  sys.exit(code)


def located(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Make paths absolute, so that every program uses the same folders."""
  if not config.output_dir:
    raise app.UsageError('output_dir is empty: set it, as in --config.output_dir=runs/sweeps/me')
  config.log_dir = config.log_dir or config.output_dir
  if files.is_remote(config.log_dir):
    raise app.UsageError(
      f'logs must be local and log_dir is {config.log_dir}: give --config.log_dir=runs/...'
    )
  config.output_dir = os.fspath(files.absolute(config.output_dir))
  config.log_dir = os.fspath(files.absolute(config.log_dir))
  if config.large.run_dir:
    config.large.run_dir = os.fspath(files.absolute(config.large.run_dir))
  return config


def check_launchers(*launchers: str) -> None:
  """Reject dry runs: they succeed, and their stages would count as finished."""
  for launcher in launchers:
    if '--dry_run' in launcher:
      raise app.UsageError(f'a sweep cannot use --dry_run: remove it from {launcher!r}.')


class Running:
  """Running commands of several threads, and their common end."""

  def __init__(self, max_restarts: int) -> None:
    self.max_restarts = max_restarts
    self._children: set[subprocess.Popen[bytes]] = set()
    self._lock = threading.Lock()
    self._ended = False

  def call(self, command: Sequence[str], log: pathlib.Path) -> int:
    """Run a command, log its output, and return its exit code; none starts after `end`."""
    with files.open_local(log, 'ab') as file, self._lock:
      if self._ended:
        return restarting.INTERRUPTED
      child = subprocess.Popen(
        [*restarting.UNINTERRUPTED, *command],
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        env={**os.environ, 'PYTHONUNBUFFERED': '1'},
      )
      self._children.add(child)
    code = child.wait()
    with self._lock:
      self._children.discard(child)
    return restarting.INTERRUPTED if self._ended and code else code

  def end(self) -> None:
    """Send SIGTERM to all commands, so that they save, and SIGKILL after `GRACE` seconds."""
    with self._lock:
      self._ended = True
      left = list(self._children)
    for child in left:
      child.terminate()
    deadline = time.monotonic() + GRACE
    for child in left:
      with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(max(0.0, deadline - time.monotonic()))
      child.kill()


def _run_all(
  config: ml_collections.ConfigDict,
  running: Running,
  everyone: Sequence[points.Point],
  codes: dict[str, int],
) -> None:
  """Run the large model, then the points in parallel, and fill in exit codes by name."""

  def run(name: str, launcher: str, pending: Sequence[stages.Stage]) -> None:
    codes[name] = run_stages(config, running, launcher, name, pending)

  launcher = _LAUNCHER.value
  large_launcher = launcher if _LARGE_LAUNCHER.value is None else _LARGE_LAUNCHER.value
  run('large', large_launcher, points.stages_of_large(config))
  if codes['large']:
    return
  with concurrent.futures.ThreadPoolExecutor(_PARALLEL.value) as pool:
    waiting = [
      pool.submit(run, point.name, launcher, points.stages_of(config, point)) for point in everyone
    ]
    try:
      for future in waiting:
        future.result()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      running.end()  # before leaving the pool, which waits for them
      raise


def run_stages(
  config: ml_collections.ConfigDict,
  running: Running,
  launcher: str,
  name: str,
  pending: Sequence[stages.Stage],
) -> int:
  """Run stages in order until one fails, and return the last exit code."""
  directory = pathlib.Path(config.log_dir) / name
  directory.mkdir(parents=True, exist_ok=True)
  for stage in pending:
    start = functools.partial(_start, running, launcher, name, stage, directory)
    try:
      code = stages.run(stage, directory, start)
    except ValueError as error:
      with files.open_local(log_of(directory, stage.name), 'a') as log:
        print(error, file=log)
      code = 1
    if code:
      return code
  return 0


def _start(
  running: Running,
  launcher: str,
  name: str,
  stage: stages.Stage,
  directory: pathlib.Path,
  words: list[str],
) -> int:
  """Run a stage to its final exit code, and record the duration of each attempt."""
  if launcher and stage.program != 'evaluate':  # needs no accelerator
    words = [*shlex.split(launcher.replace('{point}', short_name(name))), '--', *words]
  command = [sys.executable, '-m', *words]
  log = log_of(directory, stage.name)
  _say(f'[{name}] {stage.name} ...')

  def attempt() -> int:
    began = time.monotonic()
    first: list[float] = []

    def look(line: str) -> None:
      if FIRST_STEP in line and not first:
        first.append(round(time.monotonic() - began, 1))

    with logs.following(log, look):
      code = running.call(command, log)
    seconds = round(time.monotonic() - began, 1)
    first_step = first[0] if first else None
    record = {
      'stage': stage.name,
      'code': code,
      'seconds': seconds,
      'first_step_seconds': first_step,
    }
    with files.open_local(directory / results.HISTORY, 'a') as file:
      print(json.dumps(record), file=file)
    after = f', first step after {first[0]} s' if first else ''
    _say(f'[{name}] {stage.name}: exit code {code} after {seconds} s{after}')
    return code

  def progress() -> object:
    log, reached = log_of(directory, stage.name), restarting.Progress()
    for line in log.read_text(errors='replace').splitlines() if log.exists() else ():
      reached.read(line)
    return reached.value()

  return restarting.until_final(
    attempt, max_restarts=running.max_restarts, progress=progress, say=_say
  )


def _say(line: str) -> None:
  """Print a line in one piece, since several threads print."""
  print(f'{line}\n', end='', flush=True)


def log_of(directory: pathlib.Path, stage: str) -> pathlib.Path:
  return directory / f'{stage}.log'


def short_name(name: str) -> str:
  """Name of a point for machines, which accept only letters, digits, and dashes."""
  return f'p-{hashlib.sha256(name.encode()).hexdigest()[:10]}'


def _rows(
  config: ml_collections.ConfigDict, everyone: Sequence[points.Point], codes: dict[str, int]
) -> list[dict[str, Any]]:
  root, log_dir = files.absolute(config.output_dir), pathlib.Path(config.log_dir)
  states = {0: 'finished', None: 'not reached', restarting.INTERRUPTED: 'interrupted'}
  rows = []
  for point in everyone:
    code = codes.get(point.name)
    state = states.get(code, f'failed ({code})')
    rows.append(results.row(point.values, root / point.name, log_dir / point.name, state))
  return rows


def _list_failures(config: ml_collections.ConfigDict, codes: dict[str, int]) -> None:
  """Print each failed point with the end of its latest log."""
  for name, code in codes.items():
    if code in (0, restarting.INTERRUPTED):
      continue
    written = (pathlib.Path(config.log_dir) / name).glob('*.log')
    log = max(written, key=lambda path: path.stat().st_mtime)
    print(f'\n{name} failed with exit code {code}; the end of {log}:\n{logs.last_lines(log)}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
