"""Summary tables of a comparison, the same for the report and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cascades import curves
from cascades.bootstrap import Difference, Estimate
from cascades.evaluation import pooling, quantities
from cascades.evaluation.comparison import Cascade, Comparison
from cascades.evaluation.quantities import Quantity

BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # largest shares of deferred examples
AREAS = (
  'The area is the mean quality over all deferral rates (shares of examples that the large model '
  'answers). The chord is the straight line between the two models alone, which random deferral '
  'gives on average; above chord is the area between curve and chord, the gain of the ordering.'
)
AREA_COLUMNS = (quantities.SMALL, quantities.AREA, quantities.ABOVE_CHORD)
# Of a small model's answer; a score of another name is a user's own.
MEANINGS = {
  'average': 'the negative mean log-probability of the tokens of the answer',
  'sum': 'the negative log-probability of the answer',
  'minimum': 'the negative log-probability of the least likely token',
  'maximum': 'the negative log-probability of the most likely token',
  'random': 'random numbers, as a control',
}
Formatter = Callable[[float], str]


class Cell(NamedTuple):
  """Text of a cell, and a smaller note such as an interval or a p-value."""

  text: str
  note: str = ''


class SummaryTable(NamedTuple):
  """A table to show, with an explanation below its title."""

  title: str
  note: str
  header: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]


def tables(comparison: Comparison) -> list[SummaryTable]:
  """Returns every table that the comparison has numbers for."""
  summary = [models(comparison), fixed_costs(comparison), fixed_qualities(comparison)]
  if comparison.differences:
    summary += [differences(comparison), savings(comparison)]
  summary += [scores(comparison), thresholds(comparison)]
  if len(comparison.sizes) > 1:
    summary.append(tasks(comparison))
  if comparison.group_accuracy:
    summary.append(group_accuracy(comparison))
  if baselines_by_task(comparison):
    summary.append(baselines(comparison))
  if comparison.other_metrics:
    summary.append(other_metrics(comparison))
  return summary


def models(comparison: Comparison) -> SummaryTable:
  """Quality of each model alone and areas of its cascade."""
  show = quality(comparison)
  rows = [
    (Cell(model), Cell(amount(flops)), *estimates(comparison.at(model), AREA_COLUMNS, show))
    for model, flops in comparison.flops.items()
  ]
  large = _cell(comparison.cascades[0].estimates[quantities.LARGE], show)
  rows.append(
    (Cell('large alone'), Cell(amount(comparison.large_flops)), large, Cell(''), Cell(''))
  )
  return SummaryTable(
    'Models',
    f'Deferral by {meaning(comparison.scores[0])}. {AREAS}',
    ('model', 'FLOPs/token', f'{comparison.metric.name} alone', 'area', 'above chord'),
    tuple(rows),
  )


def fixed_costs(comparison: Comparison) -> SummaryTable:
  """Quality at fixed costs."""
  first = next(iter(comparison.flops.values()))
  header = [
    f'{amount(cost)} ({percent((cost - first) / comparison.large_flops)})'
    for cost in comparison.settings.costs
  ]
  columns = [quantities.QUALITY_AT(cost) for cost in comparison.settings.costs]
  return SummaryTable(
    'Quality at fixed cost',
    'Columns are FLOPs per token, with the deferral rate of the first model at that cost.',
    ('model', *header),
    _per_model(comparison, columns, quality(comparison)),
  )


def fixed_qualities(comparison: Comparison) -> SummaryTable:
  """Cost and deferral rate at fixed qualities."""
  levels, show = comparison.settings.qualities, quality(comparison)
  costs = _per_model(comparison, [quantities.COST_AT(level) for level in levels], amount)
  rates = _per_model(comparison, [quantities.RATE_AT(level) for level in levels], percent)
  return SummaryTable(
    'Cost at fixed quality',
    'Lowest FLOPs per token and lowest deferral rate that reach each quality.',
    (
      'model',
      *(f'FLOPs/token at {show(level)}' for level in levels),
      *(f'deferred at {show(level)}' for level in levels),
    ),
    tuple((*cost, *rate[1:]) for cost, rate in zip(costs, rates, strict=True)),
  )


def differences(comparison: Comparison) -> SummaryTable:
  """Differences between small models with their p-values."""
  return SummaryTable(
    'Paired differences',
    'First model minus second, on the same resamples of the examples; p-values are two-sided. '
    f'{AREAS}',
    ('models', 'alone', 'area', 'above chord'),
    _per_pair(comparison, AREA_COLUMNS, [signed(quality(comparison))] * 3),
  )


def savings(comparison: Comparison) -> SummaryTable:
  """Deferrals and FLOPs saved at equal quality."""
  levels, show = comparison.settings.qualities, quality(comparison)
  deferrals = [quantities.DEFERRALS_SAVED(level) for level in levels]
  flops = [quantities.FLOPS_SAVED(level) for level in levels]
  return SummaryTable(
    'Savings at equal quality',
    'Savings of the first model over the second: deferrals in percentage points of the deferral '
    'rate, and the share of FLOPs per token.',
    (
      'models',
      *(f'deferrals at {show(level)}' for level in levels),
      *(f'FLOPs at {show(level)}' for level in levels),
    ),
    _per_pair(comparison, [*deferrals, *flops], [signed(percent)] * 2 * len(levels)),
  )


def scores(comparison: Comparison) -> SummaryTable:
  """Area above the chord under every score."""
  rows = [
    (
      Cell(score),
      *(
        _cell(
          comparison.at(model, score).estimates[quantities.ABOVE_CHORD],
          signed(quality(comparison)),
        )
        for model in comparison.flops
      ),
    )
    for score in comparison.scores
  ]
  return SummaryTable(
    'Scores',
    'Area above the chord (the straight line between the two models alone) under each score: the '
    'gain of its ordering over random deferral. Quantile q is that of the log-probabilities of the '
    'tokens.',
    ('score', *comparison.flops),
    tuple(rows),
  )


def thresholds(comparison: Comparison) -> SummaryTable:
  """Thresholds of the first score for shares of deferred examples."""
  rows = [
    (
      Cell(model),
      *(Cell(f'{curves.threshold_for(comparison.at(model).curve, b):.4g}') for b in BUDGETS),
    )
    for model in comparison.flops
  ]
  return SummaryTable(
    'Thresholds',
    f'Lowest threshold of {comparison.scores[0]!r} that defers at most this share of the examples '
    '(deferred if score >= threshold). Choose on validation data, report on test data.',
    ('model', *map(percent, BUDGETS)),
    tuple(rows),
  )


def tasks(comparison: Comparison) -> SummaryTable:
  """Quality and areas on each task."""
  columns = (quantities.SMALL, quantities.LARGE, quantities.AREA, quantities.ABOVE_CHORD)
  rows = [
    (
      Cell(task, f'{size} examples'),
      Cell(model),
      *estimates(comparison.at(model, task=task), columns, quality(comparison)),
    )
    for task, size in comparison.sizes.items()
    for model in comparison.flops
  ]
  return SummaryTable(
    'Tasks',
    f'Each task with its own threshold. Deferral by {comparison.scores[0]!r}. {AREAS}',
    ('task', 'model', 'small alone', 'large alone', 'area', 'above chord'),
    tuple(rows),
  )


def group_accuracy(comparison: Comparison) -> SummaryTable:
  """Accuracy of groups of rows, such as the questions of MultiRC."""
  rows = [
    (
      Cell(task, f'{accuracy.groups} questions'),
      Cell(model),
      *(_cell(value, percent) for value in (accuracy.small, accuracy.large, accuracy.area)),
      _cell(accuracy.above_chord, signed(percent)),
    )
    for task, models in comparison.group_accuracy.items()
    for model, accuracy in models.items()
  ]
  return SummaryTable(
    'Question-level accuracy',
    'Share of questions with all rows correct. Single rows are deferred by '
    f'{comparison.scores[0]!r}. The area is over the deferral rate of rows; intervals are over '
    'questions.',
    ('task', 'model', 'small alone', 'large alone', 'area', 'above chord'),
    tuple(rows),
  )


def baselines(comparison: Comparison) -> SummaryTable:
  """Quality of cheap answers that inference judged beside the models."""
  show = quality(comparison)
  rows = [
    (Cell(task), Cell(name), Cell(show(value)))
    for task, values in baselines_by_task(comparison).items()
    for name, value in values.items()
  ]
  return SummaryTable(
    'Cheap baselines',
    'Answers without a language model, fitted to training rows of the task: a model that does not '
    'beat them has not learned the task.',
    ('task', 'baseline', comparison.metric.name),
    tuple(rows),
  )


def baselines_by_task(comparison: Comparison) -> dict[str, dict[str, float]]:
  """Quality of each baseline by task, where manifests hold it by the metric of the curves."""
  metric, by_task = comparison.metric.name, {}
  for manifest in comparison.manifests[quantities.LARGE.name]:
    values = {
      name: judged[metric]
      for name, judged in manifest.get('baselines', {}).items()
      if metric in judged
    }
    if values and not comparison.sizes_with_repeats:
      by_task[manifest['task']] = values
  return by_task


def quality_alone(comparison: Comparison, model: str, task: str | None) -> float:
  """Quality of a small model, or of the large one, by itself on a task or on all."""
  is_large = model == quantities.LARGE.name
  cascade = comparison.at(
    next(iter(comparison.flops)) if is_large else model, task=task or pooling.POOLED
  )
  return float(cascade.curve.quality[-1 if is_large else 0])


def other_metrics(comparison: Comparison) -> SummaryTable:
  """Quality of each model alone by the other metrics."""
  names = [*comparison.other_metrics]
  rows = [
    (
      Cell(model),
      *(_cell(comparison.other_metrics[name][model], '{:.4g}'.format) for name in names),
    )
    for model in comparison.other_metrics[names[0]]
  ]
  return SummaryTable(
    'Other metrics', 'Each model alone, over all tasks.', ('model', *names), tuple(rows)
  )


def _per_model(
  comparison: Comparison, columns: Sequence[Quantity], show: Formatter
) -> tuple[tuple[Cell, ...], ...]:
  return tuple(
    (Cell(model), *estimates(comparison.at(model), columns, show)) for model in comparison.flops
  )


def estimates(cascade: Cascade, columns: Sequence[Quantity], show: Formatter) -> list[Cell]:
  """Cells of a cascade's quantities with their intervals."""
  return [_cell(cascade.estimates[quantity], show) for quantity in columns]


def _per_pair(
  comparison: Comparison, columns: Sequence[Quantity], formats: Sequence[Formatter]
) -> tuple[tuple[Cell, ...], ...]:
  return tuple(
    (
      Cell(f'{pair.model} \N{MINUS SIGN} {pair.baseline}'),
      *(_cell(pair.estimates[q], show) for q, show in zip(columns, formats, strict=True)),
    )
    for pair in comparison.differences
    if pair.score == comparison.scores[0]
  )


def _cell(value: Estimate | Difference, show: Formatter) -> Cell:
  note = f'[{show(value.low)}, {show(value.high)}]'
  if isinstance(value, Difference):
    note += f' p={value.p:.3f}'
  return Cell(show(value.value), note)


def meaning(score: str) -> str:
  """The score's name, explained if it is one of the paper's."""
  return f'{score!r}, {MEANINGS[score]}' if score in MEANINGS else repr(score)


def quality(comparison: Comparison) -> Formatter:
  """Formatter of qualities, with the digits that fit the metric."""
  decimals = digits(comparison)
  return lambda value: _or_placeholder(value, f'{value:z.{decimals}f}')


def digits(comparison: Comparison) -> int:
  """Decimals of qualities that fit the metric."""
  return 4 if comparison.metric.scale == 1 else 2


def signed(show: Formatter) -> Formatter:
  """Formatter that writes a plus before positive values."""
  return lambda value: f'+{show(value)}' if value > 0 and math.isfinite(value) else show(value)


def percent(value: float) -> str:
  """Formats a share: '12.3 %'."""
  return _or_placeholder(value, f'{100 * value:z.1f} %')


def amount(value: float) -> str:
  """Formats an amount with its unit prefix: '950', '12.3 k', '4.56 M', '7.89 G', '1.2 T'."""
  power = min(4, max(0, int(math.log10(abs(value)) // 3))) if value and math.isfinite(value) else 0
  return _or_placeholder(
    value, f'{value / 1000**power:.4g} {["", "k", "M", "G", "T"][power]}'.rstrip()
  )


def _or_placeholder(value: float, text: str) -> str:
  if math.isnan(value):
    return '\N{EN DASH}'
  return text if math.isfinite(value) else 'not reached'
