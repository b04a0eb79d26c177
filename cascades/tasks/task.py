"""What a task is: named splits of rows, and how answers to them are judged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from cascades.tasks import vocabularies
from cascades.types import Vocabulary


class Row(NamedTuple):
  """One example as text."""

  id: str  # unique within a split, and the same in every run
  inputs: str
  answers: tuple[str, ...]  # all that are right; none in an unlabelled split
  options: tuple[str, ...] = ()  # the permitted answers of a classification, in label order
  label: int | None = None  # index into options; -1 in an unlabelled split

  @property
  def targets(self) -> str:
    """What training teaches: the first right answer."""
    return self.answers[0] if self.answers else ''


class Vocabularies(NamedTuple):
  """How the two text fields become tokens; usually twice the same."""

  inputs: Vocabulary
  targets: Vocabulary


def both(vocabulary: Vocabulary) -> Vocabularies:
  """One vocabulary for inputs and targets."""
  return Vocabularies(vocabulary, vocabulary)


@dataclasses.dataclass(frozen=True)
class Task:
  """Rows by split. Reading is lazy: defining or listing a task touches no data.

  `fingerprint` identifies what a split's rows are read from, and `version` the code that forms
  them: when either changes, token records are written anew.
  """

  name: str
  splits: tuple[str, ...]
  read: Callable[[str], Iterable[Row]]
  fingerprint: Callable[[str], str]
  metrics: tuple[str, ...] = ('accuracy',)  # names in cascades.metrics
  version: str = '1'
  vocabulary: Callable[[], Vocabulary] = vocabularies.bytes_vocabulary  # unless the user names one
  description: str = ''

  def __post_init__(self) -> None:
    if not re.fullmatch(r'\w[\w.:-]*', self.name):
      raise ValueError(
        f'{self.name!r} cannot name a task: its files carry the name, so use letters, digits, '
        "'_', '.', ':' and '-' only."
      )

  def require(self, split: str) -> None:
    """Raises ValueError unless the task has the split."""
    if split not in self.splits:
      raise ValueError(
        f'Task {self.name} has no split {split!r}; its splits are {", ".join(self.splits)}.'
      )

  def rows(self, split: str) -> Iterator[Row]:
    """The split's rows, in an order that never changes."""
    self.require(split)
    return iter(self.read(split))
