"""Figures of a sweep of `speculate`: quality against its costs, and acceptance by position.

A rule has one color and line style in all figures, and a number of drafts one marker.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from cascades import target_distributions
from cascades.evaluation.speculation import SEQUENCE, PointResult, SpeculationFrontier
from cascades.evaluation.speculation_costs import LARGE, SEQUENTIAL, SMALL
from cascades.reporting import figures
from cascades.reporting.palette import FAINT, INK, PALETTE

MARKERS = ('o', 's', '^', 'D', 'P', 'v')
LINES = ('-', (0, (4, 2)), (0, (1, 1.5)))
ALONE = {SMALL: 'X', LARGE: '*'}


class CostPanel(NamedTuple):
  """Cost that a panel shows: its name, its value or nan, and the format of its numbers."""

  label: str
  value: Callable[[PointResult], float]
  formatter: Any = None


class Styles(NamedTuple):
  """Look of each rule, and marker of each number of drafts."""

  rules: Mapping[str, Mapping[str, Any]]
  markers: Mapping[int | None, str]


def draw(
  frontier: SpeculationFrontier, acceptance: Mapping[str, Sequence[float]]
) -> dict[str, Figure]:
  """Figures by file name without suffix, one of the frontier for each temperature."""
  temperatures = list(dict.fromkeys(point.temperature for point in frontier.points))
  with mpl.rc_context(figures.STYLE):
    drawn = {f'frontier-temperature{t:g}': _frontier(frontier, t) for t in temperatures}
    if acceptance:
      drawn['positions'] = _positions(frontier, acceptance)
    for figure in drawn.values():
      FigureCanvasAgg(figure)
      figure.draw_without_rendering()
      figure.set_layout_engine('none')
  return drawn


def rule_label(rule: str) -> str:
  """Name of a rule for readers."""
  if rule == SEQUENCE:
    return 'sequence cascade'
  if (own := rule.removeprefix(SEQUENTIAL)) in target_distributions.SEQUENTIAL and own != rule:
    return f'token cascade {own.replace("_", " ")}'
  return f'{rule} alone' if rule in ALONE else rule.replace('_', ' ')


def metric_label(frontier: SpeculationFrontier) -> str:
  """Name of the quality for readers."""
  return frontier.metric.replace('_', ' ')


def styles_of(frontier: SpeculationFrontier) -> Styles:
  """Looks that differ by rule, and by the number of drafts."""
  rules = dict.fromkeys(p.rule for p in frontier.points if p.rule not in ALONE)
  looks = itertools.product(LINES, PALETTE)
  gammas = sorted({p.gamma for p in frontier.points if p.gamma is not None})
  return Styles(
    {rule: {'linestyle': line, 'color': c} for rule, (line, c) in zip(rules, looks, strict=False)},
    dict(zip((*gammas, None), itertools.cycle(MARKERS), strict=False)),
  )


def costs(frontier: SpeculationFrontier) -> list[CostPanel]:
  """Costs of an answer that quality is shown against."""
  batch = frontier.batch
  seconds = CostPanel(
    f'seconds per answer, batch {batch} (large alone = 1)',
    lambda point: point.seconds.get(batch, math.nan),
  )
  return [
    *([seconds] if batch else []),
    CostPanel('calls of the large model per answer', lambda point: point.large_calls),
    CostPanel('rejected drafts', lambda point: point.rejection_rate, PercentFormatter(1)),
    CostPanel('FLOPs per answer', lambda point: point.flops, EngFormatter()),
  ]


def _frontier(frontier: SpeculationFrontier, temperature: float) -> Figure:
  """Quality against each cost, in panels of one temperature."""
  shown, styles = costs(frontier), styles_of(frontier)
  own = [point for point in frontier.points if point.temperature == temperature]
  figure = Figure(figsize=(10.4, 8.2))
  panels = figure.subplots(2, 2, sharey=True)
  for axes, cost in itertools.zip_longest(panels.flat, shown):
    if cost is None:
      axes.set_visible(False)
      continue
    if temperature in frontier.sequence:
      x, y, spread = _columns(frontier.sequence[temperature].points, cost)
      axes.fill_between(x, y - spread[0], y + spread[1], color=FAINT, alpha=0.2, linewidth=0)
      axes.plot(x, y, color=FAINT)
    for rule, look in styles.rules.items():
      for gamma, marker in styles.markers.items():
        points = [p for p in own if (p.rule, p.gamma) == (rule, gamma)]
        if not points:
          continue
        x, y, spread = _columns(points, cost)
        axes.errorbar(
          x, y, spread, marker=marker, markersize=4.5, linewidth=1.1, elinewidth=0.5, **look
        )
    for point in own:
      if point.rule in ALONE and point.gamma is None:
        axes.axhline(point.quality, color=FAINT, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.plot(
          *_columns([point], cost)[:2], ALONE[point.rule], color=INK, markersize=9, zorder=5
        )
    axes.set_xlabel(cost.label)
    axes.set_ylabel(metric_label(frontier) if axes.get_subplotspec().is_first_col() else '')
    if cost.formatter:
      axes.xaxis.set_major_formatter(cost.formatter)
  figure.legend(handles=_legend(styles, own, temperature in frontier.sequence),
                loc='outside lower center', ncols=5)  # fmt: skip
  return figure


def _columns(points: Sequence[PointResult], cost: CostPanel) -> tuple[np.ndarray, ...]:
  """Cost, quality and spread of the paired interval of the points that have the cost, by alpha."""
  shown = [p for p in points if math.isfinite(cost.value(p))]
  shown.sort(key=lambda point: point.alpha or 0.0)
  spread = [[d.value - d.low, d.high - d.value] for d in (point.difference for point in shown)]
  x, y = ([value(p) for p in shown] for value in (cost.value, lambda p: p.quality))
  return np.array(x), np.array(y), np.abs(np.reshape(spread, (-1, 2)).T)


def _legend(styles: Styles, own: Sequence[PointResult], sequence: bool) -> list[Line2D]:
  """Rules by color and line, numbers of drafts by marker, then what is in every panel."""
  present = {point.rule for point in own}
  line = lambda label, **look: Line2D([], [], label=label, **look)
  drafts = {gamma: marker for gamma, marker in styles.markers.items() if gamma is not None}
  return [
    *(line(rule_label(rule), **look) for rule, look in styles.rules.items() if rule in present),
    *([line('sequence cascade', color=FAINT)] if sequence else []),
    *(line(f'gamma {g}', color=FAINT, marker=m, linestyle='') for g, m in drafts.items()),
    *(
      line(f'{model} alone', color=INK, marker=marker, markersize=8, linestyle='')
      for model, marker in ALONE.items()
    ),
  ]


def drafting(
  frontier: SpeculationFrontier, acceptance: Mapping[str, Sequence[float]], temperature: float
) -> Iterator[PointResult]:
  """Points whose acceptance is shown: each rule at the most drafts, the alpha of best quality."""
  sign = 1 if frontier.higher_is_better else -1
  by_rule: dict[str, list[PointResult]] = {}
  for point in frontier.points:
    if point.temperature == temperature and point.gamma and point.name in acceptance:
      by_rule.setdefault(point.rule, []).append(point)
  for own in by_rule.values():
    yield max(own, key=lambda point: (point.gamma or 0, sign * point.quality))


def _positions(frontier: SpeculationFrontier, acceptance: Mapping[str, Sequence[float]]) -> Figure:
  """Acceptance by position of the points of `drafting`."""
  styles = styles_of(frontier)
  drafted = [point for point in frontier.points if point.name in acceptance]
  temperatures = list(dict.fromkeys(point.temperature for point in drafted))
  figure = Figure(figsize=(10.4, 4.6))
  panels = figure.subplots(1, max(2, len(temperatures)), sharey=True)
  for axes, temperature in itertools.zip_longest(panels, temperatures):
    own = [] if temperature is None else [*drafting(frontier, acceptance, temperature)]
    axes.set_visible(bool(own))
    for point in own:
      axes.plot(
        range(1, (point.gamma or 0) + 1), acceptance[point.name], markersize=4,
        marker=styles.markers[point.gamma], **styles.rules[point.rule],
      )  # fmt: skip
    axes.set_title(f'temperature {temperature:g}' if own else '')
    axes.set_xlabel('position of the draft in its block')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
  panels[0].set_ylabel('accepted, of those reached')
  rules = {point.rule: styles.rules[point.rule] for point in drafted}
  handles = [Line2D([], [], label=rule_label(rule), **look) for rule, look in rules.items()]
  figure.legend(handles=handles, loc='outside lower center', ncols=6)
  return figure
