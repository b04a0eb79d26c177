"""Small models of an online cascade: classifiers that learn from a few labels at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from cascades.inference import encoders
from cascades.inference.class_names import named_class
from cascades.models import bert
from cascades.runtime import files

ArrayDict = Mapping[str, np.ndarray]

PENALTY = 1e-6  # factor of the squared weights
REMEMBERED = 512  # texts whose vectors an encoder keeps
PRIOR = 4.0  # answers of a recorded model that are taken to agree with the expert's


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
    embedder = encoders.open_embedder(self.folder, bert.steady_embedder)
    vectors: dict[str, np.ndarray] = {}  # of the last texts: a cache is learned soon after it came

    def features(texts: Sequence[str]) -> Float[np.ndarray, 'n D']:
      if missing := [text for text in dict.fromkeys(texts) if text not in vectors]:
        vectors.update(zip(missing, np.asarray(embedder(missing), float), strict=True))
      together = np.stack([vectors[text] for text in texts])
      for text in list(vectors)[: max(len(vectors) - REMEMBERED, 0)]:
        del vectors[text]
      return together

    return Linear(features, classes, seed, rate=self.rate, epochs=self.epochs)


@dataclasses.dataclass(frozen=True)
class RecordedConfig:
  """Recorded answers of a second model, from which the expert's are told by counts.

  Attributes:
    path: JSON lines of `inputs` and of its `answer`, for all texts of the stream.
    options: Texts of the classes.
  """

  path: str
  options: Sequence[str]

  def build(self, classes: int, seed: int) -> Recorded:
    """The level before it has learned anything.

    Raises:
      ValueError: A row has no `inputs` or no `answer`.
    """
    del seed
    answers: dict[str, int] = {}
    with open(files.absolute(self.path), 'rb') as file:
      for number, line in enumerate(file, 1):
        row = json.loads(line)
        if not isinstance(row, dict) or not {'inputs', 'answer'} <= row.keys():
          raise ValueError(f'{self.path}, line {number}: a row needs `inputs` and `answer`.')
        label = named_class(row['answer'], self.options)
        answers[row['inputs']] = classes if label is None else label

    def features(texts: Sequence[str]) -> Int[np.ndarray, 'n']:
      if missing := [text for text in texts if text not in answers]:
        raise ValueError(f'{self.path} has no answer to {missing[0]!r:.80}.')
      return np.array([answers[text] for text in texts], int)

    return Recorded(features, classes)


class Recorded:
  """A model whose answers are known: P(y | its class k) = (counts of y at k + prior) / their sum.

  The prior is PRIOR answers that agree and one of each class. Answers without a class are a class.
  """

  def __init__(self, features: Callable[[Sequence[str]], Any], classes: int) -> None:
    """Prepares the counts.

    Args:
      features: Maps texts to the classes of the answers; `classes` stands for none.
      classes: Number of classes.
    """
    self.prepare = features
    self._counts = 1.0 + PRIOR * np.eye(classes + 1, classes)

  def predict(self, prepared: Any, rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'n Y']:
    """Share of each class of the expert beside the recorded answer."""
    counts = self._counts[prepared[rows]]
    return counts / counts.sum(1, keepdims=True)

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    """Count the expert's labels."""
    np.add.at(self._counts, (self.prepare(texts), np.asarray(labels)), 1)

  def state(self) -> ArrayDict:
    """The counts."""
    return {'counts': self._counts.copy()}

  def restore(self, state: ArrayDict) -> None:
    """Continue from a `state`."""
    self._counts = np.array(state['counts'])


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
      logits = _products(prepared[rows], self._model.coef_) + self._model.intercept_
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


def _products(features: Any, weights: Float[np.ndarray, 'Y D']) -> Float[np.ndarray, 'n Y']:
  """Inner products, each rounded as if it were the only one, as those of BLAS are not."""
  if isinstance(features, np.ndarray):
    return np.einsum('nd,yd->ny', features, weights)
  return np.asarray(features @ weights.T)
