"""Several short examples in one row, planned from token counts alone.

Which lengths go together is planned once, from the histogram of the lengths; an epoch only redraws
which example of a length takes which of its places. So every epoch has equally many packs, and pack
i of epoch e is known without building the epochs, or the packs, before it.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
from jaxtyping import Int

from cascades.tasks import shuffling

_SALT = 0x7061636B  # who shares a pack is drawn apart from the order of the packs


@dataclasses.dataclass(frozen=True)
class Packs:
  """P packs of N examples. Places of one length are neighbours, as are the examples for them."""

  capacity: int
  starts: Int[np.ndarray, 'P+1']  # pack p has places[starts[p] : starts[p + 1]]
  places: Int[np.ndarray, 'N']
  examples: Int[np.ndarray, 'N']  # ordered by length
  first: Int[np.ndarray, 'N']  # of each place: where its length begins ...
  alike: Int[np.ndarray, 'N']  # ... and how many examples have it
  fill: float  # share of the rows' positions that hold an example

  def __len__(self) -> int:
    return len(self.starts) - 1

  def members(
    self, packs: Int[np.ndarray, 'n'], epochs: Int[np.ndarray, 'n'], seed: int
  ) -> list[Int[np.ndarray, 'k']]:
    """The examples of each pack in its epoch; within an epoch every example is in one pack."""
    spans = zip(self.starts[packs], self.starts[packs + 1], strict=True)
    places = [self.places[begin:end] for begin, end in spans]
    counts = np.array([len(some) for some in places])
    place = np.concatenate(places)
    first, alike = self.first[place], self.alike[place]
    key = shuffling.mix(_SALT, seed, np.repeat(epochs, counts), first)
    chosen = self.examples[first + shuffling.shuffled(place - first, alike, key)]
    return np.split(chosen, np.cumsum(counts)[:-1])


def plan(lengths: Int[np.ndarray, 'N'], capacity: int) -> Packs:
  """Best-fit decreasing on the histogram of the lengths.

  After the histogram packing of Krell et al. 2021, https://arxiv.org/abs/2107.02027.
  """
  if lengths.max() > capacity:
    raise ValueError(
      f'An example of {lengths.max()} tokens does not fit into a pack of {capacity}: raise the '
      'length of the packs, or lower the feature lengths.'
    )
  examples = np.argsort(lengths, kind='stable')
  values, first, inverse, counts = np.unique(
    lengths[examples], return_index=True, return_inverse=True, return_counts=True
  )
  free = first.copy()  # the next place of each length
  places: list[np.ndarray] = []
  sizes: list[np.ndarray] = []
  for kinds, copies in _best_fit(values.tolist(), counts.tolist(), capacity):
    columns = []
    for kind, times in collections.Counter(kinds).items():
      columns.append(free[kind] + np.arange(copies * times).reshape(copies, times))
      free[kind] += copies * times
    places.append(np.concatenate(columns, axis=1).ravel())
    sizes.append(np.full(copies, len(kinds)))
  starts = np.cumsum(np.concatenate([[0], *sizes]))
  return Packs(
    capacity=capacity,
    starts=starts,
    places=np.concatenate(places),
    examples=examples,
    first=first[inverse],
    alike=counts[inverse],
    fill=float(lengths.sum() / (capacity * (len(starts) - 1))),
  )


def _best_fit(
  values: list[int], counts: list[int], capacity: int
) -> list[tuple[tuple[int, ...], int]]:
  """Packs as (indices into values, how many such packs), longest lengths placed first."""
  by_room: dict[int, list[tuple[tuple[int, ...], int]]] = {}
  for kind in reversed(range(len(values))):
    value, left = values[kind], counts[kind]
    while left:
      room = min((room for room in by_room if room >= value), default=capacity)
      packs = by_room.pop(room, [((), left)])  # none has room: as many new packs as it takes
      kinds, copies = packs.pop()
      times = min(room // value, left)
      used = min(copies, left // times)
      if kinds and used < copies:
        packs.append((kinds, copies - used))
      if packs:
        by_room[room] = packs
      by_room.setdefault(room - times * value, []).append((kinds + (kind,) * times, used))
      left -= used * times
  return [pack for packs in by_room.values() for pack in packs]
