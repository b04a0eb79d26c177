"""Rules that keep a promise on unseen rows: the tests of `guarantees` for any list of rules.

A chain has a threshold at each model, so that its rules form no path by themselves. Rules that were
chosen on other rows, in the order of their cost there, are one: the order is fixed before the tests
see their rows, and the walk along it needs no correction for the number of rules. Pareto Testing,
Laufer-Goldshtein et al. 2023, https://arxiv.org/abs/2210.07913.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cascades import guarantees, risk_tests
from cascades.guarantees import MOST_BETS, Test


class RuleRisk(NamedTuple):
  """A promise that a mean loss is at most `level`, broken with probability `delta` at most.

  Attributes:
    name: Name in messages.
    losses: Loss of each row under each of M rules, in [0, 1], or differences in [-1, 1]; rules in
      an order that was fixed without these rows.
    level: Largest mean loss.
    delta: Largest probability that a rule is certified that breaks the promise.
    falls: True if the loss falls along the rules, so that the walk starts from the last.
  """

  name: str
  losses: Float[np.ndarray, 'M N']
  level: float
  delta: float
  falls: bool = True


def test_of(risk: RuleRisk) -> Test:
  """Name of the test of a promise, the most powerful that is exact for its losses."""
  if np.isin(risk.losses, (0, 1)).all():
    return 'binomial'
  if np.isin(risk.losses, (-1, 0, 1)).all():
    return 'trinomial'
  return 'betting' if risk.losses.shape[1] <= MOST_BETS else 'Hoeffding-Bentkus'


def certified(risk: RuleRisk) -> Bool[np.ndarray, 'M']:
  """Rules that keep the promise: all of them together err with probability `delta` at most.

  Ten rows, of which the dearer rule gets one wrong: at most half wrong is certified for it alone.

  >>> wrong = np.array([[1.0] * 4 + [0.0] * 6, [1.0] + [0.0] * 9])
  >>> certified(RuleRisk('errors', wrong, level=0.5, delta=0.1))
  array([False,  True])
  """
  losses, rows, test = risk.losses, risk.losses.shape[1], test_of(risk)
  if test == 'binomial':
    limit = risk_tests.binomial_limit(rows, risk.level, risk.delta)
    passes = np.rint(losses.sum(axis=1)) <= limit
  elif test == 'trinomial':
    worse, better = ((losses == sign).sum(axis=1) for sign in (1, -1))
    passes = worse <= risk_tests.paired_limits(rows, risk.level, risk.delta)[worse + better]
  else:
    level = risk.level
    if losses.min() < 0:
      losses, level = (1 + losses) / 2, (1 + level) / 2
    if not 0 < level < 1:
      return np.full(len(losses), level >= 1)
    if test == 'betting':
      shuffled = np.random.default_rng(0).permutation(rows)  # tables may be sorted
      p = np.concatenate(
        [risk_tests.betting(own[None, shuffled], level, risk.delta) for own in losses]
      )
    else:
      p = risk_tests.hoeffding_bentkus(losses.mean(axis=1), rows, level)
    passes = p <= risk.delta
  return guarantees.until_failure(passes, risk.falls)
