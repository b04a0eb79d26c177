"""Compares cascades: several small models, one large, every score, over all tasks and per task.

Takes tables whose rows agree (`tables.join`) and returns numbers with bootstrap intervals. All
models and scores see the same resamples, so what differs between them is paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from cascades import bootstrap, costs, curves
from cascades.bootstrap import Difference, Estimate
from cascades.evaluation import pooling
from cascades.evaluation.grouped import Shares
from cascades.evaluation.pooling import Group, Layout, Weights
from cascades.predictions import alignment
from cascades.types import Curve, Metric, Predictions, Score

Column = Float[np.ndarray, 'N']

RATES = np.linspace(0, 1, 101)  # where bands are drawn


class Settings(NamedTuple):
  """How to compare.

  `weights` of None: by size if every metric is a mean over examples, else all tasks the same. No
  `costs`: those of deferring 10, 20, 30 and 50 %. No `qualities`: a quarter, half and three
  quarters of the way from the first small model to the large one. No `baseline`: all pairs.
  """

  weights: Weights | None = None
  costs: Sequence[float] = ()
  qualities: Sequence[float] = ()
  baseline: str | None = None
  resamples: int = 1000
  confidence: float = 0.95
  seed: int = 0


def _share_saved(ours: Float[np.ndarray, '*R'], theirs: Float[np.ndarray, '*R']) -> Any:
  """1 - ours / theirs; inf if only ours is in reach."""
  return np.where(np.isinf(theirs) & np.isfinite(ours), np.inf, 1 - ours / theirs)


class Quantity(NamedTuple):
  """Something measured of a cascade, at a fixed cost or quality where it has one."""

  name: str
  at: float | None = None


QUALITY = Quantity('quality')  # at RATES
SMALL, LARGE = Quantity('small alone'), Quantity('large alone')
AREA, ABOVE_CHORD = Quantity('area'), Quantity('area above chord')
QUALITY_AT = partial(Quantity, 'quality at cost')
RATE_AT = partial(Quantity, 'deferral rate at quality')  # inf is out of reach, as for the cost
COST_AT = partial(Quantity, 'cost at quality')
DEFERRALS_SAVED = partial(Quantity, 'deferrals saved at quality')
FLOPS_SAVED = partial(Quantity, 'share of FLOPs saved at quality')

# What is compared between two models, and how.
PAIRED: Mapping[str, tuple[str, Callable[[Any, Any], Any]]] = {
  SMALL.name: (SMALL.name, np.subtract),
  AREA.name: (AREA.name, np.subtract),
  ABOVE_CHORD.name: (ABOVE_CHORD.name, np.subtract),
  QUALITY_AT().name: (QUALITY_AT().name, np.subtract),
  RATE_AT().name: (DEFERRALS_SAVED().name, lambda ours, theirs: theirs - ours),
  COST_AT().name: (FLOPS_SAVED().name, _share_saved),
}


class Cascade(NamedTuple):
  """One small model under one score, over one task or all."""

  model: str
  score: str
  task: str
  curve: Curve
  kept: Float[np.ndarray, 'M']  # A1, of single examples' quality
  deferred: Float[np.ndarray, 'M']  # A2
  low: Float[np.ndarray, 'G']  # pointwise band of the quality at RATES
  high: Float[np.ndarray, 'G']
  estimates: Mapping[Quantity, Estimate]


class Versus(NamedTuple):
  """Paired differences, model minus baseline, under one score over all tasks."""

  model: str
  baseline: str
  score: str
  quality: Float[np.ndarray, 'G']  # at RATES, with its pointwise band
  low: Float[np.ndarray, 'G']
  high: Float[np.ndarray, 'G']
  differences: Mapping[Quantity, Difference]


class Answers(NamedTuple):
  """One small model's rows of all tasks beside the large one's, and the first score."""

  small: Predictions
  large: Predictions
  small_quality: Column  # of single examples
  large_quality: Column
  score: Column


class Comparison(NamedTuple):
  metric: Metric
  sizes: Mapping[str, int]  # by task
  scores: tuple[str, ...]
  flops: Mapping[str, float]  # per token, by small model
  large_flops: float
  settings: Settings  # with what was None filled in
  cascades: tuple[Cascade, ...]
  versus: tuple[Versus, ...]
  answers: Mapping[str, Answers]
  others: Mapping[str, Mapping[str, Estimate]]  # by metric and model: each model `alone`
  questions: Mapping[str, Mapping[str, Shares]] = MappingProxyType({})  # by task and small model
  sizes_with_repeats: Mapping[str, int] = MappingProxyType({})  # if repeated inputs are left out

  def at(self, model: str, score: str | None = None, task: str = pooling.POOLED) -> Cascade:
    """The cascade of these names; under the first score unless told."""
    names = (model, score or self.scores[0], task)
    return next(c for c in self.cascades if (c.model, c.score, c.task) == names)


class _Model(NamedTuple):
  """One small model and the large one, over the rows of all tasks."""

  name: str
  cost: curves.Cost
  small: curves.Statistics
  large: curves.Statistics
  scores: Mapping[str, Column]
  answers: Answers


class _Measured(NamedTuple):
  """A quantity on all examples and on the resamples."""

  value: Float[np.ndarray, '*G']
  resampled: Float[np.ndarray, 'R *G']


_Measurements: TypeAlias = Mapping[Quantity, _Measured]


def compare(
  small: Mapping[str, Sequence[Predictions]],
  large: Sequence[Predictions],
  *,
  scores: Mapping[str, Score],
  metrics: Sequence[Metric],
  settings: Settings,
) -> Comparison:
  """Every model under every score. Each model's tables, and the metrics, follow `large`'s tasks."""
  _check(settings, scores)
  metric, pairs = metrics[0], _pairs([*small], settings.baseline)
  large = list(map(alignment.judge, large, metrics))
  small = {name: list(map(alignment.judge, ours, metrics)) for name, ours in small.items()}
  layout = pooling.layout([large, *small.values()], metrics, settings.weights)
  models = [_model(name, ours, large, scores, metrics, layout) for name, ours in small.items()]
  settings = _filled(settings._replace(weights=layout.weights), models[0], layout.groups[0])
  sizes = {table.task: len(table.ids) for table in large}
  counts = bootstrap.draw([*sizes.values()], resamples=settings.resamples, seed=settings.seed)
  cascades, measured = [], {}
  for model in models:
    for score in scores:
      for group in layout.groups:
        cascade, values = _cascade(model, score, group, counts, settings, metric)
        cascades.append(cascade)
        if group.task == pooling.POOLED:
          measured[model.name, score] = values
  return Comparison(
    metric=metric,
    sizes=sizes,
    scores=tuple(scores),
    flops={name: _flops(ours) for name, ours in small.items()},
    large_flops=_flops(large),
    settings=settings,
    cascades=tuple(cascades),
    versus=tuple(_versus(measured, pairs, scores, settings.confidence)),
    answers={model.name: model.answers for model in models},
    others={},
  )


def alone(
  models: Mapping[str, Sequence[Predictions]], metrics: Sequence[Metric], *, settings: Settings
) -> Mapping[str, Estimate]:
  """The quality of each model by itself, over all tasks."""
  layout = pooling.layout([*models.values()], metrics, settings.weights)
  sizes = [len(table.ids) for table in next(iter(models.values()))]
  counts = bootstrap.draw(sizes, resamples=settings.resamples, seed=settings.seed)
  finalize, found = layout.groups[0].finalize, {}
  for name, answered in models.items():
    own = layout.stack(pooling.statistics(answered, metrics))
    found[name] = bootstrap.estimate(
      float(finalize(own.sum(axis=0))),
      finalize(bootstrap.totals(counts, own)),
      confidence=settings.confidence,
    )
  return found


def _check(settings: Settings, scores: Mapping[str, Score]) -> None:
  if not scores:
    raise ValueError('There is nothing to defer by: give one or more rules or scores by name.')
  if settings.resamples < 1 or not 0 < settings.confidence < 1:
    raise ValueError(
      'Intervals need one or more resamples and a confidence between 0 and 1, found '
      f'{settings.resamples} and {settings.confidence}.'
    )


def _model(
  name: str,
  small: Sequence[Predictions],
  large: Sequence[Predictions],
  scores: Mapping[str, Score],
  metrics: Sequence[Metric],
  layout: Layout,
) -> _Model:
  pooled = pooling.pool(small)
  ours, theirs = pooling.statistics(small, metrics), pooling.statistics(large, metrics)
  single = [
    np.concatenate([metric.finalize(one) for metric, one in zip(metrics, own, strict=True)])
    for own in (ours, theirs)
  ]
  columns = {key: _scored(score, pooled, key) for key, score in scores.items()}
  return _Model(
    name=name,
    cost=partial(costs.cascade, small=_flops(small), large=_flops(large)),
    small=layout.stack(ours),
    large=layout.stack(theirs),
    scores=columns,
    answers=Answers(
      small=pooled,
      large=pooling.pool(large),
      small_quality=single[0],
      large_quality=single[1],
      score=next(iter(columns.values())),
    ),
  )


def _scored(score: Score, table: Predictions, name: str) -> Column:
  values = np.asarray(score(table), float)
  if values.shape != (len(table.ids),):
    raise ValueError(
      f'The score {name!r} must give one number for each of {len(table.ids)} rows; its result has '
      f'shape {values.shape}.'
    )
  return values


def _flops(model: Sequence[Predictions]) -> float:
  found = {float(table.manifest['flops_per_token']) for table in model}
  if len(found) > 1:
    raise ValueError(
      f'One model has {sorted(found)} FLOPs per token in the manifests of its tasks; infer all '
      'tasks with the same model.'
    )
  return found.pop()


def _filled(settings: Settings, model: _Model, everything: Group) -> Settings:
  """Chooses the costs and qualities to report from the first model, if none are given."""
  ends = everything.finalize(np.stack([model.small.sum(axis=0), model.large.sum(axis=0)]))
  levels = ends[0] + np.array([0.25, 0.5, 0.75]) * (ends[1] - ends[0])
  usual = model.cost(np.array([0.1, 0.2, 0.3, 0.5]))
  return settings._replace(
    costs=tuple(settings.costs) or tuple(usual.tolist()),
    qualities=tuple(settings.qualities) or tuple(float(f'{level:.3g}') for level in levels),
  )


def _cascade(
  model: _Model,
  score: str,
  group: Group,
  counts: Int[np.ndarray, 'R N'],
  settings: Settings,
  metric: Metric,
) -> tuple[Cascade, _Measurements]:
  rows, columns = group.rows, group.columns
  drawn_from = (model.scores[score][rows], model.small[rows, columns], model.large[rows, columns])
  curve = curves.deferral_curve(*drawn_from, group.finalize, model.cost)
  fixed = np.interp(settings.costs, curve.cost, curve.deferral_rate)
  rates = np.append(RATES, fixed)
  resamples = bootstrap.resample(counts[:, rows], *drawn_from, group.finalize, rates=rates)
  measured = _measure(curve, resamples, model.cost, settings, metric)
  low, high = bootstrap.interval(measured[QUALITY].resampled, confidence=settings.confidence)
  kept, deferred = curves.decomposition(
    model.scores[score][rows], model.answers.small_quality[rows], model.answers.large_quality[rows]
  )
  estimates = {
    quantity: bootstrap.estimate(float(value), resampled, confidence=settings.confidence)
    for quantity, (value, resampled) in measured.items()
    if quantity != QUALITY
  }
  cascade = Cascade(model.name, score, group.task, curve, kept, deferred, low, high, estimates)
  return cascade, measured


def _measure(
  curve: Curve,
  resamples: bootstrap.Resamples,
  cost: curves.Cost,
  settings: Settings,
  metric: Metric,
) -> _Measurements:
  quality, at_costs = np.split(resamples.quality, [len(RATES)], axis=1)
  measured = {
    QUALITY: _Measured(np.interp(RATES, curve.deferral_rate, curve.quality), quality),
    SMALL: _Measured(curve.quality[0], quality[:, 0]),
    LARGE: _Measured(curve.quality[-1], quality[:, -1]),
    AREA: _Measured(np.array(curves.area(curve)), resamples.area),
    ABOVE_CHORD: _Measured(np.array(curves.area_above_chord(curve)), resamples.above_chord),
  }
  for fixed, column in zip(settings.costs, at_costs.T, strict=True):
    value = np.array(curves.quality_at_cost(curve, fixed))
    measured[QUALITY_AT(fixed)] = _Measured(value, column + 0 * value)  # nan where it is nan
  sign = 1 if metric.higher_is_better else -1
  for level in settings.qualities:
    rate = curves.first_reaching(curve.deferral_rate, sign * curve.quality, sign * level)
    rates = curves.first_reaching(RATES, sign * quality, sign * level)
    reach = np.append(rate, rates)
    reach = np.where(np.isnan(reach), np.inf, reach)
    measured[RATE_AT(level)] = _Measured(reach[0], reach[1:])
    measured[COST_AT(level)] = _Measured(cost(reach[:1])[0], cost(reach[1:]))
  return measured


def _versus(
  measured: Mapping[tuple[str, str], _Measurements],
  pairs: Sequence[tuple[str, str]],
  scores: Iterable[str],
  confidence: float,
) -> Iterator[Versus]:
  for ours, theirs in pairs:
    for score in scores:
      one, other = measured[ours, score], measured[theirs, score]
      apart, resampled = map(np.subtract, one[QUALITY], other[QUALITY])
      low, high = bootstrap.interval(resampled, confidence=confidence)
      differences = _differences(one, other, confidence)
      yield Versus(ours, theirs, score, apart, low, high, differences)


def _pairs(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
  """(model, baseline): each model with every one before it, or all others with the one named."""
  if baseline is None:
    return [(ours, theirs) for theirs, ours in combinations(models, 2)]
  if baseline not in models:
    raise ValueError(f'The baseline {baseline!r} is none of the small models: {", ".join(models)}.')
  return [(name, baseline) for name in models if name != baseline]


def _differences(
  ours: _Measurements, theirs: _Measurements, confidence: float
) -> Mapping[Quantity, Difference]:
  found = {}
  for quantity, one in ours.items():
    if quantity.name in PAIRED:
      name, apart = PAIRED[quantity.name]
      with np.errstate(invalid='ignore'):
        value, resampled = map(apart, one, theirs[quantity])
      # Two that are both out of reach do not differ.
      resampled = np.where(np.isnan(resampled) & np.isinf(one.resampled), 0.0, resampled)
      found[Quantity(name, quantity.at)] = bootstrap.difference(
        value, resampled, confidence=confidence
      )
  return found
