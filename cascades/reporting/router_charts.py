"""Interactive charts of a router among models: its curve, a map of prompts, and who answers.

As in `charts`, they hold numbers only; `router.js` moves the price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from bokeh import models as bokeh
from jaxtyping import Float, Int

from cascades.evaluation.router_pool import RouterPool
from cascades.reporting import plots
from cascades.reporting.palette import FAINT, PALETTE
from cascades.reporting.router_figures import BAND

Numbers: TypeAlias = Sequence[float] | np.ndarray

X_LABEL = 'cost of a query, as share of the dearest model'


def colors(pool: RouterPool) -> list[str]:
  """Color of each model: those that answer most along the curve have one, all others are gray."""
  answered = pool.shares.sum(axis=0)
  order = np.argsort(-answered, kind='stable')
  shades = dict(zip(order[answered[order] > 0].tolist(), PALETTE, strict=False))
  return [shades.get(model, FAINT) for model in range(len(pool.models))]


def draw(
  pool: RouterPool, shares: Float[np.ndarray, 'S'], quality: Mapping[str, Float[np.ndarray, 'T S']]
) -> dict[str, bokeh.Plot]:
  """Charts by the id of the element to draw into.

  Args:
    pool: The router of one draw.
    shares: Shares of the dearest model's cost.
    quality: Quality of each router there in each trial.
  """
  return {
    'chart-curve': _curve(pool),
    'chart-map': _map(pool),
    'chart-shares': _answers(pool),
    'chart-trials': _trials(shares, quality),
  }


def values(pool: RouterPool) -> dict[str, Any]:
  """Numbers that the slider moves over, as JSON values, by rising cost."""
  dearest = pool.model_cost.max()
  order = np.argsort(-pool.price, kind='stable')
  control = np.interp(pool.cost, *pool.control)
  return {
    'price': [_number(x) for x in pool.price[order]],
    'x': [_number(x) for x in pool.cost[order] / dearest],
    'cost': [_number(x) for x in pool.cost[order]],
    'quality': [_number(x) for x in pool.quality[order]],
    'control': [_number(x) for x in control[order]],
    'choices': pool.choices[order].tolist(),
    'shares': [[_number(x) for x in row] for row in pool.shares[order]],
    'routes': [_switches(own) for own in pool.chosen[order].T],
    'colors': colors(pool),
  }


def _switches(models: Int[np.ndarray, 'P']) -> list[int]:
  """Points at which a prompt changes its model, each followed by that model."""
  points = np.append(0, 1 + np.flatnonzero(np.diff(models)))
  return np.stack([points, models[points]], axis=1).ravel().tolist()


def _number(value: float) -> float:
  return float(f'{value:.6g}')


def _line(x: Numbers, y: Numbers, shade: str, **look: Any) -> bokeh.GlyphRenderer:
  source = bokeh.ColumnDataSource({'x': x, 'y': y})
  glyph = bokeh.Line(x='x', y='y', line_color=shade, **{'line_width': 2.5, **look})
  return bokeh.GlyphRenderer(data_source=source, glyph=glyph)


def _dots(
  x: Numbers, y: Numbers, shade: Sequence[str], *, source_name: str | None = None, **look: Any
) -> bokeh.GlyphRenderer:
  source = bokeh.ColumnDataSource({'x': x, 'y': y, 'shade': shade}, name=source_name)
  glyph = bokeh.Scatter(x='x', y='y', fill_color='shade', line_color=None, **look)
  return bokeh.GlyphRenderer(data_source=source, glyph=glyph)


def _price_line(name: str, *, editable: bool = False) -> bokeh.Span:
  return bokeh.Span(
    name=name, dimension='height', location=0, line_width=1.5, line_dash=[5, 3], line_color=FAINT,
    editable=editable, hover_line_color=PALETTE[0], hover_line_width=3,
  )  # fmt: skip


def _curve(pool: RouterPool) -> bokeh.Plot:
  """Curve of the router, the models, ZeroRouter's hull, and a price to drag."""
  plot = plots.empty(height=380, x_label=X_LABEL)
  dearest = pool.model_cost.max()
  cost, quality = pool.control
  plot.renderers += [
    _line(cost / dearest, quality, FAINT, line_width=1.5, line_dash=[2, 4]),
    _line(pool.cost / dearest, pool.quality, PALETTE[0]),
    _dots(pool.model_cost / dearest, pool.model_quality, colors(pool), size=11, marker='diamond'),
    _dots([0], [pool.quality[0]], [PALETTE[0]], size=14, source_name='point'),
  ]
  plot.add_layout(_price_line('price line', editable=True))
  return plot


def _map(pool: RouterPool) -> bokeh.Plot:
  """Prompts as points, in the color of the model that answers them."""
  plot = plots.empty(height=430, percent=False)
  for axis in (*plot.below, *plot.left):
    axis.visible = False
  for grid in plot.select({'type': bokeh.Grid}):
    grid.visible = False
  shade = [colors(pool)[model] for model in pool.chosen[0]]
  size = 6 if len(pool.position) < 800 else 5
  plot.renderers.append(
    _dots(
      pool.position[:, 0],
      pool.position[:, 1],
      shade,
      size=size,
      fill_alpha=0.75,
      source_name='prompts',
    )
  )
  return plot


def _answers(pool: RouterPool) -> bokeh.Plot:
  """Share of the prompts that each model answers, stacked over cost."""
  plot = plots.empty(height=230, x_label=X_LABEL)
  plot.y_range = bokeh.Range1d(0, 1)
  plot.left[0].formatter = bokeh.NumeralTickFormatter(format=plots.PERCENT)
  order = np.argsort([shade == FAINT for shade in colors(pool)], kind='stable')
  ends = np.cumsum(pool.shares[:, order], axis=1)
  for index, model in enumerate(order):
    low = ends[:, index - 1] if index else np.zeros(len(ends))
    source = bokeh.ColumnDataSource(
      {'x': pool.cost / pool.model_cost.max(), 'low': low, 'high': ends[:, index]}
    )
    area = bokeh.VArea(x='x', y1='low', y2='high', fill_color=colors(pool)[model], fill_alpha=0.6)
    plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=area))
  plot.add_layout(_price_line('share line'))
  return plot


def _trials(
  shares: Float[np.ndarray, 'S'], quality: Mapping[str, Float[np.ndarray, 'T S']]
) -> bokeh.Plot:
  """Mean and band of each router over the trials."""
  plot = plots.empty(height=300, x_label=X_LABEL)
  for shade, own in zip(PALETTE, quality.values(), strict=False):
    low, high = np.percentile(own, BAND, axis=0)
    source = bokeh.ColumnDataSource({'x': shares, 'low': low, 'high': high})
    band = bokeh.VArea(x='x', y1='low', y2='high', fill_color=shade, fill_alpha=0.15)
    plot.renderers.append(bokeh.GlyphRenderer(data_source=source, glyph=band))
    plot.renderers.append(_line(shares, own.mean(axis=0), shade))
  return plot
