"""Prompts of a server as a model reads them: the tokens that `infer` gives it for a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Int

from cascades.data import converters
from cascades.serving.exchanges import Message
from cascades.tasks import chat_templates, chats, tokenize
from cascades.tasks.chats import PromptFormat
from cascades.tasks.task import Row, Task, both
from cascades.types import Architecture, Vocabulary

# Messages are written by the model's chat template, or the only one of them is read as a text.
Messages: TypeAlias = Literal['template', 'text']

_UNTRIMMED = {'inputs': 1 << 30, 'targets': 1}


class PromptReader:
  """Tokens of texts and of conversations."""

  def __init__(
    self,
    vocabulary: Vocabulary,
    architecture: Architecture,
    folder: epath.Path,
    *,
    prompts: PromptFormat | None = None,
    messages: Messages = 'template',
  ) -> None:
    """Reads the chat template of a model.

    Args:
      vocabulary: Vocabulary of the model.
      architecture: The model's.
      folder: Its companion files, with its chat template if there is one.
      prompts: Format of a text, as PROMPTS of `infer`; None reads it as a prompt of training.
      messages: 'template' writes a conversation by the chat template of the model; 'text', and a
        model without a template, read a single message of a user as a text.

    Raises:
      ValueError: The template is damaged, or `prompts` needs one and there is none.
    """
    self._vocabulary, self._architecture = vocabulary, architecture
    task = Task('prompt', (), read=lambda _: (), fingerprint=lambda _: '')
    task = prompts(task, folder, architecture) if prompts else task
    self._tokenize = task.tokenize or tokenize.row_by_row
    special = task.special_tokens
    ends = [vocabulary.eos_id] if special.prompt_end else []
    start = vocabulary.bos_id if special.start else None
    self._converter = converters.FeatureConverter(
      converters.CONVERTERS[architecture],
      _UNTRIMMED,
      start=np.array([] if start is None else [start], np.int32),
      inputs_end=np.array(ends, np.int32),
      targets_end=np.array([], np.int32),
    )
    self._template = None
    if messages == 'template' and chat_templates.exists(folder):
      self._template = chat_templates.read(folder)

  def tokens(self, prompt: str | Sequence[Message]) -> Int[np.ndarray, 'n']:
    """Tokens of a text, or of a conversation.

    Raises:
      ValueError: The model has no template for this conversation, or the prompt has no token.
    """
    if isinstance(prompt, str):
      tokens = self._text_tokens(prompt)
    elif prompt and prompt[-1].role == 'assistant':
      raise ValueError("the last message is the model's own (assistant): end with a question.")
    elif self._template:
      messages = [message._asdict() for message in prompt]
      tokens = chats.prompt_tokens(self._template, messages, self._vocabulary, self._architecture)
    elif len(prompt) == 1 and prompt[0].role == 'user':
      tokens = self._text_tokens(prompt[0].content)
    else:
      roles = ', '.join(message.role for message in prompt[:8])
      raise ValueError(
        f'messages of {roles or "nobody"}: the model has no chat template and reads one message of '
        'a user; send only that.'
      )
    if not len(tokens):
      raise ValueError('the prompt is empty, and the model reads nothing in its place.')
    return tokens

  def count(self, prompt: str | Sequence[Message]) -> float:
    """Number of tokens of a text or a conversation; nan of one that it refuses."""
    try:
      return float(len(self.tokens(prompt)))
    except ValueError:
      return math.nan

  def _text_tokens(self, text: str) -> Int[np.ndarray, 'n']:
    (record,) = self._tokenize([Row('0', text, ())], both(self._vocabulary), 0)
    pieces = self._converter.example(record.inputs, np.array([], np.int32)).prompt
    return np.concatenate([np.asarray(piece, np.int32) for piece in pieces])
