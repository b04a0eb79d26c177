"""Templates in our own words, ten a group, one file a group.

They follow FLAN in kind, not in wording, so numbers measured with them do not compare with
published FLAN numbers.
"""

from __future__ import annotations

import functools
import pathlib
import string
import tomllib
from typing import NamedTuple

from cascades.tasks.flan.definition import Fields

FOLDER = pathlib.Path(__file__).parent / 'templates'
COUNT = 10
ANSWER = '{answer}'


class Template(NamedTuple):
  """How a prompt and its answer are worded, with fields in braces.

  Not `answerable` is a template whose prompt does not tell what to answer: a constant one, or one
  that asks for the source of a summary. Such templates train a model and do not judge it.
  """

  inputs: str
  targets: str = ANSWER
  answerable: bool = True

  @property
  def fields(self) -> set[str]:
    """Names of the fields that it takes from an example."""
    parsed = string.Formatter().parse(self.inputs + self.targets)
    return {name for _, name, _, _ in parsed if name} - {'answer', 'options_'}


@functools.cache
def templates(group: str) -> tuple[Template, ...]:
  """The ten templates of a group."""
  with (FOLDER / f'{group}.toml').open('rb') as stream:
    found = tuple(Template(**row) for row in tomllib.load(stream)['templates'])
  if len(found) != COUNT:
    raise ValueError(f'{FOLDER / group}.toml has {len(found)} templates, expected {COUNT}.')
  return found


def options_text(options: tuple[str, ...]) -> str:
  """OPTIONS:, and a line each."""
  return 'OPTIONS:\n' + '\n'.join(f'- {option}' for option in options)


def worded(
  template: Template, fields: Fields, *, list_options: bool = True
) -> tuple[str, tuple[str, ...]]:
  """The prompt, and every right answer to it."""
  listed = options_text(fields.options) if fields.options and list_options else ''
  texts = dict(fields.texts, options_=listed)
  answers = fields.answers or ('',)
  prompt = template.inputs.format(answer=answers[0], **texts).strip()
  if not fields.answers:
    return prompt, ()
  wanted = (template.targets.format(answer=answer, **texts).strip() for answer in answers)
  return prompt, tuple(dict.fromkeys(wanted))
