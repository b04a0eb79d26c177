"""Numbers of a curve of quality against cost, as the literature defines them.

A curve is the points (cost, quality) of a cascade or a router, in any order; a higher quality is
better. It is linear between its points, since drawing between two thresholds reaches what lies
between them, and flat beyond its ends; of points of equal cost, the best one counts.

The line from (1, 0.5) over (3, 0.9) to (5, 0.7) has the mean quality 0.75 between costs of 1 and 5.
Its hull stays at 0.9, whose mean is 0.8.

>>> cost, quality = np.array([1.0, 3.0, 5.0]), np.array([0.5, 0.9, 0.7])
>>> round(area(cost, quality, low=1, high=5), 6)
0.75
>>> round(average_improvement(cost, quality, low=1, high=5), 6)
0.8

A single model of quality 0.7 and cost 4 is reached at a cost of 2, half of its own.

>>> round(quality_neutral_cost(cost, quality, best_quality=0.7, best_cost=4), 6)
0.5
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import curves, frontier

Points = Float[np.ndarray, 'M']


def ascending(cost: Points, quality: Points) -> tuple[Points, Points]:
  """Points by ascending cost, the best one of each cost."""
  if (np.diff(cost) > 0).all():  # as of most curves; sorting would take longer than all else
    return cost, quality
  order = np.lexsort((-quality, cost))
  first = np.append(True, np.diff(cost[order]) > 0)
  return cost[order][first], quality[order][first]


def hull_points(cost: Points, quality: Points) -> Int[np.ndarray, 'm']:
  """Indices of the corners of the upper concave hull up to the highest quality, by cost."""
  corners: list[int] = []

  def slope(left: int, right: int) -> float:
    return (quality[right] - quality[left]) / (cost[right] - cost[left])

  for point in frontier.best(cost, quality).tolist():
    while len(corners) > 1 and slope(corners[-1], point) >= slope(corners[-2], corners[-1]):
      corners.pop()
    corners.append(point)
  return np.array(corners)


def hull(cost: Points, quality: Points) -> tuple[Points, Points]:
  """Upper concave hull up to the highest quality: what drawing between points reaches at best."""
  corners = hull_points(cost, quality)
  return cost[corners], quality[corners]


def area(cost: Points, quality: Points, *, low: float, high: float) -> float:
  """Area under the curve from one cost to another, divided by their distance: mean quality.

  With `low` 0 and `high` the cost of the dearest model, it is the area of UniRoute, whose costs are
  shares of the dearest model's: Jitkrittum et al. 2025, https://arxiv.org/abs/2502.08773.

  Args:
    cost: Cost of each point.
    quality: Quality of each point.
    low: Lowest cost.
    high: Highest cost, above `low`.

  Returns:
    The mean quality, nan if `high` is not above `low`.
  """
  if not high > low:
    return np.nan
  x, y = ascending(cost, quality)
  ends = np.array([low, *x[(x > low) & (x < high)], high])
  return float(np.trapezoid(np.interp(ends, x, y), ends) / (high - low))


def quality_at(cost: Points, quality: Points, level: float) -> float:
  """Quality at a cost, nan below the cheapest point."""
  x, y = ascending(cost, quality)
  return float(np.interp(level, x, y, left=np.nan))


def cost_at(cost: Points, quality: Points, level: float) -> float:
  """Least cost that reaches a quality, inf if no point does."""
  reached = float(curves.first_reaching(*ascending(cost, quality), level))
  return np.inf if np.isnan(reached) else reached


def quality_neutral_cost(
  cost: Points, quality: Points, *, best_quality: float, best_cost: float
) -> float:
  """Quality-neutral cost (QNC): least cost that equals the best single model, by that model's cost.

  Jitkrittum et al. 2025, https://arxiv.org/abs/2502.08773.

  Args:
    cost: Cost of each point.
    quality: Quality of each point.
    best_quality: Quality of the best single model.
    best_cost: Cost of that model.

  Returns:
    The share, below 1 where the curve saves; inf if it never reaches the quality.
  """
  return cost_at(cost, quality, best_quality) / best_cost if best_cost else np.nan


def gap_recovered(quality: Points, *, small: float, large: float) -> Points:
  """Performance gap recovered (PGR): (q - q_S) / (q_L - q_S); nan if both models are equal.

  Ong et al. 2024 (RouteLLM), https://arxiv.org/abs/2406.18665.

  Args:
    quality: Quality of each point.
    small: Quality of the small model alone.
    large: Quality of the large model alone.
  """
  return (quality - small) / (large - small) if large != small else np.full(len(quality), np.nan)


def average_gap_recovered(calls: Points, quality: Points, *, small: float, large: float) -> float:
  """Average PGR (APGR) over the shares of calls of the large model from 0 to 1.

  The paper averages PGR at ten shares. Its code (lm-sys/RouteLLM, routellm/evals/evaluate.py)
  divides the area of quality minus q_S over the measured shares by that of the gap, which is this
  integral where the shares reach from 0 to 1.

  Args:
    calls: Share of the queries that the large model answers, at each point.
    quality: Quality of each point.
    small: Quality of the small model alone.
    large: Quality of the large model alone.
  """
  return area(calls, gap_recovered(quality, small=small, large=large), low=0.0, high=1.0)


def calls_for(calls: Points, quality: Points, share: float, *, small: float, large: float) -> float:
  """Call-performance threshold (CPT) of RouteLLM: least share of large calls for a PGR of `share`.

  The paper's definition. Its code reads the share off a line through the points, as if quality rose
  with every call; where it does, both agree.

  Args:
    calls: Share of the queries that the large model answers, at each point.
    quality: Quality of each point.
    share: Share of the gap to be recovered, such as 0.5 for CPT(50 %).
    small: Quality of the small model alone.
    large: Quality of the large model alone.

  Returns:
    The share of calls, inf if it is never reached.
  """
  return cost_at(calls, gap_recovered(quality, small=small, large=large), share)


def average_improvement(cost: Points, quality: Points, *, low: float, high: float) -> float:
  """Average improvement in quality (AIQ): mean of the non-decreasing concave hull over costs.

  Hu et al. 2024 (RouterBench), https://arxiv.org/abs/2403.12031: the area under the hull, divided
  by the distance of the costs. Their code (withmartian/routerbench, evaluation/AIQ.py) divides by
  the highest cost instead, and counts nothing below the cheapest point. Compare at equal `low` and
  `high`.

  Args:
    cost: Cost of each point.
    quality: Quality of each point.
    low: Lowest cost.
    high: Highest cost, above `low`.
  """
  return area(*hull(cost, quality), low=low, high=high)


def gain_over_random(calls: Points, quality: Points, *, small: float, large: float) -> float:
  """Gain in percent of the area over shares of large calls, over that of random deferral.

      100 (A - A_random) / |A_random|,    A_random = (q_S + q_L) / 2

  Gupta et al. 2024, https://arxiv.org/abs/2404.10136.

  Args:
    calls: Share of the queries that the large model answers, at each point.
    quality: Quality of each point.
    small: Quality of the small model alone.
    large: Quality of the large model alone.
  """
  by_random = (small + large) / 2
  gain = area(calls, quality, low=0.0, high=1.0) - by_random
  return 100 * gain / abs(by_random) if by_random else np.nan


def performance_gain(quality: Points, *, best_quality: float) -> float:
  """PerfGain: relative gain of the highest quality over the best single model.

  Li et al. 2026 (LLMRouterBench), https://arxiv.org/abs/2601.07206, whose repository defines it as
  the maximum performance improvement over the best single model (ynulihao/LLMRouterBench, README)
  and has no code for it. That it is relative to that model's quality is our reading.

  Args:
    quality: Quality of each point.
    best_quality: Quality of the best single model.
  """
  gain = float(np.max(quality)) - best_quality
  return gain / abs(best_quality) if best_quality else np.nan


def cost_saved(cost: Points, quality: Points, *, best_quality: float, best_cost: float) -> float:
  """CostSave: saved share of the best single model's cost at its quality, 1 - C / C_best.

  Li et al. 2026 (LLMRouterBench), https://arxiv.org/abs/2601.07206, whose repository defines it as
  the cost reduction at comparable accuracy to the best single model (ynulihao/LLMRouterBench,
  README) and has no code for it. C is here the cost of the cheapest point, not of a line between
  points, of that quality or above; "comparable" is read as no lower.

  Args:
    cost: Cost of each point.
    quality: Quality of each point.
    best_quality: Quality of the best single model.
    best_cost: Cost of that model.

  Returns:
    The share, below 0 where the curve is dearer; -inf if no point reaches the quality.
  """
  reaching = cost[quality >= best_quality]
  return 1 - float(np.min(reaching, initial=np.inf)) / best_cost if best_cost else np.nan


class RouterNumbers(NamedTuple):
  """Numbers of a router's curve as UniRoute reports them.

  Attributes:
    area: Area over costs as shares of the dearest model's, from 0 to 1.
    half_area: Area from 0 to 0.5, not divided by 0.5: "Area (50%)".
    qnc: Quality-neutral cost; inf if the quality is never reached.
    peak: Highest quality.
  """

  area: float
  half_area: float
  qnc: float
  peak: float


def best_single(cost: Float[np.ndarray, 'J'], quality: Float[np.ndarray, 'J']) -> int:
  """Index of the model of highest quality; of equals, the cheapest."""
  return int(np.lexsort((cost, -quality))[0])


def router_numbers(
  cost: Points, quality: Points, *,
  model_cost: Float[np.ndarray, 'J'], model_quality: Float[np.ndarray, 'J'],
) -> RouterNumbers:  # fmt: skip
  """Area, Area (50%), quality-neutral cost and peak of a router among J models.

  The curve is flat beyond its ends, so that costs below those of its cheapest point count with that
  point's quality; the paper does not say what its curves are there. Jitkrittum et al. 2025,
  https://arxiv.org/abs/2502.08773.

  Args:
    cost: Cost of each point.
    quality: Quality of each point.
    model_cost: Mean cost of each model on the same prompts.
    model_quality: Mean quality of each model on them.
  """
  high = float(model_cost.max())
  best = best_single(model_cost, model_quality)
  return RouterNumbers(
    area(cost, quality, low=0.0, high=high),
    area(cost, quality, low=0.0, high=high / 2) / 2,
    quality_neutral_cost(
      cost, quality, best_quality=model_quality[best], best_cost=model_cost[best]
    ),
    float(quality.max()),
  )
