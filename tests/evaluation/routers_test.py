"""Routers of two levels of clusters; files of earlier versions are read, and go on."""

import pathlib
from functools import partial

import numpy as np
import pytest

from cascades import price_path, universal_routing
from cascades.evaluation import router_fits, routers
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.universal_routing import assign

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def test_a_router_of_the_first_version_is_read_and_goes_on():
  router = routers.read(GOLDEN / 'router_version_1.json')
  psi = [[0.8, 0.1], [0.0625, 0.4375]]
  np.testing.assert_allclose(router.pool.psi, psi, rtol=1e-6)
  losses = router.losses(np.array([[1.0, 0.1], [-1.0, 0.1]]))
  np.testing.assert_allclose(losses, np.transpose(psi), rtol=1e-6)
  assert router.rule(0.0)(np.array([[1.0, 0.1], [-1.0, 0.1]])).tolist() == [1, 0]
  tokens = np.arange(1.0, len(router.ids) + 1)[:, None]
  quality = 0 * tokens + 0.5
  priced = OutcomeMatrix(
    router.ids, ('',) * len(router.ids), ('new',), quality, np.ones(1), tokens, tokens, np.ones(1)
  )
  joined = router.add(priced)
  assert joined.pool.tokens is None  # it does not know how long its prompts are
  assert joined.pool.group_cost.shape == (3, 2)


def test_a_hierarchy_predicts_as_hiershrink():
  random = np.random.default_rng(0)
  vectors, losses = random.normal(size=(90, 3)), random.integers(0, 2, (90, 2)).astype(float)
  losses[random.random((90, 2)) < 0.3] = np.nan
  names = tuple(map(str, range(90)))
  matrix = OutcomeMatrix(names, names, ('a', 'b'), 1 - losses, np.array([1.0, 2]))
  embedded = router_fits.Embedded(vectors, vectors, {}, 'e')
  router = router_fits.fit(matrix, embedded, clusters=20, strength=24.0, method='hierarchical')
  prompts = random.normal(size=(200, 3))
  levels = [
    (assign(prompts, centroids), assign(vectors, centroids))
    for centroids in (router.arrays['coarse_centroids'], router.arrays['centroids'])
  ]
  assert [len(np.unique(own[1])) for own in levels] == [4, 20]
  pairs = {*zip(*(own[0].tolist() for own in levels), strict=True)}
  assert len(pairs) > 20  # fine clusters lie in several coarse ones
  expected = universal_routing.hierarchical(*levels, losses, strength=24.0)
  np.testing.assert_allclose(router.losses(prompts), expected, rtol=1e-6)
  names = router.rule(0.05)(prompts).tolist()
  assert names == price_path.choose(router.losses(prompts), router.pool.cost, 0.05).tolist()


@pytest.mark.parametrize('method', routers.METHODS)
@pytest.mark.parametrize('by_prompt', [False, True])
def test_duplicates_a_free_model_one_model_and_empty_clusters_by_any_method(method, by_prompt):
  random = np.random.default_rng(0)
  vectors, quality = random.normal(size=(30, 4)), random.random((30, 9))
  quality[:, 8] = quality[:, 0]
  quality[:, 1] = 0  # the free one is never best
  cost = np.array([2.0, 0, 3, 4, 5, 6, 7, 8, 1])
  own = cost * (1 + random.random((30, 1))) if by_prompt else None
  cost = cost if own is None else own.mean(axis=0)
  names = tuple(map(str, range(30)))
  matrix = OutcomeMatrix(names, names, tuple('abcdefghi'), quality, cost, own)
  prompts = random.normal(size=(60, 4))
  embedded = router_fits.Embedded(prompts, vectors, {}, 'e')
  fit = partial(router_fits.fit, embedded=embedded, clusters=20, strength=1.0, method=method)
  router = fit(matrix)
  assert (router.groups.sum(axis=1) == 0).any()
  losses, costs = router.predict(prompts)
  assert np.isfinite(losses).all()
  assert (costs[:, 1] == 0).all()
  np.testing.assert_array_equal(losses[:, 0], losses[:, 8])
  for price in (0.0, 0.01, 0.1, np.inf):
    models = router.rule(price)(prompts)
    assert 0 not in models  # the cheaper of the duplicates
    single = [int(router.rule(price)(prompts[i : i + 1])[0]) for i in range(20)]
    assert single == models[:20].tolist()
  assert (models == 1).all()
  alone = fit(matrix.select(models=[3]))
  assert set(alone.rule(0.1)(prompts)) == {0}


def test_a_hierarchy_of_the_second_version_is_read_and_takes_models_in():
  router = routers.read(GOLDEN / 'router_version_2.json')
  psi = np.array([[0.7, 0.16], [0.1, 0.4]])
  np.testing.assert_allclose(router.pool.psi, psi, rtol=1e-6)
  quality = 1 - router.arrays['losses'][:, :1]
  one_more = OutcomeMatrix(router.ids, ('',) * 6, ('again',), quality, np.ones(1))
  joined = router.add(one_more)
  np.testing.assert_array_equal(joined.pool.psi[2], router.pool.psi[0])
