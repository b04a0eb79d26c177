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
from scipy import sparse

from cascades.curves import Finalize, Scores, Statistics, evenly_spaced, reachable

BLOCK = 1 << 16  # counts per block: small buffers that are reused stay in cache
LEAST = 16  # resamples per block at least, which are multiplied together
MOST_POINTS = 1 << 14  # of a resampled curve


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


class Band(NamedTuple):
  """Lower and upper ends at each of G deferral rates."""

  low: Float[np.ndarray, 'G']
  high: Float[np.ndarray, 'G']


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
  """Curve of each resample, by a sparse product with blocks of resamples and a cumulative sum.

  Takes R x N x (1 + K) additions at most, and memory for one block: examples where both models
  have the same statistics cost nothing. Where a score has more than MOST_POINTS distinct values,
  the curves have as many points, evenly spaced. The area of a mean of N examples changes thereby
  by about 1 / (MOST_POINTS sqrt(12 N)) of the spread of one example, and its interval by less than
  a thousandth.

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
  deferred = deferred[evenly_spaced(len(deferred), MOST_POINTS)]
  # Few examples are added one by one, so that rounding does not depend on equal scores.
  ends = deferred if len(score) > MOST_POINTS else np.arange(1, 1 + len(score))
  points = np.searchsorted(np.append(0, ends), np.append(0, deferred))
  steps = np.diff(ends, prepend=0)
  step = np.empty(len(score), np.int32)  # that defers each example
  step[order] = np.repeat(np.arange(len(steps), dtype=np.int32), steps)
  terms = np.column_stack([np.ones(len(score)), large - small])  # the first counts examples
  varying = np.flatnonzero(terms.any(axis=0))  # a count of examples does not
  sums_by_step = _by_step(terms[:, varying], step, len(steps))
  resampled = []
  for block in _blocks(counts):
    drawn = np.ascontiguousarray(block.T, float)
    sums = np.zeros((terms.shape[1], len(block), 1 + len(steps)))
    sums[:, :, 0] = np.vstack([np.zeros(len(block)), (block @ small).T])
    by_step = sums_by_step @ drawn
    sums[varying, :, 1:] = by_step.reshape(-1, len(steps), len(block)).swapaxes(1, 2)
    np.cumsum(sums, axis=-1, out=sums)
    sums = np.take(sums, points, axis=-1)
    quality = finalize(np.moveaxis(sums[1:], 0, -1))
    resampled.append(_interpolate(sums[0] / len(score), quality, np.asarray(rates)))
  return Resamples(*(np.concatenate(column) for column in zip(*resampled, strict=True)))


def _by_step(
  terms: Float[np.ndarray, 'N V'], step: Int[np.ndarray, 'N'], steps: int
) -> sparse.csc_array:
  """Matrix [V x steps, N] that sums each of the V terms of the examples of each step."""
  example, term = np.nonzero(terms)
  starts = np.append(0, np.cumsum(np.count_nonzero(terms, axis=1)))
  rows = term.astype(np.int32) * steps + step[example]
  shape = terms.shape[1] * steps, len(terms)
  return sparse.csc_array((terms[example, term], rows, starts), shape=shape)


def _blocks(counts: Int[np.ndarray, 'R N']) -> list[Int[np.ndarray, 'r N']]:
  step = max(LEAST, BLOCK // counts.shape[1])
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


def over_seeds(resamples: Sequence[Resamples], *, seed: Sequence[int]) -> Resamples:
  """Resamples of both training seeds and examples, for the mean over S seeds of one recipe.

      resampled_r = m_r + sqrt(S / (S - 1)) (d_r - m_r)

  m_r is the mean of all seeds on the examples of resample r, d_r that of S seeds drawn with
  replacement. The plain d_r has a variance over seeds that is (S - 1) / S of the unbiased one; the
  factor removes this. What remains with few seeds: percentiles of the resamples are those of a
  normal distribution, not of Student's t with S - 1 degrees of freedom, so that intervals are too
  narrow where seeds vary more than examples. Owen 2007, "The pigeonhole bootstrap", shows that
  resampling both factors is otherwise mildly conservative.

  Args:
    resamples: Curves of each seed on the same resamples of the same examples.
    seed: Seed of the draws.

  Returns:
    The resampled means; of one seed, its resamples themselves.
  """
  if len(resamples) == 1:
    return resamples[0]
  count, generator = len(resamples), np.random.default_rng(seed)
  drawn = generator.integers(count, size=(len(resamples[0].area), count))
  weights = (drawn[:, :, None] == np.arange(count)).mean(axis=1)
  factor = np.sqrt(count / (count - 1))

  def mean(*columns: Float[np.ndarray, 'R *G']) -> Float[np.ndarray, 'R *G']:
    overall = np.mean(columns, axis=0)
    return overall + factor * (np.einsum('rs,sr...->r...', weights, np.array(columns)) - overall)

  return Resamples(*map(mean, *resamples))


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


def simultaneous(
  value: Float[np.ndarray, 'G'], resampled: Float[np.ndarray, 'R G'], *, confidence: float = 0.95
) -> Band:
  """Band that holds a whole curve with the given confidence: max-t.

      value_g +- c s_g,    c = quantile over r of max_g |resampled_rg - value_g| / s_g

  s_g is the standard deviation of the resamples. The band is widened where the pointwise interval
  of `interval` reaches further, as it may where the resamples are skewed. Romano and Wolf 2005.

  Args:
    value: The curve on all examples.
    resampled: The curve of each resample.
    confidence: Fraction of the resamples whose curve lies inside the band from end to end.
  """
  spread = resampled.std(axis=0)
  varying = spread > 1e-9 * spread.max()  # others differ by their rounding only
  deviation = np.abs(resampled - value)[:, varying] / spread[varying]
  outside = int((1 - confidence) * len(resampled) + 1e-9)
  width = np.sort(deviation.max(axis=1, initial=0))[-1 - outside] * spread
  low, high = interval(resampled, confidence=confidence)
  return Band(np.minimum(low, value - width), np.maximum(high, value + width))
