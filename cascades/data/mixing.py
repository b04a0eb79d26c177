"""Which of several tasks each training row comes from, by given rates, without keeping any state.

Rows come in blocks. In each, task k has exactly `counts[k]` rows, in an order drawn anew, so the
rates hold over every block and not on average only; the block and the place in it say which row.
A task's epochs that meet in a block interleave there, and at its end each row has had its turn.
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


class Drawn(NamedTuple):
  """For each row: the task, and how many of its rows came before."""

  task: Int[np.ndarray, 'n']
  number: Int[np.ndarray, 'n']


def block(rates: Sequence[float]) -> Int[np.ndarray, 'K']:
  """How many rows of a block each task has: the rates themselves if they are moderate counts.

  Other rates are rounded to a block of 2^20 rows by largest remainder, and no task gets none.
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


def draw(rows: Int[np.ndarray, 'n'], counts: Int[np.ndarray, 'K'], seed: int) -> Drawn:
  """The task and the number within the task of these rows of the endless mixture."""
  if len(counts) == 1:
    return Drawn(np.zeros_like(rows), rows)
  ends = np.cumsum(counts)
  blocks, places = np.divmod(rows, ends[-1])
  slots = shuffling.shuffled(places, int(ends[-1]), shuffling.mix(_SALT, seed, blocks))
  task = np.searchsorted(ends, slots, side='right')
  return Drawn(task, blocks * counts[task] + slots - (ends - counts)[task])
