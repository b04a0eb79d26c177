"""Packing of several short examples into one row, planned from token counts alone.

The plan, made once from the histogram of the lengths, says which lengths share a row; an epoch only
redraws which example of a length takes which of its slots. So every epoch has equally many packs,
and pack i of epoch e is known without building the epochs, or the packs, before it.

Grain's packing (`experimental.BestFitPackIterDataset`) is not used, because it fills rows from a
stream: batch i is only reached by packing all batches before it or from an iterator's saved state.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

from cascades.tasks import shuffling

_SALT = 0x7061636B  # draws the members of a pack apart from the order of the packs

# The lengths in a pack: (index into the distinct lengths, number of examples of that length).
_Composition: TypeAlias = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class PackingPlan:
  """P packs of N examples. Slots are sorted by length, and so are the examples that fill them.

  Attributes:
    capacity: tokens of a row.
    starts: pack p has `slots[starts[p] : starts[p + 1]]`.
    slots: a permutation of the N slots, pack by pack.
    examples: the examples, ordered by length.
    first: of each slot, the first slot of the same length ...
    alike: ... and the number of slots of that length.
    salt: of each slot, an integer that differs between the lengths of a task.
    fill: share of the rows' positions that belong to an example.
  """

  capacity: int
  starts: Int[np.ndarray, 'P+1']
  slots: Int[np.ndarray, 'N']
  examples: Int[np.ndarray, 'N']
  first: Int[np.ndarray, 'N']
  alike: Int[np.ndarray, 'N']
  salt: Int[np.ndarray, 'N']
  fill: float

  def __len__(self) -> int:
    return len(self.starts) - 1

  def members(
    self, packs: Int[np.ndarray, 'n'], epochs: Int[np.ndarray, 'n'], seed: int
  ) -> list[Int[np.ndarray, 'k']]:
    """Draws the examples of each pack in its epoch.

    Args:
      packs: numbers of packs.
      epochs: the epoch of each.
      seed: the seed of the shuffle.

    Returns:
      The examples of each pack. In an epoch every example is in exactly one pack.
    """
    counts = self.starts[packs + 1] - self.starts[packs]
    slot = self.slots[_ranges(self.starts[packs], counts)]
    first = self.first[slot]
    key = shuffling.mix(_SALT, seed, np.repeat(epochs, counts), self.salt[slot])
    drawn = self.examples[first + shuffling.shuffled(slot - first, self.alike[slot], key)]
    ends = np.cumsum(counts).tolist()
    return [drawn[begin:end] for begin, end in itertools.pairwise([0, *ends])]


def concatenate(plans: Sequence[PackingPlan]) -> PackingPlan:
  """Concatenates plans, and the examples that they number; no pack mixes examples of two plans."""
  sizes = [len(plan.slots) for plan in plans]
  before = np.repeat(np.cumsum(sizes) - sizes, sizes)
  counts = np.concatenate([np.diff(plan.starts) for plan in plans])
  return PackingPlan(
    capacity=plans[0].capacity,
    starts=np.cumsum([0, *counts]),
    slots=np.concatenate([plan.slots for plan in plans]) + before,
    examples=np.concatenate([plan.examples for plan in plans]) + before,
    first=np.concatenate([plan.first for plan in plans]) + before,
    alike=np.concatenate([plan.alike for plan in plans]),
    salt=np.concatenate([plan.salt for plan in plans]),
    fill=sum(plan.fill * len(plan) for plan in plans) / len(counts),
  )


def plan(lengths: Int[np.ndarray, 'N'], capacity: int) -> PackingPlan:
  """Plans packs by best-fit decreasing on the histogram of the lengths.

  After the histogram packing of Krell et al. 2021, https://arxiv.org/abs/2107.02027.

  Examples 0 to 4 have 5, 2, 3, 5 and 3 tokens. In rows of 8, each 5 goes with a 3, and which one is
  drawn anew in every epoch:

  >>> packs = plan(np.array([5, 2, 3, 5, 3]), capacity=8)
  >>> len(packs), packs.fill
  (3, 0.75)
  >>> for epoch in (0, 1):
  ...   [pack.tolist() for pack in packs.members(np.arange(3), np.full(3, epoch), seed=0)]
  [[3, 2], [0, 4], [1]]
  [[0, 4], [3, 2], [1]]

  Args:
    lengths: number of tokens of each example.
    capacity: number of tokens of a row.

  Returns:
    The plan, which is the same for every epoch and seed.

  Raises:
    ValueError: if an example is longer than a row, or has no tokens.
  """
  if not lengths.all():
    raise ValueError(
      f'Example {int(np.argmin(lengths))} has no tokens, so that a pack never fills: leave out '
      'empty rows, or end them with an end of sequence.'
    )
  if lengths.max() > capacity:
    raise ValueError(
      f'An example of {lengths.max()} tokens does not fit into a pack of {capacity}: raise the '
      'length of the packs, or lower the feature lengths.'
    )
  # NumPy sorts 16 bits by radix, ten times faster.
  examples = np.argsort(lengths.astype(np.min_scalar_type(capacity)), kind='stable')
  histogram = np.bincount(lengths)
  values = np.flatnonzero(histogram)
  counts = histogram[values]
  first = np.cumsum(counts) - counts
  compositions = _best_fit(values.tolist(), counts.tolist(), capacity)
  sizes = np.repeat(
    [_size(composition) for composition, _ in compositions], [copies for _, copies in compositions]
  )
  return PackingPlan(
    capacity=capacity,
    starts=np.cumsum([0, *sizes]),
    slots=_slots(compositions, first.tolist()),
    examples=examples,
    first=np.repeat(first, counts),
    alike=np.repeat(counts, counts),
    salt=np.repeat(first, counts),
    fill=float(lengths.sum() / (capacity * len(sizes))),
  )


def _size(composition: _Composition) -> int:
  """Number of examples in such a pack."""
  return sum(times for _, times in composition)


def _slots(compositions: list[tuple[_Composition, int]], free: list[int]) -> Int[np.ndarray, 'N']:
  """Slots of all packs, pack by pack; `free` is the next free slot of each length."""
  begins: list[int] = []  # the slots of the first of several equal packs ...
  strides: list[int] = []  # ... and the distance from each of these packs to the next one
  for composition, copies in compositions:
    for length, times in composition:
      begins += range(free[length], free[length] + times)
      strides += [times] * times
      free[length] += copies * times
  equal = np.array([copies for _, copies in compositions])
  size = np.array([_size(composition) for composition, _ in compositions])
  sizes = np.repeat(size, equal)
  slot = _ranges(np.repeat(np.cumsum(size) - size, equal), sizes)
  copy = np.repeat(_ranges(np.zeros_like(equal), equal), sizes)
  return np.array(begins)[slot] + np.array(strides)[slot] * copy


def _best_fit(
  values: list[int], counts: list[int], capacity: int
) -> list[tuple[_Composition, int]]:
  """Packs as (lengths, number of such packs); longest examples first."""
  by_free: dict[int, list[tuple[_Composition, int]]] = {}  # packs by their free positions
  free_sizes: list[int] = []  # the keys of by_free, sorted
  for length in reversed(range(len(values))):
    value, left = values[length], counts[length]
    while left:
      best = bisect.bisect_left(free_sizes, value)
      free = free_sizes[best] if best < len(free_sizes) else capacity
      packs = by_free.pop(free, [((), left)])  # nothing fits: as many new packs as needed
      composition, copies = packs.pop()
      times = min(free // value, left)
      used = min(copies, left // times)
      if composition and used < copies:
        packs.append((composition, copies - used))
      if packs:
        by_free[free] = packs
      elif composition:
        free_sizes.pop(best)
      rest = free - times * value
      if rest not in by_free:
        bisect.insort(free_sizes, rest)
      by_free.setdefault(rest, []).append(((*composition, (length, times)), used))
      left -= used * times
  return [pack for packs in by_free.values() for pack in packs]


def _ranges(begins: Int[np.ndarray, 'n'], counts: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'k']:
  """Concatenated ranges of `counts` integers from `begins` on."""
  ends = np.cumsum(counts)
  return np.repeat(begins - ends + counts, counts) + np.arange(counts.sum())
