"""Scores of token vectors, losses, the order with its rule for ties, and ranking cascades."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from cascades import ranking
from cascades.ranking import RankingLevel

SCORES = np.array([[2.0, 1.0, -1.0], [0.5, 3.0, 0.0]], np.float32)
TEACHER = np.array([[3.0, 0.0, 1.0], [1.0, 1.0, 1.0]], np.float32)
TAUGHT = (ranking.margin_mse, ranking.listwise_kl)


def _random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _max_sim_by_loops(similarities, query_mask, document_mask, top=1):
  total = 0.0
  for i, row in enumerate(similarities):
    aligned = sorted(
      (s for s, valid in zip(row, document_mask, strict=True) if valid), reverse=True
    )
    if query_mask[i] and aligned:
      total += sum(aligned[:top]) / len(aligned[:top])
  return total


def test_similarities_are_all_dot_products():
  query, document = _random(2, 3, 4), _random(2, 5, 4, seed=1)
  expected = [
    [[q @ d for d in own] for q in rows] for rows, own in zip(query, document, strict=True)
  ]
  np.testing.assert_allclose(ranking.similarity(query, document), expected, atol=1e-6)


def test_max_sim_of_a_worked_example():
  similarities = jnp.array([[1.0, 5.0, 2.0], [3.0, -1.0, 9.0]])
  both, two = jnp.ones(2, bool), jnp.array([True, True, False])
  assert ranking.max_sim(similarities, both, two) == 5 + 3
  assert ranking.max_sim(similarities, both, two, top=2) == (5 + 1) / 2 + (3 - 1) / 2
  assert ranking.max_sim(similarities, jnp.array([False, True]), two) == 3


@pytest.mark.parametrize('top', [1, 2, 4])
@pytest.mark.parametrize('seed', range(3))
def test_max_sim_equals_loops(top, seed):
  random = np.random.default_rng(seed)
  similarities = random.standard_normal((4, 3, 6)).astype(np.float32)
  query, document = random.random((4, 3)) < 0.7, random.random((4, 6)) < 0.5
  expected = [
    _max_sim_by_loops(*pair, top) for pair in zip(similarities, query, document, strict=True)
  ]
  actual = ranking.max_sim(similarities, query, document, top=top)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_match_for_each_query_token_scores_their_number():
  """Identity-like similarities."""
  ones = jnp.ones(4, bool)
  assert ranking.max_sim(jnp.eye(4), ones, ones) == 4


@given(st.integers(0, 2), st.integers(0, 4), st.floats(0, 3), st.integers(0, 99))
def test_max_sim_is_monotone_and_gains_by_tokens(i, j, more, seed):
  similarities = _random(3, 5, seed=seed)
  raised = similarities.copy()
  raised[i, j] += more
  ones = np.ones(3, bool), np.ones(5, bool)
  before = ranking.max_sim(similarities, *ones)
  assert ranking.max_sim(raised, *ones) >= before
  fewer = np.arange(5) != j
  assert ranking.max_sim(similarities, ones[0], fewer) <= before


def test_max_sim_does_not_see_the_order_of_tokens():
  similarities, random = _random(3, 5), np.random.default_rng(1)
  ones = np.ones(3, bool), np.ones(5, bool)
  permuted = similarities[random.permutation(3)][:, random.permutation(5)]
  np.testing.assert_allclose(
    ranking.max_sim(permuted, *ones), ranking.max_sim(similarities, *ones), atol=1e-6
  )


def test_a_document_without_tokens_scores_0_and_has_a_finite_gradient():
  mask = jnp.ones(3, bool), jnp.zeros(5, bool)
  score = lambda similarities: ranking.max_sim(similarities, *mask)
  assert score(jnp.asarray(_random(3, 5))) == 0
  assert not jax.grad(score)(jnp.asarray(_random(3, 5))).any()


def test_losses_of_a_worked_example():
  # Margins (1, 3) and (-2.5, 0.5) against (3, 2) and (0, 0).
  np.testing.assert_allclose(
    ranking.margin_mse(SCORES, TEACHER), [(4 + 1) / 2, (6.25 + 0.25) / 2], rtol=1e-6
  )
  target, own = special.softmax(TEACHER, -1), special.softmax(SCORES, -1)
  np.testing.assert_allclose(
    ranking.listwise_kl(SCORES, TEACHER), special.rel_entr(target, own).sum(-1), rtol=1e-5
  )
  np.testing.assert_allclose(ranking.contrastive(SCORES), -np.log(own[:, 0]), rtol=1e-5)
  np.testing.assert_array_equal(ranking.contrastive(SCORES, TEACHER), ranking.contrastive(SCORES))


@pytest.mark.parametrize('loss', [*TAUGHT, ranking.contrastive])
@pytest.mark.parametrize('shifted', ['scores', 'teacher'])
def test_a_constant_for_each_query_changes_no_loss(loss, shifted):
  shift = np.array([[3.0], [-2.0]], np.float32)
  scores, teacher = (
    SCORES + shift * (shifted == 'scores'), TEACHER + shift * (shifted == 'teacher')
  )  # fmt: skip
  np.testing.assert_allclose(loss(scores, teacher), loss(SCORES, TEACHER), atol=1e-5)


@pytest.mark.parametrize('loss', TAUGHT)
def test_a_taught_loss_is_0_only_where_the_teacher_is_met(loss):
  np.testing.assert_allclose(loss(TEACHER + 7, TEACHER), 0, atol=1e-6)
  assert (np.asarray(loss(SCORES, TEACHER)) > 0.05).all()


def test_gradients_of_a_margin_are_opposite():
  gradient = jax.grad(lambda s: ranking.margin_mse(s, TEACHER[:, :2]).sum())(SCORES[:, :2])
  np.testing.assert_allclose(gradient[:, 0], -gradient[:, 1])
  assert gradient.all()


@pytest.mark.parametrize('loss', [*TAUGHT, ranking.contrastive])
def test_gradients_are_those_of_differences(loss):
  value = lambda scores: loss(jnp.asarray(scores), TEACHER).sum()
  gradient, step = jax.grad(value)(jnp.asarray(SCORES)), 1e-2
  for index in np.ndindex(SCORES.shape):
    moved = np.zeros_like(SCORES)
    moved[index] = step
    slope = (value(SCORES + moved) - value(SCORES - moved)) / (2 * step)
    np.testing.assert_allclose(gradient[index], slope, atol=2e-3)


def test_kl_at_a_large_temperature_is_an_eighth_of_the_squared_margin_gap():
  scores, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[3.0, -1.0]])
  actual = ranking.listwise_kl(scores, teacher, temperature=300.0)
  np.testing.assert_allclose(actual, (4 - 1) ** 2 / 8, rtol=2e-2)


@pytest.mark.parametrize('loss', TAUGHT)
def test_a_loss_without_its_teacher_names_the_way_out(loss):
  with pytest.raises(ValueError, match='take the loss `contrastive`'):
    loss(SCORES, None)


def test_equal_scores_are_ordered_by_id():
  assert ranking.order(np.array([1.0, 2.0, 1.0, 1.0]), ['b', 'z', 'c', 'a']).tolist() == [
    1,
    3,
    0,
    2,
  ]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=1, max_size=8), st.floats(-5, 5))
def test_the_order_is_that_of_sorting_and_keeps_under_a_constant(scores, constant):
  ids = [f'd{i}' for i in range(len(scores))]
  expected = sorted(range(len(scores)), key=lambda i: (-scores[i], ids[i]))
  assert ranking.order(np.array(scores), ids).tolist() == expected
  if constant == round(constant):  # others may round two scores to one
    assert ranking.order(np.array(scores) + constant, ids).tolist() == expected


def test_a_score_that_is_no_number_is_named():
  with pytest.raises(ValueError, match="the score of document 'b' is no number"):
    ranking.order(np.array([1.0, np.nan]), ['a', 'b'])


LEVELS = [
  RankingLevel([np.array([4.0, 3.0, 2.0, 1.0])], 1.0, 0.5),
  RankingLevel([np.array([0.0, 1.0, 2.0, 9.0])], 2.0, 3.0),
  RankingLevel([np.array([np.nan, 1.0, 5.0, np.nan])], 10.0, 100.0),
]
IDS = [['a', 'b', 'c', 'd']]


def test_a_cascade_reorders_what_each_scorer_reads():
  scores = [level.scores[0] for level in LEVELS]
  assert ranking.cascade_order(scores[:2], [0], IDS[0]).tolist() == [0, 1, 2, 3]
  assert ranking.cascade_order(scores[:2], [3], IDS[0]).tolist() == [2, 1, 0, 3]
  assert ranking.cascade_order(scores[:2], [4], IDS[0]).tolist() == [3, 2, 1, 0]
  assert ranking.cascade_order(scores, [3, 2], IDS[0]).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize('depths', [[1, 2], [1], [-1, -1]])
def test_depths_that_grow_or_lack_are_refused(depths):
  with pytest.raises(ValueError, match=r'expected one for each scorer after the first'):
    ranking.cascade_order([level.scores[0] for level in LEVELS], depths, IDS[0])


def test_the_cost_of_a_cascade_is_that_of_what_is_read():
  assert ranking.cascade_cost(LEVELS, [3, 2], [4]) == (1 + 4 * 0.5) + (2 + 3 * 3) + (10 + 2 * 100)
  assert ranking.cascade_cost(LEVELS, [3, 0], [4]) == (1 + 4 * 0.5) + (2 + 3 * 3)
  two = ranking.cascade_cost(LEVELS[:2], [3], [4, 1])
  assert two == ((1 + 2 + 2 + 9) + (1 + 0.5 + 2 + 3)) / 2


def test_the_curve_of_a_cascade_goes_from_the_cheap_scorer_to_the_dear_one():
  quality = lambda orders: 1 / (1 + [*orders[0]].index(3))  # of document 'd'
  curve = ranking.cascade_curve(LEVELS[:2], IDS, quality, depths=[0, 2, 4])
  assert curve.threshold.tolist() == [np.inf, -2, -4]
  assert curve.deferral_rate.tolist() == [0, 0.5, 1]
  assert curve.quality.tolist() == [0.25, 0.25, 1]
  assert curve.cost.tolist() == [3, 3 + 2 + 6, 3 + 2 + 12]
