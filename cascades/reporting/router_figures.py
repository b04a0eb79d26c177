"""Figure of routers among unseen models: quality over cost, with bands over trials."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cascades.reporting.figures import STYLE
from cascades.reporting.palette import PALETTE

BAND = (2, 98)  # percentiles of the trials


def draw(shares: Float[np.ndarray, 'S'], quality: Mapping[str, Float[np.ndarray, 'T S']]) -> Figure:
  """Mean quality of each router over the share of the dearest model's cost, and its band."""
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(6.4, 4.0))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for color, (name, values) in zip(PALETTE, quality.items(), strict=False):
      axes.plot(shares, values.mean(axis=0), color=color, label=name)
      axes.fill_between(shares, *np.percentile(values, BAND, axis=0), color=color, alpha=0.15)
    axes.set(xlabel='cost of a query, of the dearest model', ylabel='quality', xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(frameon=False)
  return figure
