"""Thresholds of a chain that keep promises: rules are chosen on one half of the rows, tested on the
other.

On the first half, the mean quality and cost of all tuples of thresholds on a grid of quantiles are
computed, with the router's choices as they are. The tuples that no other one beats, by cost, are
the path that the other half is tested along (`rule_guarantees`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import curves, drift, frontier, guarantees, rule_guarantees
from cascades.evaluation import calibration
from cascades.evaluation.calibration import COST, MARGIN, QUALITY, Demands, NotCertifiedError
from cascades.evaluation.chain_judgements import JudgedRows, promised_risks, quality_of
from cascades.evaluation.chain_policy import Expected
from cascades.evaluation.policy import Interval, Promise, Threshold
from cascades.guarantees import RuleLosses, Simulation
from cascades.risk_tests import ROUNDING
from cascades.rule_guarantees import RuleRisk

MOST_TUPLES = 4096
MOST_RULES = 100  # that are tested
LEAST_ROWS = 20


@dataclasses.dataclass(frozen=True)
class ChainOptions:
  """A chain of more than two models, or one that begins where a router says.

  Attributes:
    models: Names of the small models in order; the large one ends the chain. None calibrates the
      pair of models without a router.
    deciders: Deciders of single models, where they are not that of all.
    large: Name of the large model in the policy.
    router: NAME.policy.json of a router beside the policy; None begins with the first model.
    abstention: Quality from 0 to 1 of a row that nobody answers: the last model may abstain then.
  """

  models: Sequence[str] = ()
  deciders: Mapping[str, str] = dataclasses.field(default_factory=dict)
  large: str = 'large'
  router: str | None = None
  abstention: float | None = None

  def __post_init__(self) -> None:
    if self.abstention is not None and not 0 <= self.abstention <= 1:
      raise ValueError(f'ABSTENTION={self.abstention}; a quality is a number from 0 to 1.')
    if not self.models and (self.deciders or self.router or self.abstention is not None):
      raise ValueError(
        'DECIDERS, ROUTER and ABSTENTION are of a CHAIN: name its small models in order, as '
        "CHAIN=['small']."
      )


class CalibratedChain(NamedTuple):
  """Thresholds of a chain that keep promises.

  Attributes:
    thresholds: One a level; inf for none.
    expected: The promises, and what is expected.
    entries: Rows that reached each level, for monitors; None of levels that few or no rows reach.
  """

  thresholds: tuple[float, ...]
  expected: Expected
  entries: tuple[Threshold | None, ...]


class TestedRules(NamedTuple):
  """Rules that were chosen on other rows, and what they are worth on these.

  Attributes:
    rows: Rows that they were tested on.
    rules: Tuples of thresholds, the cheapest first.
    risks: Promises under each.
    point: Index of the rule to take; None if none keeps the promises.
  """

  rows: JudgedRows
  rules: Sequence[tuple[float, ...]]
  risks: Sequence[RuleRisk]
  point: int | None


def calibrate(rows: JudgedRows, demands: Demands, *, seed: int = 0) -> CalibratedChain:
  """Certifies thresholds of a chain.

  Args:
    rows: The rows.
    demands: Promises.
    seed: Seed of the halves.

  Raises:
    NotCertifiedError: No rule is certified.
    ValueError: There are too few rows, or a demand is out of range.
  """
  tested = _tested(rows, demands, seed=seed)
  if tested.point is None:
    raise NotCertifiedError(_refusal(tested, demands))
  thresholds = tested.rules[tested.point]
  loss, paid, answers = tested.rows.measure(thresholds)
  quality, scale = float(quality_of(loss.mean(), rows.metric)), rows.metric.scale
  observed = {QUALITY: quality, COST: float(paid.mean())}
  promises = [
    Promise(
      name=risk.name,
      demanded=demands.levels()[risk.name],
      delta=risk.delta,
      observed=observed.get(risk.name, mean * (scale if risk.name == MARGIN else 1)),
      loss=mean,
      level=risk.level,
      test=rule_guarantees.test_of(risk),
    )
    for risk in tested.risks
    for mean in [float(risk.losses[tested.point].mean())]
  ]
  expected = Expected(
    rows.task,
    len(loss),
    promises,
    quality,
    float(paid.mean()),
    {name: float((answers == i).mean()) for i, name in enumerate(rows.names)},
    float((answers == len(rows.names)).mean()),
  )
  first = [] if rows.routed else promises
  entries = (
    _entry(tested, level, answers, demands, [] if level else first) if decides else None
    for level, decides in enumerate(rows.decided)
  )
  return CalibratedChain(thresholds, expected, tuple(entries))


def _entry(
  tested: TestedRules,
  level: int,
  answers: Int[np.ndarray, 'N'],
  demands: Demands,
  promises: list[Promise],
) -> Threshold | None:
  """Rows that reached a level, for monitors.

  Which rows reach the first level depends on no rule; of later ones, on the one that was chosen.
  """
  start = tested.rows.rows.start
  reached = np.flatnonzero((start <= level) & (answers >= level))
  if len(reached) < 2 or tested.point is None:
    return None
  own, thresholds = tested.rows.select(reached), tested.rules[tested.point]
  own = own._replace(rows=own.rows._replace(start=np.full(len(reached), level)))
  (loss, paid, _), metric = own.measure(thresholds), own.metric
  edges, ties, gaps = drift.reference(own.rows.scores[level], seed=0)
  rate = calibration.rate_at(own.rows.scores[level] >= thresholds[level], demands.delta)
  quality = calibration.quality_at(quality_of(loss, metric), metric.scale, demands.delta)
  return Threshold(
    task=own.task,
    threshold=thresholds[level] if np.isfinite(thresholds[level]) else None,
    rows=len(reached),
    promises=promises,
    deferral_rate=Interval(*rate),
    quality=Interval(*quality),
    cost=float(paid.mean()),
    edges=edges.tolist(),
    ties=ties.tolist(),
    gaps=gaps.tolist(),
    rules=len(tested.rules) if level else 1,
  )


def _tested(rows: JudgedRows, demands: Demands, *, seed: int, plug_in: bool = False) -> TestedRules:
  """Rules of one half of the rows, tested on the other.

  Args:
    rows: The rows.
    demands: Promises.
    seed: Seed of the halves.
    plug_in: Choose and test on all rows, and take their means for the truth, as a control.
  """
  count = rows.losses.shape[1]
  if count < LEAST_ROWS:
    raise ValueError(
      f'There are {count} rows of {rows.task!r}; a chain needs {LEAST_ROWS} or more, and far more.'
    )
  fit = test = rows
  if not plug_in:
    halves = np.array_split(np.random.default_rng(seed).permutation(count), 2)
    fit, test = (rows.select(half) for half in halves)
  rules = chosen_rules(fit)
  risks = promised_risks(test, rules, demands)
  allowed = np.logical_and.reduce(
    [
      risk.losses.mean(axis=1) <= risk.level + ROUNDING
      if plug_in
      else rule_guarantees.certified(risk)
      for risk in risks
    ]
  )
  certified = np.flatnonzero(allowed)
  if not len(certified):
    return TestedRules(test, rules, risks, None)
  # Rules rise in cost and quality on the other half.
  point = int(certified[0] if any(risk.falls for risk in risks) else certified[-1])
  return TestedRules(test, rules, risks, point)


def check(
  rows: JudgedRows, demands: Demands, *, draws: int, seed: int
) -> tuple[Sequence[RuleRisk], dict[str, Simulation]]:
  """Calibrates many times on draws from the rows, by the method and by the plug-in rule.

  Args:
    rows: Rows that stand for the population.
    demands: Demands of each calibration.
    draws: Number of draws, of as many rows each.
    seed: Seed of the draws.

  Returns:
    The promises, and the simulation of each method.
  """
  count = rows.losses.shape[1]
  always = tuple(-np.inf if decides else np.inf for decides in rows.decided)
  promises = promised_risks(rows, [always], demands)

  def choose(drawn: Int[np.ndarray, 'n'], plug_in: bool) -> tuple[float, ...] | None:
    tested = _tested(rows.select(drawn), demands, seed=seed, plug_in=plug_in)
    return None if tested.point is None else tested.rules[tested.point]

  def apply(rule: tuple[float, ...], at: Int[np.ndarray, 'n']) -> RuleLosses:
    own = rows.select(at)
    losses = [risk.losses[0] for risk in promised_risks(own, [rule], demands)]
    return RuleLosses(np.stack(losses), own.measure(rule)[2] > own.rows.start)

  return promises, {
    name: guarantees.simulate(
      functools.partial(choose, plug_in=name == 'plug-in'),
      apply,
      [risk.level for risk in promises],
      population=count,
      rows=count,
      draws=draws,
      seed=seed,
    )
    for name in ('certified', 'plug-in')
  }


def chosen_rules(rows: JudgedRows) -> list[tuple[float, ...]]:
  """Tuples of thresholds that no other one beats in both quality and cost, the cheapest first."""
  levels = sum(rows.decided)
  quantiles = max(1, int(MOST_TUPLES ** (1 / max(levels, 1)) + 1e-9) - 1)
  grid = [
    _candidates(score, quantiles) if decides else [np.inf]
    for score, decides in zip(rows.rows.scores, rows.decided, strict=True)
  ]
  tuples = [*itertools.product(*grid)]
  measured = [rows.measure(thresholds)[:2] for thresholds in tuples]
  quality = np.array([-loss.mean() for loss, _ in measured])
  best = frontier.best(np.array([paid.mean() for _, paid in measured]), quality)
  return [tuples[best[i]] for i in curves.evenly_spaced(len(best), MOST_RULES)]


def _candidates(score: Float[np.ndarray, 'N'], quantiles: int) -> list[float]:
  """Scores at so many quantiles, the lowest defers all; and inf, which defers none."""
  ranks = np.arange(min(quantiles, len(score))) * len(score) // min(quantiles, len(score))
  return [*np.unique(np.sort(score)[ranks]).tolist(), np.inf]


def _refusal(tested: TestedRules, demands: Demands) -> str:
  count: Callable[[RuleRisk], int] = lambda risk: int(rule_guarantees.certified(risk).sum())
  texts = [
    f'{risk.name.upper().replace(" ", "_")}={demands.levels()[risk.name]:g} (delta {risk.delta:g}) '
    f'is certified for {count(risk)} of {len(risk.losses)} rules'
    for risk in tested.risks
  ]
  rows = tested.rows.losses.shape[1]
  return (
    f'No rule of the chain keeps the promises on the {rows} rows that it was tested on, half of '
    f'all: {"; ".join(texts)}. Give more rows, lower the demands, or raise DELTA.'
  )
