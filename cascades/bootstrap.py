"""Paired bootstrap of deferral curves over examples.

A resample draws N examples with replacement, within each task, so that the tasks keep their sizes.
Its curve is exact, over its own reachable points. Models and rules that are given the same counts
see the same resamples: their differences are paired. Efron and Tibshirani 1993, chapters 13 to 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades.curves import Finalize, Scores, Statistics, reachable

BLOCK = 1 << 16  # values of each statistic per block: small buffers that are reused stay in cache


class Resamples(NamedTuple):
  """R resampled curves: quality at G deferral rates, area, and area above the chord."""

  quality: Float[np.ndarray, 'R G']  # linear between the resample's reachable points
  area: Float[np.ndarray, 'R']
  above_chord: Float[np.ndarray, 'R']


class Estimate(NamedTuple):
  """A value on all examples and its percentile interval."""

  value: float
  low: float
  high: float


class Difference(NamedTuple):
  """A paired difference, its percentile interval and a two-sided bootstrap p-value."""

  value: float
  low: float
  high: float
  p: float


def draw(sizes: Sequence[int], *, resamples: int, seed: int) -> Int[np.ndarray, 'R N']:
  """Number of times that each resample holds each example.

  Args:
    sizes: Number of examples of each task; the tasks follow each other.
    resamples: Number of resamples R.
    seed: Seed of the draws.

  Returns:
    Counts; each row sums to the number of examples, within each task to its size.
  """
  size = np.repeat(sizes, sizes)
  first = np.repeat(np.cumsum(sizes) - sizes, sizes)
  counts = np.empty((resamples, len(size)), np.uint16)
  generator = np.random.default_rng(seed)
  for row in counts:
    drawn = first + (generator.random(len(size)) * size).astype(np.intp)
    row[:] = np.bincount(drawn, minlength=len(size))
  return counts


def totals(counts: Int[np.ndarray, 'R N'], statistics: Statistics) -> Float[np.ndarray, 'R K']:
  """Summed statistics of each resample.

  Args:
    counts: Number of times that each resample holds each example, from `draw`.
    statistics: Statistics of each example.
  """
  return np.concatenate([block @ statistics for block in _blocks(counts)])


def resample(
  counts: Int[np.ndarray, 'R N'],
  score: Scores,
  small: Statistics,
  large: Statistics,
  finalize: Finalize,
  *,
  rates: Float[np.ndarray, 'G'],
) -> Resamples:
  """Curve of each resample, by cumulative sums over blocks of resamples.

  Takes R x N x K additions, and memory for one block.

  Args:
    counts: Number of times that each resample holds each example, from `draw`.
    score: Deferral score of each example.
    small: Statistics of the small model's answers.
    large: Statistics of the large model's answers.
    finalize: Quality of summed statistics.
    rates: Deferral rates at which the quality is read.

  Returns:
    Quality at the rates, area and area above the chord of each resample.

  Raises:
    ValueError: if there is no example, or a score is not finite.
  """
  order, deferred = reachable(score)
  points = np.append(0, deferred)
  terms = [np.ones(len(score)), *(large - small)[order].T]  # the first counts examples
  blocks = _blocks(counts)
  step = len(blocks[0])
  running, sums = np.empty((step, 1 + len(score))), np.empty((len(terms), step, len(points)))
  resampled = []
  for block in blocks:
    cumulative = running[: len(block)]
    drawn = block[:, order].astype(float)
    starts = np.vstack([np.zeros(len(block)), (block @ small).T])
    for start, term, out in zip(starts, terms, sums[:, : len(block)], strict=True):
      if not term.any():  # equal in both models, as a count of examples is
        out[:] = start[:, None]
        continue
      cumulative[:, 0] = start
      np.multiply(drawn, term, out=cumulative[:, 1:])
      np.cumsum(cumulative, axis=-1, out=cumulative)
      np.take(cumulative, points, axis=-1, out=out, mode='clip')  # other modes buffer the output
    block_sums = sums[:, : len(block)]
    quality = finalize(np.moveaxis(block_sums[1:], 0, -1))
    resampled.append(_interpolate(block_sums[0] / len(score), quality, np.asarray(rates)))
  return Resamples(*(np.concatenate(column) for column in zip(*resampled, strict=True)))


def _blocks(counts: Int[np.ndarray, 'R N']) -> list[Int[np.ndarray, 'r N']]:
  step = max(1, BLOCK // counts.shape[1])
  return np.split(counts, range(step, len(counts), step))


def _interpolate(
  points: Float[np.ndarray, 'R P'], quality: Float[np.ndarray, 'R P'], rates: Float[np.ndarray, 'G']
) -> Resamples:
  """Quality at `rates`, one search for all curves: rows shifted by 2 make one sorted array."""
  row = np.arange(len(points))[:, None]
  after = np.searchsorted((points + 2 * row).ravel(), rates + 2 * row) - points.shape[1] * row
  before = np.maximum(after - 1, 0)
  x0, x1, y0, y1 = (
    np.take_along_axis(values, index, -1)
    for values in (points, quality)
    for index in (before, after)
  )
  fraction = np.divide(rates - x0, x1 - x0, out=np.ones(x0.shape), where=x1 > x0)
  area = np.trapezoid(quality, points, axis=-1)
  chord = (quality[:, 0] + quality[:, -1]) / 2
  return Resamples(y0 + fraction * (y1 - y0), area, area - chord)


def estimate(
  value: float, resampled: Float[np.ndarray, 'R'], *, confidence: float = 0.95
) -> Estimate:
  """Value with its percentile interval.

  Args:
    value: The value on all examples.
    resampled: The value on each resample.
    confidence: Fraction of the resamples inside the interval.
  """
  low, high = interval(resampled, confidence=confidence)
  return Estimate(float(value), float(low), float(high))


def difference(
  value: float, resampled: Float[np.ndarray, 'R'], *, confidence: float = 0.95
) -> Difference:
  """Paired difference d with its percentile interval and two-sided p-value.

      p = min(1, 2 (min(#{d <= 0}, #{d >= 0}) + 1) / (R + 1))

  The added ones keep p above 0.

  Args:
    value: The difference on all examples.
    resampled: The difference on each resample, of two values on the same resamples.
    confidence: Fraction of the resamples inside the interval.
  """
  low, high = interval(resampled, confidence=confidence)
  fewer = min(np.sum(resampled <= 0), np.sum(resampled >= 0))
  p = min(1.0, 2 * (fewer + 1) / (len(resampled) + 1))
  return Difference(float(value), float(low), float(high), float(p))


def interval(
  resampled: Float[np.ndarray, 'R *G'], *, confidence: float = 0.95
) -> tuple[Float[np.ndarray, '*G'], Float[np.ndarray, '*G']]:
  """Percentile interval: leaves out (1 - confidence) / 2 of the resamples on either side.

  Its ends are values of resamples, never between two, so that infinite values (a quality that a
  resample does not reach) are allowed.

  Args:
    resampled: Values of the resamples, along the first axis.
    confidence: Fraction of the resamples inside the interval.

  Returns:
    Lower and upper end, of the shape of the other axes.
  """
  outside = int((1 - confidence) / 2 * len(resampled) + 1e-9)
  ordered = np.sort(resampled, axis=0)
  return ordered[outside], ordered[-1 - outside]
