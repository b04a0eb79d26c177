"""Several short examples in one row, planned from token counts alone.

Which lengths go together is planned once, from the histogram of the lengths; an epoch only redraws
which example of a length takes which of its places. So every epoch has equally many packs, and pack
i of epoch e is known without building the epochs, or the packs, before it.
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

_SALT = 0x7061636B  # who shares a pack is drawn apart from the order of the packs

_Slots: TypeAlias = tuple[tuple[int, int], ...]  # a pack's lengths: (index into values, how many)


@dataclasses.dataclass(frozen=True)
class Packs:
  """P packs of N examples. Places of one length are neighbours, as are the examples for them."""

  capacity: int
  starts: Int[np.ndarray, 'P+1']  # pack p has places[starts[p] : starts[p + 1]]
  places: Int[np.ndarray, 'N']
  examples: Int[np.ndarray, 'N']  # ordered by length
  first: Int[np.ndarray, 'N']  # of each place: where its length begins ...
  alike: Int[np.ndarray, 'N']  # ... and how many examples have it
  salt: Int[np.ndarray, 'N']  # tells the lengths of a task apart
  fill: float  # share of the rows' positions that hold an example

  def __len__(self) -> int:
    return len(self.starts) - 1

  def members(
    self, packs: Int[np.ndarray, 'n'], epochs: Int[np.ndarray, 'n'], seed: int
  ) -> list[Int[np.ndarray, 'k']]:
    """The examples of each pack in its epoch; within an epoch every example is in one pack."""
    counts = self.starts[packs + 1] - self.starts[packs]
    place = self.places[_ranges(self.starts[packs], counts)]
    first = self.first[place]
    key = shuffling.mix(_SALT, seed, np.repeat(epochs, counts), self.salt[place])
    chosen = self.examples[first + shuffling.shuffled(place - first, self.alike[place], key)]
    ends = np.cumsum(counts).tolist()
    return [chosen[begin:end] for begin, end in itertools.pairwise([0, *ends])]


def join(plans: Sequence[Packs]) -> Packs:
  """The packs of all, one after the other, as are their examples; each filled as if alone."""
  sizes = [len(plan.places) for plan in plans]
  before = np.repeat(np.cumsum(sizes) - sizes, sizes)
  counts = np.concatenate([np.diff(plan.starts) for plan in plans])
  return Packs(
    capacity=plans[0].capacity,
    starts=np.cumsum([0, *counts]),
    places=np.concatenate([plan.places for plan in plans]) + before,
    examples=np.concatenate([plan.examples for plan in plans]) + before,
    first=np.concatenate([plan.first for plan in plans]) + before,
    alike=np.concatenate([plan.alike for plan in plans]),
    salt=np.concatenate([plan.salt for plan in plans]),
    fill=sum(plan.fill * len(plan) for plan in plans) / len(counts),
  )


def plan(lengths: Int[np.ndarray, 'N'], capacity: int) -> Packs:
  """Best-fit decreasing on the histogram of the lengths.

  After the histogram packing of Krell et al. 2021, https://arxiv.org/abs/2107.02027.
  """
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
  found = _best_fit(values.tolist(), counts.tolist(), capacity)
  widths = np.repeat([_width(slots) for slots, _ in found], [copies for _, copies in found])
  return Packs(
    capacity=capacity,
    starts=np.cumsum([0, *widths]),
    places=_places(found, first.tolist()),
    examples=examples,
    first=np.repeat(first, counts),
    alike=np.repeat(counts, counts),
    salt=np.repeat(first, counts),
    fill=float(lengths.sum() / (capacity * len(widths))),
  )


def _width(slots: _Slots) -> int:
  """How many examples such a pack has."""
  return sum(times for _, times in slots)


def _places(found: list[tuple[_Slots, int]], free: list[int]) -> Int[np.ndarray, 'N']:
  """The place of every slot, pack by pack; `free` is the next place of each length."""
  begins: list[int] = []  # of each slot in the first of some equal packs ...
  strides: list[int] = []  # ... and from each of these packs to the next one
  for slots, copies in found:
    for kind, times in slots:
      begins += range(free[kind], free[kind] + times)
      strides += [times] * times
      free[kind] += copies * times
  equal = np.array([copies for _, copies in found])
  width = np.array([_width(slots) for slots, _ in found])
  widths = np.repeat(width, equal)
  slot = _ranges(np.repeat(np.cumsum(width) - width, equal), widths)
  copy = np.repeat(_ranges(np.zeros_like(equal), equal), widths)
  return np.array(begins)[slot] + np.array(strides)[slot] * copy


def _best_fit(values: list[int], counts: list[int], capacity: int) -> list[tuple[_Slots, int]]:
  """Packs as (their lengths, how many such packs), longest lengths placed first."""
  by_room: dict[int, list[tuple[_Slots, int]]] = {}
  rooms: list[int] = []  # sorted
  for kind in reversed(range(len(values))):
    value, left = values[kind], counts[kind]
    while left:
      least = bisect.bisect_left(rooms, value)
      room = rooms[least] if least < len(rooms) else capacity
      packs = by_room.pop(room, [((), left)])  # none has room: as many new packs as it takes
      slots, copies = packs.pop()
      times = min(room // value, left)
      used = min(copies, left // times)
      if slots and used < copies:
        packs.append((slots, copies - used))
      if packs:
        by_room[room] = packs
      elif slots:
        rooms.pop(least)
      rest = room - times * value
      if rest not in by_room:
        bisect.insort(rooms, rest)
      by_room.setdefault(rest, []).append(((*slots, (kind, times)), used))
      left -= used * times
  return [pack for packs in by_room.values() for pack in packs]


def _ranges(begins: Int[np.ndarray, 'n'], counts: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'k']:
  """Integers from each begin on, so many, one range after the other."""
  ends = np.cumsum(counts)
  return np.repeat(begins - ends + counts, counts) + np.arange(counts.sum())
