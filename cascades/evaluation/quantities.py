"""Measured quantities of a cascade, and their paired differences between two small models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from cascades import bootstrap, curves
from cascades.bootstrap import Difference
from cascades.types import Curve, Metric

RATES = np.linspace(0, 1, 101)  # deferral rates at which bands are computed


class Quantity(NamedTuple):
  """Name of a measured value, and the cost or quality that it is measured at, if any."""

  name: str
  at: float | None = None


QUALITY = Quantity('quality')  # at RATES
SMALL, LARGE = Quantity('small alone'), Quantity('large alone')
AREA, ABOVE_CHORD = Quantity('area'), Quantity('area above chord')
QUALITY_AT = partial(Quantity, 'quality at cost')  # nan outside the curve's costs
RATE_AT = partial(Quantity, 'deferral rate at quality')  # inf if the curve does not reach it
COST_AT = partial(Quantity, 'cost at quality')  # likewise
DEFERRALS_SAVED = partial(Quantity, 'deferrals saved at quality')
FLOPS_SAVED = partial(Quantity, 'share of FLOPs saved at quality')


class Measurement(NamedTuple):
  """A quantity's value on all examples (G = () or RATES) and on each of R resamples."""

  value: Float[np.ndarray, '*G']
  resampled: Float[np.ndarray, 'R *G']


Measurements: TypeAlias = Mapping[Quantity, Measurement]


def measure(
  curve: Curve,
  resamples: bootstrap.Resamples,
  cost: curves.Cost,
  metric: Metric,
  *,
  costs: Sequence[float],
  qualities: Sequence[float],
) -> Measurements:
  """Measures every quantity of one curve.

  Args:
    curve: Curve of all examples.
    resamples: Resampled curves, with quality read at RATES, then at the deferral rates of `costs`.
    cost: Cost of a deferral rate.
    metric: Metric of the curve's quality, for its direction.
    costs: FLOPs per token at which quality is measured.
    qualities: Qualities at which deferral rate and cost are measured.
  """
  quality, at_costs = np.split(resamples.quality, [len(RATES)], axis=1)
  measurements = {
    QUALITY: Measurement(np.interp(RATES, curve.deferral_rate, curve.quality), quality),
    SMALL: Measurement(curve.quality[0], quality[:, 0]),
    LARGE: Measurement(curve.quality[-1], quality[:, -1]),
    AREA: Measurement(np.array(curves.area(curve)), resamples.area),
    ABOVE_CHORD: Measurement(np.array(curves.area_above_chord(curve)), resamples.above_chord),
  }
  for level, column in zip(costs, at_costs.T, strict=True):
    value = np.array(curves.quality_at_cost(curve, level))
    measurements[QUALITY_AT(level)] = Measurement(value, column + 0 * value)  # nan where it is nan
  sign = 1 if metric.higher_is_better else -1
  for level in qualities:
    rate = curves.first_reaching(curve.deferral_rate, sign * curve.quality, sign * level)
    rates = curves.first_reaching(RATES, sign * quality, sign * level)
    reached = np.append(rate, rates)
    reached = np.where(np.isnan(reached), np.inf, reached)
    measurements[RATE_AT(level)] = Measurement(reached[0], reached[1:])
    measurements[COST_AT(level)] = Measurement(cost(reached[:1])[0], cost(reached[1:]))
  return measurements


def share_saved(model: Float[np.ndarray, '*R'], baseline: Float[np.ndarray, '*R']) -> Any:
  """Share of the baseline's cost that the model saves: 1 - model / baseline.

  Infinite where only the model reaches the quality.
  """
  return np.where(np.isinf(baseline) & np.isfinite(model), np.inf, 1 - model / baseline)


# The quantities that are compared between two models: name of the difference, and its formula.
DIFFERENCES: Mapping[str, tuple[str, Callable[[Any, Any], Any]]] = {
  SMALL.name: (SMALL.name, np.subtract),
  AREA.name: (AREA.name, np.subtract),
  ABOVE_CHORD.name: (ABOVE_CHORD.name, np.subtract),
  QUALITY_AT().name: (QUALITY_AT().name, np.subtract),
  RATE_AT().name: (DEFERRALS_SAVED().name, lambda model, baseline: baseline - model),
  COST_AT().name: (FLOPS_SAVED().name, share_saved),
}


def differences(
  model: Measurements, baseline: Measurements, *, confidence: float
) -> Mapping[Quantity, Difference]:
  """Differences between two models measured on the same resamples."""
  paired = {}
  for quantity, measurement in model.items():
    if quantity.name in DIFFERENCES:
      name, subtract = DIFFERENCES[quantity.name]
      with np.errstate(invalid='ignore'):
        value, resampled = map(subtract, measurement, baseline[quantity])
      # Two resamples that both miss the quality do not differ.
      resampled = np.where(np.isnan(resampled) & np.isinf(measurement.resampled), 0.0, resampled)
      paired[Quantity(name, quantity.at)] = bootstrap.difference(
        value, resampled, confidence=confidence
      )
  return paired
