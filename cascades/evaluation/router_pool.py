"""One draw of `router_trials`: where each model wins, and what a model that joins adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import curve_metrics, curves, price_path
from cascades.evaluation import router_trials
from cascades.evaluation.router_trials import Draw, DrawPredictor
from cascades.evaluation.routers import CLUSTERS
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.price_path import ModelCosts
from cascades.universal_routing import one_hot

MOST_POINTS = 400  # of the curve
MOST_PROMPTS = 1500  # on the map
FEW = (10, 50)  # answers with which a model joins, besides all
REPEATS = 3  # of random answers
EXAMPLES = 2  # of prompts of a cluster


class Joined(NamedTuple):
  """Area of a router before and after a model joins.

  Attributes:
    model: Index of the model among those of the pool.
    without: Area of the others.
    few: Mean area with the model by its answers to as many random validation prompts as in FEW.
    answers: Validation prompts that it answered.
    every: Area with the model by all of these answers.
    share: Share of the test prompts that it gets at the price 0.
  """

  model: int
  without: float
  few: Sequence[float]
  answers: int
  every: float
  share: float


class RouterPool(NamedTuple):
  """A router on the test prompts of a draw.

  Attributes:
    models: Names of the models.
    model_cost: Mean cost of each on the test prompts.
    model_quality: Mean quality of each on the test prompts.
    price: Prices at which a prompt changes its model, rising from 0.
    cost: Mean cost at each price.
    quality: Mean quality at each price.
    choices: Model of most test prompts of each cluster at each price; -1 in one without any.
    shares: Share of the test prompts of each model at each price.
    control: Cost and quality of ZeroRouter's corners.
    predicted: Mean predicted loss of each model in each cluster of test prompts.
    measured: Mean quality of each model in each cluster of test prompts; nan in one without any.
    sizes: Number of test prompts of each cluster.
    examples: Texts of the test prompts nearest to each centroid.
    position: Place of some test prompts on a plane.
    chosen: Model of each of these at each price.
    joined: Models by what they add, the most first.
  """

  models: Sequence[str]
  model_cost: Float[np.ndarray, 'J']
  model_quality: Float[np.ndarray, 'J']
  price: Float[np.ndarray, 'P']
  cost: Float[np.ndarray, 'P']
  quality: Float[np.ndarray, 'P']
  choices: Int[np.ndarray, 'P K']
  shares: Float[np.ndarray, 'P J']
  control: tuple[Float[np.ndarray, 'C'], Float[np.ndarray, 'C']]
  predicted: Float[np.ndarray, 'K J']
  measured: Float[np.ndarray, 'K J']
  sizes: Int[np.ndarray, 'K']
  examples: Sequence[Sequence[str]]
  position: Float[np.ndarray, 'N 2']
  chosen: Int[np.ndarray, 'P N']
  joined: Sequence[Joined]


def describe(
  matrix: OutcomeMatrix, draw: Draw, *, method: str = CLUSTERS, strength: float, seed: int = 0
) -> RouterPool:
  """Router of a draw in detail.

  Args:
    matrix: Answers of all models.
    draw: A draw of it.
    method: Method of `routers`.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    seed: Seed of the map, and of the answers of models that join.
  """
  predictor, groups = draw.predictor(method, strength), draw.groups(draw.test)
  gamma, cost = draw.predict(predictor)
  quality = 1 - draw.losses[draw.test]
  path = price_path.price_path(gamma, cost, quality, paid=draw.of(draw.test))
  at = curves.evenly_spaced(len(path.price), MOST_POINTS)
  # Between two switches, where rounding does not decide.
  after = np.append(path.price[1:], 2 * path.price[-1] + 1)[at]
  rows = np.random.default_rng(seed).permutation(len(draw.test))[:MOST_PROMPTS]
  membership = one_hot(groups, len(draw.centroids))
  sizes = membership.sum(axis=0)
  choices, shares, chosen = [], [], []
  for price in (path.price[at] + after) / 2:
    models = price_path.choose(gamma, cost, price)
    answered = one_hot(models, gamma.shape[1])
    choices.append(np.where(sizes > 0, np.argmax(membership.T @ answered, axis=1), -1))
    shares.append(answered.mean(axis=0))
    chosen.append(models[rows])

  def by_cluster(values: Float[np.ndarray, 'T J']) -> Float[np.ndarray, 'K J']:
    means = np.full((len(sizes), values.shape[1]), np.nan)
    means[sizes > 0] = (membership.T @ values)[sizes > 0] / sizes[sizes > 0, None]
    return means

  return RouterPool(
    models=[matrix.models[model] for model in draw.models],
    model_cost=draw.mean_cost(draw.test),
    model_quality=quality.mean(axis=0),
    price=path.price[at],
    cost=path.cost[at],
    quality=path.quality[at],
    choices=np.array(choices),
    shares=np.array(shares),
    control=router_trials.control(draw),
    predicted=by_cluster(gamma),
    measured=by_cluster(quality),
    sizes=sizes.astype(int),
    examples=_examples(matrix, draw, groups),
    position=project(draw.vectors[draw.test[rows]], seed=seed),
    chosen=np.array(chosen),
    joined=joined(draw, predictor, seed=seed),
  )


def project(vectors: Float[np.ndarray, 'N D'], *, seed: int = 0) -> Float[np.ndarray, 'N 2']:
  """Places on a plane, where prompts are neighbors that are neighbors as vectors: t-SNE.

  Of few prompts, those on the two main directions; a single one is at the origin.
  """
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE

  if len(vectors) < 2:
    return np.zeros((len(vectors), 2))
  if len(vectors) < 10 or vectors.shape[1] < 3:
    flat = PCA(min(2, *vectors.shape)).fit_transform(vectors)
    return np.column_stack([flat, np.zeros((len(flat), 2))])[:, :2]
  perplexity = min(30.0, (len(vectors) - 1) / 3)
  return np.asarray(
    TSNE(2, perplexity=perplexity, init='pca', random_state=seed).fit_transform(
      np.asarray(vectors, np.float32)
    ),
    float,
  )


def joined(draw: Draw, predictor: DrawPredictor, *, seed: int) -> list[Joined]:
  """Areas before and after each model of a draw joins the others."""
  losses, charged = draw.losses[draw.validation], draw.unread(draw.validation)
  quality, paid = 1 - draw.losses[draw.test], draw.of(draw.test)
  every, high = draw.predict(predictor), float(draw.mean_cost(draw.test).max())
  rng = np.random.default_rng(seed)

  def area(predicted: tuple[np.ndarray, ModelCosts], pool: Int[np.ndarray, 'j']) -> float:
    gamma, cost = (values[..., pool] for values in predicted)
    path = price_path.price_path(gamma, cost, quality[:, pool], paid=paid[..., pool])
    return float(curve_metrics.area(path.cost, path.quality, low=0.0, high=high))

  def with_few(model: int, asked: Int[np.ndarray, 'n']) -> tuple[np.ndarray, ModelCosts]:
    """Predictions where a model has given some of its answers."""
    own, own_cost = (np.full((len(losses), 1), np.nan) for _ in range(2))
    own[asked, 0] = losses[asked, model]
    if charged.ndim == 2:
      own_cost[asked, 0] = charged[asked, model]
    gamma, cost = (values.copy() for values in every)
    few = predictor.predict(own, own_cost if charged.ndim == 2 else charged[[model]])
    gamma[:, model], cost[..., model] = few[0][:, 0], few[1][..., 0]
    if draw.read is not None:
      cost[:, model] = np.maximum(cost[:, model] + draw.read[draw.test, model], 0.0)
    return gamma, cost

  models = np.arange(losses.shape[1])
  best = np.bincount(price_path.choose(*every, 0.0), minlength=len(models)) / len(draw.test)
  with_all = area(every, models)
  results = []
  for model in models:
    answered = np.flatnonzero(np.isfinite(losses[:, model]))
    areas = [
      [area(with_few(model, rng.permutation(answered)[:count]), models) for _ in range(REPEATS)]
      for count in FEW
    ]
    few = np.mean(areas, axis=1).tolist()
    without = area(every, models[models != model])
    results.append(Joined(int(model), without, few, len(answered), with_all, float(best[model])))
  return sorted(results, key=lambda joining: joining.without)


def _examples(
  matrix: OutcomeMatrix, draw: Draw, groups: Int[np.ndarray, 'T']
) -> list[tuple[str, ...]]:
  distance = np.sum((draw.vectors[draw.test] - draw.centroids[groups]) ** 2, axis=1)
  nearest = np.argsort(distance, kind='stable')
  return [
    tuple(matrix.prompts[draw.test[row]] for row in nearest[groups[nearest] == k][:EXAMPLES])
    for k in range(len(draw.centroids))
  ]
