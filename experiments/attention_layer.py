"""One attention layer over tokens: embeddings E [K, d], a key-query matrix W [d, d], a fixed head.

A prompt x_1 .. x_T attends from its last token z = x_T, and the head C with C E^T = I reads the
output as probabilities of the K tokens, so that a token gets the attention mass on its positions:

    C X^T softmax(X W e_z) = mass,    mass_k = sum over t with x_t = k of s_t

The papers' exact settings were not at hand: this one is ours, from the two abstracts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

MASKED = -1e30  # score of no position; finite, for gradients


def orthonormal(K: int, seed: int) -> Float[np.ndarray, 'K K']:
  """Embeddings of a random rotation: no two tokens share a direction."""
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(K, K)))[0]


def gaussian(K: int, d: int, seed: int) -> Float[np.ndarray, 'K d']:
  """Random embeddings of length 1; linearly independent, not orthogonal, where d >= K."""
  E = np.random.default_rng(seed).normal(size=(K, d))
  return E / np.linalg.norm(E, axis=1, keepdims=True)


def head(E: Float[np.ndarray, 'K d']) -> Float[np.ndarray, 'K d']:
  """C with C E^T = I, for linearly independent embeddings."""
  return np.linalg.pinv(E).T


def scores(W: Float[Array, 'd d'], E: Float[Array, 'K d']) -> Float[Array, 'K K']:
  """Attention score of token k (row) from the last token z (column): e_k^T W e_z."""
  return E @ W @ E.T


def attention(
  W: Float[Array, 'd d'], E: Float[Array, 'K d'], prompts: Int[Array, 'n T']
) -> Float[Array, 'n T']:
  """Attention of the last token to each position."""
  return jax.nn.softmax(scores(W, E)[prompts, prompts[:, -1:]], axis=-1)


def mass(
  W: Float[Array, 'd d'], E: Float[Array, 'K d'], prompts: Int[Array, 'n T'], K: int
) -> Float[Array, 'n K']:
  """Probability of each next token: the attention mass on its positions."""
  positions = jax.nn.one_hot(prompts, K, dtype=W.dtype)
  return jnp.einsum('nt,ntk->nk', attention(W, E, prompts), positions)


def loss(
  W: Float[Array, 'd d'],
  E: Float[Array, 'K d'],
  prompts: Int[Array, 'n T'],
  labels: Int[Array, 'n'],
) -> Float[Array, '']:
  """Mean of -log mass_y, a logistic loss of the scores: convex in W.

  As log(1 + the other tokens' weight / the label's), whose gradient stays exact where the label has
  almost all. Labels stand in their prompts.
  """
  values = scores(W, E)[prompts, prompts[:, -1:]]
  chosen = prompts == labels[:, None]
  right = jax.nn.logsumexp(jnp.where(chosen, values, MASKED), axis=-1)
  other = jax.nn.logsumexp(jnp.where(chosen, MASKED, values), axis=-1)
  return jnp.mean(jax.nn.softplus(other - right))
