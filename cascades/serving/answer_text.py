"""Text of an answer while it grows: whole characters, up to a stop text.

A tokenizer may write a character as several tokens, and joins tokens to a text by rules of its own,
so each new token is decoded together with a few before it. The pieces of text joined are exactly
what the vocabulary decodes from all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cascades.serving.exchanges import Finish, Piece, Token
from cascades.types import Vocabulary

_INCOMPLETE = '\N{REPLACEMENT CHARACTER}'  # decoded from the beginning of a character


class NextToken(NamedTuple):
  """A token of an answer; the last one has `finish`.

  Attributes:
    token: Its id.
    logprob: Log-probability of the untempered softmax.
    alternatives: Ids and log-probabilities of the most likely tokens.
    finish: 'stop' for an end of sequence, 'length' for the last token that there is room for.
    queue_seconds: Time that the request waited for a slot.
  """

  token: int
  logprob: float
  alternatives: tuple[tuple[int, float], ...]
  finish: Finish | None
  queue_seconds: float


class GrowingAnswer:
  """Pieces of an answer, one for each token, with the counts so far.

  Attributes:
    finish: Reason of its end, once it has ended.
    count: Number of its tokens.
  """

  def __init__(self, vocabulary: Vocabulary, stop: Sequence[str], *, prompt_tokens: int) -> None:
    self.finish: Finish | None = None
    self.count = 0
    self._vocabulary, self._prompt_tokens = vocabulary, prompt_tokens
    self._text, self._stop = Detokenizer(vocabulary), StopTexts(stop)

  def add(self, step: NextToken) -> Piece:
    """Piece of a token. A stop text ends the answer."""
    self.count, self.finish = self.count + 1, step.finish
    ended = step.token in self._vocabulary.eos_ids
    text = self._stop.add('' if ended else self._text.add(step.token))
    if self.finish and not self._stop.reached:
      text += self._stop.add(self._text.finish())
      text += '' if self._stop.reached else self._stop.finish()
    if self._stop.reached:
      self.finish = 'stop'
    content = self._vocabulary.token_bytes
    alternatives = tuple((content(token), logprob) for token, logprob in step.alternatives)
    return Piece(
      text,
      (Token(content(step.token), step.logprob, alternatives, step.token),),
      self.finish,
      prompt_tokens=self._prompt_tokens,
      generated_tokens=self.count,
      queue_seconds=step.queue_seconds,
    )


class Detokenizer:
  """Text of tokens that arrive one by one.

  >>> from cascades.tokenizers import vocabularies
  >>> text = Detokenizer(vocabularies.bytes_vocabulary())
  >>> [text.add(byte + 3) for byte in 'né'.encode()]
  ['n', '', 'é']
  """

  def __init__(self, vocabulary: Vocabulary) -> None:
    self._vocabulary = vocabulary
    self._context: list[int] = []  # tokens whose text is out, by which the next ones are decoded
    self._waiting: list[int] = []  # tokens whose text is not

  def add(self, token: int) -> str:
    """Text that a token completes; empty inside of a character."""
    self._waiting.append(token)
    text = self._text()
    if not text or text.endswith(_INCOMPLETE):
      return ''
    # Tokenizers drop spaces in front of a text, so the context must begin with something else.
    self._context = self._waiting if text.strip() else self._context + self._waiting
    self._waiting = []
    return text

  def finish(self) -> str:
    """Text of the tokens that wait for more."""
    return self._text()

  def _text(self) -> str:
    """Text of the tokens that wait, as it stands behind the context."""
    before = self._vocabulary.decode(self._context)
    return self._vocabulary.decode(self._context + self._waiting)[len(before) :]


class StopTexts:
  """Text up to the first of the texts that end an answer.

  >>> stop = StopTexts(['###'])
  >>> [stop.add(text) for text in ('a#', 'b#', '#', '#c')]
  ['a', '#b', '', '']
  >>> stop.reached
  True
  """

  def __init__(self, stop: Sequence[str]) -> None:
    self.reached = False
    self._stop, self._waiting = stop, ''

  def add(self, text: str) -> str:
    """Text that is no beginning of a stop text; up to the first one, whatever comes behind it."""
    text, self._waiting = self._waiting + text, ''
    ends = [position for stop in self._stop if (position := text.find(stop)) >= 0]
    if ends:
      self.reached = True
      return text[: min(ends)]
    longest = max((len(stop) - 1 for stop in self._stop), default=0)
    for length in range(min(longest, len(text)), 0, -1):
      if any(stop.startswith(text[-length:]) for stop in self._stop):
        self._waiting = text[-length:]
        return text[:-length]
    return text

  def finish(self) -> str:
    """Text that waits for more."""
    return self._waiting
