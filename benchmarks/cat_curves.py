"""Deferral curves of finished points of the reproduction, of all tasks of a mixture and of each.

    python -m benchmarks.cat_curves --task classification
    python -m benchmarks.cat_curves --task pretrain_causal

The figure has the quality over the deferral rate by loss, the mean over complete seeds, one panel
for the pooled rows and, of a mixture, one for each task, as figures 2 to 12 of the paper, and one
for their mean, where all tasks have the same deferral rate; for pre-training, it is the plot of its
appendix E. The table also has the share of each task's rows that one threshold defers. Reads stored
test rows and runs nothing.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import bars, cat_runs, cat_statistics
from benchmarks.bars import Measured
from benchmarks.cat_grid import BASE, BASE_SEEDS, SIZES, Cell
from benchmarks.cat_runs import Bench
from benchmarks.cat_statistics import Rows
from benchmarks.cat_tasks import Folders
from cascades import bootstrap, metrics
from cascades.curves import Finalize

POOLED, EQUAL = 'all rows', 'equal rates'
RATES = np.linspace(0.0, 1.0, 51)


def complete(bench: Bench, task: str, size: str) -> Iterator[tuple[str, Cell]]:
  """Loss and cell of every point of the seeds that all base losses have completed."""
  for seed in range(BASE_SEEDS):
    cells = [Cell(task, size, loss, seed=seed) for loss in BASE]
    if all(map(bench.is_done, cells)):
      yield from zip(BASE, cells, strict=True)


def members(bench: Bench, cell: Cell) -> dict[str, Bool[np.ndarray, 'rows']]:
  """Which test rows of a point belong to each task of a mixture; nothing of a single task."""
  with np.load(bench.path(cell).with_suffix('.npz'), allow_pickle=False) as stored:
    tasks = stored.get('task', np.array([]))
  return {name: tasks == name for name in dict.fromkeys(tasks.tolist())}


def subsets(bench: Bench, cell: Cell) -> dict[str, Rows]:
  """Test rows of a point: all, and those of each task of a mixture."""
  rows = bench.rows(cell)
  tasks = members(bench, cell).items()
  return {POOLED: rows} | {name: Rows(*(own[chosen] for own in rows)) for name, chosen in tasks}


def curve(rows: Rows, finalize: Finalize) -> Float[np.ndarray, 'rates']:
  """Quality at `RATES`."""
  every = np.ones((1, len(rows.score)))
  return bootstrap.resample(every, *rows, finalize, rates=RATES).quality[0]


Curves = Mapping[str, Mapping[str, Float[np.ndarray, 'S rates']]]  # by subset and loss


def read(bench: Bench, task: str, size: str) -> Curves:
  """Curves of the seeds that all base losses have completed."""
  gathered: dict[str, dict[str, list[np.ndarray]]] = {}
  for loss, cell in complete(bench, task, size):
    finalize = metrics.by_name(bench.summary(cell)['metric']).finalize
    for name, rows in subsets(bench, cell).items():
      gathered.setdefault(name, {}).setdefault(loss, []).append(curve(rows, finalize))
  curves = {
    name: {loss: np.stack(values) for loss, values in by_loss.items()}
    for name, by_loss in gathered.items()
  }
  tasks = [by_loss for name, by_loss in curves.items() if name != POOLED]
  if tasks:
    curves[EQUAL] = {loss: np.mean([own[loss] for own in tasks], axis=0) for loss in BASE}
  return curves


def deferred(bench: Bench, task: str, size: str) -> Iterator[Measured]:
  """Shares of each task's rows that one threshold defers where it defers half of all rows."""
  shares: dict[str, list[float]] = {}
  for loss, cell in complete(bench, task, size):
    score = bench.rows(cell).score
    half = np.argsort(np.argsort(-score, kind='stable')) < len(score) // 2
    for name, chosen in members(bench, cell).items():
      shares.setdefault(f'{name}: {loss}, deferred', []).append(float(half[chosen].mean()))
  for what, values in shares.items():
    yield Measured(what, fmean(values), 'of rows', note='half of all rows are deferred')


def measure(by_subset: Curves) -> Iterator[Measured]:
  """Areas of each subset and loss, and the gains of CAT, with Student's interval over seeds.

  The rows of a task are too few for a test each: these rows describe.
  """
  for name, by_loss in by_subset.items():
    areas = {loss: np.trapezoid(values, RATES, axis=1) for loss, values in by_loss.items()}
    for loss, values in areas.items():
      yield Measured(f'{name}: {loss}', float(values.mean()), 'area', note=f'{len(values)} seeds')
    for loss in ('xent', 'dist'):
      differences = (areas[f'cat_{loss}'] - areas[loss]).tolist()
      effect = cat_statistics.mixed(differences, 0.0, rows=2)
      note = f'{effect.low:+.4f} .. {effect.high:+.4f} over {len(differences)} seeds'
      yield Measured(f'{name}: cat_{loss} - {loss}', effect.mean, 'area', note=note)


def draw(by_subset: Curves, path: pathlib.Path) -> None:
  """One panel a subset: the mean over seeds of each loss."""
  from cascades.reporting import figures
  from cascades.reporting.palette import PALETTE

  columns = min(4, len(by_subset))
  lines = math.ceil(len(by_subset) / columns)
  with mpl.rc_context(figures.STYLE):
    figure = Figure(figsize=(2.4 * columns + 1, 2.2 * lines + 0.6))
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, by_loss) in zip(panels, by_subset.items(), strict=False):
      for number, (loss, values) in enumerate(by_loss.items()):
        axes.plot(RATES, values.mean(axis=0), color=PALETTE[number], label=loss, linewidth=1.2)
      axes.set_title(name)
    for axes in panels[len(by_subset) :]:
      axes.set_axis_off()
    panels[0].legend()
    panels[0].set_xlabel('deferral rate')
    panels[0].set_ylabel('quality')
    FigureCanvasAgg(figure)
    path.write_bytes(figures.encode(figure, 'png'))


def main() -> None:
  parser = cat_runs.arguments(__doc__)
  parser.add_argument('--task', default='classification', choices=sorted(SIZES))
  parser.add_argument('--size', default='', help="of the small model; by default the task's first")
  parser.add_argument('--figure', type=pathlib.Path, default=pathlib.Path('docs/cat_curves.png'))
  parser.add_argument('--output', default=bars.RESULTS / 'cat_curves.json')
  options = parser.parse_args()
  bench = Bench(Folders(options.data.resolve(), options.work.resolve()))
  size = options.size or SIZES[options.task][0]
  by_subset = read(bench, options.task, size)
  if not by_subset:
    sys.exit(f'{options.work} has no seed of {options.task} that all of {", ".join(BASE)} answer.')
  settings: dict[str, Sequence[str] | str] = {'task': options.task, 'size': size}
  measured = [*measure(by_subset), *deferred(bench, options.task, size)]
  bars.report('deferral curves', measured, options.output, settings)
  draw(by_subset, options.figure)


if __name__ == '__main__':
  main()
