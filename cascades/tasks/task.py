"""Tasks: named splits of rows, and the metrics of answers to them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from cascades.runtime.files import component
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tokenizers import vocabularies
from cascades.tokenizers.conventions import Tokens
from cascades.types import Vocabulary

log = logging.getLogger(__name__)


class Row(NamedTuple):
  """One example as text.

  Attributes:
    id: unique within a split, and the same in every run.
    inputs: the prompt.
    answers: all right answers; none in an unlabeled split.
    options: the permitted answers of a classification, in label order.
    label: index into options; -1 in an unlabeled split.
    group: rows of one group are also scored together.
    template: number of the prompt's wording, where a task has several.
  """

  id: str
  inputs: str
  answers: tuple[str, ...]
  options: tuple[str, ...] = ()
  label: int | None = None
  group: str | None = None
  template: int | None = None

  @property
  def targets(self) -> str:
    """The answer that training teaches: the first right one."""
    return self.answers[0] if self.answers else ''


class Record(NamedTuple):
  """A row and its tokens, not trimmed and without an end of sequence."""

  row: Row
  inputs: Tokens
  targets: Tokens
  options: tuple[Tokens, ...] = ()


class Vocabularies(NamedTuple):
  """Vocabularies of inputs and of targets; usually the same one."""

  inputs: Vocabulary
  targets: Vocabulary


def both(vocabulary: Vocabulary) -> Vocabularies:
  """One vocabulary for inputs and targets."""
  return Vocabularies(vocabulary, vocabulary)


class DataSource(Protocol):
  """The published data set behind a task, for programs that read data rather than rows."""

  @property
  def dataset(self) -> Dataset:
    """The data set."""
    ...

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits of the data set that the task's splits are taken from."""
    ...

  @property
  def required_files(self) -> str:
    """Names of the files with these splits, separated by spaces."""
    ...

  def location(self, split: str) -> str:
    """The file or directory of a task's split; FileNotFoundError, naming candidates, if none."""
    ...

  def examples(self, split: str) -> Iterable[Example]:
    """The examples of a split of the data set, as published."""
    ...


class SpecialTokens(NamedTuple):
  """Special tokens around the text of a row.

  Attributes:
    start: give the decoder a first input, if the vocabulary has one.
    prompt_end: put an end of sequence after every prompt.
    answer_end: put an end of sequence after every answer.
  """

  start: bool = True
  prompt_end: bool = True
  answer_end: bool = True


ALL_SPECIAL_TOKENS = SpecialTokens()

# Reads the rows of one file of a split; takes the number of rows in the files before it.
FileReader: TypeAlias = Callable[[int], Iterable[Row]]

# Gives the records of a shard's rows; takes the shard's number as well, for random draws.
Tokenize: TypeAlias = Callable[[Iterable[Row], Vocabularies, int], Iterator[Record]]


@dataclasses.dataclass(frozen=True)
class Task:
  """Rows by split. Reading is lazy: defining or listing a task touches no data.

  Attributes:
    name: letters, digits, '_', '.', ':' and '-'; names the task's files.
    splits: names of the splits.
    read: gives the rows of a split, always in the same order.
    fingerprint: identifies the data that a split's rows are read from. When it or `version`
      changes, token records are written again.
    metrics: names in `cascades.metrics`.
    version: identifies the code that forms rows from data.
    vocabulary: gives the task's own vocabulary, unless the user gives one.
    description: one line.
    suite: name of the group of tasks that the task belongs to.
    sizes: published numbers of rows by split.
    tokenize: the task's own tokenization; None for row by row.
    joins_rows: whether `tokenize` makes records of several rows, whose ids it numbers.
    special_tokens: special tokens around the text of a row.
    rate: share in a mixture; None for the number of training rows.
    origin: the published data set behind the task.
    files: readers of a split's files in order, if its rows are joined and lie in several.
  """

  name: str
  splits: tuple[str, ...]
  read: Callable[[str], Iterable[Row]]
  fingerprint: Callable[[str], str]
  metrics: tuple[str, ...] = ('accuracy',)
  version: str = '1'
  vocabulary: Callable[[], Vocabulary] = vocabularies.bytes_vocabulary
  description: str = ''
  suite: str = ''
  sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
  tokenize: Tokenize | None = None
  joins_rows: bool = False
  special_tokens: SpecialTokens = ALL_SPECIAL_TOKENS
  rate: int | None = None
  origin: DataSource | None = None
  files: Callable[[str], Sequence[FileReader]] | None = None

  def __post_init__(self) -> None:
    if not re.fullmatch(r'\w[\w.:-]*', self.name):
      raise ValueError(
        f'{self.name!r} cannot name a task: its files carry the name, so use letters, digits, '
        "'_', '.', ':' and '-' only."
      )
    component(self.name, 'a task')
    for field in ('splits', 'metrics'):
      if isinstance(getattr(self, field), str):
        raise ValueError(
          f'{field} of task {self.name} is the text {getattr(self, field)!r}, expected a tuple of '
          f'texts: ({getattr(self, field)!r},).'
        )
    for split in self.splits:
      component(split, f'a split of task {self.name}')

  def require(self, split: str) -> None:
    """Raises ValueError unless the task has the split."""
    if split not in self.splits:
      raise ValueError(
        f'Task {self.name} has no split {split!r}; its splits are {", ".join(self.splits)}.'
      )

  def task_splits(self, splits: Sequence[str]) -> list[tuple[Task, tuple[str, ...]]]:
    """Pairs the task with the splits, as `Mixture.task_splits` does for each of its tasks.

    Raises:
      ValueError: if the task does not have one of the splits.
    """
    for split in splits:
      self.require(split)
    return [(self, tuple(splits))]

  def rows(self, split: str) -> Iterator[Row]:
    """Reads the split's rows, in an order that never changes.

    Args:
      split: one of `splits`.

    Raises:
      ValueError: if the task does not have the split, or a row cannot be used.
      FileNotFoundError: if the split's data are missing.
    """
    self.require(split)
    return self._checked(split, self.read(split))

  def row_readers(self, split: str) -> list[Callable[[int], Iterator[Row]]]:
    """Readers whose rows, one reader after the other, are those of the split: one a file.

    Each takes the number of rows before its own. A task that reads all files at once has one.
    """
    self.require(split)
    readers = self.files(split) if self.files else ()

    def checked(read: FileReader, rows_before: int) -> Iterator[Row]:
      return self._checked(split, read(rows_before))

    return [functools.partial(checked, read) for read in readers or [lambda _: self.read(split)]]

  def _checked(self, split: str, rows: Iterable[Row]) -> Iterator[Row]:
    return map(_checked, rows, itertools.repeat(f'{self.name}, split {split}'))


def _checked(row: Row, where: str) -> Row:
  """The row; ValueError if a field has another type: of answers='yes' the first is 'y'."""
  if not (isinstance(row, Row) and isinstance(row.id, str) and isinstance(row.inputs, str)):
    raise ValueError(f'{where}: {row!r:.200} is no Row with texts for id and inputs.')
  for field, texts in (('answers', row.answers), ('options', row.options)):
    if not isinstance(texts, tuple | list) or not all(isinstance(text, str) for text in texts):
      raise ValueError(
        f'{where}, row {row.id!r:.80}: {field} is {texts!r:.80}, expected a tuple of texts such as '
        "('yes',)."
      )
  return row


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Tasks that are trained on together, each at its rate, and evaluated one by one.

  Attributes:
    name: name of the mixture.
    tasks: its tasks, each with its rate.
  """

  name: str
  tasks: tuple[Task, ...]

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that every task has."""
    return tuple(s for s in self.tasks[0].splits if all(s in task.splits for task in self.tasks))

  @property
  def vocabulary(self) -> Callable[[], Vocabulary]:
    """The vocabulary that all tasks share; ValueError if they differ."""
    own = {task.vocabulary for task in self.tasks}
    if len(own) > 1:
      raise ValueError(f'The tasks of {self.name} have several vocabularies: give one for all.')
    return self.tasks[0].vocabulary

  def task_splits(self, splits: Sequence[str]) -> list[tuple[Task, tuple[str, ...]]]:
    """Pairs each task with those of the splits that it has; warns of splits that it lacks."""
    for task in self.tasks:
      for split in splits:
        if split not in task.splits:
          log.warning('%s has no split %s and is left out.', task.name, split)
    return [(task, tuple(s for s in splits if s in task.splits)) for task in self.tasks]
