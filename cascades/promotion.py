"""Decisions whether another policy replaces the one in force, on rows that chose neither.

Policies are thresholds of one score, compared row by row. A look at the rows may replace the policy
wrongly; so that looks may go on for ever, look k spends a share of the probability of an error:

    level(k) = alpha / (k (k + 1)),    sum over k >= 1 = alpha

Each look asks two questions, with half of its level each:

    broken   do the rows refute a promise of the policy in force? Then the other one replaces it, if
             it breaks none on the same rows.
    better   is the mean gain of the other one above the least that is worth a change, and are its
             promises kept?

Tests are `guarantees.mean_certified`, exact for every number of rows, which must be independent
draws of one population.

Four rows of which the other policy defers two fewer, a gain of one half a row:

>>> gains = np.array([1.0, 0.0, 1.0, 0.0])
>>> errors = PromiseLosses('quality', np.zeros(4), np.zeros(4), level=0.2, delta=0.1)
>>> decide(gains, [errors], alpha=0.1, least_gain=0.2).choice
'no gain'
>>> decide(np.tile(gains, 25), [errors], alpha=0.1, least_gain=0.2).choice
'better'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from cascades import guarantees, risk_tests

VerdictChoice: TypeAlias = Literal['repairs', 'better', 'both break', 'promise at risk', 'no gain']

REPLACES = ('repairs', 'better')
_HALVINGS = 12  # of the interval of a gain: to 1/2048


class PromiseLosses(NamedTuple):
  """Losses of two policies on the same rows, whose means a promise bounds.

  Attributes:
    name: Name of the promise.
    current: Loss of each row under the policy in force, in [-1, 1].
    other: Loss under the other one.
    level: Largest mean loss.
    delta: Largest probability that the other policy is certified though it breaks the promise.
  """

  name: str
  current: Float[np.ndarray, 'N']
  other: Float[np.ndarray, 'N']
  level: float
  delta: float


class Verdict(NamedTuple):
  """Result of a comparison.

  Attributes:
    choice: Reason for a change, or against one.
    names: Promises that are broken, or at risk.
    gain: Mean gain of the other policy.
    low: Lower end of the interval of the gain.
    high: Upper end.
    rows: Number of rows.
    alpha: Level of the comparison.
  """

  choice: VerdictChoice
  names: tuple[str, ...]
  gain: float
  low: float
  high: float
  rows: int
  alpha: float

  @property
  def replaces(self) -> bool:
    """True if the other policy replaces the one in force."""
    return self.choice in REPLACES


def level(alpha: float, look: int) -> float:
  """Share of alpha that a look spends, which sum to alpha; looks count from 1."""
  return alpha / (look * (look + 1))


def decide(
  gains: Float[np.ndarray, 'N'],
  promises: Sequence[PromiseLosses],
  *,
  alpha: float,
  least_gain: float,
  certify: bool = False,
) -> Verdict:
  """Verdict about replacing the policy in force by another one.

  If the policy in force keeps its promises, and the other one gains at most `least_gain`, it is
  replaced with probability `alpha` at most.

  Args:
    gains: Gain of each row under the other policy, in [-1, 1].
    promises: Promises of both, one or more.
    alpha: Largest probability of an error.
    least_gain: Mean gain that is worth a change.
    certify: Ask that these rows certify the promises of the other policy, each at its delta. False
      asks that they are kept on these rows, which is for a policy that other rows have certified.
  """
  half = alpha / 2
  summary = float(gains.mean()), *interval(gains, alpha), len(gains), alpha
  broken = tuple(
    promise.name
    for promise in promises
    if guarantees.mean_refuted(promise.current, promise.level, half / len(promises))
  )
  missed = tuple(p.name for p in promises if p.other.mean() > p.level + risk_tests.ROUNDING)
  if broken:
    return Verdict('both break' if missed else 'repairs', broken, *summary)
  if certify:
    missed = tuple(
      p.name for p in promises if not guarantees.mean_certified(p.other, p.level, p.delta)
    )
  if missed:
    return Verdict('promise at risk', missed, *summary)
  gained = guarantees.mean_refuted(gains, least_gain, half)
  return Verdict('better' if gained else 'no gain', (), *summary)


def interval(gains: Float[np.ndarray, 'N'], alpha: float) -> tuple[float, float]:
  """Interval of a mean gain that misses it with probability `alpha` at most, by bisection."""
  low = _bound(gains, alpha / 2)
  return low, -_bound(-gains, alpha / 2)


def _bound(gains: Float[np.ndarray, 'N'], alpha: float) -> float:
  """Lower bound of a mean."""
  low, high = -1.0, float(gains.mean())
  for _ in range(_HALVINGS if high > low else 0):
    middle = (low + high) / 2
    if risk_tests.betting((1 - gains) / 2, (1 - middle) / 2, alpha) <= alpha:
      low = middle
    else:
      high = middle
  return low
