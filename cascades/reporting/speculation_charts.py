"""Interactive charts of a sweep of `speculate`: quality over any cost, and acceptance by position.

As in `charts`, they hold numbers only; `speculation.js` changes the cost. Looks are those of the
figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bokeh import models as bokeh

from cascades.evaluation.speculation import PointResult, SpeculationFrontier
from cascades.reporting import plots, speculation_figures
from cascades.reporting.palette import FAINT
from cascades.reporting.speculation_figures import ALONE, CostPanel, Styles, rule_label

SHAPES = {
  'o': 'circle', 's': 'square', '^': 'triangle', 'D': 'diamond', 'P': 'plus',
  'v': 'inverted_triangle', 'X': 'x', '*': 'star',
}  # fmt: skip
SIGNS = {'o': '●', 's': '■', '^': '▲', 'D': '◆', 'P': '✚', 'v': '▼', 'X': '✖', '*': '★'}
WIDTH = 1.6  # of lines


class LegendEntry(NamedTuple):
  """Name of a rule, with the color and dashes of its line."""

  label: str
  color: str
  dashes: str


def temperatures(frontier: SpeculationFrontier) -> list[float]:
  """Temperatures of the points, which have charts of their own."""
  return list(dict.fromkeys(point.temperature for point in frontier.points))


def draw(
  frontier: SpeculationFrontier, acceptance: Mapping[str, Sequence[float]]
) -> dict[str, bokeh.Plot]:
  """Charts by the id of the element to draw into.

  Args:
    frontier: The points.
    acceptance: Share of accepted drafts by position, by point.
  """
  styles, costs = speculation_figures.styles_of(frontier), speculation_figures.costs(frontier)
  drawn = {}
  for index, temperature in enumerate(temperatures(frontier)):
    drawn[f'chart-frontier-{index}'] = _frontier(frontier, temperature, styles, costs)
    points = list(speculation_figures.drafting(frontier, acceptance, temperature))
    if points:
      drawn[f'chart-positions-{index}'] = _positions(points, acceptance, styles)
  return drawn


def legend(frontier: SpeculationFrontier) -> list[LegendEntry]:
  """Rules of the charts."""
  looks = speculation_figures.styles_of(frontier).rules
  return [
    LegendEntry(rule_label(rule), look['color'], ' '.join(map(str, _dashes(look['linestyle']))))
    for rule, look in looks.items()
  ]


def signs(frontier: SpeculationFrontier) -> list[tuple[str, str]]:
  """Marker of each number of drafts, and of either model alone, with its name."""
  markers = speculation_figures.styles_of(frontier).markers
  return [
    *((SIGNS[marker], f'gamma {gamma}') for gamma, marker in markers.items() if gamma is not None),
    *((SIGNS[marker], f'{model} alone') for model, marker in ALONE.items()),
  ]


def _dashes(line: Any) -> list[int]:
  """Dashes of a line style of the figures, in pixels."""
  return [] if line == '-' else [round(2 * length) for length in line[1]]


def _frontier(
  frontier: SpeculationFrontier, temperature: float, styles: Styles, costs: Sequence[CostPanel]
) -> bokeh.Plot:
  """Quality of the points of a temperature over the first cost, with paired intervals."""
  plot = plots.empty(height=420, x_label=costs[0].label, percent=False)
  plot.below[0].name = 'cost axis'
  own = [point for point in frontier.points if point.temperature == temperature]
  if temperature in frontier.sequence:
    sequence = frontier.sequence[temperature].points
    plot.renderers += _curve(sequence, costs, color=FAINT, dashes=[], marker=None)
  for rule, look in styles.rules.items():
    for gamma, marker in styles.markers.items():
      points = [point for point in own if (point.rule, point.gamma) == (rule, gamma)]
      if points:
        plot.renderers += _curve(
          points, costs, color=look['color'], dashes=_dashes(look['linestyle']),
          marker=SHAPES[marker],
        )  # fmt: skip
  for point in own:
    if point.rule in ALONE and point.gamma is None:
      glyph = bokeh.Scatter(
        x='x', y='quality', size=13, marker=SHAPES[ALONE[point.rule]], fill_color=FAINT,
        line_color=FAINT, line_width=2, tags=['ink'],
      )  # fmt: skip
      source = _source([point], costs)
      plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=glyph))
  return plot


def _curve(
  points: Sequence[PointResult],
  costs: Sequence[CostPanel],
  *,
  color: str,
  dashes: list[int],
  marker: str | None,
) -> list[bokeh.GlyphRenderer]:
  """Line through points by alpha with their intervals; a band in the place of these if unmarked."""
  source = _source(sorted(points, key=lambda point: point.alpha or 0.0), costs)
  glyphs: list[bokeh.Glyph] = [
    bokeh.Line(x='x', y='quality', line_color=color, line_width=WIDTH, line_dash=dashes)
  ]
  if marker is None:
    glyphs.append(bokeh.VArea(x='x', y1='low', y2='high', fill_color=color, fill_alpha=0.2))
  else:
    glyphs += [
      bokeh.Segment(x0='x', x1='x', y0='low', y1='high', line_color=color, line_alpha=0.6),
      bokeh.Scatter(x='x', y='quality', size=8, marker=marker, fill_color=color, line_color=color),
    ]
  return [bokeh.GlyphRenderer(data_source=source, glyph=glyph) for glyph in glyphs]


def _source(points: Sequence[PointResult], costs: Sequence[CostPanel]) -> bokeh.ColumnDataSource:
  """Columns of points: every cost, of which `x` is shown, the quality, and its interval."""
  large = [point.quality - point.difference.value for point in points]
  columns = {f'cost {index}': _column(map(cost.value, points)) for index, cost in enumerate(costs)}
  columns |= {
    'x': columns['cost 0'],
    'quality': _column(point.quality for point in points),
    'low': _column(a + p.difference.low for a, p in zip(large, points, strict=True)),
    'high': _column(a + p.difference.high for a, p in zip(large, points, strict=True)),
  }
  return bokeh.ColumnDataSource(columns, name='points')


def _column(values: Any) -> list[float]:
  return [float(f'{value:.6g}') if math.isfinite(value) else math.nan for value in values]


def _positions(
  points: Sequence[PointResult], acceptance: Mapping[str, Sequence[float]], styles: Styles
) -> bokeh.Plot:
  """Share of the drafts at each position that are accepted, of those that are reached."""
  plot = plots.empty(height=300, x_label='position of the draft in its block', percent=False)
  plot.left[0].formatter = bokeh.NumeralTickFormatter(format=plots.PERCENT)
  plot.below[0].ticker = bokeh.SingleIntervalTicker(interval=1)
  for point in points:
    look, marker = styles.rules[point.rule], SHAPES[styles.markers[point.gamma]]
    columns = {
      'x': list(range(1, (point.gamma or 0) + 1)), 'y': _column(acceptance[point.name]),
    }  # fmt: skip
    source, color = bokeh.ColumnDataSource(columns), look['color']
    for glyph in (
      bokeh.Line(
        x='x', y='y', line_color=color, line_width=WIDTH, line_dash=_dashes(look['linestyle'])
      ),
      bokeh.Scatter(x='x', y='y', size=7, marker=marker, fill_color=color, line_color=color),
    ):
      plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=glyph))
  return plot
