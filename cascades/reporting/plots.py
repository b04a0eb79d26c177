"""Empty plots of the page's charts, in the style of the figures."""

from __future__ import annotations

from bokeh import models as bokeh

from cascades.reporting.palette import FAINT

PERCENT = '0 %'


def empty(*, height: int, x_label: str = '', percent: bool = True) -> bokeh.Plot:
  """Empty chart of the page's width; `report.js` gives text and axes the page's colors."""
  plot = bokeh.Plot(
    x_range=bokeh.DataRange1d(range_padding=0.03),
    y_range=bokeh.DataRange1d(range_padding=0.06),
    height=height,
    sizing_mode='stretch_width',
    background_fill_alpha=0,
    border_fill_alpha=0,
    outline_line_color=None,
    toolbar_location=None,
    min_border_left=48,
    min_border_right=12,
  )
  ticks = {'desired_num_ticks': 4}
  x_axis = bokeh.LinearAxis(axis_label=x_label, ticker=bokeh.BasicTicker(**ticks))
  if percent:
    x_axis.formatter = bokeh.NumeralTickFormatter(format=PERCENT)
  y_axis = bokeh.LinearAxis(ticker=bokeh.BasicTicker(**ticks))
  for axis in (x_axis, y_axis):
    axis.update(
      axis_line_color=FAINT, major_tick_line_color=FAINT, minor_tick_line_color=None,
      axis_label_text_font_style='normal', axis_label_text_font_size='13px',
      axis_label_text_font='system-ui, sans-serif', major_label_text_font='system-ui, sans-serif',
      major_label_text_font_size='12px',
    )  # fmt: skip
  plot.add_layout(x_axis, 'below')
  plot.add_layout(y_axis, 'left')
  grid = bokeh.Grid(dimension=1, axis=y_axis, grid_line_color=FAINT, grid_line_alpha=0.25)
  plot.add_layout(grid)
  return plot
