"""Batches for training and validation, each a function of (records, rates, seed, step, process).

Grain computes them ahead in threads. The data position is the step: resuming starts there, with
nothing to restore and nothing to skip through.
"""

from __future__ import annotations

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
from cascades.data.converters import Convert, Layout, Lengths
from cascades.data.records import Indices, Joined, Readable, Records
from cascades.tasks import shuffling
from cascades.types import Batch

log = logging.getLogger(__name__)

_TASK_SHIFT = 40  # epochs stay below
_DRAWN_TOGETHER = 2048  # rows: NumPy takes hardly longer for these than for one batch's

Members: TypeAlias = Sequence[Int[np.ndarray, 'k']]  # the examples in each row of a batch
# What is known of the target tokens of some examples, one example after the other: a tree of
# arrays [tokens, ...], as a teacher cache has them.
TokenValues: TypeAlias = Callable[[Int[np.ndarray, 'n']], Any]


class _Plan(NamedTuple):
  """What the tasks' epochs have: how many rows each, and which examples are in given rows."""

  rows: Int[np.ndarray, 'K']
  # (tasks, rows of theirs, epochs, seed), elementwise
  members: Callable[
    [Int[np.ndarray, 'n'], Int[np.ndarray, 'n'], Int[np.ndarray, 'n'], int], Members
  ]


def train_batches(
  records: Readable,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  seed: int,
  rates: Sequence[float] | None = None,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  pack: int | None = None,
  teacher: TokenValues | None = None,
  threads: int = 1,
  prefetch: int = 4,
) -> Iterator[Batch]:
  """This process's rows of batch `start_step`, of the next one, and so on without end.

  `batch_size` counts the rows of all processes, and concatenating theirs gives the batch that one
  process would see. Epochs follow each other without a seam, each in an order of its own; within
  one, every example comes once. Of several tasks, `rates` says how many rows of each come
  in the same time, before packing; their numbers of rows, if None. `pack` is the length of rows
  into which whole examples of one task are packed. What `teacher` knows of the targets' tokens goes
  into the batch with them.
  """
  parts = records.parts if isinstance(records, Joined) else (records,)
  for part in parts:
    if part.manifest.unlabelled:
      raise ValueError(
        f'{part.name}: {part.manifest.unlabelled} rows have no answer to learn. Train on another '
        'split.'
      )
  layout = _layout(records, convert, lengths)
  width = layout.width if pack is None else pack
  local = _share(batch_size, process_index, process_count)
  members = _drawing(parts, layout, batch_size, local, seed, rates, pack)

  def batch(step: int) -> Batch:
    packed = _read(records, layout, members(step), width, teacher)
    return converters.unpacked(packed) if pack is None else packed

  return _ahead(batch, range(start_step, sys.maxsize), threads, prefetch)


def train_ids(
  records: Readable,
  step: int,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  seed: int,
  rates: Sequence[float] | None = None,
  pack: int | None = None,
) -> list[str]:
  """Which examples all processes' rows of batch `step` hold; of several tasks, behind their names.

  The arguments are those of `train_batches`.
  """
  parts = records.parts if isinstance(records, Joined) else (records,)
  layout = _layout(records, convert, lengths)
  members = _drawing(parts, layout, batch_size, np.arange(batch_size), seed, rates, pack)(step)
  ids = []
  ends = np.cumsum([len(part) for part in parts])
  numbers = np.concatenate(members)
  for number, record in zip(numbers, records.read(numbers), strict=True):
    part = parts[int(np.searchsorted(ends, number, side='right'))]
    ids.append(record.row.id if len(parts) == 1 else f'{part.manifest.task}: {record.row.id}')
  return ids


def _drawing(
  parts: Sequence[Records],
  layout: Layout,
  batch_size: int,
  local: Int[np.ndarray, 'n'],
  seed: int,
  rates: Sequence[float] | None,
  pack: int | None,
) -> Callable[[int], Members]:
  """The examples in the rows `local` of a step's batch."""
  plan = _singly(parts) if pack is None else _packed(parts, layout, pack)
  examples = np.array([len(part) for part in parts])
  counts = mixing.block(np.asarray(rates or examples) * (plan.rows / examples))
  together = max(_DRAWN_TOGETHER // len(local), 1)

  @functools.lru_cache(maxsize=2)
  def drawn(block: int) -> Members:
    steps = block * together + np.arange(together)
    task, number = mixing.draw((steps[:, None] * batch_size + local).ravel(), counts, seed)
    epochs, places = np.divmod(number, plan.rows[task])
    # Every task shuffles in its own way; of one task alone the key is the epoch.
    keys = shuffling.mix(seed, epochs + (task << _TASK_SHIFT))
    order = shuffling.shuffled(places, plan.rows[task], keys)
    return plan.members(task, order, epochs, seed)

  def members(step: int) -> Members:
    block, place = divmod(step, together)
    return drawn(block)[place * len(local) : (place + 1) * len(local)]

  return members


def evaluation_batches(
  records: Readable,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  indices: Indices | None = None,
  process_index: int = 0,
  process_count: int = 1,
  teacher: TokenValues | None = None,
  threads: int = 1,
  prefetch: int = 4,
) -> Iterator[Batch]:
  """This process's share of these rows, of all if None, in order and each once.

  The last batch is filled up with rows of weight 0, so that all processes take equally many steps.
  """
  layout = _layout(records, convert, lengths)
  local = _share(batch_size, process_index, process_count)
  chosen = np.asarray(range(len(records)) if indices is None else indices, np.int64)

  def batch(step: int) -> Batch:
    members = [chosen[n : n + 1] for n in (step * batch_size + local).tolist()]
    return converters.unpacked(_read(records, layout, members, layout.width, teacher))

  return _ahead(batch, range(-(-len(chosen) // batch_size)), threads, prefetch)


def evenly_spaced(records: Readable, rows: int) -> Int[np.ndarray, 'n']:
  """So many of the rows, from all over; all of them if there are no more."""
  wanted = min(rows, len(records))
  return np.arange(wanted) * len(records) // wanted


def _layout(records: Readable, convert: Convert, lengths: Lengths) -> Layout:
  """The layout, having said how many examples it trims."""
  layout = converters.of(records, convert, lengths)
  for part in records.parts if isinstance(records, Joined) else (records,):
    inputs, targets = layout.trimmed(part.lengths)
    if inputs or targets:
      _warn_once(
        f'{part.name}: {inputs} inputs and {targets} targets of {len(part)} rows are longer than '
        f'{dict(lengths)} and are trimmed.'
      )
  return layout


@functools.cache
def _warn_once(message: str) -> None:
  """Validation goes over the same rows again and again."""
  log.warning('%s', message)


def _share(batch_size: int, process_index: int, process_count: int) -> Int[np.ndarray, 'n']:
  """Which rows of a batch are this process's: a contiguous part."""
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'A batch of {batch_size} rows cannot be shared equally by {process_count} processes.'
    )
  count = batch_size // process_count
  return process_index * count + np.arange(count)


def _singly(parts: Sequence[Records]) -> _Plan:
  rows = np.array([len(part) for part in parts])
  starts = np.cumsum(rows) - rows
  return _Plan(rows, lambda task, order, _epochs, _seed: list((starts[task] + order)[:, None]))


def _packed(parts: Sequence[Records], layout: Layout, capacity: int) -> _Plan:
  if layout.encoder_width is not None:
    raise ValueError('Only decoder-only models read packed rows: leave `pack` None.')
  plans = []
  for part in parts:
    packs = packing.plan(layout.row_lengths(part.lengths), capacity)
    log.info(
      '%s: %d rows in %d packs of %d tokens, %.1f %% full.',
      *(part.name, len(part), len(packs), capacity, 100 * packs.fill),
    )
    plans.append(packs)
  rows = np.array([len(packs) for packs in plans])
  starts, joined = np.cumsum(rows) - rows, packing.join(plans)
  return _Plan(
    rows, lambda task, order, epochs, seed: joined.members(starts[task] + order, epochs, seed)
  )


def _read(
  records: Readable, layout: Layout, members: Members, width: int, teacher: TokenValues | None
) -> Batch:
  chosen = np.concatenate(members)
  examples = iter(layout.examples(records.tokens(chosen)))
  rows = [list(itertools.islice(examples, len(some))) for some in members]
  batch = converters.assemble(rows, width=width, encoder_width=layout.encoder_width)
  return batch if teacher is None else converters.with_teacher(batch, teacher(chosen))


def _ahead(
  batch: Callable[[int], Batch], steps: range, threads: int, prefetch: int
) -> Iterator[Batch]:
  """The batches of these steps in order, computed ahead."""
  source = grain.MapDataset.range(steps.start, steps.stop).map(batch)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
  return iter(source.to_iter_dataset(options))
