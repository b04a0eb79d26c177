"""Token-priority graphs of prompts and next tokens, and the max-margin key-query matrix they set.

For each last token z, an edge y -> x says that y was the next token of a prompt that ends with z
and holds x. Tokens of one strongly connected component (SCC) have no order; i has priority over j
if a path leads from i to j and none back.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import linalg, optimize
from scipy.sparse import csgraph


def edges(
  prompts: Int[np.ndarray, 'n T'], labels: Int[np.ndarray, 'n'], K: int
) -> Bool[np.ndarray, 'K K K']:
  """Edges [z, y, x] of the graph of each last token z, without those from a token to itself."""
  graph = np.zeros((K, K, K), bool)
  graph[prompts[:, -1:], labels[:, None], prompts] = True
  graph[:, np.arange(K), np.arange(K)] = False
  return graph


def components(graph: Bool[np.ndarray, 'K K K']) -> Int[np.ndarray, 'K K']:
  """Number of the SCC of each token [z, k] in the graph of each last token."""
  return np.stack([csgraph.connected_components(g, connection='strong')[1] for g in graph])


def priority(graph: Bool[np.ndarray, 'K K K']) -> Bool[np.ndarray, 'K K K']:
  """True [z, i, j] where i has priority over j: a path from i to j, and none back."""
  reach = graph.copy()
  for through in range(graph.shape[-1]):
    reach |= reach[:, :, through, None] & reach[:, through, None, :]
  return reach & ~reach.transpose(0, 2, 1)


def constraints(
  graph: Bool[np.ndarray, 'K K K'], E: Float[np.ndarray, 'K d']
) -> tuple[Float[np.ndarray, 'm dd'], Float[np.ndarray, 'l dd']]:
  """Flattened matrices (e_i - e_j) e_z^T of edges i -> j between SCCs, and of those within one."""
  scc = components(graph)
  z, i, j = np.nonzero(graph)
  rows = np.einsum('md,me->mde', E[i] - E[j], E[z]).reshape(len(z), E.shape[1] ** 2)
  within = scc[z, i] == scc[z, j]
  return rows[~within], rows[within]


def least_norm(
  margins: Float[np.ndarray, 'm D'], equalities: Float[np.ndarray, 'l D']
) -> Float[np.ndarray, 'D']:
  """Max-margin direction: argmin |w|  subject to  margins w >= 1 and equalities w = 0.

  A least-distance program: in an orthonormal basis of what the equalities leave, non-negative least
  squares of [G^T; 1^T] u = [0; 1] has the residual r, and w = -r[:-1] / r[-1] (Lawson and Hanson
  1974, chapter 23).

  Raises:
    ValueError: if no w satisfies the constraints.
  """
  D = margins.shape[1]
  basis = linalg.null_space(equalities) if len(equalities) else np.eye(D)
  G = margins @ basis
  target = np.append(np.zeros(basis.shape[1]), 1.0)
  A = np.vstack([G.T, np.ones(len(G))])
  residual = A @ optimize.nnls(A, target)[0] - target
  if np.linalg.norm(residual) < 1e-9:
    raise ValueError(
      f'no direction separates {len(margins)} pairs of tokens: linearly independent embeddings '
      'always do; give at least as many dimensions as tokens.'
    )
  return basis @ (-residual[:-1] / residual[-1])


def svm(graph: Bool[np.ndarray, 'K K K'], E: Float[np.ndarray, 'K d']) -> Float[np.ndarray, 'd d']:
  """Key-query matrix of least Frobenius norm with e_i^T W e_z - e_j^T W e_z >= 1 on edges i -> j
  between SCCs, and 0 on edges within one."""
  return least_norm(*constraints(graph, E)).reshape(E.shape[1], E.shape[1])


def cyclic_basis(
  graph: Bool[np.ndarray, 'K K K'], E: Float[np.ndarray, 'K d']
) -> Float[np.ndarray, 'D r']:
  """Orthonormal basis of the span of (e_i - e_j) e_z^T over tokens of one SCC; r = 0 if acyclic."""
  _, within = constraints(graph, E)
  return linalg.orth(within.T) if len(within) else np.zeros((E.shape[1] ** 2, 0))


def finite_component(
  prompts: Int[np.ndarray, 'n T'], labels: Int[np.ndarray, 'n'], E: Float[np.ndarray, 'K d']
) -> Float[np.ndarray, 'd d']:
  """Minimizer, in the cyclic subspace, of the loss over the tokens of each label's SCC alone.

  Newton's method: with all other tokens gone from the prompts, the minimum is attained, since
  within an SCC every token is somewhere chosen over its neighbors.
  """
  K, d = E.shape
  graph = edges(prompts, labels, K)
  basis, scc = cyclic_basis(graph, E), components(graph)
  z = prompts[:, -1]
  inside = scc[z[:, None], prompts] == scc[z, labels][:, None]
  features = np.einsum('ntd,ne->ntde', E[prompts], E[z]).reshape(*prompts.shape, -1) @ basis
  chosen = prompts == labels[:, None]
  theta = np.zeros(basis.shape[1])
  for _ in range(100):
    values = features @ theta
    everything, right = _softmax(values, inside), _softmax(values, chosen)
    gradient = np.einsum('nt,ntr->r', everything - right, features)
    if np.linalg.norm(gradient) < 1e-12 * len(prompts):
      break
    mean = np.einsum('nt,ntr->nr', everything, features)  # labels' features are all equal
    hessian = np.einsum('nt,ntr,nts->rs', everything, features, features) - mean.T @ mean
    theta = theta - np.linalg.solve(hessian, gradient)
  return (basis @ theta).reshape(d, d)


def _softmax(
  values: Float[np.ndarray, 'n T'], mask: Bool[np.ndarray, 'n T']
) -> Float[np.ndarray, 'n T']:
  weights = np.where(mask, np.exp(values - values.max(axis=1, keepdims=True)), 0.0)
  return weights / weights.sum(axis=1, keepdims=True)
