"""Cost of answers in floating-point operations.

A forward pass costs about two operations for each parameter and token (a multiplication and an
addition); attention over long contexts comes on top and is not counted. Wang et al. 2024,
https://arxiv.org/abs/2406.00060, equation (6).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def flops_per_token(parameters: int) -> float:
  """FLOPs of a forward pass per token, 2 P."""
  return 2.0 * parameters


def cascade(
  deferral_rate: Float[np.ndarray, '*M'], *, small: float, large: float
) -> Float[np.ndarray, '*M']:
  """Cost of a cascade at deferral rate d: C_S + d C_L.

  The small model always runs, so deferring everything costs C_S + C_L.

  Args:
    deferral_rate: Fraction d of the examples that the large model answers.
    small: Cost C_S of the small model, for example in FLOPs per token.
    large: Cost C_L of the large model, in the same unit.

  Returns:
    Costs in the unit of the arguments.
  """
  return small + np.asarray(deferral_rate) * large


def deferral_rate(
  cost: Float[np.ndarray, '*M'], *, small: float, large: float
) -> Float[np.ndarray, '*M']:
  """Deferral rate of a cascade of cost C, (C - C_S) / C_L, not clipped to [0, 1]: see `cascade`."""
  return (np.asarray(cost) - small) / large


def query(
  prompt_tokens: Int[np.ndarray, 'N'],
  generated_tokens: Int[np.ndarray, 'N'],
  *,
  flops_per_token: float,
) -> Float[np.ndarray, 'N']:
  """FLOPs of each query: each token read and each token generated passes the model once.

  Unlike `cascade`, it charges more for long answers. Its mean over a deferral curve is a curve of
  the statistics (C_S(x), 1) for the small model and (C_S(x) + C_L(x), 1) for the large one.

  Args:
    prompt_tokens: Number of tokens of each prompt.
    generated_tokens: Number of tokens of each answer.
    flops_per_token: FLOPs of a forward pass per token.

  Returns:
    FLOPs of each query.
  """
  return flops_per_token * (np.asarray(prompt_tokens) + np.asarray(generated_tokens))
