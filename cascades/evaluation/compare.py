"""Compares cascades: several small models, one large, every score, over all tasks and each.

Takes tables whose rows agree (`tables.Tables.read`) and returns numbers with bootstrap intervals.
All models and scores see the same resamples, so their differences are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cascades import bootstrap, costs, curves
from cascades import metrics as metric_library
from cascades.bootstrap import Estimate
from cascades.evaluation import grouped, paired, pooling, quantities, seeds
from cascades.evaluation.comparison import (
  Cascade,
  Column,
  Comparison,
  PairedAnswers,
  Settings,
)
from cascades.evaluation.pooling import StatisticsLayout, Subset
from cascades.evaluation.quantities import LARGE, QUALITY, RATES, Measurements
from cascades.evaluation.seeds import Sampled
from cascades.predictions import alignment
from cascades.types import Metric, Predictions, Score

MOST_COUNTS = 1 << 33  # resamples times rows, of two bytes each


class _Candidate(NamedTuple):
  """A small model beside the large one: statistics [N, K] and scores of the rows of all tasks."""

  name: str
  cost: curves.Cost
  small: curves.Statistics
  large: curves.Statistics
  scores: Mapping[str, Column]
  answers: PairedAnswers


class _Measured(NamedTuple):
  """Cascades of all tasks, and what their differences need, by model and score over all rows."""

  cascades: list[Cascade]
  quantities: dict[tuple[str, str], Measurements]
  right: dict[tuple[str, str], Mapping[float, Column]]  # by cost
  sampled: dict[tuple[str, str], Sampled]


def compare(
  small: Mapping[str, Sequence[Predictions]],
  large: Sequence[Predictions],
  *,
  scores: Mapping[str, Score],
  settings: Settings,
  metric: Metric | str | None = None,
  recipes: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Comparison:
  """Compares every small model under every score.

  Args:
    small: Each small model's tables by name, with the tasks and rows of `large`.
    large: The large model's tables, one per task.
    scores: Scores by name; the first is the one that reports lead with.
    settings: Settings of the comparison.
    metric: Metric, or its name, of all tasks; None for the first metric of each table. Answers are
      judged from their texts where the tables do not hold its statistics.
    recipes: Small models that are training seeds of one recipe, by the recipe's name. Differences
      are then those of recipes, averaged over seeds.

  Returns:
    Every number that a report shows.

  Raises:
    ValueError: There is no score, a score is not one finite number per row, the baseline is
      unknown, the metric cannot judge the answers, or intervals are impossible.
  """
  if not scores:
    raise ValueError('There is no score to defer by: give one or more rules or scores by name.')
  by_recipe = seeds.members([*small], recipes)
  pairs = _pairs([*by_recipe], settings.baseline)
  first, *rest = scores
  sizes_with_repeats = _sizes(large) if settings.dedupe_inputs else {}
  if settings.dedupe_inputs:
    small, large = without_repeats(small, large)
  metrics = [task_metric(metric, table) for table in large]
  models = {**small, LARGE.name: large}
  judged = {name: list(map(alignment.judge, own, metrics)) for name, own in models.items()}
  layout = pooling.layout([*judged.values()], metrics, settings.weights)
  candidates = [
    _candidate(name, judged[name], judged[LARGE.name], scores, metrics, layout) for name in small
  ]
  settings = _resolve(settings, candidates[0], layout)
  counts = _draw(large, settings)
  measured = _measure_all(candidates, scores, layout, counts, settings, metrics[0])
  averages = _add_recipes(measured, by_recipe, candidates, scores, settings, metrics[0])
  differences = partial(
    paired.differences, measured.quantities, right=measured.right, confidence=settings.confidence
  )
  return Comparison(
    metric=metrics[0],
    sizes=_sizes(large),
    sizes_with_repeats=sizes_with_repeats,
    scores=tuple(scores),
    flops={name: _flops(own) for name, own in small.items()},
    large_flops=_flops(large),
    settings=settings,
    manifests={name: [table.manifest for table in own] for name, own in models.items()},
    cascades=tuple(measured.cascades),
    averages=tuple(averages),
    recipes={name: own for name, own in by_recipe.items() if len(own) > 1},
    differences=differences([((a, key), (b, key)) for (a, b), key in product(pairs, scores)]),
    score_differences=differences(
      [((name, key), (name, first)) for name, key in product(by_recipe, rest)]
    ),
    answers={candidate.name: candidate.answers for candidate in candidates},
    other_metrics=_other_metrics(models, metrics, settings),
    group_accuracy=grouped.accuracy_by_task(
      {candidate.name: candidate.answers.score for candidate in candidates},
      small,
      large,
      resamples=settings.resamples,
      confidence=settings.confidence,
      seed=settings.seed,
    ),
  )


def alone(
  models: Mapping[str, Sequence[Predictions]], metrics: Sequence[Metric], settings: Settings
) -> dict[str, Estimate]:
  """Quality of each model by itself over all tasks.

  Args:
    models: Each model's tables by name; they hold the statistics of the metrics.
    metrics: Metric of each task.
    settings: Settings of the comparison, for the weights of the tasks and the resamples.
  """
  layout = pooling.layout([*models.values()], metrics, settings.weights)
  finalize = layout.subsets[0].finalize
  counts = _draw(next(iter(models.values())), settings)
  estimates = {}
  for name, tables in models.items():
    statistics = layout.stack(pooling.statistics(tables, metrics))
    estimates[name] = bootstrap.estimate(
      float(finalize(statistics.sum(axis=0))),
      finalize(bootstrap.totals(counts, statistics)),
      confidence=settings.confidence,
    )
  return estimates


def _pairs(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
  """(model, baseline): each model with every earlier one, or all others with the one named."""
  if baseline is None:
    return [(model, earlier) for earlier, model in combinations(models, 2)]
  if baseline not in models:
    raise ValueError(f'The baseline {baseline!r} is none of the small models: {", ".join(models)}.')
  return [(name, baseline) for name in models if name != baseline]


def _sizes(tables: Sequence[Predictions]) -> dict[str, int]:
  return {table.task: len(table.ids) for table in tables}


def _draw(tables: Sequence[Predictions], settings: Settings) -> Int[np.ndarray, 'R N']:
  sizes = [len(table.ids) for table in tables]
  if sum(sizes) < 2:
    raise ValueError(
      f'There is {sum(sizes)} row to compare on, of task {tables[0].task!r}; an interval needs two '
      'or more, and many to be of use.'
    )
  if settings.resamples * sum(sizes) > MOST_COUNTS:
    raise ValueError(
      f'{settings.resamples} resamples of {sum(sizes)} rows take '
      f'{2 * settings.resamples * sum(sizes) / 2**30:.0f} GiB of memory; for so many rows at most '
      f'{MOST_COUNTS // sum(sizes)} resamples are possible.'
    )
  return bootstrap.draw(sizes, resamples=settings.resamples, seed=settings.seed)


def without_repeats(
  small: Mapping[str, Sequence[Predictions]], large: Sequence[Predictions]
) -> tuple[dict[str, list[Predictions]], list[Predictions]]:
  """Keeps the first row of each distinct input, the same rows in every table of a task."""
  rows = list(map(alignment.distinct_inputs, large))
  distinct = {name: list(map(alignment.select, own, rows)) for name, own in small.items()}
  return distinct, list(map(alignment.select, large, rows))


def task_metric(metric: Metric | str | None, table: Predictions) -> Metric:
  """Metric of one task.

  Args:
    metric: Metric, or its name; None for the first one of the table.
    table: Table of the task.

  Raises:
    ValueError: The metric is unknown, or cannot judge scored answers.
  """
  if isinstance(metric, Metric):
    return metric
  name = table.manifest['metrics'][0] if metric is None else metric
  if table.manifest['mode'] == 'score' and name not in table.statistics:
    raise ValueError(
      f'Scored answers of task {table.task!r} were not written by the model, so that {name!r} '
      f'cannot judge them; the table has {", ".join(table.statistics)}.'
    )
  return metric_library.by_name(name)


def _candidate(
  name: str,
  small: Sequence[Predictions],
  large: Sequence[Predictions],
  scores: Mapping[str, Score],
  metrics: Sequence[Metric],
  layout: StatisticsLayout,
) -> _Candidate:
  pooled = pooling.pool(small)
  by_small, by_large = pooling.statistics(small, metrics), pooling.statistics(large, metrics)
  small_quality, large_quality = (
    np.concatenate(
      [metric.finalize(statistics) for metric, statistics in zip(metrics, by_task, strict=True)]
    )
    for by_task in (by_small, by_large)
  )
  columns = {key: _score(score, pooled, key) for key, score in scores.items()}
  return _Candidate(
    name=name,
    cost=partial(costs.cascade, small=_flops(small), large=_flops(large)),
    small=layout.stack(by_small),
    large=layout.stack(by_large),
    scores=columns,
    answers=PairedAnswers(
      small=pooled,
      large=pooling.pool(large),
      small_quality=small_quality,
      large_quality=large_quality,
      score=next(iter(columns.values())),
    ),
  )


def _score(score: Score, table: Predictions, name: str) -> Column:
  values = np.asarray(score(table), float)
  if values.shape != (len(table.ids),):
    raise ValueError(
      f'The score {name!r} must give one number for each of {len(table.ids)} rows; its result has '
      f'shape {values.shape}.'
    )
  return values


def _flops(tables: Sequence[Predictions]) -> float:
  flops = {float(table.manifest['flops_per_token']) for table in tables}
  if len(flops) > 1:
    raise ValueError(
      f'One model has {sorted(flops)} FLOPs per token in the manifests of its tasks; infer all '
      'tasks with the same model.'
    )
  return flops.pop()


def _resolve(settings: Settings, first: _Candidate, layout: StatisticsLayout) -> Settings:
  """Fills in the weights, and costs and qualities between the first small model and the large."""
  finalize = layout.subsets[0].finalize
  ends = finalize(np.stack([first.small.sum(axis=0), first.large.sum(axis=0)]))
  levels = ends[0] + np.array([0.25, 0.5, 0.75]) * (ends[1] - ends[0])
  defaults = first.cost(np.array([0.1, 0.2, 0.3, 0.5]))
  return dataclasses.replace(
    settings,
    weights=layout.weights,
    costs=tuple(settings.costs) or tuple(defaults.tolist()),
    qualities=tuple(settings.qualities) or tuple(float(f'{level:.3g}') for level in levels),
  )


def _sample(
  candidate: _Candidate,
  score_name: str,
  subset: Subset,
  counts: Int[np.ndarray, 'R N'],
  settings: Settings,
) -> Sampled:
  """Curve of one score over one subset of the rows, and its resamples."""
  rows, columns = subset.rows, subset.columns
  score, answers = candidate.scores[score_name][rows], candidate.answers
  statistics = candidate.small[rows, columns], candidate.large[rows, columns]
  curve = curves.deferral_curve(score, *statistics, subset.finalize, candidate.cost)
  rates = np.append(RATES, np.interp(settings.costs, curve.cost, curve.deferral_rate))
  return Sampled(
    curve,
    bootstrap.resample(counts[:, rows], score, *statistics, subset.finalize, rates=rates),
    *curves.decomposition(score, answers.small_quality[rows], answers.large_quality[rows]),
  )


def _measure_all(
  candidates: Sequence[_Candidate],
  scores: Iterable[str],
  layout: StatisticsLayout,
  counts: Int[np.ndarray, 'R N'],
  settings: Settings,
  metric: Metric,
) -> _Measured:
  """Every candidate under every score, over all tasks and each."""
  measured = _Measured([], {}, {}, {})
  for candidate, score, subset in product(candidates, scores, layout.subsets):
    drawn = _sample(candidate, score, subset, counts, settings)
    names = candidate.name, score, subset.task
    cascade, values = _measure(names, drawn, candidate.cost, settings, metric)
    measured.cascades.append(cascade)
    if subset.task == pooling.POOLED:  # those of every task would fill the memory
      name, answers = (candidate.name, score), candidate.answers
      measured.quantities[name], measured.sampled[name] = values, drawn
      qualities = answers.small_quality, answers.large_quality
      measured.right[name] = paired.right_at(
        settings.costs, cascade.curve, candidate.scores[score], *qualities
      )
  return measured


def _add_recipes(
  measured: _Measured,
  by_recipe: Mapping[str, Sequence[str]],
  candidates: Sequence[_Candidate],
  scores: Iterable[str],
  settings: Settings,
  metric: Metric,
) -> list[Cascade]:
  """Cascades of recipes with several seeds, whose quantities are added to `measured`."""
  averages = []
  costs_of = {candidate.name: candidate.cost for candidate in candidates}
  for (number, (recipe, models)), score in product(enumerate(by_recipe.items()), scores):
    if len(models) == 1:
      continue
    drawn = seeds.average(
      [measured.sampled[model, score] for model in models], seed=(settings.seed, number)
    )
    names = recipe, score, pooling.POOLED
    cascade, values = _measure(names, drawn, costs_of[models[0]], settings, metric)
    averages.append(cascade)
    measured.quantities[recipe, score], measured.right[recipe, score] = values, {}
  return averages


def _measure(
  names: tuple[str, str, str], drawn: Sampled, cost: curves.Cost, settings: Settings, metric: Metric
) -> tuple[Cascade, Measurements]:
  """Cascade of a model, score and task, and its quantities on all rows and on the resamples."""
  curve, resamples, by_small, by_large = drawn
  measurements = quantities.measure(
    curve, resamples, cost, metric, costs=settings.costs, qualities=settings.qualities
  )
  low, high = bootstrap.interval(measurements[QUALITY].resampled, confidence=settings.confidence)
  simultaneous = bootstrap.simultaneous(*measurements[QUALITY], confidence=settings.confidence)
  estimates = {
    quantity: bootstrap.estimate(float(value), resampled, confidence=settings.confidence)
    for quantity, (value, resampled) in measurements.items()
    if quantity != QUALITY
  }
  return Cascade(
    *names, curve, by_small, by_large, low, high, estimates, simultaneous
  ), measurements


def _other_metrics(
  models: Mapping[str, Sequence[Predictions]], metrics: Sequence[Metric], settings: Settings
) -> dict[str, dict[str, Estimate]]:
  """Every model alone by the metrics that all tables hold, besides those that are compared."""
  stored = [set(table.statistics) for tables in models.values() for table in tables]
  names = sorted(set.intersection(*stored) - {metric.name for metric in metrics})
  return {
    name: alone(models, [metric_library.by_name(name)] * len(metrics), settings)
    for name in names
    if metric_library.find(name)
  }
