"""Files of a sweep of `speculate`: one page with its figures, and the numbers for programs."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cascades.evaluation.authorship import WrittenAnswer
from cascades.evaluation.speculation import SEQUENCE, PointResult, SpeculationFrontier
from cascades.reporting import (
  charts,
  figures,
  report,
  speculation_charts,
  speculation_figures,
  terminal,
)
from cascades.reporting.escaping import page_environment
from cascades.reporting.speculation_figures import metric_label, rule_label
from cascades.reporting.summary import Cell, SummaryTable, amount, percent
from cascades.runtime import files

MOST_EXAMPLES = 3
SIGNIFICANCE = 0.05  # after Holm's adjustment
DESCRIPTION = (
  'Every point is a way to decode with both models. Seconds are those of a finished answer over '
  'those of the large model alone'
)


class TokenText(NamedTuple):
  """Text of a token, and True if the small model wrote it."""

  text: str
  drafted: bool


class ColoredAnswer(NamedTuple):
  """An answer with the author of each token."""

  point: str
  prompt: str
  tokens: Sequence[TokenText]


def colored(
  point: str, answers: Iterator[WrittenAnswer], decode: Callable[[Sequence[int]], str]
) -> list[ColoredAnswer]:
  """First answers that both models wrote."""
  mixed = (answer for answer in answers if 0 < sum(answer.drafted) < len(answer.drafted))
  return [
    ColoredAnswer(
      point,
      answer.prompt,
      [
        TokenText(decode([token]), by_small)
        for token, by_small in zip(answer.tokens, answer.drafted, strict=True)
      ],
    )
    for answer in itertools.islice(mixed, MOST_EXAMPLES)
  ]


def write(
  directory: epath.Path,
  frontier: SpeculationFrontier,
  acceptance: Mapping[str, Sequence[float]],
  examples: Sequence[ColoredAnswer],
) -> None:
  """Writes frontier.json, frontier.csv, figures/ and report.html, and prints the tables.

  Args:
    directory: Output directory of `speculate`.
    frontier: The points.
    acceptance: Share of accepted drafts by position, by point.
    examples: Answers with the author of each token.
  """
  drawn = speculation_figures.draw(frontier, acceptance)
  images = {
    image_format: {name: figures.encode(figure, image_format) for name, figure in drawn.items()}
    for image_format in figures.FORMATS
  }
  shown = [methods(frontier), points(frontier)]
  page = _render(frontier, acceptance, shown, images['svg'], examples)
  contents = {
    f'figures/{name}.{image_format}': image
    for image_format, by_name in images.items()
    for name, image in by_name.items()
  } | {
    'frontier.json': json.dumps(as_json(frontier, acceptance), indent=2, allow_nan=False).encode(),
    'frontier.csv': as_csv(frontier).encode(),
    'report.html': page.encode(),
  }
  for name, content in contents.items():
    files.write(directory / name, content)
  terminal.print_tables(shown)


def as_json(
  frontier: SpeculationFrontier, acceptance: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
  """All numbers; null where there is none."""
  sequence = {
    f'{temperature:g}': {
      'rule': cascade.rule,
      'deferral_rate': [_number(point.alpha) for point in cascade.points],
      'cost': [_number(frontier.cost(point)) for point in cascade.points],
    }
    | {
      name: [_number(getattr(point, name)) for point in cascade.points]
      for name in ('quality', 'large_calls', 'flops')
    }
    | {
      f'difference_{name}': [_number(getattr(p.difference, name)) for p in cascade.points]
      for name in ('low', 'high')
    }
    for temperature, cascade in frontier.sequence.items()
  }
  chosen = [
    {
      name: value.name if isinstance(value, PointResult) else value
      for name, value in method._asdict().items()
    }
    for method in frontier.methods
  ]
  numbers = [
    {name: _number(value) for name, value in _flat(point).items() if name != 'difference'}
    | {'modeled_over_measured': _number(point.modeled_over_measured)}
    | {'difference': {name: _number(x) for name, x in point.difference._asdict().items()}}
    for point in frontier.points
  ]
  by_position = {name: [_number(x) for x in shares] for name, shares in acceptance.items()}
  plain = frontier._asdict() | {'points': numbers, 'sequence': sequence, 'methods': chosen}
  return plain | {'acceptance_by_position': by_position}


def _flat(point: PointResult) -> dict[str, Any]:
  """Fields of a point, with the length and its interval in three."""
  length = {f'length_{name}': x for name, x in point.length._asdict().items()}
  return point._asdict() | {'length': length.pop('length_value')} | length


def _number(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _number(x) for name, x in value.items()}
  if not isinstance(value, float | np.floating):
    return value
  return float(value) if math.isfinite(value) else None


def as_csv(frontier: SpeculationFrontier) -> str:
  """One line a point; seconds and difference in columns of their own."""
  records = []
  for point in frontier.points:
    nested = ('difference', 'seconds', 'modeled', 'planned')
    record = {name: value for name, value in _flat(point).items() if name not in nested}
    record |= {f'difference_{k}': v for k, v in point.difference._asdict().items()}
    for name in ('seconds', 'modeled', 'modeled_over_measured', 'planned'):
      record |= {f'{name}_batch{size}': v for size, v in getattr(point, name).items()}
    records.append(record)
  text = io.StringIO()
  names = dict.fromkeys(name for record in records for name in record)
  writer = csv.DictWriter(text, [*names], lineterminator='\n')
  writer.writeheader()
  writer.writerows(records)
  return text.getvalue()


def methods(frontier: SpeculationFrontier) -> SummaryTable:
  """Two numbers of each method."""

  def cell(point: PointResult | None, *, quality: bool = False) -> Cell:
    if point is None:
      return Cell('none')
    text = _quality(frontier, point.quality) if quality else f'{frontier.cost(point):.2f}'
    return Cell(text, setting(point))

  unit, metric = 'seconds' if frontier.batch else 'calls', metric_label(frontier)
  return SummaryTable(
    'Methods',
    f'{_unit(frontier).capitalize()} over those of the large model alone: the least at which the '
    f'{metric} is no worse than its, and at which the paired interval reaches that; then the best '
    f'{metric} of the points that take no more. Below each is the setting.',
    (
      'method',
      f'least {unit} at its quality',
      'within the interval',
      f'best {metric_label(frontier)} at its {unit}',
    ),
    tuple(
      (
        Cell(_method(method.name)),
        cell(method.matching),
        cell(method.matching_within),
        cell(method.best, quality=True),
      )
      for method in frontier.methods
    ),
  )


def _method(name: str) -> str:
  rule, separator, temperature = name.partition(', ')
  return rule_label(rule) + separator + temperature


def _unit(frontier: SpeculationFrontier) -> str:
  if frontier.batch:
    return f'seconds per answer at batch {frontier.batch}'
  return 'calls of the large model'


def setting(point: PointResult) -> str:
  """Alpha and gamma of a point, or the share of deferred answers."""
  if point.rule == SEQUENCE:
    return f'defers {percent(point.alpha or 0.0)}'
  numbers = {'alpha': point.alpha, 'gamma': point.gamma}
  return ', '.join(f'{name} {x:g}' for name, x in numbers.items() if x is not None)


def points(frontier: SpeculationFrontier) -> SummaryTable:
  """All numbers of each point."""
  sizes = list(dict.fromkeys(size for point in frontier.points for size in point.seconds))

  tested = [point.holm for point in frontier.points if not math.isnan(point.holm)]
  differ = sum(p < SIGNIFICANCE for p in tested)

  def modeled(point: PointResult, size: str) -> Iterator[str]:
    if size in point.modeled:
      yield f'modeled {point.modeled[size]:.2f}'
    if size in point.planned:
      yield f'least with {point.planned[size]} drafts'

  def row(point: PointResult) -> tuple[Cell, ...]:
    low, high = (_quality(frontier, x, signed=True) for x in point.difference[1:3])
    p = '' if math.isnan(point.holm) else f', p {point.holm:.2g}'
    times = [
      Cell(
        f'{point.seconds[size]:.2f}' if size in point.seconds else '-',
        ', '.join(modeled(point, size)),
      )
      for size in sizes
    ]
    ratios = [
      Cell(f'{ratio:.2f}' if (ratio := point.modeled_over_measured.get(size)) else '-')
      for size in sizes
    ]
    return (
      Cell(f'{rule_label(point.rule)}, temperature {point.temperature:g}', setting(point)),
      Cell(_quality(frontier, point.quality), f'{low} to {high}{p}'),
      *times,
      *ratios,
      Cell(f'{point.large_calls:.2f}'),
      Cell('-' if math.isnan(point.rejection_rate) else percent(point.rejection_rate)),
      Cell(amount(point.flops)),
      Cell(f'{point.tokens:.1f}', 'x {:.3f} ({:.3f} to {:.3f})'.format(*point.length)),
    )

  return SummaryTable(
    'Points',
    f'On {frontier.rows:,} rows. Below the {metric_label(frontier)} is the paired interval of its '
    'difference from the large model alone, with a p-value that Holm adjusts for the number of '
    f'points: {differ} of {len(tested)} points differ at {percent(SIGNIFICANCE)}. Below the tokens '
    'is their ratio to those of its answers, with its interval. Modeled seconds are calls times '
    'measured steps; they are least with the number of drafts below them, of those whose steps '
    'were measured, if drafts are accepted independently.',
    (
      'point',
      metric_label(frontier),
      *(f'seconds, batch {size}' for size in sizes),
      *(f'modeled / measured, batch {size}' for size in sizes),
      'large calls',
      'rejected drafts',
      'FLOPs',
      'tokens',
    ),
    tuple(row(point) for point in frontier.points),
  )


def _quality(frontier: SpeculationFrontier, value: float, *, signed: bool = False) -> str:
  digits = 4 if max(abs(point.quality) for point in frontier.points) <= 1 else 2
  return f'{value:+.{digits}f}' if signed else f'{value:.{digits}f}'


def _captions(frontier: SpeculationFrontier) -> dict[str, str]:
  """Captions by the name of the figure."""
  captions = {
    'positions': 'Share of the drafts at each position of a block that are accepted, of those '
    'whose predecessors are: each rule at the most drafts, with the alpha of its best quality.'
  }
  for temperature in dict.fromkeys(point.temperature for point in frontier.points):
    sequence = frontier.sequence.get(temperature)
    deferral = f' The sequence cascade defers by {sequence.rule!r}.' if sequence else ''
    captions[f'frontier-temperature{temperature:g}'] = (
      f'Temperature {temperature:g}: {metric_label(frontier)} against the costs of an answer. '
      'Colors are rules, markers numbers of drafts; bars and the band are paired intervals of the '
      f'difference from the large model alone. Up and to the left is better.{deferral}'
    )
  return captions


def _render(
  frontier: SpeculationFrontier,
  acceptance: Mapping[str, Sequence[float]],
  tables: Sequence[SummaryTable],
  images: Mapping[str, bytes],
  examples: Sequence[ColoredAnswer],
) -> str:
  summary, *rest = tables
  content, roots = charts.as_document(speculation_charts.draw(frontier, acceptance))
  costs = [cost.label for cost in speculation_figures.costs(frontier)]
  scripts = report.page_scripts(
    {'document': content, 'roots': roots, 'costs': costs}, 'speculation.js'
  )
  return (
    page_environment()
    .from_string(report.resource('speculation.html.j2'))
    .render(
      policy=report.content_policy(scripts),
      style=report.resource('report.css'),
      scripts=scripts,
      headline=_headline(frontier),
      best=_best(frontier),
      frontier=frontier,
      description=DESCRIPTION,
      summary=summary,
      tables=rest,
      roots=roots,
      costs=costs,
      temperatures=speculation_charts.temperatures(frontier),
      legend=speculation_charts.legend(frontier),
      signs=speculation_charts.signs(frontier),
      images={name: base64.b64encode(image).decode() for name, image in images.items()},
      captions=_captions(frontier),
      examples=examples,
    )
  )


class BestNumber(NamedTuple):
  """A number at the top of the page."""

  name: str
  text: str
  note: str


def _best(frontier: SpeculationFrontier) -> list[BestNumber]:
  """The two numbers over all methods that draft, by temperature."""
  unit = 'seconds' if frontier.batch else 'large calls'
  sign = 1 if frontier.higher_is_better else -1
  best = [m.best for m in frontier.methods if m.best and m.best.gamma is not None]
  numbers = []
  for temperature in dict.fromkeys(point.temperature for point in frontier.points):
    cheapest = frontier.cheapest(temperature)
    own = (point for point in best if point.temperature == temperature)
    highest = max(own, key=lambda point: sign * point.quality, default=None)
    note = lambda point: f'{rule_label(point.rule)} {setting(point)}' if point else ''
    numbers += [
      BestNumber(
        f"Temperature {temperature:g}: least {unit} at the large model's {metric_label(frontier)}",
        f'{frontier.cost(cheapest):.2f}' if cheapest else 'none',
        note(cheapest),
      ),
      BestNumber(
        f'Temperature {temperature:g}: best {metric_label(frontier)} at its {unit}',
        _quality(frontier, highest.quality) if highest else 'none',
        f'{note(highest)}, {_quality(frontier, highest.difference.value, signed=True)}'
        if highest
        else '',
      ),
    ]
  return numbers


def _headline(frontier: SpeculationFrontier) -> str:
  """First sentence of the page: the cheapest point at the quality of the large model."""
  cost, unit = frontier.cost, 'seconds' if frontier.batch else 'calls'
  cheapest = frontier.cheapest()
  if cheapest is None or cost(cheapest) >= 1:
    quality = metric_label(frontier)
    return f"No speculative cascade reaches the large model's {quality} in fewer {unit} here."
  return (
    f'{rule_label(cheapest.rule)} ({setting(cheapest)}) takes {cost(cheapest):.2f} of the '
    f'{unit} of the large model alone, at {metric_label(frontier)} '
    f'{_quality(frontier, cheapest.quality)} '
    f'({_quality(frontier, cheapest.difference.value, signed=True)}), temperature '
    f'{cheapest.temperature:g}.'
  )
