"""Routers that are trained by gradients: LearnedMap, a perceptron, and a matrix factorization.

Each is a function from parameters, constants and embeddings to predicted losses gamma(x, h). All
are trained on the same objective, the log loss of the losses e in [0, 1] of known models,

    L = - mean over answers of  e log gamma + (1 - e) log(1 - gamma)

Only LearnedMap can choose models that it was not trained on: its constant is Psi, which a new model
brings along. Jitkrittum et al. 2025, https://arxiv.org/abs/2502.08773.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from cascades import universal_routing

Parameters: TypeAlias = Mapping[str, Array]
Predict: TypeAlias = Callable[
  [Parameters, Parameters, Float[Array, 'N D']], Float[Array, 'N J']
]  # parameters, constants, embeddings -> predicted losses

Carried: TypeAlias = tuple[Parameters, optax.OptState]

LEAST = 1e-6  # probability of a right or a wrong answer


def learned_map(
  vectors: Float[np.ndarray, 'N D'], centroids: Float[np.ndarray, 'K D'],
  clusters: Int[np.ndarray, 'N'],
) -> Parameters:  # fmt: skip
  """Parameters of a soft map that starts at the clusters of K-means.

      theta_k = 2 mu_k / t,    bias_k = -|mu_k|^2 / t,    t: mean squared distance to the centroid

  Args:
    vectors: Embeddings of the training prompts.
    centroids: Centroids mu of their clusters.
    clusters: Cluster of each.
  """
  spread = float(np.mean(np.sum((vectors - centroids[clusters]) ** 2, axis=1)))
  scale = spread if spread > 0 else 1.0
  return {
    'theta': jnp.asarray(2 * centroids / scale, jnp.float32),
    'bias': jnp.asarray(-np.sum(centroids**2, axis=1) / scale, jnp.float32),
  }


def soft_memberships(parameters: Parameters, vectors: Float[Array, 'N D']) -> Float[Array, 'N K']:
  """Phi of LearnedMap: softmax of theta_k . phi(x) + bias_k over the clusters."""
  return jax.nn.softmax(vectors @ parameters['theta'].T + parameters['bias'])


def by_map(
  parameters: Parameters, constants: Parameters, vectors: Float[Array, 'N D']
) -> Float[Array, 'N J']:
  """Predicted losses of LearnedMap, Phi(x) . Psi(h); `constants` holds 'psi' [J, K]."""
  return soft_memberships(parameters, vectors) @ constants['psi'].T


def fit_map(
  vectors: Float[np.ndarray, 'N D'], centroids: Float[np.ndarray, 'K D'],
  losses: Float[np.ndarray, 'N J'], psi: Float[np.ndarray, 'J K'], *, seed: int = 0,
) -> Parameters:  # fmt: skip
  """Parameters of LearnedMap, trained from its start at the clusters of K-means.

  Args:
    vectors: Embeddings of the training prompts.
    centroids: Centroids of the clusters.
    losses: Losses of known models on the training prompts, in [0, 1]; nan without an answer.
    psi: Mean losses of these models in each cluster, of other prompts.
    seed: Seed of the order of the prompts.

  Raises:
    ValueError: A loss is outside [0, 1], or there is no answer.
  """
  start = learned_map(vectors, centroids, universal_routing.assign(vectors, centroids))
  constants = {'psi': jnp.asarray(psi, jnp.float32)}
  return train(by_map, start, vectors, losses, constants=constants, seed=seed)


def perceptron(dimension: int, models: int, *, hidden: int = 128, seed: int = 0) -> Parameters:
  """Parameters of a perceptron of one hidden layer with an output for each model."""
  first, second = jax.random.split(jax.random.key(seed))
  return {
    'hidden': jax.random.normal(first, (dimension, hidden)) * np.sqrt(2 / dimension),
    'hidden_bias': jnp.zeros(hidden),
    'output': jax.random.normal(second, (hidden, models)) / np.sqrt(hidden),
    'output_bias': jnp.zeros(models),
  }


def by_perceptron(
  parameters: Parameters, constants: Parameters, vectors: Float[Array, 'N D']
) -> Float[Array, 'N J']:
  """Predicted losses of the perceptron, sigmoid(ReLU(phi W + b) V + c)."""
  del constants
  hidden = jax.nn.relu(vectors @ parameters['hidden'] + parameters['hidden_bias'])
  return jax.nn.sigmoid(hidden @ parameters['output'] + parameters['output_bias'])


def factorization(dimension: int, models: int, *, rank: int = 32, seed: int = 0) -> Parameters:
  """Parameters of a matrix factorization with a vector for each model."""
  first, second = jax.random.split(jax.random.key(seed))
  return {
    'project': jax.random.normal(first, (dimension, rank)) / np.sqrt(dimension),
    'bias': jnp.ones(rank),
    'weight': jnp.ones(rank) / np.sqrt(rank),
    'models': jax.random.normal(second, (models, rank)) / np.sqrt(rank),
  }


def by_factorization(
  parameters: Parameters, constants: Parameters, vectors: Float[Array, 'N D']
) -> Float[Array, 'N J']:
  """Predicted losses of the factorization, sigmoid(w . (v_h * (A phi + b))).

  Ong et al. 2024 (RouteLLM), https://arxiv.org/abs/2406.18665.
  """
  del constants
  projected = vectors @ parameters['project'] + parameters['bias']
  return jax.nn.sigmoid(projected @ (parameters['models'] * parameters['weight']).T)


def log_loss(predicted: Float[Array, 'N J'], losses: Float[Array, 'N J']) -> Float[Array, '']:
  """Mean of -(e log gamma + (1 - e) log(1 - gamma)) over answers; those that are nan are left out.

  Args:
    predicted: Predicted losses gamma, clipped to [1e-6, 1 - 1e-6].
    losses: Losses e in [0, 1].
  """
  answered = jnp.isfinite(losses)
  e = jnp.where(answered, losses, 0.0)
  gamma = jnp.clip(predicted, LEAST, 1 - LEAST)
  each = -(e * jnp.log(gamma) + (1 - e) * jnp.log1p(-gamma))
  return jnp.sum(each * answered) / jnp.maximum(jnp.sum(answered), 1)


def train(
  predict: Predict, parameters: Parameters, vectors: Float[np.ndarray, 'N D'],
  losses: Float[np.ndarray, 'N J'], *, constants: Parameters | None = None, epochs: int = 20,
  batch: int = 256, learning_rate: float = 1e-2, seed: int = 0,
) -> Parameters:  # fmt: skip
  """Parameters of the least log loss on the training prompts among those at the end of each epoch.

  The start is one of them, so that training never ends above it.

  Args:
    predict: Predicted losses from parameters, constants and embeddings.
    parameters: Parameters to start from.
    vectors: Embeddings of the training prompts.
    losses: Losses of known models on them, in [0, 1]; nan where there is no answer.
    constants: Arrays that are not trained.
    epochs: Passes over the prompts.
    batch: Prompts of a step of Adam; all, if there are fewer.
    learning_rate: Step size of Adam.
    seed: Seed of the order of the prompts.

  Raises:
    ValueError: A loss is outside [0, 1], or there is no answer.
  """
  answered = losses[np.isfinite(losses)]
  if not answered.size or answered.min() < 0 or answered.max() > 1:
    raise ValueError('Losses must be numbers from 0 to 1, at least one of them: scale them.')
  constants = {} if constants is None else constants
  data = jnp.asarray(vectors, jnp.float32), jnp.asarray(losses, jnp.float32)
  batch = min(batch, len(vectors))
  steps = len(vectors) // batch
  generator = np.random.default_rng(seed)
  total = functools.partial(_total, predict)
  carried = parameters, optax.adam(learning_rate).init(parameters)
  best, least = parameters, float(total(parameters, constants, *data))
  for _ in range(epochs):
    order = jnp.asarray(generator.permutation(len(vectors))[: steps * batch].reshape(steps, batch))
    carried = _epoch(predict, learning_rate, carried, constants, *data, order)
    reached = float(total(carried[0], constants, *data))
    if reached < least:
      best, least = carried[0], reached
  return best


@functools.partial(jax.jit, static_argnums=0)
def _total(
  predict: Predict, parameters: Parameters, constants: Parameters,
  vectors: Float[Array, 'N D'], losses: Float[Array, 'N J'],
) -> Float[Array, '']:  # fmt: skip
  return log_loss(predict(parameters, constants, vectors), losses)


@functools.partial(jax.jit, static_argnums=0)
def _epoch(
  predict: Predict, learning_rate: float, carried: Carried, constants: Parameters,
  vectors: Float[Array, 'N D'], losses: Float[Array, 'N J'], order: Int[Array, 'S B'],
) -> Carried:  # fmt: skip
  """Parameters and state after one step for each row of `order`."""
  optimizer = optax.adam(learning_rate)

  def step(carried: Carried, rows: Int[Array, 'B']) -> tuple[Carried, None]:
    parameters, state = carried
    gradient = jax.grad(_total, argnums=1)(
      predict, parameters, constants, vectors[rows], losses[rows]
    )
    updates, state = optimizer.update(gradient, state, parameters)
    return (optax.apply_updates(parameters, updates), state), None

  return jax.lax.scan(step, carried, order)[0]
