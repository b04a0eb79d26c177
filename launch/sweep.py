"""Train, infer and evaluate every point of a grid of gin bindings, into one table.

    python -m launch.sweep --config=launch/sweeps/demo.py --config.seeds='(0, 1)' --parallel=2

Each point has a run directory, named by its difference. The same command goes on where it was
interrupted: what has finished is not run again. A point that fails is listed at the end with its
log's last lines, and the others go on. With --launcher='launch.tpu_vm --name={point} ...' training
and inference go through that launcher, and {point} is a short name that is each point's own;
`evaluate` runs here. Leaves results.csv, results.json and the logs of every stage.
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
  'config', None, 'The sweep: see launch/sweeps.', lock_config=False
)
_PARALLEL = flags.DEFINE_integer('parallel', 1, 'How many points at a time.', lower_bound=1)
_MORE = flags.DEFINE_multi_string('binding', [], 'NAME=value, of all training; repeat.')
_LAUNCHER = flags.DEFINE_string('launcher', '', 'What starts training and inference; see above.')
_LARGE_LAUNCHER = flags.DEFINE_string('large_launcher', None, 'The same, for the large model.')

FIRST_STEP = 'compiling included'  # in the line that `train` writes after its first step
GRACE = 600.0  # seconds between TERM and KILL: launchers have machines to delete


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
  """With whole paths, so that every program means the same place."""
  if not config.output_dir:
    raise app.UsageError('output_dir is empty: say where, as in --config.output_dir=runs/sweeps/me')
  config.log_dir = config.log_dir or config.output_dir
  if '://' in config.log_dir:
    raise app.UsageError(
      f'logs must be local and log_dir is {config.log_dir}: give --config.log_dir=runs/...'
    )
  config.output_dir = os.fspath(files.absolute(config.output_dir))
  config.log_dir = os.fspath(files.absolute(config.log_dir))
  if config.large.run_dir:
    config.large.run_dir = os.fspath(files.absolute(config.large.run_dir))
  return config


def check_launchers(*launchers: str) -> None:
  """A rehearsal succeeds, and its stage would count as finished."""
  for launcher in launchers:
    if '--dry_run' in launcher:
      raise app.UsageError(f'a sweep cannot rehearse: leave --dry_run out of {launcher!r}.')


class Running:
  """The commands that are running, from several threads, and how all are ended."""

  def __init__(self, max_restarts: int) -> None:
    self.max_restarts = max_restarts
    self._children: set[subprocess.Popen[bytes]] = set()
    self._lock = threading.Lock()
    self._ended = False

  def call(self, command: Sequence[str], log: pathlib.Path) -> int:
    """The command's exit code; what it says is added to the log. Nothing starts after `end`."""
    with log.open('ab') as file, self._lock:
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
    """TERM, so that they save, and KILL after a while."""
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
  """The large model, then the points, some at a time; fills in exit codes by name."""

  def run(name: str, launcher: str, wanted: Sequence[stages.Stage]) -> None:
    codes[name] = run_stages(config, running, launcher, name, wanted)

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
      running.end()  # before the pool is left, which waits for them
      raise


def run_stages(
  config: ml_collections.ConfigDict,
  running: Running,
  launcher: str,
  name: str,
  wanted: Sequence[stages.Stage],
) -> int:
  """A run's stages, one after the other, until one fails; its exit code."""
  directory = pathlib.Path(config.log_dir) / name
  directory.mkdir(parents=True, exist_ok=True)
  for stage in wanted:
    start = functools.partial(_start, running, launcher, name, stage, directory)
    try:
      code = stages.run(stage, directory, start)
    except ValueError as error:
      with log_of(directory, stage.name).open('a') as log:
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
  """Runs a stage to its final exit code, and notes how long each attempt took."""
  if launcher and stage.program != 'evaluate':  # which needs no accelerator
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
    _note(directory, stage.name, code, seconds, first[0] if first else None)
    after = f', first step after {first[0]} s' if first else ''
    _say(f'[{name}] {stage.name}: exit code {code} after {seconds} s{after}')
    return code

  return restarting.until_final(attempt, max_restarts=running.max_restarts, say=_say)


def _say(line: str) -> None:
  """In one piece, as several threads say something."""
  print(f'{line}\n', end='', flush=True)


def _note(
  directory: pathlib.Path, stage: str, code: int, seconds: float, first_step: float | None
) -> None:
  line = {'stage': stage, 'code': code, 'seconds': seconds, 'first_step_seconds': first_step}
  with (directory / results.HISTORY).open('a') as file:
    print(json.dumps(line), file=file)


def log_of(directory: pathlib.Path, stage: str) -> pathlib.Path:
  return directory / f'{stage}.log'


def short_name(name: str) -> str:
  """A point's name for machines, which may only have letters, digits and dashes."""
  return f'p-{hashlib.sha256(name.encode()).hexdigest()[:10]}'


def _rows(
  config: ml_collections.ConfigDict, everyone: Sequence[points.Point], codes: dict[str, int]
) -> list[dict[str, Any]]:
  place, log_dir = files.absolute(config.output_dir), pathlib.Path(config.log_dir)
  said = {0: 'finished', None: 'not reached', restarting.INTERRUPTED: 'interrupted'}
  rows = []
  for point in everyone:
    code = codes.get(point.name)
    state = said.get(code, f'failed ({code})')
    rows.append(results.row(point.values, place / point.name, log_dir / point.name, state))
  return rows


def _list_failures(config: ml_collections.ConfigDict, codes: dict[str, int]) -> None:
  """Each with the end of the log that was written last."""
  for name, code in codes.items():
    if code in (0, restarting.INTERRUPTED):
      continue
    written = (pathlib.Path(config.log_dir) / name).glob('*.log')
    log = max(written, key=lambda path: path.stat().st_mtime)
    print(f'\n{name} failed with exit code {code}; the end of {log}:\n{logs.last_lines(log)}')


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
