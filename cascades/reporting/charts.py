"""Interactive charts of a comparison, drawn in the page by Bokeh.

A chart holds numbers only: titles, legends and controls are HTML around it, so that no text from
outside reaches a drawing, and screen readers find every word. `report.js` moves the threshold.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from bokeh import models as bokeh
from bokeh.document import Document

from cascades import curves
from cascades.evaluation.comparison import Cascade, Comparison, Promised
from cascades.evaluation.quantities import RATES
from cascades.reporting import chain_charts, plots, reliability, summary
from cascades.reporting.operating_point import OperatingPoint
from cascades.reporting.palette import FAINT, PALETTE
from cascades.reporting.reliability import Reliability

MOST_POINTS_TOGETHER = 6_000  # of all curves, so that the page stays small
MOST_POINTS = 400  # of one curve
TASK_POINTS = 100
MOST_TASKS = 24  # with a chart of their own


class Charts(NamedTuple):
  """Charts of a page.

  Attributes:
    document: Bokeh's document as JSON values.
    roots: Ids of the charts in the document by the id of the element to draw into.
    curves: Points that the slider moves over, as JSON values: see `curve_values`.
  """

  document: dict[str, Any]
  roots: dict[str, str]
  curves: dict[str, Any]


def draw(comparison: Comparison, point: OperatingPoint | None = None) -> Charts:
  """Draws every chart that the comparison has numbers for; `point` is one of the slider's."""
  models = len(comparison.flops)
  drawn = {
    'chart-curve': _curve_chart(comparison),
    'chart-shares': _areas(x_label='threshold of the score', share=True),
    'chart-parts': _areas(x_label='deferral rate', share=False),
  }
  for index, answers in enumerate(comparison.answers.values()):
    bins = reliability.reliability(answers, comparison.scores[0], comparison.metric)
    drawn[f'chart-reliability-{index}'] = _reliability(bins, comparison.metric.scale, index)
    drawn[f'chart-counts-{index}'] = _counts(bins)
  for index in range(len(tasks(comparison))):
    drawn[f'chart-task-{index}'] = _task(index, models)
  for index, result in enumerate(chain_charts.shown(comparison)):
    drawn[f'chart-chain-{index}'] = chain_charts.curves(result)
    drawn[f'chart-chain-shares-{index}'] = chain_charts.shares(result)
  return Charts(*as_document(drawn), curve_values(comparison, point))


def as_document(drawn: Mapping[str, bokeh.Plot]) -> tuple[dict[str, Any], dict[str, str]]:
  """Document of charts as JSON values, and the id of each chart in it by the name of its element.

  Args:
    drawn: Charts by the id of the element to draw into.
  """
  document = Document()
  for chart in drawn.values():
    document.add_root(chart)
  content, ids = _renumber(document.to_json(deferred=False))
  return content, {name: ids[chart.id] for name, chart in drawn.items()}


def curve_values(comparison: Comparison, point: OperatingPoint | None = None) -> dict[str, Any]:
  """Points of every curve under one threshold for all tasks, and of each task.

  Returns:
    'curves' by model, and for each by score, and 'tasks' by task, and for each by model under the
    first score; each is a table of columns.
  """
  count = len(comparison.flops) * len(comparison.scores)
  points = min(MOST_POINTS, max(50, MOST_POINTS_TOGETHER // count))
  large = comparison.large_flops
  rate = 0.0 if point is None else point.rate
  return {
    'large_quality': _number(comparison.cascades[0].curve.quality[-1]),
    'digits': summary.digits(comparison),
    'colors': [color(index) for index in range(len(comparison.flops))],
    'curves': [
      [
        _columns(comparison.at(model, score), large, points, rate, comparison.promised)
        for score in comparison.scores
      ]
      for model in comparison.flops
    ],
    'tasks': [
      [_columns(comparison.at(model, task=task), large, TASK_POINTS) for model in comparison.flops]
      for task in tasks(comparison)
    ],
  }


def tasks(comparison: Comparison) -> list[str]:
  """Tasks with a chart of their own."""
  return list(comparison.sizes)[:MOST_TASKS] if len(comparison.sizes) > 1 else []


def _columns(
  cascade: Cascade,
  large_cost: float,
  points: int,
  rate: float = 0.0,
  promised: Promised | None = None,
) -> dict[str, list[Any]]:
  """Evenly spaced points of a curve, the one at this deferral rate or the next above, and the one
  that the promised threshold reaches, with the promise.
  """
  extra = [np.searchsorted(cascade.curve.deferral_rate, rate)]
  if promised is not None and (promised.model, promised.score) == (cascade.model, cascade.score):
    extra.append(np.searchsorted(-cascade.curve.threshold, -promised.threshold, 'right') - 1)
  shown = np.union1d(curves.evenly_spaced(len(cascade.curve.quality), points), extra)
  curve = curves.Curve(*(column[shown] for column in cascade.curve))
  small, large = cascade.small_contribution[shown], cascade.large_contribution[shown]
  columns = {
    'threshold': curve.threshold,
    'rate': curve.deferral_rate,
    'quality': curve.quality,
    'cost': curve.cost,
    'x': curve.cost / large_cost,
    'low': np.interp(curve.deferral_rate, RATES, cascade.low),
    'high': np.interp(curve.deferral_rate, RATES, cascade.high),
    'kept': small,
    'parts': small + large,
  }
  texts = [promised.text if promised and index in extra[1:] else None for index in shown]
  return {name: list(map(_number, column)) for name, column in columns.items()} | (
    {'promise': texts} if any(texts) else {}
  )


def _number(value: float) -> float | None:
  """Value with the seven digits that a page needs; None for what JSON does not have."""
  return float(f'{value:.7g}') if np.isfinite(value) else None


def _threshold_line(name: str, *, editable: bool = False) -> bokeh.Span:
  return bokeh.Span(
    name=name, dimension='height', location=0, line_width=1.5, line_dash=[5, 3], tags=['ink'],
    line_color=FAINT, editable=editable, hover_line_color=PALETTE[0], hover_line_width=3,
  )  # fmt: skip


def _line(x: str, y: str, source: str, shade: str, **style: Any) -> bokeh.GlyphRenderer:
  glyph = bokeh.Line(x=x, y=y, line_color=shade, **{'line_width': 2, **style})
  return bokeh.GlyphRenderer(data_source=_source(source, x, y), glyph=glyph)


def _dot(source: str, shade: str, **style: Any) -> bokeh.GlyphRenderer:
  glyph = bokeh.Scatter(
    x='x', y='quality', fill_color=shade, line_color=None, **{'size': 9, **style}
  )
  return bokeh.GlyphRenderer(data_source=_source(source, 'x', 'quality'), glyph=glyph)


def _source(name: str, *columns: str) -> bokeh.ColumnDataSource:
  """Source that `report.js` fills by its name; without a point Bokeh warns of empty ranges."""
  return bokeh.ColumnDataSource({column: [0, 1] for column in columns}, name=name)


def _curve_chart(comparison: Comparison) -> bokeh.Plot:
  """Quality against cost, with the band of the chosen model and a threshold to drag."""
  plot = plots.empty(height=380, x_label='cost, as share of the large model alone')
  area = bokeh.VArea(x='x', y1='low', y2='high', fill_alpha=0.15, name='band')
  band = _source('chosen', 'x', 'low', 'high')
  plot.renderers.append(bokeh.GlyphRenderer(data_source=band, glyph=area))
  for index, _ in enumerate(comparison.flops):
    own = color(index)
    plot.renderers += [
      _line('x', 'quality', f'ends {index}', own, line_width=1, line_dash=[2, 4]),
      _line('x', 'quality', f'curve {index}', own),
      _dot(f'alone {index}', own),
    ]
  plot.renderers += [
    _dot('large', FAINT, size=13, marker='diamond', tags=['ink']),
    _dot('point', PALETTE[0], size=13, name='point glyph'),
  ]
  plot.add_layout(_threshold_line('threshold line', editable=True))
  return plot


def _areas(*, x_label: str, share: bool) -> bokeh.Plot:
  """Stacked areas of the kept and of the deferred examples: their shares, or A1 and A2."""
  plot = plots.empty(height=230, x_label=x_label, percent=not share)
  x, below, above = ('threshold', 'rate', 'one') if share else ('rate', 'kept', 'parts')
  layers = (('zero', below), (below, above))
  colors = (PALETTE[0], FAINT) if share else (FAINT, PALETTE[0])
  if share:
    plot.update(y_range=bokeh.Range1d(0, 1), x_range=bokeh.Range1d(0, 1, name='threshold range'))
    plot.left[0].formatter = bokeh.NumeralTickFormatter(format=plots.PERCENT)
  for shade, (low, high) in zip(colors, layers, strict=True):
    area = bokeh.VArea(x=x, y1=low, y2=high, fill_color=shade, fill_alpha=0.55)
    source = _source('shares' if share else 'chosen', x, low, high)
    plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=area))
  plot.add_layout(_threshold_line('share line' if share else 'rate line'))
  return plot


def _task(index: int, models: int) -> bokeh.Plot:
  """Quality of each model on one task, and where the shared threshold stands on it."""
  plot = plots.empty(height=200, x_label='deferral rate')
  for model in range(models):
    plot.renderers += [
      _line('rate', 'quality', f'task {index} ends {model}', color(model), line_dash=[2, 4]),
      _line('rate', 'quality', f'task {index} curve {model}', color(model)),
    ]
  plot.add_layout(_threshold_line(f'task line {index}'))
  return plot


def _reliability(bins: Reliability, scale: float, index: int) -> bokeh.Plot:
  """Quality of both models in bins of the confidence, beside the diagonal of calibration."""
  calibrated = not np.isnan(bins.error)
  plot = plots.empty(height=230, percent=False)
  if calibrated:
    plot.update(x_range=bokeh.Range1d(0, 1), y_range=bokeh.Range1d(0, scale * 1.02))
    plot.add_layout(bokeh.Slope(gradient=scale, y_intercept=0, line_color=FAINT, line_dash=[2, 4]))
  present = bins.examples > 0
  for quality, shade, marker in (
    (bins.large, FAINT, 'diamond'),
    (bins.small, color(index), 'circle'),
  ):
    source = bokeh.ColumnDataSource({'x': bins.center[present], 'y': quality[present]})
    glyphs = (
      bokeh.Line(x='x', y='y', line_color=shade, line_width=2),
      bokeh.Scatter(x='x', y='y', size=9, marker=marker, fill_color=shade, line_color=None),
    )
    plot.renderers += [bokeh.GlyphRenderer(data_source=source, glyph=glyph) for glyph in glyphs]
  return plot


def _counts(bins: Reliability) -> bokeh.Plot:
  """Number of examples in each bin."""
  label = 'score' if np.isnan(bins.error) else 'confidence'
  plot = plots.empty(height=110, x_label=label, percent=False)
  if not np.isnan(bins.error):
    plot.x_range = bokeh.Range1d(0, 1)
  plot.left[0].ticker.desired_num_ticks = 2
  columns = {'left': bins.edges[:-1], 'right': bins.edges[1:], 'top': bins.examples}
  bars = bokeh.Quad(
    left='left', right='right', top='top', bottom=0, fill_color=FAINT, fill_alpha=0.55,
    line_color=None,
  )  # fmt: skip
  source = bokeh.ColumnDataSource(columns)
  plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=bars))
  return plot


def color(index: int) -> str:
  """Color of a small model by its number."""
  return PALETTE[index % len(PALETTE)]


def _renumber(value: Any) -> tuple[Any, dict[str, str]]:
  """Numbers the models of a document from 1, so that equal comparisons have equal pages."""
  ids: dict[str, str] = {}

  def renumber(value: Any) -> Any:
    if isinstance(value, dict):
      return {
        key: ids.setdefault(item, f'm{len(ids) + 1}') if key == 'id' else renumber(item)
        for key, item in value.items()
      }
    return [renumber(item) for item in value] if isinstance(value, list) else value

  return renumber(value), ids


@functools.cache
def library() -> str:
  """Bokeh's script."""
  folder = resources.files('bokeh').joinpath('server/static/js')
  return folder.joinpath('bokeh.min.js').read_text('utf-8')
