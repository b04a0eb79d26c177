"""Ceilings of what a request and a day may cost.

The most that a model can cost is reserved before it is asked, and settled by what it did cost, so
that requests that run at once cannot exceed a ceiling together. What is spent or reserved is
stored, and a restart does not reset the day. Everything here runs on the thread of the event loop.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from etils import epath

from cascades.costs import Prices
from cascades.predictions.rows import HIGHEST
from cascades.runtime import files, ranges
from cascades.serving import decisions
from cascades.serving.exchanges import ModelError, Question
from cascades.serving.keys import ApiKey, LimitError

log = logging.getLogger(__name__)

ALL = ''  # account of all requests
VERSION = 1
DAY = 86400.0
MOST_BYTES = 1 << 16  # of a file, which then begins anew
TEMPLATE_TOKENS = 256  # that a chat template may add to a prompt


class Spending(NamedTuple):
  """Tokens that models read and wrote, and their price."""

  tokens: float = 0.0
  dollars: float = 0.0

  def plus(self, other: Spending) -> Spending:
    return Spending(self.tokens + other.tokens, self.dollars + other.dollars)

  def minus(self, other: Spending) -> Spending:
    """The difference, without a rounding error below 0."""
    return Spending(max(self.tokens - other.tokens, 0), max(self.dollars - other.dollars, 0.0))


NOTHING = Spending()


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """Ceilings of all requests; None for no ceiling.

  Attributes:
    tokens_per_request: Tokens that all models read and write for a request.
    dollars_per_request: Price of them.
    tokens_per_day: Tokens of all requests, in a day of UTC.
    dollars_per_day: Price of them.
  """

  tokens_per_request: int | None = None
  dollars_per_request: float | None = None
  tokens_per_day: int | None = None
  dollars_per_day: float | None = None

  def __post_init__(self) -> None:
    limits = dataclasses.asdict(self)
    dollars = {name: limits.pop(name) for name in list(limits) if name.startswith('dollars')}
    ranges.check(dollars, least=0)
    ranges.check(limits, least=1, integer=True)


class _Stored(msgspec.Struct):
  version: int
  day: str
  spent: dict[str, tuple[float, float]]


class Reservation(NamedTuple):
  """Amount that is set aside until a model has answered."""

  day: str
  accounts: tuple[str, ...]
  amount: Spending


def most(question: Question, *, longest: int, prices: Prices | None = None) -> Spending:
  """Bound of what an answer can cost: a token of the prompt has one or more bytes.

  Args:
    question: The question.
    longest: Longest answer of the model in tokens.
    prices: Dollars per token; None if the model has no price.
  """
  chat = not isinstance(question.prompt, str)
  prompt = decisions.prompt_text(question).encode('utf-8', 'surrogatepass')
  read = len(prompt) + 1 + (TEMPLATE_TOKENS if chat else 0)
  written = min(longest, longest if question.max_tokens is None else question.max_tokens)
  uncached = prices and dataclasses.replace(prices, cached_tokens=0)
  price = 0.0 if uncached is None else float(uncached.charge(read, written))  # type: ignore[arg-type]
  return Spending(read + written, price)


class Ledger:
  """Amounts spent and reserved today, by account: all requests, and those of each key."""

  def __init__(
    self,
    ceilings: Ceilings | None = None,
    path: epath.PathLike | None = None,
    *,
    clock: Callable[[], float] = time.time,
  ):
    """Reads what is stored.

    Args:
      ceilings: Ceilings of all requests; None for none.
      path: File to store the day in; None forgets it at the end.
      clock: Seconds since the epoch.

    Raises:
      ValueError: The file is damaged.
    """
    self._ceilings, self._clock = ceilings or Ceilings(), clock
    self._journal = None if path is None else _Journal(files.absolute(path))
    self._day, self._spent = self._today(), dict[str, Spending]()
    if self._journal is not None:
      stored = self._journal.read()
      if stored is not None and stored.day == self._day:
        self._spent = {name: Spending(*amounts) for name, amounts in stored.spent.items()}

  def spent(self, account: str = ALL) -> Spending:
    """Amount spent and reserved today."""
    self._turn()
    return self._spent.get(account, NOTHING)

  def reserve(self, key: ApiKey, amount: Spending, before: Spending = NOTHING) -> Reservation:
    """Set an amount aside before a model is asked.

    Args:
      key: ApiKey that asks.
      amount: Most that the answer can cost.
      before: What other models have cost for this request.

    Raises:
      LimitError: A ceiling does not cover the amount.
      ModelError: The amount cannot be stored, so that the ceiling could be exceeded.
    """
    self._turn()
    self._check_request(amount.plus(before))
    for account, limit in self._limits(key).items():
      total = self.spent(account).plus(amount)
      who = f'{account} has' if account else 'The server has'
      for name, bound in limit.items():
        if bound is not None and getattr(total, name) > bound:
          raise LimitError(
            f'{who} {bound:g} {name} a day, of which {getattr(self.spent(account), name):g} are '
            f'spent or reserved; this answer may take {getattr(amount, name):g}.',
            DAY - self._clock() % DAY,
          )
    accounts = tuple(dict.fromkeys((ALL, key.name)))
    self._add(accounts, amount)
    try:
      self._store(key)
    except OSError as error:
      for account in accounts:
        self._spent[account] = self._spent[account].minus(amount)
      raise ModelError(f'The budget of the day cannot be stored: {error}', 60.0) from error
    return Reservation(self._day, accounts, amount)

  def settle(self, key: ApiKey, reservation: Reservation, amount: Spending) -> None:
    """Replace a reservation by what was spent, on the day of the reservation."""
    self._turn()
    if reservation.day != self._day:
      return
    for account in reservation.accounts:
      self._spent[account] = self._spent[account].minus(reservation.amount)
    self._add(reservation.accounts, amount)
    try:
      self._store(key)
    except OSError as error:  # the reservation stays stored, which is no less
      log.warning('The budget of the day cannot be stored: %s', error)

  def _check_request(self, total: Spending) -> None:
    for name in Spending._fields:
      bound = getattr(self._ceilings, f'{name}_per_request')
      if bound is not None and getattr(total, name) > bound:
        raise LimitError(
          f'A request may take {bound:g} {name}, and this one may take {getattr(total, name):g}: '
          'shorten the prompt, or lower max_tokens.',
          0.0,
        )

  def _limits(self, key: ApiKey) -> Mapping[str, Mapping[str, float | None]]:
    """Bounds of a day by account."""
    own = {key.name: key.limits} if key.name else {}
    return {
      account: {name: getattr(limits, f'{name}_per_day') for name in Spending._fields}
      for account, limits in ({ALL: self._ceilings} | own).items()
    }

  def _add(self, accounts: tuple[str, ...], amount: Spending) -> None:
    for account in accounts:
      self._spent[account] = self._spent.get(account, NOTHING).plus(amount)

  def _store(self, key: ApiKey) -> None:
    """Store the day, if a ceiling depends on it."""
    bounds = [bound for limit in self._limits(key).values() for bound in limit.values()]
    if self._journal is not None and any(bound is not None for bound in bounds):
      stored = {'version': VERSION, 'day': self._day, 'spent': self._spent}
      self._journal.store(json.dumps(stored).encode() + b'\n')

  def _turn(self) -> None:
    """Begin a new day."""
    if (day := self._today()) != self._day:
      self._day, self._spent = day, {}

  def _today(self) -> str:
    return datetime.datetime.fromtimestamp(self._clock(), datetime.UTC).strftime('%Y-%m-%d')


class _Journal:
  """File whose last complete line is the state: to append is much faster than to replace a file."""

  def __init__(self, path: epath.Path):
    self._path = path
    self._descriptor: int | None = None
    self._size = 0

  def read(self) -> _Stored | None:
    """The state; None if none was stored. Raises ValueError if it cannot be read."""
    if not self._path.exists():
      return None
    try:
      *lines, _ = self._path.read_bytes().split(b'\n')  # behind the last end: what a kill cut off
      if not lines:
        raise ValueError('no complete line')
      stored = msgspec.json.decode(lines[-1], type=_Stored)
      if stored.version != VERSION:
        raise ValueError(f'version: expected {VERSION}, found {stored.version}')
      if not all(0 <= value <= HIGHEST for values in stored.spent.values() for value in values):
        raise ValueError('spent: expected numbers of 0 or more')
    except ValueError as error:
      raise ValueError(
        f'{self._path} does not tell what was spent today ({error}): repair it, or remove it to '
        'begin the day anew.'
      ) from error
    return stored

  def store(self, line: bytes) -> None:
    """Store a state, written when this returns."""
    full = self._size + len(line) > MOST_BYTES
    if self._descriptor is None or full or not os.fstat(self._descriptor).st_nlink:
      self.close()
      files.write(self._path, line)
      with files.naming(self._path):
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags)
      self._size = len(line)
      return
    with files.naming(self._path):
      files.append_all(self._descriptor, line, self._size)
    self._size += len(line)

  def close(self) -> None:
    if self._descriptor is not None:
      os.close(self._descriptor)
    self._descriptor = None
