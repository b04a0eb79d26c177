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
from typing import Any, NamedTuple, TypeAlias

import jinja2
import jinja2.sandbox
from etils import epath

from cascades.tasks import shards
from cascades.tasks.task import Record, Row, Task, Vocabularies

_TOGETHER = 256  # rows; tokenised at once
_CONFIG, _TEMPLATES = 'tokenizer_config.json', ('chat_template.jinja', 'chat_template.json')
_SPELLED = ('bos_token', 'eos_token', 'pad_token', 'unk_token')

# A task as a model with that folder of Hugging Face beside it wants to be asked.
Form: TypeAlias = Callable[[Task, epath.PathLike], Task]
Tokens: TypeAlias = dict[str, str]  # how special tokens are spelled, by their names in templates


class Template(NamedTuple):
  """A chat template of Hugging Face (Jinja), and the special tokens that it may write.

  https://huggingface.co/docs/transformers/chat_templating
  """

  source: str
  tokens: Tokens
  system: str | None = None

  def __call__(self, text: str) -> str:
    """The model's prompt: `text` as the user's turn, after what the system says; then its turn."""
    messages = [{'role': 'system', 'content': self.system}] if self.system else []
    messages.append({'role': 'user', 'content': text})
    try:
      return _compiled(self.source).render(
        messages=messages, add_generation_prompt=True, **self.tokens
      )
    except jinja2.TemplateError as error:
      raise ValueError(f'The chat template cannot write this prompt: {error}') from error


def read(folder: epath.PathLike, *, system: str | None = None) -> Template:
  """The template in a folder of Hugging Face. Raises ValueError if it has none."""
  folder = epath.Path(folder)
  config: dict[str, Any] = _json(folder / _CONFIG)
  plain, wrapped = (folder / name for name in _TEMPLATES)
  source = plain.read_text() if plain.exists() else None
  source = source or _json(wrapped).get('chat_template') or config.get('chat_template')
  if isinstance(source, list):  # several, by name
    named = {one['name']: one['template'] for one in source}
    source = named.get('default') or next(iter(named.values()), None)
  if not source:
    raise ValueError(
      f'{folder} has no chat template ({", ".join(_TEMPLATES)}, or one in {_CONFIG}): the model is '
      'not for chats, or was converted without the files beside its weights.'
    )
  spelled = {name: config.get(name) for name in _SPELLED}
  tokens = {
    name: token['content'] if isinstance(token, dict) else token
    for name, token in spelled.items()
    if token
  }
  return Template(source, tokens, system)


def chat(task: Task, folder: epath.PathLike, *, system: str | None = None) -> Task:
  """The same rows, each prompt as the user's turn in the template of `folder`.

  `system` is said before it; None leaves that to the template. Tables keep prompts as they were.
  """
  template = read(folder, system=system)
  beginning = template.tokens.get('bos_token', '')
  starts = bool(beginning) and template('').startswith(beginning)
  # The layout writes the first token, where the template does: a text may not spell it.
  cut = beginning if starts else ''
  return dataclasses.replace(
    task,
    version=f'{task.version} chat {_fingerprint(template)}',
    tokenize=functools.partial(_templated, template=template, cut=cut),
    marks=task.marks._replace(start=starts, prompt_end=False),
  )


def continuation(task: Task, folder: epath.PathLike) -> Task:
  """The same rows, with nothing between a prompt and what the model goes on with."""
  del folder
  return dataclasses.replace(
    task, version=f'{task.version} continued', marks=task.marks._replace(prompt_end=False)
  )


def _templated(
  rows: Iterable[Row], vocabularies: Vocabularies, shard: int, *, template: Template, cut: str
) -> Iterator[Record]:
  for block in shards.blocks(rows, _TOGETHER):
    written = [row._replace(inputs=template(row.inputs).removeprefix(cut)) for row in block]
    for row, record in zip(block, shards.row_by_row(written, vocabularies, shard), strict=True):
      yield record._replace(row=row)


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


def _json(file: epath.Path) -> dict[str, Any]:
  return json.loads(file.read_text()) if file.exists() else {}
