"""Circuit breaker: a model that fails again and again is left alone for a while.

    closed      the model is asked; some failures in a row open the circuit
    open        the model is not asked; after a pause the circuit is half open
    half-open   one question is on trial: its success closes the circuit, its failure opens it

Everything here runs on the thread of the event loop.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable
from typing import Literal, TypeAlias

from cascades.runtime import ranges
from cascades.serving.exchanges import AnyPrompt, Model, ModelError, Piece, Question

BreakerState: TypeAlias = Literal['closed', 'half-open', 'open']
RETRY_SECONDS = 1.0  # while another question is on trial


class Breaker:
  """State of a circuit. Outcomes of questions from before its last change are ignored."""

  def __init__(
    self,
    *,
    failures: int = 5,
    pause: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """A closed circuit.

    Args:
      failures: Failures in a row that open it.
      pause: Seconds for which it stays open.
      clock: Seconds.
    """
    ranges.check({'failures': failures}, least=1, integer=True)
    ranges.check({'pause': pause}, least=0)
    self._most, self._pause, self._clock = failures, pause, clock
    self._failures = 0
    self._until = -math.inf  # the end of the pause, while it is open
    self._open = self._on_trial = False
    self._changes = 0

  @property
  def state(self) -> BreakerState:
    if not self._open:
      return 'closed'
    return 'half-open' if self._clock() >= self._until else 'open'

  def enter(self) -> int:
    """Ask to send a question; the number is to be handed to its outcome.

    Raises:
      ModelError: The circuit is open, or a question is on trial.
    """
    if self._open:
      wait = self._until - self._clock()
      if wait > 0 or self._on_trial:
        raise ModelError('it has failed repeatedly and is left alone', max(wait, RETRY_SECONDS))
      self._on_trial = True
    return self._changes

  def succeed(self, number: int) -> None:
    """Outcome: the model has answered."""
    if number == self._changes:
      self._failures = 0
      if self._open:
        self._change(is_open=False)

  def fail(self, number: int) -> None:
    """Outcome: the model could not answer."""
    if number == self._changes:
      self._failures += 1
      if self._open or self._failures >= self._most:
        self._until = self._clock() + self._pause
        self._change(is_open=True)

  def leave(self, number: int) -> None:
    """Outcome: nobody waits for the answer any more, which says nothing about the model."""
    if number == self._changes:
      self._on_trial = False

  def _change(self, *, is_open: bool) -> None:
    self._open, self._on_trial = is_open, False
    self._failures = 0
    self._changes += 1


class GuardedModel:
  """A model behind a circuit breaker."""

  def __init__(self, model: Model, breaker: Breaker):
    self._model, self.breaker = model, breaker

  @property
  def name(self) -> str:
    return self._model.name

  def count(self, prompt: AnyPrompt) -> float:
    """Tokens that the model reads of a prompt; see `exchanges.Model.count`."""
    return self._model.count(prompt)

  async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    """Answer as the model does; a question that it refuses is no failure.

    Raises:
      ValueError: The model refuses the question.
      ModelError: The model cannot answer now, or is not asked.
    """
    try:
      number = self.breaker.enter()
    except ModelError as error:
      raise ModelError(f'{self.name}: {error}', error.retry_after) from error
    outcome = self.breaker.leave
    try:
      async with contextlib.aclosing(self._model.answer(question)) as pieces:
        async for piece in pieces:
          yield piece
      outcome = self.breaker.succeed
    except ValueError:
      raise
    except Exception:
      outcome = self.breaker.fail
      raise
    finally:
      outcome(number)
