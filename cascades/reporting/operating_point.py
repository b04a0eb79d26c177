"""The operating point of a comparison in one sentence: the first line of a report.

The rule, stated beside every use of it: of all thresholds of all small models under the first
score, take the cheapest whose quality is at least 98 % of that of the best single model. Where it
costs no less than a single model of such quality, take the threshold of the highest quality, if
its band lies above the best single model. Else no threshold beats the best single model.

Where chains of more than two models, or another first axis of cost, are asked for, the first line
is about them. Their points have no bands, so that only the first half of the rule applies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cascades import costs
from cascades.evaluation import chains
from cascades.evaluation.chains import ChainResult
from cascades.evaluation.comparison import Cascade, Comparison
from cascades.evaluation.quantities import LARGE, RATES
from cascades.reporting import summary

NOTHING = 'No threshold beats the best single model here.'
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
  """Chooses the operating point by the rule of this module, and says it in words.

  Where chains or another axis of cost are asked for, the sentence is about them, and the point is
  still that of the best pair at FLOPs per token.
  """
  of_pairs = _of_pairs(comparison)
  if not is_of_chains(comparison):
    return of_pairs
  return _of_chains(comparison, _asked_for(comparison)[0])._replace(point=of_pairs.point)


def is_of_chains(comparison: Comparison) -> bool:
  """True if the headline is about chains, or about another axis than FLOPs per token."""
  by_axis = _asked_for(comparison)
  return bool(by_axis) and by_axis[0][0].axis == comparison.chains[0].axis


def of_other_axes(comparison: Comparison) -> list[str]:
  """The same sentences by the axes of cost that the headline is not about."""
  return [
    f'By {costs.UNITS[results[0].axis]}: {_of_chains(comparison, results).sentence}'
    for results in _asked_for(comparison)[int(is_of_chains(comparison)) :]
  ]


def _asked_for(comparison: Comparison) -> list[list[ChainResult]]:
  """Chains under their first score by axis of cost, without pairs on the default axis."""
  by_axis: dict[str, list[ChainResult]] = {}
  for result in comparison.chains:
    default = len(result.models) == 2 and result.axis == 'flops per token'
    if not default and result.score == comparison.chains[0].score:
      by_axis.setdefault(result.axis, []).append(result)
  return list(by_axis.values())


def _of_chains(comparison: Comparison, results: Sequence[ChainResult]) -> Headline:
  """Headline of chains on one axis of cost, from the points of their curves."""
  show, sign = summary.quality(comparison), _sign(comparison)
  singles = {name: single for result in results for name, single in result.singles.items()}
  leading = sorted({result.best_single for result in results})
  name = max(leading, key=lambda model: sign * singles[model].quality)
  large, unit = results[0].models[-1], costs.UNITS[results[0].axis]
  best = OperatingPoint(
    LARGE.name if name == large else name,
    quality=singles[name].quality,
    cost=singles[name].cost,
    **dict.fromkeys(('rate', 'threshold', 'low', 'high'), np.nan),
  )
  enough = _enough(sign * best.quality)
  reaching = [
    (float(result.curves[chains.CHAIN].cost[point]), number, int(point))
    for number, result in enumerate(results)
    for point in np.flatnonzero(sign * result.curves[chains.CHAIN].quality >= enough)
  ]
  cost, number, point = min(reaching, default=(np.inf, 0, 0))
  charged = '' if results[0].discarded else ' The cost of discarded answers is left out.'
  rule = (
    f'Rule: the cheapest point of a chain with a {_goal(comparison, best)}, at less cost than any '
    f'single model of such quality.{charged}'
  )
  if cost >= min(x.cost for x in singles.values() if sign * x.quality >= enough):
    alone = f'{_name(best)} alone reaches {show(best.quality)}'
    at = f'{summary.amount(best.cost)} {unit}'
    return Headline(NOTHING, f'{alone[0].upper()}{alone[1:]} at {at}. {rule}', None)
  quality = float(results[number].curves[chains.CHAIN].quality[point])
  price = f'{summary.amount(cost)} {unit}'
  share = price
  if singles[large].cost:
    owner = 'its' if name == large else "the large model's"
    share = f'{_share(cost / singles[large].cost)} of {owner} cost in {unit}'
  who = _who(results[number], point, alone=len(results) == 1)
  split = results[0].fit_split
  fitted = f', of thresholds from the split {split!r}' if len(results[0].models) > 2 else ''
  return Headline(
    f'{who} and get {_gain(comparison, quality, best)} at {share}.',
    f'{rule} Its {comparison.metric.name} is {show(quality)} at {price}. The point was chosen on '
    f'the rows that it is reported on{fitted}.',
    None,
  )


def _who(result: ChainResult, point: int, *, alone: bool) -> str:
  """Instruction that says which share of the rows each model answers at a point of its curve."""
  *names, _ = result.models
  *shares, deferred = map(summary.percent, result.curves[chains.CHAIN].shares[point])
  if len(names) == 1:
    return f'Defer {deferred}' + ('' if alone else f' from {names[0]}')
  answers = [f'{name} {share}' for name, share in zip(names[1:], shares[1:], strict=True)]
  answers = [f'{names[0]} answer {shares[0]}', *answers]
  return f'Let {", ".join(answers)} and the large model {deferred},'


def _of_pairs(comparison: Comparison) -> Headline:
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
    alone = f'{alone[0].upper()}{alone[1:]}.'
    return Headline('There is no threshold to choose: all rows have one score.', alone, None)
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
  return Headline(NOTHING, rule, None)


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
  large = 'its' if best.model == LARGE.name else "the large model's"
  return (
    f'Defer {summary.percent(point.rate)}{by} and get {_gain(comparison, point.quality, best)} at '
    f'{_share(point.cost / comparison.large_flops)} of {large} cost.'
  )


def _gain(comparison: Comparison, quality: float, best: OperatingPoint) -> str:
  if comparison.metric.higher_is_better and best.quality > 0:
    return f"{summary.percent(quality / best.quality)} of {_name(best)}'s quality"
  show = summary.quality(comparison)
  return f'{show(quality)} where {_name(best)} has {show(best.quality)}'


def _interval(comparison: Comparison, point: OperatingPoint, percent: str) -> str:
  show = summary.quality(comparison)
  return (
    f'Its {comparison.metric.name} is {show(point.quality)} '
    f'[{show(point.low)}, {show(point.high)}], a pointwise {percent} interval.'
  )


def _share(value: float) -> str:
  return f'{value:.2f}'
