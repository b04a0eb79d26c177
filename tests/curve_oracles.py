"""Slow and literal twins of the curve and of its bootstrap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cascades.types import Curve


def literal_curve(
  score: np.ndarray, small: np.ndarray, large: np.ndarray, finalize: Callable, cost: Callable
) -> Curve:
  """Applies `score >= threshold` example by example, at every threshold there is."""
  points = []
  for threshold in [np.inf, *sorted(set(score.tolist()), reverse=True)]:
    total, deferred = np.zeros(small.shape[1]), 0
    for value, small_row, large_row in zip(score, small, large, strict=True):
      defers = value >= threshold
      deferred += int(defers)
      total = total + (large_row if defers else small_row)
    rate = deferred / len(score)
    points.append((threshold, rate, float(finalize(total)), float(cost(rate))))
  return Curve(*(np.array(column) for column in zip(*points, strict=True)))


def literal_resamples(
  counts: np.ndarray,
  score: np.ndarray,
  small: np.ndarray,
  large: np.ndarray,
  finalize: Callable,
  rates: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Writes every resample out as a list of examples and draws its curve."""
  quality, areas = [], []
  for row in counts:
    drawn = np.repeat(np.arange(len(score)), row)
    curve = literal_curve(score[drawn], small[drawn], large[drawn], finalize, lambda rate: rate)
    steps = np.diff(curve.deferral_rate)
    areas.append(sum(steps * (curve.quality[1:] + curve.quality[:-1]) / 2))
    quality.append([_between(curve, rate) for rate in rates])
  return np.array(quality), np.array(areas)


def _between(curve: Curve, rate: float) -> float:
  for x0, x1, y0, y1 in zip(
    curve.deferral_rate, curve.deferral_rate[1:], curve.quality, curve.quality[1:], strict=False
  ):
    if x0 <= rate <= x1:
      return y0 + (rate - x0) / (x1 - x0) * (y1 - y0)
  raise AssertionError(rate)
