"""Routers, the union with cascades and abstention agree with numbers by hand and slow oracles."""

import gzip
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import answer_features, curves, learned_deferral, routing
from cascades.learned_deferral import METHODS, LeakError, Recipe
from cascades.predictions import alignment
from cascades.predictors import FAMILIES, Options
from cascades.routing import Costs, Points
from tests import real_data, synthetic_tables

MEAN = lambda sums: sums[..., 0] / sums[..., 1]
seeds = st.integers(0, 10_000)


def statistics(quality):
  return np.column_stack([quality, np.ones(len(quality))])


def problem(seed, size=None):
  """Scores with ties, qualities and costs of a few rows."""
  rng = np.random.default_rng(seed)
  N = size or int(rng.integers(1, 13))
  scores = rng.integers(0, 5, N).astype(float), rng.integers(0, 5, N).astype(float)
  quality = rng.integers(0, 2, N).astype(float), rng.random(N)
  costs = Costs(rng.random(N), 2 + rng.random(N), before=0.03, after=0.01)
  return *scores, *quality, costs


def charge(answer, small, large, costs, row):
  """Quality and cost of one row: 'large' routed, 'deferred', 'small' or 'neither'."""
  return {
    'large': (large[row], costs.large[row]),
    'deferred': (large[row], costs.small[row] + costs.large[row]),
    'small': (small[row], costs.small[row]),
    'neither': (np.nan, costs.small[row]),
  }[answer]


def test_a_guarded_score_agrees_with_numbers_worked_by_hand():
  gains = np.array([[1.0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [-1, -1, 1, 0]])
  # Means .75, 0, .25, -.25; errors .25, 0, .25, sqrt(11/12)/2 = .4787; the fit split's mean is .3.
  expected = [0.5, 0.0, 0.3, -0.25 + 0.4787136]
  np.testing.assert_allclose(routing.shrunk_gain(gains, 0.3), expected, atol=1e-6)
  assert routing.shrunk_gain(np.array([[1.0]]), 0.3) == [0.3]  # one neighbor has no error


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_the_guarded_score_is_the_guarded_choice_at_every_price(seed):
  rng = np.random.default_rng(seed)
  quality = rng.integers(0, 2, (6, int(rng.integers(2, 9)), 2)).astype(float)
  means, costs = rng.random(2), np.array([0.0, 1.0])
  score = routing.shrunk_gain(quality[..., 1] - quality[..., 0], means[1] - means[0])
  for price in np.append(rng.uniform(-1.5, 1.5, 20), [-5.0, 5.0]):
    chosen = routing.guarded_choice(quality, means, costs, price=price)
    np.testing.assert_array_equal(chosen == 1, score >= price)


def test_one_of_three_models_replaces_the_pinned_one_only_beyond_its_error():
  quality = np.zeros((2, 4, 3))
  quality[:, :, 0] = 0.5
  quality[0, :, 2] = [1, 1, 1, 0]  # gains .5, .5, .5, -.5: mean .25, error .25
  quality[1, :, 2] = [1, 1, 1, 1]
  means, costs = np.array([0.6, 0.1, 0.5]), np.array([1.0, 2.0, 2.0])
  choose = lambda price: routing.guarded_choice(quality, means, costs, price=price).tolist()
  assert choose(0.0) == [0, 2]
  assert choose(0.6) == [0, 0]


def test_neighbors_are_the_most_similar_rows_and_the_first_of_equals():
  keys = np.array([[0.0, 1], [1, 0], [2, 0], [1, 1], [0, 0]])
  queries = np.array([[3.0, 0], [0, 0]])
  assert routing.nearest(queries, keys, 3).tolist() == [[1, 2, 3], [0, 1, 2]]


def test_neighbors_in_blocks_are_those_of_one(monkeypatch):
  rng = np.random.default_rng(0)
  queries, keys = rng.normal(size=(20, 3)), rng.normal(size=(9, 3))
  expected = routing.nearest(queries, keys, 4)
  cosine = queries @ keys.T / np.linalg.norm(queries, axis=1)[:, None]
  np.testing.assert_array_equal(
    expected, np.argsort(-cosine / np.linalg.norm(keys, axis=1), axis=1)[:, :4]
  )
  monkeypatch.setattr(routing, 'MOST_CELLS', 30)
  np.testing.assert_array_equal(routing.nearest(queries, keys, 4), expected)


def oracle_of_union(before, after, small, large, costs):
  rules = {}
  for a, b in itertools.product([np.inf, *before], [np.inf, *after]):
    quality, cost = 0.0, 0.0
    for row in range(len(small)):
      direct = before[row] >= a
      answer = 'large' if direct else 'deferred' if after[row] >= b else 'small'
      own, paid = charge(answer, small, large, costs, row)
      paid += (costs.before if a < np.inf else 0) + (
        costs.after if b < np.inf and not direct else 0
      )
      quality, cost = quality + own / len(small), cost + paid / len(small)
    rules[a, b] = cost, quality
  return rules


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_all_pairs_of_thresholds_cost_and_give_what_a_slow_oracle_says(seed):
  before, after, small, large, costs = problem(seed)
  arguments = before, after, statistics(small), statistics(large), MEAN, costs
  points = routing.union(*arguments)
  oracle = oracle_of_union(before, after, small, large, costs)
  for a, b, cost, quality in zip(*points, strict=True):
    np.testing.assert_allclose((cost, quality), oracle[a, b], atol=1e-12)
  best = routing.envelope(points)
  for cost, quality in oracle.values():  # no pair is above the envelope
    assert np.interp(cost, best.cost, best.quality, left=-1) >= quality - 1e-9 or (
      cost < best.cost[0]
    )
  assert best.cost[0] == pytest.approx(min(cost for cost, _ in oracle.values()))
  again = routing.apply(points, *arguments)
  np.testing.assert_allclose(again.cost, points.cost, atol=1e-12)
  np.testing.assert_allclose(again.quality, points.quality, atol=1e-12)


@pytest.mark.parametrize('most', [1, 3, 64])
def test_the_union_is_never_below_a_router_or_a_cascade_of_the_same_rows(most):
  before, after, small, large, costs = problem(7, size=300)
  before, after = before + np.linspace(0, 1, 300), after - np.linspace(0, 3, 300)
  own, other = statistics(small), statistics(large)
  best = routing.envelope(routing.union(before, after, own, other, MEAN, costs, most=most))
  free = costs._replace(before=0.0, after=0.0)
  parents = [
    (before, free.small + costs.before, free.large - free.small),
    (after, free.small + costs.after, free.large),
  ]
  for score, base, extra in parents:
    curve = curves.deferral_curve(score, own, other, MEAN, curves.cost_by_rate(score, base, extra))
    assert (np.interp(curve.cost, best.cost, best.quality) >= curve.quality - 1e-12).all()


def test_a_rule_of_both_beats_either_parent_where_each_sees_one_half():
  # Rows 0, 1: the prompt says that only the large model can; rows 2, 3: only the answer says it.
  before, after = np.array([1.0, 1, 0, 0, 0, 0]), np.array([0.0, 0, 1, 1, 0, 0])
  small, large = np.array([0.0, 0, 0, 0, 1, 1]), np.ones(6)
  costs = Costs(np.ones(6), np.full(6, 4.0))
  points = routing.union(before, after, statistics(small), statistics(large), MEAN, costs)
  best = routing.envelope(points)
  # Two rows of 4, two of 1 + 4, two of 1: 20 / 6, where the large model alone pays 4.
  assert best.cost.tolist() == pytest.approx([1, 2, 20 / 6])
  assert best.quality.tolist() == pytest.approx([2 / 6, 4 / 6, 1])
  assert (best.first[-1], best.second[-1]) == (1.0, 1.0)


@given(seeds, st.sampled_from([-2.0, 0.3, 0.7, 1.5]))
@settings(max_examples=60, deadline=None)
def test_abstaining_costs_and_gives_what_a_slow_oracle_says(seed, value):
  _, score, small, large, costs = problem(seed)
  points = routing.with_abstention(score, small, large, costs, value=value)
  rules = set()
  for a, b, cost, quality in zip(*points, strict=True):
    answers = ['neither' if s >= a else 'deferred' if s >= b else 'small' for s in score]
    rows = [charge(answer, small, large, costs, row) for row, answer in enumerate(answers)]
    looking = costs.after if b < np.inf else 0.0
    np.testing.assert_allclose(cost, np.mean([paid for _, paid in rows]) + looking, atol=1e-12)
    qualities = [value if np.isnan(own) else own for own, _ in rows]
    np.testing.assert_allclose(quality, np.mean(qualities), atol=1e-12)
    rules.add((a, b))
  thresholds = [np.inf, *np.unique(score)]
  assert rules == {(a, b) for a, b in itertools.product(thresholds, repeat=2) if a >= b}


def test_abstaining_leaves_the_deferral_curve_if_worth_nothing_and_wins_if_worth_all():
  _, score, small, large, costs = problem(3, size=40)
  curve = curves.deferral_curve(
    score, statistics(small), statistics(large), MEAN,
    curves.cost_by_rate(score, costs.small + costs.after, costs.large),
  )  # fmt: skip
  worst = routing.envelope(routing.with_abstention(score, small, large, costs, value=-1e6))
  never = np.full(len(curve.cost), np.inf)
  cost = np.where(curve.deferral_rate > 0, curve.cost, curve.cost - costs.after)
  alone = routing.envelope(Points(never, curve.threshold, cost, curve.quality))
  np.testing.assert_allclose(worst.quality, alone.quality)
  np.testing.assert_allclose(worst.cost, alone.cost)
  best = routing.envelope(routing.with_abstention(score, small, large, costs, value=2.0))
  assert best.quality[-1] == pytest.approx(2.0)
  assert best.cost[-1] == pytest.approx(np.mean(costs.small) + costs.after)


def test_scores_that_are_not_finite_are_refused():
  before, after, small, large, costs = problem(1, size=5)
  with pytest.raises(ValueError, match='not finite'):
    routing.union(before * np.nan, after, statistics(small), statistics(large), MEAN, costs)


def planted(split, seed, size=400):
  """Prompts of two topics; the large model is better on one of them alone."""
  rng = np.random.default_rng(seed)
  topic = rng.integers(0, 2, size)
  words = [['river', 'tree'], ['integral', 'matrix']]
  gains = np.where(topic == 1, rng.random(size) < 0.8, rng.random(size) < 0.1).astype(float)
  table = synthetic_tables.table('a', size=1)._replace(
    split=split,
    ids=[f'{split}-{i}' for i in range(size)],
    inputs=[f'{" ".join(rng.choice(words[t], 2))} {split}{i}' for i, t in enumerate(topic)],
    targets=[('t',)] * size, predictions=['p'] * size, statistics={},
    token_logprobs=np.zeros(0), lengths=np.zeros(size, int),
    embeddings={'prompt': np.eye(2)[topic] + 0.1 * rng.normal(size=(size, 2))},
  )  # fmt: skip
  return table, gains


@pytest.mark.parametrize(
  'name', ['guarded_knn', 'guarded_knn_words', 'linear_router', 'linear_router_words']
)
def test_a_router_learns_from_prompts_alone_and_refuses_its_own_rows(name):
  (table, gains), (other, later) = planted('validation', 0), planted('test', 1)
  fitted = learned_deferral.fit(name, METHODS[name], table, np.zeros(400), gains)
  decider = fitted.decider()
  assert decider.before_answer
  assert decider.flops > 0
  score = decider.score(other)
  low, high = score[later < 0.5].mean(), score[later > 0.5].mean()
  assert high > low + 0.1
  shuffled = np.random.default_rng(0).permutation(400)
  np.testing.assert_array_equal(decider.score(alignment.select(other, shuffled)), score[shuffled])
  with pytest.raises(LeakError, match='was fitted on'):
    decider.score(table)


def test_guarded_neighbors_predict_gaps_alone():
  with pytest.raises(ValueError, match="choose target 'gap'"):
    Recipe(('prompt words',), family='guarded_knn', target='win')
  arrays = FAMILIES['guarded_knn'].fit(
    np.eye(3), None, np.array([1.0, 0, 0]), link='identity', seed=0, options=Options(neighbors=2)
  )
  # Row 0 and, of the equal others, row 1: mean .5 = error .5 from 1/3, which the guard keeps.
  predicted = FAMILIES['guarded_knn'].predict(arrays, np.eye(3)[:1])
  np.testing.assert_allclose(predicted, [1 / 3])


def test_words_of_prompts_do_not_depend_on_other_prompts():
  table = planted('test', 1, size=9)[0]
  rows = answer_features.prompt_words(table)
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
  alone = answer_features.prompt_words(alignment.select(table, [4]))
  np.testing.assert_array_equal(alone[0], rows[4])
  assert not answer_features.prompt_words(table._replace(inputs=[''] * 9)).any()


def test_the_union_of_real_scores_keeps_its_law_where_it_is_fitted():
  """MMLU by Llama 1B and 405B, in dollars: the router learns on one half, rules on the other."""
  path = real_data.real('llm_chains/mmlu.train.llama.jsonl.gz')
  rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
  answers = [[row['models'][name] for row in rows] for name in ('llama3.2-1b', 'llama3.1-405b')]
  quality = [np.array([answer['correct'] for answer in own], float) for own in answers]
  dollars = [np.array([answer['cost_usd'] for answer in own]) for own in answers]
  table = synthetic_tables.table('a', size=1)._replace(
    split='train', ids=[row['id'] for row in rows], inputs=[row['prompt'] for row in rows],
    token_logprobs=np.zeros(0), lengths=np.zeros(len(rows), int), targets=[('t',)] * len(rows),
    predictions=['p'] * len(rows), statistics={},
  )  # fmt: skip
  half = np.arange(0, len(rows), 2)
  other = np.setdiff1d(np.arange(len(rows)), half)
  first = alignment.select(table, half.tolist())
  router = learned_deferral.fit(
    'r', METHODS['guarded_knn_words'], first, *(own[half] for own in quality)
  )
  rest = learned_deferral.unshared(table, first)
  assert set(rest) <= set(other.tolist())
  before = router.decider().score(alignment.select(table, rest))
  after = -np.array([answers[0][row]['p'] for row in rest])
  small, large = (statistics(own[rest]) for own in quality)
  costs = Costs(*(own[rest] for own in dollars))
  points = routing.union(before, after, small, large, MEAN, costs)
  best = routing.envelope(points)
  for parent in (np.isinf(points.first), np.isinf(points.second)):
    cost, value = points.cost[parent], points.quality[parent]
    assert (np.interp(cost, best.cost, best.quality) >= value - 1e-9).all()
    assert parent.sum() > 3
