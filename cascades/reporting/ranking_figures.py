"""Figure of a ranking cascade: quality over milliseconds and over bytes read of a query."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cascades.reporting.figures import STYLE
from cascades.reporting.palette import PALETTE
from cascades.types import Curve


def draw(panels: Mapping[str, Mapping[str, Curve]], measure: str) -> Figure:
  """One panel for each unit of cost, with one curve for each cascade.

  Args:
    panels: Curves by unit and name.
    measure: Name of the quality.
  """
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(4.8 * len(panels), 3.8))
    FigureCanvasAgg(figure)
    for axes, (unit, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
      for color, (name, curve) in zip(PALETTE, curves.items(), strict=False):
        axes.plot(curve.cost, curve.quality, color=color, label=name, marker='o', markersize=3)
      axes.set(xlabel=f'{unit} per query', ylabel=measure)
    axes.legend(frameon=False)
  return figure
