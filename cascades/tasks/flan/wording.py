"""Prompt templates: one file for each group of ten.

Their kinds follow FLAN, their wordings are our own, so that numbers measured with them do not
compare with published FLAN numbers.
"""

from __future__ import annotations

import functools
import pathlib
import string
import tomllib
from typing import NamedTuple

from cascades.tasks.flan.definition import PromptFields

FOLDER = pathlib.Path(__file__).parent / 'templates'
COUNT = 10
ANSWER = '{answer}'


class Template(NamedTuple):
  """Wording of a prompt and its answer, with fields in braces.

  Attributes:
    inputs: the prompt.
    targets: the answer.
    answerable: False if the prompt does not determine the answer: it is constant, or asks for the
      source of a summary. Such templates are for training and not for evaluation.
  """

  # The class's repr is part of the version of FLAN tasks: renaming it rewrites their records.

  inputs: str
  targets: str = ANSWER
  answerable: bool = True

  @property
  def fields(self) -> set[str]:
    """Names of the fields that the template takes from an example."""
    parsed = string.Formatter().parse(self.inputs + self.targets)
    return {name for _, name, _, _ in parsed if name} - {'answer', 'options_'}


@functools.cache
def templates(group: str) -> tuple[Template, ...]:
  """Reads the ten templates of a group."""
  with (FOLDER / f'{group}.toml').open('rb') as stream:
    loaded = tuple(Template(**row) for row in tomllib.load(stream)['templates'])
  if len(loaded) != COUNT:
    raise ValueError(f'{FOLDER / group}.toml has {len(loaded)} templates, expected {COUNT}.')
  return loaded


def options_text(options: tuple[str, ...]) -> str:
  """The line OPTIONS: and a line for each option."""
  return 'OPTIONS:\n' + '\n'.join(f'- {option}' for option in options)


def render(
  template: Template, fields: PromptFields, *, list_options: bool = True
) -> tuple[str, tuple[str, ...]]:
  """Fills a template in.

  Args:
    template: the wording.
    fields: an example.
    list_options: whether {options_} becomes the list of options or nothing.

  Returns:
    The prompt and all right answers to it.
  """
  listed = options_text(fields.options) if fields.options and list_options else ''
  texts = dict(fields.texts, options_=listed)
  answers = fields.answers or ('',)
  prompt = template.inputs.format(answer=answers[0], **texts).strip()
  if not fields.answers:
    return prompt, ()
  targets = (template.targets.format(answer=answer, **texts).strip() for answer in answers)
  return prompt, tuple(dict.fromkeys(targets))
