"""Gradient descent on one attention layer finds the priorities of its data."""

import json

import jax
import numpy as np
import pytest
from jax import test_util

from experiments import attention_layer, next_token_mechanics, priority_graph
from experiments.next_token_mechanics import NORMALIZED, PLAIN, follow, sample

STEPS = [1, 100, 3000]


@pytest.fixture(scope='module')
def acyclic():
  return follow([sample(seed, cyclic=False) for seed in range(3)], NORMALIZED, STEPS)


@pytest.fixture(scope='module')
def cyclic():
  return follow([sample(seed, cyclic=True) for seed in range(3)], PLAIN, STEPS)


def test_the_direction_is_that_of_the_largest_margin(acyclic):
  assert acyclic.cosine[:, -1].min() > 0.998
  assert (np.diff(acyclic.cosine, axis=1) > 0).all()


def test_another_graph_has_another_direction():
  """The law breaks with the graph: priorities that are turned around are not approached."""
  examples = sample(0, cyclic=False)
  with jax.enable_x64(True):
    data = [np.asarray(v)[None] for v in (examples.E, examples.prompts, examples.labels)]
    W = next_token_mechanics.descend(NORMALIZED, np.zeros((1, 8, 8)), tuple(data), 3000)
  graph = priority_graph.edges(examples.prompts, examples.labels, 8)
  turned = priority_graph.svm(graph.transpose(0, 2, 1), examples.E).ravel()
  assert next_token_mechanics.cosine(np.asarray(W).reshape(1, -1), turned)[0] < -0.9


def test_within_a_cycle_the_component_stays_finite(cyclic):
  assert cyclic.finite[:, -1].max() < 0.05
  assert (np.diff(cyclic.finite, axis=1) < 0).all()


def test_outside_the_cycles_the_direction_is_that_of_the_largest_margin(cyclic):
  assert cyclic.separating[:, -1].min() > 0.94
  assert (np.diff(cyclic.separating, axis=1) > 0).all()
  assert (cyclic.separating[:, -1] >= cyclic.cosine[:, -1] - 1e-9).all()
  assert (np.diff(cyclic.norm, axis=1) > 0).all()


def test_attention_gathers_on_the_highest_component(acyclic, cyclic):
  assert acyclic.trained[:, -1].min() > 0.9999
  assert acyclic.fresh[:, -1].min() > 0.9999  # prompts that were not trained on
  assert cyclic.trained[:, -1].min() > 0.98
  assert (np.diff(cyclic.trained, axis=1) > 0).all()


def test_cyclic_data_have_cycles_and_acyclic_data_none():
  for seed in range(3):
    for cycles in (False, True):
      examples = sample(seed, cyclic=cycles)
      graph = priority_graph.edges(examples.prompts, examples.labels, 8)
      assert bool(priority_graph.cyclic_basis(graph, examples.E).shape[1]) == cycles


def test_the_loss_is_that_of_the_output_and_its_gradient_is_right():
  examples = sample(0, cyclic=True)
  W = np.random.default_rng(0).normal(size=(8, 8))
  with jax.enable_x64(True):
    arguments = examples.E, examples.prompts, examples.labels
    mass = np.asarray(attention_layer.mass(W, examples.E, examples.prompts, 8))
    right = mass[np.arange(len(mass)), examples.labels]
    loss = attention_layer.loss(W, *arguments)
    assert float(loss) == pytest.approx(-np.log(right).mean(), rel=1e-12)
    test_util.check_grads(lambda W: attention_layer.loss(W, *arguments), (W,), order=1)


def test_the_gradient_stays_exact_where_the_label_has_almost_all():
  """exp(-50) is below the resolution of 1 - p; the direction needs it."""
  with jax.enable_x64(True):
    W = np.zeros((2, 2))
    W[1, 0] = 50.0
    gradient = jax.grad(attention_layer.loss)(W, np.eye(2), np.array([[1, 0]]), np.array([1]))
  np.testing.assert_allclose(gradient[:, 0], [np.exp(-50.0), -np.exp(-50.0)], rtol=1e-12)


def test_a_label_alone_in_its_prompt_has_no_gradient():
  with jax.enable_x64(True):
    gradient = jax.grad(attention_layer.loss)(
      np.zeros((2, 2)), np.eye(2), np.array([[1, 1]]), np.array([1])
    )
  np.testing.assert_array_equal(gradient, 0)


def test_the_experiment_writes_its_numbers_and_its_figure(tmp_path, monkeypatch):
  output = tmp_path / 'numbers.json'
  arguments = ['--count=2', '--steps=10', f'--output={output}']
  monkeypatch.setattr('sys.argv', ['next_token_mechanics', *arguments])
  next_token_mechanics.main()
  assert {'commit', 'machine', 'rows', 'settings'} <= json.loads(output.read_text()).keys()
  assert output.with_suffix('.png').stat().st_size > 1000
