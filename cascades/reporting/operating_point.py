"""The operating point of a comparison in one sentence: the first line of a report.

The rule, stated beside every use of it: of all thresholds of all small models under the first
score, take the cheapest whose quality is at least 98 % of that of the best single model. Where it
costs no less than a single model of such quality, take the threshold of the highest quality, if
its band lies above the best single model. Else no threshold beats the best single model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cascades.evaluation.comparison import Cascade, Comparison
from cascades.evaluation.quantities import LARGE, RATES
from cascades.reporting import summary

RETAINED = 0.98  # share of the best single model's quality


class OperatingPoint(NamedTuple):
  """A model or a threshold of a cascade: its quality with a pointwise band, and its cost."""

  model: str
  rate: float
  threshold: float
  quality: float
  low: float
  high: float
  cost: float


class Headline(NamedTuple):
  """Sentence that answers what to do, the rule behind it, and the threshold, if there is one."""

  sentence: str
  rule: str
  point: OperatingPoint | None


def headline(comparison: Comparison) -> Headline:
  """Chooses the operating point by the rule of this module, and says it in words."""
  show, sign = summary.quality(comparison), _sign(comparison)
  singles = list(_singles(comparison))
  best = min(singles, key=lambda single: (-sign * single.quality, single.cost))
  enough = _enough(sign * best.quality)
  cheapest_single = min(
    (single for single in singles if sign * single.quality >= enough), key=lambda s: s.cost
  )
  percent = f'{100 * comparison.settings.confidence:g} %'
  rows = 'The threshold was chosen on the rows that it is reported on.'
  cascades = [comparison.at(model) for model in comparison.flops]
  if reaching := [point for cascade in cascades if (point := _cheapest(cascade, sign, enough))]:
    point = min(reaching, key=lambda point: (point.cost, -sign * point.quality))
    if point.cost < cheapest_single.cost:
      rule = (
        f'Rule: the cheapest threshold with a {_goal(comparison, best)}. '
        f'{_interval(comparison, point, percent)} {rows}'
      )
      return Headline(_sentence(comparison, point, best), rule, point)
  alone = f'{_name(best)} alone reaches {show(best.quality)}'
  peaks = [_peak(cascade, sign) for cascade in cascades if len(cascade.curve.quality) > 2]
  if not peaks:
    return Headline('There is no threshold to choose: all rows have one score.', f'{alone}.', None)
  point = max(peaks, key=lambda point: (sign * point.quality, -point.cost))
  bound = point.low if sign > 0 else point.high
  if sign * bound > sign * best.quality:
    rule = (
      'Rule: the threshold of the highest quality, because '
      f'{_name(cheapest_single)} alone has a {_goal(comparison, best)}, at less cost. '
      f'{_interval(comparison, point, percent)} {rows}'
    )
    return Headline(_sentence(comparison, point, best), rule, point)
  rule = (
    f'{alone[0].upper()}{alone[1:]}, at {_share(best.cost / comparison.large_flops)} of the cost '
    'of the large model. The '
    f'best threshold reaches {show(point.quality)} [{show(point.low)}, {show(point.high)}] at '
    f'{_share(point.cost / comparison.large_flops)}. Rule: a threshold beats it with a '
    f'{_goal(comparison, best)} at less cost than any single model of such quality, or with a '
    f'{percent} band above it.'
  )
  return Headline('No threshold beats the best single model here.', rule, None)


def _sign(comparison: Comparison) -> int:
  return 1 if comparison.metric.higher_is_better else -1


def _enough(signed: float) -> float:
  """Quality that retains 98 % of a quality; an error, which is negative here, may be 1 / 0.98."""
  return signed * (RETAINED if signed > 0 else 1 / RETAINED)


def _singles(comparison: Comparison) -> Iterator[OperatingPoint]:
  for model, flops in comparison.flops.items():
    cascade = comparison.at(model)
    yield _point(cascade, 0)._replace(cost=flops)
  yield _point(cascade, -1)._replace(model=LARGE.name, cost=comparison.large_flops)


def _cheapest(cascade: Cascade, sign: int, enough: float) -> OperatingPoint | None:
  """Cheapest point of the quality where both models answer."""
  inner = slice(1, -1)
  reached = np.flatnonzero(sign * cascade.curve.quality[inner] >= enough)
  if not len(reached):
    return None
  return _point(cascade, 1 + int(reached[np.argmin(cascade.curve.cost[inner][reached])]))


def _peak(cascade: Cascade, sign: int) -> OperatingPoint:
  """OperatingPoint of the highest quality where both models answer."""
  return _point(cascade, 1 + int(np.argmax(sign * cascade.curve.quality[1:-1])))


def _point(cascade: Cascade, index: int) -> OperatingPoint:
  curve = cascade.curve
  rate = float(curve.deferral_rate[index])
  return OperatingPoint(
    cascade.model,
    rate,
    float(curve.threshold[index]),
    float(curve.quality[index]),
    float(np.interp(rate, RATES, cascade.low)),
    float(np.interp(rate, RATES, cascade.high)),
    float(curve.cost[index]),
  )


def _name(single: OperatingPoint) -> str:
  return 'the large model' if single.model == LARGE.name else single.model


def _goal(comparison: Comparison, best: OperatingPoint) -> str:
  higher = comparison.metric.higher_is_better
  if higher and best.quality > 0:
    return f'quality of at least {100 * RETAINED:g} % of that of {_name(best)}'
  sign = _sign(comparison)
  enough = summary.quality(comparison)(sign * _enough(sign * best.quality))
  return f'{comparison.metric.name} of at {"least" if higher else "most"} {enough}'


def _sentence(comparison: Comparison, point: OperatingPoint, best: OperatingPoint) -> str:
  by = f' from {point.model}' if len(comparison.flops) > 1 else ''
  if comparison.metric.higher_is_better and best.quality > 0:
    gain = f"{summary.percent(point.quality / best.quality)} of {_name(best)}'s quality"
  else:
    show = summary.quality(comparison)
    gain = f'{show(point.quality)} where {_name(best)} has {show(best.quality)}'
  large = 'its' if best.model == LARGE.name else "the large model's"
  return (
    f'Defer {summary.percent(point.rate)}{by} and get {gain} at '
    f'{_share(point.cost / comparison.large_flops)} of {large} cost.'
  )


def _interval(comparison: Comparison, point: OperatingPoint, percent: str) -> str:
  show = summary.quality(comparison)
  return (
    f'Its {comparison.metric.name} is {show(point.quality)} '
    f'[{show(point.low)}, {show(point.high)}], a pointwise {percent} interval.'
  )


def _share(value: float) -> str:
  return f'{value:.2f}'
