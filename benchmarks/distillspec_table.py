"""Numbers of the arms of `distillspec`, their differences from the control, and their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.bars import Measured
from benchmarks.cat_seeds import over_seeds
from benchmarks.distillspec_models import TEMPERATURES, Columns
from cascades import curves, speculative
from cascades.curves import Finalize

SAMPLES, MOST_DRAFTS = 500, 10
Numbers = Mapping[str, float]


def numbers(
  columns: Columns, rows: np.ndarray, few: np.ndarray, finalize: Finalize
) -> dict[str, float]:
  """Numbers of a model over these test rows; lossless decoding is measured on `few`."""
  counts = ('accepted', 'rejected', 'calls', 'tokens')
  own = {
    name: column[few if name.split()[0] in counts else rows]
    for name, column in columns.items()
    if column.ndim  # the commit has none
  }
  small, large = own['small right'], own['large right']
  curve = curves.deferral_curve(own['score'], small, large, finalize, lambda rate: rate)
  result: dict[str, float] = {}
  for temperature in TEMPERATURES:
    accepted, rejected, calls, tokens = (
      float(own[f'{name} {temperature}'].sum()) for name in counts
    )
    result |= {
      f'expected acceptance, T={temperature}': float(own[f'alpha {temperature}'].mean()),
      f'observed acceptance, T={temperature}': accepted / (accepted + rejected),
      f'block efficiency, T={temperature}': tokens / calls,
    }
  return result | {
    'small alone': float(finalize(small.sum(0))),
    'large alone': float(finalize(large.sum(0))),
    'area': curves.area(curve),
    'area above chord': curves.area_above_chord(curve),
  }


def speed_up(acceptance: float, c: float) -> float:
  """Modeled speed-up over the large model alone, at the best number of drafts."""
  gamma = speculative.best_gamma(acceptance, c, most=MOST_DRAFTS)
  return 1 / speculative.relative_seconds(acceptance, gamma, c)


def summarize(
  arms: Mapping[str, Sequence[Columns]],
  control: str,
  finalize: Finalize,
  *,
  samples: int = SAMPLES,
) -> dict[str, dict[str, Any]]:
  """Mean of each number of each arm, and its difference from the control with both intervals.

  Args:
    arms: Columns of each arm, a list over the seeds.
    control: Name of the arm that others are compared with.
    finalize: Quality of the summed statistics of the answers.
    samples: Number of bootstrap samples of the rows, which all arms and seeds share.
  """
  first = arms[control][0]
  sizes = len(first['score']), len(first['calls 0'])
  rng = np.random.default_rng(0)
  draws = [[rng.integers(size, size=size) for size in sizes] for _ in range(samples)]
  every = [np.arange(size) for size in sizes]
  by_seed = {
    name: [numbers(own, *every, finalize) for own in seeds] for name, seeds in arms.items()
  }
  means = {
    name: [_mean([numbers(own, *draw, finalize) for own in seeds]) for draw in draws]
    for name, seeds in arms.items()
  }
  summary: dict[str, dict[str, Any]] = {}
  for name, seeds in by_seed.items():
    summary[name] = {}
    for quantity in seeds[0]:
      values = [own[quantity] for own in seeds]
      differences = [
        own[quantity] - base[quantity] for own, base in zip(seeds, by_seed[control], strict=True)
      ]
      sampled = [
        own[quantity] - base[quantity]
        for own, base in zip(means[name], means[control], strict=True)
      ]
      low, high = np.percentile(sampled, [2.5, 97.5])
      summary[name][quantity] = {
        'values': values,
        'mean': float(np.mean(values)),
        'difference': over_seeds(differences) if len(seeds) > 1 else {'mean': differences[0]},
        'over rows': {'low': float(low), 'high': float(high)},
      }
  return summary


def verdict(entry: Mapping[str, Any]) -> int:
  """1 if both intervals of a difference are above 0, -1 if both are below, else 0.

  A single seed has no interval over seeds, and the one over rows decides.
  """
  own = entry['difference'], entry['over rows']
  intervals = [interval for interval in own if 'low' in interval]
  if all(interval['low'] > 0 for interval in intervals):
    return 1
  return -1 if all(interval['high'] < 0 for interval in intervals) else 0


def judgment(entry: Mapping[str, Any]) -> str:
  """The intervals of a difference, and what they say."""
  intervals = {'over seeds': entry['difference'], 'over rows': entry['over rows']}
  texts = [
    f'{name} {interval["low"]:+.4f} to {interval["high"]:+.4f}'
    for name, interval in intervals.items()
    if 'low' in interval
  ]
  return ', '.join(texts) + {1: ', better', -1: ', worse', 0: ''}[verdict(entry)]


def rows(summary: Mapping[str, Mapping[str, Any]], control: str, c: float) -> Iterator[Measured]:
  """Rows of the printed table: all numbers, modeled speed-ups, and the question's correlations."""
  for name, entries in summary.items():
    for quantity, entry in entries.items():
      note = f'{entry["difference"]["mean"]:+.4f} from the control, {judgment(entry)}'
      yield Measured(f'{name}: {quantity}', entry['mean'], '', note='' if name == control else note)
    for temperature in TEMPERATURES:
      acceptance = entries[f'observed acceptance, T={temperature}']['mean']
      gamma = speculative.best_gamma(acceptance, c, most=MOST_DRAFTS)
      what = f'{name}: modeled speed-up, T={temperature}'
      yield Measured(what, speed_up(acceptance, c), 'x', note=f'{gamma} drafts, c = {c:.3f}')
  trained = [name for name in summary if name not in (control, 'start')]
  drafting = 'expected acceptance, T=1'
  for quantity in ('small alone', 'area', 'area above chord'):
    pairs = [
      [summary[name][of]['difference']['mean'] for name in trained] for of in (drafting, quantity)
    ]
    rho = float(stats.spearmanr(*pairs).statistic)
    both = [
      name
      for name in trained
      if verdict(summary[name][drafting]) == verdict(summary[name][quantity]) == 1
    ]
    note = f'{len(trained)} arms; better in both: {"; ".join(both) or "none"}'
    yield Measured(f'rank correlation of {drafting} with {quantity}', rho, '', note=note)


def gains(summary: Mapping[str, Mapping[str, Any]], start: str) -> Iterator[Measured]:
  """Rows of the gains in expected acceptance over the start, of which the sign is the verdict."""
  for name, entries in summary.items():
    for temperature in TEMPERATURES if name != start else ():
      entry = entries[f'expected acceptance, T={temperature}']
      what = f'{name}: gain over the start in expected acceptance, T={temperature}'
      yield Measured(what, entry['difference']['mean'], '', note=judgment(entry))


def _mean(seeds: Sequence[Numbers]) -> dict[str, float]:
  return {quantity: float(np.mean([own[quantity] for own in seeds])) for quantity in seeds[0]}
