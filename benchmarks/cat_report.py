"""The report of the reproduction: effects, intervals, tests and verdicts of complete points."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import cat_grid, cat_statistics
from benchmarks.bars import Measured
from benchmarks.cat_claims import Claim, Term, claims
from benchmarks.cat_grid import Cell
from benchmarks.cat_runs import Bench
from benchmarks.cat_statistics import Effect
from cascades import bootstrap, comparisons, metrics

RESAMPLES = 200
PRIMARY = 4  # tests of a task, which Holm corrects together
# Of the demo's differences over three seeds and over words, docs/results.md, commit f303ee2.
DEVIATIONS = {
  'area, cat_xent - xent': 0.0083,
  'area, dist - xent': 0.0044,
  'area, cat_dist - xent': 0.0066,
  'alone, cat_xent - xent': 0.0125,
}
ROW_ERROR = 0.002

Details = Mapping[str, Any]  # of a report
Record = dict[str, Any]  # of a claim
NOTHING: Details = {'claims': (), 'points': ()}  # before the first report


class Reader:
  """Quantities of points, on all test rows and on resamples of them, which all points share."""

  def __init__(self, bench: Bench) -> None:
    self.bench = bench
    self._read = functools.cache(self._measure)

  def _measure(self, cell: Cell, score: str) -> dict[str, np.ndarray]:
    """Each quantity: first on all rows, then on the resamples."""
    summary, rows = self.bench.summary(cell), self.bench.rows(cell, score)
    count = len(rows.score)
    drawn = bootstrap.draw([count], resamples=RESAMPLES, seed=0)
    counts = np.concatenate([np.ones((1, count), drawn.dtype), drawn])
    finalize = metrics.by_name(summary['metric']).finalize
    return cat_statistics.quantities(rows, counts, finalize)

  def complete(self, terms: Sequence[Term], seeds: int) -> list[int]:
    """Planned seeds of which all points are complete, and hold the scores."""
    return [
      seed
      for seed in range(seeds)
      if all(self._holds(term.cell._replace(seed=seed), term.score) for term in terms)
    ]

  def _holds(self, cell: Cell, score: str) -> bool:
    if not self.bench.is_done(cell):
      return False
    with np.load(self.bench.path(cell).with_suffix('.npz')) as stored:
      return score in stored

  def effect(self, claim: Claim, seeds: Sequence[int]) -> tuple[Effect, list[float]]:
    """The effect of a claim over seeds, and each seed's difference."""
    by_seed = np.array([
      sum(
        term.sign * self._read(term.cell._replace(seed=seed), term.score)[claim.quantity]
        for term in claim.terms
      )
      for seed in seeds
    ])  # fmt: skip
    values = by_seed[:, 0].tolist()
    row_variance = float(by_seed[:, 1:].mean(axis=0).var(ddof=1))
    count = self.bench.summary(claim.terms[0].cell._replace(seed=seeds[0]))['rows']
    return cat_statistics.mixed(values, row_variance, count), values


def tested(bench: Bench, listed: Sequence[Claim], earlier: Details) -> list[Record]:
  """A record of each claim; claims of one task and family are corrected together.

  A test that is not run yet counts in its family with p = 1, so that an adjusted p-value can only
  fall when more is run. A claim of which an earlier report had more seeds than are at hand keeps
  what that report found.
  """
  reader = Reader(bench)
  reported = {(own['task'], own['claim']): own for own in earlier['claims']}
  records: list[Record] = []
  for claim in listed:
    seeds = reader.complete(claim.terms, claim.seeds)
    record: Record = {
      'task': claim.task, 'claim': claim.name, 'text': claim.text, 'quantity': claim.quantity,
      'family': claim.family, 'seeds': seeds, 'planned': claim.seeds, 'p': 1.0,
    }  # fmt: skip
    if seeds:
      effect, values = reader.effect(claim, seeds)
      record |= {'effect': effect, 'values': values, 'p': effect.p}
    found = reported.get((claim.task, claim.name))
    if found and len(found['seeds']) > len(seeds):
      record |= {name: found[name] for name in ('seeds', 'values', 'p')}
      record['effect'] = Effect(**found['effect'])
    records.append(record)
  for family in {(record['task'], record['family']) for record in records}:
    own = [record for record in records if (record['task'], record['family']) == family]
    adjusted = comparisons.holm(np.array([record['p'] for record in own]))
    for record, p in zip(own, adjusted.tolist(), strict=True):
      record['adjusted p'] = p
  gaps = {record['task']: gap(bench, record['task'], earlier) for record in records}
  for record in records:
    record['verdict'] = 'not run'
    setting = bench.settings[record['task']]
    advantage = gaps[record['task']]
    if record['seeds'] and advantage is not None and advantage < setting.least_gap:
      record['verdict'] = 'no cascade'
    elif record['seeds']:
      record['verdict'] = cat_statistics.verdict(
        record['effect'],
        record['adjusted p'],
        setting.margin.get(record['quantity'], setting.default_margin),
        complete=len(record['seeds']) == record['planned'],
      )
  return records


def gap(bench: Bench, task: str, earlier: Details) -> float | None:
  """Advantage of the large model over `xent` alone at the smallest size; None without a seed."""
  cells = [Cell(task, cat_grid.SIZES[task][0], 'xent', seed=s) for s in range(cat_grid.BASE_SEEDS)]
  points = summaries(bench, cells, earlier)
  return float(np.mean([p['large alone'] - p['alone'] for p in points])) if points else None


def summaries(bench: Bench, cells: Iterable[Cell], earlier: Details) -> list[dict[str, Any]]:
  """Summaries of the complete points among cells, at hand or of an earlier report."""
  reported = {point['point']: point for point in earlier['points']}
  known = (bench.summary(c) if bench.is_done(c) else reported.get(c.name) for c in cells)
  return [summary for summary in known if summary]


def overall(verdicts: Sequence[str]) -> str:
  """Verdict on a claim over its tasks: confirmed or refuted by most, and contradicted by none.

  Tasks without a cascade do not count.
  """
  verdicts = [verdict for verdict in verdicts if verdict != 'no cascade']
  for verdict, opposite in (('confirmed', 'refuted'), ('refuted', 'confirmed')):
    if 2 * verdicts.count(verdict) > len(verdicts) and opposite not in verdicts:
      return verdict
  return 'not run' if set(verdicts) <= {'not run'} else 'undecided'


def report(bench: Bench, earlier: Details = NOTHING) -> tuple[list[Measured], dict[str, Any]]:
  """Rows of the claims that have a seed, and the details: claims, verdicts and points."""
  records = tested(bench, list(claims()), earlier)
  measured = [
    Measured(f'{r["task"]}: {r["claim"]}', r['effect'].mean, r['quantity'], note=note(r))
    for r in records
    if r['seeds']
  ]
  by_name: dict[str, list[str]] = {}
  for record in records:
    by_name.setdefault(record['claim'], []).append(record['verdict'])
  points = summaries(bench, (cell for _, cell in cat_grid.cells()), earlier)
  shorter = [
    {key: value for key, value in point.items() if key != 'agreement'}
    | ({'agreement at the end': point['agreement'][-1:]} if 'agreement' in point else {})
    for point in points
  ]
  details = {
    'claims': [
      {k: v._asdict() if isinstance(v, Effect) else v for k, v in record.items()}
      for record in records
    ],
    'large model better than xent by': {task: gap(bench, task, earlier) for task in bench.settings},
    'verdicts': {name: overall(verdicts) for name, verdicts in by_name.items()},
    'complete points': f'{len(points)} of {len(list(cat_grid.cells()))}',
    'commits': sorted({point['commit'] for point in points}),
    'points': shorter,
  }
  return measured, details


def note(record: Mapping[str, Any]) -> str:
  effect = record['effect']
  return (
    f'{effect.low:+.4f} .. {effect.high:+.4f}, p {effect.p:.3g}, Holm {record["adjusted p"]:.3g}, '
    f'{len(record["seeds"])} of {record["planned"]} seeds: {record["verdict"]}'
  )


def draw(details: Mapping[str, Any], path: pathlib.Path) -> None:
  """Primary effects by task: the mean with its interval, and every seed as a dot."""
  from cascades.reporting import figures
  from cascades.reporting.palette import PALETTE

  records = [r for r in details['claims'] if r['family'] == 'primary' and r['seeds']]
  names = list(dict.fromkeys(record['claim'] for record in records))
  tasks = list(dict.fromkeys(record['task'] for record in records))
  with mpl.rc_context(figures.STYLE):
    figure = Figure(figsize=(7.4, 1.4 + 0.9 * max(1, len(tasks))))
    axes = figure.subplots()
    for number, record in enumerate(records):
      color = PALETTE[names.index(record['claim'])]
      scale = 1 if 'libreoffice' in record['task'] or record['task'] == 'tanaka' else 100
      values, effect = np.array(record['values']) * scale, record['effect']
      axes.plot(values, np.full(len(values), number), '.', color=color, alpha=0.5)
      ends = np.clip(np.array([effect['low'], effect['high']]) * scale, -1e3, 1e3)
      if len(values) > 1:
        axes.plot(ends, [number, number], color=color)
      axes.plot(effect['mean'] * scale, number, 'D', color=color)
    axes.axvline(0, color='0.5', linewidth=0.8)
    labels = [f'{r["task"]}: {r["claim"]} ({len(r["seeds"])})' for r in records]
    axes.set_yticks(range(len(records)), labels)
    axes.invert_yaxis()
    axes.set_xlabel('cascade-aware minus plain, points; in brackets the number of seeds')
    FigureCanvasAgg(figure)
    path.write_bytes(figures.encode(figure, 'png'))
