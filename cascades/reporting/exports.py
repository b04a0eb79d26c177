"""A comparison as plain values, for programs: JSON with the curves, and flat records for tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cascades import curves
from cascades.bootstrap import Difference, Estimate
from cascades.evaluation.comparison import (
  ABOVE_CHORD,
  AREA,
  LARGE,
  RATES,
  SMALL,
  Cascade,
  Comparison,
  Quantity,
  Versus,
)
from cascades.evaluation.grouped import Shares
from cascades.evaluation.pooling import POOLED

VERSION = 1


def records(compared: Comparison) -> Iterator[dict[str, Any]]:
  """One flat record for each number with an interval."""
  for cascade in compared.cascades:
    for quantity, estimate in cascade.estimates.items():
      names = {'model': cascade.model, 'baseline': '', 'score': cascade.score, 'task': cascade.task}
      yield {**names, **_flat(quantity, estimate), 'p': None}
  for pair in compared.versus:
    for quantity, difference in pair.differences.items():
      names = {'model': pair.model, 'baseline': pair.baseline, 'score': pair.score, 'task': POOLED}
      yield {**names, **_flat(quantity, difference)}
  for metric, models in compared.others.items():
    for model, estimate in models.items():
      names = {'model': model, 'baseline': '', 'score': '', 'task': POOLED}
      yield {**names, **_flat(Quantity(f'{metric} alone'), estimate), 'p': None}
  for task, questions in compared.questions.items():
    for model, shares in questions.items():
      names = {'model': model, 'baseline': '', 'score': compared.scores[0], 'task': task}
      for name, estimate in _estimates(shares).items():
        yield {**names, **_flat(Quantity(f'questions, {name}'), estimate), 'p': None}


def as_json(compared: Comparison, *, points: int | None = None) -> dict[str, Any]:
  """Everything as JSON: curves, bands, estimates. What is not finite becomes null.

  The first point's threshold is null too: nothing is deferred. `points` thins long curves.
  """
  metric = compared.metric
  return {
    'version': VERSION,
    'metric': {
      'name': metric.name,
      'scale': metric.scale if math.isfinite(metric.scale) else None,
      'higher_is_better': metric.higher_is_better,
    },
    'tasks': dict(compared.sizes),
    'tasks_with_repeated_inputs': dict(compared.sizes_with_repeats),
    'flops_per_token': {'small': dict(compared.flops), 'large': compared.large_flops},
    'settings': compared.settings._asdict(),
    'band_rates': RATES.tolist(),
    'cascades': [_cascade_json(cascade, points) for cascade in compared.cascades],
    'differences': [_versus_json(pair) for pair in compared.versus],
    'other_metrics': {
      metric: {model: one._asdict() for model, one in models.items()}
      for metric, models in compared.others.items()
    },
    'questions': {
      task: {
        model: {
          'questions': shares.groups,
          'estimates': [_flat(Quantity(name), x) for name, x in _estimates(shares).items()],
        }
        for model, shares in models.items()
      }
      for task, models in compared.questions.items()
    },
  }


def _estimates(shares: Shares) -> dict[str, Estimate]:
  return {
    SMALL.name: shares.small,
    LARGE.name: shares.large,
    AREA.name: shares.area,
    ABOVE_CHORD.name: shares.above_chord,
  }


def _cascade_json(cascade: Cascade, points: int | None) -> dict[str, Any]:
  keep = curves.evenly_spaced(len(cascade.kept), points or len(cascade.kept))
  curve = {name: _finite(column[keep]) for name, column in cascade.curve._asdict().items()}
  curve |= {'kept': _finite(cascade.kept[keep]), 'deferred': _finite(cascade.deferred[keep])}
  return {
    'model': cascade.model,
    'score': cascade.score,
    'task': cascade.task,
    'reachable_points': len(cascade.kept),
    'curve': curve,
    'band': {'low': _finite(cascade.low), 'high': _finite(cascade.high)},
    'estimates': [_flat(quantity, one) for quantity, one in cascade.estimates.items()],
  }


def _versus_json(pair: Versus) -> dict[str, Any]:
  return {
    'model': pair.model,
    'baseline': pair.baseline,
    'score': pair.score,
    'quality': {name: _finite(getattr(pair, name)) for name in ('quality', 'low', 'high')},
    'differences': [_flat(quantity, one) for quantity, one in pair.differences.items()],
  }


def _flat(quantity: Quantity, value: Estimate | Difference) -> dict[str, Any]:
  numbers = {name: x if math.isfinite(x) else None for name, x in value._asdict().items()}
  return {'quantity': quantity.name, 'at': quantity.at, **numbers}


def _finite(column: np.ndarray) -> list[float | None]:
  return [x if math.isfinite(x) else None for x in column.tolist()]
