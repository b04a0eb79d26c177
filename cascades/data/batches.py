"""Batches for training and validation, each a function of (records, rates, seed, step, process).

Grain computes them ahead in threads. The step is the data position: resuming starts there, with
no state to restore and no batches to skip.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import grain
import numpy as np
from jaxtyping import Int

from cascades.data import converters, mixing, packing
from cascades.data.converters import Convert, FeatureConverter, Lengths
from cascades.data.records import AnyRecords, Indices, Records, split_by_task
from cascades.data.scores import SelectedRows
from cascades.tasks import shuffling
from cascades.types import Batch

log = logging.getLogger(__name__)

_TASK_SHIFT = 40  # epochs stay below
_COUNTED_TOGETHER = 1 << 16  # rows whose token counts are in memory
_DRAWN_TOGETHER = 2048  # rows: NumPy takes hardly longer for these than for one batch's

Members: TypeAlias = Sequence[Int[np.ndarray, 'k']]  # the examples in each row of a batch
# Values of the target tokens of examples, one example after the other: a tree of arrays
# [tokens, ...], as a teacher cache stores them; of several teachers a tuple of trees.
TokenValues: TypeAlias = Callable[[Int[np.ndarray, 'n']], Any]
# Reads the rows of a step: (records, converter, examples of each row, length of packed rows).
StepReader: TypeAlias = Callable[[AnyRecords, FeatureConverter, Members, int | None], Any]


@dataclasses.dataclass(frozen=True)
class Process:
  """One of the processes that share every batch."""

  index: int = 0
  count: int = 1


ONLY_PROCESS = Process()


class _EpochPlan(NamedTuple):
  """Rows of the tasks' epochs: their numbers, and the examples in given rows."""

  rows: Int[np.ndarray, 'K']
  # (tasks, rows of these tasks, epochs, seed), elementwise
  members: Callable[
    [Int[np.ndarray, 'n'], Int[np.ndarray, 'n'], Int[np.ndarray, 'n'], int], Members
  ]


class _Order(NamedTuple):
  """Arguments of `train_batches` that give the order of rows; `local`: a process's of a batch."""

  per_task: Sequence[Records]
  converter: FeatureConverter
  batch_size: int
  local: Int[np.ndarray, 'n']
  seed: int
  rates: Sequence[float] | None
  pack: int | None


def train_batches(
  records: AnyRecords,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  seed: int,
  rates: Sequence[float] | None = None,
  start_step: int = 0,
  process: Process = ONLY_PROCESS,
  pack: int | None = None,
  pool: SelectedRows | None = None,
  readers: Callable[[int], StepReader] | None = None,
  threads: int = 1,
) -> Iterator[Any]:
  """Yields this process's rows of the batches of `start_step` and all later steps, without end.

  Epochs follow each other without a seam, each in its own order; within one, every example comes
  once.

  Args:
    records: training records of one task or of several.
    convert: `converters.encoder_decoder` or `converters.decoder_only`.
    lengths: maximum tokens of 'inputs' and 'targets', end of sequence included.
    batch_size: rows of all processes together. Concatenating the rows of all processes gives the
      batch that a single process would see.
    seed: seed of the order of examples and of tasks.
    rates: relative numbers of rows of each task, before packing; None takes the tasks' sizes.
    start_step: step of the first batch.
    process: which share of each batch to read.
    pack: length of rows into which whole examples of one task are packed; None does not pack.
    pool: rows that the first steps read, in epochs of their own; None reads all rows.
    readers: gives what reads the rows of a step; None reads `own_answers` in every step.
    threads: number of reading threads.

  Raises:
    ValueError: if rows have no answer of their own that is to be read, the batch cannot be shared
      equally, or packing is asked for with an encoder.
  """
  per_task = split_by_task(records)
  if readers is None:
    check_labeled(records)
  converter = _converter(records, convert, lengths)
  local = _local_rows(batch_size, process)
  order = _Order(per_task, converter, batch_size, local, seed, rates, pack)
  members = _members(order, pool)

  def batch(step: int) -> Any:
    read = own_answers if readers is None else readers(step)
    return read(records, converter, members(step), pack)

  return _ahead(batch, range(start_step, sys.maxsize), threads)


def check_labeled(records: AnyRecords) -> None:
  """Raises ValueError if rows have no answer of their own."""
  for task_records in split_by_task(records):
    if task_records.manifest.unlabeled:
      raise ValueError(
        f'{task_records.name}: {task_records.manifest.unlabeled} rows have no answer to learn. '
        'Train on another split.'
      )


def train_ids(
  records: AnyRecords,
  step: int,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  seed: int,
  rates: Sequence[float] | None = None,
  pack: int | None = None,
  pool: SelectedRows | None = None,
) -> list[str]:
  """Ids of the examples in batch `step` of all processes, for example to look up a bad step.

  The other arguments are those of `train_batches`. Of several tasks, ids follow the task's name.
  """
  per_task = split_by_task(records)
  converter = _converter(records, convert, lengths)
  order = _Order(per_task, converter, batch_size, np.arange(batch_size), seed, rates, pack)
  members = _members(order, pool)(step)
  ids = []
  ends = np.cumsum([len(task_records) for task_records in per_task])
  numbers = np.concatenate(members)
  for number, record in zip(numbers, records.read(numbers), strict=True):
    task = per_task[int(np.searchsorted(ends, number, side='right'))].manifest.task
    ids.append(record.row.id if len(per_task) == 1 else f'{task}: {record.row.id}')
  return ids


def _members(order: _Order, pool: SelectedRows | None) -> Callable[[int], Members]:
  """A function of the step to the examples in the rows `local` of its batch."""
  if pool is None:
    return _drawn(order, None)
  first = _drawn(order, pool.rows)
  if pool.steps is None:
    return first
  switch, later = pool.steps, _drawn(order, None)
  return lambda step: (first if step < switch else later)(step)


def _drawn(
  order: _Order, chosen: Sequence[Int[np.ndarray, 'k']] | None
) -> Callable[[int], Members]:
  """The function of `_members` for given rows of each task, or for all."""
  per_task, converter, batch_size, local, seed, rates, pack = order
  lengths, numbers = [records.lengths for records in per_task], None
  if chosen is not None:
    lengths = [counts[rows] for counts, rows in zip(lengths, chosen, strict=True)]
    starts = np.cumsum([0, *map(len, per_task)])
    numbers = np.concatenate([start + rows for start, rows in zip(starts, chosen, strict=False)])
  names = [records.name for records in per_task]
  plan = _plan_single(lengths) if pack is None else _plan_packed(names, lengths, converter, pack)
  examples = np.array([len(counts) for counts in lengths])
  counts = mixing.block(np.asarray(rates or examples) * (plan.rows / examples))
  together = max(_DRAWN_TOGETHER // len(local), 1)

  @functools.lru_cache(maxsize=2)
  def drawn(block: int) -> Members:
    steps = block * together + np.arange(together)
    task, number = mixing.draw((steps[:, None] * batch_size + local).ravel(), counts, seed)
    epochs, positions = np.divmod(number, plan.rows[task])
    # Every task shuffles in its own way; of one task alone the key is the epoch.
    keys = shuffling.mix(seed, epochs + (task << _TASK_SHIFT))
    shuffled = shuffling.shuffled(positions, plan.rows[task], keys)
    rows = plan.members(task, shuffled, epochs, seed)
    return rows if numbers is None else [numbers[row] for row in rows]

  def members(step: int) -> Members:
    block, offset = divmod(step, together)
    return drawn(block)[offset * len(local) : (offset + 1) * len(local)]

  return members


def evaluation_batches(
  records: AnyRecords,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  indices: Indices | None = None,
  process: Process = ONLY_PROCESS,
  teacher: TokenValues | None = None,
  threads: int = 1,
  prefetch: int = 4,
) -> Iterator[Batch]:
  """Yields this process's share of rows, in order and each once.

  Args:
    records: records of one task or of several.
    convert: `converters.encoder_decoder` or `converters.decoder_only`.
    lengths: maximum tokens of 'inputs' and 'targets', end of sequence included.
    batch_size: rows of all processes together.
    indices: numbers of the rows to read; None reads all.
    process: which share of each batch to read.
    teacher: gives values of the examples' target tokens, which are added to the batch.
    threads: number of reading threads.
    prefetch: number of batches computed ahead.

  Returns:
    Batches, the last one filled up with rows of weight 0, so that all processes take equally many
    steps.

  Raises:
    ValueError: if the batch cannot be shared equally.
  """
  converter = _converter(records, convert, lengths)
  local = _local_rows(batch_size, process)
  rows = np.asarray(range(len(records)) if indices is None else indices, np.int64)

  def batch(step: int) -> Batch:
    members = [rows[n : n + 1] for n in (step * batch_size + local).tolist()]
    return own_answers(records, converter, members, teacher=teacher)

  return _ahead(batch, range(-(-len(rows) // batch_size)), threads, prefetch)


def evenly_spaced(records: AnyRecords, rows: int) -> Int[np.ndarray, 'n']:
  """Numbers of `rows` evenly spaced rows, or of all rows if there are no more."""
  count = min(rows, len(records))
  return np.arange(count) * len(records) // count


def _converter(records: AnyRecords, convert: Convert, lengths: Lengths) -> FeatureConverter:
  """Makes the converter; warns if it trims examples. ValueError if there is nothing to learn."""
  converter = converters.feature_converter(records, convert, lengths)
  for task_records in split_by_task(records):
    predicted, inputs, targets = False, 0, 0
    for begin in range(0, len(task_records), _COUNTED_TOGETHER):
      counts = task_records.lengths[begin : begin + _COUNTED_TOGETHER]
      predicted |= bool(converter.target_lengths(counts).any())
      trimmed = converter.count_trimmed(counts)
      inputs, targets = inputs + trimmed[0], targets + trimmed[1]
    if not predicted:
      raise ValueError(
        f'{task_records.name}: no row has a token to predict: all answers are empty, and the task '
        'puts no end of sequence behind them.'
      )
    if inputs or targets:
      _warn_once(
        f'{task_records.name}: {inputs} inputs and {targets} targets of {len(task_records)} rows '
        f'are longer than {dict(lengths)} and are trimmed.'
      )
  return converter


@functools.cache
def _warn_once(message: str) -> None:
  """Validation reads the same rows again and again."""
  log.warning('%s', message)


def _local_rows(batch_size: int, process: Process) -> Int[np.ndarray, 'n']:
  """Rows of a batch that belong to a process: a contiguous range."""
  if batch_size < 1 or batch_size % process.count:
    raise ValueError(
      f'A batch of {batch_size} rows cannot be shared equally by {process.count} processes: make '
      'the batch size a multiple of their number.'
    )
  count = batch_size // process.count
  return process.index * count + np.arange(count)


def _plan_single(lengths: Sequence[Int[np.ndarray, 'k 2']]) -> _EpochPlan:
  """One example a row, numbered one task after the other, from the token counts of each task."""
  rows = np.array(list(map(len, lengths)))
  starts = np.cumsum(rows) - rows
  return _EpochPlan(rows, lambda task, order, _epochs, _seed: list((starts[task] + order)[:, None]))


def _plan_packed(
  names: Sequence[str],
  lengths: Sequence[Int[np.ndarray, 'k 2']],
  converter: FeatureConverter,
  capacity: int,
) -> _EpochPlan:
  """Packs of whole examples of one task."""
  if converter.encoder_width is not None:
    raise ValueError('Only decoder-only models read packed rows: leave `pack` None.')
  plans = []
  for name, counts in zip(names, lengths, strict=True):
    packs = packing.plan(converter.row_lengths(counts), capacity)
    log.info(
      '%s: %d rows in %d packs of %d tokens, %.1f %% full.',
      *(name, len(counts), len(packs), capacity, 100 * packs.fill),
    )
    plans.append(packs)
  rows = np.array([len(packs) for packs in plans])
  starts, packs = np.cumsum(rows) - rows, packing.concatenate(plans)
  return _EpochPlan(
    rows, lambda task, order, epochs, seed: packs.members(starts[task] + order, epochs, seed)
  )


def own_answers(
  records: AnyRecords,
  converter: FeatureConverter,
  members: Members,
  pack: int | None = None,
  *,
  teacher: TokenValues | None = None,
) -> Batch:
  """Reads the rows of a step with the answers of the task.

  Args:
    records: records of one task or of several.
    converter: of these records.
    members: the examples of each row.
    pack: length of rows that hold several examples; None for one example a row.
    teacher: gives values of the examples' target tokens, which are added to the batch.
  """
  width = converter.width if pack is None else pack
  numbers = np.concatenate(members)
  examples = iter(converter.examples(records.tokens(numbers)))
  rows = [list(itertools.islice(examples, len(row))) for row in members]
  batch = converters.assemble(rows, width=width, encoder_width=converter.encoder_width)
  if teacher is not None:
    batch = converters.with_teachers(batch, teacher(numbers))
  return converters.without_segments(batch) if pack is None else batch


def _ahead(
  batch: Callable[[int], Any], steps: range, threads: int, prefetch: int = 4
) -> Iterator[Any]:
  """Batches of these steps in order, computed ahead."""
  source = grain.MapDataset.range(steps.start, steps.stop).map(batch)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
  return iter(source.to_iter_dataset(options))
