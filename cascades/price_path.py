"""Choice of a model for each prompt at a price of cost, and the exact curve over all prices.

At a price of a unit of cost, each prompt goes to the model of

    r(x) = argmin_m  gamma_m(x) + price c_m(x),    of equals the cheapest, then the first

for predicted losses gamma and costs c. For gamma = E[loss | x] it is optimal: no other rule of the
same mean cost has a lower mean loss (Jitkrittum et al. 2025, Proposition 1,
https://arxiv.org/abs/2502.08773). For gamma off by e at most, it loses 2 e at most.

Only models on the lower convex hull of {(c_m, gamma_m(x))} are ever chosen, and a prompt moves from
one corner (c_b, gamma_b) to the next cheaper one (c_a, gamma_a) at

    price = (gamma_a - gamma_b) / (c_b - c_a),

so that the curve over all prices has a point for each of these values, and needs no grid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Losses = Float[np.ndarray, 'N J']
ModelCosts = Float[np.ndarray, '*N J']  # one number a model, or one for each prompt and model

BLOCK = 1 << 19  # entries of predicted losses that are worked on at a time


class PricePath(NamedTuple):
  """Mean cost and quality of all choices, by ascending price.

  Attributes:
    price: 0, and every price at which a prompt changes its model. Choices stay the same up to the
      next one.
    cost: Mean cost that is paid; never rising where it is the one that decides.
    quality: Mean quality.
  """

  price: Float[np.ndarray, 'M']
  cost: Float[np.ndarray, 'M']
  quality: Float[np.ndarray, 'M']


def choose(losses: Losses, cost: ModelCosts, price: float) -> Int[np.ndarray, 'N']:
  """Model of each prompt: argmin of the predicted loss plus the priced cost.

  Of equals the cheapest wins, then the first, so that an infinite price means the cheapest model.

  Args:
    losses: Predicted loss of each model on each prompt.
    cost: Cost of each model, or of each prompt and model.
    price: Loss that a unit of cost must save, 0 or more.

  Raises:
    ValueError: A number is not finite, a cost is negative, or the price is.
  """
  _check(losses, cost)
  if not price >= 0:
    raise ValueError(f'The price of cost is {price:g}; a price is 0 or more.')
  cost = np.broadcast_to(cost, losses.shape)
  if np.isinf(price):
    value, tie = cost, losses * 0
  else:
    value, tie = losses + price * cost, cost
  lowest = value == value.min(axis=1, keepdims=True)
  return np.argmin(np.where(lowest, tie, np.inf), axis=1)


def price_path(
  losses: Losses, cost: ModelCosts, quality: Losses, *, paid: ModelCosts | None = None
) -> PricePath:
  """Exact curve of quality against cost over all prices.

  Each prompt's hull is wrapped from its lowest loss to its cheapest model, all prompts at once.
  Between two points, drawing one of two prices for each prompt reaches what lies on the line.

  Args:
    losses: Predicted loss of each model on each prompt.
    cost: Cost of each model, or of each prompt and model.
    quality: Quality of each model's answer to each prompt.
    paid: Costs that are paid, where those of `cost` are estimates; None if they are the same.

  Returns:
    All points, from the price 0 on.

  Raises:
    ValueError: There is no prompt or no model, a number is not finite, or a cost is negative.
  """
  _check(losses, cost)
  if quality.shape != losses.shape or not np.isfinite(quality).all():
    raise ValueError(
      f'The qualities have the shape {quality.shape} and must be {losses.shape} finite numbers: '
      'leave out prompts that a model has not answered.'
    )
  rows = max(1, BLOCK // losses.shape[1])
  blocks = [slice(start, start + rows) for start in range(0, len(losses), rows)]
  paid = cost if paid is None else paid
  _check(losses, paid)
  of = lambda values, block: values[block] if values.ndim == 2 else values
  walked = [_walk(losses[b], of(cost, b), quality[b], of(paid, b)) for b in blocks]
  start = np.sum([first for first, _ in walked], axis=0)
  price, *steps = np.concatenate([events for _, events in walked], axis=1)
  order = np.argsort(price, kind='stable')
  price = np.append(0.0, price[order])
  last = np.append(np.diff(price) > 0, True)  # of all changes at a price
  sums = [np.cumsum(np.append(a, step[order]))[last] for a, step in zip(start, steps, strict=True)]
  return PricePath(price[last], *(total / len(losses) for total in sums))


def _walk(
  losses: Losses, cost: ModelCosts, quality: Losses, paid: ModelCosts
) -> tuple[Float[np.ndarray, '2'], Float[np.ndarray, '3 M']]:
  """Sums of cost and quality at the price 0; prices and changes of both at all corners."""
  order = np.argsort(cost, axis=-1, kind='stable')
  cost = np.broadcast_to(np.take_along_axis(cost, order, -1), losses.shape).astype(float)
  order = np.broadcast_to(order, losses.shape)
  paid = np.broadcast_to(paid, losses.shape)
  losses, quality, paid = (
    np.take_along_axis(v, order, 1).astype(float) for v in (losses, quality, paid)
  )
  at = lambda values, models: np.take_along_axis(values, models[:, None], axis=1)[:, 0]
  model = losses.argmin(axis=1)  # columns ascend in cost: the first of equals is the cheapest
  price = np.zeros(len(losses))
  first = np.array([at(paid, model).sum(), at(quality, model).sum()])
  events = []
  while True:
    active = cost[:, 0] < at(cost, model)
    cost, losses, quality, paid, model, price = (
      values if active.all() else values[active]
      for values in (cost, losses, quality, paid, model, price)
    )
    if not len(model):
      break
    most = int(model.max())  # what follows is cheaper
    saved = at(cost, model)[:, None] - cost[:, :most]
    with np.errstate(divide='ignore', invalid='ignore'):
      slope = (losses[:, :most] - at(losses, model)[:, None]) / saved
    slope = np.where(saved > 0, slope, np.inf)
    cheaper = slope.argmin(axis=1)
    price = np.maximum(price, at(slope, cheaper))
    changes = (at(values, cheaper) - at(values, model) for values in (paid, quality))
    events.append([price, *changes])
    model = cheaper
  return first, np.concatenate(events, axis=1) if events else np.empty((3, 0))


def _check(losses: Losses, cost: ModelCosts) -> None:
  """Raises ValueError unless there are losses and costs to choose by."""
  if losses.ndim != 2 or not losses.size:
    raise ValueError(f'Predicted losses of shape {losses.shape}; expected prompts by models.')
  if cost.shape not in (losses.shape, losses.shape[1:]):
    raise ValueError(
      f'Costs of shape {cost.shape} for {losses.shape[1]} models; expected one cost for each, or '
      'one for each prompt and model.'
    )
  if not np.isfinite(losses).all():
    raise ValueError('A predicted loss is not a finite number.')
  if not (np.isfinite(cost) & (cost >= 0)).all():
    bad = cost[~(np.isfinite(cost) & (cost >= 0))].flat[0]
    raise ValueError(f'A model costs {bad:g}; a cost is a finite number of 0 or more.')
