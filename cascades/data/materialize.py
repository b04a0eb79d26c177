"""A task's split as token records: materialised once, then read at random by everyone.

A directory holds shards of rows and tokens, and `manifest.json`, written last. Its name carries a
fingerprint of all that went in, so that a changed task, source or vocabulary gets a directory of
its own. No TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import rich.console
import rich.progress
from etils import epath

from cascades.data import records, shards
from cascades.data.records import Manifest, Records
from cascades.data.workers import Workers
from cascades.tasks.task import Row, Task, Vocabularies
from cascades.tasks.tokenize import ROWS_PER_SHARD, blocks

log = logging.getLogger(__name__)

DIRECTORY = '~/.cache/cascades/records'

_LOCK = 'lock'
_CHECKED_BYTES = 1 << 22  # what is larger takes too long to read at every start, of 69 tasks
_SECONDS_BETWEEN_REPORTS = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5


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
) -> Records:
  """The split's token records below `directory`, written first if they are not there yet.

  Of several processes that share the directory, process 0 writes and the others wait for at most
  `timeout` seconds. Of several jobs that write the same records one does, and the others wait for
  it. An interrupted job's finished shards are kept. `workers` tokenise what is more than one shard.
  """
  place = location(task, split, vocabularies, directory)
  if records.is_complete(place):
    if sum(file.bytes for file in records.read_manifest(place).files.values()) <= _CHECKED_BYTES:
      records.check_content(place)
  elif process_index == 0:
    _report_others(task, split, vocabularies, place)
    with contextlib.ExitStack() as stack:
      workers = workers or stack.enter_context(Workers())
      _write(task, split, vocabularies, place, rows_per_shard, workers)
  else:
    _wait_for(place, timeout)
  return Records(place)


def location(
  task: Task, split: str, vocabularies: Vocabularies, directory: epath.PathLike
) -> epath.Path:
  """Where the records lie: <directory>/<task>/<split>-<fingerprint>."""
  task.require(split)
  if '://' in os.fspath(directory):
    raise ValueError(
      f'Token records cannot lie in {os.fspath(directory)}: they are read at random, which needs a '
      'local or mounted file system. Name a local directory for them.'
    )
  what = json.dumps(identity(task, split, vocabularies), sort_keys=True)
  fingerprint = hashlib.sha256(what.encode()).hexdigest()
  return epath.Path(directory).expanduser() / task.name / f'{split}-{fingerprint[:16]}'


def identity(task: Task, split: str, vocabularies: Vocabularies) -> dict[str, str]:
  """What decides about the records of a split; other records are other ones by name."""
  return {
    'format': str(shards.FORMAT),
    'definition': task.version,
    'source': task.fingerprint(split),
    'vocabulary': vocabularies.inputs.fingerprint,
    "targets' vocabulary": vocabularies.targets.fingerprint,
  }


def _report_others(task: Task, split: str, vocabularies: Vocabularies, place: epath.Path) -> None:
  """Says why records that lie beside are not the ones that were asked for."""
  wanted = identity(task, split, vocabularies)
  for manifest in sorted(place.parent.glob(f'{split}-*/{records.MANIFEST}')):
    try:
      found: Mapping[str, str] = records.read_manifest(manifest.parent).identity
    except ValueError:  # of a version that wrote manifests otherwise, or damaged
      found = {**wanted, 'format': ''}
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    log.info('Not reading %s: made with another %s.', manifest.parent, ' and '.join(differing))


def _write(
  task: Task,
  split: str,
  vocabularies: Vocabularies,
  place: epath.Path,
  rows_per_shard: int,
  workers: Workers,
) -> None:
  """The shards that are missing, the manifest, and at last the name."""
  partial = place.with_name(f'.{place.name}.partial')
  with _only_writer(partial, place) as mine:
    if not mine:
      return
    name = f'{task.name}, split {split}'
    made = shards.finished(partial)
    if made:
      log.info('%s: going on after %d finished shards.', name, len(made))
    rows = task.rows(split)
    if task.tokenize is None:  # else ids are counted, and there may be too many to remember
      rows = _distinct(rows, name)
    with _progress(name, task.sizes.get(split)) as advance:
      jobs = {}
      for index, block in enumerate(blocks(rows, rows_per_shard)):
        if index in made:
          advance(len(block))
          continue
        arguments = (block, vocabularies, os.fspath(partial), index, task.tokenize)
        if index == 0 and len(block) < rows_per_shard:  # not worth a process
          made[index] = shards.write(*arguments)
          advance(len(block))
        else:
          jobs[index] = workers.submit(shards.write, *arguments)
          jobs[index].add_done_callback(functools.partial(_after, advance, len(block)))
      made |= {index: job.result() for index, job in jobs.items()}
    if not sum(shard.rows for shard in made.values()):
      shutil.rmtree(partial)
      raise ValueError(f'{name} has no rows: there is nothing to learn from or to evaluate.')
    inputs, targets = vocabularies
    manifest = Manifest(
      task=task.name,
      split=split,
      identity=identity(task, split, vocabularies),
      bos_id=targets.bos_id if task.marks.start else None,
      inputs_eos_id=inputs.eos_id if task.marks.prompt_end else None,
      eos_id=targets.eos_id if task.marks.answer_end else None,
      shards=[made[index] for index in sorted(made)],
    )
    (partial / records.MANIFEST).write_text(
      json.dumps(dataclasses.asdict(manifest), indent=2) + '\n'
    )
    if place.exists():  # what an interrupted copy left; moved first, as a rename is atomic
      remains = partial.with_name(f'{partial.name}.remains')
      place.rename(remains)
      shutil.rmtree(remains)
    (partial / _LOCK).unlink()
    partial.rename(place)


@contextlib.contextmanager
def _only_writer(partial: epath.Path, place: epath.Path) -> Iterator[bool]:
  """Whether this process is to write; waits while another one does. Its end frees the lock."""
  waited = False
  while not records.is_complete(place):
    partial.mkdir(parents=True, exist_ok=True)
    try:
      lock = open(partial / _LOCK, 'w')  # noqa: SIM115
    except FileNotFoundError:  # another process has just finished
      continue
    with lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
          raise
        if not waited:
          log.info('Waiting for the process that writes %s', place)
          waited = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        continue
      if records.is_complete(place) or not (partial / _LOCK).exists():
        continue
      yield True
      return
  yield False


def _wait_for(place: epath.Path, timeout: float) -> None:
  log.info('Waiting for process 0 to write %s', place)
  deadline = time.monotonic() + timeout
  while not records.is_complete(place):
    if time.monotonic() > deadline:
      raise TimeoutError(
        f'Process 0 has not written {place} within {timeout:.0f} s. If the processes do not share '
        'this file system, materialise the records on each machine first.'
      )
    time.sleep(_SECONDS_BETWEEN_LOOKS)


def _distinct(rows: Iterator[Row], name: str) -> Iterator[Row]:
  seen: set[str] = set()
  for row in rows:
    if row.id in seen:
      raise ValueError(
        f'{name} has two rows with the id {row.id!r}; an id must name one row, since predictions '
        'are joined by it.'
      )
    seen.add(row.id)
    yield row


def _after(advance: Callable[[int], None], rows: int, _: object) -> None:
  advance(rows)


@contextlib.contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
  """Told of rows that are done: a bar on a terminal, else a line now and then."""
  began = last = time.monotonic()
  done = 0

  def advance(rows: int) -> None:
    nonlocal done, last
    done += rows
    now = time.monotonic()
    if bar or now - last > _SECONDS_BETWEEN_REPORTS:
      last = now
      show(done, done / (now - began))

  bar = _bar(name, total) if sys.stderr.isatty() else None
  show = bar.show if bar else _lines(name, total)
  with bar.progress if bar else contextlib.nullcontext():
    yield advance
  log.info('%s: %d rows tokenised in %.1f s', name, done, time.monotonic() - began)


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


def _lines(name: str, total: int | None) -> Callable[[int, float], None]:
  def show(done: int, rate: float) -> None:
    left = f', {(total - done) / rate:.0f} s left' if total and total > done else ''
    log.info('%s: %d rows tokenised, %.0f rows/s%s', name, done, rate, left)

  return show
