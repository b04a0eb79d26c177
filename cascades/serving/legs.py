"""The contribution of one model to a request, while it is made."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple

import numpy as np

from cascades.costs import Prices
from cascades.serving import budgets
from cascades.serving.budgets import Ledger, Spending
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
from cascades.serving.keys import ApiKey, LimitError

LONGEST = 1 << 20  # tokens of an answer to a question without a bound


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
    if self.prices is None or not leg.is_counted:
      return None
    if not (leg.prompt_tokens or leg.generated_tokens):  # it has not begun
      return 0.0
    prices = dataclasses.replace(self.prices, cached_tokens=leg.cached_tokens)
    counts = (np.array(float(leg.prompt_tokens)), np.array(float(leg.generated_tokens)))
    return float(prices.charge(*counts))


class Account(NamedTuple):
  """Budget that an answer is charged to.

  Attributes:
    ledger: Ceilings, and what is spent.
    key: Client that pays.
    before: What other models have cost for this request.
  """

  ledger: Ledger
  key: ApiKey
  before: Spending

  @contextlib.contextmanager
  def charged(self, leg: OpenLeg, most: Spending) -> Iterator[None]:
    """Context manager of an answer, which may cost so much.

    Raises:
      ValueError: No request may cost so much.
      ModelError: A budget does not cover it now.
    """
    try:
      reservation = self.ledger.reserve(self.key, most, self.before)
    except LimitError as error:
      if error.retry_after:
        raise ModelError(str(error), error.retry_after) from error
      raise ValueError(str(error)) from error
    try:
      yield
    finally:
      spent = leg.spent()
      self.ledger.settle(self.key, reservation, most if spent is None else spent)


class OpenLeg:
  """An answer that grows."""

  def __init__(
    self,
    role: Role,
    member: Member,
    question: Question,
    account: Account | None = None,
    *,
    is_audit: bool = False,
  ):
    self.is_audit = is_audit
    self.role, self._member, self._question = role, member, question
    self._account = account
    self._texts: list[str] = []
    self._tokens: list[Token] = []
    self._began = time.monotonic()
    self._seconds: float | None = None
    self.error, self._is_slow = '', False
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
      with self._charged():
        async with contextlib.aclosing(self._member.model.answer(self._question)) as pieces:
          while True:
            piece = await self._next(pieces, deadline)
            if piece is None:
              break
            self._add(piece)
            yield piece
        if self.finish is None:
          raise ModelError('its answer has no end')
    except (ModelError, ValueError) as error:
      self.error = str(error)[:500]
      raise
    finally:
      self._seconds = time.monotonic() - self._began

  async def _next(self, pieces: AsyncGenerator[Piece, None], deadline: float) -> Piece | None:
    """The next piece, in time. A timeout around them all would interrupt those who read them."""
    try:
      async with asyncio.timeout_at(deadline):
        return await anext(pieces, None)
    except TimeoutError as error:
      self._is_slow = True
      raise ModelError(f'no complete answer in {self._member.seconds:g} s') from error

  def _charged(self) -> contextlib.AbstractContextManager[None]:
    if self._account is None:
      return contextlib.nullcontext()
    longest = self._question.max_tokens or LONGEST
    most = budgets.most(self._question, longest=longest, prices=self._member.prices)
    return self._account.charged(self, most)

  @property
  def is_counted(self) -> bool:
    """False if a model may have read and written more than it has reported."""
    return bool(self.finish or self.prompt_tokens or not (self._texts or self._is_slow))

  def spent(self) -> Spending | None:
    """Tokens and dollars of the answer so far; None if they are not known."""
    if not self.is_counted:
      return None
    tokens = self.prompt_tokens + self.generated_tokens
    return Spending(tokens, self._member.dollars(self) or 0.0)

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
      error=self.error,
      is_audit=self.is_audit,
    )
