"""Comparison of cascades: its settings, and its results as plain values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from cascades import deferral
from cascades.bootstrap import Band, Difference, Estimate
from cascades.comparisons import McNemar
from cascades.evaluation import pooling
from cascades.evaluation.chains import ChainResult
from cascades.evaluation.grouped import GroupAccuracy
from cascades.evaluation.pooling import TaskWeights
from cascades.evaluation.quantities import Quantity
from cascades.types import Curve, DeferralRule, Metric, Predictions

MOST_RESAMPLES = 100_000
Column = Float[np.ndarray, 'N']


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a comparison.

  Attributes:
    weights: Weights of the tasks in a mean over all tasks; None for 'size' if every metric is a
      mean over examples, else 'uniform'.
    costs: FLOPs per token at which quality is reported; if empty, those of deferring 10, 20, 30
      and 50 % of the examples by the first small model.
    qualities: Qualities at which cost is reported; if empty, a quarter, half and three quarters of
      the way from the first small model to the large one.
    baseline: Small model that the others are compared with; None for all pairs.
    resamples: Number of bootstrap resamples.
    confidence: Share of the resamples inside an interval.
    seed: Seed of the resamples.
    dedupe_inputs: Keep only the first row of each distinct input.
    standard_rules: Deferral rules that `evaluate` always compares, where tables have tokens.
  """

  weights: TaskWeights | None = None
  costs: Sequence[float] = ()
  qualities: Sequence[float] = ()
  baseline: str | None = None
  resamples: int = 1000
  confidence: float = 0.95
  seed: int = 0
  dedupe_inputs: bool = False
  standard_rules: Mapping[str, DeferralRule] = dataclasses.field(
    default_factory=lambda: deferral.PAPER
  )

  def __post_init__(self) -> None:
    for name, types in (('resamples', int), ('confidence', int | float), ('seed', int)):
      value = getattr(self, name)
      if not isinstance(value, types) or isinstance(value, bool):
        raise ValueError(f'{name.upper()}={value!r:.80} is not a number of the right type.')
    for name in ('costs', 'qualities'):
      values = getattr(self, name)
      numbers = isinstance(values, Sequence) and not isinstance(values, str)
      if not numbers or not all(isinstance(value, int | float) for value in values):
        raise ValueError(f'{name.upper()}={values!r:.80} is no list of numbers such as [0.5, 0.7].')
    if self.resamples > MOST_RESAMPLES:
      raise ValueError(f'RESAMPLES={self.resamples} is above {MOST_RESAMPLES}, the maximum.')
    if self.resamples < 1 or not 0 < self.confidence < 1:
      raise ValueError(
        'Intervals need one or more resamples and a confidence between 0 and 1, found '
        f'{self.resamples} and {self.confidence}.'
      )
    if self.seed < 0:
      raise ValueError(f'The seed of the resamples is {self.seed}; it must be 0 or more.')
    for name, values in (('costs', self.costs), ('qualities', self.qualities)):
      if bad := [value for value in values if not math.isfinite(value)]:
        raise ValueError(f'The {name} must be finite numbers, found {bad[0]}.')
    if bad := [value for value in self.costs if value <= 0]:
      raise ValueError(f'The costs are FLOPs per token and must be above 0, found {bad[0]}.')


class Cascade(NamedTuple):
  """One small model under one score, over one task or all.

  Attributes:
    model: Name of the small model.
    score: Name of the score.
    task: Name of the task, or `pooling.POOLED`.
    curve: Deferral curve over its M reachable points.
    small_contribution: Contribution A1 of the kept examples to the mean quality of examples [M].
    large_contribution: Contribution A2 of the deferred examples [M].
    low: Lower end of the pointwise band of the quality at RATES.
    high: Upper end of that band.
    estimates: Every quantity but the band, with its interval.
    simultaneous: Band that holds the whole curve with the same confidence, at RATES.
  """

  model: str
  score: str
  task: str
  curve: Curve
  small_contribution: Float[np.ndarray, 'M']
  large_contribution: Float[np.ndarray, 'M']
  low: Float[np.ndarray, 'G']
  high: Float[np.ndarray, 'G']
  estimates: Mapping[Quantity, Estimate]
  simultaneous: Band


class PairedDifference(NamedTuple):
  """Difference between two cascades, model minus baseline, over all tasks.

  Attributes:
    model: Name of the small model.
    baseline: Name of the small model that is subtracted.
    score: Name of the score.
    quality: Difference of quality at RATES.
    low: Lower end of its pointwise band.
    high: Upper end of its pointwise band.
    estimates: Every other difference, with its interval and p-value.
    baseline_score: Score of the baseline, another than `score` where two scores are compared.
    simultaneous: Band that holds all differences of quality with the same confidence, at RATES.
    holm: P-values of `estimates`, adjusted by Holm over all pairs of the same family.
    mcnemar: Exact tests at the points of `Settings.costs` where every answer is right or wrong.
  """

  model: str
  baseline: str
  score: str
  quality: Float[np.ndarray, 'G']
  low: Float[np.ndarray, 'G']
  high: Float[np.ndarray, 'G']
  estimates: Mapping[Quantity, Difference]
  baseline_score: str
  simultaneous: Band
  holm: Mapping[Quantity, float] = MappingProxyType({})
  mcnemar: Mapping[float, McNemar] = MappingProxyType({})


class PairedAnswers(NamedTuple):
  """One small model's answers to all tasks beside the large one's.

  Attributes:
    small: Pooled table of the small model.
    large: Pooled table of the large model.
    small_quality: Quality of the small model's single answers.
    large_quality: Quality of the large model's single answers.
    score: The comparison's first score.
  """

  small: Predictions
  large: Predictions
  small_quality: Column
  large_quality: Column
  score: Column


class Promised(NamedTuple):
  """Promises of a policy at its threshold of one small model's score, over all tasks."""

  model: str
  score: str
  threshold: float
  text: str


class Comparison(NamedTuple):
  """Result of a comparison.

  Attributes:
    metric: Metric of the curves; that of the first task if the tasks' metrics differ.
    sizes: Number of examples by task.
    sizes_with_repeats: The same before repeated inputs were left out; empty if they were not.
    scores: Names of the scores; reports lead with the first.
    flops: FLOPs per token by small model.
    large_flops: FLOPs per token of the large model.
    settings: Settings, with defaults resolved.
    manifests: Manifests of the tables by model, in the order of the tasks.
    cascades: Every small model under every score, over all tasks and over each.
    differences: Differences between small models under every score, one family of comparisons.
    answers: Single answers by small model.
    other_metrics: Quality of each model alone by the other metrics that all tables hold.
    group_accuracy: Accuracy of groups of rows by task and small model, under the first score.
    chains: Cascades of several models and their controls on other axes of cost, if asked for.
    score_differences: Differences of each model's scores from the first, another such family.
    recipes: Small models that are training seeds of one recipe, by recipe; `differences` and
      `score_differences` are then between recipes.
    averages: Means over the seeds of each recipe under every score over all tasks, with bands over
      both seeds and examples; thresholds are nan.
    promised: Promises of a policy whose score is compared, if one is given.
  """

  metric: Metric
  sizes: Mapping[str, int]
  sizes_with_repeats: Mapping[str, int]
  scores: tuple[str, ...]
  flops: Mapping[str, float]
  large_flops: float
  settings: Settings
  manifests: Mapping[str, Sequence[Mapping[str, Any]]]
  cascades: tuple[Cascade, ...]
  differences: tuple[PairedDifference, ...]
  answers: Mapping[str, PairedAnswers]
  other_metrics: Mapping[str, Mapping[str, Estimate]]
  group_accuracy: Mapping[str, Mapping[str, GroupAccuracy]]
  chains: tuple[ChainResult, ...] = ()
  score_differences: tuple[PairedDifference, ...] = ()
  recipes: Mapping[str, Sequence[str]] = MappingProxyType({})
  averages: tuple[Cascade, ...] = ()
  promised: Promised | None = None

  def at(self, model: str, score: str | None = None, task: str = pooling.POOLED) -> Cascade:
    """Returns the cascade of these names, by default under the first score over all tasks."""
    names = (model, score or self.scores[0], task)
    return next(c for c in self.cascades if (c.model, c.score, c.task) == names)
