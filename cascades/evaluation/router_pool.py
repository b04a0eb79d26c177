"""One draw of `router_trials`: where each model wins, and what a model that joins adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import curve_metrics, curves, price_path
from cascades.evaluation.router_trials import Draw
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.universal_routing import mean_losses, one_hot, zero_router

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
    model_cost: Cost of each.
    model_quality: Mean quality of each on the test prompts.
    price: Prices at which a prompt changes its model, rising from 0.
    cost: Mean cost at each price.
    quality: Mean quality at each price.
    choices: Model of each cluster at each price.
    shares: Share of the test prompts of each model at each price.
    control: Cost and quality of ZeroRouter's corners.
    predicted: Predicted loss of each model in each cluster.
    measured: Mean quality of each model in each cluster of test prompts; nan in one without any.
    sizes: Number of test prompts of each cluster.
    examples: Texts of the test prompts nearest to each centroid.
    position: Place of some test prompts on a plane.
    cluster: Cluster of each of these.
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
  cluster: Int[np.ndarray, 'N']
  joined: Sequence[Joined]


def describe(matrix: OutcomeMatrix, draw: Draw, *, strength: float, seed: int = 0) -> RouterPool:
  """Router of a draw in detail.

  Args:
    matrix: Answers of all models.
    draw: A draw of it.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    seed: Seed of the map, and of the answers of models that join.
  """
  psi, groups, quality = draw.psi(strength), draw.groups(draw.test), 1 - draw.losses[draw.test]
  path = price_path.price_path(psi[groups], draw.cost, quality)
  shown = curves.evenly_spaced(len(path.price), MOST_POINTS)
  # Between two switches, where rounding does not decide.
  after = np.append(path.price[1:], 2 * path.price[-1] + 1)[shown]
  between = (path.price[shown] + after) / 2
  choices = np.array([price_path.choose(psi, draw.cost, price) for price in between])
  membership = one_hot(groups, len(psi))
  sizes = membership.sum(axis=0)
  measured = np.full(psi.shape, np.nan)
  measured[sizes > 0] = (membership.T @ quality)[sizes > 0] / sizes[sizes > 0, None]
  mixed = zero_router(draw.cost, 1 - np.nanmean(draw.losses[draw.validation], axis=0))
  own = quality.mean(axis=0)
  rows = np.random.default_rng(seed).permutation(len(draw.test))[:MOST_PROMPTS]
  return RouterPool(
    models=[matrix.models[model] for model in draw.models],
    model_cost=draw.cost,
    model_quality=own,
    price=path.price[shown],
    cost=path.cost[shown],
    quality=path.quality[shown],
    choices=choices,
    shares=np.stack([sizes @ one_hot(row, len(draw.cost)) for row in choices]) / len(draw.test),
    control=(draw.cost[[*mixed]], own[[*mixed]]),
    predicted=psi,
    measured=measured,
    sizes=sizes.astype(int),
    examples=_examples(matrix, draw, groups),
    position=project(draw.vectors[draw.test[rows]], seed=seed),
    cluster=groups[rows],
    joined=joined(draw, strength=strength, seed=seed),
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


def joined(draw: Draw, *, strength: float, seed: int) -> list[Joined]:
  """Areas before and after each model of a draw joins the others."""
  groups = one_hot(draw.groups(draw.validation), len(draw.centroids)).T
  tested, quality = draw.groups(draw.test), 1 - draw.losses[draw.test]
  every, high = draw.psi(strength), float(draw.cost.max())
  rng = np.random.default_rng(seed)

  def area(psi: Float[np.ndarray, 'K J'], pool: Int[np.ndarray, 'j']) -> float:
    path = price_path.price_path(psi[tested][:, pool], draw.cost[pool], quality[:, pool])
    return float(curve_metrics.area(path.cost, path.quality, low=0.0, high=high))

  models = np.arange(len(draw.cost))
  best = np.bincount(price_path.choose(every[tested], draw.cost, 0.0), minlength=len(models))
  with_all = area(every, models)
  results = []
  for model in models:
    own = draw.losses[draw.validation, model]
    answered = np.flatnonzero(np.isfinite(own))
    few = []
    for count in FEW:
      areas = []
      for _ in range(REPEATS):
        asked = np.full(own.shape, np.nan)
        rows = rng.permutation(answered)[:count]
        asked[rows] = own[rows]
        psi = every.copy()
        psi[:, model] = mean_losses(groups, asked[:, None], strength=strength)[:, 0]
        areas.append(area(psi, models))
      few.append(float(np.mean(areas)))
    without = area(every, models[models != model])
    results.append(
      Joined(int(model), without, few, len(answered), with_all, best[model] / len(tested))
    )
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
