"""Mixing of tasks by rates, without state: the task and the example of any row of the mixture.

Rows come in blocks. In each, task k has exactly `counts[k]` rows, in an order drawn anew, so the
rates hold over every block and not on average only; a row's block and its position there determine
its task and its example. A task's epochs that meet in a block interleave there.

Grain's `MapDataset.mix` is not used, because it interleaves tasks in one pattern for every seed and
looks up one row at a time, where a block of rows needs one NumPy call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cascades.tasks import shuffling

LARGEST_BLOCK = 1 << 24
_BLOCK = 1 << 20  # of rates that are no counts
_SALT = 0x6D697865


class TaskRows(NamedTuple):
  """Rows of a mixture.

  Attributes:
    task: the task of each row.
    number: the number of earlier rows of the same task.
  """

  task: Int[np.ndarray, 'n']
  number: Int[np.ndarray, 'n']


def block(rates: Sequence[float]) -> Int[np.ndarray, 'K']:
  """Counts of rows of each task in a block.

  Args:
    rates: positive rates of the tasks.

  Returns:
    The rates themselves if they are whole numbers with a sum of at most 2^24. Other rates are
    rounded to a block of 2^20 rows by largest remainder, and each task gets at least one row.

  Raises:
    ValueError: if there are no rates, or one is not a positive number.
  """
  given = np.asarray(rates, float)
  if not len(given) or not np.isfinite(given).all() or (given <= 0).any():
    raise ValueError(f'Mixing rates must be positive numbers, found {list(rates)}.')
  if (given == np.floor(given)).all() and given.sum() <= LARGEST_BLOCK:
    return given.astype(np.int64)
  exact = given / given.sum() * _BLOCK
  counts = np.maximum(np.floor(exact), 1).astype(np.int64)
  most_lacking = np.argsort(counts - exact, kind='stable')
  short = _BLOCK - int(counts.sum())
  counts[most_lacking[: max(short, 0)]] += 1
  return counts


def draw(rows: Int[np.ndarray, 'n'], counts: Int[np.ndarray, 'K'], seed: int) -> TaskRows:
  """Draws the task, and the number within the task, of rows of the endless mixture.

  Args:
    rows: numbers of rows of the mixture, from 0.
    counts: rows of each task in a block, as `block` gives them.
    seed: the seed of the order within blocks.

  Returns:
    Task and number of each row, a function of the arguments alone.
  """
  if len(counts) == 1:
    return TaskRows(np.zeros_like(rows), rows)
  ends = np.cumsum(counts)
  blocks, positions = np.divmod(rows, ends[-1])
  slots = shuffling.shuffled(positions, int(ends[-1]), shuffling.mix(_SALT, seed, blocks))
  task = np.searchsorted(ends, slots, side='right')
  return TaskRows(task, blocks * counts[task] + slots - (ends - counts)[task])
