"""Choices among models agree with numbers by hand, and with regressions of each quality."""

import numpy as np
import pytest
from sklearn import linear_model

from cascades import learned_deferral, model_choice, routing
from cascades.learned_deferral import METHODS, LeakError, Recipe
from cascades.predictors import Options
from tests import synthetic_tables

QUALITY = np.array([[1.0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]])


def prompts(vectors, split):
  """Table of prompts with these embeddings, and with texts of their own."""
  size = len(vectors)
  return synthetic_tables.table('a', size=1)._replace(
    split=split, ids=[f'{split}-{i}' for i in range(size)],
    inputs=[f'{split} prompt {i}' for i in range(size)], targets=[('t',)] * size,
    predictions=['p'] * size, statistics={}, token_logprobs=np.zeros(0),
    lengths=np.zeros(size, int), embeddings={'prompt': np.asarray(vectors, float)},
  )  # fmt: skip


def fit(recipe, table, quality):
  """One router, learned for every model but the last."""
  *others, last = quality
  return [learned_deferral.fit('router', recipe, table, own, last) for own in others]


def test_neighbors_choose_the_model_of_a_number_worked_by_hand():
  # Twenty prompts of each of two directions: on the first, model 0 is as good as the last.
  vectors = np.repeat([[1.0, 0], [0, 1]], 20, axis=0)
  quality = np.stack([np.repeat([1.0, 0], 20), np.repeat([0.0, 1], 20), np.ones(40)])
  recipe = Recipe(('embeddings/prompt',), 'guarded_knn', seeds=1, options=Options(neighbors=5))
  choice = model_choice.among(fit(recipe, prompts(vectors, 'train'), quality), prompts(
    [[2.0, 0.1], [0.1, 3]], 'test'
  ))  # fmt: skip
  cost = np.array([1.0, 2.0, 4.0])
  # Mean qualities .5, .5, 1. At a price of .1 the last model, .6, is pinned; neighbors all agree,
  # so that the error is 0: 1 - .1 and 1 - .2 beat its 1 - .4 where either is right.
  assert choice(cost, 0.1).tolist() == [0, 1]
  # At 1, values are -.5, -1.5, -3: the first is pinned, and 1 - 2 of the second beats 0 - 1 not.
  assert choice(cost, 1.0).tolist() == [0, 0]
  assert choice(cost, 0.0).tolist() == [2, 2]  # others are only as good as the pinned one


def test_gaps_choose_as_one_regression_of_every_quality_does():
  generator = np.random.default_rng(0)
  vectors = generator.normal(size=(200, 5))
  logits = np.stack([vectors[:, 0], vectors[:, 1] + 0.2, np.full(200, 0.6)])
  quality = (generator.random((3, 200)) < 1 / (1 + np.exp(-logits))).astype(float)
  table, other = prompts(vectors, 'train'), prompts(generator.normal(size=(60, 5)), 'test')
  recipe = METHODS['linear_router']
  choice = model_choice.among(fit(recipe, table, quality), other)
  mean, scale = vectors.mean(axis=0), vectors.std(axis=0)
  predicted = np.stack([
    linear_model.Ridge(alpha=1 / recipe.options.penalty)
    .fit((vectors - mean) / scale, own)
    .predict((other.embeddings['prompt'] - mean) / scale)
    for own in quality
  ])  # fmt: skip
  cost = np.array([1.0, 2.0, 4.0])
  chosen = set()
  for price in routing.prices(quality.mean(axis=1), cost):
    expected = (predicted - price * cost[:, None]).argmax(axis=0)
    np.testing.assert_array_equal(choice(cost, price), expected)
    chosen |= set(expected.tolist())
  assert chosen == {0, 1, 2}


def test_prices_fall_from_far_above_the_gain_by_cost_to_zero():
  prices = routing.prices(np.array([0.2, 0.5, 0.8]), np.array([1.0, 2, 4]))
  assert (prices[0], prices[-2], prices[-1]) == pytest.approx((1000 * 0.2, 0.2 / 1000, 0))
  assert (np.diff(prices) < 0).all()
  assert routing.prices(np.array([0.2, 0.5]), np.ones(2)).tolist() == [0]


def test_one_search_or_one_prediction_a_model_is_charged():
  generator = np.random.default_rng(1)
  table, quality = prompts(generator.normal(size=(40, 3)), 'train'), np.tile(QUALITY, 10)
  near, linear = (fit(METHODS[name], table, quality) for name in ('guarded_knn', 'linear_router'))
  assert model_choice.flops(near) == 2 * 40 * 3
  assert model_choice.flops(linear) == 2 * (2 * 3)


def test_own_rows_and_models_of_other_prompts_are_refused():
  generator = np.random.default_rng(2)
  table, quality = prompts(generator.normal(size=(40, 3)), 'train'), np.tile(QUALITY, 10)
  recipe = METHODS['guarded_knn']
  with pytest.raises(LeakError, match='was fitted on'):
    model_choice.among(fit(recipe, table, quality), table)
  other = prompts(generator.normal(size=(40, 3)), 'train')
  mixed = [fit(recipe, own, quality)[0] for own in (table, other)]
  with pytest.raises(ValueError, match='fitted on other prompts for one model than for another'):
    model_choice.among(mixed, prompts(np.eye(3), 'test'))


def test_only_gaps_learned_from_prompts_choose():
  table, quality = prompts(np.random.default_rng(3).normal(size=(40, 3)), 'train'), QUALITY
  wins = Recipe(('embeddings/prompt',), 'linear', target='win', seeds=1)
  for recipe, expected in ((METHODS['linear_router'], True), (wins, False)):
    (own, _) = fit(recipe, table, np.tile(quality, 10))
    assert model_choice.chooses(own) == expected
