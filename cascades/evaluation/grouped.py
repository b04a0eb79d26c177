"""Accuracy of groups of rows that count as correct only together, as the answers of MultiRC.

The share of groups whose rows are all correct (exact match by question) is no sum over rows. But in
the order of one score the rows of a group defer one after another, and each makes its group
correct, wrong, or neither: given the order, there are row statistics that sum to a curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cascades import bootstrap, curves, metrics
from cascades.bootstrap import Estimate
from cascades.curves import Scores, Statistics
from cascades.evaluation import pooling
from cascades.metrics import ratio
from cascades.predictions import alignment
from cascades.types import Predictions


class GroupAccuracy(NamedTuple):
  """Share of groups whose rows are all correct, for each model alone and for their cascade.

  Attributes:
    groups: Number of groups.
    small: Accuracy of the small model alone.
    large: Accuracy of the large model alone.
    area: Mean accuracy of the cascade over the deferral rate of rows.
    above_chord: Area above the line between the two models alone.
  """

  groups: int
  small: Estimate
  large: Estimate
  area: Estimate
  above_chord: Estimate


def statistics(
  score: Scores,
  groups: Sequence[str],
  small: Bool[np.ndarray, 'N'],
  large: Bool[np.ndarray, 'N'],
) -> tuple[Statistics, Statistics]:
  """Row statistics (groups correct, groups) of both models, for a curve under this score only.

      small_i = (v_0, 1) if i is the first of its group to defer, (0, 0) if not
      large_i = small_i + (v_j - v_(j-1), 0) if i is the j-th

  v_j is 1 if all rows of the group are correct once j of them have deferred, else 0. Sums
  telescope, so rows of equal score may defer in any order. Rows must not be resampled one by one:
  `accuracy` draws whole groups.

  Args:
    score: Score of each row [N]; higher defers first.
    groups: Group of each row [N].
    small: Rows that the small model answers correctly [N].
    large: Rows that the large model answers correctly [N].

  Returns:
    Statistics [N, 2] of the small and of the large model, for `curves.deferral_curve`.
  """
  order, _ = curves.reachable(score)
  number = _numbers(groups)
  rows = order[np.argsort(number[order], kind='stable')]  # group by group, as they defer
  group = number[rows]
  change = small[rows].astype(int) - large[rows].astype(int)  # of how many rows are wrong
  earlier = np.cumsum(np.bincount(group, change)) - np.bincount(group, change)
  after = np.bincount(group, ~small[rows])[group] + np.cumsum(change) - earlier[group]
  before = after - change
  first = np.diff(group, prepend=-1) > 0
  by_small = np.zeros((len(rows), 2))
  by_small[rows] = np.stack([first & (before == 0), first], axis=1)
  by_large = by_small.copy()
  by_large[rows, 0] += (after == 0).astype(int) - (before == 0)
  return by_small, by_large


def accuracy(
  score: Scores,
  groups: Sequence[str],
  small: Bool[np.ndarray, 'N'],
  large: Bool[np.ndarray, 'N'],
  *,
  resamples: int,
  confidence: float,
  seed: int,
) -> GroupAccuracy:
  """Group accuracy with percentile intervals over resampled groups; see `statistics`."""
  by_small, by_large = statistics(score, groups, small, large)
  curve = curves.deferral_curve(score, by_small, by_large, ratio, lambda rate: rate)
  number = _numbers(groups)
  size = 1 + int(number.max())
  counts = bootstrap.draw([size], resamples=resamples, seed=seed)[:, number]
  drawn = bootstrap.resample(counts, score, by_small, by_large, ratio, rates=np.zeros(1))
  low, high = drawn.quality[:, 0], ratio(bootstrap.totals(counts, by_large))
  # A resample of groups has more or fewer rows than the table, and its curve is as much wider.
  area = drawn.area / counts.mean(axis=1)

  def estimate(value: float, resampled: Float[np.ndarray, 'R']) -> Estimate:
    return bootstrap.estimate(value, resampled, confidence=confidence)

  return GroupAccuracy(
    groups=size,
    small=estimate(float(curve.quality[0]), low),
    large=estimate(float(curve.quality[-1]), high),
    area=estimate(curves.area(curve), area),
    above_chord=estimate(curves.area_above_chord(curve), area - (low + high) / 2),
  )


def accuracy_by_task(
  scores: Mapping[str, Scores],
  small: Mapping[str, Sequence[Predictions]],
  large: Sequence[Predictions],
  *,
  resamples: int,
  confidence: float,
  seed: int,
) -> dict[str, dict[str, GroupAccuracy]]:
  """Group accuracy of each task with groups and of each small model.

  Args:
    scores: Each small model's score of the pooled rows of all tasks [N].
    small: Each small model's tables, in the order of `large`.
    large: The large model's tables.
    resamples: Number of bootstrap resamples.
    confidence: Share of the resamples inside an interval.
    seed: Seed of the resamples.

  Returns:
    Accuracy by task and small model, without tasks that have no groups or no accuracy.
  """
  by_task = {}
  tables = zip(large, pooling.task_rows(large), *small.values(), strict=True)
  for table, rows, *answered in tables:
    if not table.groups or not has_accuracy(table):
      continue
    by_task[table.task] = {
      name: accuracy(
        scores[name][rows],
        table.groups,
        _correct(own),
        _correct(table),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
      )
      for name, own in zip(small, answered, strict=True)
    }
  return by_task


def has_accuracy(table: Predictions) -> bool:
  """Tells if accuracy is stored or follows from texts; scores without options have neither."""
  return table.manifest['mode'] == 'predict' or metrics.accuracy.name in table.statistics


def _correct(table: Predictions) -> Bool[np.ndarray, 'N']:
  judged = alignment.judge(table, metrics.accuracy)
  return metrics.accuracy.finalize(judged.statistics[metrics.accuracy.name]) == 1


def _numbers(groups: Sequence[str]) -> Int[np.ndarray, 'N']:
  """Each row's group as a number, counting from 0 in order of appearance."""
  numbers: dict[str, int] = {}
  return np.array([numbers.setdefault(name, len(numbers)) for name in groups])
