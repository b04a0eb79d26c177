"""Policies on a terminal, their check as a figure, and their outcome on other tables as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cascades import risk_tests
from cascades.evaluation.chain_policy import ChainPolicy
from cascades.evaluation.policy import Interval, Policy, Threshold
from cascades.evaluation.policy_outcome import PolicyOutcome
from cascades.evaluation.realized import Outcome
from cascades.guarantees import Risk, Simulation
from cascades.reporting import terminal
from cascades.reporting.figures import STYLE
from cascades.reporting.palette import FAINT, INK, PALETTE
from cascades.reporting.summary import Cell, SummaryTable
from cascades.rule_guarantees import RuleRisk


def show_policy(policy: Policy) -> None:
  """Prints thresholds, promises and what is expected at them."""
  cells = [
    [
      entry.task,
      f'{entry.value:.6g}',
      f'{promise.name} {_sign(promise.name, policy)} {promise.demanded:g}',
      f'{1 - promise.delta:.0%}',
      f'{promise.observed:.4g}',
      interval(entry.quality, '.4g'),
      interval(entry.deferral_rate, '.1%'),
      interval(entry.cost_interval, '.4g') if entry.cost_interval else f'{entry.cost:.4g}',
    ]
    for entry in policy.thresholds
    for promise in entry.promises
  ]
  header = ['task', 'threshold', 'promise', 'kept with', 'observed', policy.metric.name]
  _print('Policy', [*header, 'deferral rate', f'cost ({policy.cost_axis})'], cells)


def show_chain(policy: ChainPolicy) -> None:
  """Prints the levels of a chain, its promises and what is expected."""
  cells = [
    [
      expected.task,
      name,
      level.decider.name if level else 'final',
      f'{level.threshold_of(expected.task):.6g}' if level else '',
      f'{expected.shares[name]:.1%}',
    ]
    for expected in policy.expected
    for name, level in zip(policy.models, policy.levels, strict=True)
  ]
  _print('Chain', ['task', 'model', 'score', 'goes on from', 'answers'], cells)
  cells = [
    [
      expected.task,
      f'{promise.name} {_sign(promise.name, policy)} {promise.demanded:g}',
      f'{1 - promise.delta:.0%}',
      f'{promise.observed:.4g}',
      f'{expected.quality:.4g}',
      f'{expected.cost:.4g}',
    ]
    for expected in policy.expected
    for promise in expected.promises
  ]
  header = ['task', 'promise', 'kept with', 'observed', policy.metric.name]
  _print('Promises', [*header, f'cost ({policy.cost_axis})'], cells)


def show_policy_outcome(name: str, outcome: PolicyOutcome) -> None:
  """Prints quality and cost of a policy of any number of models, and who answers."""
  cells = [
    [model, f'{outcome.begins[model]:.1%}', f'{share:.1%}']
    for model, share in outcome.answers.items()
  ]
  if outcome.unanswered:
    cells.append(['nobody', '', f'{outcome.unanswered:.1%}'])
  _print(f'Policy {name} on these rows', ['model', 'begins', 'answers'], cells)
  header = ['rows', outcome.metric, f'cost ({outcome.axis})']
  _print(
    'Outcome', header, [[f'{outcome.rows:,}', f'{outcome.quality:.6g}', f'{outcome.cost:.6g}']]
  )


def sentence(policy: Policy, entry: Threshold) -> str:
  """Promises at a threshold, each with the probability that it is kept."""
  return ', '.join(
    f'{promise.name} {_sign(promise.name, policy)} {promise.demanded:g} '
    f'(kept with {1 - promise.delta:.0%})'
    for promise in entry.promises
  )


def show_outcomes(policy: Policy | ChainPolicy, outcomes: Sequence[Outcome]) -> None:
  """Prints promised against realized, and what the monitors say."""
  cells = [
    [
      outcome.task,
      f'{outcome.rows:,}',
      f'{promise.name} {_sign(promise.name, policy)} {promise.demanded:g}',
      f'{promise.value:.4g}',
      'kept'
      if promise.fulfilled
      else 'REFUTED'
      if promise.refuted
      else 'missed by chance, perhaps',
    ]
    for outcome in outcomes
    for promise in outcome.promises
  ]
  _print('Promised against realized', ['task', 'rows', 'promise', 'realized', 'verdict'], cells)
  cells = [
    [
      outcome.task,
      alarm.monitor,
      'no change is seen' if alarm.rows is None else f'ALARM after {alarm.rows:,} rows',
    ]
    for outcome in outcomes
    for alarm in outcome.alarms
  ]
  _print('Do the assumptions still hold?', ['task', 'monitor of', 'verdict'], cells)


def show_check(
  task: str, risks: Sequence[Risk | RuleRisk], methods: Mapping[str, Simulation]
) -> None:
  """Prints how often each promise was kept, and how much was deferred for it."""
  cells = [
    [
      task,
      name,
      risk.name,
      f'{1 - risk.delta:.0%}',
      f'{simulation.fulfilled[:, i].mean():.1%}',
      f'{simulation.held_out[:, i].mean():.1%}',
      f'{np.median(simulation.rate):.1%}',
      f'{simulation.refused.mean():.1%}',
    ]
    for name, simulation in methods.items()
    for i, risk in enumerate(risks)
  ]
  draws = len(next(iter(methods.values())).rate)
  header = ['task', 'threshold', 'promise', 'kept with', 'kept', 'on rows not drawn']
  _print(f'Check: {draws:,} draws', [*header, 'median deferral rate', 'refused'], cells)


def _print(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
  texts = tuple(tuple(map(Cell, row)) for row in cells)
  terminal.print_tables([SummaryTable(title, '', tuple(header), texts)])


def _sign(name: str, policy: Policy | ChainPolicy) -> str:
  return '>=' if name == 'quality' and policy.metric.higher_is_better else '<='


def interval(value: Interval, form: str) -> str:
  """Value and interval as text."""
  return f'{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]'


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
  """Outcomes for programs."""
  return [
    {
      'task': outcome.task,
      'rows': outcome.rows,
      'calibration rows': outcome.calibrated,
      'holds': outcome.holds,
      'deferral rate': _interval(outcome.deferral_rate),
      'quality': outcome.quality and _interval(outcome.quality),
      'promises': [promise._asdict() for promise in outcome.promises],
      'alarms': {alarm.monitor: alarm.rows for alarm in outcome.alarms},
    }
    for outcome in outcomes
  ]


def _interval(value: Interval) -> dict[str, float]:
  return {'value': value.value, 'low': value.low, 'high': value.high}


def draw_check(risks: Sequence[Risk | RuleRisk], methods: Mapping[str, Simulation]) -> Figure:
  """Share of draws that kept each promise, beside the deferral rates that it took.

  Whiskers are exact 95 % intervals of the share; the tick of each promise is 1 - delta.
  """
  with mpl.rc_context(STYLE):
    figure = Figure(figsize=(7.6, 3.2))
    FigureCanvasAgg(figure)
    shares, rates = figure.subplots(1, 2)
    for color, (offset, (name, simulation)) in zip(
      PALETTE, enumerate(methods.items()), strict=False
    ):
      draws = len(simulation.rate)
      for i, risk in enumerate(risks):
        count, at = int(simulation.fulfilled[:, i].sum()), i + 0.2 * offset - 0.1
        low, high = risk_tests.binomial_interval(count, draws, 0.05)
        shares.plot([at, at], [low, high], color=color)
        shares.plot(at, count / draws, 'o', color=color, label=name if not i else None)
        shares.plot([i - 0.3, i + 0.3], [1 - risk.delta] * 2, color=INK, linewidth=1)
      ordered = np.sort(simulation.rate)
      rates.step(ordered, np.arange(1, draws + 1) / draws, where='post', color=color, label=name)
    shares.set_xticks(range(len(risks)), [risk.name for risk in risks])
    shares.set(title='promise kept', xlim=(-0.6, len(risks) - 0.4))
    rates.set(title='draws with this deferral rate or less', xlabel='deferral rate', xlim=(0, 1))
    shares.yaxis.set_major_formatter(PercentFormatter(1))
    rates.axhline(0.5, color=FAINT, linewidth=0.8)
    for axes in (rates.xaxis, rates.yaxis):
      axes.set_major_formatter(PercentFormatter(1))
    shares.legend(loc='lower left')
  return figure
