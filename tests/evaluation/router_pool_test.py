"""A draw in detail: choices along the curve, winners of clusters, and models that join."""

import numpy as np
import pytest

from cascades import curve_metrics, price_path
from cascades.evaluation import router_pool, router_trials
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.universal_routing import zero_router

STRENGTH = 2.0


def outcome_matrix(rows=150, models=4, seed=0):
  """Prompts on three topics, of which each model knows its own, and the last one none."""
  rng = np.random.default_rng(seed)
  topic = rng.integers(0, 3, rows)
  knows = np.eye(models)[:, :3][:, topic].T
  quality = (rng.random((rows, models)) < 0.1 + 0.8 * knows).astype(float)
  texts = tuple(f'topic{t} words{t} number{i % 7}' for i, t in enumerate(topic))
  names = tuple(f'm{i}' for i in range(models))
  ids = tuple(map(str, range(rows)))
  return OutcomeMatrix(ids, texts, names, quality, np.array([1.0, 2, 4, 8])[:models])


def charged(matrix, seed=3):
  """The matrix with costs that differ by prompt, most by topic."""
  rng = np.random.default_rng(seed)
  topic = np.array([int(text[5]) for text in matrix.prompts])
  cost = matrix.cost * (1 + np.eye(3)[topic] @ rng.random((3, 4)) + 0.1 * rng.random((150, 4)))
  cost[np.isnan(matrix.quality)] = np.nan
  return matrix._replace(cost=np.nanmean(cost, axis=0), prompt_cost=cost)


CASES = [('clusters', False), ('learned map', True), ('hierarchical', True)]


@pytest.fixture(scope='module', params=CASES, ids=str)
def described(request):
  method, by_prompt = request.param
  matrix = charged(outcome_matrix()) if by_prompt else outcome_matrix()
  share = 0.75 if method == 'learned map' else 1.0
  draw = next(router_trials.draws(matrix, trials=1, unseen=share, clusters=5, seed=0))
  pool = router_pool.describe(matrix, draw, method=method, strength=STRENGTH)
  predictor = draw.predictor(method, STRENGTH)
  predicted = predictor.predict(draw.losses[draw.validation], draw.of(draw.validation))
  paid = np.broadcast_to(draw.of(draw.test), predicted[0].shape)
  return matrix, draw, pool, predicted, paid


def test_the_curve_is_that_of_the_choices_at_each_price_and_of_costs_that_are_paid(described):
  _, draw, pool, predicted, paid = described
  quality, groups = 1 - draw.losses[draw.test], draw.groups(draw.test)
  rows, shown = np.arange(len(draw.test)), np.random.default_rng(0).permutation(len(draw.test))
  after = np.append(pool.price[1:], 2 * pool.price[-1] + 1)
  for at, price in enumerate((pool.price + after) / 2):
    models = price_path.choose(*predicted, price)
    assert pool.cost[at] == pytest.approx(paid[rows, models].mean())
    assert pool.quality[at] == pytest.approx(quality[rows, models].mean())
    np.testing.assert_allclose(pool.shares[at], np.bincount(models, minlength=pool.shares.shape[1])
                               / len(rows))  # fmt: skip
    np.testing.assert_array_equal(pool.chosen[at], models[shown])
    for k, model in enumerate(pool.choices[at]):
      own = np.bincount(models[groups == k])
      assert model == (np.argmax(own) if own.size else -1)
  np.testing.assert_allclose(pool.model_cost, paid.mean(axis=0))


def test_clusters_have_the_means_of_their_prompts_and_those_nearest_to_them(described):
  matrix, draw, pool, (gamma, _), _ = described
  groups = draw.groups(draw.test)
  assert pool.sizes.tolist() == np.bincount(groups, minlength=5).tolist()
  for k in np.flatnonzero(pool.sizes):
    own = draw.test[groups == k]
    np.testing.assert_allclose(pool.measured[k], 1 - draw.losses[own].mean(axis=0))
    np.testing.assert_allclose(pool.predicted[k], gamma[groups == k].mean(axis=0))
    distance = np.linalg.norm(draw.vectors[own] - draw.centroids[k], axis=1)
    assert pool.examples[k][0] == matrix.prompts[own[np.argmin(distance)]]
  assert pool.position.shape == (len(draw.test), 2)
  assert np.isfinite(pool.position).all()


def test_a_model_that_joins_adds_the_area_over_the_others(described):
  _, draw, pool, predicted, paid = described
  quality, models = 1 - draw.losses[draw.test], len(draw.models)

  def area(own):
    gamma, cost = (values[..., own] for values in predicted)
    path = price_path.price_path(gamma, cost, quality[:, own], paid=paid[:, own])
    return curve_metrics.area(path.cost, path.quality, low=0.0, high=paid.mean(axis=0).max())

  assert [own.without for own in pool.joined] == sorted(own.without for own in pool.joined)
  for own in pool.joined:
    others = [model for model in range(models) if model != own.model]
    assert own.without == pytest.approx(area(others))
    assert own.every == pytest.approx(area([*range(models)]))
    assert own.few[1] == pytest.approx(own.every)  # 15 answers are all of them
    assert own.answers == 15
  assert sum(own.share for own in pool.joined) == pytest.approx(1)


def test_decisions_take_the_mean_costs_of_the_cluster_on_validation_prompts():
  matrix = charged(outcome_matrix())
  draw = next(router_trials.draws(matrix, trials=1, unseen=1.0, clusters=3, seed=0))
  known, groups = matrix.prompt_cost[draw.validation], draw.groups(draw.validation)
  _, cost = draw.predictor('clusters', STRENGTH).predict(draw.losses[draw.validation], known)
  mean = known.mean(axis=0)
  for row, k in enumerate(draw.groups(draw.test)):
    own = known[groups == k]
    expected = (own.sum(axis=0) + STRENGTH * mean) / (len(own) + STRENGTH)
    np.testing.assert_allclose(cost[row], expected)
  trials = router_trials.run([draw], 1, STRENGTH)
  oracle, router = (trials.numbers[name][0] for name in ('oracle', 'clusters'))
  assert oracle.area >= router.area
  corners = zero_router(draw.mean_cost(draw.validation), 1 - draw.losses[draw.validation].mean(0))
  np.testing.assert_allclose(router_trials.control(draw)[0], draw.mean_cost(draw.test)[[*corners]])


def test_few_prompts_have_places_too():
  assert router_pool.project(np.ones((1, 5))).tolist() == [[0, 0]]
  assert router_pool.project(np.eye(4)[:, :2]).shape == (4, 2)


@pytest.mark.parametrize('method', ['learned map', 'hierarchical'])
def test_trials_compare_a_method_with_clusters_on_the_same_draws(method):
  drawing = router_trials.draws(outcome_matrix(), trials=2, unseen=0.5, clusters=3, seed=0)
  trials = router_trials.run(drawing, 2, STRENGTH, method=method)
  assert [*trials.numbers] == ['clusters', method, 'ZeroRouter', 'oracle']
  for own, oracle in zip(trials.numbers[method], trials.numbers['oracle'], strict=True):
    assert 0 < own.area <= oracle.area
  counted = trials.sign_test()
  assert counted[0] + counted[1] <= 2
