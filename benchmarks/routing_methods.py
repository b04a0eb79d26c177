"""Curves of every router of `routing` on one trial, by the protocol of docs/routing.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.routing_matrices import Trial
from cascades import curve_metrics, price_path, routing, trained_routers, universal_routing
from cascades import validation_order as orders
from cascades.universal_routing import assign, cluster, mean_losses, neighborhood, one_hot

CLUSTERS = (5, 10, 25, 50, 100)
NEIGHBORS = (5, 10, 25, 50, 100)
COARSE, FINE, STRENGTH = 20, 100, 24.0
SIZES = (10, 25, 50, 100, 200, 400, 500)
EPOCHS = 20
PERCEPTRON_RATE, FACTOR_RATE = 1e-3, 1e-2

Curve = tuple[np.ndarray, np.ndarray]  # cost and quality
Clusters = tuple[np.ndarray, np.ndarray, np.ndarray]  # of training, validation, test prompts
Embed = Callable[[np.ndarray], np.ndarray]  # vectors of all prompts, fitted on those of an index


class Setting(NamedTuple):
  """A trial with the vectors of its prompts, and what was chosen without its unseen models."""

  trial: Trial
  vectors: np.ndarray
  centroids: np.ndarray
  neighbors: int
  ranked: np.ndarray  # validation prompts by their similarity to each test prompt
  coarse: Clusters
  fine: Clusters

  def rows(self, name: str) -> np.ndarray:
    return self.vectors[getattr(self.trial, name)]

  @property
  def groups(self) -> np.ndarray:
    """Membership of each validation prompt in each cluster."""
    return one_hot(assign(self.rows('validation'), self.centroids), len(self.centroids)).T

  @property
  def validation_quality(self) -> np.ndarray:
    """Mean quality of each unseen model on the validation prompts."""
    losses = self.trial.losses(self.trial.validation, self.trial.unseen)
    return np.nanmean(1 - losses, axis=0)

  @property
  def quality(self) -> np.ndarray:
    return 1 - self.trial.losses(self.trial.test, self.trial.unseen)

  @property
  def cost(self) -> np.ndarray:
    return self.trial.matrix.cost[self.trial.unseen]

  def curve(self, gamma: np.ndarray) -> Curve:
    path = price_path.price_path(np.asarray(gamma, float), self.cost, self.quality)
    return path.cost, path.quality


def area(gamma: np.ndarray, losses: np.ndarray, cost: np.ndarray) -> float:
  """Area of a router on the prompts that every model answered."""
  rows = np.isfinite(losses).all(axis=1)
  path = price_path.price_path(gamma[rows], cost, 1 - losses[rows])
  return curve_metrics.area(path.cost, path.quality, low=0.0, high=float(cost.max()))


def prepare(trial: Trial, embed: Embed, seed: int) -> Setting:
  """Numbers of clusters and neighbors by the seen models' areas on the validation prompts.

  The seen models are represented by their losses on the training prompts, those of neighbors on as
  many training prompts as there are validation prompts.
  """
  vectors = embed(trial.train)
  train, validation, test = (vectors[i] for i in (trial.train, trial.validation, trial.test))
  cost = trial.matrix.cost[trial.seen]
  answers = trial.losses(trial.train, trial.seen)
  target = trial.losses(trial.validation, trial.seen)
  by_count = {}
  for count in CLUSTERS:
    centroids = cluster(train, count, seed=seed, restarts=1)
    psi = mean_losses(one_hot(assign(train, centroids), len(centroids)).T, answers)
    by_count[count] = area(psi[assign(validation, centroids)], target, cost), centroids
  few = np.random.default_rng(seed).permutation(len(train))[: len(validation)]
  near = routing.nearest(validation, train[few], max(NEIGHBORS))
  by_k = {
    k: area(mean_losses(neighborhood(near[:, :k], len(few)), answers[few]), target, cost)
    for k in NEIGHBORS
  }
  centroids = max(by_count.values(), key=lambda pair: pair[0])[1]
  levels = (cluster(train, n, seed=seed, restarts=1) for n in (COARSE, FINE))
  coarse, fine = ((assign(train, c), assign(validation, c), assign(test, c)) for c in levels)
  return Setting(
    trial, vectors, centroids, max(by_k, key=lambda k: by_k[k]),
    routing.nearest(test, validation, len(validation)), coarse, fine,
  )  # fmt: skip


def learned_map(setting: Setting) -> Any:
  """Parameters of LearnedMap, trained with the seen models."""
  trial, centroids = setting.trial, setting.centroids
  psi = mean_losses(setting.groups, trial.losses(trial.validation, trial.seen)).T
  answers = trial.losses(trial.train, trial.seen)
  return trained_routers.fit_map(setting.rows('train'), centroids, answers, psi)


def fitted(setting: Setting, name: str, rows: str) -> np.ndarray:
  """Predicted losses of a router that was trained on answers of the unseen models themselves."""
  trial, dimension = setting.trial, setting.vectors.shape[1]
  models = len(trial.unseen)
  predict, start, rate = {
    'MLP': (
      trained_routers.by_perceptron, trained_routers.perceptron(dimension, models), PERCEPTRON_RATE
    ),
    'factorization': (
      trained_routers.by_factorization, trained_routers.factorization(dimension, models),
      FACTOR_RATE,
    ),
  }[name]  # fmt: skip
  losses = trial.losses(getattr(trial, rows), trial.unseen)
  parameters = trained_routers.train(
    predict, start, setting.rows(rows), losses, epochs=EPOCHS, batch=64, learning_rate=rate
  )
  return np.asarray(predict(parameters, {}, setting.rows('test')))


def controls(setting: Setting) -> dict[str, Curve]:
  """Curves of rules that ignore the prompt, and of the oracle."""
  cost, reached = setting.cost, setting.quality.mean(axis=0)
  mixed = universal_routing.constant_rules(cost, setting.validation_quality)
  points = {name: (cost[[*models]], reached[[*models]]) for name, models in mixed.items()}
  return {**points, 'oracle': setting.curve(1 - setting.quality)}


def from_answers(
  setting: Setting, losses: np.ndarray, theta: Any, strengths: Mapping[str, float]
) -> dict[str, np.ndarray]:
  """Predicted losses of the routers that need answers to validation prompts alone.

  Args:
    setting: The trial.
    losses: Losses of the unseen models on the validation prompts; nan where not asked.
    theta: Parameters of LearnedMap.
    strengths: Shrinkage of the clusters, by the ending of the name.
  """
  groups, own = setting.groups, assign(setting.rows('test'), setting.centroids)
  soft = np.asarray(trained_routers.soft_memberships(theta, setting.rows('test')))
  predicted = {}
  for ending, strength in strengths.items():
    psi = mean_losses(groups, losses, strength=strength)
    predicted[f'K-means{ending}'] = psi[own]
    predicted[f'LearnedMap{ending}'] = soft @ psi
  levels = ((level[2], level[1]) for level in (setting.coarse, setting.fine))
  predicted['HierShrink'] = universal_routing.hierarchical(*levels, losses, strength=STRENGTH)
  asked = np.isfinite(losses).any(axis=1)
  near = setting.ranked[asked[setting.ranked]].reshape(len(own), -1)[:, : setting.neighbors]
  predicted['kNN'] = mean_losses(neighborhood(near, len(losses)), losses)
  return predicted


def curves(setting: Setting) -> dict[str, Curve]:
  """Curve of every router of the protocol."""
  trial = setting.trial
  losses = trial.losses(trial.validation, trial.unseen)
  strengths = {'': 0.0, ', shrunk': STRENGTH}
  predicted = from_answers(setting, losses, learned_map(setting), strengths)
  for name in ('MLP', 'factorization'):
    predicted[f'retrained {name}'] = fitted(setting, name, 'validation')
    predicted[f'clairvoyant {name}'] = fitted(setting, name, 'train')
  complete = np.isfinite(losses).all(axis=1)
  near = setting.ranked[complete[setting.ranked]].reshape(len(setting.ranked), -1)
  guarded = universal_routing.guarded_path(
    (1 - losses)[near[:, : setting.neighbors]], setting.validation_quality, setting.cost,
    setting.quality,
  )  # fmt: skip
  return {
    **controls(setting),
    'guarded kNN': guarded,
    **{name: setting.curve(gamma) for name, gamma in predicted.items()},
  }


def numbers(setting: Setting, curve: Curve) -> dict[str, float]:
  """Area, half area, QNC, peak, and the gain over the best single model at its cost."""
  models = {'model_cost': setting.cost, 'model_quality': setting.quality.mean(axis=0)}
  best = curve_metrics.best_single(setting.cost, setting.validation_quality)
  x, y = curve_metrics.ascending(*curve)
  gain = np.interp(setting.cost[best], x, y) - models['model_quality'][best]
  return {**curve_metrics.router_numbers(*curve, **models)._asdict(), 'gain': float(gain)}


def study(setting: Setting, sizes: Sequence[int], seed: int) -> dict[str, dict[str, float]]:
  """Areas of routers whose unseen models answered a few validation prompts, by number of them."""
  trial, groups = setting.trial, setting.groups
  theta = learned_map(setting)
  losses = trial.losses(trial.validation, trial.unseen)
  own = assign(setting.rows('test'), setting.centroids)
  seen = trial.losses(trial.validation, trial.seen)
  factor_model = orders.factors(seen)
  sizes = [size for size in sizes if size <= len(losses)]
  random = np.random.default_rng(seed).permutation(len(losses))
  planned = orders.order(factor_model, groups, sizes[-1])
  results: dict[str, dict[str, float]] = {}
  for size in sizes:
    few = np.full_like(losses, np.nan)
    few[random[:size]] = losses[random[:size]]
    few[:, np.isnan(few).all(axis=0)] = np.nanmean(seen)  # no answer among the few
    predicted = from_answers(setting, few, theta, {', shrunk': STRENGTH})
    predicted['K-means'] = mean_losses(groups, few)[own]
    predicted['ZeroRouter'] = np.tile(np.nanmean(few, axis=0), (len(own), 1))
    for name, asked in (('random prompts, factors', random), ('planned prompts, factors', planned)):
      filled = np.column_stack(
        [
          orders.predict(factor_model, asked[:size][answered], model[asked[:size]][answered])
          for model in losses.T
          for answered in [np.isfinite(model[asked[:size]])]
        ]
      )
      predicted[name] = mean_losses(groups, filled)[own]
    results[str(size)] = {
      name: numbers(setting, setting.curve(gamma))['area'] for name, gamma in predicted.items()
    }
  return results
