"""Deciders at equal total cost, by the protocol of docs/deciding.md.

    python -m benchmarks.deciders --data=../shared/data --demo=runs/demo

`--data` holds llm_chains/ and routellm_evals/; `--demo` is the output of `make demo`. What is
absent is skipped with the reason. Each result is written to `--output_dir` when it is finished, and
not computed again by the same command, unless these files or the data have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import bars, deciding_rules, outcome_tables
from benchmarks.bars import Measured
from benchmarks.deciding_rules import CHAINS, CONTROLS, Policy
from benchmarks.outcome_tables import DataSet
from cascades import bootstrap, comparisons, curve_metrics, frontier, guarantees
from cascades.runtime import files

LEVEL = 0.05  # of tests after Holm's correction
EXCESS, DELTA = 0.05, 0.1  # of the promise: more errors than the large model, probability of breach
BASELINE = 'guarded kNN'
DIGITS = 12  # of a quality: the order of a sum must not make a difference
SOURCES = (outcome_tables, deciding_rules)


def fingerprint(data: DataSet, resamples: int) -> str:
  """Digest of the rows, the code of the benchmark, and the number of resamples."""
  digest = hashlib.blake2b(f'{data.models} {resamples}'.encode(), digest_size=16)
  for module in SOURCES:
    digest.update(pathlib.Path(str(module.__file__)).read_bytes())
  digest.update(pathlib.Path(__file__).read_bytes())
  for table in (data.fit, data.report):
    digest.update('\0'.join([*table.ids, *table.prompts]).encode('utf-8', 'surrogatepass'))
    for array in (table.quality, table.cost, table.deciding, *table.signals.values()):
      digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


def best_single(data: DataSet) -> int:
  """Model of the highest mean quality on the fit rows, the cheapest of equals."""
  return int(np.argmax(data.fit.quality.mean(axis=1)))


def measure(policy: Policy, data: DataSet, counts: np.ndarray) -> dict[str, Any]:
  """Gain at equal cost and mean quality on all report rows, then on each resample.

  Args:
    policy: Costs and qualities of the report rows under each rule.
    data: The data set.
    counts: Number of times that each resample holds each report row.
  """
  rows = len(data.report.ids)
  weights = np.vstack([np.ones(rows), counts]) / rows
  best = best_single(data)
  cost, quality = weights @ policy.cost.T, weights @ policy.quality.T  # [1 + R, M]
  low, high = weights @ data.report.cost[0], weights @ data.report.cost[best]
  single = weights @ data.report.quality[best]
  gain, area = [], []
  for c, q, least, most, alone in zip(cost, quality, low, high, single, strict=True):
    x, y = curve_metrics.ascending(c, q)
    gain.append(round(float(np.interp(most, x, y)) - alone, DIGITS))
    area.append(round(curve_metrics.area(c, q, low=least, high=most), DIGITS))
  saved = curve_metrics.quality_neutral_cost(
    cost[0], quality[0].round(DIGITS), best_quality=single[0].round(DIGITS), best_cost=high[0]
  )
  return {
    'gain': gain, 'area': area, 'quality_neutral_cost': saved,
    'points': np.stack([cost[0], quality[0]], axis=1).tolist(),
  }  # fmt: skip


def of_oracle(data: DataSet) -> dict[str, Any]:
  """The same of the best choice for every report row, without resamples."""
  report, best = data.report, best_single(data)
  statistics = report.quality[..., None] / len(report.ids)
  curve = frontier.oracle(report.quality, report.cost, statistics, lambda sums: sums[..., 0])
  low, high = report.cost[0].mean(), report.cost[best].mean()
  alone = float(report.quality[best].mean())
  at = np.interp(high, *curve_metrics.ascending(curve.cost, curve.quality))
  saved = curve_metrics.quality_neutral_cost(
    curve.cost, curve.quality, best_quality=alone, best_cost=high
  )
  area = curve_metrics.area(curve.cost, curve.quality, low=low, high=high)
  return {'gain': [at - alone], 'area': [area], 'quality_neutral_cost': saved, 'points': []}


def promises(data: DataSet) -> list[dict[str, Any]]:
  """Certified and plug-in thresholds of each cheaper model with the best single one."""
  best, results = best_single(data), []
  for small in range(best):
    wrong = data.fit.quality[best] - data.fit.quality[small]
    risk = guarantees.Risk('excess errors', wrong, np.zeros_like(wrong), EXCESS, DELTA)
    walk = guarantees.path(data.fit.signals['confidence'][small][:, 0])
    quality = guarantees.total(walk, data.fit.quality[small], data.fit.quality[best])
    result: dict[str, Any] = {'small': data.models[small], 'large': data.models[best]}
    for method in ('certified', 'plug-in'):
      point = guarantees.choose(walk, [risk], quality, plug_in=method == 'plug-in')
      threshold = -np.inf if point is None else walk.threshold[point]
      deferred = data.report.signals['confidence'][small][:, 0] >= threshold
      excess = np.where(deferred, 0, data.report.quality[best] - data.report.quality[small]).mean()
      spent = data.report.cost[small] + data.report.deciding[small]
      spent = (spent + deferred * data.report.cost[best]).mean()
      result[method] = {
        'refused': point is None, 'deferral_rate': deferred.mean(), 'excess': excess,
        'fulfilled': bool(excess <= EXCESS), 'cost': spent / data.report.cost[best].mean(),
      }  # fmt: skip
    results.append(result)
  return results


def stored(path: pathlib.Path, key: str, compute: Callable[[], Any]) -> Any:
  """Result of this fingerprint in a file, computed and written if it is not there."""
  if path.exists():
    contents = json.loads(path.read_text())
    if contents['fingerprint'] == key:
      return contents['result']
  started = time.monotonic()
  result = json.loads(json.dumps(compute(), default=lambda value: value.item()))
  print(f'{path}: {time.monotonic() - started:.1f} s', flush=True)
  files.write(path, json.dumps({'fingerprint': key, 'result': result}))
  return result


def results(data: DataSet, directory: pathlib.Path, resamples: int) -> dict[str, dict[str, Any]]:
  """Measures of each decider, from their files where these are up to date."""
  key = fingerprint(data, resamples)
  counts = bootstrap.draw([len(data.report.ids)], resamples=resamples, seed=0)
  folder = directory / data.name.replace(' ', '_')
  single = deciding_rules.singles(data)

  def one(choices: Callable[[], list[deciding_rules.Choices]]) -> Callable[[], dict[str, Any]]:
    return lambda: measure(deciding_rules.policy([single, *choices()]), data, counts)

  measured = {
    name: stored(folder / f'{name.replace(" ", "_")}.json', key, one(choices))
    for name, choices in deciding_rules.deciders(data).items()
  }
  return {**measured, 'oracle': of_oracle(data)}


def against(first: Mapping[str, Any], second: Mapping[str, Any] | None, measure: str) -> Any:
  """Paired difference of a measure, from that of another decider or from 0; None without area."""
  values = np.array(first[measure]) - (0 if second is None else np.array(second[measure]))
  if not np.isfinite(values).all():
    return None
  return bootstrap.difference(values[0], values[1:])._asdict()


def compare(measured: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Differences of each decider with corrected p-values, and whether it beats both baselines."""
  compared: dict[str, dict[str, Any]] = {}
  for name, result in measured.items():
    if name == 'oracle':
      compared[name] = {'gain': {'value': result['gain'][0]}, 'area': result['area'][0]}
      continue
    compared[name] = {
      'gain': against(result, None, 'gain'),
      'over kNN': against(result, measured[BASELINE], 'area'),
      'over singles': against(result, measured['singles'], 'area'),
      'area': result['area'][0],
      'quality_neutral_cost': result['quality_neutral_cost'],
      'points': result['points'],
    }
  family = {
    (name, what): differences[what]['p']
    for name, differences in compared.items()
    for what in ('gain', 'over kNN')
    if name not in (*CONTROLS, *CHAINS) and (name, what) != (BASELINE, 'over kNN')
    if differences[what] is not None
  }
  corrected = comparisons.holm(np.array(list(family.values()))).tolist()
  for (name, what), p in zip(family, corrected, strict=True):
    compared[name][what]['corrected_p'] = p
  for differences in compared.values():
    differences['wins'] = all(
      differences.get(what) is not None
      and differences[what]['value'] > 0
      and differences[what].get('corrected_p', 1.0) < LEVEL
      for what in ('gain', 'over kNN')
    )
  return compared


def evaluate(data: DataSet, directory: pathlib.Path, resamples: int) -> dict[str, Any]:
  """Everything that is reported about a data set."""
  measured = results(data, directory, resamples)
  best, report = best_single(data), data.report
  chains = all(name in measured for name in CHAINS)
  return {
    'models': data.models,
    'unit': data.unit,
    'rows': {'fit': len(data.fit.ids), 'report': len(report.ids)},
    'best single': {
      'model': data.models[best],
      'quality': report.quality[best].mean(),
      'cost': report.cost[best].mean(),
    },
    'deciders': compare(measured),
    'chains over pairs': against(measured['chains'], measured['pairs'], 'area') if chains else None,
    'calibration': {
      name: against(measured[name], measured['confidence'], 'area')
      for name in ('logistic confidence', 'isotonic confidence')
      if name in measured
    },
    'promises': promises(data) if chains else [],
  }


def rows(name: str, result: Mapping[str, Any]) -> list[Measured]:
  """Lines of the table on the terminal."""
  single = result['best single']
  lines = [
    Measured(
      f'{name}: best single model', single['quality'], '',
      note=f'{single["model"]}, {single["cost"]:.3g} {result["unit"]}',
    )
  ]  # fmt: skip
  for decider, compared in result['deciders'].items():
    for what, short in (('gain', 'gain at equal cost'), ('over kNN', 'mean quality over kNN')):
      if (difference := compared.get(what)) is not None and 'low' in difference:
        note = f'[{difference["low"]:+.4f}, {difference["high"]:+.4f}]'
        note += f' p {difference.get("corrected_p", difference["p"]):.3f}'
        note += ' wins' * compared['wins']
        lines.append(Measured(f'{name}: {decider}, {short}', difference['value'], '', note=note))
  if (difference := result['chains over pairs']) is not None:
    note = f'[{difference["low"]:+.4f}, {difference["high"]:+.4f}]'
    lines.append(Measured(f'{name}: chains over pairs', difference['value'], '', note=note))
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, default=pathlib.Path('../shared/data'))
  parser.add_argument('--demo', type=pathlib.Path, default=pathlib.Path('runs/demo'))
  parser.add_argument('--resamples', type=int, default=2000)
  parser.add_argument('--output_dir', type=pathlib.Path, default=pathlib.Path('runs/deciders'))
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'deciders.json')
  options = parser.parse_args()
  started, measured, details = time.monotonic(), [], {}
  for name, read in outcome_tables.every(options.data, options.demo):
    if isinstance(read, str):
      print(f'{name} is skipped: {read}')
      continue
    details[name] = evaluate(read(), options.output_dir, options.resamples)
    measured += rows(name, details[name])
  measured.append(Measured('time of this run', time.monotonic() - started, 's'))
  bars.report('deciders at equal total cost', measured, options.output, vars(options), details)


if __name__ == '__main__':
  main()
