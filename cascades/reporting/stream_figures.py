"""Figure of a stream: running accuracy, and who answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cascades.reporting.figures import STYLE
from cascades.reporting.palette import PALETTE

DRAWN = 2000  # points of a line


def draw(
  answers: Iterable[Mapping[str, Any]],
  baselines: Mapping[str, Bool[np.ndarray, 'T']] = MappingProxyType({}),
  *,
  levels: int,
) -> Figure:
  """Cumulative accuracy, where rows have gold labels, and the share that each level answers.

  Args:
    answers: Rows of answers, with `level`, from 1, and perhaps `correct`.
    baselines: Correct answers of other policies to the T rows with gold labels, by name.
    levels: Number of levels, the expert last.
  """
  pairs = ((row['level'], row.get('correct', np.nan)) for row in answers)
  columns = np.fromiter(pairs, [('level', float), ('correct', float)])
  level, correct = columns['level'], columns['correct']
  count = np.arange(1, len(level) + 1)
  points = np.unique(np.linspace(0, max(len(level) - 1, 0), DRAWN).astype(int))[: len(level)]
  labeled = np.isfinite(correct)
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(6.4, 5.2), layout='constrained')
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    policies = {'cascade': correct[labeled], **baselines} if labeled.any() else {}
    for color, (name, right) in zip(PALETTE, policies.items(), strict=False):
      running = np.zeros(len(count))
      running[labeled] = right
      running = np.cumsum(running) / np.maximum(np.cumsum(labeled), 1)
      upper.plot(count[points], running[points], color=color, label=name)
    if baselines:
      upper.legend(frameon=False)
    upper.set(ylabel='accuracy so far')
    names = [f'level {number}' for number in range(1, levels)] + ['expert']
    for color, (number, name) in zip(PALETTE, enumerate(names, 1), strict=False):
      share = np.cumsum(level == number) / count
      lower.plot(count[points], share[points], color=color, label=name)
    lower.set(xlabel='queries', ylabel='answered so far by', ylim=(0, 1))
    for axes in (upper, lower):
      axes.yaxis.set_major_formatter(PercentFormatter(1))
    lower.legend(frameon=False)
  return figure
