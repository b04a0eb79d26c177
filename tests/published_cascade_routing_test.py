"""Cascade routing as Dekoninck et al. 2024, https://arxiv.org/abs/2410.10347, publish it.

Their procedure estimates the quality of every model from the prompt and the answers so far. At step
j it takes the best supermodel, a set of models that holds those that ran, by

    E max_{i in M} Q_i - lambda_j sum_{i in M} c_i

and runs its next model, or stops and returns the answer of the highest estimate. Models that have
not run have normal errors of a given deviation. Lambda is found by bisection for a budget of cost,
or searched for each step, and a draw with probability gamma between the cheapest and the dearest of
equal supermodels spends the budget. Routing is the first step alone, over single models.

`routing.union` promises no less on the rows that both are chosen on if there are two models, errors
have no deviation, each model costs the same on all rows, and no estimate changes after the last
model's answer: then every choice of theirs is a pair of thresholds, on the estimated gains before
and after the small answer. Otherwise it promises nothing, and can be below, as the last tests show.
"""

import gzip
import itertools
import json
from typing import NamedTuple

import numpy as np
import pytest

from cascades import learned_deferral, routing, score_calibration
from cascades.learned_deferral import METHODS
from cascades.predictions import alignment
from tests import real_data, synthetic_tables

ROUND = 8  # digits of values that count as equal
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(12)


class Problem(NamedTuple):
  """Rows of K models.

  Attributes:
    estimates: Estimated qualities [K + 1, N, K], by the number of models that ran.
    deviations: Deviation of the error of each model that has not run, [K].
    cost: Cost of each answer, [N, K].
    quality: Quality of each answer, [N, K].
  """

  estimates: np.ndarray
  deviations: np.ndarray
  cost: np.ndarray
  quality: np.ndarray


def expected_maximum(estimate, deviation):
  """E max of independent normals, by quadrature over each that is not certain."""
  terms = [
    [(value, 1.0)] if not sd else [*zip(value + sd * NODES, WEIGHTS / WEIGHTS.sum(), strict=True)]
    for value, sd in zip(estimate, deviation, strict=True)
  ]
  return sum(
    max(value for value, _ in draw) * np.prod([weight for _, weight in draw])
    for draw in itertools.product(*terms)
  )


def supermodels(problem, row, ran, price, *, dearest):
  """Best set of models that holds those that ran; models run in order."""
  models = range(problem.quality.shape[1])
  rest = [model for model in models if not ran or model > ran[-1]]
  best = []
  for size in range(len(rest) + 1):
    for added in itertools.combinations(rest, size):
      members = [*ran, *added]
      if members:
        estimate = problem.estimates[len(ran), row, members]
        deviation = [0.0 if m in ran else problem.deviations[m] for m in members]
        cost = sum(problem.cost[row, m] for m in members)
        value = round(expected_maximum(estimate, deviation) - price * cost, ROUND)
        best.append((value, cost if dearest else -cost, added))
  return max(best)[2]


def execute(problem, prices, *, dearest=False):
  """Mean cost and quality under one price a step."""
  total = np.zeros(2)
  for row in range(len(problem.quality)):
    ran = []
    while len(ran) < len(prices) and (
      added := supermodels(problem, row, ran, prices[len(ran)], dearest=dearest)
    ):
      ran.append(added[0])
    estimate = problem.estimates[len(ran), row]
    answer = max(ran, key=lambda model: estimate[model])
    total += sum(problem.cost[row, m] for m in ran), problem.quality[row, answer]
  return tuple(total / len(problem.quality))


def spend(problem, prices, budget):
  """The mixture of equal supermodels that spends a budget, as far as it can."""
  cheap, dear = (np.array(execute(problem, prices, dearest=d)) for d in (False, True))
  share = 0.0 if cheap[0] == dear[0] else np.clip((budget - cheap[0]) / (dear[0] - cheap[0]), 0, 1)
  return tuple(cheap + share * (dear - cheap))


def bisect(problem, budget, steps=8):
  """Cost and quality at the least price, equal in all steps, whose cost stays in the budget."""
  models = problem.quality.shape[1]
  low, high = 0.0, 1.0
  while execute(problem, [high] * models)[0] > budget and high < 1e6:
    low, high = high, 2 * high
  for _ in range(steps):
    middle = (low + high) / 2
    if execute(problem, [middle] * models)[0] < budget:
      high = middle
    else:
      low = middle
  return spend(problem, [high] * models, budget)


def route(problem, price):
  """Cost and quality of their router: one model by the first estimates alone."""
  value = np.round(problem.estimates[0] - price * problem.cost, ROUND)
  rows, chosen = np.arange(len(value)), value.argmax(axis=1)
  return problem.cost[rows, chosen].mean(), problem.quality[rows, chosen].mean()


def envelope(problem):
  """Hull of all pairs of thresholds on the gains before and after the small answer."""
  before, after = (np.subtract(*problem.estimates[step].T[::-1]) for step in (0, 1))
  small, large = problem.quality.T
  costs = routing.Costs(*problem.cost.T)
  points = routing.union(
    before, after, small[:, None], large[:, None], lambda sums: sums[..., 0] / len(small), costs,
    most=len(small),
  )  # fmt: skip
  return routing.envelope(points)


def at(hull, cost):
  """Quality of a hull at a cost, flat above its best point."""
  return float(np.interp(cost, hull.cost, hull.quality))


def synthetic(seed, rows=25):
  """Two models, estimates that the small answer sharpens, constant costs and no deviation."""
  rng = np.random.default_rng(seed)
  chance = np.column_stack([rng.random(rows), 0.4 + 0.6 * rng.random(rows)])
  quality = (rng.random((rows, 2)) < chance).astype(float)
  before = np.clip(chance + 0.3 * rng.normal(size=(rows, 2)), 0, 1).round(1)
  after = before.copy()
  after[:, 0] = np.clip(0.7 * quality[:, 0] + 0.3 * rng.random(rows), 0, 1).round(1)
  cost = np.tile([1.0, 4.0], (rows, 1))
  return Problem(np.stack([before, after, after]), np.zeros(2), cost, quality)


def test_the_oracle_agrees_with_numbers_worked_by_hand():
  estimates = np.array([[[0.5, 0.6, 0.9]], [[0.2, 0.6, 0.9]], [[0.2, 0.8, 0.9]], [[0.2, 0.8, 0.9]]])
  problem = Problem(estimates, np.zeros(3), np.array([[1.0, 2, 6]]), np.array([[0.0, 1, 1]]))
  # .4, .4 and .3 at a price of .1: the first, then .6 - .3 = .3 beats .2 - .1, then .8 - .3 = .5
  # beats .9 - .9. The dearest of equals is the second, .8 - .2 against .9 - .8.
  assert execute(problem, [0.1] * 3) == (3.0, 1.0)
  assert execute(problem, [0.1] * 3, dearest=True) == (2.0, 1.0)
  assert spend(problem, [0.1] * 3, 2.0) == (2.0, 1.0)
  # E max of two normals of mean 0 and deviation 1 is 1 / sqrt(pi).
  assert expected_maximum([0.0, 0.0], [1.0, 1.0]) == pytest.approx(np.pi**-0.5, abs=0.05)
  assert expected_maximum([0.3, 0.5], [0.0, 0.0]) == 0.5


@pytest.mark.parametrize('seed', range(2))
def test_rules_of_two_thresholds_hold_every_choice_of_theirs_where_theory_promises_it(seed):
  problem = synthetic(seed)
  best = envelope(problem)
  for budget in np.linspace(1.0, 5.0, 5):
    cost, quality = bisect(problem, budget)
    assert at(best, cost) >= quality - 1e-9
  prices = [0.0, 0.03, 0.08, 0.15, 0.3, 1.0]
  for pair in itertools.product(prices, repeat=2):  # in the place of their search
    for dearest in (False, True):
      cost, quality = execute(problem, pair, dearest=dearest)
      assert at(best, cost) >= quality - 1e-9
  for price in prices:
    cost, quality = route(problem, price)
    assert at(best, cost) >= quality - 1e-9


def test_a_choice_of_theirs_is_a_pair_of_thresholds():
  problem = synthetic(0)
  before, after = (np.subtract(*problem.estimates[step].T[::-1]) for step in (0, 1))
  costs = routing.Costs(*problem.cost.T)
  for first, second in itertools.product([0.05, 0.1, 0.2], repeat=2):
    a, b = (np.nextafter(x, np.inf) for x in (first * 3 + 1e-8, second * 4 + 1e-8))
    answers, paid = routing.decide(a, b, before, after, costs)
    quality = problem.quality[np.arange(len(answers)), answers]
    assert execute(problem, [first, second]) == pytest.approx((paid.mean(), quality.mean()))


def test_costs_that_differ_between_rows_are_not_promised():
  """Equal gains at other costs: they ask where it is cheap, thresholds on gains ask for all."""
  quality, cost = np.tile([0.0, 1.0], (2, 1)), np.array([[1.0, 2.0], [1.0, 10.0]])
  problem = Problem(np.stack([quality] * 3), np.zeros(2), cost, quality)
  published = route(problem, 0.5)
  assert published == (1.5, 0.5)
  assert at(envelope(problem), published[0]) == pytest.approx(
    0.5 / 5
  )  # a line from (1, 0) to (6, 1)


def test_an_answer_taken_back_is_not_promised():
  """They return the small answer where the large one looks worse than expected; `union` never."""
  quality = np.array([[1.0, 0.0], [0.0, 1.0]])
  first, last = np.array([[0.5, 0.9]] * 2), np.array([[0.5, 0.1], [0.5, 0.9]])
  problem = Problem(
    np.stack([first, first, last]), np.zeros(2), np.tile([1.0, 2.0], (2, 1)), quality
  )
  published = execute(problem, [1.0, 0.1])
  assert published == (3.0, 1.0)
  assert at(envelope(problem), published[0]) == 0.5


def mmlu(rows=250):
  """Estimates of Llama 1B and 405B on rows of MMLU that nothing was fitted on."""
  path = real_data.real('llm_chains/mmlu.train.llama.jsonl.gz')
  records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
  answers = [
    [record['models'][name] for record in records] for name in ('llama3.2-1b', 'llama3.1-405b')
  ]
  quality = np.array([[float(answer['correct']) for answer in own] for own in answers])
  cost = np.array([[answer['cost_usd'] * 1e3 for answer in own] for own in answers])
  doubt = -np.array([answer['p'] for answer in answers[0]])
  table = synthetic_tables.table('a', size=1)._replace(
    split='train', ids=[record['id'] for record in records],
    inputs=[record['prompt'] for record in records], token_logprobs=np.zeros(0),
    lengths=np.zeros(len(records), int), targets=[('t',)] * len(records),
    predictions=['p'] * len(records), statistics={},
  )  # fmt: skip
  half = np.arange(0, len(records), 2)
  first = alignment.select(table, half.tolist())
  rest = np.array(learned_deferral.unshared(table, first))[:rows]
  before = []
  for own in quality:  # the gap to an answer that is always wrong is the quality itself
    fitted = learned_deferral.fit(
      'q', METHODS['linear_router_words'], first, np.zeros(len(half)), own[half]
    )
    before.append(fitted.decider().score(alignment.select(table, rest.tolist())))
  after = [
    score_calibration.apply_isotonic(
      score_calibration.fit_isotonic(doubt[half], 1 - own[half]), doubt[rest]
    )
    for own in quality
  ]
  estimates = np.stack([np.array(before).T, 1 - np.array(after).T, 1 - np.array(after).T])
  return Problem(estimates, np.zeros(2), cost[:, rest].T, quality[:, rest].T)


def test_on_real_rows_the_union_is_not_below_theirs_where_theory_promises_it():
  problem = mmlu()
  constant = problem._replace(cost=np.tile(problem.cost.mean(axis=0), (len(problem.cost), 1)))
  best = envelope(constant)
  low, high = constant.cost[0]
  for budget in np.linspace(low, high, 4)[1:]:
    cost, quality = bisect(constant, budget)
    assert at(best, cost) >= quality - 1e-9
