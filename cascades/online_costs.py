"""Costs of an online cascade: of a query, of its floor of calls, and of what a budget leaves.

With d_i the probability that level i defers, L_i its loss and c_i its cost, see `online`.

Axes: N levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TOLERANCE = 0.01  # of a budget of calls


def reach(deferring: Float[Array, '*n N']) -> Float[Array, '*n N']:
  """Probability of reaching each level: the product of d over all levels before it."""
  first = jnp.ones_like(deferring[..., :1])
  return jnp.concatenate([first, jnp.cumprod(deferring[..., :-1], -1)], -1)


def episode_cost(
  deferring: Float[Array, '*n N'],
  losses: Float[Array, '*n N'],
  costs: Float[Array, 'N'],
  *,
  mu: float,
) -> Float[Array, '*n']:
  """Expected cost J of a query.

  Args:
    deferring: Probability d of deferring at each level; that of the last is taken as 0.
    losses: Loss of each level's answer.
    costs: Cost c of each level; the first, which every query pays, is not counted.
    mu: Price of cost in units of loss.
  """
  d = jnp.asarray(deferring).at[..., -1].set(0.0)
  following = jnp.append(jnp.asarray(costs)[1:], 0.0)
  return jnp.sum(reach(d) * ((1 - d) * losses + d * mu * following), -1)


def bayes_deferring(
  losses: Float[np.ndarray, 'N'], costs: Float[np.ndarray, 'N'], *, mu: float
) -> Float[np.ndarray, 'N']:
  """Gates of least J, by backward induction: 1 iff L_i > mu c_i+1 + V_i+1."""
  value, defers = losses[-1], np.zeros(len(losses))
  for i in reversed(range(len(losses) - 1)):
    later = mu * costs[i + 1] + value
    defers[i] = losses[i] > later
    value = min(losses[i], later)
  return defers


def tolerated_error(kappa: float) -> float:
  """Probability of an error above which a gate defers: (0.5 - kappa) / (1 - kappa)."""
  return (0.5 - kappa) / (1 - kappa)


def share_left(calls: float, length: int, *, spent: int, seen: int) -> float:
  """Share of the queries left that may go to the expert, so that `calls` of all `length` do.

  Raises:
    ValueError: More are spent already.
  """
  if spent > calls or seen >= length:
    raise ValueError(
      f'{spent} calls in the first {seen} queries, and the budget is {calls:g} of {length}: the '
      'warm-up alone needs more; raise the budget, or lower `warm_up` or the caches.'
    )
  return min((calls - spent) / (length - seen), 1.0)


def least_calls(
  queries: int, *, caches: Sequence[int], decays: Sequence[float], warm_up: int = 10
) -> float:
  """Expected calls if no gate ever defers: the warm-up, and jumps to the next level.

      n(T) = ln(a (T - n0) + exp(a n0)) / a,   a = sum_i -ln(b_i) / cache_i,   n0 = warm-up

  The differential equation dn/dt = prod_i b_i ** (n / cache_i) of the number of calls.

  Args:
    queries: Number T of queries.
    caches: Answers on which each small model is trained together.
    decays: b of each small model.
    warm_up: Updates of each that end the warm-up.
  """
  warm = warm_up * max(caches)
  pairs = zip(decays, caches, strict=True)
  a = sum(-math.log(decay) / cache if decay else math.inf for decay, cache in pairs)
  if queries <= warm or not a:
    return float(queries)
  if a * warm > 700:  # exp overflows, and the logarithm adds nothing
    return float(warm)
  return math.log(a * (queries - warm) + math.exp(a * warm)) / a


def price_for(calls: Callable[[float], int], budget: int, *, first: float, most: int = 24) -> float:
  """Price mu at which a stream takes a budget of calls, by bisection of log mu.

  From `first`, mu is doubled while calls are too many, or halved while they are too few, until they
  change no more, and then bisected. Calls fall with mu only on the whole, so that the nearest of
  all trials is returned.

  Args:
    calls: Calls that a run with this mu takes.
    budget: Calls that are aimed at; a trial within TOLERANCE of it ends the search.
    first: First mu, above 0.
    most: Most trials.

  Raises:
    ValueError: `first` is not above 0.
  """
  if not 0 < first < math.inf:
    raise ValueError(f'MU={first:g}, where a search begins, must be above 0.')
  trials: dict[float, int] = {}
  low = high = mu = first
  for _ in range(most):
    trials[mu] = calls(mu)
    if abs(trials[mu] - budget) <= TOLERANCE * budget:
      break
    if trials[mu] > budget:
      low = mu
      mu = mu * 2 if high <= low else math.sqrt(low * high)
    else:
      high = mu
      mu = mu / 2 if low >= high else math.sqrt(low * high)
    same = len(trials) > 2 and len({*list(trials.values())[-3:]}) == 1
    if mu in trials or (same and not low < high):  # a floor or a ceiling of the calls
      break
  return min(trials, key=lambda price: abs(trials[price] - budget))


def largest_small_cost(share: float, large: float, *, epochs: int = 1) -> float:
  """Cost of all small models below which learning pays: C_S <= C_L p / (1 + 2 E (1 - p)).

  Training on a query is counted as two answers.

  Args:
    share: Share p of the queries that the small models answer.
    large: Cost C_L of the expert.
    epochs: Passes E over each cached query.
  """
  return large * share / (1 + 2 * epochs * (1 - share))
