"""Shifts of a stream: orders of its rows, and experts that err or are silent.

Each is a frozen description: one that has `order` sorts the rows before the stream begins, one
that has `answer` changes what the expert says of a query. They depend on a seed and the number of a
query alone, so that a run which is resumed sees the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from cascades.inference.online_stream import Expert, ExpertError
from cascades.inference.stream_files import StreamRow
from cascades.online_step import Query
from cascades.runtime import ranges
from cascades.tasks import shuffling

_STREAM = 1 << 20  # jumps of a query use the first words of its hash


@runtime_checkable
class RowShift(Protocol):
  """An order of the rows."""

  def order(self, rows: Sequence[StreamRow]) -> list[int]:
    """Numbers of the rows in their new order."""
    ...


@runtime_checkable
class ExpertShift(Protocol):
  """Another expert."""

  def answer(self, label: int | None, number: int, classes: int, seed: int) -> int | None:
    """Class that the expert gives in place of `label`, of query `number`."""
    ...


Shift: TypeAlias = RowShift | ExpertShift


@dataclasses.dataclass(frozen=True)
class SortedByLength:
  """Rows by the number of characters, the shortest first."""

  def order(self, rows: Sequence[StreamRow]) -> list[int]:
    """Numbers of the rows in their new order; equal ones stay in theirs."""
    return sorted(range(len(rows)), key=lambda i: len(rows[i].inputs))


@dataclasses.dataclass(frozen=True)
class MovedLast:
  """Rows of a category, or of a topic, behind all others: the stream changes abruptly.

  Attributes:
    pattern: Regular expression that occurs in the key `category` of these rows, or in `inputs` of
      rows without one, whatever the case.
  """

  pattern: str

  def order(self, rows: Sequence[StreamRow]) -> list[int]:
    """Numbers of the rows in their new order, which stays within both groups."""
    pattern = re.compile(self.pattern, re.IGNORECASE)
    text = lambda row: row.inputs if row.category is None else row.category
    return sorted(range(len(rows)), key=lambda i: bool(pattern.search(text(rows[i]))))


@dataclasses.dataclass(frozen=True)
class NoisyExpert:
  """Expert that gives another class, drawn evenly, in a share of its answers: noise, or a drift.

  Attributes:
    share: Share of the answers.
    start: Number of the query from which on it errs.
    ramp: Queries in which the share rises from 0; 0 for at once.
  """

  share: float
  start: int = 0
  ramp: int = 0

  def __post_init__(self) -> None:
    _check(self.share, self.start)
    ranges.check({'ramp': self.ramp}, least=0, integer=True)

  def answer(self, label: int | None, number: int, classes: int, seed: int) -> int | None:
    """Another class, or the same."""
    rise = min((number - self.start + 1) / self.ramp, 1.0) if self.ramp else 1.0
    first, second = _uniforms(seed, number, 0)
    if label is None or number < self.start or first >= self.share * rise:
      return label
    return (label + 1 + int(second * (classes - 1))) % classes


@dataclasses.dataclass(frozen=True)
class PoisonedExpert:
  """Expert that is an adversary in a share of its answers: it gives the next class each time.

  Unlike noise, these errors agree with each other, so that a small model can learn them.

  Attributes:
    share: Share of the answers.
    start: Number of the query from which on it errs.
  """

  share: float
  start: int = 0

  def __post_init__(self) -> None:
    _check(self.share, self.start)

  def answer(self, label: int | None, number: int, classes: int, seed: int) -> int | None:
    """The next class, or the same."""
    poisoned = number >= self.start and _uniforms(seed, number, 1)[0] < self.share
    return (label + 1) % classes if poisoned and label is not None else label


@dataclasses.dataclass(frozen=True)
class MissingExpert:
  """Expert that does not answer a share of the queries; the last small model does, even untaught.

  Attributes:
    share: Share of the answers.
    start: Number of the query from which on answers are missing.
  """

  share: float
  start: int = 0

  def __post_init__(self) -> None:
    _check(self.share, self.start)

  def answer(self, label: int | None, number: int, classes: int, seed: int) -> int | None:
    """The same class.

    Raises:
      ExpertError: The answer is missing.
    """
    del classes
    if number >= self.start and _uniforms(seed, number, 2)[0] < self.share:
      raise ExpertError('the answer is missing, by a shift of the stream')
    return label


def _check(share: float, start: int) -> None:
  ranges.check({'share': share}, least=0, most=1)
  ranges.check({'start': start}, least=0, integer=True)


def _uniforms(seed: int, number: int, stream: int) -> list[float]:
  words = _STREAM + 2 * stream + np.arange(2)
  return (shuffling.mix(seed, number, words) * 2.0**-64).tolist()


def ordered(shifts: Sequence[Shift], rows: Sequence[StreamRow]) -> list[StreamRow]:
  """Rows in the order of the shifts, one after another."""
  rows = list(rows)
  for shift in shifts:
    if isinstance(shift, RowShift):
      rows = [rows[i] for i in shift.order(rows)]
  return rows


def reorders(shifts: Sequence[Shift]) -> bool:
  """True if the rows have to be read before the stream begins."""
  return any(isinstance(shift, RowShift) for shift in shifts)


def shifted(
  shifts: Sequence[Shift], expert: Callable[[Query], int | None], *, classes: int, seed: int
) -> Expert:
  """Expert behind all shifts of its answers."""
  changes = [shift for shift in shifts if isinstance(shift, ExpertShift)]

  def ask(query: Query) -> int | None:
    label = expert(query)
    for change in changes:
      label = change.answer(label, query.number, classes, seed)
    return label

  return ask
