"""Text of an answer while it grows: whole characters, up to a stop text.

A tokenizer may write a character as several tokens, and joins tokens to a text by rules of its own,
so each new token is decoded together with a few before it. The pieces of text joined are exactly
what the vocabulary decodes from all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from cascades.types import Vocabulary

_INCOMPLETE = '\N{REPLACEMENT CHARACTER}'  # decoded from the beginning of a character


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
