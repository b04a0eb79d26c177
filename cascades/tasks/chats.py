"""Prompt formats of other models: the turn of a chat, or a text to be continued.

A model that was fine-tuned here reads a prompt, an end of sequence, and then answers. A pre-trained
model has never seen that end, and a chat model needs its template around every prompt.
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

_FORMAT = 2  # raise it when the content of records of a prompt or an answer changes
_TEMPLATES = ('chat_template.jinja', 'chat_template.json')
_ANSWER = '\N{ASTERISM}'  # no template writes this character itself
_SPELLED = ('bos_token', 'eos_token', 'pad_token', 'unk_token')

# Gives the task with prompts as a model expects them, from the model's Hugging Face folder.
PromptFormat: TypeAlias = Callable[[Task, epath.PathLike], Task]


class ChatTemplate(NamedTuple):
  """A chat template of Hugging Face, https://huggingface.co/docs/transformers/chat_templating.

  Attributes:
    source: the template in Jinja.
    tokens: texts of the special tokens that it may write, by their names in templates.
    system: the system's turn; None leaves it to the template.
  """

  source: str
  tokens: dict[str, str]
  system: str | None = None

  def __call__(self, text: str, answer: str | None = None) -> str:
    """Renders a prompt: the system's turn, `text` as the user's turn, the start of the model's.

    With an `answer` the model's turn is complete, as a later prompt would repeat it.
    """
    turns = {'system': self.system or None, 'user': text, 'assistant': answer}
    messages = [{'role': role, 'content': turn} for role, turn in turns.items() if turn is not None]
    try:
      return _compiled(self.source).render(
        messages=messages, add_generation_prompt=answer is None, **self.tokens
      )
    except jinja2.TemplateError as error:
      raise ValueError(f'The chat template cannot write this prompt: {error}') from error


def read(folder: epath.PathLike, *, system: str | None = None) -> ChatTemplate:
  """Reads the template in a Hugging Face folder; ValueError if it has none."""
  folder = epath.Path(folder)
  config = huggingface_folder.read(folder / huggingface_folder.CONFIG)
  plain, wrapped = (folder / name for name in _TEMPLATES)
  source = plain.read_text() if plain.exists() else None
  wrapping = huggingface_folder.read(wrapped)
  source = source or wrapping.get('chat_template') or config.get('chat_template')
  if isinstance(source, list):  # several, by name
    named = {entry['name']: entry['template'] for entry in source}
    source = named.get('default') or next(iter(named.values()), None)
  if not source:
    raise ValueError(
      f'{folder} has no chat template ({", ".join(_TEMPLATES)}, or one in '
      f'{huggingface_folder.CONFIG}): the model is not for chats, or was converted without the '
      'files beside its weights.'
    )
  spelled = {name: huggingface_folder.token_text(config.get(name)) for name in _SPELLED}
  return ChatTemplate(source, {name: token for name, token in spelled.items() if token}, system)


def chat(task: Task, folder: epath.PathLike, *, system: str | None = None) -> Task:
  """Makes a task whose prompts are the user's turn in a chat template.

  Tables keep the text of prompts without the template. Answers and options end as the template ends
  the model's turn, if that is one of the vocabulary's ends.

  Args:
    task: the task.
    folder: Hugging Face folder with the template.
    system: the system's turn; None leaves it to the template.

  Returns:
    The task with another `version`, tokenization and special tokens.

  Raises:
    ValueError: if the folder has no chat template, or it is not valid.
  """
  template = read(folder, system=system)
  digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
  return dataclasses.replace(
    task,
    version=f'{task.version} chat {_FORMAT} {digest[:16]}',
    tokenize=functools.partial(_templated, template=template),
    special_tokens=SpecialTokens(
      start=False, prompt_end=False, answer_end=False
    ),  # the template writes them
  )


def continuation(task: Task, folder: epath.PathLike) -> Task:
  """Makes a task whose prompts are continued: no end of sequence follows them."""
  del folder
  return dataclasses.replace(
    task,
    version=f'{task.version} continued',
    special_tokens=task.special_tokens._replace(prompt_end=False),
  )


def _templated(
  rows: Iterable[Row], vocabularies: Vocabularies, shard: int, *, template: ChatTemplate
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


def _beginning(template: ChatTemplate, vocabulary: Vocabulary) -> tuple[str, list[int]]:
  """Text and id of the beginning of sequence, which SentencePiece reads in no text."""
  spelled = template.tokens.get('bos_token')
  start = vocabulary.bos_id if isinstance(vocabulary, SentencePiece) else None
  if start is None or not spelled or not template('').startswith(spelled):
    return '', []
  return spelled, [start]


def _end(template: ChatTemplate, vocabulary: Vocabulary) -> int:
  """The end of sequence, of the vocabulary's several, that the template writes after an answer."""
  _, _, behind = template('', _ANSWER).partition(_ANSWER)
  written = (i for i in vocabulary.encode(behind) if i in vocabulary.eos_ids)
  return next(written, vocabulary.eos_id)


@functools.cache
def _compiled(source: str) -> jinja2.Template:
  """Compiles a template as transformers does; sandboxed, since templates are not trusted."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
  )
  environment.filters['tojson'] = functools.partial(json.dumps, ensure_ascii=False)
  # No `strftime_now`: templates that show the date fall back to a fixed one, the same every day.
  environment.globals['raise_exception'] = _refuse
  try:
    return environment.from_string(source)
  except jinja2.TemplateError as error:
    raise ValueError(f'The chat template is not valid Jinja: {error}') from error


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)
