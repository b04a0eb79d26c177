"""Gradients, laws and training of the routers that have parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import trained_routers, universal_routing

D, K, J, N = 4, 3, 5, 40


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(N, D)) + 3 * np.eye(D)[rng.integers(0, K, N)]
  centroids = universal_routing.cluster(vectors, K, restarts=2)
  clusters = universal_routing.assign(vectors, centroids)
  rates = rng.random((K, J))
  losses = (rng.random((N, J)) < rates[clusters]).astype(float)
  losses[::7, 1] = np.nan
  psi = universal_routing.mean_losses(universal_routing.one_hot(clusters, K).T, losses).T
  start = trained_routers.learned_map(vectors, centroids, clusters)
  return vectors.astype(np.float32), losses, clusters, {'psi': jnp.asarray(psi)}, start


def gradient_of_logits(phi, psi, losses):
  """dL/dz of the mean over answers: phi_k (Psi_k - gamma) (gamma - e) / (gamma (1 - gamma))."""
  gamma = phi @ psi.T
  total = np.zeros_like(phi)
  for row, column in np.argwhere(np.isfinite(losses)):
    g, e = gamma[row, column], losses[row, column]
    total[row] += phi[row] * (psi[column] - g) * (g - e) / (g * (1 - g))
  return total / np.isfinite(losses).sum()


def test_the_gradient_is_the_formula_and_that_of_finite_differences(data):
  vectors, losses, _, constants, start = data
  psi = np.asarray(constants['psi'])
  objective = lambda p: trained_routers.log_loss(
    trained_routers.by_map(p, constants, vectors), losses
  )
  gradient = jax.grad(objective)(start)
  phi = np.asarray(trained_routers.soft_memberships(start, vectors))
  by_logit = gradient_of_logits(phi, psi, losses)
  np.testing.assert_allclose(gradient['theta'], by_logit.T @ vectors, atol=1e-5)
  np.testing.assert_allclose(gradient['bias'], by_logit.sum(axis=0), atol=1e-5)
  for k in range(K):
    rise, fall = (slow_objective(start, k, step, psi, vectors, losses) for step in (1e-6, -1e-6))
    assert (rise - fall) / 2e-6 == pytest.approx(by_logit[:, k].sum(), abs=1e-6)


def slow_objective(parameters, k, step, psi, vectors, losses):
  """The log loss in double precision, at a bias that is moved by a step."""
  bias = np.asarray(parameters['bias'], float) + step * (np.arange(K) == k)
  z = vectors.astype(float) @ np.asarray(parameters['theta'], float).T + bias
  weights = np.exp(z - z.max(axis=1, keepdims=True))
  gamma = weights / weights.sum(axis=1, keepdims=True) @ psi.astype(float).T
  return -np.nanmean(losses * np.log(gamma) + (1 - losses) * np.log(1 - gamma))


def test_memberships_sum_to_one_and_predictions_stay_among_the_psi(data):
  vectors, _, _, constants, start = data
  phi = trained_routers.soft_memberships(start, vectors)
  np.testing.assert_allclose(phi.sum(axis=1), 1, rtol=1e-5)
  gamma = np.asarray(trained_routers.by_map(start, constants, vectors))
  psi = np.asarray(constants['psi'])
  assert (gamma >= psi.min(axis=1) - 1e-6).all()
  assert (gamma <= psi.max(axis=1) + 1e-6).all()


def test_a_map_that_is_scaled_up_is_the_hard_assignment(data):
  vectors, _, clusters, constants, start = data
  hard = jax.tree.map(lambda value: 1e4 * value, start)
  gamma = trained_routers.by_map(hard, constants, vectors)
  np.testing.assert_allclose(gamma, np.asarray(constants['psi'])[:, clusters].T, atol=1e-5)


def test_clusters_alike_have_no_gradient(data):
  vectors, losses, _, constants, start = data
  alike = {'psi': jnp.tile(constants['psi'][:, :1], (1, K))}
  gradient = jax.grad(
    lambda p: trained_routers.log_loss(trained_routers.by_map(p, alike, vectors), losses)
  )(start)
  assert max(float(jnp.abs(value).max()) for value in gradient.values()) < 1e-6


def test_the_log_loss_of_soft_losses_worked_by_hand_leaves_out_missing_answers():
  predicted = jnp.array([[0.5, 0.25], [0.0, 0.9]])
  losses = jnp.array([[0.3, 1.0], [1.0, jnp.nan]])
  expected = (np.log(2) + np.log(4) + np.log(1e6)) / 3  # a prediction of 0 counts as 1e-6
  assert trained_routers.log_loss(predicted, losses) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('name', ['map', 'perceptron', 'factorization'])
def test_training_lowers_the_loss_and_is_of_the_seed_alone(data, name):
  vectors, losses, _, constants, start = data
  predict, parameters = {
    'map': (trained_routers.by_map, start),
    'perceptron': (trained_routers.by_perceptron, trained_routers.perceptron(D, J, hidden=8)),
    'factorization': (
      trained_routers.by_factorization, trained_routers.factorization(D, J, rank=4)
    ),
  }[name]  # fmt: skip
  fit = lambda rate: trained_routers.train(
    predict, parameters, vectors, losses, constants=constants, epochs=4, batch=16,
    learning_rate=rate,
  )  # fmt: skip
  total = lambda p: float(trained_routers.log_loss(predict(p, constants, vectors), losses))
  trained = fit(0.03)
  assert total(trained) < total(parameters)
  assert predict(trained, constants, vectors).shape == (N, J)
  jax.tree.map(np.testing.assert_array_equal, trained, fit(0.03))
  assert total(fit(1e6)) <= total(parameters)  # steps that make it worse are not taken


def test_losses_that_are_no_shares_are_refused(data):
  vectors, losses, _, constants, start = data
  for wrong in (losses * 2, losses * np.nan):
    with pytest.raises(ValueError, match='numbers from 0 to 1, at least one of them: scale them'):
      trained_routers.train(trained_routers.by_map, start, vectors, wrong, constants=constants)
