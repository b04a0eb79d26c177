"""Features of the small model's answer or of the prompt, for learned deferral and routing.

Post-Hoc-Quantile's are of Gupta et al. 2024, https://arxiv.org/abs/2404.10136; those of
EdgeInference of Kag et al. 2023, as Wang et al. 2024, https://arxiv.org/abs/2406.00060, adapted it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cascades import deferral, score_calibration
from cascades.types import Predictions

LEVELS = tuple(round(0.1 * step, 1) for step in range(11))
PROMPT_WORDS = 512  # columns that words and pairs of words are hashed to
MOST_TOKENS = 2048  # probabilities that EdgeInference reads of an answer


class AnswerFeature(NamedTuple):
  """Columns of a table for a predictor.

  Attributes:
    reads: Names of what they are computed from, as in `Decider.reads`.
    columns: Columns [N, k] of a table; the number is the width of columns by position.
  """

  reads: tuple[str, ...]
  columns: Callable[[Predictions, int], Float[np.ndarray, 'N k']]


def phi(table: Predictions) -> Float[np.ndarray, 'N 13']:
  """Features of Post-Hoc-Quantile: quantiles at LEVELS, sum and mean of the log-probabilities."""

  def columns(logprobs: deferral.Logprobs, mask: deferral.Mask) -> Float[np.ndarray, 'n 13']:
    return np.column_stack([
      deferral.quantiles(logprobs, mask, levels=LEVELS),
      -deferral.total(logprobs, mask),
      -deferral.average(logprobs, mask),
    ])  # fmt: skip

  return deferral.by_row(table, columns)


def token_probabilities(table: Predictions, width: int) -> Float[np.ndarray, 'N T']:
  """Features of EdgeInference: token probabilities, padded by zeros or cut to `width`."""
  columns = np.arange(width)
  starts = np.cumsum(table.lengths) - table.lengths
  present = columns < table.lengths[:, None]
  probabilities = np.zeros(present.shape)
  probabilities[present] = np.exp(table.token_logprobs[(starts[:, None] + columns)[present]])
  return probabilities


def prompt_words(table: Predictions) -> Float[np.ndarray, 'N 512']:
  """Hashed words and pairs of words of each prompt: 1 + log of counts, of unit length.

  Rare words gain their weight when the columns are divided by their deviation on the fit split,
  which takes the place of an inverse document frequency.
  """
  from sklearn.feature_extraction import text

  hashing = text.HashingVectorizer(n_features=PROMPT_WORDS, ngram_range=(1, 2), norm=None)
  counts = hashing.transform(table.inputs)
  counts.data = np.sign(counts.data) * (1 + np.log(np.maximum(np.abs(counts.data), 1)))
  rows = counts.toarray()
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


FEATURES: Mapping[str, AnswerFeature] = MappingProxyType({
  'quantiles': AnswerFeature(('token_logprobs',), lambda table, _: phi(table)),
  'length': AnswerFeature(
    ('token_logprobs',),
    lambda table, _: np.column_stack([table.lengths, np.log(np.maximum(table.lengths, 1))]),
  ),
  'prompt length': AnswerFeature(
    ('prompt_tokens',), lambda table, _: table.column('prompt_tokens')[:, None]
  ),
  'prompt words': AnswerFeature(('inputs',), lambda table, _: prompt_words(table)),
  'token probabilities': AnswerFeature(('token_logprobs',), token_probabilities),
})  # fmt: skip


def feature(name: str) -> AnswerFeature:
  """Feature of FEATURES, score of `deferral.DECIDERS` as log-odds, or array 'embeddings/NAME'.

  Raises:
    ValueError: There is none of this name.
  """
  if name in FEATURES:
    return FEATURES[name]
  if name.startswith(deferral.EMBEDDINGS):
    array = name.removeprefix(deferral.EMBEDDINGS)
    return AnswerFeature((name,), lambda table, _: np.asarray(table.embeddings[array], float))
  if name not in deferral.DECIDERS:
    raise ValueError(
      f'Unknown feature {name!r}; expected {", ".join([*FEATURES, *deferral.DECIDERS])}, or '
      f'{deferral.EMBEDDINGS}NAME.'
    )
  decider = deferral.DECIDERS[name]
  convert = (
    (lambda score: score_calibration.log_odds(1.0 + score))
    if name in ('confidence', 'margin')  # these lie in [-1, 0], the others above 0
    else score_calibration.log_odds_of_surprise
  )
  return AnswerFeature(
    tuple(decider.reads), lambda table, _: convert(decider.score(table))[:, None]
  )


def matrix(features: Sequence[str], table: Predictions, width: int) -> Float[np.ndarray, 'N F']:
  """Columns of several features side by side.

  Args:
    features: Names of features: see `feature`.
    table: A table that has what they read.
    width: Number of columns of a feature that has one for each token.
  """
  return np.column_stack([feature(name).columns(table, width) for name in features])
