"""Choice among any number of models before an answer, from learned gaps to the last of them.

A router learns d_m(x) = Q_K - Q_m of every model m but the last one, K. Choosing the model of

    argmax_m  q_m(x) - price c_m,    q_m(x) = -d_m(x),  q_K = 0

is choosing by the qualities themselves: Q_K(x) is common to all. A ridge regression of a gap is the
difference of those of the two qualities, so that 'linear' is one predictor a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from cascades import routing
from cascades.learned_deferral import Fitted
from cascades.types import Predictions

# Model of each row, from the mean cost of each model and the price of a unit of cost.
Choice: TypeAlias = Callable[[Float[np.ndarray, 'K'], float], Int[np.ndarray, 'N']]


def chooses(fitted: Fitted) -> bool:
  """True if a learned decider can choose among models: it predicts gaps from the prompt."""
  return fitted.recipe.target == 'gap' and fitted.decider().before_answer


def flops(fitted: Sequence[Fitted]) -> float:
  """FLOPs of a choice: one search for neighbors, or one prediction for each model but the last."""
  costs = [own.decider().flops for own in fitted]
  return costs[0] if fitted[0].recipe.family == 'guarded_knn' else sum(costs)


def among(fitted: Sequence[Fitted], table: Predictions) -> Choice:
  """Choices of one router for the rows of a table.

  Args:
    fitted: What it learned of each model but the last, in order.
    table: Table of the rows; only prompts are read.

  Raises:
    LeakError: The table holds a row that the router was fitted on.
    ValueError: The table lacks what it reads, or neighbors were learned from other prompts.
  """
  if fitted[0].recipe.family != 'guarded_knn':
    gaps = np.stack([own.decider().score(table) for own in fitted])
    quality = np.vstack([-gaps, np.zeros(len(table.ids))])
    return lambda cost, price: np.argmax(quality - price * cost[:, None], axis=0)
  first, *others = fitted
  keys = first.arrays['0/keys']
  if any(not np.array_equal(own.arrays['0/keys'], keys) for own in others):
    raise ValueError(
      f'{first.name!r} was fitted on other prompts for one model than for another: a choice among '
      'models needs the same prompts, and the same embeddings of them, beside the tables of all.'
    )
  gaps = np.stack([own.arrays['0/gap'] for own in fitted])
  quality = np.vstack([-gaps, np.zeros(len(keys))]).T
  count = int(first.arrays['0/neighbors'][0])
  near = quality[routing.nearest(first.standardized(table), keys.astype(float), count)]
  mean = quality.mean(axis=0)
  return lambda cost, price: routing.guarded_choice(near, mean, cost, price=price)
