"""Paired differences of area between a chain and its controls, with bootstrap intervals.

Thresholds stay as they were chosen: a resample draws from the reported rows alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from cascades import bootstrap, curve_metrics, curves
from cascades.bootstrap import Difference
from cascades.evaluation import chains
from cascades.evaluation.applied import Applied
from cascades.evaluation.chains import ChainCurve
from cascades.frontier import Rule

MOST_RULES = 200  # of a curve that are resampled, evenly spaced
MOST_VALUES = 1 << 25  # of rows and rules at a time
PAIRS = (
  (chains.CHAIN, chains.PAIRS),
  (chains.CHAIN, chains.RANDOM_ROUTER),
  (chains.BEST, chains.PAIRS),
  (chains.PAIRS, chains.RANDOM_ROUTER),
  (chains.ABSTAINING, chains.CHAIN),
)


def pairs(curves: Collection[str], routers: Iterable[str] = ()) -> list[tuple[str, str]]:
  """Curves of these names to compare, each with what it should beat.

  Args:
    curves: Names of the curves.
    routers: Names of the routers among the deciders.
  """
  by_router = [
    pair
    for name in routers
    for pair in (
      (chains.CHAIN, chains.ROUTER.format(name)),
      (chains.UNITED.format(name), chains.CHAIN),
      (chains.UNITED.format(name), chains.ROUTER.format(name)),
    )
  ]
  return [pair for pair in (*PAIRS, *by_router) if set(pair) <= set(curves)]


def area_differences(
  by_name: Mapping[str, Applied],
  compared: Sequence[tuple[str, str]],
  counts: Int[np.ndarray, 'R N'],
  *,
  limits: tuple[float, float],
  sign: int,
  confidence: float,
) -> dict[tuple[str, str], Difference]:
  """Differences of area of pairs of curves: the first curve minus the second.

  Args:
    by_name: Rules of each curve on the reported rows.
    compared: Pairs of names.
    counts: Number of times that each resample holds each row.
    limits: Lowest and highest cost of the area.
    sign: 1 if a higher quality is better, else -1.
    confidence: Share of the resamples inside an interval.
  """
  everything = np.ones((1, counts.shape[1]), int)
  areas = {
    name: [resampled_areas(by_name[name], drawn, limits, sign) for drawn in (everything, counts)]
    for name in sorted({name for pair in compared for name in pair})
  }
  return {
    (first, second): bootstrap.difference(
      float(sign * (areas[first][0] - areas[second][0])[0]),
      sign * (areas[first][1] - areas[second][1]),
      confidence=confidence,
    )
    for first, second in compared
  }


def rules_of(curve: ChainCurve) -> list[Rule]:
  """Rules of a curve from its thresholds, at most `MOST_RULES` of them."""
  rules = []
  for row in curve.thresholds[curves.evenly_spaced(len(curve.thresholds), MOST_RULES)]:
    models = np.flatnonzero(~np.isnan(row))
    rules.append(Rule(tuple(models.tolist()), tuple(row[models[:-1]].tolist())))
  return rules


def resampled_areas(
  applied: Applied,
  counts: Int[np.ndarray, 'R N'],
  limits: tuple[float, float],
  sign: int = 1,
) -> Float[np.ndarray, 'R']:
  """Area under the curve of some rules on each resample, higher is better."""
  N, S = applied.statistics.shape[1:]
  step = max(1, MOST_VALUES // (N * (S + 1)))
  blocks = []
  for start in range(0, len(applied.decisions), step):
    values = []
    for decide in applied.decisions[start : start + step]:
      answers, cost = decide()
      values += [applied.statistics[answers, np.arange(N)], cost[:, None]]
    blocks.append(bootstrap.totals(counts, np.hstack(values)))
  sums = np.hstack(blocks).reshape(len(counts), len(applied.decisions), S + 1)
  quality, cost = sign * applied.finalize(sums[..., :S]), sums[..., S] / N
  low, high = limits
  return np.array(
    [curve_metrics.area(*points, low=low, high=high) for points in zip(cost, quality, strict=True)]
  )
