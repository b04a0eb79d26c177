"""Frontier of speculative decoding: quality and cost of every point of `speculate`.

A point is a way to decode with two models: a rule with its alpha, number of drafts and temperature,
a sequential token cascade, or either model alone. All are compared on the same rows with the large
model alone of their temperature, and so is the sequence cascade, the deferral curve of both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from cascades import bootstrap, curves, deferral
from cascades.bootstrap import Difference
from cascades.curves import Finalize
from cascades.evaluation import chain_rows
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.types import Curve, Metric, Predictions

SMALL, LARGE, SEQUENTIAL = 'small', 'large', 'token_'
ALIKE = ('temperature', 'top_k', 'top_p', 'seed')  # in which points may differ
RULE = 'average'  # of the sequence cascade


class PointResult(NamedTuple):
  """Quality and cost of a point; costs are means over answers, prompts left out of the FLOPs.

  Attributes:
    name: Name of its folder.
    rule: Name of the rule; 'small', 'large', or 'token_' and a rule.
    alpha: Number of the rule; None if it has none.
    gamma: Drafts of a block; None if nothing is drafted.
    temperature: Of both models.
    quality: Quality on all rows.
    difference: Quality minus that of the large model alone, with its paired interval.
    seconds: Measured seconds per answer over those of the large model alone, by size of batch.
    modeled: The same from calls times measured steps.
    large_calls: Calls of the large model.
    small_calls: Steps of the small model.
    rejection_rate: Share of the tested drafts that were rejected; nan if none was tested.
    flops: FLOPs of the tokens that both models read; an upper bound for token cascades.
    tokens: Tokens of an answer.
    length: Tokens over those of the large model alone.
  """

  name: str
  rule: str
  alpha: float | None
  gamma: int | None
  temperature: float
  quality: float
  difference: Difference
  seconds: Mapping[str, float]
  modeled: Mapping[str, float]
  large_calls: float
  small_calls: float
  rejection_rate: float
  flops: float
  tokens: float
  length: float


class MethodSummary(NamedTuple):
  """Two numbers of a rule at one gamma and temperature; None where no alpha qualifies.

  Attributes:
    name: Rule, gamma and temperature.
    matching: The fastest point whose quality is at least that of the large model.
    matching_within: The fastest whose paired interval reaches that quality.
    best: The point of the best quality among those that are no slower than the large model.
  """

  name: str
  matching: PointResult | None
  matching_within: PointResult | None
  best: PointResult | None


class SpeculationFrontier(NamedTuple):
  """Everything that the report shows.

  Attributes:
    metric: Name of the quality.
    higher_is_better: False for a metric that is best when low.
    batch: Size of batch that the summaries are fast at.
    rows: Number of rows.
    points: All points.
    sequence: Deferral curve of the sequence cascade by temperature; costs are relative seconds.
    methods: Two numbers of every method.
    machine: Machine of the measured seconds.
  """

  metric: str
  higher_is_better: bool
  batch: str
  rows: int
  points: Sequence[PointResult]
  sequence: Mapping[float, Curve]
  methods: Sequence[MethodSummary]
  machine: str


class _Pool(NamedTuple):
  """Rows of all points, and the resamples that they share."""

  tables: Mapping[str, Predictions]
  statistics: Mapping[str, Float[np.ndarray, 'N S']]
  finalize: Finalize
  sign: int
  resampled: Mapping[str, Float[np.ndarray, 'R']]


def frontier(
  directory: epath.Path,
  *,
  split: str = 'test',
  metric: Metric | str | None = None,
  settings: Settings | None = None,
) -> SpeculationFrontier:
  """Compares all finished points of a directory.

  Args:
    directory: Output directory of `speculate`.
    split: Split that is compared.
    metric: Metric, or its name; None for the first of the tables.
    settings: Resamples and confidence; None for the defaults.

  Raises:
    FileNotFoundError: The directory has no points, or no large model alone of a temperature.
    ValueError: The points are not of the same rows.
  """
  settings = settings or Settings()
  pool = _read(directory, split, metric, settings)
  latency = _latency(directory)
  manifests = {name: table.manifest for name, table in pool.tables.items()}
  alone = {
    manifest['point']['temperature']: name
    for name, manifest in manifests.items()
    if manifest['point']['rule'] == LARGE and manifest['point']['gamma'] is None
  }
  points = []
  for name, manifest in manifests.items():
    temperature = manifest['point']['temperature']
    if temperature not in alone:
      raise FileNotFoundError(
        f'{directory} has the point {name}, and no large model alone at temperature '
        f'{temperature:g} to compare it with: run `python -m cascades.speculate` again.'
      )
    points.append(_result(pool, latency, name, alone[temperature], settings))
  batch = min((key for point in points for key in point.seconds), key=int, default='')
  large = next(iter(alone.values()))
  return SpeculationFrontier(
    metric=pool.tables[large].manifest['metrics'][0] if metric is None else str(metric),
    higher_is_better=pool.sign > 0,
    batch=batch,
    rows=len(pool.tables[large].ids),
    points=points,
    sequence={t: c for t, name in alone.items() if (c := _sequence(pool, latency, name, t, batch))},
    methods=list(_methods(points, batch, pool.sign)),
    machine=latency.get('machine', ''),
  )


def _read(
  directory: epath.Path, split: str, metric: Metric | str | None, settings: Settings
) -> _Pool:
  """Reads the finished tables of a split."""
  folders = sorted(
    path.parent
    for path in (directory / 'points').glob(f'*/{split}')
    if any(path.glob('*.manifest.json'))
  )
  alone = [folder for folder in folders if folder.name.startswith(f'{LARGE}-temperature')]
  if not alone:
    raise FileNotFoundError(
      f'{directory} has no finished table points/{LARGE}-temperature*/{split}: write the points '
      'with `python -m cascades.speculate`, or name another split, SPLITS.'
    )
  others = {folder.name: str(folder) for folder in folders if folder != alone[0]}
  small, large = Tables(
    small=others, large=str(alone[0]), split=split, allow_differences=ALIKE
  ).read()
  tables = {**small, alone[0].name: large}
  rows = chain_rows.pooled(tables, settings, metric, None)
  counts = bootstrap.draw(rows.sizes, resamples=settings.resamples, seed=settings.seed)
  resampled = {
    name: rows.finalize(bootstrap.totals(counts, statistics))
    for name, statistics in rows.statistics.items()
  }
  return _Pool(rows.tables, rows.statistics, rows.finalize, rows.sign, resampled)


def _latency(directory: epath.Path) -> dict[str, Any]:
  """Measured seconds; empty if nothing was measured."""
  file = directory / 'latency.json'
  return json.loads(file.read_bytes()) if file.exists() else {}


def _result(
  pool: _Pool, latency: Mapping[str, Any], name: str, alone: str, settings: Settings
) -> PointResult:
  table, large = pool.tables[name], pool.tables[alone]
  point = table.manifest['point']
  quality = float(pool.finalize(pool.statistics[name].sum(axis=0)))
  reference = float(pool.finalize(pool.statistics[alone].sum(axis=0)))
  accepted, rejected = (_total(table, column) for column in ('accepted', 'rejected'))
  tested = accepted + rejected if point['gamma'] is not None else 0
  calls = {model: table.column(f'{model}_calls') for model in (SMALL, LARGE)}
  times = latency.get('points', {})
  measured = times.get(name, {})
  modeled = _modeled(latency, point, calls)
  modeled_alone = _modeled(
    latency, large.manifest['point'], {m: large.column(f'{m}_calls') for m in (SMALL, LARGE)}
  )
  return PointResult(
    name=name,
    **point,
    quality=quality,
    difference=bootstrap.difference(
      quality - reference,
      pool.resampled[name] - pool.resampled[alone],
      confidence=settings.confidence,
    ),
    seconds={
      size: entry['seconds_per_answer'] / times[alone][size]['seconds_per_answer']
      for size, entry in measured.items()
      if size in times.get(alone, {})
    },
    modeled={size: modeled[size] / modeled_alone[size] for size in modeled},
    large_calls=float(calls[LARGE].mean()),
    small_calls=float(calls[SMALL].mean()),
    rejection_rate=rejected / tested if tested else float('nan'),
    flops=_flops(table, point, calls),
    tokens=float(table.lengths.mean()),
    length=float(table.lengths.sum() / large.lengths.sum()),
  )


def _total(table: Predictions, column: str) -> float:
  """Sum of a column, 0 in tables of one model, which lack it."""
  return float(np.nansum(table.columns.get(column, np.zeros(1))))


def _modeled(
  latency: Mapping[str, Any], point: Mapping[str, Any], calls: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """Mean seconds per answer, from calls times measured steps; none that lack a measurement.

  A model's first call reads the prompt.
  """
  widths = {SMALL: '1', LARGE: str((point['gamma'] or 0) + 1)}
  steps, prompts = latency.get('steps', {}), latency.get('prompts', {})
  return {
    size: sum(
      float(np.mean((own > 0) * prompts[model][size]))
      + float(np.mean(np.maximum(own - 1, 0))) * steps[model][size][widths[model]]
      for model, own in calls.items()
    )
    for size in steps.get(LARGE, {})
    if all(
      widths[m] in steps.get(m, {}).get(size, {}) and size in prompts.get(m, {}) for m in calls
    )
  }


def _flops(table: Predictions, point: Mapping[str, Any], calls: Mapping[str, np.ndarray]) -> float:
  """Mean FLOPs of an answer; a token cascade's large model is charged for all tokens if called."""
  own = float(table.manifest['flops_per_token'])
  if point['rule'] == SMALL and point['gamma'] is None:
    return float(calls[SMALL].mean()) * own
  small = float(table.manifest.get('small', {}).get('flops_per_token', 0.0))
  # The first call reads the prompt, and gives one token as those of a model alone do.
  read = np.minimum(calls[LARGE], 1) + np.maximum(calls[LARGE] - 1, 0) * ((point['gamma'] or 0) + 1)
  if point['rule'].startswith(SEQUENTIAL) and point['gamma'] is None:
    read = np.where(calls[LARGE] > 0, table.lengths, 0)
  return float(calls[SMALL].mean()) * small + float(read.mean()) * own


def _sequence(
  pool: _Pool, latency: Mapping[str, Any], alone: str, temperature: float, batch: str
) -> Curve | None:
  """Deferral curve of whole answers, in relative seconds; None without times or a small model."""
  small = f'{SMALL}-temperature{temperature:g}'
  times = latency.get('points', {})
  if small not in pool.tables or batch not in times.get(small, {}):
    return None
  c = times[small][batch]['seconds_per_answer'] / times[alone][batch]['seconds_per_answer']
  score = deferral.as_score(deferral.PAPER[RULE])(pool.tables[small])
  return curves.deferral_curve(
    score, pool.statistics[small], pool.statistics[alone], pool.finalize, lambda rate: c + rate
  )


def _methods(points: Sequence[PointResult], batch: str, sign: int) -> Iterator[MethodSummary]:
  """Two numbers of every rule, gamma and temperature that have measured seconds."""
  keys = dict.fromkeys((p.rule, p.gamma, p.temperature) for p in points if p.rule != LARGE)
  for rule, gamma, temperature in keys:
    own = sorted(
      (p for p in points if (p.rule, p.gamma, p.temperature) == (rule, gamma, temperature)
       and batch in p.seconds),
      key=lambda p: p.seconds[batch],
    )  # fmt: skip
    gain = lambda p: sign * p.difference.value
    reach = lambda p: p.difference.high if sign > 0 else -p.difference.low
    drafts = '' if gamma is None else f', gamma {gamma}'
    yield MethodSummary(
      f'{rule}{drafts}, temperature {temperature:g}',
      next((p for p in own if gain(p) >= 0), None),
      next((p for p in own if reach(p) >= 0), None),
      max((p for p in own if p.seconds[batch] <= 1), key=gain, default=None),
    )
