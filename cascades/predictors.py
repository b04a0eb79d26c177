"""Predictors of one number from features: fitted by scikit-learn, kept as plain arrays.

A fitted predictor is a mapping of arrays, and predicts with NumPy alone, what scikit-learn's object
predicts: nothing has to be pickled. Families:

    linear  logistic or ridge regression
    mlp     multilayer perceptron with ReLU
    trees   gradient-boosted trees (Friedman 2001, https://doi.org/10.1214/aos/1013203451)
    guarded_knn  nearest neighbors with the guard of `routing.shrunk_gain`, of gaps only

For targets 0 and 1, link 'logistic', all but the last predict log-odds and minimize the log loss;
for other targets, link 'identity', they predict the target and minimize the squared error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from cascades import curves, routing

Arrays: TypeAlias = Mapping[str, np.ndarray]
Link: TypeAlias = Literal['identity', 'logistic']
Features = Float[np.ndarray, 'N F']
Values = Float[np.ndarray, 'N']

LEAST_VALIDATION_ROWS = 10  # below, training runs to its last epoch
MOST_CELLS = 1 << 22  # rows times trees that are predicted at a time


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the families.

  Attributes:
    hidden: Units of each hidden layer of the perceptron.
    learning_rate: Step size of Adam.
    batch: Rows of a batch.
    epochs: Most passes over the rows.
    patience: Epochs without a better area on the validation rows after which training ends.
    validation: Share of the rows that are left out of the training, to choose the epoch.
    trees: Number of trees.
    depth: Depth of each tree.
    subsample: Share of the rows that each tree is grown on.
    shrinkage: Factor of each tree's contribution.
    penalty: Inverse strength C of the logistic regression's L2 penalty; the ridge's is 1 / C.
    neighbors: Number of nearest rows; all, if there are fewer.
  """

  hidden: Sequence[int] = (32,) * 5
  learning_rate: float = 1e-3
  batch: int = 64
  epochs: int = 200
  patience: int = 20
  validation: float = 0.2
  trees: int = 100
  depth: int = 3
  subsample: float = 0.5
  shrinkage: float = 0.1
  penalty: float = 1.0
  neighbors: int = 20

  def __post_init__(self) -> None:
    for name in ('learning_rate', 'shrinkage', 'penalty'):
      if not 0 < getattr(self, name) < np.inf:
        raise ValueError(f'{name} is {getattr(self, name)}; it must be a positive number.')
    for name in ('batch', 'epochs', 'patience', 'trees', 'depth', 'neighbors'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} is {getattr(self, name)}; it must be 1 or more.')
    if not 0 < self.subsample <= 1 or not 0 <= self.validation < 1:
      raise ValueError(
        f'subsample is {self.subsample} and validation {self.validation}; they are shares of the '
        'rows, above 0 and below 1.'
      )


class Predictor(NamedTuple):
  """Fitting and predicting of one family.

  Attributes:
    fit: Arrays fitted to standardized features and targets; the gaps Q_L - Q_S judge orderings.
    predict: Predictions of arrays, before the link.
    flops: Operations of one prediction.
    seeded: True if the seed changes the arrays.
  """

  fit: Callable[..., Arrays]
  predict: Callable[[Arrays, Features], Values]
  flops: Callable[[Arrays], float]
  seeded: bool = True


def fit_linear(
  features: Features, target: Values, gap: Values, *, link: Link, seed: int, options: Options
) -> Arrays:
  """Logistic or ridge regression: coefficients [F] and an intercept."""
  from sklearn import linear_model

  del gap, seed
  model: Any = (
    linear_model.LogisticRegression(C=options.penalty, max_iter=10_000, tol=1e-8)
    if link == 'logistic'
    else linear_model.Ridge(alpha=1 / options.penalty)
  )
  model.fit(features, target)
  return {
    'coefficients': np.asarray(model.coef_, float).reshape(-1),
    'intercept': np.asarray(model.intercept_, float).reshape(1),
  }


def predict_linear(arrays: Arrays, features: Features) -> Values:
  """Inner products with the coefficients, and the intercept."""
  return features @ arrays['coefficients'] + arrays['intercept'][0]


def fit_mlp(
  features: Features, target: Values, gap: Values, *, link: Link, seed: int, options: Options
) -> Arrays:
  """Perceptron trained by Adam: weights and biases of each layer.

  A share of the rows is left out, and the epoch is chosen whose predictions order them best: the
  one of the largest area under their deferral curve. scikit-learn has no batch normalization, so
  there is none.
  """
  from sklearn import neural_network

  order = np.random.default_rng(seed).permutation(len(target))
  count = int(options.validation * len(order))
  count = count if count >= LEAST_VALIDATION_ROWS else 0
  validation, training = order[:count], order[count:]
  logistic = link == 'logistic'
  model = (neural_network.MLPClassifier if logistic else neural_network.MLPRegressor)(
    hidden_layer_sizes=tuple(options.hidden),
    learning_rate_init=options.learning_rate,
    batch_size=min(options.batch, len(training)),
    random_state=np.random.RandomState(seed),  # as a number, it would shuffle every epoch alike
  )
  classes = {'classes': [0.0, 1.0]} if logistic else {}
  best, best_area, waited = {}, -np.inf, 0
  for _ in range(options.epochs):
    model.partial_fit(features[training], target[training], **classes)
    layers = enumerate(zip(model.coefs_, model.intercepts_, strict=True))
    arrays = {
      f'{name}{index}': array.copy()
      for index, pair in layers
      for name, array in zip(('weights', 'biases'), pair, strict=True)
    }
    area = _area(predict_mlp(arrays, features[validation]), gap[validation]) if count else np.inf
    if area > best_area or not count:
      best, best_area, waited = arrays, area, 0
    elif (waited := waited + 1) == options.patience:
      break
  return best


def predict_mlp(arrays: Arrays, features: Features) -> Values:
  """Output of the last layer."""
  last = len(arrays) // 2 - 1
  x = features
  for index in range(last):
    x = np.maximum(x @ arrays[f'weights{index}'] + arrays[f'biases{index}'], 0.0)
  return (x @ arrays[f'weights{last}'] + arrays[f'biases{last}'])[:, 0]


def _area(score: Values, gap: Values) -> float:
  """Area under the deferral curve, above the small model's own quality."""
  curve = curves.deferral_curve(
    score,
    np.zeros((len(gap), 1)),
    gap[:, None],
    lambda sums: sums[..., 0] / len(gap),
    lambda rate: rate,
  )
  return curves.area(curve)


def fit_trees(
  features: Features, target: Values, gap: Values, *, link: Link, seed: int, options: Options
) -> Arrays:
  """Boosted trees: the nodes of all trees one after another, and the root of each tree.

  `feature` is negative at leaves, where `value` holds the contribution.
  """
  from sklearn import ensemble

  del gap
  logistic = link == 'logistic'
  model = (ensemble.GradientBoostingClassifier if logistic else ensemble.GradientBoostingRegressor)(
    n_estimators=options.trees,
    max_depth=options.depth,
    subsample=options.subsample,
    learning_rate=options.shrinkage,
    random_state=seed,
  )
  model.fit(features, target)
  trees = [estimator.tree_ for estimator in model.estimators_[:, 0]]
  counts = [tree.node_count for tree in trees]
  roots = np.cumsum([0, *counts[:-1]])
  shift = np.repeat(roots, counts)
  mean = float(np.mean(target))
  return {
    'feature': np.concatenate([tree.feature for tree in trees]).astype(np.int64),
    'threshold': np.concatenate([tree.threshold for tree in trees]),
    'left': np.concatenate([tree.children_left for tree in trees]).astype(np.int64) + shift,
    'right': np.concatenate([tree.children_right for tree in trees]).astype(np.int64) + shift,
    'value': options.shrinkage * np.concatenate([tree.value[:, 0, 0] for tree in trees]),
    'roots': roots,
    'start': np.array([np.log(mean / (1 - mean)) if logistic else mean]),
  }


def predict_trees(arrays: Arrays, features: Features) -> Values:
  """Start and the sum of the values of the leaves that a row falls into.

  Features are compared in float32, as scikit-learn does.
  """
  rows = max(1, MOST_CELLS // len(arrays['roots']))
  blocks = np.split(features.astype(np.float32), range(rows, len(features), rows))
  return np.concatenate([_sum_of_leaves(arrays, block) for block in blocks]) + arrays['start'][0]


def _sum_of_leaves(arrays: Arrays, features: np.ndarray) -> Values:
  node = np.tile(arrays['roots'], (len(features), 1))
  row = np.arange(len(features))[:, None]
  while (inner := arrays['feature'][node] >= 0).any():
    value = features[row, np.maximum(arrays['feature'][node], 0)]
    below = np.where(
      value <= arrays['threshold'][node], arrays['left'][node], arrays['right'][node]
    )
    node = np.where(inner, below, node)
  return arrays['value'][node].cumsum(axis=1)[:, -1]


def fit_guarded_knn(
  features: Features, target: Values, gap: Values, *, link: Link, seed: int, options: Options
) -> Arrays:
  """Rows and their gaps Q_L - Q_S, from which neighbors are taken."""
  del target, link, seed
  return {
    'keys': np.asarray(features, np.float32),
    'gap': np.asarray(gap, float),
    'neighbors': np.array([min(options.neighbors, len(gap))]),
  }


def predict_guarded_knn(arrays: Arrays, features: Features) -> Values:
  """Mean gap of the nearest rows, shrunk to that of all rows by its standard error."""
  rows = routing.nearest(features, arrays['keys'].astype(float), int(arrays['neighbors'][0]))
  return routing.shrunk_gain(arrays['gap'][rows], float(arrays['gap'].mean()))


FAMILIES: Mapping[str, Predictor] = MappingProxyType({
  'linear': Predictor(
    fit_linear,
    predict_linear,
    lambda arrays: 2.0 * len(arrays['coefficients']),
    seeded=False,
  ),
  'mlp': Predictor(
    fit_mlp,
    predict_mlp,
    lambda arrays: 2.0 * sum(a.size for name, a in arrays.items() if name.startswith('weights')),
  ),
  'trees': Predictor(
    fit_trees,
    predict_trees,
    lambda arrays: 2.0 * np.log2(len(arrays['feature']) / len(arrays['roots']) + 1)
    * len(arrays['roots']),
  ),
  'guarded_knn': Predictor(
    fit_guarded_knn,
    predict_guarded_knn,
    lambda arrays: 2.0 * arrays['keys'].size,
    seeded=False,
  ),
})  # fmt: skip
