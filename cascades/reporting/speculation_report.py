"""Files of a sweep of `speculate`: one page with its figures, and the numbers for programs."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cascades.curves import evenly_spaced
from cascades.evaluation.authorship import WrittenAnswer
from cascades.evaluation.speculation import SMALL, PointResult, SpeculationFrontier
from cascades.reporting import figures, speculation_figures, terminal
from cascades.reporting.escaping import page_environment
from cascades.reporting.summary import Cell, SummaryTable, amount, percent
from cascades.runtime import files

MOST_EXAMPLES = 3
DESCRIPTION = (
  'Every point is a way to decode with both models. Seconds are those of a finished answer over '
  'those of the large model alone, measured'
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
  page = _render(frontier, shown, images['svg'], examples)
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
      name: [_number(value) for value in column[evenly_spaced(len(column), figures.POINTS)]]
      for name, column in curve._asdict().items()
    }
    for temperature, curve in frontier.sequence.items()
  }
  chosen = [
    {
      name: value.name if isinstance(value, PointResult) else value
      for name, value in method._asdict().items()
    }
    for method in frontier.methods
  ]
  numbers = [
    {name: _number(value) for name, value in point._asdict().items() if name != 'difference'}
    | {'difference': {name: _number(x) for name, x in point.difference._asdict().items()}}
    for point in frontier.points
  ]
  by_position = {name: [_number(x) for x in shares] for name, shares in acceptance.items()}
  plain = frontier._asdict() | {'points': numbers, 'sequence': sequence, 'methods': chosen}
  return plain | {'acceptance_by_position': by_position}


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
    record = {
      k: v for k, v in point._asdict().items() if k not in ('difference', 'seconds', 'modeled')
    }
    record |= {f'difference_{k}': v for k, v in point.difference._asdict().items()}
    for name in ('seconds', 'modeled'):
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
    note = '' if point.alpha is None else f'alpha {point.alpha:g}'
    seconds = point.seconds[frontier.batch]
    return Cell(_quality(frontier, point.quality) if quality else f'{seconds:.2f}', note)

  return SummaryTable(
    'Methods',
    f'Seconds per answer at batch {frontier.batch or "-"}, over those of the large model alone: '
    f'the least at which the {frontier.metric} is no worse than its, and at which the interval '
    'reaches that; then the best of the points that are no slower.',
    ('method', 'seconds at equal quality', 'within its interval', f'best {frontier.metric} at 1.0'),
    tuple(
      (
        Cell(method.name),
        cell(method.matching),
        cell(method.matching_within),
        cell(method.best, quality=True),
      )
      for method in frontier.methods
    ),
  )


def points(frontier: SpeculationFrontier) -> SummaryTable:
  """All numbers of each point."""
  sizes = list(dict.fromkeys(size for point in frontier.points for size in point.seconds))

  def row(point: PointResult) -> tuple[Cell, ...]:
    low, high = (_quality(frontier, x, signed=True) for x in point.difference[1:3])
    times = [
      Cell(
        f'{point.seconds[size]:.2f}' if size in point.seconds else '-',
        f'modeled {point.modeled[size]:.2f}' if size in point.modeled else '',
      )
      for size in sizes
    ]
    return (
      Cell(point.name),
      Cell(_quality(frontier, point.quality), f'{low} to {high}'),
      *times,
      Cell(f'{point.large_calls:.2f}'),
      Cell('-' if math.isnan(point.rejection_rate) else percent(point.rejection_rate)),
      Cell(amount(point.flops)),
      Cell(f'{point.tokens:.1f}', f'x {point.length:.3f}'),
    )

  return SummaryTable(
    'Points',
    f'On {frontier.rows:,} rows. Below the {frontier.metric} is the paired interval of its '
    'difference from the large model alone, below the tokens their ratio to those of its answers. '
    'Modeled seconds are calls times measured steps.',
    (
      'point',
      frontier.metric,
      *(f'seconds, batch {size}' for size in sizes),
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


CAPTIONS = {
  'seconds': 'Quality against measured seconds per finished answer. Bars: paired intervals of the '
  'difference from the large model alone.',
  'calls': 'Quality against calls of the large model for each answer, its prompt included.',
  'rejections': 'Quality against the share of drafts that the large model replaced.',
  'positions': 'Share of the drafts at each position of a block that are accepted, of those whose '
  'predecessors are.',
}


def _render(
  frontier: SpeculationFrontier,
  tables: Sequence[SummaryTable],
  images: Mapping[str, bytes],
  examples: Sequence[ColoredAnswer],
) -> str:
  folder = resources.files('cascades.reporting')
  return (
    page_environment()
    .from_string((folder / 'speculation.html.j2').read_text())
    .render(
      style=(folder / 'report.css').read_text(),
      lead=_lead(frontier),
      frontier=frontier,
      description=DESCRIPTION,
      tables=tables,
      images={name: base64.b64encode(image).decode() for name, image in images.items()},
      captions=CAPTIONS,
      examples=examples,
    )
  )


def _lead(frontier: SpeculationFrontier) -> str:
  """First sentence of the page: the fastest point at the quality of the large model."""
  fastest = min(
    (m for m in frontier.methods if m.matching and m.matching.rule != SMALL),
    key=lambda m: m.matching.seconds[frontier.batch] if m.matching else math.inf,
    default=None,
  )
  if fastest is None or not fastest.matching or fastest.matching.seconds[frontier.batch] >= 1:
    return 'No point is faster than the large model alone at its quality here.'
  point = fastest.matching
  return (
    f'{point.name} takes {point.seconds[frontier.batch]:.2f} of the seconds of the large model '
    f'alone, at {frontier.metric} {_quality(frontier, point.quality)} '
    f'({_quality(frontier, point.difference.value, signed=True)}).'
  )
