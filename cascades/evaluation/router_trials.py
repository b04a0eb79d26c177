"""Trials of routers among unseen models: prompts and models are drawn again in each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cascades import comparisons, curve_metrics, hashed_words, price_path, universal_routing
from cascades.curve_metrics import RouterNumbers
from cascades.evaluation.router_fits import DIMENSION
from cascades.evaluation.routers import CLUSTERS, LEARNED, NESTED
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.price_path import ModelCosts
from cascades.runtime import progress
from cascades.universal_routing import Position, assign, mean_losses, one_hot

log = logging.getLogger(__name__)

TRAIN, VALIDATION = 0.6, 0.1  # shares of the prompts; the rest is test
SHARES = np.linspace(0, 1, 101)  # of the dearest model's cost, at which curves are compared
LINES = 10  # of progress, about
ROUTER, CONTROL, ORACLE = CLUSTERS, 'ZeroRouter', 'oracle'


class Trials(NamedTuple):
  """Curves and numbers of routers over T trials.

  Attributes:
    quality: Quality of each router at each of SHARES, by trial.
    numbers: Area, area (50 %), quality-neutral cost and peak, by trial.
    test_rows: Test prompts of each trial that every unseen model answered.
    method: The router that is compared with ZeroRouter.
  """

  quality: Mapping[str, Float[np.ndarray, 'T S']]
  numbers: Mapping[str, list[RouterNumbers]]
  test_rows: list[int]
  method: str = ROUTER

  def sign_test(self) -> comparisons.McNemar:
    """Trials in which the router's area is above and below ZeroRouter's, and the p-value."""
    areas = {name: np.array([n.area for n in own]) for name, own in self.numbers.items()}
    difference = areas[self.method] - areas[CONTROL]
    return comparisons.mcnemar(difference > 0, difference < 0)


def split(rng: np.random.Generator, count: int) -> list[Int[np.ndarray, 'n']]:
  """Random indices of training, validation and test prompts, 60/10/30 %."""
  ends = np.cumsum([round(TRAIN * count), round(VALIDATION * count)])
  return np.split(rng.permutation(count), ends)


class Draw(NamedTuple):
  """Draw of prompts and unseen models.

  Attributes:
    models: Indices of the unseen models.
    losses: Their losses on all prompts.
    cost: Their costs, by prompt where they differ.
    read: Part of these that is the price of the prompts' own tokens, which are counted before any
      answer; None if none is.
    seen: Losses of the other models on all prompts.
    train: Indices of the training prompts.
    validation: Indices of the validation prompts.
    test: Indices of the test prompts that all of them answered.
    vectors: Vectors of all prompts.
    centroids: Centroids of the training prompts.
  """

  models: Int[np.ndarray, 'J']
  losses: Float[np.ndarray, 'N J']
  cost: ModelCosts
  read: Float[np.ndarray, 'N J'] | None
  seen: Float[np.ndarray, 'N S']
  train: Int[np.ndarray, 'n']
  validation: Int[np.ndarray, 'V']
  test: Int[np.ndarray, 'T']
  vectors: Float[np.ndarray, 'N D']
  centroids: Float[np.ndarray, 'K D']

  def groups(self, rows: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
    """Cluster of each of some prompts."""
    return assign(self.vectors[rows], self.centroids)

  def of(self, rows: Int[np.ndarray, 'n']) -> ModelCosts:
    """Costs on some prompts."""
    return self.cost[rows] if self.cost.ndim == 2 else self.cost

  def unread(self, rows: Int[np.ndarray, 'n']) -> ModelCosts:
    """Costs on some prompts besides their own tokens, which a router has to estimate."""
    return self.of(rows) if self.read is None else self.cost[rows] - self.read[rows]

  def predict(self, predictor: DrawPredictor) -> tuple[Float[np.ndarray, 'T J'], ModelCosts]:
    """Predicted loss and estimated cost of each model on the test prompts."""
    losses, cost = predictor.predict(self.losses[self.validation], self.unread(self.validation))
    return losses, cost if self.read is None else np.maximum(cost + self.read[self.test], 0.0)

  def mean_cost(self, rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'J']:
    """Mean cost of each model on some prompts, of those that it answered."""
    return np.nanmean(self.cost[rows], axis=0) if self.cost.ndim == 2 else self.cost

  def predictor(self, method: str, strength: float) -> DrawPredictor:
    """Method of `routers` on the test prompts.

    Args:
      method: One of `routers.METHODS`.
      strength: Number of answers that a model's mean loss counts for in each cluster.

    Raises:
      ValueError: A learned map has no seen model to learn from.
    """
    groups, fine = self.groups(self.test), len(self.centroids)
    weights = one_hot(self.groups(self.validation), fine).T
    means = partial(mean_losses, weights, strength=strength)
    if method == NESTED:
      centroids = universal_routing.coarse_clusters(self.vectors[self.train], fine)
      own, test = (assign(self.vectors[rows], centroids) for rows in (self.validation, self.test))
      coarse = one_hot(own, len(centroids)).T
      pairs = partial(universal_routing.paired_losses, coarse, weights, strength=strength)
      return DrawPredictor(test * fine + groups, pairs)
    if method == CLUSTERS:
      return DrawPredictor(groups, means)
    from cascades import trained_routers  # trials of routers that are not trained need no JAX

    seen = np.isfinite(self.seen[self.validation]).any(axis=0)
    if not seen.any():
      raise ValueError(
        f'METHOD={LEARNED!r} learns from the models that are seen, and UNSEEN leaves none that '
        'answered a validation prompt: lower UNSEEN.'
      )
    learned = trained_routers.fit_map(
      self.vectors[self.train], self.centroids, self.seen[self.train][:, seen],
      means(self.seen[self.validation][:, seen]).T,
    )  # fmt: skip
    theta, bias = (np.asarray(learned[name]) for name in ('theta', 'bias'))
    phi = universal_routing.soft_memberships(self.vectors[self.test], theta, bias)
    return DrawPredictor(phi, means)


class DrawPredictor(NamedTuple):
  """Predictions on the test prompts of a draw, from values on its validation prompts.

  Attributes:
    position: Group of each test prompt, or its memberships.
    means: Function from values of the validation prompts to their means by group.
  """

  position: Position
  means: Callable[[Float[np.ndarray, 'V J']], Float[np.ndarray, 'K J']]

  def predict(
    self, losses: Float[np.ndarray, 'V J'], cost: ModelCosts
  ) -> tuple[Float[np.ndarray, 'T J'], ModelCosts]:
    """Predicted loss and estimated cost of each model on each test prompt.

    Args:
      losses: Losses on the validation prompts; nan where not answered.
      cost: Costs there, or one cost of each model.
    """
    by_prompt = cost.ndim == 2
    estimated = universal_routing.mixed(self.means(cost), self.position) if by_prompt else cost
    return universal_routing.mixed(self.means(losses), self.position), estimated


def draws(
  matrix: OutcomeMatrix, vectors: Float[np.ndarray, 'N D'] | None = None, *, trials: int,
  unseen: float, clusters: int, seed: int,
) -> Iterator[Draw]:  # fmt: skip
  """Yields draws of prompts and unseen models.

  Prompts are split 60/10/30 %. The clusters are those of the training prompts; the unseen models
  answer the validation prompts alone, and are compared on the test prompts.

  Args:
    matrix: Answers of all models.
    vectors: Vectors of the prompts; None for their words, fitted on the training prompts.
    trials: Number of draws.
    unseen: Share of the models that are unseen, two or more.
    clusters: Number of clusters.
    seed: Seed of all draws.

  Raises:
    ValueError: There is only one model, or a draw has too few prompts.
  """
  if len(matrix.models) < 2:
    raise ValueError('A router chooses among two models or more; the outcomes have one.')
  if not (matrix.cost > 0).all():
    free = matrix.models[int(np.argmin(matrix.cost))]
    raise ValueError(f'Model {free!r} costs 0; trials compare at shares of a cost above 0.')
  table: Any = hashed_words.counts(matrix.prompts) if vectors is None else None
  count = max(2, round(unseen * len(matrix.models)))
  for child in np.random.default_rng(seed).spawn(trials):
    train, validation, test = split(child, len(matrix.ids))
    models = np.sort(child.permutation(len(matrix.models))[:count])
    losses = matrix.losses[:, models]
    test = test[np.isfinite(losses[test]).all(axis=1)]
    if not (len(train) and len(test) and np.isfinite(losses[validation]).any(axis=0).all()):
      raise ValueError(
        f'{len(matrix.ids)} prompts are too few: a trial has {len(train)} for training, '
        f'{len(validation)} for validation and {len(test)} for test that all its models answered.'
      )
    embedded = vectors
    if embedded is None:
      embedded = hashed_words.embed(hashed_words.fit(table[train], DIMENSION, seed=seed), table)
    centroids = universal_routing.cluster(embedded[train], clusters, seed=seed)
    cost = matrix.cost[models] if matrix.prompt_cost is None else matrix.prompt_cost[:, models]
    read = None if matrix.read_cost is None else matrix.read_cost[:, models]
    yield Draw(
      models, losses, cost, read, np.delete(matrix.losses, models, axis=1), train,
      validation, test, embedded, centroids,
    )  # fmt: skip


def run(
  draws_of_models: Iterable[Draw], trials: int, strength: float, *, method: str = ROUTER
) -> Trials:
  """Curves of clusters, a method, ZeroRouter and oracle on draws of prompts and unseen models.

  Args:
    draws_of_models: The draws.
    trials: Their number.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    method: Method of `routers` that is compared besides clusters.
  """
  names = tuple(dict.fromkeys((ROUTER, method, CONTROL, ORACLE)))
  results: list[tuple[dict[str, tuple[np.ndarray, RouterNumbers]], int]] = []
  for number, own in enumerate(draws_of_models, 1):
    predicted = {
      name: own.predict(own.predictor(name, strength)) for name in dict.fromkeys((ROUTER, method))
    }
    results.append((_curves(predicted, own), len(own.test)))
    if number % max(1, trials // LINES) == 0:
      log.info('%s', progress.format_line(number, trials, {}, None, unit='trial'))
  return Trials(
    {name: np.array([curves[name][0] for curves, _ in results]) for name in names},
    {name: [curves[name][1] for curves, _ in results] for name in names},
    [rows for _, rows in results],
    method,
  )


def control(draw: Draw) -> tuple[Float[np.ndarray, 'C'], Float[np.ndarray, 'C']]:
  """Cost and quality of ZeroRouter's corners on the test prompts of a draw."""
  reached = 1 - np.nanmean(draw.losses[draw.validation], axis=0)
  corners = universal_routing.zero_router(draw.mean_cost(draw.validation), reached)
  quality = 1 - draw.losses[draw.test].mean(axis=0)
  return curve_metrics.ascending(draw.mean_cost(draw.test)[[*corners]], quality[[*corners]])


def _curves(
  predicted: Mapping[str, tuple[Float[np.ndarray, 'T J'], ModelCosts]], draw: Draw
) -> dict[str, tuple[np.ndarray, RouterNumbers]]:
  """Quality at SHARES and numbers of each router in one trial."""
  losses, paid = draw.losses[draw.test], draw.of(draw.test)
  quality, cost = 1 - losses, draw.mean_cost(draw.test)
  curves = {
    **{
      name: price_path.price_path(*own, quality, paid=paid)[1:] for name, own in predicted.items()
    },
    CONTROL: control(draw),
    ORACLE: price_path.price_path(losses, paid, quality)[1:],
  }
  models = {'model_cost': cost, 'model_quality': quality.mean(axis=0)}
  return {
    name: (
      np.interp(SHARES * cost.max(), *curve_metrics.ascending(*curve)),
      curve_metrics.router_numbers(*curve, **models),
    )
    for name, curve in curves.items()
  }
