"""Passage through a chain: a number by hand, a loop, and the laws of cascades and routers."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cascades import chain_walk, frontier
from cascades.frontier import Outcomes, Rule


def drawn(seed, models=3, rows=40):
  rng = np.random.default_rng(seed)
  scores = rng.integers(0, 6, (models, rows)) / 5
  thresholds = rng.choice([0.0, 0.2, 0.4, 0.6, 1.0, np.inf], models)
  return scores, thresholds, rng.integers(0, models + 1, rows), rng.exponential(size=(models, rows))


def test_a_query_pays_for_the_models_that_it_asks_by_hand():
  scores = np.array([[0.1, 0.7, 0.7, 0.7], [0.0, 0.2, 0.8, 0.2], [0.0, 0.0, 0.9, 0.0]])
  start, cost = np.array([0, 0, 0, 1]), np.array([[1.0] * 4, [10.0] * 4, [100.0] * 4])
  answers = chain_walk.answering(start, scores, np.array([0.5, 0.5, 0.5]))
  assert answers.tolist() == [0, 1, 3, 1]
  assert chain_walk.paid(start, answers, cost).tolist() == [1, 11, 111, 10]
  priced = chain_walk.paid(start, answers, cost, deciding=np.array([0.5, 0.25, 0.0]))
  assert priced.tolist() == [1.5, 11.75, 111.75, 10.25]
  skipped = chain_walk.paid(start, answers, cost, is_before=np.array([True, False, False]))
  assert skipped.tolist() == [1, 10, 110, 10]


@hypothesis.given(st.integers(0, 10_000), st.integers(1, 4))
@hypothesis.settings(max_examples=60, deadline=None)
def test_it_is_what_a_loop_over_queries_does(seed, models):
  scores, thresholds, start, cost = drawn(seed, models)
  answers = chain_walk.answering(start, scores, thresholds)
  paid = chain_walk.paid(start, answers, cost)
  for row in range(len(start)):
    level, total = start[row], 0.0
    while level < models:
      total += cost[level, row]
      if scores[level, row] < thresholds[level]:
        break
      level += 1
    assert (answers[row], paid[row]) == (level, pytest.approx(total))


@hypothesis.given(st.integers(0, 10_000))
@hypothesis.settings(max_examples=40, deadline=None)
def test_from_the_first_model_on_it_is_the_cascade_of_the_frontier(seed):
  scores, thresholds, _, cost = drawn(seed)
  thresholds[-1] = np.inf
  start = np.zeros(scores.shape[1], int)
  answers = chain_walk.answering(start, scores, thresholds)
  outcomes = Outcomes(scores[:-1], cost, cost, np.array([0.3, 0.1]))
  expected, expected_cost = frontier.apply(outcomes, Rule((0, 1, 2), tuple(thresholds[:-1])))
  assert answers.tolist() == expected.tolist()
  deciding = np.array([0.3, 0.1, 0.0])
  assert chain_walk.paid(start, answers, cost, deciding=deciding) == pytest.approx(expected_cost)


def test_without_thresholds_it_is_the_router():
  scores, _, start, cost = drawn(0)
  answers = chain_walk.answering(start, scores, np.full(3, np.inf))
  assert answers.tolist() == start.tolist()
  rows = np.arange(len(start))
  padded = np.vstack([cost, np.zeros(len(start))])
  assert chain_walk.paid(start, answers, cost).tolist() == padded[start, rows].tolist()


def test_a_higher_threshold_asks_for_less():
  scores, thresholds, start, cost = drawn(3)
  costs = [
    chain_walk.paid(start, chain_walk.answering(start, scores, thresholds + step), cost)
    for step in (0.0, 0.2, 0.5, np.inf)
  ]
  assert (np.diff(costs, axis=0) <= 0).all()
