"""The contribution of one model to a request, while it is made."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncGenerator
from typing import NamedTuple

import numpy as np

from cascades.costs import Prices
from cascades.serving.decisions import Evidence
from cascades.serving.exchanges import (
  Finish,
  Leg,
  Model,
  ModelError,
  Piece,
  Question,
  Role,
  Token,
)


class Delta(NamedTuple):
  """Text that an answer grows by, with its tokens."""

  text: str
  tokens: tuple[Token, ...]


class Member(NamedTuple):
  """A model of a cascade.

  Attributes:
    model: The model.
    prices: Prices of its tokens in dollars; None if they are not known.
    seconds: Longest time of an answer.
  """

  model: Model
  prices: Prices | None = None
  seconds: float = 120.0

  def dollars(self, leg: OpenLeg) -> float | None:
    """Price of an answer, also of one that was cut off; None if its tokens are not known."""
    if self.prices is None or (leg.finish is None and leg.text and not leg.prompt_tokens):
      return None
    prices = dataclasses.replace(self.prices, cached_tokens=leg.cached_tokens)
    counts = (np.array(float(leg.prompt_tokens)), np.array(float(leg.generated_tokens)))
    return float(prices.charge(*counts))


class OpenLeg:
  """An answer that grows."""

  def __init__(self, role: Role, member: Member, question: Question):
    self.role, self._member, self._question = role, member, question
    self._texts: list[str] = []
    self._tokens: list[Token] = []
    self._began = time.monotonic()
    self._seconds: float | None = None
    self._error = ''
    self.finish: Finish | None = None
    self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
    self._queue_seconds = 0.0

  async def pieces(self) -> AsyncGenerator[Piece, None]:
    """Pieces of the answer; closing the generator cancels it.

    Raises:
      ModelError: The model cannot answer, or not in time.
      ValueError: It cannot answer this question.
    """
    deadline = asyncio.get_running_loop().time() + self._member.seconds
    try:
      async with contextlib.aclosing(self._member.model.answer(self._question)) as pieces:
        while True:
          # A timeout around the whole loop would also interrupt those who read the pieces.
          async with asyncio.timeout_at(deadline):
            piece = await anext(pieces, None)
          if piece is None:
            break
          self._add(piece)
          yield piece
      if self.finish is None:
        raise ModelError('its answer has no end')
    except TimeoutError as error:
      self._error = f'no complete answer in {self._member.seconds:g} s'
      raise ModelError(self._error) from error
    except (ModelError, ValueError) as error:
      self._error = str(error)[:500]
      raise
    finally:
      self._seconds = time.monotonic() - self._began

  def _add(self, piece: Piece) -> None:
    self._texts.append(piece.text)
    self._tokens += piece.tokens
    self.finish = piece.finish or self.finish
    self.prompt_tokens = max(self.prompt_tokens, piece.prompt_tokens)
    self.cached_tokens = max(self.cached_tokens, piece.cached_tokens)
    self.generated_tokens = max(self.generated_tokens, piece.generated_tokens, len(self._tokens))
    self._queue_seconds = max(self._queue_seconds, piece.queue_seconds)

  @property
  def text(self) -> str:
    """The text so far."""
    return ''.join(self._texts)

  def delta(self) -> Delta:
    """The answer so far, at once."""
    return Delta(self.text, tuple(self._tokens))

  def evidence(self) -> Evidence:
    """The answer, for its score."""
    numbers = {
      'prompt_tokens': float(self.prompt_tokens or math.nan),
      'generated_tokens': float(self.generated_tokens),
      'seconds': time.monotonic() - self._began if self._seconds is None else self._seconds,
    }
    return Evidence(self.text, self._tokens, numbers)

  def closed(self) -> Leg:
    """Record of the leg."""
    return Leg(
      role=self.role,
      model=self._member.model.name,
      text=self.text,
      tokens=tuple(self._tokens),
      prompt_tokens=self.prompt_tokens,
      cached_tokens=self.cached_tokens,
      generated_tokens=self.generated_tokens,
      queue_seconds=self._queue_seconds,
      seconds=time.monotonic() - self._began if self._seconds is None else self._seconds,
      dollars=self._member.dollars(self),
      finish=self.finish,
      error=self._error,
    )
