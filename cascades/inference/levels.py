"""Small models of an online cascade: classifiers that learn from a few labels at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

ArrayDict = Mapping[str, np.ndarray]


class Level(Protocol):
  """A classifier of texts that is trained on the fly. Nothing it computes depends on the others."""

  def prepare(self, texts: Sequence[str]) -> Any:
    """Features of texts, which do not depend on what was learned; indexed by rows."""
    ...

  def predict(self, prepared: Any, rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'n Y']:
    """Probabilities of the classes of these rows."""
    ...

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    """Learn from texts with labels, in this order."""
    ...

  def state(self) -> ArrayDict:
    """All that was learned, as arrays."""
    ...

  def restore(self, state: ArrayDict) -> None:
    """Continue from a `state`."""
    ...


@dataclasses.dataclass(frozen=True)
class LinearConfig:
  """Logistic regression on hashed words, trained by one pass of stochastic gradient descent.

  Words and pairs of words are hashed to columns, so that no vocabulary is fitted on the stream;
  counts n enter as 1 + log n, and texts have length 1.

  Attributes:
    columns: Number of columns.
    words: Longest run of words that is a feature.
    penalty: Factor of the squared weights.
  """

  columns: int = 1 << 15
  words: int = 2
  penalty: float = 1e-5

  def build(self, classes: int, seed: int) -> Linear:
    """The classifier before it has learned anything."""
    return Linear(self, classes, seed)


class Linear:
  """Logistic regression; probabilities are uniform before the first label."""

  def __init__(self, config: LinearConfig, classes: int, seed: int) -> None:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier

    self.classes = classes
    self._hashed = HashingVectorizer(
      n_features=config.columns, ngram_range=(1, config.words), norm=None, alternate_sign=False
    )
    self._model = SGDClassifier(
      loss='log_loss', alpha=config.penalty, shuffle=False, random_state=seed
    )

  def prepare(self, texts: Sequence[str]) -> Any:
    """Sparse matrix of the texts."""
    from sklearn.preprocessing import normalize

    counts = self._hashed.transform(texts)
    counts.data = 1 + np.log(counts.data)
    return normalize(counts, copy=False)

  def predict(self, prepared: Any, rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'n Y']:
    """Softmax of one sigmoid a class, as scikit-learn normalizes them; two classes share one."""
    if not hasattr(self._model, 'coef_'):
      return np.full((len(rows), self.classes), 1 / self.classes)
    with np.errstate(over='ignore'):
      logits = prepared[rows] @ self._model.coef_.T + self._model.intercept_
      ones = 1 / (1 + np.exp(-logits))
    if self.classes == 2:
      return np.concatenate([1 - ones, ones], 1)
    total = ones.sum(1, keepdims=True)
    return np.where(total > 0, ones / np.where(total > 0, total, 1), 1 / self.classes)

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    """One pass over the texts."""
    self._model.partial_fit(
      self.prepare(texts), np.asarray(labels), classes=np.arange(self.classes)
    )

  def state(self) -> ArrayDict:
    """Weights and the number of examples so far, which sets the learning rate."""
    if not hasattr(self._model, 'coef_'):
      return {}
    return {
      'coef': self._model.coef_.copy(),
      'intercept': self._model.intercept_.copy(),
      't': np.array(self._model.t_),
    }

  def restore(self, state: ArrayDict) -> None:
    """Continue from a `state`."""
    if not state:
      return
    self._model.partial_fit(
      self.prepare([''] * self.classes), np.arange(self.classes), classes=np.arange(self.classes)
    )
    self._model.coef_ = np.ascontiguousarray(state['coef'])
    self._model.intercept_ = np.ascontiguousarray(state['intercept'])
    self._model.t_ = float(state['t'])


class Simulated:
  """A level whose probabilities are given, which learns nothing: recorded models, and tests."""

  def __init__(self, probabilities: Mapping[str, Sequence[float]]) -> None:
    self._probabilities = probabilities

  def prepare(self, texts: Sequence[str]) -> Any:
    """Probabilities of the texts."""
    return np.array([self._probabilities[text] for text in texts], float)

  def predict(self, prepared: Any, rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'n Y']:
    """Those of these rows."""
    return np.asarray(prepared[rows])

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    """Do nothing."""

  def state(self) -> ArrayDict:
    """Nothing."""
    return {}

  def restore(self, state: ArrayDict) -> None:
    """Do nothing."""
