"""Passage of queries through a chain of models that each begin where a router says.

A query begins at a model s and goes on to the next one while the score of the answer reaches the
threshold of its model,

    answer = min {j >= s: r_j(x) < t_j},    nobody's if there is none,

and pays for the models from s to the one that answers, and for each decision on its way. With s = 0
it is a cascade; with thresholds that are all infinite it is a router.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def answering(
  start: Int[np.ndarray, 'N'],
  scores: Float[np.ndarray, 'K N'],
  thresholds: Float[np.ndarray, 'K *N'],
) -> Int[np.ndarray, 'N']:
  """Index of the model that answers each query, K for nobody.

  Two models, and three queries of which the last begins at the second model:

  >>> scores = np.array([[0.1, 0.7, 0.9], [0.0, 0.8, 0.2]])
  >>> answering(np.array([0, 0, 1]), scores, np.array([0.5, 0.6]))
  array([0, 2, 1])

  Args:
    start: Model that each query begins at; K leaves it to nobody.
    scores: Deferral score of each answer; the highest defers first.
    thresholds: Threshold of each model, or of each model and query; inf never defers.
  """
  answers = start.copy()
  for level, (score, threshold) in enumerate(zip(scores, thresholds, strict=True)):
    answers = np.where((answers == level) & (score >= threshold), level + 1, answers)
  return answers


def paid(
  start: Int[np.ndarray, 'N'],
  answers: Int[np.ndarray, 'N'],
  cost: Float[np.ndarray, 'K N'],
  *,
  deciding: Float[np.ndarray, 'K'] | float = 0.0,
  is_before: Bool[np.ndarray, 'K'] | bool = False,
) -> Float[np.ndarray, 'N']:
  """Cost of each query.

  Args:
    start: Model that each query begins at.
    answers: Model that answers it, as `answering` gives it.
    cost: Cost of each model's answer.
    deciding: Cost of each model's decision.
    is_before: True for models whose decision comes before their answer, which is then not paid
      where it defers.
  """
  models = np.arange(len(cost))[:, None]
  reached = (models >= start) & (models <= answers)
  asked = reached & ((models == answers) | ~np.broadcast_to(is_before, len(cost))[:, None])
  decisions = np.broadcast_to(deciding, len(cost))[:, None]
  return np.asarray((asked * cost + reached * decisions).sum(axis=0))
