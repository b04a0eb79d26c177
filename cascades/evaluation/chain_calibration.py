"""Thresholds of a chain that keep promises: rules are chosen on one half of the rows, tested on the
other.

On the first half, the mean quality and cost of all tuples of thresholds on a grid of quantiles are
computed, with the router's choices as they are. The tuples that no other one beats, by cost, are
the path that the other half is tested along (`rule_guarantees`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import curves, frontier, rule_guarantees
from cascades.evaluation import calibration, policy_outcome
from cascades.evaluation.calibration import COST, MARGIN, QUALITY, RATE, Demands, NotCertifiedError
from cascades.evaluation.chain_policy import Expected
from cascades.evaluation.chain_rows import ModelTables
from cascades.evaluation.policy import Promise
from cascades.evaluation.policy_outcome import Beginning, PassageRows
from cascades.rule_guarantees import RuleRisk
from cascades.runtime import ranges
from cascades.types import Decider, Metric

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
  """Thresholds of a chain, one a level, inf for none; what they promise, and what is expected."""

  thresholds: tuple[float, ...]
  promises: list[Promise]
  expected: Expected


class JudgedRows(NamedTuple):
  """Rows of a chain, with the loss in [0, 1] of each model's answer and, last, of none."""

  rows: PassageRows
  losses: Float[np.ndarray, 'K+1 N']

  def select(self, rows: Int[np.ndarray, 'n']) -> JudgedRows:
    """Some of the rows."""
    return JudgedRows(self.rows.select(rows), self.losses[:, rows])

  def measure(
    self, thresholds: Sequence[float]
  ) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N'], Int[np.ndarray, 'N']]:
    """Loss and cost of each row under thresholds, and who answers."""
    answers, paid = self.rows.walk(np.array(thresholds))
    return self.losses[answers, np.arange(len(answers))], paid, answers


def calibrate(
  tables: ModelTables,
  deciders: Sequence[Decider | None],
  begins: Beginning | None,
  metric: Metric,
  demands: Demands,
  *,
  abstention: float | None = None,
  surrogate: bool = False,
  seed: int = 0,
) -> CalibratedChain:
  """Certifies thresholds of a chain.

  Args:
    tables: Tables by model in order, with the statistics of the metric.
    deciders: Decider of each model's answers; None where they are final.
    begins: Model that each prompt begins at; None for the first one.
    metric: Metric of the promises.
    demands: Promises.
    abstention: Quality from 0 to 1 of a row that nobody answers.
    surrogate: Judge a corpus metric by its mean over single examples.
    seed: Seed of the halves.

  Raises:
    NotCertifiedError: No rule is certified.
    ValueError: There are too few rows, or a demand is out of range.
  """
  judged = _judged(tables, deciders, begins, metric, demands, abstention, surrogate)
  count = judged.losses.shape[1]
  if count < LEAST_ROWS:
    raise ValueError(f'There are {count} rows; a chain needs {LEAST_ROWS} or more, and far more.')
  halves = np.array_split(np.random.default_rng(seed).permutation(count), 2)
  fit, test = (judged.select(rows) for rows in halves)
  rules = chosen_rules(fit, [decider is not None for decider in deciders])
  measured = [test.measure(rule) for rule in rules]
  risks = _risks(test, measured, demands, metric)
  allowed = np.logical_and.reduce([rule_guarantees.certified(risk) for risk in risks])
  if not allowed.any():
    raise NotCertifiedError(_refusal(risks, demands, len(halves[1])))
  certified = np.flatnonzero(allowed)
  # Rules rise in cost and quality on the other half.
  point = int(certified[0] if any(risk.falls for risk in risks) else certified[-1])
  loss, paid, answers = measured[point]
  names, scale = [*tables], metric.scale
  quality = float(_quality(loss.mean(), metric))
  observed = {QUALITY: quality, COST: float(paid.mean())}
  return CalibratedChain(
    rules[point],
    [
      Promise(
        name=risk.name,
        demanded=demands.levels()[risk.name],
        delta=risk.delta,
        observed=observed.get(risk.name, mean * (scale if risk.name == MARGIN else 1)),
        loss=mean,
        level=risk.level,
        test=rule_guarantees.test_of(risk),
      )
      for risk in risks
      for mean in [float(risk.losses[point].mean())]
    ],
    Expected(
      len(loss),
      quality,
      float(paid.mean()),
      {name: float((answers == i).mean()) for i, name in enumerate(names)},
      float((answers == len(names)).mean()),
    ),
  )


def chosen_rules(rows: JudgedRows, decided: Sequence[bool]) -> list[tuple[float, ...]]:
  """Tuples of thresholds that no other one beats in both quality and cost, the cheapest first.

  Args:
    rows: Rows that rules are chosen on.
    decided: True for models that have a decider.
  """
  levels = sum(decided)
  quantiles = max(1, int(MOST_TUPLES ** (1 / max(levels, 1)) + 1e-9) - 1)
  grid = [
    _candidates(score, quantiles) if decides else [np.inf]
    for score, decides in zip(rows.rows.scores, decided, strict=True)
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


def _judged(
  tables: ModelTables,
  deciders: Sequence[Decider | None],
  begins: Beginning | None,
  metric: Metric,
  demands: Demands,
  abstention: float | None,
  surrogate: bool,
) -> JudgedRows:
  if grouped := [table.task for own in tables.values() for table in own if table.groups]:
    raise ValueError(
      f'Rows of task {grouped[0]!r} come in groups, so they are not independent and no promise '
      'about them would hold: calibrate on one row a group.'
    )
  rows = policy_outcome.passage_rows(deciders, tables, begins, demands.cost_axis)
  losses = [
    _loss(
      np.concatenate([calibration.row_quality(t, metric, surrogate=surrogate) for t in own]), metric
    )
    for own in tables.values()
  ]
  nobody = 1.0 if abstention is None else 1 - abstention
  return JudgedRows(rows, np.stack([*losses, np.full(losses[0].shape, nobody)]))


def _loss(quality: Float[np.ndarray, '*N'], metric: Metric) -> Float[np.ndarray, '*N']:
  share = quality / metric.scale
  return 1 - share if metric.higher_is_better else share


def _quality(loss: Float[np.ndarray, '*N'], metric: Metric) -> Float[np.ndarray, '*N']:
  return metric.scale * (1 - loss if metric.higher_is_better else loss)


def _risks(
  rows: JudgedRows,
  measured: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
  demands: Demands,
  metric: Metric,
) -> list[RuleRisk]:
  """Demands as bounds of mean losses of the rules."""
  loss = np.stack([loss for loss, _, _ in measured])
  paid = np.stack([paid for _, paid, _ in measured])
  passed = np.stack([answers > rows.rows.start for _, _, answers in measured]).astype(float)
  risks = []
  for name, value in demands.levels().items():
    delta = demands.deltas.get(name, demands.delta)
    if name == QUALITY:
      ranges.check({f'QUALITY ({metric.name})': value}, least=0, most=metric.scale)
      risks.append(RuleRisk(name, loss, float(_loss(np.array(value), metric)), delta))
    elif name == MARGIN:
      risks.append(RuleRisk(name, loss - rows.losses[-2], value / metric.scale, delta))
    elif name == RATE:
      risks.append(RuleRisk(name, passed, value, delta, falls=False))
    else:
      most = demands.most_cost
      if most is None or paid.max() > most or not 0 < value <= most:
        raise ValueError(
          f'A promise about the mean cost of a chain needs a bound: give MOST_COST, in '
          f'{demands.cost_axis}, that no query exceeds, and a COST below it. The dearest of these '
          f'rows costs {paid.max():g}; MOST_COST is {most}, COST {value:g}.'
        )
      risks.append(RuleRisk(name, paid / most, value / most, delta, falls=False))
  return risks


def _refusal(risks: Sequence[RuleRisk], demands: Demands, rows: int) -> str:
  count: Callable[[RuleRisk], int] = lambda risk: int(rule_guarantees.certified(risk).sum())
  texts = [
    f'{risk.name.upper().replace(" ", "_")}={demands.levels()[risk.name]:g} (delta {risk.delta:g}) '
    f'is certified for {count(risk)} of {len(risk.losses)} rules'
    for risk in risks
  ]
  return (
    f'No rule of the chain keeps the promises on the {rows} rows that it was tested on, half of '
    f'all: {"; ".join(texts)}. Give more rows, lower the demands, or raise DELTA.'
  )
