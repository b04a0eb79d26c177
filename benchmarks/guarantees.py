"""Promises on real tables: how often they are kept, and how much is deferred for them.

    python -m benchmarks.guarantees --data=../shared/data/llm_chains

Protocol, fixed before the first run:

Tables. Every `*.test.*.jsonl.gz` of the folder, and `gsm8k.train.*`, whose test rows are missing.
Cascades: each model of a table before the last (dearest) one, if it is the less accurate of the
two. The score is minus the model's own confidence, 0 where it is missing.

Draws. The table is the population, so that its means are the truth. 1,000 times, half as many rows
are drawn with replacement, a threshold is calibrated on them, and the promise is looked up on the
whole table. A refusal promises nothing, and defers everything.

Promises, delta = 0.1. Quality at least small + f (large - small), f in {0.5, 0.75}; quality at
least large - g (large - small), g in {0.5, 0.25}.

Methods. Ours: `guarantees.choose`. MAPIE's default: Hoeffding-Bentkus p-values of 100 thresholds
(for binary losses its tighter form, which is the exact binomial one) and Holm's procedure, as
BinaryClassificationController computes them (compared with it on the first draws, but for a slip of
its rounding that costs it power); once with its default thresholds of the confidence, 0 to 0.99,
and once with thresholds at 100 quantiles of the scores, which is kinder to it and is what bars
refer to. It knows no paired losses; for promises about the large model its p-values are those of
(1 + difference) / 2, by the same function. Of its valid thresholds the one that defers least is
taken. Plug-in: the first threshold whose observed mean is as promised.

Bars. Promise kept: no cascade and promise where an exact test at 0.001 refutes 1 - delta. Ratio of
our median deferral rate to MAPIE's: its median over cascades and promises at most 0.9, its maximum
at most 1.02. The plug-in must break promises (the same test refutes it somewhere).

Null streams. For each table, 1,000 times: calibrate the first cascade on half the table's rows (the
margin promise, g = 0.5), and watch 1,000 further draws with labels, alpha = 0.05 for all monitors
of the policy together. Bar: no table where an exact test at 0.001 refutes alpha. For comparison,
the delay until streams are noticed whose scores come from the table of another question set.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import drift, guarantees, risk_tests
from cascades.evaluation import policy
from cascades.evaluation.policy import Interval, Promise, Threshold
from cascades.guarantees import Risk

DELTA, ALPHA, GRID = 0.1, 0.05, 100
REFUTED = 0.001
METHODS = ('ours', 'MAPIE', 'MAPIE, its grid', 'plug-in')


class Cascade(NamedTuple):
  """Scores, and correctness of the two models, of the rows of a table."""

  table: str
  small_model: str
  score: np.ndarray
  small: np.ndarray
  large: np.ndarray

  def promises(self) -> Iterator[tuple[str, Risk]]:
    gap = self.large.mean() - self.small.mean()
    for f in (0.5, 0.75):
      level = 1 - (self.small.mean() + f * gap)
      yield f'quality {f}', Risk('quality', 1 - self.small, 1 - self.large, level, DELTA)
    for g in (0.5, 0.25):
      yield (
        f'margin {g}',
        Risk('margin', self.large - self.small, 0 * self.large, round(float(g * gap), 6), DELTA),
      )


def cascades(path: pathlib.Path) -> Iterator[Cascade]:
  """Cascades of each model with the last one."""
  with gzip.open(path, 'rt') as lines:
    rows = [json.loads(line)['models'] for line in lines]
  *models, last = rows[0]
  large = np.array([row[last]['correct'] for row in rows], float)
  for model in models:
    small = np.array([row[model]['correct'] for row in rows], float)
    score = -np.array([row[model]['p'] or 0.0 for row in rows])
    if small.mean() < large.mean():
      yield Cascade(path.name.removesuffix('.jsonl.gz'), model, score, small, large)


def holm(p: np.ndarray, delta: float) -> np.ndarray:
  """Hypotheses that Holm's procedure rejects."""
  order = np.argsort(p, kind='stable')
  passes = np.logical_and.accumulate(p[order] <= delta / (len(p) - np.arange(len(p))))
  rejected = np.zeros(len(p), bool)
  rejected[order] = passes
  return rejected


def mapie_p_values(
  walk: guarantees.Walk, risk: Risk, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """MAPIE's p-values of its thresholds, and an upper bound: its rounding may add a failure."""
  points, rows = np.searchsorted(-walk.threshold, -grid, side='right') - 1, len(walk.order)
  mean = guarantees.mean_loss(walk, risk)[points]
  if risk.name == 'margin':
    p = risk_tests.hoeffding_bentkus((1 + mean) / 2, rows, (1 + risk.level) / 2)
    return p, p
  # Without the factor e, as MAPIE computes it for binary losses.
  failures = np.rint(rows * mean)
  tail, above = (stats.binom.cdf(failures + more, rows, risk.level) for more in (0, 1))
  return np.minimum(risk_tests.hoeffding_bentkus(mean, rows, risk.level), tail), above


def by_mapie(walk: guarantees.Walk, risk: Risk, grid: np.ndarray) -> float | None:
  """Highest of the thresholds that MAPIE's default certifies."""
  rejected = holm(mapie_p_values(walk, risk, grid)[0], risk.delta)
  return float(grid[rejected].max()) if rejected.any() else None


def check_mapie(cascade: Cascade, risk: Risk, grid: np.ndarray, rows: np.ndarray) -> None:
  """Compare `by_mapie` with the controller itself, for a promise about the error rate."""
  from mapie.risk_control import BinaryClassificationController

  def correct(features: Any, threshold: float) -> np.ndarray:
    score, small, large = np.asarray(features).T
    return np.where(score >= threshold, large, small)

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    controller = BinaryClassificationController(
      correct, 'accuracy', 1 - float(risk.level), 1 - DELTA, 'accuracy',
      list_predict_params=grid[:, None],
    )  # fmt: skip
    controller.calibrate(
      np.stack([cascade.score, cascade.small, cascade.large], axis=1)[rows], np.ones(len(rows))
    )
  walk, drawn, theirs = guarantees.path(cascade.score[rows]), risk.select(rows), controller.p_values
  (low, high), theirs = mapie_p_values(walk, drawn, grid), np.ravel(theirs)
  valid = set(np.ravel(controller.valid_predict_params).astype(float))
  agrees = (low <= theirs + 1e-9).all() and (theirs <= high + 1e-9).all()
  if not agrees or valid != set(grid[holm(theirs, risk.delta)]):
    raise RuntimeError(f'MAPIE has the p-values {theirs}, this program {low}.')


def compare(cascade: Cascade, risk: Risk, draws: int) -> dict[str, dict[str, float]]:
  """Every method on the same draws."""
  size = len(cascade.score)
  everything, generator = guarantees.path(cascade.score), np.random.default_rng(0)
  means = guarantees.mean_loss(everything, risk)
  quantiles = np.unique(np.quantile(cascade.score, np.linspace(0, 1, GRID)))
  own_grid = -np.linspace(0, 0.99, GRID)[::-1]
  rates = {method: np.ones(draws) for method in METHODS}
  broken = {method: np.zeros(draws, bool) for method in METHODS}
  for i in range(draws):
    rows = generator.integers(size, size=size // 2)
    walk, drawn = guarantees.path(cascade.score[rows]), risk.select(rows)
    if i < 3 and risk.name == 'quality':
      check_mapie(cascade, risk, quantiles, rows)
    thresholds: dict[str, float | None] = {
      'MAPIE': by_mapie(walk, drawn, quantiles), 'MAPIE, its grid': by_mapie(walk, drawn, own_grid)
    }  # fmt: skip
    for method in ('ours', 'plug-in'):
      point = guarantees.choose(walk, [drawn], walk.rate, plug_in=method == 'plug-in')
      thresholds[method] = None if point is None else float(walk.threshold[point])
    for method, threshold in thresholds.items():
      if threshold is not None:
        at = everything.point(threshold)
        rates[method][i] = everything.rate[at]
        broken[method][i] = means[at] > risk.level + risk_tests.ROUNDING
  higher = float(np.mean(rates['ours'] > 1.02 * rates['MAPIE']))
  return {
    method: {
      'kept': 1 - float(broken[method].mean()),
      'median deferral rate': float(np.median(rates[method])),
      'refuted': bool(stats.binom.sf(broken[method].sum() - 1, draws, DELTA) < REFUTED),
      'all deferred': float(np.mean(rates[method] == 1)),
    }
    for method in METHODS
  } | {'draws with a rate over 2 % higher': {'share': higher}}


def streams(
  cascade: Cascade, source: Cascade, draws: int, length: int
) -> tuple[float, float, float]:
  """Share of streams with an alarm, the same of the scores alone, and the median delay."""
  generator = np.random.default_rng(1)
  risk = dict(cascade.promises())['margin 0.5']
  monitors, thresholds = [], []
  for seed in range(draws):
    rows = generator.integers(len(cascade.score), size=len(cascade.score) // 2)
    walk = guarantees.path(cascade.score[rows])
    point = guarantees.choose(walk, [risk.select(rows)], walk.rate) or 0
    rate, level = float(walk.rate[point]), float(walk.threshold[point])
    edges, ties, gaps = drift.reference(cascade.score[rows], seed=seed)
    quality = np.where(cascade.score >= level, cascade.large, cascade.small).mean()
    loss = 1 - float(quality)  # the promise as it is: the best that a policy could know
    entry = Threshold(
      '', level, len(rows), [Promise('quality', 0.0, DELTA, 0.0, loss, loss, 'binomial')],
      Interval(rate, rate, rate), Interval(0.0, 0.0, 0.0), 0.0,
      edges.tolist(), ties.tolist(), gaps.tolist(),
    )  # fmt: skip
    monitors.append(policy.monitor(entry, alpha=ALPHA))
    thresholds.append(level)
  columns = [np.stack(values) for values in list(zip(*monitors, strict=True))[:4]]
  monitor = drift.Monitor(*columns, alphas=monitors[0].alphas)
  state, delay = drift.start(monitor), np.full(draws, np.inf)
  for row in range(length):
    drawn = generator.integers(len(source.score), size=draws)
    score = source.score[drawn]
    deferred = score >= np.array(thresholds)
    loss = 1 - np.where(deferred, source.large[drawn], source.small[drawn])
    observed = np.stack([deferred, ~deferred, loss], axis=-1).astype(float)
    state = drift.update(monitor, state, score, observed, uniform=generator.random(draws))
    alarmed = drift.alarms(monitor, state).any(axis=-1)
    delay = np.where(alarmed & np.isinf(delay), row + 1, delay)
  scores = drift.alarms(monitor, state)[:, 0]
  return float(np.mean(np.isfinite(delay))), float(np.mean(scores)), float(np.median(delay))


def summary(results: Sequence[Mapping[str, Any]], alarms: Mapping[str, Any]) -> list[Measured]:
  """Rows with the bars of the protocol."""
  ratios = np.array([r['ours']['median deferral rate'] / r['MAPIE']['median deferral rate']
                     for r in results])  # fmt: skip
  own = np.array([r['ours']['median deferral rate'] / r['MAPIE, its grid']['median deferral rate']
                  for r in results])  # fmt: skip
  refuted = {m: sum(r[m]['refuted'] for r in results) for m in METHODS}
  lowest = {m: min(r[m]['kept'] for r in results) for m in METHODS}
  tables = {r['table'] for r in results}
  by_table = [
    float(np.median([ratio for ratio, r in zip(ratios, results, strict=True) if r['table'] == t]))
    for t in sorted(tables)
  ]
  wrong = sum(
    stats.binom.sf(round(a['false'] * a['streams']) - 1, a['streams'], ALPHA) < REFUTED
    for a in alarms.values()
  )
  count = f'of {len(results)} cascades and promises on {len(tables)} tables'
  return [
    Measured('promise of ours refuted at 0.001', refuted['ours'], 'cases', at_most=0.5, note=count),
    Measured('least share of draws that kept the promise', lowest['ours'], 'of draws'),
    Measured('median ratio of deferral rates, ours / MAPIE', float(np.median(ratios)), '',
             at_most=0.9 + 1e-9),
    Measured('largest ratio', float(ratios.max()), '', at_most=1.02 + 1e-9),
    Measured('cases with a ratio of 0.9 or less', int((ratios <= 0.9).sum()), 'cases'),
    Measured('largest median ratio of a table', max(by_table), ''),
    Measured('median ratio, ours / MAPIE with its own grid', float(np.median(own)), ''),
    Measured('largest ratio with its own grid', float(own.max()), ''),
    Measured('promise of the plug-in refuted at 0.001', refuted['plug-in'], 'cases', at_least=1),
    Measured('median share of draws that kept it, plug-in',
             float(np.median([r['plug-in']['kept'] for r in results])), 'of draws'),
    Measured('false alarms refute alpha at 0.001', wrong, 'tables', at_most=0.5),
    Measured('most false alarms of a table', max(a['false'] for a in alarms.values()),
             'of streams', note=f'alpha {ALPHA}'),
    Measured('other questions noticed', min(a['noticed'] for a in alarms.values()), 'of streams',
             note='least of the tables'),
    Measured('rows until then', float(np.median([a['delay'] for a in alarms.values()])), 'rows',
             note='median over tables of the median'),
  ]  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', default='../shared/data/llm_chains')
  parser.add_argument('--draws', type=int, default=1000)
  parser.add_argument('--stream', type=int, default=1000)
  parser.add_argument('--output', default=bars.RESULTS / 'guarantees.json')
  options = parser.parse_args()
  folder, begun = pathlib.Path(options.data), time.perf_counter()
  paths = sorted([*folder.glob('*.test.*.jsonl.gz'), *folder.glob('gsm8k.train.*.jsonl.gz')])
  by_table = {path.name.removesuffix('.jsonl.gz'): list(cascades(path)) for path in paths}
  results = [
    {'table': name, 'small': cascade.small_model, 'promise': promise, 'rows': len(cascade.score)}
    | compare(cascade, risk, options.draws)
    for name, own in by_table.items()
    for cascade in own
    for promise, risk in cascade.promises()
  ]
  alarms = {}
  for name, own in by_table.items():
    other = next(
      c
      for t, group in by_table.items()
      for c in group
      if t.split('.')[0] != name.split('.')[0] and c.small_model == own[0].small_model
    )
    false, scores, _ = streams(own[0], own[0], options.draws, options.stream)
    noticed, _, delay = streams(own[0], other, options.draws, options.stream)
    alarms[name] = {'false': false, 'scores alone': scores, 'streams': options.draws,
                    'other': other.table, 'noticed': noticed, 'delay': delay}  # fmt: skip
  print(f'{time.perf_counter() - begun:.0f} s')
  bars.report(
    'Promises on real tables', summary(results, alarms), options.output, vars(options),
    details={'calibrations': results, 'streams': alarms},
  )  # fmt: skip


if __name__ == '__main__':
  main()
