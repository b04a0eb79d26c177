"""Small models of an online cascade: classifiers that learn from a few labels at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from cascades.inference import encoders

ArrayDict = Mapping[str, np.ndarray]

PENALTY = 1e-6  # factor of the squared weights


class LevelConfig(Protocol):
  """A frozen description that builds a level."""

  def build(self, classes: int, seed: int) -> Level:
    """The level before it has learned anything."""
    ...


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
    rate: Learning rate, which stays, so that the model follows a stream that changes.
  """

  columns: int = 1 << 15
  words: int = 2
  rate: float = 3.0

  def build(self, classes: int, seed: int) -> Linear:
    """The classifier before it has learned anything."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize

    hashed = HashingVectorizer(
      n_features=self.columns, ngram_range=(1, self.words), norm=None, alternate_sign=False
    )

    def features(texts: Sequence[str]) -> Any:
      counts = hashed.transform(texts)
      counts.data = 1 + np.log(counts.data)
      return normalize(counts, copy=False)

    return Linear(features, classes, seed, rate=self.rate)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Logistic regression on the vectors of an encoder of sentences, whose weights stay.

  Attributes:
    folder: Folder of an encoder of sentence-transformers or Hugging Face.
    epochs: Passes over each cache.
    rate: Learning rate.
  """

  folder: str
  epochs: int = 5
  rate: float = 0.1

  def build(self, classes: int, seed: int) -> Linear:
    """The classifier before it has learned anything."""
    embedder = encoders.open_embedder(self.folder)
    return Linear(
      lambda texts: np.asarray(embedder(list(texts)), float),
      classes,
      seed,
      rate=self.rate,
      epochs=self.epochs,
    )


class Linear:
  """Logistic regression on features; probabilities are uniform before the first label."""

  def __init__(
    self,
    features: Callable[[Sequence[str]], Any],
    classes: int,
    seed: int,
    *,
    rate: float,
    epochs: int = 1,
  ) -> None:
    """Prepares the classifier.

    Args:
      features: Maps texts to a matrix, dense or sparse, a row each.
      classes: Number of classes.
      seed: Seed of scikit-learn.
      rate: Learning rate.
      epochs: Passes over each cache.
    """
    from sklearn.linear_model import SGDClassifier

    self.prepare = features
    self.classes, self._epochs = classes, epochs
    self._model = SGDClassifier(
      loss='log_loss', alpha=PENALTY, learning_rate='constant', eta0=rate, shuffle=False,
      random_state=seed,
    )  # fmt: skip

  def predict(self, prepared: Any, rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'n Y']:
    """One sigmoid a class, divided by their sum, as scikit-learn does; two classes share one."""
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
    """Learn from the texts in their order, `epochs` times."""
    features, classes = self.prepare(texts), np.arange(self.classes)
    for _ in range(self._epochs):
      self._model.partial_fit(features, np.asarray(labels), classes=classes)

  def state(self) -> ArrayDict:
    """Weights, and the number of examples so far."""
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
    classes = np.arange(self.classes)
    self._model.partial_fit(self.prepare([''] * self.classes), classes, classes=classes)
    self._model.coef_ = np.ascontiguousarray(state['coef'])
    self._model.intercept_ = np.ascontiguousarray(state['intercept'])
    self._model.t_ = float(state['t'])
