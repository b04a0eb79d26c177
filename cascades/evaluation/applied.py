"""Rules of a curve on the rows that are reported, each a model and a cost of every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from cascades.curves import Finalize
from cascades.frontier import Measured

Decision: TypeAlias = Callable[[], tuple[Int[np.ndarray, 'N'], Float[np.ndarray, 'N']]]


class Applied(NamedTuple):
  """Rules, and what their answers are worth.

  Attributes:
    decisions: Functions, one a rule, that give the index of each row's model and the row's cost:
      the arrays of all rules at once would fill the memory.
    statistics: Statistics of each model's answers.
    finalize: Quality of summed statistics.
  """

  decisions: Sequence[Decision]
  statistics: Float[np.ndarray, 'K N S']
  finalize: Finalize


def measure(applied: Applied) -> Measured:
  """Quality, mean cost, and each model's share of the answers under every rule."""
  models, rows, _ = applied.statistics.shape
  sums, cost, shares = [], [], []
  for decide in applied.decisions:
    answers, paid = decide()
    sums.append(applied.statistics[answers, np.arange(rows)].sum(axis=0))
    cost.append(paid.mean())
    shares.append(np.bincount(answers, minlength=models) / rows)
  return Measured(applied.finalize(np.array(sums)), np.array(cost), np.array(shares))
