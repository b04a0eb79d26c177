"""Likeness of prompts to those that a router was validated on.

A router knows the losses of models on its validation prompts only. With s(x) the highest cosine
similarity of a prompt to any of V validation prompts, and s_v that of prompt v to any other one,

    drift(x) = (|{v: s_v > s(x)}| + |{v: s_v = s(x)}| / 2) / V

is 1 for a prompt that is farther from the validation prompts than each of them is from the others,
and has the mean 1/2 over prompts that are drawn like them.

Vectors are those of an encoder, or TF-IDF of words without any projection: directions that were
fitted on the validation prompts would hold more of them than of others like them. Words are hashed
to so many columns that those of another language seldom meet, and words that the training prompts
lack have the highest weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

COLUMNS = 1 << 20
MOST_CELLS = 1 << 24  # similarities that are computed at a time


class DriftTest(NamedTuple):
  """Mean drift of prompts, and the p-value of a rank test that they are as near as the others.

  Attributes:
    mean: Mean drift; 1/2 is expected without any.
    p: One-sided p-value of Mann and Whitney's test of the similarities.
  """

  mean: float
  p: float


def fit_words(texts: Sequence[str]) -> dict[str, np.ndarray]:
  """Columns of the words of texts, sorted, and their weights 1 + log((1 + N) / (1 + N_w))."""
  rows = _counts(texts).getnnz(axis=0)
  columns = np.flatnonzero(rows)
  weights = 1 + np.log((1 + len(texts)) / (1 + rows[columns]))
  rarest = 1 + np.log(1 + len(texts))
  return {
    'drift_columns': columns.astype(np.int32),
    'drift_weights': np.append(weights, rarest).astype(np.float32),
  }


def words(fitted: Mapping[str, np.ndarray], texts: Sequence[str]) -> Any:
  """Sparse vectors of texts, of length 1, or 0 without a word.

  Args:
    fitted: Result of `fit_words`.
    texts: The texts.
  """
  from sklearn.preprocessing import normalize

  table, columns = _counts(texts).astype(float), fitted['drift_columns']
  at = np.minimum(np.searchsorted(columns, table.indices), len(columns) - 1)
  at = np.where(columns[at] == table.indices, at, len(columns))
  table.data = (1 + np.log(table.data)) * fitted['drift_weights'][at]
  return normalize(table)


def _counts(texts: Sequence[str]) -> Any:
  from sklearn.feature_extraction.text import HashingVectorizer

  return HashingVectorizer(n_features=COLUMNS, norm=None, alternate_sign=False).transform(texts)


def nearest(vectors: Any, keys: Any, *, others: bool = False) -> Float[np.ndarray, 'N']:
  """Highest cosine similarity of each vector to a key.

  Args:
    vectors: Dense or sparse vectors of prompts, [N, D].
    keys: Those of the validation prompts, [V, D].
    others: True if the vectors are the keys, to leave out each one's own.
  """
  from sklearn.metrics.pairwise import cosine_similarity

  step = max(1, MOST_CELLS // keys.shape[0])
  highest = [np.empty(0)]
  for start in range(0, vectors.shape[0], step):
    block = cosine_similarity(vectors[start : start + step], keys)
    if others:
      block[np.arange(len(block)), start + np.arange(len(block))] = -1
    highest.append(block.max(axis=1))
  return np.round(np.concatenate(highest), 6)


def reference(keys: Any) -> Float[np.ndarray, 'V']:
  """Sorted highest similarities of the keys to one another.

  Raises:
    ValueError: There are less than two keys.
  """
  if keys.shape[0] < 2:
    raise ValueError(f'{keys.shape[0]} validation prompt; drift is measured by two or more.')
  return np.sort(nearest(keys, keys, others=True))


def drift(
  similarity: Float[np.ndarray, 'N'], sorted_reference: Float[np.ndarray, 'V']
) -> Float[np.ndarray, 'N']:
  """Share of the validation prompts that are nearer to another one, ties counted by half."""
  below, upto = (np.searchsorted(sorted_reference, similarity, side) for side in ('left', 'right'))
  return 1 - (below + upto) / (2 * len(sorted_reference))


def compare(
  similarity: Float[np.ndarray, 'N'], sorted_reference: Float[np.ndarray, 'V']
) -> DriftTest:
  """Mean drift of prompts, with a test."""
  from scipy.stats import mannwhitneyu

  test = mannwhitneyu(similarity, sorted_reference, alternative='less')
  return DriftTest(float(drift(similarity, sorted_reference).mean()), float(test.pvalue))
