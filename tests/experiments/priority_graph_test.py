"""Token-priority graphs and the max-margin matrices that they set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from experiments import attention_layer, priority_graph

CHAIN = (np.array([[2, 1, 0], [1, 2, 0]]), np.array([0, 1]))  # 0 over 1, 2; then 1 over 0, 2


def test_a_graph_by_hand():
  """Last token 0: prompt (2, 1, 0) with next 0, prompt (1, 2, 0) with next 1."""
  graph = priority_graph.edges(*CHAIN, K=3)
  assert np.argwhere(graph).tolist() == [[0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 2]]
  scc = priority_graph.components(graph)[0]
  assert scc[0] == scc[1] != scc[2]
  above = priority_graph.priority(graph)[0]
  assert np.argwhere(above).tolist() == [[0, 2], [1, 2]]


def test_a_priority_follows_paths():
  prompts, labels = np.array([[0, 1, 3], [1, 2, 3]]), np.array([0, 1])  # 0 -> 1 -> 2, no 0 -> 2
  graph = priority_graph.edges(prompts, labels, K=4)
  assert not graph[3, 0, 2]
  assert priority_graph.priority(graph)[3, 0, 2]


def test_the_margin_of_a_chain_by_hand():
  """0 over 1 over 2 for the last token 3, which both beat: scores (1, 0, -1, -1) up to a shift."""
  prompts = np.array([[0, 1, 2, 3], [1, 2, 2, 3]])
  graph = priority_graph.edges(prompts, np.array([0, 1]), K=4)
  scores = priority_graph.svm(graph, np.eye(4))[:, 3]
  np.testing.assert_allclose(scores - scores[1], [1, 0, -1, -1], atol=1e-9)
  assert scores.sum() == pytest.approx(0, abs=1e-9)  # the shift of least norm


def test_a_cycle_gets_no_margin():
  scores = priority_graph.svm(priority_graph.edges(*CHAIN, K=3), np.eye(3))[:, 0]
  np.testing.assert_allclose(scores, [1 / 3, 1 / 3, -2 / 3], atol=1e-9)


@st.composite
def data(draw):
  K = draw(st.integers(2, 5))
  prompts = np.array(
    draw(st.lists(st.lists(st.integers(0, K - 1), min_size=3, max_size=3), min_size=1, max_size=8))
  )
  positions = draw(st.lists(st.integers(0, 2), min_size=len(prompts), max_size=len(prompts)))
  return K, prompts, prompts[np.arange(len(prompts)), positions]


@settings(max_examples=60, deadline=None)
@given(data(), st.integers(0, 5))
def test_every_data_set_has_a_max_margin_solution(drawn, seed):
  K, prompts, labels = drawn
  graph = priority_graph.edges(prompts, labels, K)
  E = attention_layer.gaussian(K, K + 2, seed)
  margins, equalities = priority_graph.constraints(graph, E)
  if not len(margins):
    return
  w = priority_graph.svm(graph, E).ravel()
  assert (margins @ w).min() == pytest.approx(1, abs=1e-6)  # met, and met with equality somewhere
  np.testing.assert_allclose(equalities @ w, 0, atol=1e-6)
  # Optimal: w is a non-negative combination of the tight margins, up to the equalities.
  tight = margins[margins @ w < 1 + 1e-6]
  columns = np.vstack([tight, equalities, -equalities]).T
  assert optimize.nnls(columns, w)[1] < 1e-5 * np.linalg.norm(w)


def test_the_program_of_least_distance_agrees_with_another_solver():
  random = np.random.default_rng(0)
  margins, equalities = random.normal(size=(6, 5)) + 1, random.normal(size=(1, 5))
  w = priority_graph.least_norm(margins, equalities)
  other = optimize.minimize(
    lambda w: w @ w, np.ones(5), jac=lambda w: 2 * w, method='SLSQP',
    constraints=[{'type': 'ineq', 'fun': lambda w: margins @ w - 1},
                 {'type': 'eq', 'fun': lambda w: equalities @ w}],
    options={'ftol': 1e-14},
  )  # fmt: skip
  np.testing.assert_allclose(w, other.x, atol=1e-5)


def test_contradicting_margins_are_refused():
  margins = np.array([[1.0, 0.0], [-1.0, 0.0]])
  with pytest.raises(ValueError, match='no direction separates 2 pairs'):
    priority_graph.least_norm(margins, np.zeros((0, 2)))


def test_the_finite_component_is_the_log_odds_of_a_cycle():
  """Prompts (1, 0), next 0 three times and 1 once: scores differ by log 3."""
  prompts, labels = np.array([[1, 0]] * 4), np.array([0, 0, 0, 1])
  W = priority_graph.finite_component(prompts, labels, np.eye(2))
  assert W[0, 0] - W[1, 0] == pytest.approx(np.log(3))
  assert W[0, 0] + W[1, 0] == pytest.approx(0)


def test_an_acyclic_graph_has_no_finite_component():
  W = priority_graph.finite_component(np.array([[1, 0]]), np.array([1]), np.eye(2))
  np.testing.assert_array_equal(W, 0)
