"""Loops and repeated n-grams of an answer, and the AUROC of a score against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from cascades import bootstrap

N = 4  # tokens of an n-gram
TIMES, LEAST, LONGEST = 3, 16, 32  # repeats and tokens of a loop, and tokens of its period
RESAMPLES, SEED = 2000, 0


def occurrences(tokens: Sequence[int], *, n: int = N) -> Int[np.ndarray, 'T']:
  """Times that the n-gram which ends at each token has ended at an earlier one."""
  seen: dict[tuple[int, ...], int] = {}
  counts = np.zeros(len(tokens), int)
  for end in range(n, len(tokens) + 1):
    gram = tuple(tokens[end - n : end])
    counts[end - 1] = seen.get(gram, 0)
    seen[gram] = counts[end - 1] + 1
  return counts


def repeated_share(tokens: Sequence[int], *, n: int = N) -> float:
  """Share of an answer's n-grams that repeat an earlier one; 0 for fewer than n tokens."""
  return float((occurrences(tokens, n=n) > 0).sum() / max(1, len(tokens) - n + 1))


def loops(
  tokens: Sequence[int], *, times: int = TIMES, least: int = LEAST, longest: int = LONGEST
) -> bool:
  """True if some stretch of tokens is periodic: `times` repeats of at most `longest` tokens.

  A stretch with the period p has t_i = t_(i-p) for all its tokens but the first p. It counts from
  max(times p, least) tokens on, so that 'no, no, no' is none.
  """
  values = np.asarray(tokens)
  for period in range(1, min(longest, len(values) - 1) + 1):
    run = 0
    for equal in (values[period:] == values[:-period]).tolist():
      run = run + 1 if equal else 0
      if run and run + period >= max(times * period, least):
        return True
  return False


def auroc(
  score: Float[np.ndarray, 'N'], positive: Bool[np.ndarray, 'N'], strata: Int[np.ndarray, 'N']
) -> float:
  """Share of the pairs, one positive and one negative of a stratum, that the score orders.

  Ties count one half. nan if no stratum has both.
  """
  ordered = pairs = 0.0
  for stratum in np.unique(strata):
    inside = strata == stratum
    right, total = positive[inside], int(inside.sum())
    count = int(right.sum())
    ranks = stats.rankdata(score[inside])
    ordered += ranks[right].sum() - count * (count + 1) / 2
    pairs += count * (total - count)
  return ordered / pairs if pairs else float('nan')


class Interval(NamedTuple):
  value: float
  low: float
  high: float

  def __str__(self) -> str:
    return f'{self.low:.3f} .. {self.high:.3f}'


def interval(
  statistic: Callable[[Int[np.ndarray, 'N']], float], strata: Int[np.ndarray, 'N']
) -> Interval:
  """Value on all rows, and percentiles 2.5 and 97.5 over resamples within each stratum.

  Args:
    statistic: Function of the indices of rows.
    strata: Stratum of each row, in ascending order.
  """
  sizes = np.unique(strata, return_counts=True)[1].tolist()
  rows = np.arange(len(strata))
  counts = bootstrap.draw(sizes, resamples=RESAMPLES, seed=SEED)
  values = [statistic(np.repeat(rows, count)) for count in counts]
  low, high = np.nanpercentile(values, [2.5, 97.5])
  return Interval(statistic(rows), float(low), float(high))
