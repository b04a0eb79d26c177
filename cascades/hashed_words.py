"""Vectors of texts from their words: hashed TF-IDF, projected onto its main directions.

A text becomes counts of its words and pairs of words in columns that a hash chooses,

    tf-idf_w = (1 + log n_w) (1 + log((1 + N) / (1 + N_w))),    N_w of N texts have w

of length 1; then its inner products with the leading right singular vectors of the fitted texts
(latent semantic analysis), of length 1 again. It is computed without a model, in any language, and
a text without known words has the vector 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

COLUMNS = 1 << 13
LEAST_LENGTH = 1e-6  # of a projection, below which a text has nothing of the fitted ones


def counts(texts: Sequence[str]) -> Any:
  """Sparse matrix of the words and pairs of words of each text, hashed to COLUMNS columns."""
  from sklearn.feature_extraction.text import HashingVectorizer

  return HashingVectorizer(
    n_features=COLUMNS, ngram_range=(1, 2), norm=None, alternate_sign=False
  ).transform(texts)


def fit(table: Any, dimension: int, *, seed: int = 0) -> dict[str, np.ndarray]:
  """Weights of the columns and the projection, from the `counts` of texts.

  Args:
    table: Counts of the texts.
    dimension: Number of directions; as many as there are texts at most.
    seed: Seed of the randomized singular value decomposition.

  Raises:
    ValueError: There is no text, or less than one direction.
  """
  from sklearn.utils.extmath import randomized_svd

  if dimension < 1 or not table.shape[0]:
    raise ValueError(f'{dimension} directions of {table.shape[0]} texts; both must be 1 or more.')
  holding = np.asarray((table > 0).sum(axis=0)).ravel()
  weights = 1 + np.log((1 + table.shape[0]) / (1 + holding))
  _, _, directions = randomized_svd(
    _weighted(table, weights), min(dimension, *table.shape), n_iter=2, random_state=seed
  )
  return {
    'weights': weights.astype(np.float32),
    'directions': np.ascontiguousarray(directions, np.float32),
  }


def embed(fitted: Mapping[str, np.ndarray], table: Any) -> Float[np.ndarray, 'N D']:
  """Vectors of length 1, or 0, of texts from their `counts`."""
  weighted = _weighted(table, fitted['weights'])
  used = np.unique(weighted.indices)  # a single text has few of the columns
  projected = np.asarray(weighted[:, used] @ fitted['directions'][:, used].T, np.float32)
  length = np.linalg.norm(projected, axis=1, keepdims=True)
  return np.where(length > LEAST_LENGTH, projected / np.maximum(length, LEAST_LENGTH), 0.0)


def _weighted(table: Any, weights: Float[np.ndarray, 'C']) -> Any:
  from sklearn.preprocessing import normalize

  scaled = table.astype(float)
  scaled.data = (1 + np.log(scaled.data)) * weights[scaled.indices]
  return normalize(scaled)
