"""Routers beside chains: between models, together with a chain of two, and chains that may abstain.

Rules are chosen on the fit split and measured on the reported rows, as those of `frontier` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float

from cascades import curves, frontier, routing
from cascades.costs import Axis
from cascades.curves import Finalize
from cascades.evaluation.applied import Applied, measure
from cascades.evaluation.chains import (
  MOST_POINTS,
  ROUTER,
  UNITED,
  ChainCurve,
  Chains,
  between_ends,
  measured_curve,
)
from cascades.frontier import Outcomes
from cascades.model_choice import Choice
from cascades.routing import Costs, Points
from cascades.types import Decider

Values = Float[np.ndarray, 'N']

MOST_RULES = 1 << 24  # that are valued on the fit split


class ChainRows(NamedTuple):
  """Answers to the reported rows, and to those that rules are chosen on.

  Attributes:
    reported: Answers of the models of a chain.
    statistics: Statistics of the reported answers.
    finalize: Quality of summed statistics.
    fit: Answers of the same models to the fit split.
    sign: 1 if a higher quality is better, else -1.
  """

  reported: Outcomes
  statistics: Float[np.ndarray, 'K N S']
  finalize: Finalize
  fit: Outcomes
  sign: int


class Router(NamedTuple):
  """A decider before any answer, and what it says of the rows.

  Attributes:
    decider: The decider.
    reported: Scores of the reported rows, or its choice among more than two models.
    fit: The same of the fit split; None without one, or where the router has learned from it.
  """

  decider: Decider
  reported: Values | Choice
  fit: Values | Choice | None


class Ruled(NamedTuple):
  """A curve, and its rules on the reported rows."""

  curve: ChainCurve
  applied: Applied


def beside(
  rows: ChainRows, routers: Sequence[Router], axis: Axis, chains: Chains
) -> dict[str, Ruled]:
  """Curves of routers by name, and with a chain of two also of each together with it.

  Args:
    rows: Answers of the models.
    routers: The routers.
    axis: Axis of cost.
    chains: Costs of decisions.
  """
  ruled: dict[str, Ruled] = {}
  for decider, reported, fit in routers:
    deciding = chains.deciding(axis, decider.name, decider.flops) or 0.0
    name = ROUTER.format(decider.name)
    if callable(reported):
      ruled[name] = among(rows, reported, cast('Choice | None', fit), deciding)
      continue
    ruled[name] = between(rows, reported, deciding)
    if isinstance(fit, np.ndarray) and len(rows.statistics) == 2:
      ruled[UNITED.format(decider.name)] = united(rows, reported, fit, deciding)
  return ruled


def united(rows: ChainRows, reported: Values, fit: Values, deciding: float) -> Ruled:
  """Router before, and the chain of two after the small answer: `routing.union`.

  Args:
    rows: Answers of two models.
    reported: Scores of a router on the reported rows.
    fit: Scores of the router on the fit split.
    deciding: Cost of its decision.
  """
  chosen_on, quality = rows.fit, rows.fit.quality
  points = routing.union(
    fit, chosen_on.scores[0], quality[0][:, None], quality[1][:, None],
    lambda sums: sums[..., 0] / len(fit), _costs(chosen_on, deciding),
    most=int(np.clip(MOST_RULES // len(fit), 1, routing.MOST_THRESHOLDS)),
  )  # fmt: skip
  best, costs = _best(points), _costs(rows.reported, deciding)
  after = rows.reported.scores[0]
  decisions = [
    partial(routing.decide, a, b, reported, after, costs)
    for a, b in zip(best.first, best.second, strict=True)
  ]
  return _of_two(best, Applied(decisions, rows.statistics, rows.finalize), rows.sign)


def abstaining(rows: ChainRows, reported: Values, fit: Values) -> Ruled:
  """Chain of two that leaves rows unanswered: `routing.with_abstention`.

  Args:
    rows: Answers of two models, by a metric that is a mean over rows.
    reported: Quality of each reported row if nobody answers it.
    fit: Quality of each row of the fit split if nobody answers it.
  """
  (score,), (small, large) = rows.fit.scores, rows.fit.quality
  points = routing.with_abstention(
    score, small, large, _costs(rows.fit), value=fit,
    most=int(np.clip(MOST_RULES // len(fit), 1, routing.MOST_THRESHOLDS)),
  )  # fmt: skip
  best, costs, after = _best(points), _costs(rows.reported), rows.reported.scores[0]
  decisions = [
    partial(routing.decide_or_abstain, a, b, after, costs)
    for a, b in zip(best.first, best.second, strict=True)
  ]
  quality = rows.sign * np.stack([*rows.reported.quality, reported])
  applied = Applied(decisions, quality[..., None], lambda sums: sums[..., 0] / len(reported))
  ruled = _of_two(best, applied, rows.sign)
  answered = ruled.curve.shares[:, :2]  # the last share is nobody's
  return ruled._replace(curve=ruled.curve._replace(shares=answered))


def between(rows: ChainRows, score: Values, deciding: float) -> Ruled:
  """Router between the first and the last model, at every threshold of the reported rows.

  Args:
    rows: Answers of the models.
    score: Scores of the reported rows.
    deciding: Cost of a decision.
  """
  answers = rows.reported, rows.statistics, rows.finalize, score
  curve = between_ends(frontier.routed(*answers, deciding=deciding), len(rows.statistics))
  threshold = np.unique(score)[::-1]
  threshold = np.append(np.nextafter(threshold[0], np.inf), threshold)  # nobody is sent there
  costs = Costs(rows.reported.cost[0], rows.reported.cost[-1], deciding)
  decisions = [
    partial(_ends, a, score, costs, len(rows.statistics))
    for a in threshold[curves.evenly_spaced(len(threshold), MOST_POINTS)]
  ]
  return Ruled(curve, Applied(decisions, rows.statistics, rows.finalize))


def among(rows: ChainRows, reported: Choice, fit: Choice | None, deciding: float) -> Ruled:
  """Router among all models at falling prices of cost, so that cost rises along the curve.

  Args:
    rows: Answers of the models.
    reported: Choices of the router on the reported rows.
    fit: Its choices on the fit split, on whose hull prices are kept; None keeps all prices.
    deciding: Cost of its decision.
  """
  own = rows.fit.cost.mean(axis=1)
  prices = routing.prices(rows.fit.quality.mean(axis=1), own)
  on_fit = Points(prices, prices, np.empty(0), np.empty(0))
  if fit is not None:
    chosen_on = Applied(
      [partial(_chosen, fit, own, price, rows.fit.cost, deciding) for price in prices],
      rows.fit.quality[..., None],
      lambda sums: sums[..., 0] / len(rows.fit.quality[0]),
    )
    measured = measure(chosen_on)
    on_fit = _best(Points(prices, prices, measured.cost, measured.quality))
  decisions = [
    partial(_chosen, reported, own, price, rows.reported.cost, deciding) for price in on_fit.first
  ]
  applied = Applied(decisions, rows.statistics, rows.finalize)
  curve = measured_curve(measure(applied))._replace(
    outer=on_fit.first, fit_cost=on_fit.cost, fit_quality=rows.sign * on_fit.quality
  )
  return Ruled(curve, applied)


def _ends(a: float, score: Values, costs: Costs, models: int) -> tuple[np.ndarray, np.ndarray]:
  answers, paid = routing.decide(a, np.inf, score, score, costs)
  return answers * (models - 1), paid


def _chosen(
  choice: Choice, own: np.ndarray, price: float, cost: np.ndarray, deciding: float
) -> tuple[np.ndarray, np.ndarray]:
  answers = choice(own, price)
  return answers, cost[answers, np.arange(len(answers))] + deciding


def _costs(outcomes: Outcomes, before: float = 0.0) -> Costs:
  small, large = outcomes.cost
  return Costs(small, large, before, outcomes.deciding[0], outcomes.discarded)


def _best(points: Points) -> Points:
  """Rules on the hull of the fit split, at most `MOST_POINTS` of them."""
  best = routing.envelope(points)
  chosen = curves.evenly_spaced(len(best.cost), MOST_POINTS)
  return Points(*(column[chosen] for column in best))


def _of_two(best: Points, applied: Applied, sign: int) -> Ruled:
  """Curve of rules of two thresholds; the small answer's is that of the chain."""
  last = np.full(len(best.second), np.inf)
  curve = measured_curve(measure(applied))._replace(
    thresholds=np.stack([best.second, last], axis=1),
    outer=best.first,
    fit_cost=best.cost,
    fit_quality=sign * best.quality,
  )
  return Ruled(curve, applied)
