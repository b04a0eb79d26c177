"""Prompts for models that others trained: as the turn of a chat, or as a text to go on with.

A model that was fine-tuned here reads a prompt, an end of sequence, and then answers; one that was
only pre-trained never saw that end, and one for chats wants its template around every prompt.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

import jinja2
import jinja2.sandbox
import numpy as np
from etils import epath

from cascades.tasks import tokenize
from cascades.tasks.task import Record, Row, SpecialTokens, Task, Vocabularies
from cascades.tokenizers import huggingface_folder
from cascades.tokenizers.conventions import TOKEN
from cascades.tokenizers.sentencepiece import SentencePiece
from cascades.types import Vocabulary

_FORM = 2  # raise it when a record holds something else of a prompt or an answer
_TEMPLATES = ('chat_template.jinja', 'chat_template.json')
_ANSWER = '\N{ASTERISM}'  # that no template writes by itself
_SPELLED = ('bos_token', 'eos_token', 'pad_token', 'unk_token')

# A task as a model with that folder of Hugging Face beside it wants to be asked.
PromptFormat: TypeAlias = Callable[[Task, epath.PathLike], Task]
Tokens: TypeAlias = dict[str, str]  # how special tokens are spelled, by their names in templates


class Template(NamedTuple):
  """A chat template of Hugging Face (Jinja), and the special tokens that it may write.

  https://huggingface.co/docs/transformers/chat_templating
  """

  source: str
  tokens: Tokens
  system: str | None = None

  def __call__(self, text: str, answer: str | None = None) -> str:
    """The model's prompt: `text` as the user's turn, after what the system says; then its turn.

    With an `answer`, that turn as well, as a later prompt would repeat it.
    """
    turns = {'system': self.system or None, 'user': text, 'assistant': answer}
    messages = [{'role': role, 'content': said} for role, said in turns.items() if said is not None]
    try:
      return _compiled(self.source).render(
        messages=messages, add_generation_prompt=answer is None, **self.tokens
      )
    except jinja2.TemplateError as error:
      raise ValueError(f'The chat template cannot write this prompt: {error}') from error


def read(folder: epath.PathLike, *, system: str | None = None) -> Template:
  """The template in a folder of Hugging Face. Raises ValueError if it has none."""
  folder = epath.Path(folder)
  config = huggingface_folder.read(folder / huggingface_folder.CONFIG)
  plain, wrapped = (folder / name for name in _TEMPLATES)
  source = plain.read_text() if plain.exists() else None
  wrapping = huggingface_folder.read(wrapped)
  source = source or wrapping.get('chat_template') or config.get('chat_template')
  if isinstance(source, list):  # several, by name
    named = {one['name']: one['template'] for one in source}
    source = named.get('default') or next(iter(named.values()), None)
  if not source:
    raise ValueError(
      f'{folder} has no chat template ({", ".join(_TEMPLATES)}, or one in '
      f'{huggingface_folder.CONFIG}): the model is not for chats, or was converted without the '
      'files beside its weights.'
    )
  spelled = {name: huggingface_folder.token_text(config.get(name)) for name in _SPELLED}
  return Template(source, {name: token for name, token in spelled.items() if token}, system)


def chat(task: Task, folder: epath.PathLike, *, system: str | None = None) -> Task:
  """The same rows, each prompt as the user's turn in the template of `folder`.

  `system` is said before it; None leaves that to the template. Tables keep prompts as they were.
  Answers and options end as the template ends the model's turn, where that is one of the ends.
  """
  template = read(folder, system=system)
  return dataclasses.replace(
    task,
    version=f'{task.version} chat {_FORM} {_fingerprint(template)}',
    tokenize=functools.partial(_templated, template=template),
    special_tokens=SpecialTokens(
      start=False, prompt_end=False, answer_end=False
    ),  # the template writes them
  )


def continuation(task: Task, folder: epath.PathLike) -> Task:
  """The same rows, with nothing between a prompt and what the model goes on with."""
  del folder
  return dataclasses.replace(
    task,
    version=f'{task.version} continued',
    special_tokens=task.special_tokens._replace(prompt_end=False),
  )


def _templated(
  rows: Iterable[Row], vocabularies: Vocabularies, shard: int, *, template: Template
) -> Iterator[Record]:
  cut, start = _beginning(template, vocabularies.inputs)
  end = np.array([_end(template, vocabularies.targets)], TOKEN)
  for block in tokenize.blocks(rows, tokenize.ROWS_TOGETHER):
    written = [row._replace(inputs=template(row.inputs).removeprefix(cut)) for row in block]
    for row, record in zip(block, tokenize.row_by_row(written, vocabularies, shard), strict=True):
      yield Record(
        row,
        np.concatenate([np.array(start, TOKEN), record.inputs]),
        np.concatenate([record.targets, end]),
        tuple(np.concatenate([option, end]) for option in record.options),
      )


def _beginning(template: Template, vocabulary: Vocabulary) -> tuple[str, list[int]]:
  """How the template spells what SentencePiece reads in no text, a control token, and its id."""
  spelled = template.tokens.get('bos_token')
  start = vocabulary.bos_id if isinstance(vocabulary, SentencePiece) else None
  if start is None or not spelled or not template('').startswith(spelled):
    return '', []
  return spelled, [start]


def _end(template: Template, vocabulary: Vocabulary) -> int:
  """Of the vocabulary's ends, the one that the template writes behind an answer."""
  _, _, behind = template('', _ANSWER).partition(_ANSWER)
  written = (i for i in vocabulary.encode(behind) if i in vocabulary.eos_ids)
  return next(written, vocabulary.eos_id)


@functools.cache
def _compiled(source: str) -> jinja2.Template:
  """As transformers compiles it; sandboxed, since it comes from outside."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
  )
  environment.filters['tojson'] = functools.partial(json.dumps, ensure_ascii=False)
  # No `strftime_now`: templates that know the date fall back to one of their own, every day alike.
  environment.globals['raise_exception'] = _refuse
  try:
    return environment.from_string(source)
  except jinja2.TemplateError as error:
    raise ValueError(f'The chat template is not one of Jinja: {error}') from error


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)


def _fingerprint(template: Template) -> str:
  return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]
