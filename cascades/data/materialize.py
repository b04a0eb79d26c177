"""Materialization of a task's split as token records: written once, then read at random.

A directory has shards of rows and tokens, and `manifest.json`, written last. Its name carries a
fingerprint of everything the records depend on, so that a changed task, source or vocabulary gets a
directory of its own. No TensorFlow.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import rich.console
import rich.progress
from etils import epath

from cascades.data import records, shards
from cascades.data.records import Manifest, Records
from cascades.data.shards import DamagedError, Shard
from cascades.data.workers import Workers
from cascades.runtime import files
from cascades.runtime.block_cache import BlockCache
from cascades.tasks.task import Task, Vocabularies
from cascades.tasks.tokenize import ROWS_PER_SHARD, blocks

log = logging.getLogger(__name__)

# Writes the shards of a split that a directory lacks, of so many rows; gives all of its shards.
ShardWriter: TypeAlias = Callable[[Task, str, Vocabularies, epath.Path, int], Mapping[int, Shard]]

DIRECTORY = '~/.cache/cascades/records'

_LOCK = 'lock'
_FINGERPRINT_DIGITS = 16
_CHECKED_BYTES = 1 << 22  # larger records take too long to read at every start, of 69 tasks
_SECONDS_BETWEEN_REPORTS = 10.0
_POLL_SECONDS = 0.5


def materialize(
  task: Task,
  split: str,
  vocabularies: Vocabularies,
  directory: epath.PathLike = DIRECTORY,
  *,
  process_index: int = 0,
  timeout: float = 3600.0,
  rows_per_shard: int = ROWS_PER_SHARD,
  workers: Workers | None = None,
  write_shards: ShardWriter | None = None,
  cache: BlockCache = BlockCache(),
) -> Records:
  """Opens the split's token records below `directory`; writes them first if they are missing.

  Of several processes that share the directory, process 0 writes and the others wait. Of several
  jobs that write the same records one does, and the others wait for it. Finished shards of an
  interrupted job are reused. Damaged records are set aside, and written again.

  Args:
    task: the task.
    split: one of its splits.
    vocabularies: vocabularies of inputs and targets.
    directory: a directory, shared by all processes; a remote one is read, and never written.
    process_index: number of this process.
    timeout: seconds that a process other than 0 waits at most.
    rows_per_shard: rows of a shard.
    workers: processes that tokenize if there is more than one shard; None starts them if needed.
    write_shards: writes the shards in another way, such as `beam_shards.ShardPipeline`.
    cache: blocks of remote records.

  Returns:
    The records.

  Raises:
    ValueError: if the task does not have the split, its rows cannot be used, there are none, or two
      have the same id.
    FileNotFoundError: if the task's data are missing.
    OSError: naming the file, if records cannot be written.
    TimeoutError: if process 0 does not finish in time.
  """
  path = location(task, split, vocabularies, directory)
  if files.is_remote(directory):
    if not records.is_complete(path):
      raise FileNotFoundError(
        f'{path} has no token records, and none are written to an object store: materialize them '
        f'in a local directory with `python -m cascades.browse_tasks materialize`, and copy its '
        f'folder {task.name}/{path.name} there.'
      )
  elif process_index:
    _wait_for(path, timeout)
  elif defect := _defect(path):
    path = _located(task, split, vocabularies, directory, shards.FORMAT)
    if records.is_complete(path):
      log.warning('Token records are damaged and written again: %s', defect)
    else:
      _report_others(task, split, vocabularies, path)
    with contextlib.ExitStack() as stack:
      if write_shards is None:
        workers = workers or stack.enter_context(Workers())
        write_shards = functools.partial(_write_shards, workers=workers)
      _write(task, split, vocabularies, path, rows_per_shard, write_shards)
  return Records(path, cache)


def _defect(path: epath.Path) -> str:
  """Reason why records cannot be used; empty if they can."""
  if not records.is_complete(path):
    return f'{path} is not complete.'
  try:
    bytes_written = sum(file.bytes for file in Records(path).manifest.files.values())
    if bytes_written <= _CHECKED_BYTES:
      records.check_content(path)
  except DamagedError as error:
    return str(error)
  return ''


def location(
  task: Task, split: str, vocabularies: Vocabularies, directory: epath.PathLike
) -> epath.Path:
  """Directory of the records, <directory>/<task>/<split>-<fingerprint>, or complete older ones."""
  task.require(split)
  path, *older = (
    _located(task, split, vocabularies, directory, format)
    for format in (shards.FORMAT, *shards.OLDER_FORMATS)
  )
  return next((p for p in (path, *older) if records.is_complete(p)), path)


def _located(
  task: Task, split: str, vocabularies: Vocabularies, directory: epath.PathLike, format: int
) -> epath.Path:
  """Directory of records of a format."""
  described = identity(task, split, vocabularies) | {'format': str(format)}
  fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
  return (
    epath.Path(directory).expanduser() / task.name / f'{split}-{fingerprint[:_FINGERPRINT_DIGITS]}'
  )


def identity(task: Task, split: str, vocabularies: Vocabularies) -> dict[str, str]:
  """Everything that determines the content of a split's records; their directory is named by it."""
  return {
    'format': str(shards.FORMAT),
    'definition': task.version,
    'source': task.fingerprint(split),
    'vocabulary': vocabularies.inputs.fingerprint,
    "targets' vocabulary": vocabularies.targets.fingerprint,
  }


def _report_others(task: Task, split: str, vocabularies: Vocabularies, path: epath.Path) -> None:
  """Logs, in one line, why existing records of the split do not serve."""
  expected = identity(task, split, vocabularies)
  differences: list[list[str]] = []
  pattern = re.compile(rf'{re.escape(split)}-[0-9a-f]{{{_FINGERPRINT_DIGITS}}}')
  for directory in path.parent.iterdir() if path.parent.exists() else ():
    if not pattern.fullmatch(directory.name) or not records.is_complete(directory):
      continue
    try:
      actual: Mapping[str, str] = records.read_manifest(directory).identity
    except ValueError:  # damaged, or of a version with other manifests
      actual = {**expected, 'format': ''}
    differences.append([name for name in expected if actual.get(name) != expected[name]])
  if differences:
    nearest = min(differences, key=len)
    log.info(
      '%s, split %s: tokenized for the first time with this %s. %s has records of %d other '
      'settings, which can be deleted.',
      *(task.name, split, ' and '.join(nearest), path.parent, len(differences)),
    )


def _write(
  task: Task,
  split: str,
  vocabularies: Vocabularies,
  path: epath.Path,
  rows_per_shard: int,
  write_shards: ShardWriter,
) -> None:
  """Writes missing shards, then the manifest; renames the directory to `path` last.

  A damaged directory in its place is kept under another name, for a look at what damaged it.
  """
  partial = path.with_name(f'.{path.name}.partial')
  with _only_writer(partial, path) as mine:
    if not mine:
      return
    name = f'{task.name}, split {split}'
    files.remove_leftovers(partial)
    written = write_shards(task, split, vocabularies, partial, rows_per_shard)
    if not sum(shard.rows for shard in written.values()):
      shutil.rmtree(partial)
      raise ValueError(f'{name} has no rows: there is nothing to learn from or to evaluate.')
    inputs, targets = vocabularies
    special = task.special_tokens
    ordered = [written[index] for index in sorted(written)]
    manifest = Manifest(
      task=task.name,
      split=split,
      identity=identity(task, split, vocabularies),
      bos_id=targets.bos_id if special.start else None,
      inputs_eos_id=inputs.eos_id if special.prompt_end else None,
      eos_id=targets.eos_id if special.answer_end else None,
      shards=ordered,
      index=shards.write_index(partial, ordered) if len(ordered) > 1 else {},
    )
    files.write(partial / records.MANIFEST, manifest.to_json())
    if path.exists():
      aside = path.with_name(f'{path.name}.damaged')
      if aside.exists():
        shutil.rmtree(aside)
      path.rename(aside)
      log.warning('%s: the damaged records are now in %s, which can be deleted.', name, aside)
    (partial / _LOCK).unlink()
    partial.rename(path)


def _write_shards(
  task: Task,
  split: str,
  vocabularies: Vocabularies,
  partial: epath.Path,
  rows_per_shard: int,
  workers: Workers,
) -> dict[int, Shard]:
  """All shards by number, of which those that are finished already are not written again."""
  name = f'{task.name}, split {split}'
  written = shards.finished(partial)
  if written:
    log.info('%s: resuming after %d finished shards.', name, len(written))
  rows = task.rows(split)
  if not task.joins_rows:  # otherwise ids are numbers, and may be too many to remember
    rows = shards.distinct(rows, name)
  with _progress(name, task.sizes.get(split)) as advance:
    jobs = {}
    for index, block in enumerate(blocks(rows, rows_per_shard)):
      if index in written:
        advance(len(block))
        continue
      arguments = (block, vocabularies, os.fspath(partial), index, task.tokenize)
      if index == 0 and len(block) < rows_per_shard:  # not worth a process
        written[index] = shards.write(*arguments)
        advance(len(block))
      else:
        jobs[index] = workers.submit(shards.write, *arguments)
        jobs[index].add_done_callback(functools.partial(_advance_after, advance, len(block)))
    return written | {index: job.result() for index, job in jobs.items()}


@contextlib.contextmanager
def _only_writer(partial: epath.Path, path: epath.Path) -> Iterator[bool]:
  """Yields True to the one process that writes, whose exit frees the lock.

  Others wait until the records are complete, and get False.
  """
  waited = False
  while _defect(path):
    partial.mkdir(parents=True, exist_ok=True)
    try:
      lock = files.open_local(partial / _LOCK, 'w')
    except FileNotFoundError:  # another process has just finished
      continue
    with lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
          raise
        if not waited:
          log.info('Waiting for the process that writes %s', path)
          waited = True
        time.sleep(_POLL_SECONDS)
        continue
      if not (partial / _LOCK).exists() or not _defect(path):
        continue
      yield True
      return
  yield False


def _wait_for(path: epath.Path, timeout: float) -> None:
  deadline = time.monotonic() + timeout
  waited = False
  while _defect(path):
    if not waited:
      log.info('Waiting for process 0 to write %s', path)
      waited = True
    if time.monotonic() > deadline:
      raise TimeoutError(
        f'Process 0 has not written {path} within {timeout:.0f} s. If the processes do not share '
        'this file system, materialize the records on each machine first.'
      )
    time.sleep(_POLL_SECONDS)


def _advance_after(advance: Callable[[int], None], rows: int, _: object) -> None:
  advance(rows)


@contextlib.contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
  """Yields a function to be called with numbers of finished rows: shows a bar or logs lines."""
  began = last = time.monotonic()
  done = 0

  def advance(rows: int) -> None:
    nonlocal done, last
    done += rows
    now = time.monotonic()
    if bar or now - last > _SECONDS_BETWEEN_REPORTS:
      last = now
      show(done, done / (now - began))

  def show_line(done: int, rate: float) -> None:
    left = f', {(total - done) / rate:.0f} s left' if total and total > done else ''
    log.info('%s: %d rows tokenized, %.0f rows/s%s', name, done, rate, left)

  bar = _bar(name, total) if sys.stderr.isatty() else None
  show = bar.show if bar else show_line
  with bar.progress if bar else contextlib.nullcontext():
    yield advance
  log.info('%s: %d rows tokenized in %.1f s', name, done, time.monotonic() - began)


class _Bar(NamedTuple):
  progress: rich.progress.Progress
  show: Callable[[int, float], None]


def _bar(name: str, total: int | None) -> _Bar:
  progress = rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    rich.progress.TextColumn('{task.fields[rate]}'),
    console=rich.console.Console(stderr=True),
    transient=True,
  )
  bar = progress.add_task(name, total=total, rate='')

  def show(done: int, rate: float) -> None:
    progress.update(bar, completed=done, rate=f'{done:,} rows, {rate:,.0f} rows/s')

  return _Bar(progress, show)
