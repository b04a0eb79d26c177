"""Paired differences of area between a chain and its controls, with bootstrap intervals.

Thresholds stay as they were chosen: a resample draws from the reported rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from cascades import bootstrap, curve_metrics, curves, frontier
from cascades.bootstrap import Difference
from cascades.curves import Finalize
from cascades.evaluation import chains
from cascades.evaluation.chains import ChainCurve
from cascades.frontier import Outcomes, Rule

MOST_RULES = 200  # of a curve that are resampled, evenly spaced
MOST_VALUES = 1 << 25  # of rows and rules at a time
PAIRS = (
  (chains.CHAIN, chains.PAIRS),
  (chains.CHAIN, chains.RANDOM_ROUTER),
  (chains.BEST, chains.PAIRS),
  (chains.PAIRS, chains.RANDOM_ROUTER),
)


def area_differences(
  by_name: Mapping[str, ChainCurve],
  outcomes: Outcomes,
  statistics: Float[np.ndarray, 'K N S'],
  finalize: Finalize,
  counts: Int[np.ndarray, 'R N'],
  *,
  limits: tuple[float, float],
  sign: int,
  confidence: float,
) -> dict[tuple[str, str], Difference]:
  """Differences of area for those of `PAIRS` that are at hand: the first curve minus the second.

  Args:
    by_name: Curves with thresholds by name.
    outcomes: Answers to the reported rows.
    statistics: Statistics of each model's answers.
    finalize: Quality of summed statistics.
    counts: Number of times that each resample holds each row.
    limits: Lowest and highest cost of the area.
    sign: 1 if a higher quality is better, else -1.
    confidence: Share of the resamples inside an interval.
  """
  names = {name for pair in PAIRS if set(pair) <= set(by_name) for name in pair}

  def signed(sums: Float[np.ndarray, '*M S']) -> Float[np.ndarray, '*M']:
    return sign * finalize(sums)

  everything = np.ones((1, counts.shape[1]), int)
  areas = {
    name: [
      resampled_areas(rules_of(by_name[name]), outcomes, statistics, signed, drawn, limits)
      for drawn in (everything, counts)
    ]
    for name in sorted(names)
  }
  return {
    (first, second): bootstrap.difference(
      float(sign * (areas[first][0] - areas[second][0])[0]),
      sign * (areas[first][1] - areas[second][1]),
      confidence=confidence,
    )
    for first, second in PAIRS
    if {first, second} <= names
  }


def rules_of(curve: ChainCurve) -> list[Rule]:
  """Rules of a curve from its thresholds, at most `MOST_RULES` of them."""
  rules = []
  for row in curve.thresholds[curves.evenly_spaced(len(curve.thresholds), MOST_RULES)]:
    models = np.flatnonzero(~np.isnan(row))
    rules.append(Rule(tuple(models.tolist()), tuple(row[models[:-1]].tolist())))
  return rules


def resampled_areas(
  rules: Sequence[Rule],
  outcomes: Outcomes,
  statistics: Float[np.ndarray, 'K N S'],
  finalize: Finalize,
  counts: Int[np.ndarray, 'R N'],
  limits: tuple[float, float],
) -> Float[np.ndarray, 'R']:
  """Area under the curve of some rules on each resample."""
  N, S = statistics.shape[1:]
  step = max(1, MOST_VALUES // (N * (S + 1)))
  blocks = []
  for start in range(0, len(rules), step):
    values = []
    for rule in rules[start : start + step]:
      answers, cost = frontier.apply(outcomes, rule)
      values += [statistics[answers, np.arange(N)], cost[:, None]]
    blocks.append(bootstrap.totals(counts, np.hstack(values)))
  sums = np.hstack(blocks).reshape(len(counts), len(rules), S + 1)
  quality, cost = finalize(sums[..., :S]), sums[..., S] / N
  low, high = limits
  return np.array(
    [curve_metrics.area(*points, low=low, high=high) for points in zip(cost, quality, strict=True)]
  )
