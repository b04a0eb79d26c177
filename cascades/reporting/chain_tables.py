"""Tables of chains of models beside their controls."""

from __future__ import annotations

from cascades import costs
from cascades.evaluation.chains import ChainCurve, ChainResult
from cascades.evaluation.comparison import Comparison
from cascades.evaluation.quantities import Quantity
from cascades.reporting import summary
from cascades.reporting.summary import Cell, Formatter, SummaryTable

NUMBERS = (
  'Area is the mean quality between the costs of the cheapest and the dearest model, AIQ that of '
  'the upper hull. QNC is the least cost that equals the best single model, as a share of its own, '
  'and CostSave the share that a point of the curve saves. PerfGain is the relative gain of the '
  'highest quality over the best single model, APGR the mean share of the gap between first and '
  'last model over all shares of large calls.'
)


def tables(comparison: Comparison) -> list[SummaryTable]:
  """Curves of each chain and its controls, one table for each chain, score and axis of cost."""
  return [table(comparison, result) for result in comparison.chains]


def asked_for(comparison: Comparison) -> list[SummaryTable]:
  """Tables of longer chains, of axes of cost that are not the default one, and of rules of two."""
  return [
    table(comparison, result)
    for result in comparison.chains
    if len(result.models) > 2 or result.axis != 'flops per token' or result.differences
  ]


def table(comparison: Comparison, result: ChainResult) -> SummaryTable:
  """Numbers of the curves of one chain, and its single models."""
  show = summary.quality(comparison)
  columns: dict[str, Formatter] = {
    'area': show,
    'AIQ': show,
    'QNC': summary.percent,
    'CostSave': summary.percent,
    'PerfGain': summary.percent,
    'APGR': summary.percent,
    'gain over random': lambda value: summary.percent(value / 100),
  }
  curves = [
    (
      Cell(name, _unanswered(curve)),
      *(Cell(text(curve.metrics[Quantity(key)])) for key, text in columns.items()),
    )
    for name, curve in result.curves.items()
  ]
  singles = [
    (
      Cell(f'{name} alone', '(best single model)' if name == result.best_single else ''),
      Cell(show(single.quality), f'at {summary.amount(single.cost)}'),
      *[Cell('')] * (len(columns) - 1),
    )
    for name, single in result.singles.items()
  ]
  return SummaryTable(
    f'{" > ".join(result.models)}, by {costs.UNITS[result.axis]}'
    + ('' if result.discarded else ' without discarded answers'),
    f'{_terms(result)} {NUMBERS}',
    ('curve', *columns),
    (*curves, *singles),
  )


def _unanswered(curve: ChainCurve) -> str:
  """Range of the share of unanswered rows along a curve; empty if all are answered."""
  most = float(curve.unanswered.max())
  least = summary.percent(float(curve.unanswered.min()))
  return f'({least} to {summary.percent(most)} unanswered)' if most else ''


def _terms(result: ChainResult) -> str:
  """Sentences about the score, the charged answers, and the split of choices."""
  charged = 'are charged' if result.discarded else 'are NOT charged: CHARGE_DISCARDED=False'
  chosen = f'the split {result.fit_split!r}' if result.fit_split else 'the reported rows'
  unknown = ', '.join(map(repr, result.uncharged))
  free = (
    f' Decisions of {unknown} have no cost in {result.axis}: DECISIONS would give it.'
    if unknown else ''
  )  # fmt: skip
  return (
    f'Deferral by {result.score!r}. Answers that are thrown away {charged}. The best single model, '
    f'and thresholds of chains, are those of {chosen}.{free}'
  )
