"""Deferral rules: one score per example, from the log-probabilities of the small model's answer.

The highest score defers first, so a rule is a negative confidence (the paper's r). With l_1 .. l_n
the log-probabilities of the answer's tokens, end of sequence included, Wang et al. 2024,
https://arxiv.org/abs/2406.00060 (appendix C.1) compare the average, the sum, the extremes and two
quantiles; quantiles are from Gupta et al. 2024, https://arxiv.org/abs/2404.10136.

All rules take `logprobs`, the log-probabilities of each answer's tokens, and `mask`, True on those
tokens and False on padding, and return the score of each answer. An answer without tokens has no
evidence for it and defers first: its score is `NO_TOKENS`, the largest finite number.

`DECIDERS` are these rules and the scores of other columns, each with the names of what it reads: a
table that lacks any of it is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float, Int

from cascades.types import COLUMNS, Decider, DeferralRule, Predictions, Score

Logprobs = Float[np.ndarray, 'N T']
Mask = Bool[np.ndarray, 'N T']

MOST_CELLS = 1 << 22  # tokens and padding that are scored at a time
NO_TOKENS = float(np.finfo(np.float64).max)
EMBEDDINGS = 'embeddings/'


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
  return -quantiles(logprobs, mask, levels=[q])[:, 0]


def quantiles(
  logprobs: Logprobs, mask: Mask, *, levels: Sequence[float]
) -> Float[np.ndarray, 'N m']:
  """Quantiles of the log-probabilities at several levels: `-quantile` of each.

  Args:
    logprobs: Log-probabilities of the tokens of each answer.
    mask: True on those tokens, False on padding.
    levels: Levels in [0, 1].

  Returns:
    One column a level; -NO_TOKENS for an answer without tokens.

  Raises:
    ValueError: if a level is outside [0, 1].
  """
  for q in levels:
    if not 0 <= q <= 1:
      raise ValueError(f'q is {q}; the level of a quantile lies in [0, 1].')
  empty = ~mask.any(axis=-1, keepdims=True)  # any finite number will do for these rows
  ordered = np.sort(np.where(mask | empty, logprobs.astype(np.float64), np.inf), axis=-1)
  last = np.maximum(mask.sum(axis=-1), 1) - 1
  row = np.arange(len(ordered))
  columns = []
  for q in levels:
    below = np.floor(q * last).astype(np.intp)
    low, high = ordered[row, below], ordered[row, np.minimum(below + 1, last)]
    columns.append(-_defer_empty(-(low + (q * last - below) * (high - low)), mask))
  return np.stack(columns, axis=-1)


def minimum(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Negative log-probability of the least likely token: r = -min_i l_i."""
  return quantile(logprobs, mask, q=0.0)


def maximum(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Negative log-probability of the most likely token: r = -max_i l_i."""
  return quantile(logprobs, mask, q=1.0)


def length(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Number of tokens: r = n. Defers long answers first, whatever their probability."""
  del logprobs
  return _defer_empty(mask.sum(axis=-1).astype(float), mask)


def first_token(logprobs: Logprobs, mask: Mask) -> Float[np.ndarray, 'N']:
  """Negative log-probability of the first token: r = -l_1."""
  return _defer_empty(-logprobs[:, 0].astype(np.float64), mask)


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
    if function not in _ROW_BY_ROW:
      return rule(*table.padded())
    return by_row(table, rule)

  return score


def by_row(
  table: Predictions, function: Callable[[Logprobs, Mask], Float[np.ndarray, 'n *k']]
) -> Float[np.ndarray, 'N *k']:
  """Values of a function that judges each row by itself, called on rows of similar length.

  Args:
    table: One or more rows.
    function: Function of log-probabilities and mask.
  """
  values = np.empty(0)
  for count, rows in enumerate(_blocks(table.lengths)):
    block = function(*table.padded(rows))
    if not count:
      values = np.empty((len(table.lengths), *block.shape[1:]))
    values[rows] = block
  return values


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


_ROW_BY_ROW = (average, total, quantile, minimum, maximum, length, first_token)


def entropy(table: Predictions) -> Float[np.ndarray, 'N']:
  """Mean entropy of the next-token distributions, from the alternatives of each token.

      H_i = -sum_a p_ia log p_ia - t_i log t_i,    t_i = 1 - sum_a p_ia

  The tokens that are no alternatives enter as one, of the remaining probability t_i, so that H_i is
  a lower bound of the entropy of the whole distribution.
  """
  p = np.exp(_alternatives(table))
  p = np.hstack([p, np.maximum(1.0 - p.sum(axis=-1, keepdims=True), 0.0)])
  return _mean(table, -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1))


def margin(table: Predictions) -> Float[np.ndarray, 'N']:
  """Negative mean difference of the two highest probabilities, r = -mean_i(p_1 - p_2)."""
  alternatives = _alternatives(table)
  return _mean(table, np.exp(alternatives[:, 1]) - np.exp(alternatives[:, 0]))


def confidence(table: Predictions) -> Float[np.ndarray, 'N']:
  """Negative confidence that was given with the answer."""
  return -table.column('confidence')


def decider(name: str, score: Score, reads: Collection[str], *, flops: float = 0.0) -> Decider:
  """Decider that refuses a table by the names of what it lacks.

  Args:
    name: Name in reports.
    score: One number per row, the highest defers first.
    reads: Names of what the score reads, as in `Decider.reads`.
    flops: FLOPs of deciding on one query.
  """

  def checked(table: Predictions) -> Float[np.ndarray, 'N']:
    if absent := missing(reads, table):
      raise ValueError(
        f'{name!r} reads {", ".join(absent)}, which rows of task {table.task!r} do not have: store '
        f'it with the table, or leave {name!r} out.'
      )
    return score(table)

  return Decider(name, checked, tuple(reads), flops)


def missing(reads: Collection[str], table: Predictions) -> list[str]:
  """Names among `reads` of what a table lacks, in some row or, for log-probabilities, in all."""
  return [name for name in reads if not _has(table, name)]


def _has(table: Predictions, name: str) -> bool:
  if name == 'token_logprobs':
    return len(table.token_logprobs) > 0
  if name == 'alternatives':
    return table.alternatives is not None and table.alternatives.size > 0
  if name == 'two alternatives':
    return table.alternatives is not None and table.alternatives.shape[1] > 1
  if name in COLUMNS:
    return name in table.columns and not np.isnan(table.columns[name]).any()
  if name.startswith(EMBEDDINGS):
    return name.removeprefix(EMBEDDINGS) in table.embeddings
  return name in table._fields


def _alternatives(table: Predictions) -> Float[np.ndarray, 'L A']:
  assert table.alternatives is not None  # `decider` looks
  return table.alternatives.astype(np.float64)


def _mean(table: Predictions, values: Float[np.ndarray, 'L']) -> Float[np.ndarray, 'N']:
  """Mean over the tokens of each answer, NO_TOKENS for an answer without tokens."""
  N = len(table.lengths)
  sums = np.bincount(np.repeat(np.arange(N), table.lengths), weights=values, minlength=N)
  return np.where(table.lengths > 0, sums / np.maximum(table.lengths, 1), NO_TOKENS)


DECIDERS: Mapping[str, Decider] = MappingProxyType({
  **{
    name: decider(name, as_score(rule), () if name == 'random' else ('token_logprobs',))
    for name, rule in {**PAPER, 'length': length, 'first token': first_token}.items()
  },
  'entropy': decider('entropy', entropy, ['alternatives']),
  'margin': decider('margin', margin, ['two alternatives']),
  'confidence': decider('confidence', confidence, ['confidence']),
})  # fmt: skip
