"""Deferral curves of finished points of the reproduction, of all tasks of a mixture and of each.

    python -m benchmarks.cat_curves --task classification
    python -m benchmarks.cat_curves --task pretrain_causal

The figure has the quality over the deferral rate by loss, the mean over complete seeds, one panel
for the pooled rows and one for each task (of a mixture), as figures 2 to 12 of the paper; for
pre-training, it is the plot of its appendix E. Reads stored test rows and runs nothing.
"""

from __future__ import annotations

import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
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

POOLED = 'all rows'
RATES = np.linspace(0.0, 1.0, 51)


def subsets(bench: Bench, cell: Cell) -> dict[str, Rows]:
  """Test rows of a point: all, and those of each task of a mixture."""
  rows = bench.rows(cell)
  with np.load(bench.path(cell).with_suffix('.npz'), allow_pickle=False) as stored:
    tasks = stored.get('task')
  if tasks is None:
    return {POOLED: rows}
  names = dict.fromkeys(tasks.tolist())
  return {POOLED: rows} | {name: Rows(*(own[tasks == name] for own in rows)) for name in names}


def curve(rows: Rows, finalize: Finalize) -> Float[np.ndarray, 'rates']:
  """Quality at `RATES`."""
  every = np.ones((1, len(rows.score)))
  return bootstrap.resample(every, *rows, finalize, rates=RATES).quality[0]


Curves = Mapping[str, Mapping[str, Float[np.ndarray, 'S rates']]]  # by subset and loss


def read(bench: Bench, task: str, size: str) -> Curves:
  """Curves of the seeds that all base losses have completed."""
  cells = {loss: Cell(task, size, loss) for loss in BASE}
  seeds = [
    seed
    for seed in range(BASE_SEEDS)
    if all(bench.is_done(cell._replace(seed=seed)) for cell in cells.values())
  ]
  gathered: dict[str, dict[str, list[np.ndarray]]] = {}
  for loss, cell in cells.items():
    for seed in seeds:
      own = cell._replace(seed=seed)
      finalize = metrics.by_name(bench.summary(own)['metric']).finalize
      for name, rows in subsets(bench, own).items():
        gathered.setdefault(name, {}).setdefault(loss, []).append(curve(rows, finalize))
  return {
    name: {loss: np.stack(values) for loss, values in by_loss.items()}
    for name, by_loss in gathered.items()
  }


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
  bars.report('deferral curves', list(measure(by_subset)), options.output, settings)
  draw(by_subset, options.figure)


if __name__ == '__main__':
  main()
