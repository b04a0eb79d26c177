"""Paired differences between cascades on the same resamples, as a family of comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from cascades import bootstrap, comparisons
from cascades.curves import Scores
from cascades.evaluation import quantities
from cascades.evaluation.comparison import PairedDifference
from cascades.evaluation.quantities import QUALITY, Measurements
from cascades.types import Curve

CascadeName = tuple[str, str]  # model and score


def differences(
  measurements: Mapping[CascadeName, Measurements],
  pairs: Iterable[tuple[CascadeName, CascadeName]],
  *,
  right: Mapping[CascadeName, Mapping[float, Bool[np.ndarray, 'N']]],
  confidence: float,
) -> tuple[PairedDifference, ...]:
  """Differences of all quantities, with p-values adjusted over all pairs.

  Args:
    measurements: Quantities of each cascade, measured on the same resamples.
    pairs: Cascades to compare, and those that are subtracted from them: one family of comparisons.
    right: Right answers of each cascade by cost, from `right_at`.
    confidence: Fraction of the resamples inside an interval.
  """
  compared = []
  for first, second in pairs:
    minuend, subtrahend = measurements[first], measurements[second]
    quality, resampled = map(np.subtract, minuend[QUALITY], subtrahend[QUALITY])
    compared.append(
      PairedDifference(
        first[0],
        second[0],
        first[1],
        quality,
        *bootstrap.interval(resampled, confidence=confidence),
        estimates=quantities.differences(minuend, subtrahend, confidence=confidence),
        baseline_score=second[1],
        simultaneous=bootstrap.simultaneous(quality, resampled, confidence=confidence),
        mcnemar={
          cost: comparisons.mcnemar(answers, right[second][cost])
          for cost, answers in right[first].items()
          if cost in right[second]
        },
      )
    )
  adjusted = {
    quantity: comparisons.holm(np.array([pair.estimates[quantity].p for pair in compared]))
    for quantity in (compared[0].estimates if compared else ())
  }
  return tuple(
    pair._replace(holm={quantity: float(p[number]) for quantity, p in adjusted.items()})
    for number, pair in enumerate(compared)
  )


def right_at(
  costs: Sequence[float],
  curve: Curve,
  score: Scores,
  small: Float[np.ndarray, 'N'],
  large: Float[np.ndarray, 'N'],
) -> dict[float, Bool[np.ndarray, 'N']]:
  """Right answers of a cascade at its last point of at most each cost.

  Args:
    costs: Costs of the points.
    curve: Deferral curve of the score.
    score: Deferral score of each example.
    small: Quality of the small model's answer to each example.
    large: Quality of the large model's answer to each example.

  Returns:
    True for right answers, by cost; without the costs below every point, and empty if an answer is
    neither right nor wrong.
  """
  if not np.isin([small, large], (0, 1)).all():
    return {}
  points = np.searchsorted(curve.cost, costs, side='right') - 1
  return {
    cost: np.where(score >= curve.threshold[point], large, small) == 1
    for cost, point in zip(costs, points, strict=True)
    if point >= 0
  }
