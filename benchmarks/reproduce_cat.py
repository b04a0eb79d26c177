"""Does cascade-aware training hold? The points of docs/does_cat_hold.md, in its order.

    python -m benchmarks.reproduce_cat --list
    python -m benchmarks.reproduce_cat --only 'g2p: base' --minutes=60
    python -m benchmarks.reproduce_cat --report

A finished point is not repeated, and an interrupted one resumes from its checkpoint. Several
processes, also on machines that share `--work`, divide the points by claims. What `--data` or
`--source` lack is skipped by name. Training runs in this process, by `cascades.train`. A report
keeps what an earlier one in `--output` found of claims and points that `--work` has fewer seeds of.
"""

from __future__ import annotations

import fnmatch
import json
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks import bars, cat_grid, cat_report, cat_runs, cat_statistics
from benchmarks.cat_grid import Cell
from benchmarks.cat_runs import Bench
from benchmarks.cat_tasks import Folders
from cascades.runtime import claims

Listed = list[tuple[str, Cell]]


def chosen(only: Sequence[str]) -> Listed:
  """Parts and cells whose part or name matches a pattern; all without one."""
  return [
    (part, cell)
    for part, cell in cat_grid.cells()
    if not only or any(fnmatch.fnmatchcase(text, p) for p in only for text in (part, cell.name))
  ]


def work(bench: Bench, listed: Listed, minutes: float) -> Iterator[tuple[str, str]]:
  """Run the points that nobody holds, until the time is up, and yield their names and outcomes.

  A point begins only if the time is not up; it is then finished, whatever it takes.
  """
  ends = time.monotonic() + 60 * minutes
  cells = [cell for _, cell in listed if cell.name not in bench.tuned]
  bench.points.mkdir(parents=True, exist_ok=True)

  def name(number: int) -> str:
    return cells[number].name

  def done(numbers: Sequence[int]) -> set[int]:
    return {number for number in numbers if bench.is_done(cells[number])}

  def run_next() -> tuple[str, str] | None:
    left = set(range(len(cells))) - done(range(len(cells)))
    able = [number for number in sorted(left) if not bench.waits_for(cells[number])]
    # Who takes a point while another process makes its large model would only wait for that.
    able.sort(key=lambda number: bench.is_prepared_elsewhere(cells[number]))
    ready = {number: cells[number] for number in able}
    with claims.Claims(bench.points) as held:
      for _, cell in held.shares(ready, name, done, wait=False):
        summary = bench.execute(cell)
        seconds = sum(summary['seconds'].values())
        numbers = f'alone {summary["alone"]:.4f}, area {summary["area"]:.4f}'
        return cell.name, f'{numbers}, {seconds:.0f} s'
    return None

  while time.monotonic() < ends:
    outcome = run_next()
    if outcome is None:
      break
    yield outcome
  left = [cell for cell in cells if not bench.is_done(cell)]
  reasons = Counter(reason for cell in left for reason in bench.waits_for(cell) or ['time'])
  for reason, count in reasons.most_common(9):
    yield f'missing: {reason}', f'for {count} points'


def show(bench: Bench, listed: Listed) -> None:
  """Print each part with its numbers of points: complete, and all; and what it lacks."""
  for part in dict.fromkeys(part for part, _ in listed):
    cells = [cell for own, cell in listed if own == part]
    done = [bench.summary(cell) for cell in cells if bench.is_done(cell)]
    seconds = [sum(summary['seconds'].values()) for summary in done]
    missing = bench.settings[cells[0].task].missing(bench.folders)
    note = f'  {sum(seconds) / len(seconds) / 60:.1f} min a point' if done else ''
    note += f'  skipped: no {", ".join(missing)}' if missing else ''
    print(f'{part:28}{len(done):5} of {len(cells):4}{note}')


def print_power() -> None:
  """Print the least effect that seeds of given deviations show, at the level of Holm's first."""
  print('deviation of seeds            ' + ''.join(f'{seeds:>14} seeds' for seeds in (5, 10, 20)))
  for what, deviation in cat_report.DEVIATIONS.items():
    values = [
      [
        cat_statistics.detectable(deviation, seeds, row_variance=cat_report.ROW_ERROR**2, alpha=a)
        for a in (cat_statistics.ALPHA, cat_statistics.ALPHA / cat_report.PRIMARY)
      ]
      for seeds in (5, 10, 20)
    ]
    row = ''.join(f'{first:10.4f} {holm:8.4f} ' for first, holm in values)
    print(f'{what:24}{deviation:.4f} {row}')


def tuning_of(report: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Summaries of a report's tuning points by their names."""
  summaries = json.loads(report.read_text())['details']['points']
  return {own['point']: own for own in summaries if own['seed'] >= cat_grid.TUNING_SEED}


def main() -> None:
  parser = cat_runs.arguments(__doc__)
  parser.add_argument('--source', default='', help='pretrained weights for classification')
  parser.add_argument(
    '--rates', type=pathlib.Path,
    help='earlier report, such as benchmarks/results/reproduce_cat.json, whose tuning points\n'
    'choose learning rates and are not run',
  )  # fmt: skip
  parser.add_argument('--only', nargs='+', default=[], help='patterns of parts or points')
  parser.add_argument('--minutes', type=float, default=1e9, help='after which no point begins')
  parser.add_argument('--list', action='store_true', help='print parts and progress, run nothing')
  parser.add_argument('--power', action='store_true', help='print what the seeds can show')
  parser.add_argument('--report', action='store_true', help='report what is complete, run nothing')
  parser.add_argument('--figure', type=pathlib.Path, default=pathlib.Path('docs/does_cat_hold.png'))
  parser.add_argument('--output', default=bars.RESULTS / 'reproduce_cat.json')
  options = parser.parse_args()
  folders = Folders(options.data.resolve(), options.work.resolve(), options.source)
  bench = Bench(folders, tuned=tuning_of(options.rates) if options.rates else None)
  listed = chosen(options.only)
  if not listed:
    sys.exit(f'--only {" ".join(options.only)} matches no part and no point: see --list.')
  if options.power:
    print_power()
  elif options.list:
    show(bench, listed)
  elif options.report:
    output = pathlib.Path(options.output)
    earlier = json.loads(output.read_text())['details'] if output.exists() else cat_report.NOTHING
    measured, details = cat_report.report(bench, earlier)
    bars.report('does cascade-aware training hold?', measured, output, {}, details)
    cat_report.draw(details, options.figure)
  else:
    # The seeds of a cell run the same programs.
    jax.config.update('jax_compilation_cache_dir', str(bench.folders.work / 'compiled'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
    for name, outcome in work(bench, listed, options.minutes):
      print(f'{name}: {outcome}', flush=True)


if __name__ == '__main__':
  main()
