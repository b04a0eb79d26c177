"""Tokenization of rows to token records, a block of rows at a time.

A model that reads an end of sequence behind its prompt has never seen what precedes an answer, so
prompts and answers are tokenized alone, as those of an encoder and a decoder are. Where the answer
continues the prompt's text (`behind`), its tokens are those of the whole text behind the prompt:
the two alone give others, since tokenizers put a space in front of a text, or join the space at
its end with the next word.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np

from cascades.tasks.task import Record, Row, Vocabularies
from cascades.tokenizers.conventions import TOKEN, Tokens
from cascades.tokenizers.vocabularies import Symbols
from cascades.types import Vocabulary

T = TypeVar('T')

ROWS_PER_SHARD = 1 << 14  # `Tokenize` takes the number of a shard of so many rows
ROWS_TOGETHER = 256  # tokenized at once
_ANCHORS = ('\n', '.', ':', '"', '(', '|', '>', '0')  # texts that few tokens join with the next


class PromptedAnswers(NamedTuple):
  """A prompt, and answers that may follow it."""

  prompt: str
  answers: tuple[str, ...]


# Tokens of each prompt and of its answers.
Encode: TypeAlias = Callable[
  [Sequence[PromptedAnswers], Vocabularies], Iterator[tuple[Tokens, list[Tokens]]]
]


def row_by_row(rows: Iterable[Row], vocabularies: Vocabularies, shard: int) -> Iterator[Record]:
  """Tokenizes the inputs, the first answer and the options of each row, each alone."""
  del shard
  return _records(rows, vocabularies, alone)


def continued(rows: Iterable[Row], vocabularies: Vocabularies, shard: int) -> Iterator[Record]:
  """Tokenizes the inputs of each row, and its first answer and options as they continue them."""
  del shard
  return _records(rows, vocabularies, behind)


def _records(rows: Iterable[Row], vocabularies: Vocabularies, encode: Encode) -> Iterator[Record]:
  for block in blocks(rows, ROWS_TOGETHER):
    texts = [PromptedAnswers(row.inputs, (row.targets, *row.options)) for row in block]
    for row, (prompt, answers) in zip(block, encode(texts, vocabularies), strict=True):
      yield Record(row, prompt, answers[0], tuple(answers[1:]))


def alone(
  texts: Sequence[PromptedAnswers], vocabularies: Vocabularies
) -> Iterator[tuple[Tokens, list[Tokens]]]:
  """Tokenizes prompts and answers independently of each other."""
  prompts = vocabularies.inputs.encode_all([text.prompt for text in texts])
  answers = iter(vocabularies.targets.encode_all([a for text in texts for a in text.answers]))
  for text, prompt in zip(texts, prompts, strict=True):
    yield prompt, list(itertools.islice(answers, len(text.answers)))


def behind(
  texts: Sequence[PromptedAnswers], vocabularies: Vocabularies
) -> Iterator[tuple[Tokens, list[Tokens]]]:
  """Tokenizes prompts, and answers as they stand behind them in one text.

  Spaces at the end of a prompt belong to its answers if the vocabulary joins a space with the next
  word. If a token still contains both the end of a prompt and the beginning of an answer, the
  prompt keeps its own tokens, so that it does not depend on the answer, and the answer is tokenized
  without the space that the tokenizer puts in front of a text. An empty answer has no tokens.
  """
  vocabulary = vocabularies.targets
  if vocabularies.inputs != vocabulary or isinstance(vocabulary, Symbols):
    yield from alone(texts, vocabularies)
    return
  if _joins_spaces(vocabulary):
    texts = [_with_spaces_in_answers(text) for text in texts]
  prompts = vocabulary.encode_all([text.prompt for text in texts])
  joined = [text.prompt + answer for text in texts for answer in text.answers]
  encoded = iter(vocabulary.encode_all(joined))
  for (_, answers), prompt in zip(texts, prompts, strict=True):
    yield (
      prompt,
      [
        _rest(vocabulary, tokens, prompt, answer)
        for answer, tokens in zip(answers, itertools.islice(encoded, len(answers)), strict=True)
      ],
    )


def blocks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
  """Groups items into lists of `size`; the last one may be shorter."""
  stream = iter(rows)
  while block := list(itertools.islice(stream, size)):
    yield block


def _rest(vocabulary: Vocabulary, joined: Tokens, prompt: Tokens, answer: str) -> Tokens:
  """The tokens of a text behind those of its prompt."""
  if not answer:
    return np.array([], TOKEN)
  rest = joined[len(prompt) :]
  if np.array_equal(joined[: len(prompt)], prompt) and (len(rest) or answer.isspace()):
    return rest
  for anchor in _ANCHORS:
    before, tokens = vocabulary.encode(anchor), vocabulary.encode(anchor + answer)
    if before and tokens[: len(before)] == before:
      return np.array(tokens[len(before) :], TOKEN)
  return np.array(vocabulary.encode(answer), TOKEN)


def _with_spaces_in_answers(text: PromptedAnswers) -> PromptedAnswers:
  """Moves spaces, though not the end of a line, from a prompt to its answers."""
  end = len(text.prompt)
  while end and text.prompt[end - 1].isspace() and text.prompt[end - 1] not in '\r\n':
    end -= 1
  prompt, spaces = text.prompt[:end], text.prompt[end:]
  if not prompt or not spaces:
    return text
  return PromptedAnswers(
    prompt, tuple(spaces + answer if answer else '' for answer in text.answers)
  )


def _joins_spaces(vocabulary: Vocabulary) -> bool:
  """True if some token is a space and the beginning of a word."""
  prompt = vocabulary.encode('a ')
  return any(
    vocabulary.encode(f'a {letter}')[: len(prompt)] != prompt for letter in string.ascii_letters
  )
