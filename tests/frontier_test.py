from functools import partial
from itertools import pairwise, product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from cascades import costs, curves, frontier, metrics
from cascades.frontier import Outcomes, Rule


def statistics(quality):
  """Statistics of a mean over rows."""
  return np.stack([quality, np.ones(np.shape(quality))], axis=-1)


def measure(outcomes, rules):
  return frontier.measure(outcomes, statistics(outcomes.quality), metrics.ratio, rules)


def outcomes_of(generator, rows, models, *, values=4, discarded=True):
  """Random answers; scores of few values have ties, and depend on each other."""
  shared = generator.integers(0, values, size=rows)
  return Outcomes(
    scores=np.stack([shared + generator.integers(0, 2, size=rows) for _ in range(models - 1)])
    + 0.0,
    quality=generator.integers(0, 2, size=(models, rows)) + 0.0,
    cost=generator.integers(1, 9, size=(models, rows)) * np.arange(1, models + 1)[:, None] + 0.0,
    deciding=generator.integers(0, 2, size=models - 1) / 4,
    discarded=discarded,
  )


@st.composite
def random_outcomes(draw, *, models=3, largest=10):
  generator = np.random.default_rng(draw(st.integers(0, 2**32)))
  return outcomes_of(
    generator, draw(st.integers(1, largest)), models, discarded=draw(st.booleans())
  )


def literal(outcomes, models, thresholds):
  """Quality and cost of a chain, row by row and model by model."""
  quality = cost = 0.0
  rows = outcomes.quality.shape[1]
  for row in range(rows):
    paid = []
    for level, model in enumerate(models):
      paid.append(outcomes.cost[model, row])
      if level == len(models) - 1:
        break
      cost += outcomes.deciding[model]
      if not outcomes.scores[model, row] >= thresholds[level]:
        break
    cost += sum(paid) if outcomes.discarded else paid[-1]
    quality += outcomes.quality[model, row]
  return quality / rows, cost / rows


def every_point(outcomes, subsets):
  """All chains under all tuples of thresholds."""
  for models in subsets:
    axes = [[np.inf, *set(outcomes.scores[model].tolist())] for model in models[:-1]]
    for thresholds in product(*axes):
      yield models, thresholds, *literal(outcomes, models, thresholds)


def highest(points, budget):
  """Highest quality of (quality, cost) within a budget."""
  return max((quality for quality, cost in points if cost <= budget + 1e-9), default=-np.inf)


HAND = Outcomes(
  # Row 1: the first model is sure and right. Row 2: the second one. Row 3: only the third is right.
  scores=np.array([[0.1, 0.9, 0.8, 0.2], [0.5, 0.2, 0.7, 0.9]]),
  quality=np.array([[1.0, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 0]]),
  cost=np.array([[1.0] * 4, [2] * 4, [10] * 4]),
  deciding=np.array([0.5, 0.25]),
)


def test_a_chain_of_three_agrees_with_numbers_worked_by_hand():
  rule = Rule((0, 1, 2), (0.8, 0.6))
  np.testing.assert_array_equal(frontier.answering(HAND.scores, rule, 4), [0, 1, 2, 0])
  measured = measure(HAND, [rule])
  # Four first answers and decisions, two second ones, and one third: (4 x 1.5 + 2 x 2.25 + 10) / 4.
  np.testing.assert_allclose(measured.quality, [1.0])
  np.testing.assert_allclose(measured.cost, [20.5 / 4])
  np.testing.assert_allclose(measured.shares, [[0.5, 0.25, 0.25]])
  # Without the discarded answers: two of 1, one of 2, one of 10, and the decisions.
  free = measure(HAND._replace(discarded=False), [rule])
  np.testing.assert_allclose(free.cost, [(2 * 1 + 2 + 10 + 4 * 0.5 + 2 * 0.25) / 4])


def test_the_frontier_of_the_example_is_the_one_worked_by_hand():
  points = frontier.fit(HAND, frontier.chains(3))
  # All right: skipping the first model costs more, since the third must answer two of the rows.
  assert points[-1].rule.models == (0, 1, 2)
  assert points[-1].quality == 1
  assert points[-1].cost == pytest.approx(20.5 / 4)
  assert points[0].rule == Rule((0,), ())
  assert (points[0].quality, points[0].cost) == (0.5, 1)


@given(random_outcomes())
@settings(deadline=None, max_examples=60)
def test_the_frontier_equals_all_chains_under_all_thresholds(outcomes):
  subsets = frontier.chains(3)
  points = frontier.fit(outcomes, subsets)
  literal_points = [(quality, cost) for *_, quality, cost in every_point(outcomes, subsets)]
  for point in points:
    assert literal(outcomes, *point.rule) == pytest.approx((point.quality, point.cost))
    assert point.quality == pytest.approx(highest(literal_points, point.cost))
  assert points[-1].quality == pytest.approx(highest(literal_points, np.inf))
  for quality, cost in literal_points:
    assert highest([(p.quality, p.cost) for p in points], cost) >= quality - 1e-9
  assert all(a.cost < b.cost and a.quality < b.quality for a, b in pairwise(points))


@given(random_outcomes(models=4))
@settings(deadline=None, max_examples=30)
def test_reported_points_equal_the_rules_applied_row_by_row(outcomes):
  rules = [point.rule for point in frontier.fit(outcomes, frontier.chains(4))]
  measured = measure(outcomes, rules)
  for rule, quality, cost in zip(rules, measured.quality, measured.cost, strict=True):
    assert literal(outcomes, *rule) == pytest.approx((quality, cost))
  np.testing.assert_allclose(measured.shares.sum(axis=1), 1)


@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 1e9), st.floats(0, 1e9))
@settings(deadline=None)
def test_two_models_give_todays_curve_bit_for_bit(seed, rows, small, large):
  generator = np.random.default_rng(seed)
  quality = generator.random((2, rows))
  score = generator.integers(0, 12, size=rows) + 0.0
  cost = np.repeat([[small], [large]], rows, axis=1)
  outcomes = Outcomes(score[None], quality, cost, np.zeros(1))
  todays = curves.deferral_curve(
    score, *statistics(quality), metrics.ratio, partial(costs.cascade, small=small, large=large)
  )
  measured = measure(outcomes, [Rule((0, 1), (threshold,)) for threshold in todays.threshold])
  np.testing.assert_array_equal(measured.quality, todays.quality)
  np.testing.assert_array_equal(measured.cost, todays.cost)
  np.testing.assert_array_equal(measured.shares[:, 1], todays.deferral_rate)


def test_more_quantiles_are_never_worse_where_thresholds_are_chosen():
  outcomes = outcomes_of(np.random.default_rng(3), 300, 3, values=90)
  budgets = np.linspace(outcomes.cost[0].mean(), outcomes.cost.sum(axis=0).mean(), 50)
  previous = np.full(len(budgets), -np.inf)
  for quantiles in (1, 2, 4, 8, 16, 32):
    points = frontier.fit(outcomes, [(0, 1, 2)], most_tuples=(quantiles + 1) ** 2)
    reached = np.array([highest([(p.quality, p.cost) for p in points], b) for b in budgets])
    assert (reached >= previous - 1e-12).all()
    previous = reached
  assert (reached > highest([], 0)).any()


@given(random_outcomes(models=4, largest=30))
@settings(deadline=None, max_examples=30)
def test_another_model_never_lowers_the_frontier_where_thresholds_are_chosen(outcomes):
  fewer = Outcomes(
    outcomes.scores[:2], outcomes.quality[:3], outcomes.cost[:3], outcomes.deciding[:2]
  )
  points = frontier.fit(outcomes._replace(discarded=True), frontier.chains(4))
  for point in frontier.fit(fewer, frontier.chains(3)):
    assert highest([(p.quality, p.cost) for p in points], point.cost) >= point.quality - 1e-9


@given(random_outcomes(models=4, largest=30))
@settings(deadline=None, max_examples=30)
def test_the_envelope_is_never_below_any_of_its_pairs(outcomes):
  envelope = frontier.fit(outcomes, frontier.chains(4, longest=2))
  reached = [(p.quality, p.cost) for p in envelope]
  for pair in frontier.chains(4, longest=2):
    for point in frontier.fit(outcomes, [pair]):
      assert highest(reached, point.cost) >= point.quality - 1e-9


@given(random_outcomes(models=3, largest=6))
@settings(deadline=None, max_examples=60)
def test_no_choice_of_models_beats_the_oracle_at_its_cost(outcomes):
  paid = np.cumsum(outcomes.cost, axis=0)
  curve = frontier.oracle(outcomes.quality, paid, statistics(outcomes.quality), metrics.ratio)
  rows = np.arange(paid.shape[1])
  points = [
    (outcomes.quality[choice, rows].mean(), paid[choice, rows].mean())
    for choice in map(list, product(range(3), repeat=len(rows)))
  ]
  for quality, cost in zip(curve.quality, curve.cost, strict=True):
    assert quality == pytest.approx(highest(points, cost))
  assert curve.quality[-1] == pytest.approx(highest(points, np.inf))
  assert (np.diff(curve.cost) > 0).all()
  np.testing.assert_allclose(curve.shares.sum(axis=1), 1)


def test_the_oracle_of_two_models_defers_by_gain_per_cost():
  """Gains are 1, 1 and 0 at costs of 4, 2 and 1: row 2 defers first, row 3 never."""
  quality, cost = np.array([[0.0, 0, 1], [1, 1, 1]]), np.array([[1.0, 1, 1], [5, 3, 2]])
  curve = frontier.oracle(quality, cost, statistics(quality), metrics.ratio)
  np.testing.assert_allclose(curve.quality, [1 / 3, 2 / 3, 1])
  np.testing.assert_allclose(curve.cost, [1, 5 / 3, 3])
  np.testing.assert_allclose(curve.shares[:, 1], [0, 1 / 3, 2 / 3])


def test_a_router_pays_for_one_answer_and_its_decision():
  curve = frontier.routed(
    HAND, statistics(HAND.quality), metrics.ratio, np.array([0.0, 1, 1, 0]), deciding=0.5
  )
  np.testing.assert_allclose(curve.cost, [1.5, (2 * 1 + 2 * 10) / 4 + 0.5, 10.5])
  np.testing.assert_allclose(curve.quality, [0.5, 1, 0.75])


def test_what_is_no_number_and_what_is_empty_is_refused():
  bad = HAND._replace(cost=np.where(np.eye(3, 4) > 0, np.nan, HAND.cost))
  with pytest.raises(ValueError, match='3 of cost are not'):
    frontier.fit(bad, frontier.chains(3))
  empty = Outcomes(np.zeros((1, 0)), np.zeros((2, 0)), np.zeros((2, 0)), np.zeros(1))
  with pytest.raises(ValueError, match='one or more rows, found none'):
    frontier.fit(empty, frontier.chains(2))
  with pytest.raises(ValueError, match='A chain of 9 models is longer than 8'):
    frontier.chains(9)


@pytest.mark.parametrize('rows', [1, 5])
def test_equal_scores_leave_only_whole_models(rows):
  flat = Outcomes(np.zeros((2, rows)), np.ones((3, rows)), np.ones((3, rows)), np.zeros(2))
  points = frontier.fit(flat, frontier.chains(3))
  assert [point.rule for point in points] == [Rule((0,), ())]
  swept = frontier.fit(flat, [(0, 1, 2)])
  assert [point.cost for point in swept] == [1]
