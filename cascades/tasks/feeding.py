"""Batches for training and validation, each a pure function of (records, seed, step, process).

Grain computes them ahead in threads. The data position is the step: resuming starts there, with
nothing to restore and nothing to skip through.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import grain
import numpy as np
from jaxtyping import Int

from cascades.tasks import layouts, packing, shuffling
from cascades.tasks.layouts import Convert, Layout, Lengths
from cascades.tasks.records import Records
from cascades.types import Batch

log = logging.getLogger(__name__)

Members: TypeAlias = Sequence[Int[np.ndarray, 'k']]  # the examples in each row of a batch


class _Plan(NamedTuple):
  """An epoch: how many rows, how wide, and which examples are in given rows of given epochs."""

  rows: int
  width: int
  members: Callable[[Int[np.ndarray, 'n'], Int[np.ndarray, 'n'], int], Members]


def train_batches(
  records: Records,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  pack: int | None = None,
  threads: int = 1,
  prefetch: int = 4,
) -> Iterator[Batch]:
  """This process's rows of batch `start_step`, of the next one, and so on without end.

  `batch_size` counts the rows of all processes, and concatenating theirs gives the batch that one
  process would see. Epochs follow each other without a seam, each in an order of its own; within
  one, every example comes once. `pack` is the length of rows into which whole examples are packed.
  """
  if records.manifest.unlabelled:
    raise ValueError(
      f'{_name(records)}: {records.manifest.unlabelled} rows have no answer to learn. Train on '
      'another split.'
    )
  layout = _layout(records, convert, lengths)
  local = _share(batch_size, process_index, process_count)
  plan = _singly(records, layout) if pack is None else _packed(records, layout, pack)

  def batch(step: int) -> Batch:
    epochs, places = np.divmod(step * batch_size + local, plan.rows)
    order = shuffling.shuffled(places, plan.rows, shuffling.mix(seed, epochs))
    packed = _read(records, layout, plan.members(order, epochs, seed), plan.width)
    return layouts.unpacked(packed) if pack is None else packed

  return _ahead(batch, range(start_step, sys.maxsize), threads, prefetch)


def evaluation_batches(
  records: Records,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  rows: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 1,
  prefetch: int = 4,
) -> Iterator[Batch]:
  """This process's share of the rows in order, each once; of `rows` rows evenly spaced, if given.

  The last batch is filled up with rows of weight 0, so that all processes take equally many steps.
  """
  layout = _layout(records, convert, lengths)
  local = _share(batch_size, process_index, process_count)
  wanted = min(rows or len(records), len(records))

  def batch(step: int) -> Batch:
    numbers = step * batch_size + local
    members = [n[n < wanted] * len(records) // wanted for n in numbers[:, None]]
    return layouts.unpacked(_read(records, layout, members, layout.width))

  return _ahead(batch, range(-(-wanted // batch_size)), threads, prefetch)


def _layout(records: Records, convert: Convert, lengths: Lengths) -> Layout:
  """The layout, having said how many examples it trims."""
  layout = layouts.of(records, convert, lengths)
  inputs, targets = layout.trimmed(records.lengths)
  if inputs or targets:
    log.warning(
      '%s: %d inputs and %d targets of %d rows are longer than %s and are trimmed.',
      *(_name(records), inputs, targets, len(records), dict(lengths)),
    )
  return layout


def _name(records: Records) -> str:
  return f'{records.manifest.task}, split {records.manifest.split}'


def _share(batch_size: int, process_index: int, process_count: int) -> Int[np.ndarray, 'n']:
  """Which rows of a batch are this process's: a contiguous part."""
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'A batch of {batch_size} rows cannot be shared equally by {process_count} processes.'
    )
  count = batch_size // process_count
  return process_index * count + np.arange(count)


def _singly(records: Records, layout: Layout) -> _Plan:
  return _Plan(len(records), layout.width, lambda order, _epochs, _seed: list(order[:, None]))


def _packed(records: Records, layout: Layout, capacity: int) -> _Plan:
  if layout.encoder_width is not None:
    raise ValueError('Only decoder-only models read packed rows: leave `pack` None.')
  packs = packing.plan(layout.row_lengths(records.lengths), capacity)
  log.info(
    '%s: %d rows in %d packs of %d tokens, %.1f %% full.',
    *(_name(records), len(records), len(packs), capacity, 100 * packs.fill),
  )
  return _Plan(len(packs), capacity, packs.members)


def _read(records: Records, layout: Layout, members: Members, width: int) -> Batch:
  tokens = iter(records.tokens(np.concatenate(members)))
  rows = [[layout.example(*next(tokens)) for _ in some] for some in members]
  return layouts.assemble(rows, width=width, encoder_width=layout.encoder_width)


def _ahead(
  batch: Callable[[int], Batch], steps: range, threads: int, prefetch: int
) -> Iterator[Batch]:
  """The batches of these steps in order, computed ahead."""
  source = grain.MapDataset.range(steps.start, steps.stop).map(batch)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
  return iter(source.to_iter_dataset(options))
