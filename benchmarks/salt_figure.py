"""The figure of small model aided training: validation losses against what they cost."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cascades.reporting import figures
from cascades.reporting.palette import PALETTE

LABELS = {'steps': 'steps', 'flops': 'FLOPs', 'seconds': 'seconds'}
HIGHEST = 2.7  # nats; above it all curves are steep


def draw(runs: Mapping[str, Mapping[str, Any]], path: pathlib.Path) -> None:
  """Mean and range over seeds of each arm, against steps, FLOPs, and seconds if measured."""
  measured = [cost for cost in LABELS if all(cost in run for run in runs.values())]
  with mpl.rc_context(figures.STYLE):
    figure = Figure(figsize=(7.4, 4.4))
    panels = figure.subplots(1, len(measured), sharey=True)
    for color, (name, run) in zip(PALETTE, runs.items(), strict=False):
      by_seed = np.array(run['curves'])
      ends = by_seed.min(axis=0), by_seed.max(axis=0)
      for axes, cost in zip(panels, measured, strict=True):
        axes.fill_between(run[cost], *ends, color=color, alpha=0.15, linewidth=0)
        axes.plot(run[cost], by_seed.mean(axis=0), color=color, label=name, linewidth=1.4)
    for axes, cost in zip(panels, measured, strict=True):
      axes.set_xlabel(LABELS[cost])
      axes.set_ylim(top=HIGHEST)
    panels[0].set_ylabel('validation loss, nats per byte')
    panels[-1].legend()
    FigureCanvasAgg(figure)
    path.write_bytes(figures.encode(figure, 'png'))
