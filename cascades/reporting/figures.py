"""Figures of a comparison: `draw` sets the style, and calls the other functions in it.

Names are drawn literally, never as mathematics.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, ScalarFormatter

from cascades import costs, curves
from cascades.curves import Points
from cascades.evaluation.comparison import Comparison
from cascades.evaluation.quantities import RATES
from cascades.reporting import chain_charts
from cascades.reporting import reliability as reliabilities
from cascades.reporting.escaping import shorten
from cascades.reporting.palette import FAINT, INK, PALETTE
from cascades.types import Curve

ImageFormat: TypeAlias = Literal['png', 'svg']

FORMATS: tuple[ImageFormat, ...] = ('png', 'svg')
DOMINANT = 0.25  # share of examples in one bin that would hide the others on a linear scale
POINTS = 400  # of a curve that are drawn
MOST_POINTS = 6_000  # of the curves of one figure, so that the page stays small
STYLE: dict[Any, Any] = {
  'text.parse_math': False,
  'svg.hashsalt': 'cascades',
  'font.size': 10,
  'axes.titlesize': 10,
  'axes.titlelocation': 'left',
  'axes.prop_cycle': cycler(color=PALETTE),
  'axes.edgecolor': FAINT,
  'axes.labelcolor': INK,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'grid.color': FAINT,
  'grid.alpha': 0.25,
  'grid.linewidth': 0.6,
  'lines.linewidth': 1.7,
  'legend.frameon': False,
  'legend.fontsize': 9,
  'text.color': INK,
  'xtick.color': INK,
  'ytick.color': INK,
  'figure.constrained_layout.use': True,
}
CHORD: dict[str, Any] = {'linestyle': (0, (2, 3)), 'linewidth': 1}
# Text and axes follow the reader's color scheme, also where the image is opened by itself.
ADAPTIVE = (
  f'<style>svg{{color:{INK}}}@media(prefers-color-scheme:dark){{svg{{color:#e6edf3}}}}</style>'
)


def draw(comparison: Comparison) -> dict[str, Figure]:
  """Draws every figure that the comparison has numbers for.

  Returns:
    Figures by file name without suffix, with a fixed layout.
  """
  with mpl.rc_context(STYLE):
    drawn = {
      'curves': headline(comparison),
      'scores': scores(comparison),
      'decomposition': decomposition(comparison),
      'separation': separation(comparison),
      'shares': shares(comparison),
      'reliability': reliability(comparison),
    }
    if comparison.differences:
      drawn['differences'] = differences(comparison)
    if len(comparison.sizes) > 1:
      drawn['tasks'] = tasks(comparison)
    if comparison.chains:
      drawn['chains'] = chain_charts.figure(comparison)
    for figure in drawn.values():
      FigureCanvasAgg(figure)
      figure.draw_without_rendering()
      figure.set_layout_engine('none')  # computing it again for each format takes seconds
  return drawn


def encode(figure: Figure, image_format: ImageFormat) -> bytes:
  """Encodes a figure, equal ones to equal bytes; SVG adapts to light and dark color schemes."""
  buffer = io.BytesIO()
  with mpl.rc_context(STYLE):
    if image_format == 'png':
      figure.savefig(buffer, format='png', dpi=160, metadata={'Software': None})
      return buffer.getvalue()
    figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
  text = buffer.getvalue().decode().replace(INK, 'currentColor')
  return text.replace('<defs>', f'{ADAPTIVE}<defs>', 1).encode()


def headline(comparison: Comparison) -> Figure:
  """Quality against cost: each small model's curve and band, its chord, the models alone."""
  figure = Figure(figsize=(7.6, 4.8))
  axes = figure.add_subplot()
  for color, (model, flops) in zip(_colors(), comparison.flops.items(), strict=False):
    cascade = comparison.at(model)
    cost = costs.cascade(RATES, small=flops, large=comparison.large_flops)
    axes.fill_between(cost, cascade.low, cascade.high, color=color, alpha=0.12, linewidth=0)
    curve = _thin(cascade.curve)
    axes.plot(curve.cost, curve.quality, color=color, label=shorten(model, 40))
    axes.plot(curve.cost[[0, -1]], curve.quality[[0, -1]], color=color, **CHORD)
    axes.plot(curve.cost[0], curve.quality[0], 'o', color=color, markersize=6)
  axes.plot([], [], 'o', color=FAINT, markersize=6, label='small alone')
  axes.plot([], [], color=FAINT, label='random deferral', **CHORD)
  quality = comparison.cascades[0].curve.quality[-1]
  axes.plot(comparison.large_flops, quality, 'D', color=INK, markersize=6, label='large alone')
  axes.xaxis.set_major_formatter(EngFormatter())
  axes.set(xlabel='cost (FLOPs per token)', ylabel=_label(comparison))
  axes.legend(loc='lower right' if comparison.metric.higher_is_better else 'upper right')
  if len(set(comparison.flops.values())) == 1:
    _add_rates(axes, small=flops, large=comparison.large_flops)
  return figure


def scores(comparison: Comparison) -> Figure:
  """Gain of each score over random deferral, one panel per small model."""
  figure, panels = _panels([*comparison.flops], f'gain in {_label(comparison)}')
  for axes, model in zip(panels, comparison.flops, strict=True):
    axes.axhline(0, color=FAINT, linewidth=1)
    for color, score in zip(_colors(), comparison.scores, strict=False):
      curve = _thin(
        comparison.at(model, score).curve, len(comparison.flops) * len(comparison.scores)
      )
      chord = np.interp(curve.deferral_rate, [0, 1], curve.quality[[0, -1]])
      axes.plot(
        curve.deferral_rate,
        curve.quality - chord,
        color=FAINT if score == 'random' else color,
        linewidth=1.2,
        label=shorten(score, 30),
      )
  _share_legend(figure, panels[0])
  return figure


def decomposition(comparison: Comparison) -> Figure:
  """Contributions of the kept and of the deferred examples: A1, A2 and their sum."""
  titles = ['A1: kept, small model', 'A2: deferred, large model', 'A1 + A2']
  figure, panels = _panels(titles, f'{_label(comparison)}, mean over examples')
  for color, model in zip(_colors(), comparison.flops, strict=False):
    cascade = comparison.at(model)
    small, large = cascade.small_contribution, cascade.large_contribution
    contributions = (small, large, small + large)
    for axes, values in zip(panels, contributions, strict=True):
      curve = _thin(cascade.curve._replace(quality=values))
      axes.plot(curve.deferral_rate, curve.quality, color=color, label=shorten(model, 40))
  _share_legend(figure, panels[0])
  return figure


def differences(comparison: Comparison) -> Figure:
  """Quality of one small model minus another's at equal deferral rate, with paired bands."""
  shown = [pair for pair in comparison.differences if pair.score == comparison.scores[0]]
  titles = [
    f'{shorten(pair.model, 24)} \N{MINUS SIGN} {shorten(pair.baseline, 24)}' for pair in shown
  ]
  figure, panels = _panels(titles, f'difference in {_label(comparison)}')
  for axes, pair in zip(panels, shown, strict=True):
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.fill_between(RATES, pair.low, pair.high, color=PALETTE[0], alpha=0.2, linewidth=0)
    axes.plot(RATES, pair.quality, color=PALETTE[0])
  return figure


def tasks(comparison: Comparison) -> Figure:
  """Quality against deferral rate under the first score, one panel per task."""
  figure, panels = _panels([*comparison.sizes], _label(comparison), share=False)
  for axes, task in zip(panels, comparison.sizes, strict=True):
    for color, model in zip(_colors(), comparison.flops, strict=False):
      cascade = comparison.at(model, task=task)
      curve = _thin(cascade.curve)
      axes.fill_between(RATES, cascade.low, cascade.high, color=color, alpha=0.12, linewidth=0)
      axes.plot(curve.deferral_rate, curve.quality, color=color, label=shorten(model, 40))
      axes.plot([0, 1], curve.quality[[0, -1]], color=color, **CHORD)
  _share_legend(figure, panels[0])
  return figure


def separation(comparison: Comparison) -> Figure:
  """Histogram of the first score where the large model is better, equal and worse."""
  figure, panels = _panels([*comparison.flops], 'examples', share=False)
  sign = 1 if comparison.metric.higher_is_better else -1
  for axes, answers in zip(panels, comparison.answers.values(), strict=True):
    tallest = 0
    gain = sign * (answers.large_quality - answers.small_quality)
    low, high = np.quantile(answers.score, [0.005, 0.995])
    edges = np.linspace(low, max(high, low + 1e-9), 41)
    outcomes = (
      ('large model better', gain > 0),
      ('equal', gain == 0),
      ('large model worse', gain < 0),
    )
    for color, (label, mask) in zip((PALETTE[0], FAINT, PALETTE[1]), outcomes, strict=True):
      counts, _ = np.histogram(answers.score[mask], edges)
      tallest = max(tallest, counts.max())
      axes.stairs(counts, edges, color=color, label=label, linewidth=1.3)
    if tallest > DOMINANT * len(answers.score):
      axes.set_yscale('symlog', linthresh=1)
      axes.set_title(f'{axes.get_title(loc="left")} (logarithmic)')
    axes.xaxis.set_major_formatter(ScalarFormatter())
  figure.supxlabel(
    f'score: {shorten(comparison.scores[0], 40)} (higher is deferred first)', fontsize=10
  )
  _share_legend(figure, panels[0])
  return figure


def shares(comparison: Comparison) -> Figure:
  """Share of the examples that each model answers at each threshold of the first score."""
  figure, panels = _panels([*comparison.flops], 'share of examples')
  for color, axes, model in zip(_colors(), panels, comparison.flops, strict=False):
    curve = _thin(comparison.at(model).curve, MOST_POINTS // 100)
    threshold, rate = curve.threshold[1:], curve.deferral_rate[1:]
    axes.fill_between(threshold, 0, rate, color=color, alpha=0.55, linewidth=0)
    axes.fill_between(threshold, rate, 1, color=FAINT, alpha=0.55, linewidth=0)
    axes.set_xlim(*_central(threshold, rate))
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))
  figure.supxlabel('threshold (colored: deferred, large model; gray: small model)', fontsize=10)
  return figure


def _central(threshold: Points, rate: Points) -> tuple[float, float]:
  """Thresholds between which all but 1 % of the examples are, and which differ."""
  low, high = np.interp([0.005, 0.995], rate, threshold)[::-1]
  return (low, high) if low < high else (low - 0.5, low + 0.5)


def reliability(comparison: Comparison) -> Figure:
  """Quality of both models in bins of the confidence or score, and the number of examples."""
  models = [*comparison.flops]
  figure = Figure(figsize=(max(4.6, 3.1 * len(models)), 3.9))
  panels = figure.subplots(2, len(models), squeeze=False, height_ratios=(3, 1), sharex='col')
  for color, model, axes, counts in zip(_colors(), models, *panels, strict=False):
    bins = reliabilities.reliability(
      comparison.answers[model], comparison.scores[0], comparison.metric
    )
    present = bins.examples > 0
    if not np.isnan(bins.error):
      axes.plot([0, 1], [0, comparison.metric.scale], color=FAINT, **CHORD)
    axes.plot(bins.center[present], bins.large[present], 'D-', color=FAINT, label='large model')
    axes.plot(bins.center[present], bins.small[present], 'o-', color=color, label='small model')
    axes.set_title(shorten(model, 40))
    counts.bar(
      bins.edges[:-1], bins.examples, np.diff(bins.edges), align='edge', color=FAINT, alpha=0.55
    )
  panels[0, 0].set_ylabel(_label(comparison))
  panels[1, 0].set_ylabel('examples')
  figure.supxlabel('score' if np.isnan(bins.error) else 'confidence', fontsize=10)
  _share_legend(figure, panels[0, 0])
  return figure


def _panels(titles: Sequence[str], label: str, *, share: bool = True) -> tuple[Figure, list[Axes]]:
  """Small multiples over the deferral rate, at most three per row; four make a square."""
  columns = 2 if len(titles) == 4 else min(3, len(titles))
  rows = math.ceil(len(titles) / columns)
  figure = Figure(figsize=(max(4.6, 3.1 * columns), 2.6 * rows + 0.7))
  panels = figure.subplots(rows, columns, sharey=share, squeeze=False).ravel()
  for axes, title in zip(panels, titles, strict=False):
    axes.set_title(shorten(title, 50))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))
    axes.xaxis.set_major_locator(MaxNLocator(5))
  for axes in panels[len(titles) :]:
    axes.set_axis_off()
  figure.supxlabel('deferral rate', fontsize=10)
  figure.supylabel(label, fontsize=10)
  return figure, list(panels[: len(titles)])


def _share_legend(figure: Figure, axes: Axes) -> None:
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside upper center', ncols=min(4, len(labels)))


def _add_rates(axes: Axes, *, small: float, large: float) -> None:
  """Adds an axis of the deferral rate on top; all small models must have the same cost."""
  top = axes.secondary_xaxis(
    'top',
    functions=(
      lambda cost: costs.deferral_rate(np.asarray(cost), small=small, large=large),
      lambda rate: costs.cascade(np.asarray(rate), small=small, large=large),
    ),
  )
  top.xaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))
  top.set_xlabel('deferral rate')
  top.spines['top'].set_visible(True)


def _thin(curve: Curve, drawn: int = 1) -> Curve:
  """Points of one of `drawn` curves in a figure."""
  points = max(50, min(POINTS, MOST_POINTS // drawn))
  shown = curves.evenly_spaced(len(curve.cost), points)
  return Curve(*(column[shown] for column in curve))


def _label(comparison: Comparison) -> str:
  metric = comparison.metric
  notes = [f'up to {metric.scale:g}'] if math.isfinite(metric.scale) else []
  notes += [] if metric.higher_is_better else ['lower is better']
  return f'{shorten(metric.name, 40).replace("_", " ")} ({", ".join(notes)})'


def _colors() -> Iterator[str]:
  return itertools.cycle(PALETTE)
