"""Exports of a comparison for programs: curves.json, and flat records for summary.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cascades import costs, curves
from cascades.bootstrap import Band, Difference, Estimate
from cascades.evaluation.chains import ChainCurve, ChainResult
from cascades.evaluation.comparison import Cascade, Comparison, PairedDifference
from cascades.evaluation.grouped import GroupAccuracy
from cascades.evaluation.pooling import POOLED
from cascades.evaluation.quantities import ABOVE_CHORD, AREA, LARGE, RATES, SMALL, Quantity
from cascades.reporting import escaping

VERSION = 1
ORIGIN = ('task', 'split', 'mode', 'checkpoint', 'step', 'fingerprint')  # of a table
SETTINGS = ('weights', 'costs', 'qualities', 'baseline', 'resamples', 'confidence', 'seed')

SINGLE = {'p': None, 'baseline_score': '', 'p_holm': None}  # of numbers without a baseline


def records(comparison: Comparison) -> Iterator[dict[str, Any]]:
  """Yields one flat record for each number with an interval."""
  for cascade in (*comparison.cascades, *comparison.averages):
    for quantity, estimate in cascade.estimates.items():
      names = {'model': cascade.model, 'baseline': '', 'score': cascade.score, 'task': cascade.task}
      yield {**names, **_flat(quantity, estimate), **SINGLE}
  yield from _difference_records(comparison.differences)
  for metric, models in comparison.other_metrics.items():
    for model, estimate in models.items():
      names = {'model': model, 'baseline': '', 'score': '', 'task': POOLED}
      yield {**names, **_flat(Quantity(f'{metric} alone'), estimate), **SINGLE}
  for task, accuracies in comparison.group_accuracy.items():
    for model, accuracy in accuracies.items():
      names = {'model': model, 'baseline': '', 'score': comparison.scores[0], 'task': task}
      for name, estimate in _estimates(accuracy).items():
        yield {**names, **_flat(Quantity(f'questions, {name}'), estimate), **SINGLE}
  yield from _difference_records(comparison.score_differences)
  for result in comparison.chains:
    names = {
      'model': ' > '.join(result.models), 'baseline': '', 'score': result.score, 'task': POOLED
    }  # fmt: skip
    for name, curve in result.curves.items():
      for quantity, value in curve.metrics.items():
        numbers = {'value': _number(value), 'low': None, 'high': None, **SINGLE}
        text = f'{name}, {quantity.name} in {costs.UNITS[result.axis]}'
        yield {**names, 'quantity': text, 'at': quantity.at, **numbers}
    for (name, other), difference in result.differences.items():
      text = f'{name} minus {other}, area in {costs.UNITS[result.axis]}'
      yield {**names, **_flat(Quantity(text), difference)}


def _difference_records(pairs: Iterable[PairedDifference]) -> Iterator[dict[str, Any]]:
  for pair in pairs:
    for quantity, difference in pair.estimates.items():
      names = {'model': pair.model, 'baseline': pair.baseline, 'score': pair.score, 'task': POOLED}
      family = {'baseline_score': pair.baseline_score, 'p_holm': pair.holm.get(quantity)}
      yield {**names, **_flat(quantity, difference), **family}


def to_csv(records: Iterable[Mapping[str, Any]]) -> bytes:
  """Encodes records as CSV with a header; texts are made harmless, numbers have full precision."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  for number, record in enumerate(records):
    if number == 0:
      writer.writerow(record)
    writer.writerow(
      escaping.cell(value) if isinstance(value, str) else value for value in record.values()
    )
  return buffer.getvalue().encode()


def as_json(comparison: Comparison, *, points: int | None = None) -> dict[str, Any]:
  """Converts curves, bands and estimates to JSON values; numbers that are not finite become null.

  The first point's threshold is null too: nothing is deferred.

  Args:
    comparison: The comparison.
    points: Points of each curve to keep at most, evenly spaced; None for all.
  """
  metric = comparison.metric
  return {
    'version': VERSION,
    'metric': {
      'name': metric.name,
      'scale': metric.scale if math.isfinite(metric.scale) else None,
      'higher_is_better': metric.higher_is_better,
    },
    'tables': tables(comparison.manifests),
    'tasks': dict(comparison.sizes),
    'tasks_with_repeated_inputs': dict(comparison.sizes_with_repeats),
    'flops_per_token': {'small': dict(comparison.flops), 'large': comparison.large_flops},
    'settings': {name: getattr(comparison.settings, name) for name in SETTINGS},
    'band_rates': RATES.tolist(),
    'cascades': [_cascade_json(cascade, points) for cascade in comparison.cascades],
    'differences': [_difference_json(pair) for pair in comparison.differences],
    'recipes': {name: list(seeds) for name, seeds in comparison.recipes.items()},
    'averages': [_cascade_json(cascade, points) for cascade in comparison.averages],
    'score_differences': [_difference_json(pair) for pair in comparison.score_differences],
    'other_metrics': {
      name: {model: estimate._asdict() for model, estimate in models.items()}
      for name, models in comparison.other_metrics.items()
    },
    'questions': {
      task: {
        model: {
          'questions': accuracy.groups,
          'estimates': [_flat(Quantity(name), x) for name, x in _estimates(accuracy).items()],
        }
        for model, accuracy in models.items()
      }
      for task, models in comparison.group_accuracy.items()
    },
    'chains': [_chain_json(result, points) for result in comparison.chains],
  }


def tables(manifests: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
  """Origins of the tables that are compared, by model, as JSON values."""
  return {
    model: [{name: manifest.get(name, '') for name in ORIGIN} for manifest in own]
    for model, own in manifests.items()
  }


def _estimates(accuracy: GroupAccuracy) -> dict[str, Estimate]:
  return {
    SMALL.name: accuracy.small,
    LARGE.name: accuracy.large,
    AREA.name: accuracy.area,
    ABOVE_CHORD.name: accuracy.above_chord,
  }


def _cascade_json(cascade: Cascade, points: int | None) -> dict[str, Any]:
  size = len(cascade.curve.quality)
  shown = curves.evenly_spaced(size, points or size)
  curve = {name: _finite(column[shown]) for name, column in cascade.curve._asdict().items()}
  curve |= {
    'kept': _finite(cascade.small_contribution[shown]),
    'deferred': _finite(cascade.large_contribution[shown]),
  }
  return {
    'model': cascade.model,
    'score': cascade.score,
    'task': cascade.task,
    'reachable_points': size,
    'curve': curve,
    'band': {'low': _finite(cascade.low), 'high': _finite(cascade.high)},
    'simultaneous_band': _band(cascade.simultaneous),
    'estimates': [_flat(quantity, estimate) for quantity, estimate in cascade.estimates.items()],
  }


def _chain_json(result: ChainResult, points: int | None) -> dict[str, Any]:
  return {
    'models': list(result.models),
    'score': result.score,
    'axis': result.axis,
    'unit': costs.UNITS[result.axis],
    'charge_discarded': result.discarded,
    'fit_split': result.fit_split,
    'singles': {name: single._asdict() for name, single in result.singles.items()},
    'best_single': result.best_single,
    'curves': {name: _chain_curve_json(curve, points) for name, curve in result.curves.items()},
    'uncharged_decisions': list(result.uncharged),
    'differences': [
      {'curve': name, 'control': other, **_flat(Quantity('area'), difference)}
      for (name, other), difference in result.differences.items()
    ],
  }


def _chain_curve_json(curve: ChainCurve, points: int | None) -> dict[str, Any]:
  """Curve of a chain; a rule's threshold is null where the answer is final.

  The `outer` one, see `ChainCurve`, is null where nobody is above it.
  """
  size = len(curve.quality)
  shown = curves.evenly_spaced(size, points or size)
  return {
    'points': size,
    **{name: _finite(getattr(curve, name)[shown]) for name in ('cost', 'quality')},
    'shares': curve.shares[shown].tolist(),
    'unanswered': curve.unanswered[shown].tolist(),
    'rules': [
      {
        'models': np.flatnonzero(~np.isnan(row)).tolist(),
        'thresholds': _finite(row[~np.isnan(row)]),
      }
      for row in curve.thresholds[shown]
    ]
    if curve.thresholds.size
    else [],
    **{
      name: _finite(values[shown]) if len(values) else []
      for name, values in (
        ('outer', curve.outer),
        ('fit_cost', curve.fit_cost),
        ('fit_quality', curve.fit_quality),
      )
    },
    'metrics': [
      {'quantity': quantity.name, 'at': quantity.at, 'value': _number(value)}
      for quantity, value in curve.metrics.items()
    ],
  }


def _difference_json(pair: PairedDifference) -> dict[str, Any]:
  return {
    'model': pair.model,
    'baseline': pair.baseline,
    'score': pair.score,
    'quality': {name: _finite(getattr(pair, name)) for name in ('quality', 'low', 'high')},
    'differences': [
      {**_flat(quantity, difference), 'p_holm': pair.holm.get(quantity)}
      for quantity, difference in pair.estimates.items()
    ],
    'baseline_score': pair.baseline_score,
    'simultaneous_band': _band(pair.simultaneous),
    'mcnemar': [{'cost': cost, **test._asdict()} for cost, test in pair.mcnemar.items()],
  }


def _band(band: Band) -> dict[str, list[float | None]]:
  return {name: _finite(column) for name, column in band._asdict().items()}


def _flat(quantity: Quantity, value: Estimate | Difference) -> dict[str, Any]:
  numbers = {name: _number(x) for name, x in value._asdict().items()}
  return {'quantity': quantity.name, 'at': quantity.at, **numbers}


def _number(value: float) -> float | None:
  return value if math.isfinite(value) else None


def _finite(column: np.ndarray) -> list[float | None]:
  return [_number(x) for x in column.tolist()]
