"""Rows of the FLAN2021 table of tasks, and the usual conversions of examples to prompt fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import NO_LABEL, Example

LIMIT = 30_000  # rows of a training slice


class PromptFields(NamedTuple):
  """One example as templates read it.

  Attributes:
    texts: texts by field name.
    answers: all right answers; none if the row has no label.
    options: the permitted answers of a classification, in label order.
    label: index into options.
    group: rows of one group are also scored together.
  """

  texts: Mapping[str, str]
  answers: tuple[str, ...]
  options: tuple[str, ...] = ()
  label: int | None = None
  group: str | None = None


# Gives no fields for an example that is left out.
Preprocessor: TypeAlias = Callable[[Example], Iterable[PromptFields]]


@dataclasses.dataclass(frozen=True)
class FlanTask:
  """A row of the table.

  Attributes:
    name: the task's name without 'flan_'.
    dataset: the data set.
    train: a slice of one of the data set's splits, such as 'train[:-200]'.
    validation: likewise.
    test: likewise.
    rows: number of rows of the published training slice.
    preprocess: converts examples to prompt fields.
    metrics: names in `cascades.metrics`.
    templates: the group of templates; the task's own name if empty.
  """

  name: str
  dataset: Dataset
  train: str
  validation: str
  test: str
  rows: int
  preprocess: Preprocessor
  metrics: tuple[str, ...] = ('accuracy',)
  templates: str = ''

  @property
  def group(self) -> str:
    return self.templates or self.name


def classify(
  texts: Mapping[str, str], options: Sequence[str], label: str = 'label'
) -> Preprocessor:
  """Makes a preprocessor for a class label that is answered by the option of its index.

  Args:
    texts: the feature of each template field; 'question.stem' for a nested feature.
    options: the answers, in label order.
    label: the feature that has the label.
  """

  def preprocess(example: Example) -> Iterable[PromptFields]:
    return [labeled(pick(example, texts), options, find(example, label))]

  return preprocess


def choose(texts: Mapping[str, str], choices: Sequence[str], label: str = 'label') -> Preprocessor:
  """Makes a preprocessor for choices that are features, of which a label names one."""

  def preprocess(example: Example) -> Iterable[PromptFields]:
    options = [find(example, choice) for choice in choices]
    return [labeled(pick(example, texts), options, find(example, label))]

  return preprocess


def generate(texts: Mapping[str, str], answer: str, *, accepted: str | None = None) -> Preprocessor:
  """Makes a preprocessor for an answer that is a feature; `accepted` is a list of right answers."""

  def preprocess(example: Example) -> Iterable[PromptFields]:
    answers = (find(example, answer), *(find(example, accepted) if accepted else ()))
    return [PromptFields(pick(example, texts), tuple(dict.fromkeys(answers)))]

  return preprocess


def labeled(texts: Mapping[str, str], options: Sequence[str], label: int) -> PromptFields:
  """Fields whose answer is the option of index `label`; no answer if the row has no label."""
  if not NO_LABEL <= label < len(options):
    raise ValueError(f'the label is {label}, expected an index of {len(options)} options')
  answers = () if label == NO_LABEL else (options[label],)
  return PromptFields(texts, answers, tuple(options), label)


def pick(example: Example, texts: Mapping[str, str]) -> dict[str, str]:
  """Texts of the template fields, each from its feature."""
  return {name: find(example, path) for name, path in texts.items()}


def find(example: Example, path: str) -> Any:
  """Value of a feature by its dotted name."""
  value: Any = example
  for name in path.split('.'):
    value = value[name]
  return value
