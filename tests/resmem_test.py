"""ResMem: residuals, neighbors, weights, predictions, and the oracles of its specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.test_util import check_grads

from cascades import resmem
from cascades.resmem import Datastore, Lookup


def problem(seed=0, n=40, d=5, classes=4, queries=7):
  """Random keys, logits and labels of n entries, and keys and logits of queries."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  return (
    normal(n, d), normal(n, classes), jnp.asarray(rng.integers(0, classes, n)),
    normal(queries, d), normal(queries, classes),
  )  # fmt: skip


def predict(keys, logits, labels, query, query_logits, lookup, excluded=None):
  index = resmem.nearest(query, keys, lookup.k, excluded=excluded)
  distance = resmem.distances(query, keys, index)
  return resmem.classify(query_logits, distance, logits[index], labels[index], lookup)


def slow(keys, logits, labels, query, query_logits, lookup):
  """The definition, one query and neighbor at a time, in float64."""
  predictions = []
  for x, f in zip(np.asarray(query, float), np.asarray(query_logits, float), strict=True):
    distance = [float(np.sqrt(((x - key) ** 2).sum())) for key in np.asarray(keys, float)]
    chosen = sorted(range(len(distance)), key=lambda i: (distance[i], i))[: lookup.k]
    raw = [np.exp(-distance[i] / lookup.sigma) for i in chosen]
    softmax = lambda z: np.exp(z / lookup.temperature) / np.exp(z / lookup.temperature).sum()
    base, total, votes = softmax(f), np.zeros(len(f)), np.zeros(len(f))
    for i, w in zip(chosen, raw, strict=True):
      label = np.eye(len(f))[int(labels[i])]
      total += w / sum(raw) * (label - softmax(np.asarray(logits[i], float)))
      votes += w / sum(raw) * label
    lam = lookup.interpolation
    predictions.append(base + total if lam is None else (1 - lam) * base + lam * votes)
  return np.array(predictions)


def test_a_prediction_worked_by_hand():
  """Two neighbors at distances 0 and log 3, sigma 1: weights 3/4 and 1/4; base (1/2, 1/2)."""
  keys = jnp.array([[0.0], [np.log(3.0)], [9.0]])
  logits = jnp.array([[0.0, 0.0], [np.log(3.0), 0.0], [5.0, 0.0]])  # softmax (3/4, 1/4) of entry 1
  labels = jnp.array([1, 1, 0])
  got = predict(keys, logits, labels, jnp.zeros((1, 1)), jnp.zeros((1, 2)), Lookup(2, 1.0))
  # Residuals (-1/2, 1/2) and (-3/4, 3/4): 1/2 - 3/8 - 3/16.
  np.testing.assert_allclose(got, [[-1 / 16, 17 / 16]], atol=1e-6)
  mixed = predict(
    keys, logits, labels, jnp.zeros((1, 1)), jnp.zeros((1, 2)), Lookup(2, 1.0, 1, 0.2)
  )
  np.testing.assert_allclose(mixed, [[0.4, 0.6]], atol=1e-6)


@pytest.mark.parametrize('lookup', [Lookup(6, 0.7, 1.4), Lookup(1, 1.0), Lookup(9, 2.0, 1.0, 0.3)])
def test_predictions_equal_the_definition_in_a_loop(lookup):
  np.testing.assert_allclose(
    predict(*problem(), lookup), slow(*problem(), lookup), rtol=1e-5, atol=1e-6
  )


# 1
@pytest.mark.parametrize('lookup', [Lookup(1, 1.0, 1.4), Lookup(8, 1e-4, 0.7)])
def test_an_untrained_base_memorizes_its_training_labels(lookup):
  keys, logits, labels, *_ = problem()
  got = predict(keys, logits, labels, keys, logits, lookup)
  np.testing.assert_allclose(got, np.eye(4)[labels], atol=1e-6)


# 2
@given(arrays.arrays(np.float32, (6, 5), elements=st.floats(-20, 20, width=32)))
def test_residuals_sum_to_zero_and_their_size_is_the_missing_probability(logits):
  labels = jnp.arange(6) % 5
  r = np.asarray(resmem.residuals(jnp.asarray(logits), labels, temperature=1.4), np.float64)
  p = np.asarray(jax.nn.softmax(jnp.asarray(logits) / 1.4))[np.arange(6), labels]
  np.testing.assert_allclose(r.sum(-1), 0, atol=1e-6)
  np.testing.assert_allclose(np.abs(r).sum(-1), 2 * (1 - p), atol=1e-5)


def test_predictions_sum_to_one_and_may_leave_the_simplex_until_they_are_clipped():
  got = np.asarray(predict(*problem(), Lookup(2, 0.1)))
  np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)
  assert got.min() < 0
  clipped = np.asarray(resmem.clip(got))
  assert clipped.min() > 0
  np.testing.assert_allclose(clipped.sum(-1), 1, atol=1e-6)
  assert (clipped.argmax(-1) == got.argmax(-1)).all()


# 3
def test_a_perfect_base_stays_as_it_is():
  keys, _, labels, query, query_logits = problem()
  perfect = 200.0 * jax.nn.one_hot(labels, 4)
  got = predict(keys, perfect, labels, query, query_logits, Lookup(9, 0.5))
  np.testing.assert_allclose(got, jax.nn.softmax(query_logits), atol=1e-6)


def test_a_constant_base_is_a_soft_vote_of_neighbors():
  keys, logits, labels, query, query_logits = problem()
  zeros = jnp.zeros_like
  lookup = Lookup(9, 0.5)
  got = predict(keys, zeros(logits), labels, query, zeros(query_logits), lookup)
  vote = predict(keys, logits, labels, query, query_logits, lookup._replace(interpolation=1.0))
  np.testing.assert_allclose(got, vote, atol=1e-6)


# 4
def test_an_infinite_bandwidth_averages_and_all_entries_add_a_constant():
  keys, logits, labels, query, query_logits = problem()
  few = predict(keys, logits, labels, query, query_logits, Lookup(3, np.inf))
  residuals = resmem.residuals(logits, labels)
  index = resmem.nearest(query, keys, 3)
  base = jax.nn.softmax(query_logits)
  np.testing.assert_allclose(few, base + residuals[index].mean(1), atol=1e-6)
  everything = predict(keys, logits, labels, query, query_logits, Lookup(40, np.inf))
  np.testing.assert_allclose(
    everything - base, np.tile(residuals.mean(0), (len(query), 1)), atol=1e-6
  )


# 5
@given(
  arrays.arrays(np.float32, (3, 6), elements=st.floats(0, 50, width=32)),
  st.floats(0.05, 20), st.floats(0.01, 100),
)  # fmt: skip
def test_weights_are_a_distribution_and_scale_with_the_embedding(distance, sigma, scale):
  w = np.asarray(resmem.weights(jnp.asarray(distance), sigma))
  assert w.min() >= 0
  np.testing.assert_allclose(w.sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(
    w, resmem.weights(jnp.asarray(distance) * scale, sigma * scale), atol=1e-3
  )


@pytest.mark.parametrize(('n', 'queries', 'k', 'block'), [
  (1, 1, 1, 8), (7, 3, 7, 8), (64, 17, 5, 16), (65, 16, 20, 16), (33, 9, 30, 8),
])  # fmt: skip
def test_blockwise_search_equals_brute_force(n, queries, k, block):
  keys, _, _, query, _ = problem(n, n=n, queries=queries)
  squares = ((np.asarray(query)[:, None] - np.asarray(keys)) ** 2).sum(-1)
  expected = np.argsort(squares, axis=1, kind='stable')[:, :k]
  np.testing.assert_array_equal(resmem.nearest(query, keys, k, block=block), expected)
  np.testing.assert_allclose(
    resmem.distances(query, keys, jnp.asarray(expected)),
    np.sqrt(np.take_along_axis(squares, expected, 1)), rtol=1e-5,
  )  # fmt: skip


def test_ties_go_to_the_lowest_index_across_blocks():
  keys = jnp.tile(jnp.array([[1.0, 2.0], [0.0, 0.0]]), (20, 1))
  got = resmem.nearest(jnp.array([[1.0, 2.0]]), keys, 5, block=8)
  np.testing.assert_array_equal(got, [[0, 2, 4, 6, 8]])


def test_no_buffer_of_queries_by_entries_exists():
  n, block = 20_000, 512
  shape = jax.ShapeDtypeStruct((n, 4), jnp.float32)
  search = jax.jit(lambda q, keys: resmem.nearest(q, keys, 10, block=block))
  compiled = search.lower(shape, shape).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 40 * n * 4 + 64 * block**2
  assert f'{n},{n}' not in compiled.as_text()


# 6
def test_translations_and_rotations_of_embeddings_change_nothing():
  keys, logits, labels, query, query_logits = problem()
  rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))
  move = lambda x: x @ jnp.asarray(rotation, jnp.float32) + 30.0
  lookup = Lookup(7, 0.6)
  np.testing.assert_allclose(
    predict(move(keys), logits, labels, move(query), query_logits, lookup),
    predict(keys, logits, labels, query, query_logits, lookup), atol=1e-4,
  )  # fmt: skip


# 7
def test_regression_interpolates_and_its_error_is_bounded_by_the_distance():
  rng = np.random.default_rng(0)
  x, query = (jnp.asarray(rng.standard_normal((n, 3)), jnp.float32) for n in (200, 50))
  theta, base = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.0, 0.0])
  residual = (x @ (theta - base))[:, None]

  def regress(points):
    index = resmem.nearest(points, x, 1)
    distance = resmem.distances(points, x, index)
    weight = resmem.weights(distance, 1.0)
    return resmem.add((points @ base)[:, None], weight, residual[index])[:, 0], distance[:, 0]

  np.testing.assert_allclose(regress(x)[0], x @ theta, atol=1e-5)
  predicted, distance = regress(query)
  bound = jnp.linalg.norm(theta - base) * distance
  assert (jnp.abs(predicted - query @ theta) <= bound + 1e-5).all()


# 8
@pytest.mark.slow
def test_risk_of_a_short_linear_base_stays_and_that_of_resmem_falls():
  from benchmarks import resmem_theory

  for d in (2, 3, 4):
    small, large = (resmem_theory.risks(d, 0.5, n, seed=0) for n in (100, 10_000))
    plateau = 0.25 / (d + 2)  # (1 - Lc)^2 E <theta*, x>^2
    assert large.base == pytest.approx(plateau, rel=0.15)
    assert large.resmem < 0.5 * small.resmem
    assert large.resmem < 0.2 * large.base


# 9
@pytest.mark.slow
def test_leaving_the_query_out_chooses_more_neighbors_and_keeping_it_chooses_one():
  rng = np.random.default_rng(0)
  keys = jnp.asarray(rng.standard_normal((300, 2)), jnp.float32)
  clean = np.asarray(keys)[:, 0] > 0
  labels = jnp.asarray(np.where(rng.random(300) < 0.25, ~clean, clean).astype(int))
  logits = jnp.zeros((300, 2))
  lookups = list(resmem.grid(0.3, 299, interpolate=False))

  def choose(excluded):
    index = resmem.nearest(keys, keys, 100, excluded=excluded)
    distance = resmem.distances(keys, keys, index)
    return resmem.tune(
      lambda lookup: resmem.classify(logits, distance, logits[index], labels[index], lookup),
      labels, lookups,
    )  # fmt: skip

  assert choose(None)[0].k == 1
  assert choose(jnp.arange(300))[0].k >= 10


def test_an_excluded_entry_is_no_neighbor():
  keys, *_ = problem()
  index = np.asarray(resmem.nearest(keys, keys, 39, excluded=jnp.arange(40)))
  assert not (index == np.arange(40)[:, None]).any()
  assert (np.sort(index, 1)[:, 0] <= 1).all()


def vocabulary_problem(seed=0, n=30, d=6, v=11, queries=5):
  rng = np.random.default_rng(seed)
  table = jnp.asarray(rng.standard_normal((d, v)), jnp.float32)
  keys, query = (jnp.asarray(rng.standard_normal((m, d)), jnp.float32) for m in (n, queries))
  return table, keys, jnp.asarray(rng.integers(0, v, n)), query


def next_token(table, memory, query, lookup):
  index = resmem.nearest(query, memory.keys, lookup.k)
  distance = resmem.distances(query, memory.keys, index)
  readout = lambda hidden: hidden @ table
  return resmem.next_token(readout(query), distance, index, memory, readout, lookup)


@pytest.mark.parametrize('lookup', [Lookup(4, 1.0, 1.4), Lookup(4, 1.0, 1.0, 0.3)])
@pytest.mark.parametrize('stored', [None, 11])
def test_next_tokens_equal_classification_with_the_full_distributions(lookup, stored):
  table, keys, tokens, query = vocabulary_problem()
  memory = Datastore(keys, tokens)
  if stored:
    values, top = jax.lax.top_k(jax.nn.log_softmax(keys @ table), stored)
    memory = Datastore(keys, tokens, top, values)
  np.testing.assert_allclose(
    next_token(table, memory, query, lookup),
    predict(keys, keys @ table, tokens, query, query @ table, lookup), atol=1e-5,
  )  # fmt: skip


@pytest.mark.parametrize('temperature', [0.7, 1.0, 2.0])
def test_stored_probabilities_and_their_uniform_rest_make_a_distribution(temperature):
  table, keys, tokens, query = vocabulary_problem()
  values, top = jax.lax.top_k(jax.nn.log_softmax(keys @ table), 3)
  stored, rest = resmem.tempered(values, 11, temperature)
  np.testing.assert_allclose(stored.sum(-1) + 8 * rest[:, 0], 1, atol=1e-5)
  lookup = Lookup(4, 1.0, temperature)
  got = next_token(table, Datastore(keys, tokens, top, values), query, lookup)
  np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)
  full = np.full((30, 11), np.asarray(rest))
  np.put_along_axis(full, np.asarray(top), np.asarray(stored), 1)
  expected = slow(keys, temperature * np.log(full), tokens, query, query @ table, lookup)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_tempered_worked_by_hand():
  top, rest = resmem.tempered(jnp.log(jnp.array([[0.5, 0.3]])), 4, 1.0)
  np.testing.assert_allclose(top, [[0.5, 0.3]], atol=1e-6)
  np.testing.assert_allclose(rest, [[0.1]], atol=1e-6)


def test_the_gradient_of_a_prediction_in_logits_and_keys():
  keys, logits, labels, query, query_logits = problem()
  index = resmem.nearest(query, keys, 4)

  def total(query_logits, query):
    distance = resmem.distances(query, keys, index)
    got = resmem.classify(query_logits, distance, logits[index], labels[index], Lookup(4, 1.0))
    return jnp.sum(got**2)

  check_grads(total, (query_logits, query), order=1, modes=['rev'], rtol=0.02)


def test_criteria_of_known_predictions():
  prediction, labels = jnp.array([[1.2, -0.2], [0.5, 0.5]]), jnp.array([0, 1])
  np.testing.assert_allclose(resmem.squared_error(prediction, labels), [0.08, 0.5], atol=1e-6)
  np.testing.assert_array_equal(resmem.error(prediction, labels), [0, 1])
  np.testing.assert_allclose(resmem.log_loss(prediction, labels), [0, np.log(2)], atol=1e-5)


@pytest.mark.parametrize(('k', 'excluded'), [(0, None), (6, None), (5, jnp.arange(5))])
def test_more_neighbors_than_entries_are_refused(k, excluded):
  with pytest.raises(ValueError, match=f'k={k} neighbors among 5 entries'):
    resmem.nearest(jnp.zeros((5, 2)), jnp.zeros((5, 2)), k, excluded=excluded)


def test_a_memory_of_one_entry_cannot_be_tuned():
  assert [lookup.k for lookup in resmem.grid(1.0, 1, interpolate=True)] == [1] * 5
  with pytest.raises(ValueError, match='no lookup to choose from'):
    resmem.tune(lambda _: jnp.zeros((1, 2)), jnp.zeros(1, int), [])


def test_entries_of_the_excluded_group_are_no_neighbors():
  keys, *_ = problem()
  groups = jnp.arange(40) // 4
  index = resmem.nearest(keys, keys, 36, excluded=groups, groups=groups, block=16)
  assert not (groups[index] == groups[:, None]).any()
