"""Figures of a sweep of `speculate`: quality against its costs, and acceptance by position."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cascades.curves import evenly_spaced
from cascades.evaluation.speculation import LARGE, SMALL, PointResult, SpeculationFrontier
from cascades.reporting import figures
from cascades.reporting.palette import FAINT, INK, PALETTE


def draw(
  frontier: SpeculationFrontier, acceptance: Mapping[str, Sequence[float]]
) -> dict[str, Figure]:
  """Figures by file name without suffix."""
  with mpl.rc_context(figures.STYLE):
    drawn = {}
    if frontier.batch:
      label = f'seconds per answer, batch {frontier.batch} (large model alone = 1)'
      drawn['seconds'] = _against(frontier, label, lambda point: point.seconds[frontier.batch])
    drawn['calls'] = _against(frontier, 'calls of the large model', lambda p: p.large_calls)
    drawn['rejections'] = _against(frontier, 'share of rejected drafts', lambda p: p.rejection_rate)
    if acceptance:
      drawn['positions'] = _positions(acceptance)
    for figure in drawn.values():
      FigureCanvasAgg(figure)
      figure.draw_without_rendering()
      figure.set_layout_engine('none')
  return drawn


def _against(
  frontier: SpeculationFrontier, label: str, cost: Callable[[PointResult], float]
) -> Figure:
  """Quality against a cost, one panel a temperature and one color a rule."""
  temperatures = list(dict.fromkeys(point.temperature for point in frontier.points))
  rules = [r for r in dict.fromkeys(p.rule for p in frontier.points) if r not in (SMALL, LARGE)]
  colors = dict(zip(rules, itertools.cycle(PALETTE), strict=False))
  figure = Figure(figsize=(6.4, 1.0 + 3.4 * len(temperatures)))
  panels = figure.subplots(len(temperatures), 1, squeeze=False)[:, 0]
  for axes, temperature in zip(panels, temperatures, strict=True):
    own = [p for p in frontier.points if p.temperature == temperature]
    if label.startswith('seconds') and temperature in frontier.sequence:
      curve = frontier.sequence[temperature]
      axes.plot(curve.cost, curve.quality, color=FAINT, label='sequence cascade')
    for rule, color in colors.items():
      _draw_rule(axes, [p for p in own if p.rule == rule], cost, color, rule)
    for model, marker in ((SMALL, 'D'), (LARGE, 's')):
      alone = [p for p in own if p.rule == model and p.gamma is None and _is_shown(cost, p)]
      if alone:
        x, y = [cost(p) for p in alone], [p.quality for p in alone]
        axes.plot(x, y, marker, color=INK, label=f'{model} alone')
    axes.set_title(f'temperature {temperature:g}')
    axes.set_xlabel(label)
    axes.set_ylabel(frontier.metric)
  entries = [axes.get_legend_handles_labels() for axes in panels]
  lines = {
    name: line for handles, names in entries for line, name in zip(handles, names, strict=True)
  }
  figure.legend([*lines.values()], [*lines], loc='outside lower center', ncols=4)
  return figure


def _is_shown(cost: Callable[[PointResult], float], point: PointResult) -> bool:
  try:
    return math.isfinite(cost(point))
  except KeyError:  # not measured
    return False


def _draw_rule(
  axes: Axes,
  own: Sequence[PointResult],
  cost: Callable[[PointResult], float],
  color: str,
  rule: str,
) -> None:
  """Points of a rule with their intervals, and a line through those of one gamma."""
  shown = [p for p in own if _is_shown(cost, p)]
  for number, gamma in enumerate(dict.fromkeys(p.gamma for p in shown)):
    line = sorted((p for p in shown if p.gamma == gamma), key=cost)
    x, y = [cost(p) for p in line], [p.quality for p in line]
    spread = np.abs([[p.difference.value - p.difference.low for p in line],
                     [p.difference.high - p.difference.value for p in line]])  # fmt: skip
    axes.errorbar(
      x, y, spread, color=color, marker='o', markersize=3.5, linewidth=1.2, elinewidth=0.6,
      label=rule.replace('_', ' ') if not number else None,
    )  # fmt: skip


def _positions(acceptance: Mapping[str, Sequence[float]]) -> Figure:
  """Acceptance by position in the block."""
  figure = Figure(figsize=(6.4, 5.2))
  axes = figure.subplots()
  names = [*acceptance]
  drawn = [names[i] for i in evenly_spaced(len(names), len(PALETTE))]
  for name, color in zip(drawn, PALETTE, strict=False):
    shares = acceptance[name]
    axes.plot(range(1, len(shares) + 1), shares, marker='o', color=color, label=name)
  axes.set_xlabel('position of the draft in its block')
  axes.set_ylabel('share accepted, of those reached')
  axes.xaxis.set_major_locator(MaxNLocator(integer=True))
  figure.legend(loc='outside lower center')
  return figure
