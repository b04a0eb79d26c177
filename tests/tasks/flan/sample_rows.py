"""The rows that ship with a FLAN2021 task, and other rows, as its templates see them."""

from cascades.tasks import features, sources
from cascades.tasks.flan import wording
from cascades.tasks.flan.definition import FlanTask, PromptFields


def formed(definition: FlanTask, part: str, where: sources.Sources) -> list[PromptFields]:
  """What the definition makes of the rows of a split or slice."""
  return list(
    sources.read(definition.dataset, part, where, lambda _, row: definition.preprocess(row))
  )


def samples(definition: FlanTask, split: str) -> list[PromptFields]:
  """What it makes of the hand-written rows of a split of its data set."""
  return formed(definition, split, sources.Sources(sample=True))


def preprocess(definition: FlanTask, **row: object) -> list[PromptFields]:
  """What it makes of one row, written as a file would have it."""
  return list(definition.preprocess(features.encode(definition.dataset.features, row)))


def answers(definition: FlanTask) -> set[str]:
  """All answers of the hand-written rows to train on."""
  rows = samples(definition, sources.parse_slice(definition.train)[0])
  return {answer for row in rows for answer in row.answers}


def slice_size(definition: FlanTask, part: str) -> int:
  """Rows of a slice, by the published size of its split."""
  split, start, stop = sources.parse_slice(part)
  return len(range(definition.dataset.sizes[split])[start:stop])


def prompts(definition: FlanTask) -> list[tuple[PromptFields, str]]:
  """The hand-written test rows, in all wordings that can be answered."""
  return [
    (fields, wording.render(template, fields)[0])
    for template in wording.templates(definition.group)
    for fields in samples(definition, definition.test)
    if template.answerable
  ]


def reversed_wording(group: str) -> wording.Template:
  """The one wording of a group that asks for the text, and gives the answer."""
  (found,) = [template for template in wording.templates(group) if not template.answerable]
  return found
