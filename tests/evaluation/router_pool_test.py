"""A draw in detail: choices along the curve, winners of clusters, and models that join."""

import numpy as np
import pytest

from cascades import curve_metrics, price_path
from cascades.evaluation import router_pool, router_trials
from cascades.predictions.outcomes import OutcomeMatrix

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


@pytest.fixture(scope='module')
def described():
  matrix = outcome_matrix()
  draw = next(router_trials.draws(matrix, trials=1, unseen=1.0, clusters=3, seed=0))
  return matrix, draw, router_pool.describe(matrix, draw, strength=STRENGTH)


def test_the_curve_is_that_of_the_choices_at_each_price(described):
  _, draw, pool = described
  quality, groups = 1 - draw.losses[draw.test], draw.groups(draw.test)
  rows = np.arange(len(draw.test))
  for at, choice in enumerate(pool.choices):
    models = choice[groups]
    assert pool.cost[at] == pytest.approx(draw.cost[models].mean())
    assert pool.quality[at] == pytest.approx(quality[rows, models].mean())
    counts = np.bincount(models, minlength=4) / len(rows)
    np.testing.assert_allclose(pool.shares[at], counts)
  assert pool.choices[-1].tolist() == [0, 0, 0]


def test_clusters_have_the_means_of_their_prompts_and_those_nearest_to_them(described):
  matrix, draw, pool = described
  groups = draw.groups(draw.test)
  assert pool.sizes.tolist() == np.bincount(groups, minlength=3).tolist()
  for k in range(3):
    own = draw.test[groups == k]
    np.testing.assert_allclose(pool.measured[k], 1 - draw.losses[own].mean(axis=0))
    distance = np.linalg.norm(draw.vectors[own] - draw.centroids[k], axis=1)
    assert pool.examples[k][0] == matrix.prompts[own[np.argmin(distance)]]
  assert pool.position.shape == (len(draw.test), 2)
  assert np.isfinite(pool.position).all()


def test_a_model_that_joins_adds_the_area_over_the_others(described):
  _, draw, pool = described
  psi, quality = draw.psi(STRENGTH)[draw.groups(draw.test)], 1 - draw.losses[draw.test]

  def area(models):
    path = price_path.price_path(psi[:, models], draw.cost[models], quality[:, models])
    return curve_metrics.area(path.cost, path.quality, low=0.0, high=8.0)

  assert [own.without for own in pool.joined] == sorted(own.without for own in pool.joined)
  for own in pool.joined:
    others = [model for model in range(4) if model != own.model]
    assert own.without == pytest.approx(area(others))
    assert own.every == pytest.approx(area([0, 1, 2, 3]))
    assert own.few[1] == pytest.approx(own.every)  # 15 answers are all of them
    assert own.answers == 15
  assert sum(own.share for own in pool.joined) == pytest.approx(1)


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
  counted = trials.sign_test(method)
  assert counted[0] + counted[1] <= 2
