"""Order in which to ask a new model the validation prompts, and its other answers from those.

Losses of known models tell what a new one's look like. With the mean loss mu_v of prompt v over the
known models and leading directions B of their deviations from it, a new model's losses are

    l_v = mu_v + B_v . z + e_v,    z ~ N(0, I),    e_v ~ N(0, d_v)

The posterior of z after some answers predicts all others. Prompts are ordered greedily: each one
lowers the posterior variance of the mean losses of the groups by most. Answers to chosen prompts
are no sample of all, and their plain mean is biased; the mean prediction over all prompts is not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

LEAST_VARIANCE = 0.01  # of a single loss around its prediction


class LossFactors(NamedTuple):
  """Model of the losses of a new model on V validation prompts.

  Attributes:
    mean: Mean loss of the known models on each prompt.
    loadings: Loadings B of the factors.
    noise: Variance d of a loss around what the factors say.
  """

  mean: Float[np.ndarray, 'V']
  loadings: Float[np.ndarray, 'V F']
  noise: Float[np.ndarray, 'V']


def factors(losses: Float[np.ndarray, 'V J'], *, rank: int = 3) -> LossFactors:
  """Factors of the losses of known models.

  Args:
    losses: Loss of each known model on each prompt; nan where there is none.
    rank: Number of factors, less than the number of models.

  Raises:
    ValueError: There are less than two models, or nobody answered a prompt.
  """
  answered = np.isfinite(losses)
  if losses.shape[1] < 2:
    raise ValueError(
      f'{losses.shape[1]} known model; an order of prompts is learned from two or more.'
    )
  if (empty := np.flatnonzero(~answered.any(axis=1))).size:
    raise ValueError(
      f'No known model answered {len(empty)} of {len(losses)} validation prompts: leave them out.'
    )
  mean = np.where(answered, losses, 0).sum(axis=1) / answered.sum(axis=1)
  deviations = np.where(answered, losses - mean[:, None], 0.0) / np.sqrt(losses.shape[1])
  left, strength, _ = np.linalg.svd(deviations, full_matrices=False)
  rank = min(rank, losses.shape[1] - 1)
  loadings = left[:, :rank] * strength[:rank]
  explained = np.sum(loadings**2, axis=1)
  noise = np.maximum(np.sum(deviations**2, axis=1) - explained, LEAST_VARIANCE)
  return LossFactors(mean, loadings, noise)


def predict(
  factor_model: LossFactors, asked: Int[np.ndarray, 'n'], losses: Float[np.ndarray, 'n']
) -> Float[np.ndarray, 'V']:
  """Losses of a new model on all prompts: its own where asked, posterior means elsewhere.

  Args:
    factor_model: Factors of the known models.
    asked: Indices of the prompts that it was asked.
    losses: Its losses on them.
  """
  B, noise = factor_model.loadings[asked], factor_model.noise[asked]
  precision = np.eye(B.shape[1]) + (B / noise[:, None]).T @ B
  z = np.linalg.solve(precision, (B / noise[:, None]).T @ (losses - factor_model.mean[asked]))
  predicted = np.clip(factor_model.mean + factor_model.loadings @ z, 0.0, 1.0)
  predicted[asked] = losses
  return predicted


def order(
  factor_model: LossFactors, groups: Float[np.ndarray, 'K V'], count: int
) -> Int[np.ndarray, 'count']:
  """Indices of the prompts to ask first, the most informative one first.

  Each one lowers sum_k w_k Var(mean loss in group k) by most, w_k being the group's share of the
  prompts; its decrease by prompt v is that of a rank-one update,

      B_v' A^-1 M A^-1 B_v / (d_v + B_v' A^-1 B_v),    M = sum_k w_k mean_k(B) mean_k(B)'

  Args:
    factor_model: Factors of the known models.
    groups: Weight of each prompt in each group, 0 or 1.
    count: Number of prompts.

  Raises:
    ValueError: There are fewer prompts.
  """
  if not 0 < count <= len(factor_model.mean):
    raise ValueError(
      f'{count} of {len(factor_model.mean)} validation prompts cannot be asked: ask between '
      '1 and all.'
    )
  sizes = groups.sum(axis=1)
  used = groups[sizes > 0] / sizes[sizes > 0, None]
  means = used @ factor_model.loadings
  M = means.T @ (means * (sizes[sizes > 0] / sizes.sum())[:, None])
  covariance = np.eye(factor_model.loadings.shape[1])
  chosen = np.empty(count, int)
  free = np.ones(len(factor_model.mean), bool)
  for index in range(count):
    spread = factor_model.loadings @ covariance
    variance = factor_model.noise + np.sum(spread * factor_model.loadings, axis=1)
    gain = np.einsum('vf,fg,vg->v', spread, M, spread) / variance
    v = int(np.argmax(np.where(free, gain, -np.inf)))
    covariance = covariance - np.outer(spread[v], spread[v]) / variance[v]
    chosen[index], free[v] = v, False
  return chosen


def standard_error(
  factor_model: LossFactors, groups: Float[np.ndarray, 'K V'], asked: Int[np.ndarray, 'n']
) -> float:
  """Standard error of the mean losses of the groups that is expected after asking some prompts.

  The root of sum_k w_k Var(mean loss in group k) by the factors, which `order` lowers.

  Args:
    factor_model: Factors of the known models.
    groups: Weight of each prompt in each group, 0 or 1.
    asked: Indices of the prompts.
  """
  B = factor_model.loadings[asked]
  precision = np.eye(B.shape[1]) + (B / factor_model.noise[asked, None]).T @ B
  sizes = groups.sum(axis=1)
  means = groups[sizes > 0] / sizes[sizes > 0, None] @ factor_model.loadings
  variance = np.sum(means.T * np.linalg.solve(precision, means.T), axis=0)
  return float(np.sqrt(np.average(variance, weights=sizes[sizes > 0])))
