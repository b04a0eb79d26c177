"""What a row of the FLAN2021 table says, and the usual ways from an example to template fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from cascades.tasks.features import NO_LABEL, Example
from cascades.tasks.sources import Dataset

LIMIT = 30_000  # rows of a training slice


class Fields(NamedTuple):
  """One example as templates see it: texts by name, and what is right."""

  texts: Mapping[str, str]
  answers: tuple[str, ...]  # none if the row has no label
  options: tuple[str, ...] = ()
  label: int | None = None
  group: str | None = None  # rows of one group are also judged together


Form: TypeAlias = Callable[[Example], Iterable[Fields]]  # nothing for an example that is left out


@dataclasses.dataclass(frozen=True)
class Definition:
  """A row of the table. `templates` is the group of wordings, the task's own name if not given.

  `train`, `validation` and `test` are slices of the data set's splits, `rows` how many the
  published training slice has.
  """

  name: str
  dataset: Dataset
  train: str
  validation: str
  test: str
  rows: int
  form: Form
  metrics: tuple[str, ...] = ('accuracy',)
  templates: str = ''

  @property
  def group(self) -> str:
    return self.templates or self.name


def classify(texts: Mapping[str, str], options: Sequence[str], label: str = 'label') -> Form:
  """Texts from features, and a class label that is answered by the option of its index.

  `texts` maps a template's field to the feature, 'question.stem' for one inside another.
  """

  def form(example: Example) -> Iterable[Fields]:
    return [labelled(pick(example, texts), options, find(example, label))]

  return form


def choose(texts: Mapping[str, str], choices: Sequence[str], label: str = 'label') -> Form:
  """Texts from features, and the choices too: one feature each, of which a label names one."""

  def form(example: Example) -> Iterable[Fields]:
    options = [find(example, choice) for choice in choices]
    return [labelled(pick(example, texts), options, find(example, label))]

  return form


def generate(texts: Mapping[str, str], answer: str, *, accepted: str | None = None) -> Form:
  """Texts from features, and a feature that is the answer; `accepted` lists all right ones."""

  def form(example: Example) -> Iterable[Fields]:
    answers = (find(example, answer), *(find(example, accepted) if accepted else ()))
    return [Fields(pick(example, texts), tuple(dict.fromkeys(answers)))]

  return form


def labelled(texts: Mapping[str, str], options: Sequence[str], label: int) -> Fields:
  """Fields whose answer is the option of that index; no answer if the row has no label."""
  if not NO_LABEL <= label < len(options):
    raise ValueError(f'the label {label} is none of {len(options)} options')
  answers = () if label == NO_LABEL else (options[label],)
  return Fields(texts, answers, tuple(options), label)


def pick(example: Example, texts: Mapping[str, str]) -> dict[str, str]:
  """The template's fields, each from its feature."""
  return {name: find(example, path) for name, path in texts.items()}


def find(example: Example, path: str) -> Any:
  """A feature by its dotted name."""
  value: Any = example
  for name in path.split('.'):
    value = value[name]
  return value
