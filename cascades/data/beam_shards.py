"""Shards of token records by an Apache Beam pipeline, byte for byte those of local processes.

A first step counts the rows of each file of a split, which tells the rows before each; a second one
writes the shards that begin in a file, reading on in the next ones where a shard does not end with
it. So nothing but numbers passes between workers, and rows are read where they are. Workers share
the directory of the records with the machine that starts the pipeline.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from cascades.data import shards
from cascades.data.shards import Shard
from cascades.tasks.task import Row, Task, Vocabularies
from cascades.tasks.tokenize import blocks

log = logging.getLogger(__name__)

NAMESPACE = 'cascades'  # of the counters
READ, TOKENIZED, WRITTEN = 'rows read', 'rows tokenized', 'shards written'
_SECONDS_BETWEEN_REPORTS = 10.0
_WRITING = '.writing-'
# DirectRunner fetches the binary of another runner first, and takes this one where it cannot.
_LOCAL = {'--runner=DirectRunner': '--runner=FnApiRunner'}
_ERROR = re.compile(r'cascades-error:([\w+/=]+):')
_ERRORS: Mapping[str, type[Exception]] = {
  'FileNotFoundError': FileNotFoundError, 'OSError': OSError, 'ValueError': ValueError,
}  # fmt: skip


class Stretch(NamedTuple):
  """Consecutive shards that begin in one file: `shard_range` from its first to beyond its last.

  Attributes:
    file: Number of the file among those of the split.
    rows_before: Number of rows of the files before it.
    shard_range: Numbers of the first shard, and of the one behind the last.
  """

  file: int
  rows_before: int
  shard_range: tuple[int, int]


class ShardPipeline:
  """Writes the missing shards of a split on a runner of Beam; an `materialize.ShardWriter`."""

  def __init__(self, arguments: Sequence[str], readers: int | None = None) -> None:
    """Prepares the options.

    Args:
      arguments: Flags of Beam, such as --runner=FlinkRunner.
      readers: Number of readers of a split, if it has fewer files; all but the first skip rows.

    Raises:
      ImportError: if Beam is not installed.
    """
    try:
      from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
      raise ImportError(
        "--runner needs Apache Beam: install the extra, `pip install 'lm-cascades[beam]'`, in an "
        'environment of its own (docs/scale.md).'
      ) from error
    logging.getLogger('apache_beam').setLevel(logging.WARNING)
    self._options = PipelineOptions([_LOCAL.get(word, word) for word in arguments])
    self._readers = readers or os.cpu_count() or 1

  def __call__(
    self,
    task: Task,
    split: str,
    vocabularies: Vocabularies,
    directory: epath.Path,
    rows_per_shard: int,
  ) -> Mapping[int, Shard]:
    """Writes the shards of a split that are missing; all of them, by number."""
    import apache_beam as beam

    _remove_unfinished(directory)
    existing = frozenset(shards.finished(directory))
    if existing:
      log.info('%s, split %s: resuming after %d finished shards.', task.name, split, len(existing))
    divide = functools.partial(
      divided, rows_per_shard=rows_per_shard, existing=existing, readers=self._readers
    )
    write = functools.partial(
      _write, task, split, vocabularies, os.fspath(directory), rows_per_shard, existing
    )
    pipeline = beam.Pipeline(options=self._options)
    (
      pipeline
      | 'files' >> beam.Create(range(len(task.row_readers(split))))
      | 'spread files' >> beam.Reshuffle()
      | 'count rows' >> beam.Map(functools.partial(_count, task, split))
      | 'all counts' >> beam.combiners.ToList()
      | 'divide' >> beam.FlatMap(divide)
      | 'spread stretches' >> beam.Reshuffle()
      | 'write shards' >> beam.FlatMap(write)
    )
    began = time.monotonic()
    with _sentences():
      result = _run(pipeline, f'{task.name}, split {split}')
    numbers = counters(result)
    log.info(
      '%s, split %s: %d rows tokenized in %.1f s, %d shards written and %d that existed',
      *(task.name, split, numbers.get(TOKENIZED, 0), time.monotonic() - began),
      *(numbers.get(WRITTEN, 0), len(existing)),
    )
    _remove_unfinished(directory)
    return shards.finished(directory)


def divided(
  counts: Iterable[tuple[int, int]],
  *,
  rows_per_shard: int,
  existing: frozenset[int] = frozenset(),
  readers: int = 1,
) -> Iterator[Stretch]:
  """Divides the shards of a split among readers.

  Three files of 5, 1 and 4 rows have shards of 2 rows that begin in rows 0, 2, 4, 6 and 8:

      divided([(0, 5), (1, 1), (2, 4)], rows_per_shard=2) -> (0, 0, (0, 3)), (2, 6, (3, 5))

  Args:
    counts: Number of each file, and of its rows.
    rows_per_shard: Rows of a shard.
    existing: Shards that are not written again.
    readers: Stretches that files are divided into, if they are fewer.
  """
  numbered = sorted(counts)
  stretches = -(-readers // max(1, len(numbered)))
  before = 0
  for file, rows in numbered:
    begin, end = (-(-row // rows_per_shard) for row in (before, before + rows))
    missing = [index for index in range(begin, end) if index not in existing]
    size = max(1, -(-len(missing) // stretches))
    for block in blocks(missing, size):
      yield Stretch(file, before, (block[0], block[-1] + 1))
    before += rows


def counters(result: Any) -> dict[str, int]:
  """Values of this module's counters of a pipeline that runs or has run."""
  from apache_beam.metrics import MetricsFilter

  queried = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))['counters']
  return {counter.key.metric.name: counter.result for counter in queried}


def _run(pipeline: Any, name: str) -> Any:
  """Run a pipeline to its end, and report its counters where the runner gives them meanwhile."""
  from apache_beam.runners.runner import PipelineState

  result = pipeline.run()
  last = time.monotonic()
  while result.state and not PipelineState.is_terminal(result.state):
    time.sleep(0.2)
    if time.monotonic() - last >= _SECONDS_BETWEEN_REPORTS:
      last = time.monotonic()
      log.info('%s: %s', name, ', '.join(f'{v} {k}' for k, v in sorted(counters(result).items())))
  result.wait_until_finish()
  return result


def _count(task: Task, split: str, file: int) -> tuple[int, int]:
  """Number of the file and of its rows, whose ids must be distinct unless rows are joined."""
  with _encoded():
    rows = task.row_readers(split)[file](0)
    if not task.joins_rows:  # files are several only where they are
      rows = shards.distinct(rows, f'{task.name}, split {split}')
    count = sum(1 for _ in rows)
  _counter(READ).inc(count)
  return file, count


def _write(
  task: Task,
  split: str,
  vocabularies: Vocabularies,
  directory: str,
  rows_per_shard: int,
  existing: frozenset[int],
  stretch: Stretch,
) -> Iterator[int]:
  """Write a stretch of shards, and yield their numbers."""
  first, end = stretch.shard_range
  with _encoded():
    rows = itertools.islice(
      _rows_from(task, split, stretch), first * rows_per_shard - stretch.rows_before, None
    )
    for index, block in zip(range(first, end), blocks(rows, rows_per_shard), strict=False):
      if index in existing:
        continue
      # Runners may repeat work, or go on after they were killed: files appear when they are whole.
      with tempfile.TemporaryDirectory(dir=directory, prefix=_WRITING) as folder:
        shard = shards.write(block, vocabularies, folder, index, task.tokenize)
        for name in (*shard.files, shards.description_name(shard)):
          os.replace(os.path.join(folder, name), os.path.join(directory, name))
      _counter(TOKENIZED).inc(len(block))
      _counter(WRITTEN).inc()
      yield index


def _rows_from(task: Task, split: str, stretch: Stretch) -> Iterator[Row]:
  number = stretch.rows_before
  for reader in task.row_readers(split)[stretch.file :]:
    for row in reader(number):
      yield row
      number += 1


def _counter(name: str) -> Any:
  from apache_beam.metrics import Metrics

  return Metrics.counter(NAMESPACE, name)


@contextlib.contextmanager
def _encoded() -> Iterator[None]:
  """Context manager of a worker, whose errors `_sentences` recognizes in those of the runner."""
  try:
    yield
  except (ValueError, OSError) as error:
    name = next((name for name, cls in _ERRORS.items() if isinstance(error, cls)), 'ValueError')
    text = base64.b64encode(json.dumps([name, str(error)]).encode()).decode()
    raise RuntimeError(f'{error} cascades-error:{text}:') from error


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
  """Context manager that raises the error of a worker instead of the runner's account of it."""
  try:
    yield
  except Exception as error:
    if not (match := _ERROR.search(str(error))):
      raise
    name, text = json.loads(base64.b64decode(match[1]))
    raise _ERRORS[name](text) from error


def _remove_unfinished(directory: epath.Path) -> None:
  for path in directory.glob(f'{_WRITING}*'):
    shutil.rmtree(path, ignore_errors=True)
