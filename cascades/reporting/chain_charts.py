"""Charts and figures of chains of models: their curves beside all controls, and who answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from bokeh import models as bokeh
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cascades import costs
from cascades.curves import evenly_spaced
from cascades.evaluation import chains
from cascades.evaluation.chains import ChainResult
from cascades.evaluation.comparison import Comparison
from cascades.reporting import plots, summary
from cascades.reporting.escaping import shorten
from cascades.reporting.palette import FAINT, INK, PALETTE

MOST_CHAINS = 12  # with a chart of their own
POINTS = 200


class Stroke(NamedTuple):
  """Line of a curve: color, and lengths of dashes and gaps; none for a solid line."""

  color: str
  dash: tuple[int, ...] = ()


CONTROLS = {
  chains.ORACLE: Stroke(FAINT),
  chains.ORACLE_ROUTER: Stroke(FAINT, (8, 3)),
  chains.RANDOM: Stroke(FAINT, (2, 4)),
  chains.RANDOM_ROUTER: Stroke(FAINT, (1, 2)),
}


def shown(comparison: Comparison) -> Sequence[ChainResult]:
  """Results that have a chart of their own."""
  return comparison.chains[:MOST_CHAINS]


def strokes(result: ChainResult) -> dict[str, Stroke]:
  """Line of each curve by name; the chain, its rivals and the routers have a color each."""
  colors = itertools.cycle(PALETTE)
  return {name: CONTROLS.get(name) or Stroke(next(colors)) for name in result.curves}


def _over_cost(result: ChainResult) -> bokeh.Plot:
  plot = plots.empty(height=300, x_label=costs.UNITS[result.axis], percent=False)
  # The formatters of the library say '50t' and '2.000e-4'.
  most = max(float(curve.cost.max()) for curve in result.curves.values())
  ticks = [float(tick) for tick in MaxNLocator(4).tick_values(0, most)]
  axis = plot.below[0]
  axis.ticker = bokeh.FixedTicker(ticks=ticks)
  axis.major_label_overrides = {tick: summary.amount(tick) for tick in ticks}
  return plot


def curves(result: ChainResult) -> bokeh.Plot:
  """Quality against cost of the chain, its controls, and each model alone."""
  plot = _over_cost(result)
  for name, stroke in strokes(result).items():
    curve = result.curves[name]
    points = evenly_spaced(len(curve.cost), POINTS)
    source = bokeh.ColumnDataSource({'x': curve.cost[points], 'y': curve.quality[points]})
    line = bokeh.Line(
      x='x', y='y', line_color=stroke.color, line_dash=list(stroke.dash),
      line_width=3 if name == chains.CHAIN else 1.8,
    )  # fmt: skip
    plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=line))
  singles = list(result.singles.values())
  source = bokeh.ColumnDataSource(
    {'x': [single.cost for single in singles], 'y': [single.quality for single in singles]}
  )
  dots = bokeh.Scatter(
    x='x', y='y', size=10, marker='diamond', line_color=None, fill_color=FAINT, tags=['ink']
  )
  plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=dots))
  return plot


def shares(result: ChainResult) -> bokeh.Plot:
  """Share of the rows that each model of the chain answers, stacked along its curve."""
  plot = _over_cost(result)
  plot.y_range = bokeh.Range1d(0, 1)
  plot.left[0].formatter = bokeh.NumeralTickFormatter(format=plots.PERCENT)
  curve = result.curves[chains.CHAIN]
  points = evenly_spaced(len(curve.cost), POINTS)
  edges = np.cumsum(np.insert(curve.shares[points], 0, 0, axis=1), axis=1)
  for model, color in zip(range(len(result.models)), itertools.cycle(PALETTE), strict=False):
    source = bokeh.ColumnDataSource(
      {'x': curve.cost[points], 'low': edges[:, model], 'high': edges[:, model + 1]}
    )
    area = bokeh.VArea(x='x', y1='low', y2='high', fill_color=color, fill_alpha=0.55)
    plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=area))
  return plot


def figure(comparison: Comparison) -> Figure:
  """The same curves as panels of a figure, one for each chain, score and axis of cost."""
  results = shown(comparison)
  columns = min(3, len(results))
  rows = -(-len(results) // columns)
  drawn = Figure(figsize=(max(5.2, 3.6 * columns), 3.2 * rows + 0.9))
  panels = drawn.subplots(rows, columns, squeeze=False).ravel()
  lines: dict[str, Any] = {}
  for axes, result in zip(panels, results, strict=False):
    for name, stroke in strokes(result).items():
      curve = result.curves[name]
      points = evenly_spaced(len(curve.cost), POINTS)
      (lines[shorten(name, 30)],) = axes.plot(
        curve.cost[points],
        curve.quality[points],
        color=stroke.color,
        linestyle=(0, stroke.dash) if stroke.dash else '-',
        linewidth=2.2 if name == chains.CHAIN else 1.3,
      )
    for single in result.singles.values():
      axes.plot(single.cost, single.quality, 'D', color=INK)
    axes.set_title(shorten(' > '.join(result.models), 40))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: summary.amount(cost)))
    axes.set_xlabel(costs.UNITS[result.axis])
  for axes in panels[len(results) :]:
    axes.set_axis_off()
  drawn.supylabel(shorten(comparison.metric.name, 40).replace('_', ' '), fontsize=10)
  drawn.legend(lines.values(), lines.keys(), loc='outside upper center', ncols=min(4, len(lines)))
  return drawn
