"""One attention layer is a context-conditioned Markov chain, exactly."""

import itertools

import numpy as np
import pytest

from experiments import attention_layer, context_chain

K, T = 4, 5
PROMPTS = [
  np.array(list(itertools.product(range(K), repeat=length)), int) for length in range(1, T + 1)
]


def layer(E, W, prompts, positions=None):
  """Slow oracle: keys with a vector per position, the query with its own, values without."""
  C = attention_layer.head(E)
  outputs = []
  for prompt in prompts:
    X = E[prompt]
    keys = X if positions is None else X + positions[: len(prompt)]
    logits = keys @ W @ keys[-1]
    weights = np.exp(logits - logits.max())
    outputs.append(C @ X.T @ (weights / weights.sum()))
  return np.array(outputs)


@pytest.fixture(scope='module', params=['orthonormal', 'gaussian'])
def weights(request):
  E = attention_layer.orthonormal(K, 0)
  if request.param == 'gaussian':
    E = attention_layer.gaussian(K, 7, 0)
  d = E.shape[1]
  return E, np.random.default_rng(1).normal(size=(d, d))


@pytest.mark.parametrize('prompts', PROMPTS, ids=len)
def test_every_prompt_gets_the_distribution_of_the_chain(weights, prompts):
  E, W = weights
  P = context_chain.base_chain(W, E)
  chain = context_chain.conditioned(P, prompts[:, -1], context_chain.counted(prompts, K))
  np.testing.assert_allclose(layer(E, W, prompts), chain, atol=1e-12, rtol=0)


def test_the_layer_in_jax_is_the_same_layer(weights):
  import jax

  E, W = weights
  with jax.enable_x64(True):
    mass = np.asarray(attention_layer.mass(W, E, PROMPTS[-1], K))
  np.testing.assert_allclose(mass, layer(E, W, PROMPTS[-1]), atol=1e-12, rtol=0)


@pytest.mark.parametrize('prompts', PROMPTS, ids=len)
def test_positions_scale_the_transitions(weights, prompts):
  E, W = weights
  positions = np.random.default_rng(2).normal(size=(T, E.shape[1]))
  length = prompts.shape[1]
  queries = E[prompts[:, -1]] + positions[length - 1]
  scale = np.exp(np.einsum('td,de,ne->nt', positions[:length], W, queries))
  logits = queries @ W.T @ E.T  # row of the base chain, which the query's position shifts too
  rows = np.exp(logits)
  counts = context_chain.counted(prompts, K, scale)
  chain = context_chain.conditioned(rows, np.arange(len(prompts)), counts)
  np.testing.assert_allclose(layer(E, W, prompts, positions), chain, atol=1e-12, rtol=0)
  if length > 2:  # and without their scale, the chain is another
    plain = context_chain.conditioned(
      rows, np.arange(len(prompts)), context_chain.counted(prompts, K)
    )
    assert np.abs(plain - chain).max() > 0.1


def test_the_prompt_masks_and_weights_a_row_by_hand():
  P = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
  prompts = np.array([[1, 1, 0]])
  chain = context_chain.conditioned(P, prompts[:, -1], context_chain.counted(prompts, 3))
  np.testing.assert_allclose(chain, [[0.5 / 1.1, 0.6 / 1.1, 0.0]])


def test_a_base_row_is_the_answer_to_a_prompt_with_every_token(weights):
  E, W = weights
  prompts = np.array([[k for k in range(K) if k != z] + [z] for z in range(K)])
  np.testing.assert_allclose(layer(E, W, prompts), context_chain.base_chain(W, E), atol=1e-12)


def test_the_estimate_maximizes_the_likelihood():
  from scipy import optimize

  random = np.random.default_rng(3)
  counts = random.integers(0, 3, size=(200, 4)).astype(float) + np.eye(4)[0]
  weights = np.array([0.1, 0.2, 0.3, 0.4]) * counts
  p = weights / weights.sum(axis=1, keepdims=True)
  chosen = np.array([random.choice(4, p=row) for row in p])

  def loss(theta):
    logits = np.log(counts, out=np.full(counts.shape, -np.inf), where=counts > 0) + theta
    return np.logaddexp.reduce(logits, axis=1).sum() - logits[np.arange(200), chosen].sum()

  theta = optimize.minimize(loss, np.zeros(4), tol=1e-10).x
  softmax = np.exp(theta) / np.exp(theta).sum()
  np.testing.assert_allclose(context_chain.estimate(counts, chosen), softmax, atol=1e-5)


def test_two_tokens_are_estimated_by_their_frequencies():
  counts = np.ones((10, 2))
  estimate = context_chain.estimate(counts, np.array([0] * 7 + [1] * 3))
  np.testing.assert_allclose(estimate, [0.7, 0.3])


def test_a_token_that_no_prompt_offers_stays_where_it_started():
  counts = np.array([[1.0, 1.0, 0.0]] * 4)
  estimate = context_chain.estimate(counts, np.array([0, 0, 0, 1]))
  np.testing.assert_allclose(estimate, [0.5, 1 / 6, 1 / 3])
