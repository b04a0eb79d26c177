"""Vectors of models and prompts agree with numbers by hand, slow oracles, and laws of UniRoute."""

import gzip
import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import curve_metrics, price_path, routing, trained_routers, universal_routing
from cascades.predictions import outcomes
from cascades.universal_routing import assign, cluster, mean_losses, neighborhood, one_hot
from tests import real_data

seeds = st.integers(0, 10_000)
few = settings(max_examples=30, deadline=None)


def validation(seed, *, missing=0.2):
  """Losses of a few models on clustered validation prompts, the first of which all answered."""
  rng = np.random.default_rng(seed)
  losses = rng.integers(0, 2, (12, 3)).astype(float)
  losses[1:][rng.random((11, 3)) < missing] = np.nan
  return losses, rng.integers(0, 4, 12)


def test_psi_and_its_shrinkage_worked_by_hand():
  losses = np.array([[1.0, 0], [0, np.nan], [1, 1], [0, 0]])
  weights = one_hot(np.array([0, 0, 1, 1]), 3).T
  psi = mean_losses(weights, losses)
  np.testing.assert_allclose(psi, [[0.5, 0], [0.5, 0.5], [0.5, 1 / 3]])  # the third is empty
  shrunk = mean_losses(weights, losses, strength=2)
  np.testing.assert_allclose(shrunk[:, 1], [(0 + 2 / 3) / 3, (1 + 2 / 3) / 4, 1 / 3])


@given(seeds, st.floats(0, 5))
@few
def test_mean_losses_are_those_of_a_loop(seed, strength):
  losses, groups = validation(seed)
  psi = mean_losses(one_hot(groups, 5).T, losses, strength=strength)
  for m in range(3):
    answers = [loss for loss in losses[:, m] if not np.isnan(loss)]
    mean = sum(answers) / len(answers)
    for k in range(5):
      own = [x for x, g in zip(losses[:, m], groups, strict=True) if g == k and not np.isnan(x)]
      divisor = len(own) + strength
      expected = (sum(own) + strength * mean) / divisor if divisor else mean
      assert psi[k, m] == pytest.approx(expected)


@given(seeds)
@few
def test_psi_weighted_by_its_groups_is_the_loss_on_all_validation_prompts(seed):
  losses, groups = validation(seed, missing=0)
  psi = mean_losses(one_hot(groups, 4).T, losses)
  np.testing.assert_allclose(np.bincount(groups, minlength=4) @ psi / 12, losses.mean(axis=0))
  assert psi.min() >= 0
  assert psi.max() <= 1
  right = mean_losses(one_hot(groups, 4).T, np.zeros((12, 1)))
  assert not right.any()


def test_of_duplicates_of_a_model_the_cheaper_is_always_chosen():
  losses, groups = validation(1)
  losses[:, 2] = losses[:, 0]
  gamma = mean_losses(one_hot(groups, 4).T, losses)[groups]
  np.testing.assert_array_equal(gamma[:, 0], gamma[:, 2])
  for price in (0.0, 0.1, 1.0):
    assert 0 not in price_path.choose(gamma, np.array([2.0, 1.0, 1.5]), price)


@given(seeds, st.integers(1, 8))
@few
def test_neighbors_in_the_bilinear_form_are_the_mean_of_their_losses(seed, k):
  rng = np.random.default_rng(seed)
  losses, _ = validation(seed, missing=0)
  prompts, keys = rng.normal(size=(5, 3)), rng.normal(size=(12, 3))
  rows = routing.nearest(prompts, keys, k)
  np.testing.assert_allclose(neighborhood(rows, 12) @ losses, losses[rows].mean(axis=1))
  np.testing.assert_allclose(mean_losses(neighborhood(rows, 12), losses), losses[rows].mean(axis=1))


def test_every_validation_prompt_a_cluster_is_one_neighbor_and_all_neighbors_are_one_cluster():
  rng = np.random.default_rng(0)
  keys, prompts = rng.normal(size=(12, 3)), rng.normal(size=(20, 3))
  losses, _ = validation(0, missing=0)
  centroids = cluster(keys, 12, restarts=1)
  psi = mean_losses(one_hot(assign(keys, centroids), 12).T, losses)
  nearest = np.argmin(((prompts[:, None] - keys) ** 2).sum(axis=2), axis=1)
  np.testing.assert_array_equal(psi[assign(prompts, centroids)], losses[nearest])
  every = mean_losses(neighborhood(routing.nearest(prompts, keys, 12), 12), losses)
  single = mean_losses(one_hot(assign(keys, cluster(keys, 1)), 1).T, losses)
  np.testing.assert_allclose(every, np.tile(single, (20, 1)))


def test_one_cluster_gives_the_curve_of_zero_router():
  rng = np.random.default_rng(3)
  losses, cost = rng.random((40, 6)), np.sort(rng.random(6)) + 0.1
  quality = rng.random((9, 6))
  psi = mean_losses(np.ones((1, 40)), losses)
  path = price_path.price_path(np.tile(psi, (9, 1)), cost, quality)
  mixed = universal_routing.zero_router(cost, 1 - losses.mean(axis=0))
  np.testing.assert_allclose(path.cost[::-1], cost[mixed])
  np.testing.assert_allclose(path.quality[::-1], quality.mean(axis=0)[mixed])
  own = quality.mean(axis=0)
  x, y = curve_metrics.hull(cost, own)  # no router that ignores the prompt is above it
  assert (path.quality <= np.interp(path.cost, x, y) + 1e-12).all()


def test_rules_that_ignore_the_prompt_mix_the_models_of_their_names():
  cost, quality = np.array([4.0, 1, 3, 2, 5]), np.array([0.9, 0.5, 0.6, 0.7, 0.9])
  rules = universal_routing.constant_rules(cost, quality)
  assert {name: [*models] for name, models in rules.items()} == {
    'ZeroRouter': [1, 3, 0],  # the third is below the line from 2 to 4
    'best single': [1, 0],  # of the two of 0.9, the cheaper
    'random': [1, 4],
    'cost only': [1, 3, 2, 0, 4],
  }
  cheapest = universal_routing.constant_rules(cost, 1 - quality)
  assert cheapest['best single'] == [1]


@given(seeds)
@few
def test_no_other_rule_that_ignores_the_prompt_has_a_larger_area_than_zero_router(seed):
  rng = np.random.default_rng(seed)
  cost, quality = rng.integers(1, 6, 5).astype(float), rng.integers(0, 5, 5) / 4
  areas = {
    name: curve_metrics.area(cost[[*models]], quality[[*models]], low=0, high=cost.max())
    for name, models in universal_routing.constant_rules(cost, quality).items()
  }
  assert max(areas.values()) <= areas['ZeroRouter'] + 1e-12


def test_assigning_is_the_argmin_of_distances_and_clusters_are_at_most_the_distinct_prompts():
  rng = np.random.default_rng(0)
  vectors = rng.integers(0, 2, (30, 2)).astype(float)
  centroids = cluster(vectors, 9)
  assert len(centroids) == 4
  distances = ((vectors[:, None] - centroids) ** 2).sum(axis=2)
  np.testing.assert_array_equal(assign(vectors, centroids), distances.argmin(axis=1))
  np.testing.assert_array_equal(centroids, cluster(vectors, 9))  # of the seed alone
  with pytest.raises(ValueError, match='0 clusters of 30 prompts'):
    cluster(vectors, 0)


def test_a_model_that_joins_or_leaves_changes_no_bit_of_the_others():
  losses, groups = validation(4)
  weights = one_hot(groups, 4).T
  pool = universal_routing.empty_pool(4)
  for name, cost, own in zip('abc', [1.0, 2, 3], losses.T, strict=True):
    grown = pool.add(name, cost, own, partial(mean_losses, weights))
    assert grown.psi[: len(pool.names)].tobytes() == pool.psi.tobytes()
    pool = grown
  assert pool.answers.tolist() == np.isfinite(losses).sum(axis=0).tolist()
  np.testing.assert_allclose(pool.psi, mean_losses(weights, losses).T, rtol=1e-6)
  rest = pool.remove('b')
  assert rest.psi.tobytes() == pool.psi[[0, 2]].tobytes()
  assert rest.names == ('a', 'c')
  before, after = (price_path.choose(*own.predict(groups), 0.05) for own in (pool, rest))
  soft = price_path.choose(*pool.predict(one_hot(groups, 4)), 0.05)
  np.testing.assert_array_equal(soft, before)
  np.testing.assert_array_equal(np.array([0, 2])[after][before != 1], before[before != 1])


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    (
      lambda pool, w: pool.add('a', 1.0, np.ones(12), partial(mean_losses, w)),
      "has a model 'a' already",
    ),
    (
      lambda pool, w: pool.add('b', -1.0, np.ones(12), partial(mean_losses, w)),
      "'b' costs -1; a cost is a finite",
    ),
    (lambda pool, w: pool.add('b', np.nan, np.ones(12), partial(mean_losses, w)), "'b' costs nan"),
    (
      lambda pool, w: pool.add('b', 1.0, np.full(12, np.nan), partial(mean_losses, w)),
      "'b' answered none of the 12 validation prompts",
    ),
    (lambda pool, _: pool.remove('b'), "The pool has no model 'b'; it has a"),
    (lambda _, w: mean_losses(w, np.ones((12, 1)), strength=-1), 'strength of shrinkage is -1'),
    (lambda _, w: mean_losses(w, np.full((12, 1), np.nan)), 'answered no validation prompt'),
  ],
)
def test_a_pool_refuses_what_it_cannot_route(change, sentence):
  _, groups = validation(0)
  weights = one_hot(groups, 4).T
  means = partial(mean_losses, weights)
  pool = universal_routing.empty_pool(4).add('a', 1.0, np.ones(12), means)
  with pytest.raises(ValueError, match=sentence):
    change(pool, weights)


def test_a_hierarchy_shrinks_the_fine_cluster_to_the_coarse_one_and_that_to_the_mean():
  losses = np.array([[1.0], [1], [0], [0]])
  coarse, fine = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 2])
  gamma = universal_routing.hierarchical(
    (np.array([0, 1, 0]), coarse), (np.array([1, 2, 0]), fine), losses, strength=1
  )
  above = np.array([(2 + 0.5) / 4, (0 + 0.5) / 2])  # the mean is .5
  expected = [(1 + above[0]) / 3, (0 + above[1]) / 2, (1 + above[0]) / 2]
  np.testing.assert_allclose(gamma[:, 0], expected)


def topics(rng, count, models, topics=6):
  """Prompts around well-separated topics, and the losses of models with a rate for each."""
  rates = rng.random((topics, models))
  topic = rng.integers(0, topics, count)
  vectors = 10 * np.eye(topics)[topic] + rng.normal(size=(count, topics))
  return vectors, (rng.random((count, models)) < rates[topic]).astype(float), rates[topic]


def test_topics_of_prompts_are_recovered_and_small_validation_sets_favor_clusters():
  areas = {'clusters': [], 'neighbors': [], 'true rates': []}
  errors = []
  for seed in range(8):
    rng = np.random.default_rng(seed)
    vectors, losses, rates = topics(rng, 900, 4)
    cost = np.array([1.0, 2, 3, 4])
    train, check, test = vectors[:200], slice(200, 260), slice(260, None)
    centroids = cluster(train, 6, restarts=1)
    psi = mean_losses(one_hot(assign(vectors[check], centroids), 6).T, losses[check])
    gamma = psi[assign(vectors[test], centroids)]
    errors.append(np.abs(gamma - rates[test]).mean())
    near = routing.nearest(vectors[test], vectors[check], 5)
    by_name = {
      'clusters': gamma, 'neighbors': losses[check][near].mean(axis=1), 'true rates': rates[test],
    }  # fmt: skip
    for name, predicted in by_name.items():
      path = price_path.price_path(predicted, cost, 1 - losses[test])
      areas[name].append(curve_metrics.area(path.cost, path.quality, low=0, high=4))
  assert np.mean(errors) < 2 * 0.5 / np.sqrt(10)  # ten validation prompts a topic
  mean = {name: np.mean(values) for name, values in areas.items()}
  assert mean['neighbors'] < mean['clusters'] < mean['true rates']


def test_guarded_neighbors_have_the_path_of_their_choices():
  rng = np.random.default_rng(0)
  near, quality, cost = rng.random((9, 4, 3)), rng.random((9, 3)), np.array([1.0, 2, 3])
  mean = near.mean(axis=(0, 1))
  costs, qualities = universal_routing.guarded_path(near, mean, cost, quality)
  price = routing.prices(mean, cost)[20]
  models = routing.guarded_choice(near, mean, cost, price=price)
  assert costs[20] == cost[models].mean()
  assert qualities[20] == quality[range(9), models].mean()


def test_on_real_outcomes_the_oracle_is_above_clusters_and_missing_answers_are_no_errors():
  folder = real_data.real('routing_css')
  models = (folder / 'models.csv').read_text().splitlines()[1:]
  costs = {line.split(',')[0]: 1.0 for line in models}
  losses = outcomes.read(folder / 'scores.csv.gz', costs=costs).losses
  with gzip.open(folder / 'prompts.jsonl.gz', 'rt') as file:
    tasks = [json.loads(line)['task'] for line in file]
  groups = np.unique(tasks, return_inverse=True)[1]
  half = np.random.default_rng(0).permutation(len(losses)) < len(losses) // 2
  weights = one_hot(groups[half], groups.max() + 1).T
  answered = np.isfinite(losses[half]).astype(float)
  psi = mean_losses(weights, losses[half])
  counted = weights @ answered
  wrong = weights @ np.nan_to_num(losses[half]) / np.maximum(counted, 1)
  np.testing.assert_allclose(psi[counted > 0], wrong[counted > 0])
  complete = ~half & np.isfinite(losses).all(axis=1)
  cost = np.arange(1.0, losses.shape[1] + 1)
  area = lambda gamma: curve_metrics.area(
    *price_path.price_path(gamma, cost, 1 - losses[complete])[1:], low=0, high=cost[-1]
  )
  constant = np.tile(np.nanmean(losses[half], axis=0), (complete.sum(), 1))
  assert area(constant) < area(psi[groups[complete]]) < area(losses[complete])


@given(seeds, st.floats(0, 10))
@few
def test_pairs_of_clusters_are_shrunk_as_by_a_loop(seed, strength):
  losses, fine = validation(seed)
  coarse = np.random.default_rng(seed).integers(0, 2, 12)
  levels = one_hot(coarse, 3).T, one_hot(fine, 5).T
  psi = universal_routing.paired_losses(*levels, losses, strength=strength)
  assert psi.shape == (15, 3)
  for m, own in enumerate(losses.T):
    answered = np.isfinite(own)
    for c, f in np.ndindex(3, 5):
      expected = own[answered].mean()
      for members in (coarse == c, fine == f):
        answers = own[members & answered]
        count = len(answers) + strength
        expected = (answers.sum() + strength * expected) / count if count else expected
      assert psi[5 * c + f, m] == pytest.approx(expected)


def test_a_nested_cluster_is_pulled_toward_its_coarse_one_by_hand():
  # Fine clusters 0 and 1 lie in one coarse cluster, 2 in another; 2 has no prompt.
  weights = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
  losses = np.array([[0.0], [0.0], [1.0], [1.0]])
  psi = universal_routing.nested_losses(weights, np.array([0, 0, 1]), losses, strength=2.0)
  # The mean of all answers, 1/2, is that of the first coarse cluster and the prior of the second.
  np.testing.assert_allclose(psi[:, 0], [(0 + 2 * 0.5) / 4, (2 + 2 * 0.5) / 4, 0.5])


@few
@given(seeds, st.floats(0, 10))
def test_nested_losses_of_one_coarse_cluster_shrink_to_the_mean(seed, strength):
  random = np.random.default_rng(seed)
  weights, losses = random.random((3, 6)), random.random((6, 2))
  nested = universal_routing.nested_losses(weights, np.zeros(3, int), losses, strength=strength)
  own = weights @ losses / weights.sum(1, keepdims=True)
  above = weights.sum(0) @ losses / weights.sum()
  total = weights.sum(1, keepdims=True)
  prior = (weights.sum() * above + strength * losses.mean(0)) / (weights.sum() + strength)
  np.testing.assert_allclose(nested, (total * own + strength * prior) / (total + strength))


def test_soft_memberships_are_those_of_the_trained_map():
  random = np.random.default_rng(0)
  vectors, theta, bias = random.random((4, 3)), random.random((2, 3)), random.random(2)
  logits = vectors @ theta.T + bias
  phi = universal_routing.soft_memberships(vectors, theta, bias)
  np.testing.assert_allclose(phi, np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
  trained = trained_routers.soft_memberships({'theta': theta, 'bias': bias}, vectors)
  np.testing.assert_allclose(phi, trained, rtol=1e-5)
