"""Comparisons of the sweep of speculation over seeds, and its figure."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.bars import Measured
from benchmarks.cat_seeds import over_seeds
from cascades.reporting import figures
from cascades.reporting.palette import FAINT, INK, PALETTE

Numbers = Mapping[str, Any]
DRAWN = {'opt': 'opt', 'token_v3': 'token v3', 'bild': 'bild', 'token_chow': 'token cascade'}


def best_sequence(curves: Sequence[Numbers]) -> str:
  """Deferral rule of the largest area under quality against calls, in the mean over seeds."""
  area = lambda own: np.trapezoid(own['quality'], own['large_calls']) / own['large_calls'][-1]
  return max(curves[0], key=lambda rule: float(np.mean([area(seed[rule]) for seed in curves])))


def at_calls(curve: Numbers, calls: float) -> float:
  """Quality of a sequence cascade at this number of calls of the large model."""
  return float(np.interp(calls, curve['large_calls'], curve['quality']))


def compared(measured: Numbers, temperature: float, gamma: int) -> dict[str, dict[str, Any]]:
  """Mean and interval over seeds of each point at `gamma`, and of its differences.

  Args:
    measured: Numbers of points and curves, each a list over the seeds.
    temperature: Temperature of the points.
    gamma: Number of drafts of the points; token cascades and models alone are compared as well.

  Returns:
    For each point over_seeds of `quality`, `large_calls`, `length` (over the large model's), and
    of the quality minus that of lossless decoding, of lossless greedy decoding, of the small model
    alone, and of the sequence cascade at as many calls; for the calls minus those of lossless.
  """
  points, curves = measured['points'], measured['sequence'][f'{temperature:g}']
  rule, suffix = best_sequence(curves), f'temperature{temperature:g}'
  lossless, small, large = (
    points[f'{name}-{suffix}'] for name in (f'lossless-gamma{gamma}', 'small', 'large')
  )
  greedy = points[f'lossless-gamma{gamma}-temperature0']
  minus = lambda a, b: over_seeds([x - y for x, y in zip(a, b, strict=True)])
  results = {}
  for name, point in points.items():
    if point['temperature'] != temperature or point['gamma'] not in (gamma, None):
      continue
    quality, calls = point['quality'], point['large_calls']
    sequence = [at_calls(seed[rule], own) for seed, own in zip(curves, calls, strict=True)]
    results[name] = {
      'quality': over_seeds(quality),
      'large_calls': over_seeds(calls),
      'length': over_seeds([a / b for a, b in zip(point['tokens'], large['tokens'], strict=True)]),
      'quality - lossless': minus(quality, lossless['quality']),
      'quality - greedy lossless': minus(quality, greedy['quality']),
      'quality - small': minus(quality, small['quality']),
      'quality - sequence': minus(quality, sequence),
      'calls - lossless': minus(calls, lossless['large_calls']),
    }
  return results


def _interval(difference: Mapping[str, float]) -> str:
  return f'{difference["mean"]:+.4f} ({difference["low"]:+.4f} to {difference["high"]:+.4f})'


def rows(measured: Numbers, gamma: int) -> Iterator[Measured]:
  """Counts of the claims by temperature, then quality, calls and rejections of the points."""
  temperatures = [float(temperature) for temperature in measured['sequence']]
  for temperature in temperatures:
    results = compared(measured, temperature, gamma)
    drafting = {
      name: own
      for name, own in results.items()
      if measured['points'][name]['gamma'] == gamma and not name.startswith('lossless')
    }
    claims = {
      'better than lossless, no more calls': lambda own: (
        own['quality - lossless']['low'] > 0 and own['calls - lossless']['mean'] <= 0
      ),
      'better than greedy lossless': lambda own: own['quality - greedy lossless']['low'] > 0,
      'better than the sequence cascade at equal calls': lambda own: (
        own['quality - sequence']['low'] > 0
      ),
      'worse than the sequence cascade at equal calls': lambda own: (
        own['quality - sequence']['high'] < 0
      ),
      'worse than the small model': lambda own: own['quality - small']['high'] < 0,
      'longer answers': lambda own: own['length']['low'] > 1,
      'shorter answers': lambda own: own['length']['high'] < 1,
    }
    rule = best_sequence(measured['sequence'][f'{temperature:g}'])
    for claim, holds in claims.items():
      names = [name for name, own in drafting.items() if holds(own)]
      note = f'of {len(drafting)}' + (f', {rule!r}' if 'sequence' in claim else '')
      shown = ', '.join(n.removesuffix(f'-temperature{temperature:g}') for n in names[:4])
      yield Measured(
        f'T {temperature:g}: {claim}', len(names), 'points', note=f'{note}: {shown}'.rstrip(': ')
      )
  for temperature in temperatures:
    for name, own in compared(measured, temperature, gamma).items():
      notes = {
        'quality': f'- lossless {_interval(own["quality - lossless"])}, '
        f'- sequence {_interval(own["quality - sequence"])}',
        'large_calls': f'- lossless {_interval(own["calls - lossless"])}',
        'length': f'{own["length"]["low"]:.4f} to {own["length"]["high"]:.4f}',
      }
      for column, note in notes.items():
        yield Measured(f'{name}: {column}', own[column]['mean'], '', note=note)
  for name, point in measured['points'].items():
    if point['gamma'] not in (gamma, None):
      rejected = float(np.mean(point['rejection_rate']))
      yield Measured(
        f'{name}: large_calls', float(np.mean(point['large_calls'])), '',
        note=f'rejected {rejected:.4f}',
      )  # fmt: skip


def draw(measured: Numbers, gamma: int, path: pathlib.Path) -> None:
  """Quality against calls of the large model, at the least and the largest temperature."""
  with mpl.rc_context(figures.STYLE):
    figure = Figure(figsize=(8.2, 3.9))
    temperatures = [float(temperature) for temperature in measured['sequence']]
    ends = (min(temperatures), max(temperatures))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, temperature in zip(panels, ends, strict=True):
      _panel(axes, measured, temperature, gamma)
      axes.set_title('greedy' if not temperature else f'temperature {temperature:g}')
      axes.set_xlabel('calls of the large model per answer')
    panels[0].set_ylabel('words pronounced correctly')
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine('none')
    path.write_bytes(figures.encode(figure, 'png'))


def _panel(axes: Axes, measured: Numbers, temperature: float, gamma: int) -> None:
  curves = measured['sequence'][f'{temperature:g}']
  rule = best_sequence(curves)
  calls, quality = (
    np.mean([seed[rule][column] for seed in curves], axis=0)
    for column in ('large_calls', 'quality')
  )
  axes.plot(calls, quality, color=FAINT, label='sequence cascade')
  results = compared(measured, temperature, gamma)
  for (name, label), color, marker in zip(
    DRAWN.items(), PALETTE, itertools.cycle('osD^'), strict=False
  ):
    own = [results[n] for n in results if measured['points'][n]['rule'] == name]
    _draw(axes, own, color=color, marker=marker, label=label)
  for name, marker, label in (
    (f'lossless-gamma{gamma}', '*', 'lossless'),
    ('small', 'v', 'small alone'),
    ('large', 's', 'large alone'),
  ):
    own = [results[f'{name}-temperature{temperature:g}']]
    _draw(axes, own, color=INK, marker=marker, label=label)


def _draw(axes: Axes, own: Sequence[Numbers], *, color: str, marker: str, label: str) -> None:
  """Points over the seeds, from few calls to many, with their spread over seeds."""
  ordered = sorted(own, key=lambda point: point['large_calls']['mean'])
  x, y = ([point[c]['mean'] for point in ordered] for c in ('large_calls', 'quality'))
  axes.plot(
    x,
    y,
    color=color,
    marker=marker,
    markersize=9 if marker == '*' else 5,
    linewidth=1.2,
    label=label,
  )
