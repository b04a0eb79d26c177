"""Comparisons of models, scores, chains and single points in one table, each with a decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from cascades import comparisons, costs
from cascades.bootstrap import Difference
from cascades.evaluation.comparison import Comparison, PairedDifference
from cascades.evaluation.quantities import AREA
from cascades.reporting import summary
from cascades.reporting.summary import Cell, SummaryTable

UNDECIDED = 'no difference is shown'
MINUS = '\N{MINUS SIGN}'


class _Decision(NamedTuple):
  """A comparison of two sides: what is measured, the first minus the second, the corrected p."""

  first: str
  second: str
  measure: str
  value: float
  difference: Cell
  p: float
  higher_is_better: bool
  family: int  # comparisons that the p-value of the bootstrap is corrected for; 0 if it is exact


def table(comparison: Comparison, *, most: int | None = None) -> SummaryTable | None:
  """Table of all comparisons, or of the first ones; None if there is nothing to compare."""
  decisions = list(_decisions(comparison))
  if not decisions:
    return None
  alpha = 1 - comparison.settings.confidence
  shown = decisions[:most]
  rest = len(decisions) - len(shown)
  note = (
    'First minus second, on the same resamples of the examples. The p-values are corrected by '
    'Holm for the number of comparisons of a group (models, scores, chains, single points), so '
    f'that all decisions of a group together err with a probability of at most {alpha:.3g}. The '
    'area is the mean quality over all deferral rates, or over the costs of a chain. At a single '
    'cost, the exact test of McNemar compares the numbers of answers that only the first and only '
    'the second gets right, which stand in brackets.'
  )
  least = 2 / (comparison.settings.resamples + 1)
  largest = max(decision.family for decision in decisions)
  if least * largest > alpha:
    note += (
      f' With {comparison.settings.resamples} resamples no p-value of a group of {largest} can be '
      f'corrected to {alpha:.3g} or less: raise RESAMPLES.'
    )
  rows: list[tuple[Cell, ...]] = [
    (
      Cell(f'{decision.first} {MINUS} {decision.second}'),
      Cell(decision.measure),
      decision.difference,
      Cell(f'{decision.p:.3f}' if decision.p >= 5e-4 else '< 0.001'),
      Cell(_verdict(decision, alpha, least)),
    )
    for decision in shown
  ]
  if rest:
    rows.append((Cell(f'and {rest} more in report.html'), *[Cell('')] * 4))
  header = ('comparison', 'of', 'difference', 'corrected p', 'decision')
  return SummaryTable('Comparisons', note, header, tuple(rows))


def seed_averages(comparison: Comparison) -> SummaryTable:
  """Means over the training seeds of each recipe, with intervals over seeds and examples."""
  show, columns = summary.quality(comparison), summary.AREA_COLUMNS
  rows = [
    (
      Cell(average.model, f'{len(comparison.recipes[average.model])} seeds'),
      Cell(average.score),
      *summary.estimates(average, columns, show),
    )
    for average in comparison.averages
  ]
  return SummaryTable(
    'Means over training seeds',
    'Intervals include the variation between training seeds and between examples. With fewer than '
    'five seeds they are too narrow, because so few do not show how much seeds vary. '
    f'{summary.AREAS}',
    ('recipe', 'score', 'alone', 'area', 'above chord'),
    tuple(rows),
  )


def _decisions(comparison: Comparison) -> Iterator[_Decision]:
  show, higher = (
    summary.signed(summary.quality(comparison)),
    comparison.metric.higher_is_better,
  )
  lead = [pair for pair in comparison.differences if pair.score == comparison.scores[0]]
  families = (
    (
      lead,
      comparison.differences,
      lambda pair: (pair.model, pair.baseline, f'area by {pair.score}'),
    ),
    (
      comparison.score_differences,
      comparison.score_differences,
      lambda pair: (pair.score, pair.baseline_score, f'area of {pair.model}'),
    ),
  )
  for pairs, family, names in families:
    for pair in pairs:
      area = pair.estimates[AREA]
      yield _Decision(
        *names(pair), area.value, _cell(area, show), pair.holm[AREA], higher, len(family)
      )
  several = len({(result.models, result.score) for result in comparison.chains}) > 1
  chains = [
    (result, sides, difference)
    for result in comparison.chains
    for sides, difference in result.differences.items()
  ]
  adjusted = comparisons.holm(np.array([difference.p for *_, difference in chains]))
  for (result, sides, difference), p in zip(chains, adjusted, strict=True):
    own = f' of {" > ".join(result.models)} by {result.score}' if several else ''
    measure = f'area{own}, {costs.UNITS[result.axis]}'
    cell = _cell(difference, show)
    yield _Decision(*sides, measure, difference.value, cell, float(p), higher, len(chains))
  yield from _points(lead)


def _points(pairs: Sequence[PairedDifference]) -> Iterator[_Decision]:
  """Right answers of pairs of models at equal cost."""
  tests = [(pair, cost, test) for pair in pairs for cost, test in pair.mcnemar.items()]
  adjusted = comparisons.holm(np.array([test.p for *_, test in tests]))
  for (pair, cost, test), p in zip(tests, adjusted, strict=True):
    gained = test.first_only - test.second_only
    cell = Cell(f'{gained:+d}', f'[{test.first_only} : {test.second_only}]')
    measure = f'right answers at {summary.amount(cost)} FLOPs/token'
    yield _Decision(pair.model, pair.baseline, measure, gained, cell, float(p), True, 0)


def _cell(difference: Difference, show: summary.Formatter) -> Cell:
  return Cell(show(difference.value), f'[{show(difference.low)}, {show(difference.high)}]')


def _verdict(decision: _Decision, alpha: float, least: float) -> str:
  if decision.family * least > alpha:
    return 'too few resamples to tell'
  if not decision.p <= alpha or decision.value == 0:
    return UNDECIDED
  first = (decision.value > 0) == decision.higher_is_better
  return f'{decision.first if first else decision.second} is better'
