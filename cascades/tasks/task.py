"""What a task is: named splits of rows, and how answers to them are judged."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol, TypeAlias

from cascades.tasks.features import Example
from cascades.tasks.sources import Dataset
from cascades.tokenizers import vocabularies
from cascades.tokenizers.conventions import Tokens
from cascades.types import Vocabulary

log = logging.getLogger(__name__)


class Row(NamedTuple):
  """One example as text."""

  id: str  # unique within a split, and the same in every run
  inputs: str
  answers: tuple[str, ...]  # all that are right; none in an unlabelled split
  options: tuple[str, ...] = ()  # the permitted answers of a classification, in label order
  label: int | None = None  # index into options; -1 in an unlabelled split
  group: str | None = None  # rows of one group are also judged together
  template: int | None = None  # the number of the wording, where a task has several

  @property
  def targets(self) -> str:
    """What training teaches: the first right answer."""
    return self.answers[0] if self.answers else ''


class Record(NamedTuple):
  """A row and its tokens, neither trimmed nor ended by an end of sequence."""

  row: Row
  inputs: Tokens
  targets: Tokens
  options: tuple[Tokens, ...] = ()


class Vocabularies(NamedTuple):
  """How the two text fields become tokens; usually twice the same."""

  inputs: Vocabulary
  targets: Vocabulary


def both(vocabulary: Vocabulary) -> Vocabularies:
  """One vocabulary for inputs and targets."""
  return Vocabularies(vocabulary, vocabulary)


class Origin(Protocol):
  """A published data set, for those who look at data rather than at rows."""

  @property
  def dataset(self) -> Dataset: ...

  @property
  def splits(self) -> tuple[str, ...]:
    """Of the data set, which a task's splits are made from."""
    ...

  @property
  def needs(self) -> str:
    """The files that hold it."""
    ...

  def where(self, split: str) -> str:
    """Where a task's split is read from; FileNotFoundError, naming every place, if nowhere."""
    ...

  def examples(self, split: str) -> Iterable[Example]:
    """A split of the data set as it is."""
    ...


class Marks(NamedTuple):
  """Which special tokens stand around the text of a row."""

  start: bool = True  # the decoder's first input, if the vocabulary has one
  prompt_end: bool = True  # an end of sequence behind every prompt
  answer_end: bool = True  # and behind every answer


MARKED = Marks()

# The records of a shard's rows; takes the shard's number too, for what is drawn at random.
Tokenize: TypeAlias = Callable[[Iterable[Row], Vocabularies, int], Iterator[Record]]


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
  suite: str = ''
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # published rows by split
  tokenize: Tokenize | None = None  # of another kind than row by row
  marks: Marks = MARKED
  rate: int | None = None  # its share in a mixture; its number of training rows, if None
  origin: Origin | None = None  # the published data set that it is made from

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

  def has(self, task: Task, split: str) -> bool:
    """True for the task itself. Raises ValueError unless it has the split."""
    task.require(split)
    return True

  def rows(self, split: str) -> Iterator[Row]:
    """The split's rows, in an order that never changes."""
    self.require(split)
    return iter(self.read(split))


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Tasks that are trained on together, each at its rate, and evaluated one by one."""

  name: str
  tasks: tuple[Task, ...]

  @property
  def splits(self) -> tuple[str, ...]:
    """Those that every task has."""
    return tuple(s for s in self.tasks[0].splits if all(s in task.splits for task in self.tasks))

  @property
  def vocabulary(self) -> Callable[[], Vocabulary]:
    """The one that all tasks have of their own."""
    own = {task.vocabulary for task in self.tasks}
    if len(own) > 1:
      raise ValueError(f'The tasks of {self.name} have several vocabularies: name one for all.')
    return self.tasks[0].vocabulary

  def has(self, task: Task, split: str) -> bool:
    """True if the task has the split; not every task of a mixture must."""
    if split not in task.splits:
      log.warning('%s has no split %s and is left out.', task.name, split)
    return split in task.splits
