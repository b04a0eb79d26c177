"""Deferral rules: one score per example, from the log-probabilities of the small model's answer.

The highest score defers first, so a rule is a negative confidence (the paper's r). With l_1 .. l_n
the log-probabilities of the answer's tokens, end of sequence included, Wang et al. 2024,
https://arxiv.org/abs/2406.00060 (appendix C.1) compare the average, the sum, the extremes and two
quantiles; quantiles are from Gupta et al. 2024, https://arxiv.org/abs/2404.10136.

All rules take `logprobs`, the log-probabilities of each answer's tokens, and `mask`, True on those
tokens and False on padding, and return the score of each answer. An answer without tokens has no
evidence for it and defers first: its score is `NO_TOKENS`, the largest finite number.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int

from cascades.types import DeferralRule, Predictions, Score

Logprobs = Float[np.ndarray, 'N T']
Mask = Bool[np.ndarray, 'N T']

MOST_CELLS = 1 << 22  # tokens and padding that are scored at a time
NO_TOKENS = float(np.finfo(np.float64).max)


def average(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Negative mean log-probability: r = -(1/n) sum_i l_i. Orders answers by perplexity."""
  return _defer_empty(-_sum(logprobs, mask) / np.maximum(mask.sum(axis=-1), 1), mask)


def total(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Negative log-probability of the answer: r = -sum_i l_i. Defers long answers first."""
  return _defer_empty(-_sum(logprobs, mask), mask)


def quantile(logprobs: Logprobs, mask: Mask, *, q: float) -> Float[np.ndarray, 'N']:
  """Negative q-quantile of the log-probabilities, linear between order statistics.

  With l sorted ascending, counted from 0, and h = q (n - 1),

      r = -(l_floor(h) + (h - floor(h)) (l_floor(h)+1 - l_floor(h))).

  Args:
    logprobs: Log-probabilities of the tokens of each answer.
    mask: True on those tokens, False on padding.
    q: Level in [0, 1]; 0 is the least likely token and 1 the most likely.

  Returns:
    The score of each answer.

  Raises:
    ValueError: if q is outside [0, 1].
  """
  if not 0 <= q <= 1:
    raise ValueError(f'q is {q}; the level of a quantile lies in [0, 1].')
  empty = ~mask.any(axis=-1, keepdims=True)  # any finite number will do for these rows
  ordered = np.sort(np.where(mask | empty, logprobs.astype(np.float64), np.inf), axis=-1)
  last = np.maximum(mask.sum(axis=-1), 1) - 1
  below = np.floor(q * last).astype(np.intp)
  row = np.arange(len(ordered))
  low, high = ordered[row, below], ordered[row, np.minimum(below + 1, last)]
  return _defer_empty(-(low + (q * last - below) * (high - low)), mask)


def minimum(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Negative log-probability of the least likely token: r = -min_i l_i."""
  return quantile(logprobs, mask, q=0.0)


def maximum(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Negative log-probability of the most likely token: r = -max_i l_i."""
  return quantile(logprobs, mask, q=1.0)


def random(logprobs: Logprobs, mask: Mask, *, seed: int = 0) -> Float[np.ndarray, 'N']:
  """Uniform random scores, as a control: row i gets the i-th number of the seed's stream."""
  del mask
  return np.random.default_rng(seed).random(len(logprobs))


PAPER: Mapping[str, DeferralRule] = MappingProxyType({
  'average': average,
  'minimum': minimum,
  'maximum': maximum,
  'sum': total,
  'quantile 0.4': partial(quantile, q=0.4),
  'quantile 0.8': partial(quantile, q=0.8),
  'random': random,
})  # fmt: skip


def as_score(rule: DeferralRule) -> Score:
  """Score of a table of predictions by a rule.

  The rules of this module judge each row by itself: where padding to the longest answer would
  exceed `MOST_CELLS`, they are given rows of similar length at a time. Others, which may compare
  rows with each other, always see the whole table.

  Args:
    rule: Deferral rule.

  Returns:
    A function from a table to one score per row, for `curves.deferral_curve`.
  """
  function = inspect.unwrap(rule.func if isinstance(rule, partial) else rule)

  def score(table: Predictions) -> Float[np.ndarray, 'N']:
    if function is random:
      return rule(np.empty((len(table.lengths), 0)), np.empty((len(table.lengths), 0), bool))
    if function not in (average, total, quantile, minimum, maximum):
      return rule(*table.padded())
    scores = np.empty(len(table.lengths))
    for rows in _blocks(table.lengths):
      scores[rows] = rule(*table.padded(rows))
    return scores

  return score


def _blocks(lengths: Int[np.ndarray, 'N']) -> Iterator[Int[np.ndarray, 'n']]:
  """Indices of rows to be padded together: all if they are few, else those of similar length."""
  lengths = np.maximum(lengths, 1)
  width = np.full(len(lengths), lengths.max(initial=1))
  if width.sum() > MOST_CELLS:
    width = 2 ** np.ceil(np.log2(lengths)).astype(int)
  for size in np.unique(width).tolist():
    rows = np.flatnonzero(width == size)
    step = max(1, MOST_CELLS // size)
    yield from np.split(rows, range(step, len(rows), step))


def _sum(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Sum from left to right: in other orders, the width of the padding changes the rounding."""
  return np.cumsum(np.where(mask, logprobs.astype(np.float64), 0.0), axis=-1)[:, -1]


def _defer_empty(score: Float[np.ndarray, 'N'], mask: Mask) -> Float[np.ndarray, 'N']:
  return np.where(mask.any(axis=-1), score, NO_TOKENS)
