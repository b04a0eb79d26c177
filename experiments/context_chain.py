"""Context-conditioned Markov chains: a base chain whose row the prompt masks and weights.

The chain of one attention layer (`experiments/attention_layer.py`), and its estimation from
prompts and sampled next tokens.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def base_chain(
  W: Float[np.ndarray, 'd d'], E: Float[np.ndarray, 'K d']
) -> Float[np.ndarray, 'K K']:
  """Transition matrix of a key-query matrix: P_zk = exp(e_k^T W e_z) / sum_j exp(e_j^T W e_z).

  Row z is the next-token distribution of a prompt that holds every token once and ends with z.
  """
  logits = (E @ W @ E.T).T
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def conditioned(
  P: Float[np.ndarray, 'K K'], last: Int[np.ndarray, 'n'], counts: Float[np.ndarray, 'n K']
) -> Float[np.ndarray, 'n K']:
  """Next-token distribution of prompts: P_zk m_k / sum_j P_zj m_j, for m_k tokens k in the prompt.

  Tokens that are not in the prompt are masked; neither their order nor the prompt's length matters.
  """
  weights = P[last] * counts
  return weights / weights.sum(axis=1, keepdims=True)


def counted(
  prompts: Int[np.ndarray, 'n T'], K: int, scale: Float[np.ndarray, 'n T'] | None = None
) -> Float[np.ndarray, 'n K']:
  """Tokens of each prompt, m_k = sum over t with x_t = k of the scale of position t, by default 1.

  With keys that add a vector p_t per position, and values that do not, the scale of position t is
  exp(p_t^T W q), for the query q of the last token and its position.
  """
  weights = np.ones(prompts.shape) if scale is None else scale
  return np.einsum('nt,ntk->nk', weights, prompts[..., None] == np.arange(K))


def estimate(
  counts: Float[np.ndarray, 'n K'], chosen: Int[np.ndarray, 'n'], *, steps: int = 5000
) -> Float[np.ndarray, 'K']:
  """Maximum-likelihood row of the base chain, from prompts with one last token and their outputs.

  Luce's model of choice; Hunter's MM updates for it, from the uniform row:

      p_k <- n_k / sum_i m_ik / (sum_j m_ij p_j)

  with n_k the outputs k. Where the data do not identify the row, it stays at its start there.
  """
  K = counts.shape[1]
  patterns, repeats = np.unique(counts, axis=0, return_counts=True)
  outputs = np.bincount(chosen, minlength=K).astype(float)
  offered = counts.any(axis=0)
  p = np.full(K, 1 / K)
  for _ in range(steps):
    demand = (repeats / (patterns @ p)) @ patterns
    update = np.divide(outputs, demand, out=p.copy(), where=offered)
    update[offered] *= p[offered].sum() / update[offered].sum()  # the likelihood leaves it free
    change, p = np.abs(update - p).max(), update
    if change < 1e-13:
      break
  return p
