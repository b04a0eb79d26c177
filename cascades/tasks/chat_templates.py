"""Chat templates of Hugging Face, rendered as transformers renders them.

https://huggingface.co/docs/transformers/chat_templating. Tools and documents are None, as where a
caller of transformers gives none. The date is a setting, so that prompts are the same every day.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.parser
import jinja2.sandbox
from etils import epath

from cascades.tokenizers import huggingface_folder

DATE = '2024-07-26'  # what templates of Llama 3 write where they are given no date
_TEMPLATES = ('chat_template.jinja', 'chat_template.json')
_BLOCK, _BLOCK_END = '\ufdd0', '\ufdd1'  # around a generation block; in Unicode no characters


class Turn(NamedTuple):
  """A rendered chat, and the part of it that the template marks as the model's.

  Attributes:
    text: the chat.
    generation: beginning and end of the last `{% generation %}` block in `text`, if there is one.
  """

  text: str
  generation: tuple[int, int] | None


class ChatTemplate(NamedTuple):
  """A chat template.

  Attributes:
    source: the template in Jinja.
    tokens: texts of the special tokens that it may write, by their names in templates.
    system: the system's turn; None leaves it to the template.
    date: the date that `strftime_now` writes, as 2024-07-26.
  """

  source: str
  tokens: dict[str, str]
  system: str | None = None
  date: str = DATE

  def __call__(self, text: str, answer: str | None = None) -> str:
    """Renders a prompt: the system's turn, `text` as the user's turn, the start of the model's.

    With an `answer` the model's turn is complete, as a later prompt would repeat it.
    """
    return self.turn(text, answer).text

  def turn(self, text: str, answer: str | None = None) -> Turn:
    """Renders a prompt, or a whole chat, with the place of its generation block."""
    turns = {'system': self.system or None, 'user': text, 'assistant': answer}
    return self.conversation(
      [{'role': role, 'content': turn} for role, turn in turns.items() if turn is not None]
    )

  def conversation(self, messages: Sequence[Mapping[str, str]]) -> Turn:
    """Renders messages, each with `role` and `content`, up to the start of the model's turn.

    If the last message is the model's, its turn is complete. `system` is not added.
    """
    try:
      rendered = _compiled(self.source, self.date).render(
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=not messages or messages[-1]['role'] != 'assistant',
        **self.tokens,
      )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
      raise ValueError(f'The chat template cannot write this prompt: {error}') from error
    before, marked, inside = rendered.rpartition(_BLOCK)
    plain = rendered.replace(_BLOCK, '').replace(_BLOCK_END, '')
    if not marked:
      return Turn(plain, None)
    start = len(before.replace(_BLOCK, '').replace(_BLOCK_END, ''))
    return Turn(plain, (start, start + inside.index(_BLOCK_END)))


def read(folder: epath.PathLike, *, system: str | None = None, date: str = DATE) -> ChatTemplate:
  """Reads the template in a Hugging Face folder.

  Args:
    folder: the folder.
    system: the system's turn; None leaves it to the template.
    date: the date that the template may write, as 2024-07-26.

  Raises:
    ValueError: there is no template, there are several without a default, a file is damaged, or
      `date` is none.
  """
  try:
    datetime.date.fromisoformat(date)
  except (TypeError, ValueError):
    raise ValueError(
      f'chats.chat.date is {date!r}; it must be a date in the form 2024-07-26.'
    ) from None
  folder = epath.Path(folder)
  settings = huggingface_folder.read_settings(folder)
  source = _source(folder)
  if not source:
    raise ValueError(
      f'{folder} has no chat template ({", ".join(_TEMPLATES)}, or one in '
      f'{huggingface_folder.CONFIG}): the model is not for chats, or was converted without the '
      'files beside its weights.'
    )
  return ChatTemplate(source, huggingface_folder.named_tokens(settings), system, date)


def exists(folder: epath.PathLike) -> bool:
  """True if a Hugging Face folder has a chat template. Raises ValueError if a file is damaged."""
  return bool(_source(epath.Path(folder)))


def _source(folder: epath.Path) -> str | None:
  """The template in a folder, in Jinja."""
  plain, wrapped = (folder / name for name in _TEMPLATES)
  sources = (
    huggingface_folder.read_text(plain) if plain.exists() else None,
    huggingface_folder.read(wrapped).get('chat_template'),
    huggingface_folder.read_settings(folder)['tokenizer_config'].get('chat_template'),
  )
  return _default(next(filter(None, sources), None), folder)


def _default(source: Any, folder: epath.Path) -> str | None:
  """The template to be used where a folder has several by name."""
  if isinstance(source, list) and all(isinstance(entry, Mapping) for entry in source):
    source = {entry.get('name'): entry.get('template') for entry in source}
  if isinstance(source, Mapping):
    if 'default' not in source and len(source) > 1:
      raise ValueError(
        f'{folder} has the chat templates {", ".join(map(str, source))}, and none is named '
        "default: write the one to be used to the folder's chat_template.jinja."
      )
    source = source.get('default', next(iter(source.values()), None))
  if source is not None and not isinstance(source, str):
    raise ValueError(
      f'The chat template in {folder} is {source!r:.40}; it should be text in Jinja.'
    )
  return source


class _Generation(jinja2.ext.Extension):
  """The block `{% generation %}` of transformers, around what the model has written."""

  tags = {'generation'}  # noqa: RUF012

  def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    call = self.call_method('_marked')
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _marked(self, caller: Any) -> str:
    return f'{_BLOCK}{caller()}{_BLOCK_END}'


@functools.cache
def _compiled(source: str, date: str) -> jinja2.Template:
  """Compiles a template as transformers does; sandboxed, since templates are not trusted."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, 'jinja2.ext.loopcontrols']
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _refuse
  environment.globals['strftime_now'] = datetime.datetime.fromisoformat(date).strftime
  try:
    return environment.from_string(source)
  except (jinja2.TemplateError, RecursionError) as error:
    raise ValueError(f'The chat template is not valid Jinja: {error}') from error


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """Writes JSON as transformers does; Jinja's own filter escapes for HTML."""
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _refuse(message: str) -> None:
  raise jinja2.TemplateError(message)
