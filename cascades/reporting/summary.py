"""Says what a comparison found, in tables to read: the same on a page and on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cascades import curves
from cascades.bootstrap import Difference, Estimate
from cascades.evaluation import comparison as found
from cascades.evaluation.comparison import Cascade, Comparison, Quantity

BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Format = Callable[[float], str]


class Cell(NamedTuple):
  text: str
  note: str = ''  # an interval, a p-value


class Table(NamedTuple):
  title: str
  note: str
  header: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]


def tables(compared: Comparison) -> list[Table]:
  """Every table that has something to say."""
  made = [models(compared), fixed_costs(compared), fixed_qualities(compared)]
  made += [pairs(compared), savings(compared)] if compared.versus else []
  made += [scores(compared), thresholds(compared)]
  made += [tasks(compared)] if len(compared.sizes) > 1 else []
  made += [questions(compared)] if compared.questions else []
  return made + ([others(compared)] if compared.others else [])


def models(compared: Comparison) -> Table:
  quality = _quality(compared)
  columns = (found.SMALL, found.AREA, found.ABOVE_CHORD)
  rows = [
    (Cell(model), Cell(amount(flops)), *_estimates(compared.at(model), columns, quality))
    for model, flops in compared.flops.items()
  ]
  large = _cell(compared.cascades[0].estimates[found.LARGE], quality)
  rows.append((Cell('large alone'), Cell(amount(compared.large_flops)), large, Cell(''), Cell('')))
  return Table(
    'Models',
    f'Deferral by {compared.scores[0]!r}. The area is the mean quality over all deferral rates; '
    'the chord is the line between the two models alone, what random deferral gives on average.',
    ('model', 'FLOPs/token', f'{compared.metric.name} alone', 'area', 'above chord'),
    tuple(rows),
  )


def fixed_costs(compared: Comparison) -> Table:
  first = next(iter(compared.flops.values()))
  header = [
    f'{amount(cost)} ({percent((cost - first) / compared.large_flops)})'
    for cost in compared.settings.costs
  ]
  columns = [found.QUALITY_AT(cost) for cost in compared.settings.costs]
  return Table(
    'Quality at fixed cost',
    'Columns are FLOPs per token and, of the first model, the share of examples deferred.',
    ('model', *header),
    _per_model(compared, columns, _quality(compared)),
  )


def fixed_qualities(compared: Comparison) -> Table:
  levels, quality = compared.settings.qualities, _quality(compared)
  costs = _per_model(compared, [found.COST_AT(level) for level in levels], amount)
  rates = _per_model(compared, [found.RATE_AT(level) for level in levels], percent)
  return Table(
    'Cost at fixed quality',
    'The least FLOPs per token, and the least deferral rate, that reach each quality.',
    (
      'model',
      *(f'FLOPs/token at {quality(level)}' for level in levels),
      *(f'deferred at {quality(level)}' for level in levels),
    ),
    tuple((*cost, *rate[1:]) for cost, rate in zip(costs, rates, strict=True)),
  )


def pairs(compared: Comparison) -> Table:
  columns = (found.SMALL, found.AREA, found.ABOVE_CHORD)
  return Table(
    'Paired differences',
    'First model minus second, on the same resamples of the same examples; p is two-sided.',
    ('models', 'alone', 'area', 'above chord'),
    _per_pair(compared, columns, [_signed(_quality(compared))] * 3),
  )


def savings(compared: Comparison) -> Table:
  levels, quality = compared.settings.qualities, _quality(compared)
  deferrals = [found.DEFERRALS_SAVED(level) for level in levels]
  flops = [found.FLOPS_SAVED(level) for level in levels]
  return Table(
    'Saved at equal quality',
    'By the first model compared with the second: deferrals, in points of the deferral rate, and '
    'the share of FLOPs per token.',
    (
      'models',
      *(f'deferrals at {quality(level)}' for level in levels),
      *(f'FLOPs at {quality(level)}' for level in levels),
    ),
    _per_pair(compared, [*deferrals, *flops], [_signed(percent)] * 2 * len(levels)),
  )


def scores(compared: Comparison) -> Table:
  rows = [
    (
      Cell(score),
      *(
        _cell(compared.at(model, score).estimates[found.ABOVE_CHORD], _signed(_quality(compared)))
        for model in compared.flops
      ),
    )
    for score in compared.scores
  ]
  return Table(
    'Scores',
    'Area above the chord under each score: what its ordering of the examples is worth.',
    ('score', *compared.flops),
    tuple(rows),
  )


def thresholds(compared: Comparison) -> Table:
  rows = [
    (
      Cell(model),
      *(Cell(f'{curves.threshold_for(compared.at(model).curve, b):.4g}') for b in BUDGETS),
    )
    for model in compared.flops
  ]
  return Table(
    'Thresholds',
    f'Deferring where {compared.scores[0]!r} is at least this defers no more than that share of '
    'these examples. Choose on validation data, report on test data.',
    ('model', *map(percent, BUDGETS)),
    tuple(rows),
  )


def tasks(compared: Comparison) -> Table:
  columns = (found.SMALL, found.LARGE, found.AREA, found.ABOVE_CHORD)
  rows = [
    (
      Cell(task, f'{size} examples'),
      Cell(model),
      *_estimates(compared.at(model, task=task), columns, _quality(compared)),
    )
    for task, size in compared.sizes.items()
    for model in compared.flops
  ]
  return Table(
    'Tasks',
    f'Each with its own threshold, deferral by {compared.scores[0]!r}.',
    ('task', 'model', 'small alone', 'large alone', 'area', 'above chord'),
    tuple(rows),
  )


def questions(compared: Comparison) -> Table:
  rows = [
    (
      Cell(task, f'{shares.groups} questions'),
      Cell(model),
      *(_cell(one, percent) for one in (shares.small, shares.large, shares.area)),
      _cell(shares.above_chord, _signed(percent)),
    )
    for task, models in compared.questions.items()
    for model, shares in models.items()
  ]
  return Table(
    'Questions answered wholly right',
    'The share of questions of which every row is right. Rows defer one by one, by '
    f'{compared.scores[0]!r}; the area is over their deferral rate. Intervals are over questions.',
    ('task', 'model', 'small alone', 'large alone', 'area', 'above chord'),
    tuple(rows),
  )


def others(compared: Comparison) -> Table:
  metrics = [*compared.others]
  rows = [
    (Cell(model), *(_cell(compared.others[name][model], _plain) for name in metrics))
    for model in compared.others[metrics[0]]
  ]
  return Table(
    'Other metrics', 'Of each model alone, over all tasks.', ('model', *metrics), tuple(rows)
  )


def _per_model(
  compared: Comparison, columns: Sequence[Quantity], shown: Format
) -> tuple[tuple[Cell, ...], ...]:
  return tuple(
    (Cell(model), *_estimates(compared.at(model), columns, shown)) for model in compared.flops
  )


def _estimates(cascade: Cascade, columns: Sequence[Quantity], shown: Format) -> list[Cell]:
  return [_cell(cascade.estimates[quantity], shown) for quantity in columns]


def _per_pair(
  compared: Comparison, columns: Sequence[Quantity], formats: Sequence[Format]
) -> tuple[tuple[Cell, ...], ...]:
  return tuple(
    (
      Cell(f'{pair.model} \N{MINUS SIGN} {pair.baseline}'),
      *(_cell(pair.differences[q], shown) for q, shown in zip(columns, formats, strict=True)),
    )
    for pair in compared.versus
    if pair.score == compared.scores[0]
  )


def _cell(value: Estimate | Difference, shown: Format) -> Cell:
  note = f'[{shown(value.low)}, {shown(value.high)}]'
  if isinstance(value, Difference):
    note += f' p={value.p:.3f}'
  return Cell(shown(value.value), note)


def _plain(value: float) -> str:
  return f'{value:.4g}'


def _quality(compared: Comparison) -> Format:
  digits = 4 if compared.metric.scale == 1 else 2
  return lambda value: _or_words(value, f'{value:z.{digits}f}')


def _signed(shown: Format) -> Format:
  return lambda value: f'+{shown(value)}' if value > 0 and math.isfinite(value) else shown(value)


def percent(value: float) -> str:
  return _or_words(value, f'{100 * value:z.1f} %')


def amount(value: float) -> str:
  """'950', '12.3 k', '4.56 M', '7.89 G', '1.2 T'."""
  power = min(4, max(0, int(math.log10(abs(value)) // 3))) if value and math.isfinite(value) else 0
  return _or_words(value, f'{value / 1000**power:.4g} {["", "k", "M", "G", "T"][power]}'.rstrip())


def _or_words(value: float, text: str) -> str:
  if math.isnan(value):
    return '\N{EN DASH}'
  return text if math.isfinite(value) else 'not reached'
