"""Reliability of a score: quality of both models' answers in bins of the score."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import deferral
from cascades.evaluation.comparison import Column, PairedAnswers
from cascades.types import Metric

BINS = 10
OF_LOG_PROBABILITIES = frozenset(deferral.PAPER) - {'random'}


class Reliability(NamedTuple):
  """Bins of examples, B of them, in the order of rising confidence or score.

  Attributes:
    edges: Edges of the bins [B + 1], of the confidence exp(-score), or of the score.
    center: Mean confidence, or score, of the examples of each bin; nan where there is none.
    small: Mean quality of the small model's answers in each bin.
    large: Mean quality of the large model's answers in each bin.
    examples: Number of examples of each bin.
    error: Expected calibration error, the mean distance of confidence and quality over examples;
      nan for scores and metrics that are on no scale from 0 to 1.
  """

  edges: Float[np.ndarray, 'B+1']
  center: Float[np.ndarray, 'B']
  small: Float[np.ndarray, 'B']
  large: Float[np.ndarray, 'B']
  examples: Int[np.ndarray, 'B']
  error: float


def confidence_of(name: str, score: Column) -> Column | None:
  """Confidence in [0, 1] that a score is made of; None for a score on another scale."""
  if name == 'confidence' and score.min() >= -1 and score.max() <= 0:
    return -score
  return np.exp(-score) if name in OF_LOG_PROBABILITIES and score.min() >= 0 else None


def reliability(
  answers: PairedAnswers, score: str, metric: Metric, *, bins: int = BINS
) -> Reliability:
  """Bins examples by confidence in equal widths, or by score in equal numbers.

      error = sum_b |confidence_b - quality_b / scale| count_b / N

  A negative log-probability s is the confidence exp(-s) (Guo et al. 2017,
  https://arxiv.org/abs/1706.04599). Scores on other scales are no probabilities.

  Args:
    answers: Answers of both models with the score.
    score: Name of the score.
    metric: Metric of the qualities, for its scale and direction.
    bins: Number of bins; fewer where equal scores fill several.
  """
  confidence = confidence_of(score, answers.score)
  if confidence is not None:
    values, edges = confidence, np.linspace(0, 1, bins + 1)
  else:
    values = answers.score
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1])
  number = np.clip(np.searchsorted(edges, values, side='right') - 1, 0, len(edges) - 2)
  count = np.bincount(number, minlength=len(edges) - 1)

  def mean(column: Column) -> Float[np.ndarray, 'B']:
    with np.errstate(invalid='ignore'):
      return np.bincount(number, column, minlength=len(count)) / count

  center, small = mean(values), mean(answers.small_quality)
  error = np.nan
  if confidence is not None and metric.higher_is_better and np.isfinite(metric.scale):
    error = float(np.nansum(abs(center - small / metric.scale) * count) / len(values))
  return Reliability(edges, center, small, mean(answers.large_quality), count, error)
