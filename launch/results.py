"""Results of a sweep, one row per point and means over seeds, as tables, CSV, and JSON."""

from __future__ import annotations

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.table
import scipy.stats
from etils import epath

from cascades.evaluation.quantities import ABOVE_CHORD, AREA, LARGE, SMALL
from cascades.reporting import terminal
from cascades.runtime import files
from cascades.training import metrics_log

CONFIDENCE = 0.95  # of intervals of means over seeds
HISTORY = 'stages.jsonl'  # beside the logs of a run, one line per run of a stage
COLUMNS = {
  'steps': 'steps', 'train_loss': 'loss', 'validation_loss': 'validation', 'metric': 'metric',
  SMALL.name: 'small', LARGE.name: 'large', AREA.name: 'area', ABOVE_CHORD.name: 'above chord',
  'train_seconds': 'train s', 'first_step_seconds': 'first step s', 'infer_seconds': 'infer s',
}  # fmt: skip


def row(
  values: Mapping[str, Any], run: epath.Path, logs: pathlib.Path, state: str
) -> dict[str, Any]:
  """Row of a point, with None for missing results."""
  columns = dict.fromkeys(COLUMNS) | _trained(run) | _evaluated(run) | _took(logs)
  return {**values, **columns, 'state': state}


def _trained(run: epath.Path) -> dict[str, Any]:
  """Last value of each quantity that training reported."""
  logged = metrics_log.read(run)
  names = {'loss': 'train_loss', 'validation/loss': 'validation_loss'}
  last = {name: value for values in logged.values() for name, value in values.items()}
  columns: dict[str, Any] = {names[name]: last[name] for name in names if name in last}
  return columns | ({'steps': max(logged)} if logged else {})


def _evaluated(run: epath.Path) -> dict[str, Any]:
  """Estimates of the cascade with the first score of the report, over all tasks."""
  path = run / 'evaluation' / 'curves.json'
  if not path.exists():
    return {}
  curves = json.loads(path.read_text())
  estimates = {
    estimate['quantity']: estimate['value'] for estimate in curves['cascades'][0]['estimates']
  }
  names = (SMALL.name, LARGE.name, AREA.name, ABOVE_CHORD.name)
  return {'metric': curves['metric']['name'], **{name: estimates[name] for name in names}}


def _took(logs: pathlib.Path) -> dict[str, Any]:
  """Seconds of all attempts, and to the first step in the last attempt."""
  path = logs / HISTORY
  attempts = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  seconds: dict[str, Any] = {}
  for attempt in attempts:
    name = f'{attempt["stage"]}_seconds'
    seconds[name] = round(seconds.get(name, 0.0) + attempt['seconds'], 1)
    if attempt['first_step_seconds'] is not None:
      seconds['first_step_seconds'] = attempt['first_step_seconds']
  return {name: seconds[name] for name in COLUMNS if name in seconds}


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Mean of each number over the seeds of a point, with the ends of its t-interval.

  Args:
    rows: Rows of all points.

  Returns:
    A row for each point of two or more seeds: `NAME`, `NAME low` and `NAME high` of each column
    that two or more seeds have numbers of.
  """
  points: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    varied = {name: row[name] for name in row if name not in (*COLUMNS, 'state', 'SEED')}
    points.setdefault(json.dumps(varied, default=str), []).append(row)
  means = []
  for seeds in points.values():
    mean = {name: seeds[0][name] for name in seeds[0] if name not in (*COLUMNS, 'state', 'SEED')}
    for name in COLUMNS:
      values = [row[name] for row in seeds if isinstance(row.get(name), int | float)]
      if len(values) > 1:
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        half = error * scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        center = float(np.mean(values))
        mean |= {
          name: center, f'{name} low': float(center - half), f'{name} high': float(center + half)
        }  # fmt: skip
    if len(seeds) > 1:
      means.append({**mean, 'seeds': len(seeds)})
  return means


def write(directory: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Write results.csv and results.json, and means.csv where points have several seeds."""
  if means := over_seeds(rows):
    lines = io.StringIO()
    names = list(dict.fromkeys(name for mean in means for name in mean))
    table = csv.DictWriter(lines, names, lineterminator='\n')
    table.writeheader()
    table.writerows(means)
    files.write(directory / 'means.csv', lines.getvalue())
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, _names(rows), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  files.write(directory / 'results.csv', buffer.getvalue())
  files.write(directory / 'results.json', json.dumps(rows, indent=2, default=str) + '\n')


def show(rows: Sequence[Mapping[str, Any]]) -> None:
  table = rich.table.Table(box=rich.box.SIMPLE)
  for name in _names(rows):
    table.add_column(COLUMNS.get(name, name), overflow='fold')
  for row in rows:
    table.add_row(*(_cell(row.get(name)) for name in _names(rows)))
  console = terminal.plain_console(width=200)
  console.print(table)
  if not (means := over_seeds(rows)):
    return
  names = dict.fromkeys(name for mean in means for name in mean)
  names = [name for name in names if not name.endswith((' low', ' high'))]
  table = rich.table.Table(
    box=rich.box.SIMPLE,
    title=f'Means over seeds, with {CONFIDENCE:.0%} t-intervals',
    title_justify='left',
  )
  for name in names:
    table.add_column(COLUMNS.get(name, name), overflow='fold')
  for mean in means:
    table.add_row(*(_mean_cell(mean, name) for name in names))
  console.print(table)


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Columns of all rows, varied bindings first; points may vary different bindings."""
  fixed = [*COLUMNS, 'state']
  return [*dict.fromkeys(name for row in rows for name in row if name not in fixed), *fixed]


def _mean_cell(mean: Mapping[str, Any], name: str) -> str:
  text = _cell(mean.get(name))
  if f'{name} low' in mean:
    text += f' [{_cell(mean[f"{name} low"])}, {_cell(mean[f"{name} high"])}]'
  return text


def _cell(value: Any) -> str:
  if value is None:
    return '-'
  return f'{value:.4g}' if isinstance(value, float) else str(value)
