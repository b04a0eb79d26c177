"""Fits of routers: clusters of the training prompts, and what the answers of the models add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cascades import hashed_words, prompt_drift, universal_routing
from cascades.evaluation.routers import (
  CLUSTERS,
  LEARNED,
  NESTED,
  SPARSE,
  ClusterRouter,
  Vectors,
)
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.universal_routing import one_hot

DIMENSION = 128  # of vectors of words


class Embedded(NamedTuple):
  """Vectors of the prompts that a router is fitted on.

  Attributes:
    train: Vectors of the training prompts.
    validation: Vectors of the validation prompts.
    arrays: Arrays of a router of words; empty for an encoder.
    encoder: Name of the encoder; empty for words.
  """

  train: Vectors
  validation: Vectors
  arrays: Mapping[str, np.ndarray]
  encoder: str = ''


def by_words(train: Sequence[str], validation: Sequence[str], *, seed: int = 0) -> Embedded:
  """Vectors of hashed words, fitted on the training prompts."""
  table = hashed_words.counts(train)
  words = hashed_words.fit(table, DIMENSION, seed=seed)
  own = hashed_words.embed(words, hashed_words.counts(validation))
  likeness = prompt_drift.fit_words(train)
  keys = prompt_drift.words(likeness, validation)
  likeness |= {f'drift_{name}': getattr(keys, name) for name in SPARSE}
  return Embedded(hashed_words.embed(words, table), own, {**words, **likeness})


def fit(
  matrix: OutcomeMatrix, embedded: Embedded, *, clusters: int, strength: float,
  method: str = CLUSTERS, seed: int = 0,
) -> ClusterRouter:  # fmt: skip
  """Router of the models of a matrix.

  Args:
    matrix: Answers to the validation prompts.
    embedded: Vectors of these and of the training prompts, whose clusters are found without
      answers.
    clusters: Number of clusters.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    method: One of METHODS.
    seed: Seed of the clusters, and of the training.

  Raises:
    ValueError: A learned map has too few answers to learn from.
  """
  centroids = universal_routing.cluster(embedded.train, clusters, seed=seed).astype(np.float32)
  arrays = {
    **embedded.arrays,
    'centroids': centroids,
    'groups': universal_routing.assign(embedded.validation, centroids),
    **({'vectors': embedded.validation.astype(np.float32)} if embedded.encoder else {}),
    'characters': np.array([len(prompt) for prompt in matrix.prompts]),
    'losses': np.empty((len(matrix.ids), 0), np.float32),
  }
  if method == LEARNED:
    arrays |= _learn(matrix.losses, embedded.validation, arrays, strength=strength, seed=seed)
  groups = len(centroids)
  if method == NESTED:
    coarse = universal_routing.coarse_clusters(embedded.train, groups, seed=seed)
    arrays['coarse_centroids'] = coarse.astype(np.float32)
    arrays['coarse_groups'] = universal_routing.assign(
      embedded.validation, arrays['coarse_centroids']
    )
    groups *= len(coarse)
  pool = universal_routing.empty_pool(groups)
  return ClusterRouter(pool, matrix.ids, strength, arrays, embedded.encoder).add(matrix)


def _learn(
  losses: Float[np.ndarray, 'V J'], vectors: Vectors, arrays: Mapping[str, np.ndarray],
  *, strength: float, seed: int,
) -> dict[str, np.ndarray]:  # fmt: skip
  """Arrays of a soft map that learns from one half of the prompts; the other describes the models.

  A model's own answers would otherwise tell the map how to memorize them.
  """
  from cascades import trained_routers  # routers that are not trained start without JAX

  centroids = arrays['centroids']
  order = np.random.default_rng(seed).permutation(len(losses))
  describing, learning = order[: len(order) // 2], order[len(order) // 2 :]
  models = np.isfinite(losses[describing]).any(axis=0) & np.isfinite(losses[learning]).any(axis=0)
  if not models.any():
    raise ValueError(
      f'A learned map learns from one half of the {len(losses)} validation prompts, and the other '
      'describes the models: no model has answers in both. Give more, or take another METHOD.'
    )
  groups = one_hot(arrays['groups'][describing], len(centroids)).T
  psi = universal_routing.mean_losses(groups, losses[describing][:, models], strength=strength).T
  learned = trained_routers.fit_map(
    vectors[learning], centroids, losses[learning][:, models], psi, seed=seed
  )
  theta, bias = (np.asarray(learned[name]) for name in ('theta', 'bias'))
  memberships = universal_routing.soft_memberships(vectors, theta, bias).astype(np.float32)
  return {'theta': theta, 'bias': bias, 'memberships': memberships}
