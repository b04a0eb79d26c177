"""Models whose answers, times and failures a test chooses."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from cascades.evaluation import pooling
from cascades.serving import served_policy
from cascades.serving.exchanges import Piece, Question, Token

Said = Sequence[tuple[str, float]]
END = ('', -0.01)


class FakeModel:
  """A model that says what it is told to.

  Attributes:
    errors: Raised by the next answers, the first first; None lets one pass.
    questions: Those that it was asked.
    written: Tokens that it has written.
    running: Answers that have begun, and have neither ended nor been closed.
    breaks_after: Tokens after which `errors` are raised.
  """

  def __init__(
    self, name: str, says: Said | Callable[[Question], Said] = (), seconds: float = 0.0
  ) -> None:
    self.name, self._says, self.seconds = name, says, seconds
    self.errors: deque[Exception | None] = deque()
    self.questions: list[Question] = []
    self.written = self.running = self.breaks_after = 0
    self.prompt_tokens = 5

  async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    self.questions.append(question)
    error = self.errors.popleft() if self.errors else None
    self.running += 1
    try:
      said = self._says(question) if callable(self._says) else self._says
      said = list(said)[: question.max_tokens]
      for number, (text, logprob) in enumerate(said):
        if error is not None and number >= self.breaks_after:
          raise error
        await asyncio.sleep(self.seconds)
        self.written += 1
        tops = tuple((f'{i}'.encode(), logprob - i) for i in range(question.alternatives))
        token = Token(text.encode(), logprob, tops)
        is_last = number == len(said) - 1
        counts: dict[str, Any] = {'prompt_tokens': self.prompt_tokens}
        if is_last:
          counts |= {'finish': 'stop' if said[-1] == END else 'length'}
          counts |= {'generated_tokens': len(said)}
        yield Piece(text, (token,), **counts)
      if error is not None:
        raise error
    finally:
      self.running -= 1


def rule(threshold: Any, decider: str = 'average', **options: Any) -> served_policy.ServedPolicy:
  return served_policy.from_threshold(decider, threshold, **options)


POOLED = pooling.POOLED
