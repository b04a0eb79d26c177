"""What answering costs, in floating-point operations.

A forward pass costs about two operations for each parameter and token (a multiplication and an
addition); attention over long contexts comes on top and is not counted. Wang et al. 2024,
https://arxiv.org/abs/2406.00060, equation (6).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def flops_per_token(parameters: int) -> float:
  """2 P."""
  return 2.0 * parameters


def cascade(
  deferral_rate: Float[np.ndarray, '*M'], *, small: float, large: float
) -> Float[np.ndarray, '*M']:
  """C_S + d C_L: the small model always runs, so deferring everything costs C_S + C_L.

  FLOPs per token if `small` and `large` are; the curve is then the deferral rate relabelled.
  """
  return small + np.asarray(deferral_rate) * large


def deferral_rate(
  cost: Float[np.ndarray, '*M'], *, small: float, large: float
) -> Float[np.ndarray, '*M']:
  """The rate at which a cascade costs so much, (C - C_S) / C_L; not cut to [0, 1]."""
  return (np.asarray(cost) - small) / large


def query(
  prompt_tokens: Int[np.ndarray, 'N'],
  generated_tokens: Int[np.ndarray, 'N'],
  *,
  flops_per_token: float,
) -> Float[np.ndarray, 'N']:
  """FLOPs of each query: every token read and every token written passes the model once.

  Another axis than `cascade`: here long answers cost more. The curve's cost per query is again a
  curve, of the statistics (C_S(x), 1) for the small model and (C_S(x) + C_L(x), 1) for the large.
  """
  return flops_per_token * (np.asarray(prompt_tokens) + np.asarray(generated_tokens))
