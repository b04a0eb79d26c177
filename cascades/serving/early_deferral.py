"""Bounds of the score of an answer that is not complete.

Log-probabilities are at most 0, and an answer has at most so many tokens. Once even the best
continuation would be deferred, the small model need not write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from cascades.predictions.rows import LOWEST
from cascades.serving.exchanges import Token


class Growth(NamedTuple):
  """An answer so far.

  Attributes:
    most: Tokens of the longest answer.
    tokens: Tokens so far.
    total: Sum of their log-probabilities.
    lowest: Least of them.
    first: Log-probability of the first token.
  """

  most: int
  tokens: int = 0
  total: float = 0.0
  lowest: float = 0.0
  first: float = 0.0


Formula: TypeAlias = Callable[[Growth], float]

# Least score, by the rules of `deferral`, of an answer that begins so: it holds to the bit.
LEAST: Mapping[str, Formula] = MappingProxyType({
  'average': lambda growth: -growth.total / growth.most,
  'sum': lambda growth: -growth.total,
  'minimum': lambda growth: -growth.lowest,
  'length': lambda growth: float(growth.tokens),
  'first token': lambda growth: -growth.first,
})  # fmt: skip


class LeastScore:
  """Least score that an answer can still have, while it grows."""

  def __init__(self, formula: Formula, most_tokens: int):
    self._formula = formula
    self._growth = Growth(most_tokens)
    self._is_measured = True

  def add(self, token: Token) -> float:
    """The bound after one more token; -inf once a log-probability is not known."""
    self._is_measured &= token.logprob is not None
    if not self._is_measured:
      return -np.inf
    value = float(as_stored([token.logprob or 0.0])[0])
    growth = self._growth
    self._growth = Growth(
      max(growth.most, growth.tokens + 1),
      growth.tokens + 1,
      growth.total + value,
      min(growth.lowest, value),
      growth.first if growth.tokens else value,
    )
    return self._formula(self._growth)


def as_stored(values: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
  """Log-probabilities as tables store them: the shortest digits of float32, finite, at most 0."""
  with np.errstate(over='ignore'):
    return np.clip(np.asarray(values, np.float32).astype(str).astype(float), LOWEST, 0.0)
