"""Frontier of speculative decoding: quality and cost of every point of `speculate`.

A point is a way to decode with two models: a rule with its alpha, number of drafts and temperature,
a sequential token cascade, or either model alone. All are compared on the same rows with the large
model alone of their temperature, and so is the sequence cascade, which defers whole answers of the
small model to the large one, from the least certain on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from cascades import bootstrap, comparisons, curves, deferral
from cascades.bootstrap import Difference, Estimate
from cascades.curves import Finalize
from cascades.evaluation import chain_rows, speculation_costs
from cascades.evaluation.comparison import Settings
from cascades.evaluation.speculation_costs import LARGE, SMALL, relative_length
from cascades.evaluation.tables import Tables
from cascades.types import Metric, Predictions

SEQUENCE = 'sequence'  # cascade, beside the rules
ALIKE = ('temperature', 'top_k', 'top_p', 'seed')  # in which points may differ
RATES = np.linspace(0, 1, 41)  # of deferred answers of the sequence cascade
# Resamples for each comparison: the least p-value that they can give is 1 / 30 after Holm.
RESAMPLES_EACH = 60


class PointResult(NamedTuple):
  """Quality and cost of a point; costs are means over answers, prompts left out of the FLOPs.

  Attributes:
    name: Name of its folder.
    rule: Name of the rule; 'small', 'large', or 'token_' and a rule; 'sequence' for the sequence
      cascade.
    alpha: Number of the rule; None if it has none. In the sequence cascade, the share of answers
      that are deferred.
    gamma: Drafts of a block; None if nothing is drafted.
    temperature: Of both models.
    quality: Quality on all rows.
    difference: Quality minus that of the large model alone, with its paired interval.
    seconds: Measured seconds per answer over those of the large model alone, by size of batch.
    modeled: The same from calls times measured steps.
    planned: Drafts a block of least modeled time at its acceptance, by size of batch.
    large_calls: Calls of the large model.
    relative_calls: The same over those of the large model alone.
    small_calls: Steps of the small model.
    rejection_rate: Share of the tested drafts that were rejected; nan if none was tested.
    flops: FLOPs of the tokens that both models read; an upper bound for token cascades.
    tokens: Tokens of an answer.
    length: Tokens over those of the large model alone, with the interval of the same resamples.
    holm: P-value of the difference, adjusted by Holm over all points; nan where there is nothing to
      test, for the large model alone and in the sequence cascade.
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
  planned: Mapping[str, int]
  large_calls: float
  relative_calls: float
  small_calls: float
  rejection_rate: float
  flops: float
  tokens: float
  length: Estimate
  holm: float = math.nan

  @property
  def modeled_over_measured(self) -> dict[str, float]:
    """Modeled over measured seconds by size of batch, where there are both."""
    return {
      size: self.modeled[size] / s for size, s in self.seconds.items() if size in self.modeled
    }


class SequenceCascade(NamedTuple):
  """Points of the sequence cascade at RATES under the deferral rule of the largest area."""

  rule: str
  points: Sequence[PointResult]


class MethodSummary(NamedTuple):
  """Two numbers of a rule at one temperature, over alphas and gammas; None if no point qualifies.

  Attributes:
    name: Rule and temperature.
    matching: The cheapest point whose quality is at least that of the large model.
    matching_within: The cheapest whose paired interval reaches that quality.
    best: The point of the best quality among those that cost no more than the large model.
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
    batch: Size of batch whose seconds are the cost of the summaries; '' without measurements, for
      calls of the large model.
    rows: Number of rows.
    points: All points, by temperature and name.
    sequence: The sequence cascade by temperature.
    methods: Two numbers of every method.
    machine: Machine of the measured seconds.
  """

  metric: str
  higher_is_better: bool
  batch: str
  rows: int
  points: Sequence[PointResult]
  sequence: Mapping[float, SequenceCascade]
  methods: Sequence[MethodSummary]
  machine: str

  def cost(self, point: PointResult) -> float:
    """Cost over that of the large model alone: seconds, or calls where none are measured."""
    return _cost(point, self.batch)

  def cheapest(self, temperature: float | None = None) -> PointResult | None:
    """The cheapest point that drafts and is no worse than the large model; None if none is."""
    matching = [
      method.matching
      for method in self.methods
      if method.matching and method.matching.gamma is not None
    ]
    own = (point for point in matching if temperature in (None, point.temperature))
    return min(own, key=self.cost, default=None)


class _Pool(NamedTuple):
  """Rows of all points, and the resamples that they share."""

  tables: Mapping[str, Predictions]
  statistics: Mapping[str, Float[np.ndarray, 'N S']]
  finalize: Finalize
  sign: int
  counts: Int[np.ndarray, 'R N']
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
    settings: Resamples and confidence; None for the defaults. As many resamples are drawn at least
      as the number of points needs.

  Raises:
    FileNotFoundError: The directory has no points, or no large model alone of a temperature.
    ValueError: The points are not of the same rows.
  """
  settings = settings or Settings()
  pool = _read(directory, split, metric, settings)
  latency = _latency(directory)
  manifests = {name: table.manifest for name, table in pool.tables.items()}
  temperatures = {name: manifest['point']['temperature'] for name, manifest in manifests.items()}
  alone = {
    temperatures[name]: name
    for name, manifest in manifests.items()
    if manifest['point']['rule'] == LARGE and manifest['point']['gamma'] is None
  }
  points = []
  for name in sorted(temperatures, key=lambda name: (temperatures[name], name)):
    temperature = temperatures[name]
    if temperature not in alone:
      raise FileNotFoundError(
        f'{directory} has the point {name}, and no large model alone at temperature '
        f'{temperature:g} to compare it with: run `python -m cascades.speculate` again.'
      )
    points.append(_result(pool, latency, name, alone[temperature], settings))
  sequence = {
    temperature: cascade
    for temperature, name in alone.items()
    if (cascade := _sequence(pool, points, name, temperature, settings))
  }
  adjusted = _adjusted(points, alone.values())
  batch = min((key for point in points for key in point.seconds), key=int, default='')
  large = next(iter(alone.values()))
  return SpeculationFrontier(
    metric=pool.tables[large].manifest['metrics'][0] if metric is None else str(metric),
    higher_is_better=pool.sign > 0,
    batch=batch,
    rows=len(pool.tables[large].ids),
    points=adjusted,
    sequence=sequence,
    methods=list(_methods(adjusted, sequence, batch, pool.sign)),
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
  resamples = max(settings.resamples, RESAMPLES_EACH * len(rows.tables))
  counts = bootstrap.draw(rows.sizes, resamples=resamples, seed=settings.seed)
  resampled = {
    name: rows.finalize(bootstrap.totals(counts, statistics))
    for name, statistics in rows.statistics.items()
  }
  return _Pool(rows.tables, rows.statistics, rows.finalize, rows.sign, counts, resampled)


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
  rejection_rate = rejected / tested if tested else math.nan
  calls = {model: table.column(f'{model}_calls') for model in (SMALL, LARGE)}
  times = latency.get('points', {})
  modeled = speculation_costs.modeled_seconds(latency, table.manifest, calls)
  modeled_alone = speculation_costs.modeled_seconds(
    latency, large.manifest, {m: large.column(f'{m}_calls') for m in (SMALL, LARGE)}
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
      for size, entry in times.get(name, {}).items()
      if size in times.get(alone, {})
    },
    modeled={size: modeled[size] / modeled_alone[size] for size in modeled},
    planned=speculation_costs.planned_drafts(latency, table.manifest, 1 - rejection_rate),
    large_calls=float(calls[LARGE].mean()),
    relative_calls=float(calls[LARGE].sum() / large.column(f'{LARGE}_calls').sum()),
    small_calls=float(calls[SMALL].mean()),
    rejection_rate=rejection_rate,
    flops=speculation_costs.flops(table, point, calls),
    tokens=float(table.lengths.mean()),
    length=relative_length(table.lengths, large.lengths, pool.counts, settings.confidence),
  )


def _adjusted(points: Sequence[PointResult], alone: Iterable[str]) -> list[PointResult]:
  """Points with p-values for their number; those of the large model alone are what they test."""
  references = set(alone)
  tested = [point for point in points if point.name not in references]
  adjusted = comparisons.holm(np.array([point.difference.p for point in tested]))
  by_name = {point.name: float(p) for point, p in zip(tested, adjusted, strict=True)}
  return [point._replace(holm=by_name.get(point.name, math.nan)) for point in points]


def _total(table: Predictions, column: str) -> float:
  """Sum of a column, 0 in tables of one model, which lack it."""
  return float(np.nansum(table.columns.get(column, np.zeros(1))))


def _sequence(
  pool: _Pool, points: Sequence[PointResult], alone: str, temperature: float, settings: Settings
) -> SequenceCascade | None:
  """Sequence cascade of a temperature; None without a small model alone."""
  by_name = {point.name: point for point in points}
  name = f'{SMALL}-temperature{temperature:g}'
  if name not in by_name:
    return None
  statistics = pool.statistics[name], pool.statistics[alone]
  scores = {rule: deferral.as_score(own)(pool.tables[name]) for rule, own in deferral.PAPER.items()}

  def area(rule: str) -> float:
    curve = curves.deferral_curve(scores[rule], *statistics, pool.finalize, lambda rate: rate)
    return pool.sign * float(np.trapezoid(curve.quality, curve.deferral_rate))

  best = max(scores, key=area)
  ranks = np.argsort(np.argsort(-scores[best], kind='stable'))
  small, large = by_name[name], by_name[alone]
  return SequenceCascade(
    best,
    [
      _deferred(pool, small, large, ranks < round(rate * len(ranks)), settings)
      for rate in RATES.tolist()
    ],
  )


def _deferred(
  pool: _Pool,
  small: PointResult,
  large: PointResult,
  deferred: Bool[np.ndarray, 'N'],
  settings: Settings,
) -> PointResult:
  """Sequence cascade whose `deferred` rows cost the share of the large model's calls as well."""
  rate = float(deferred.mean())
  tables = pool.tables[large.name], pool.tables[small.name]
  statistics = np.where(deferred[:, None], pool.statistics[large.name], pool.statistics[small.name])
  quality = float(pool.finalize(statistics.sum(axis=0)))
  resampled = pool.finalize(bootstrap.totals(pool.counts, statistics))
  calls = float(np.where(deferred, tables[0].column(f'{LARGE}_calls'), 0).mean())
  lengths = np.where(deferred, tables[0].lengths, tables[1].lengths)
  share = calls / large.large_calls
  return small._replace(
    name=f'{SEQUENCE}-rate{rate:.3g}-temperature{small.temperature:g}',
    rule=SEQUENCE,
    alpha=rate,
    quality=quality,
    difference=bootstrap.difference(
      quality - large.quality,
      resampled - pool.resampled[large.name],
      confidence=settings.confidence,
    ),
    seconds={size: seconds + share for size, seconds in small.seconds.items()},
    modeled={size: seconds + share for size, seconds in small.modeled.items()},
    large_calls=calls,
    relative_calls=share,
    flops=small.flops + share * large.flops,
    tokens=float(lengths.mean()),
    length=relative_length(lengths, tables[0].lengths, pool.counts, settings.confidence),
  )


def _cost(point: PointResult, batch: str) -> float:
  return point.seconds.get(batch, np.inf) if batch else point.relative_calls


def _methods(
  points: Sequence[PointResult], sequence: Mapping[float, SequenceCascade], batch: str, sign: int
) -> list[MethodSummary]:
  """Two numbers of every rule and temperature, those of a temperature from the cheapest on."""
  deferring = (point for cascade in sequence.values() for point in cascade.points)
  methods: dict[tuple[float, str], list[PointResult]] = {}
  for point in sorted((*points, *deferring), key=lambda point: _cost(point, batch)):
    if point.rule != LARGE and np.isfinite(_cost(point, batch)):
      methods.setdefault((point.temperature, point.rule), []).append(point)
  gain = lambda p: sign * p.difference.value
  reach = lambda p: p.difference.high if sign > 0 else -p.difference.low
  ordered = []
  for (temperature, rule), own in methods.items():
    matching = next((p for p in own if gain(p) >= 0), None)
    within = next((p for p in own if reach(p) >= 0), None)
    best = max((p for p in own if _cost(p, batch) <= 1), key=gain, default=None)
    order = [temperature, *(_cost(p, batch) if p else np.inf for p in (matching, within))]
    name = f'{rule}, temperature {temperature:g}'
    ordered.append((order, MethodSummary(name, matching, within, best)))
  return [method for _, method in sorted(ordered, key=lambda entry: entry[0])]
