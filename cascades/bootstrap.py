"""Paired bootstrap of deferral curves over examples.

A resample draws as many examples as there are, with replacement and within each task, so that the
tasks keep their sizes; its curve is built anew, exactly, over its own reachable points. Models and
rules that are given the same counts see the same resamples: their differences are paired. Efron
and Tibshirani 1993, chapters 13 to 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades.curves import Finalize, Score, Statistics, reachable

BLOCK = 1 << 16  # numbers of each statistic at once: little memory, used again, is fast


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
  """How often each resample holds each example; tasks of these sizes follow each other."""
  size = np.repeat(sizes, sizes)
  first = np.repeat(np.cumsum(sizes) - sizes, sizes)
  counts = np.empty((resamples, len(size)), np.uint16)
  generator = np.random.default_rng(seed)
  for row in counts:
    drawn = first + (generator.random(len(size)) * size).astype(np.intp)
    row[:] = np.bincount(drawn, minlength=len(size))
  return counts


def totals(counts: Int[np.ndarray, 'R N'], statistics: Statistics) -> Float[np.ndarray, 'R K']:
  """The summed statistics of each resample."""
  return np.concatenate([block @ statistics for block in _blocks(counts)])


def resample(
  counts: Int[np.ndarray, 'R N'],
  score: Score,
  small: Statistics,
  large: Statistics,
  finalize: Finalize,
  *,
  rates: Float[np.ndarray, 'G'],
) -> Resamples:
  """The curve of each resample, by cumulative sums over blocks of resamples.

  Takes R x N x K additions, and memory for one block; the quality is read at `rates`.
  """
  order, deferred = reachable(score)
  points = np.append(0, deferred)
  terms = [np.ones(len(score)), *(large - small)[order].T]  # the first counts examples
  blocks = _blocks(counts)
  step = len(blocks[0])
  running, sums = np.empty((step, 1 + len(score))), np.empty((len(terms), step, len(points)))
  parts = []
  for block in blocks:
    here = running[: len(block)]
    drawn = block[:, order].astype(float)
    starts = np.vstack([np.zeros(len(block)), (block @ small).T])
    for start, term, out in zip(starts, terms, sums[:, : len(block)], strict=True):
      if not term.any():  # both models alike, as in a count of examples
        out[:] = start[:, None]
        continue
      here[:, 0] = start
      np.multiply(drawn, term, out=here[:, 1:])
      np.cumsum(here, axis=-1, out=here)
      np.take(here, points, axis=-1, out=out, mode='clip')  # other modes buffer the output
    found = sums[:, : len(block)]
    quality = finalize(np.moveaxis(found[1:], 0, -1))
    parts.append(_read(found[0] / len(score), quality, np.asarray(rates)))
  return Resamples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _blocks(counts: Int[np.ndarray, 'R N']) -> list[Int[np.ndarray, 'r N']]:
  step = max(1, BLOCK // counts.shape[1])
  return np.split(counts, range(step, len(counts), step))


def _read(
  at: Float[np.ndarray, 'R P'], quality: Float[np.ndarray, 'R P'], rates: Float[np.ndarray, 'G']
) -> Resamples:
  """Reads each curve at all rates at once: rows shifted by 2 make one sorted line to search."""
  row = np.arange(len(at))[:, None]
  after = np.searchsorted((at + 2 * row).ravel(), rates + 2 * row) - at.shape[1] * row
  before = np.maximum(after - 1, 0)
  x0, x1, y0, y1 = (
    np.take_along_axis(values, index, -1) for values in (at, quality) for index in (before, after)
  )
  share = np.divide(rates - x0, x1 - x0, out=np.ones(x0.shape), where=x1 > x0)
  area = np.trapezoid(quality, at, axis=-1)
  chord = (quality[:, 0] + quality[:, -1]) / 2
  return Resamples(y0 + share * (y1 - y0), area, area - chord)


def estimate(
  value: float, resampled: Float[np.ndarray, 'R'], *, confidence: float = 0.95
) -> Estimate:
  """A value with its percentile interval."""
  low, high = interval(resampled, confidence=confidence)
  return Estimate(float(value), float(low), float(high))


def difference(
  value: float, resampled: Float[np.ndarray, 'R'], *, confidence: float = 0.95
) -> Difference:
  """A paired difference d and its test: p = 2 min(#{d <= 0}, #{d >= 0}) / R.

  One is added to each count and to R, so that p is never 0; it is at most 1.
  """
  low, high = interval(resampled, confidence=confidence)
  fewer = min(np.sum(resampled <= 0), np.sum(resampled >= 0))
  p = min(1.0, 2 * (fewer + 1) / (len(resampled) + 1))
  return Difference(float(value), float(low), float(high), float(p))


def interval(
  resampled: Float[np.ndarray, 'R *G'], *, confidence: float = 0.95
) -> tuple[Float[np.ndarray, '*G'], Float[np.ndarray, '*G']]:
  """Leaves out (1 - confidence) / 2 of the resamples on either side.

  Its ends are resamples, never between two, so that infinite values (a quality that a resample
  does not reach) have their place too.
  """
  outside = int((1 - confidence) / 2 * len(resampled) + 1e-9)
  ordered = np.sort(resampled, axis=0)
  return ordered[outside], ordered[-1 - outside]
