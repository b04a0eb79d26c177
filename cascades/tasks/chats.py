"""Prompt formats of other models: the turn of a chat, or a text to be continued.

A model that was fine-tuned here reads a prompt, an end of sequence, and then answers. A pre-trained
model has never seen that end, and a chat model needs its template around every prompt.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from etils import epath

from cascades.tasks import chat_templates, tokenize
from cascades.tasks.chat_templates import ChatTemplate
from cascades.tasks.task import Record, Row, SpecialTokens, Task, Vocabularies, both
from cascades.tasks.tokenize import PromptedAnswers
from cascades.tokenizers.conventions import TOKEN, Tokens
from cascades.tokenizers.sentencepiece import SentencePiece
from cascades.types import Architecture, Vocabulary

_FORMAT = 3  # raise it when the content of records of a prompt or an answer changes
_ANSWER = '\N{ASTERISM}'  # no template writes this character itself


class PromptFormat(Protocol):
  """Gives the task with prompts as a model expects them, from the model's Hugging Face folder."""

  def __call__(self, task: Task, folder: epath.PathLike, architecture: Architecture) -> Task: ...


def chat(
  task: Task,
  folder: epath.PathLike,
  architecture: Architecture = 'decoder_only',
  *,
  system: str | None = None,
  date: str = chat_templates.DATE,
) -> Task:
  """Makes a task whose prompts are the user's turn in a chat template.

  Tables keep the text of prompts without the template. Answers and options are tokenized as they
  stand in the whole chat, and end as the template ends the model's turn, if that is one of the
  vocabulary's ends. If the template has `{% generation %}` blocks, the prompt reaches up to the
  block around the answer.

  Args:
    task: the task.
    folder: Hugging Face folder with the template.
    architecture: the decoder of an 'encoder_decoder' model reads no prompt before its answer.
    system: the system's turn; None leaves it to the template.
    date: the date that the template may write, as 2024-07-26.

  Returns:
    The task with another `version`, tokenization and special tokens.

  Raises:
    ValueError: if the folder has no chat template, or it is not valid.
  """
  template = chat_templates.read(folder, system=system, date=date)
  digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
  encode, alone = tokenize.behind, ''
  if architecture == 'encoder_decoder':
    encode, alone = tokenize.alone, ' alone'
  return dataclasses.replace(
    task,
    version=f'{task.version} chat {_FORMAT} {digest[:16]}{alone}',
    tokenize=functools.partial(_templated, template=template, encode=encode),
    special_tokens=SpecialTokens(
      start=False, prompt_end=False, answer_end=False
    ),  # the template writes them
  )


def continuation(
  task: Task, folder: epath.PathLike, architecture: Architecture = 'decoder_only'
) -> Task:
  """Makes a task whose prompts are continued: no end of sequence follows them.

  Answers and options have the tokens of the text that they continue. Spaces at the end of a prompt
  belong to the answer, since tokenizers put a space before a word and not behind one.
  """
  del folder
  special_tokens = task.special_tokens._replace(prompt_end=False)
  version, encode = f'{task.version} continued', task.tokenize
  if encode is None and architecture == 'decoder_only':
    version, encode = f'{version} {_FORMAT}', tokenize.continued
  return dataclasses.replace(task, version=version, tokenize=encode, special_tokens=special_tokens)


def prompt_tokens(
  template: ChatTemplate,
  messages: Sequence[Mapping[str, str]],
  vocabulary: Vocabulary,
  architecture: Architecture = 'decoder_only',
) -> Tokens:
  """Tokens of a conversation up to the start of the model's next turn.

  Those of one message of the user are the prompt of a row of `chat`.

  Args:
    template: the template; its own system's turn is not added.
    messages: messages with `role` and `content`, the last one not the model's.
    vocabulary: the model's vocabulary.
    architecture: the model's.

  Raises:
    ValueError: if the template cannot write these messages.
  """
  frame = _frame(template, both(vocabulary))
  prompt = template.conversation(messages).text
  written, generation = template.conversation(
    [*messages, {'role': 'assistant', 'content': _ANSWER}]
  )
  text = _up_to(generation, prompt, written).removeprefix(frame.start_text)
  encode = tokenize.alone if architecture == 'encoder_decoder' else tokenize.behind
  ((tokens, _),) = encode([PromptedAnswers(text, ())], both(vocabulary))
  return np.concatenate([np.array(frame.start, TOKEN), tokens])


class _Frame(NamedTuple):
  """Text that a template writes around prompt and answer, and what stands for it in tokens.

  Attributes:
    start_text: the beginning of sequence, if the vocabulary reads it in no text; else empty.
    start: its id, or nothing.
    behind: the text behind an answer; None if the template writes no answers.
    end: where the end of sequence begins in `behind`.
    end_id: its id.
  """

  start_text: str
  start: tuple[int, ...]
  behind: str | None
  end: int
  end_id: int


def _templated(
  rows: Iterable[Row],
  vocabularies: Vocabularies,
  shard: int,
  *,
  template: ChatTemplate,
  encode: tokenize.Encode,
) -> Iterator[Record]:
  del shard
  frame = _frame(template, vocabularies)
  start, end = np.array(frame.start, TOKEN), np.array([frame.end_id], TOKEN)
  for block in tokenize.blocks(rows, tokenize.ROWS_TOGETHER):
    texts = [_turn(template, frame, row) for row in block]
    for row, (prompt, answers) in zip(block, encode(texts, vocabularies), strict=True):
      target, *options = (np.concatenate([answer, end]) for answer in answers)
      yield Record(row, np.concatenate([start, prompt]), target, tuple(options))


def _turn(template: ChatTemplate, frame: _Frame, row: Row) -> PromptedAnswers:
  """The prompt of a row in the template, and its answers as the template writes them behind it."""
  prompt = template(row.inputs)
  written, generation = template.turn(row.inputs, _ANSWER)
  prompt = _up_to(generation, prompt, written)
  answers = (
    _answer(template(row.inputs, answer), prompt, frame, answer)
    for answer in (row.targets, *row.options)
  )
  return PromptedAnswers(prompt.removeprefix(frame.start_text), tuple(answers))


def _up_to(generation: tuple[int, int] | None, prompt: str, written: str) -> str:
  """A prompt up to the block that the template marks as the model's, if it marks one."""
  if generation and written.startswith(prompt):
    return written[: max(len(prompt), generation[0])]
  return prompt


def _answer(chat: str, prompt: str, frame: _Frame, answer: str) -> str:
  """The text of a chat between the prompt and the end of sequence."""
  if frame.behind is None or not chat.startswith(prompt) or not chat.endswith(frame.behind):
    return answer  # the template writes answers otherwise once the chat has gone on
  return chat[len(prompt) : len(chat) - len(frame.behind) + frame.end]


def _frame(template: ChatTemplate, vocabularies: Vocabularies) -> _Frame:
  """The text around prompt and answer; SentencePiece reads a beginning of sequence in no text."""
  spelled = template.tokens.get('bos_token', '')
  start = vocabularies.inputs.bos_id if isinstance(vocabularies.inputs, SentencePiece) else None
  has_start = start is not None and spelled and template('').startswith(spelled)
  _, written, behind = template('', _ANSWER).rpartition(_ANSWER)
  end, end_id = _end(behind, template, vocabularies.targets)
  return _Frame(
    start_text=spelled if has_start else '',
    start=(start,) if has_start and start is not None else (),
    behind=behind if written else None,
    end=end,
    end_id=end_id,
  )


def _end(behind: str, template: ChatTemplate, vocabulary: Vocabulary) -> tuple[int, int]:
  """Place and id of the first end of sequence, of the vocabulary's several, behind an answer."""
  ids: Sequence[int] = vocabulary.encode(behind)
  end_id = next((i for i in ids if i in vocabulary.eos_ids), None)
  if end_id is None:  # none, or one that SentencePiece reads in no text
    return max(behind.find(template.tokens.get('eos_token', '')), 0), vocabulary.eos_id
  last = next(n for n in range(len(behind) + 1) if end_id in vocabulary.encode(behind[:n]))
  first = next(n for n in range(last, -1, -1) if end_id in vocabulary.encode(behind[n:last]))
  return first, end_id
