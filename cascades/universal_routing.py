"""Predicted losses of any models, unseen ones included, from their errors on a validation set.

UniRoute (Jitkrittum et al. 2025, https://arxiv.org/abs/2502.08773) predicts the loss of model h on
prompt x as an inner product of a vector of the prompt and a vector of the model,

    gamma(x, h) = Phi(x) . Psi(h),    Psi_k(h) = mean loss of h on the validation prompts of group k

so that a model joins with its answers to the validation prompts alone, and leaves without a trace.
Groups are clusters of the training prompts' embeddings, found without labels; Phi is one-hot, or
learned: a softmax over the clusters (`trained_routers`). With each validation prompt a group of its
own, Phi(x) = 1/k at the k nearest, it is the k-nearest-neighbors router.

Answers that are missing, nan, are left out of every mean, and never counted as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from cascades import curve_metrics, prompt_tokens, routing
from cascades.prompt_tokens import Charged, PromptTokens

Vectors = Float[np.ndarray, 'N D']
Losses = Float[np.ndarray, 'V J']  # of J models on V validation prompts; nan where not answered
# Group of each prompt, or its memberships.
Position: TypeAlias = Int[np.ndarray, 'N'] | Float[np.ndarray, 'N K']

BLOCK = 1 << 22  # products of memberships and values at a time
RESTARTS = 10  # of K-means, of which the best is taken
FINE = 5  # clusters of each coarse one on average, as HierShrink's 100 and 20


def cluster(
  vectors: Vectors, count: int, *, seed: int = 0, restarts: int = RESTARTS
) -> Float[np.ndarray, 'K D']:
  """Centroids of K-means with k-means++ seeds; as many as there are distinct vectors at most.

  scikit-learn moves a cluster that becomes empty to the farthest vector.

  Args:
    vectors: Embeddings of the training prompts.
    count: Number of clusters.
    seed: Seed of the restarts.
    restarts: Number of runs, of which the one of least inertia is taken.

  Raises:
    ValueError: There is no vector, or less than one cluster.
  """
  from sklearn.cluster import KMeans

  if count < 1 or not len(vectors):
    raise ValueError(f'{count} clusters of {len(vectors)} prompts; both must be 1 or more.')
  distinct = np.unique(vectors, axis=0) if count > 1 else vectors[:1]
  count = min(count, len(distinct))
  model = KMeans(count, n_init=restarts, random_state=seed).fit(np.asarray(vectors, float))
  return np.asarray(model.cluster_centers_)


def assign(vectors: Vectors, centroids: Float[np.ndarray, 'K D']) -> Int[np.ndarray, 'N']:
  """Nearest centroid of each vector by Euclidean distance, the first of equals."""
  return np.argmin(np.sum(centroids**2, axis=1) - 2 * (vectors @ centroids.T), axis=1)


def one_hot(groups: Int[np.ndarray, 'N'], count: int) -> Float[np.ndarray, 'N K']:
  """Phi of prompts that belong to one group each."""
  return (groups[:, None] == np.arange(count)).astype(float)


def soft_memberships(
  vectors: Vectors, theta: Float[np.ndarray, 'K D'], bias: Float[np.ndarray, 'K']
) -> Float[np.ndarray, 'N K']:
  """Phi of LearnedMap, softmax of theta_k . phi(x) + bias_k; see `trained_routers`."""
  return np.asarray(softmax(vectors @ theta.T + bias, axis=1))


def neighborhood(rows: Int[np.ndarray, 'N k'], count: int) -> Float[np.ndarray, 'N V']:
  """Phi of the k-nearest-neighbors router: 1/k at each prompt's neighbors among V prompts."""
  phi = np.zeros((len(rows), count))
  np.put_along_axis(phi, rows, 1 / rows.shape[1], axis=1)
  return phi


def mean_losses(
  weights: Float[np.ndarray, 'G V'], losses: Losses,
  *, prior: Float[np.ndarray, '*G J'] | None = None, strength: float = 0.0,
) -> Float[np.ndarray, 'G J']:  # fmt: skip
  """Mean loss of each model in each group of validation prompts, pulled toward a prior.

      (sum_v w_gv l_vm + a p_gm) / (sum_v w_gv + a),    v over the prompts that m answered

  With the weights of clusters, `one_hot(...).T`, these are Psi_k(h), one column a model. With those
  of neighbors they are gamma(x, h) of the k-nearest-neighbors router. A group without an answer
  takes the prior.

  Args:
    weights: Weight of each validation prompt in each group.
    losses: Loss of each answer; nan where there is none.
    prior: Loss p of each model, or of each group and model; None for the model's mean loss.
    strength: Number a of answers that the prior counts for.

  Raises:
    ValueError: A model answered no validation prompt, or the strength is negative.
  """
  if not strength >= 0:
    raise ValueError(f'The strength of shrinkage is {strength}; it must be 0 or more.')
  answered = np.isfinite(losses)
  if (empty := np.flatnonzero(~answered.any(axis=0))).size:
    raise ValueError(f'Model {empty[0]} answered no validation prompt.')
  filled = np.where(answered, losses, 0.0)
  if prior is None:
    prior = filled.sum(axis=0) / answered.sum(axis=0)
  count = weights @ answered.astype(float)
  total = weights @ filled + strength * prior
  empty_groups = count + strength <= 0
  means = total / np.where(empty_groups, 1.0, count + strength)
  return np.where(empty_groups, prior, means)


def paired_losses(
  coarse: Float[np.ndarray, 'C V'], fine: Float[np.ndarray, 'F V'], losses: Losses,
  *, strength: float,
) -> Float[np.ndarray, 'C*F J']:  # fmt: skip
  """Psi of every pair of a coarse and a fine cluster, each pulled toward the level above.

      b_c = (n_c m_c + a mean) / (n_c + a),    Psi_cf = (n_f m_f + a b_c) / (n_f + a)

  n and m are the number and mean loss of a model's answers in a cluster. HierShrink,
  https://github.com/vllm-project/semantic-router/issues/3459, which takes 20 and 100 clusters and
  a = 24. Both levels are clusters of the prompts, so that a fine cluster may lie in several coarse
  ones.

  Args:
    coarse: Weight of each validation prompt in each coarse cluster.
    fine: Weight of each in each fine cluster.
    losses: Loss of each answer; nan where there is none.
    strength: Number a of answers that the level above counts for.

  Returns:
    Psi of the pair (c, f) in the row c F + f.
  """
  above = mean_losses(coarse, losses, strength=strength)
  pairs = mean_losses(fine, losses, prior=above[:, None], strength=strength)
  return pairs.reshape(-1, losses.shape[1])


def hierarchical(
  coarse: tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'V']],
  fine: tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'V']],
  losses: Losses,
  *,
  strength: float = 24.0,
) -> Float[np.ndarray, 'N J']:
  """Predicted losses from two levels of clusters, see `paired_losses`.

  Args:
    coarse: Coarse clusters of the prompts, and of the validation prompts.
    fine: Fine clusters of both.
    losses: Loss of each answer to a validation prompt; nan where there is none.
    strength: Number of answers that the level above counts for.
  """
  above, below = (1 + max(groups.max() for groups in level) for level in (coarse, fine))
  weights = one_hot(coarse[1], above).T, one_hot(fine[1], below).T
  return paired_losses(*weights, losses, strength=strength)[coarse[0] * below + fine[0]]


def coarse_clusters(vectors: Vectors, fine: int, *, seed: int = 0) -> Float[np.ndarray, 'C D']:
  """Centroids of the level above `fine` clusters: one for each `FINE` of them."""
  return cluster(vectors, max(1, fine // FINE), seed=seed)


def nested_losses(
  weights: Float[np.ndarray, 'K V'], coarse: Int[np.ndarray, 'K'], losses: Losses,
  *, strength: float,
) -> Float[np.ndarray, 'K J']:  # fmt: skip
  """Psi of clusters that lie in one coarse cluster each, of routers of version 2.

  As `paired_losses`, with the coarse cluster of a prompt that of its fine one.

  Args:
    weights: Weight of each validation prompt in each fine cluster.
    coarse: Coarse cluster of each fine one, from 0 on.
    losses: Loss of each answer; nan where there is none.
    strength: Number of answers that the level above counts for.
  """
  sums = one_hot(coarse, int(coarse.max()) + 1).T @ weights
  above = mean_losses(sums, losses, strength=strength)[coarse]
  return mean_losses(weights, losses, prior=above, strength=strength)


class Pool(NamedTuple):
  """Models that a router chooses among.

  Costs of a prompt are estimated as losses are: by means over the validation prompts of its group,
  but for its own tokens, if they are charged for.

  Attributes:
    names: Name of each model.
    cost: Mean cost of each model.
    psi: Mean loss of each model in each group of prompts, Psi; one row a model.
    answers: Number of validation prompts that each model answered.
    group_cost: Mean cost of each model in each group; None where no model's costs differ by prompt.
    tokens: Prompt tokens that models charge for; None where none does.
  """

  names: tuple[str, ...]
  cost: Float[np.ndarray, 'J']
  psi: Float[np.ndarray, 'J K']
  answers: Int[np.ndarray, 'J']
  group_cost: Float[np.ndarray, 'J K'] | None = None
  tokens: PromptTokens | None = None

  def add(
    self, name: str, cost: float | Float[np.ndarray, 'V'], losses: Float[np.ndarray, 'V'],
    means: Callable[[Losses], Float[np.ndarray, 'K J']], charged: Charged | None = None,
  ) -> Pool:  # fmt: skip
    """Pool with one more model; the rows of the others stay as they are.

    Args:
      name: Its name.
      cost: Its cost, or that of each validation prompt; nan where it has not answered.
      losses: Its loss on each validation prompt; nan where it has not answered.
      means: Function from values of the validation prompts to their means in each group, such as
        `mean_losses`.
      charged: Prompt tokens that it charges for, as part of its costs by prompt.

    Raises:
      ValueError: The pool has a model of that name, a cost is negative or not finite, or there is
        no answer.
    """
    if name in self.names:
      raise ValueError(f'The pool has a model {name!r} already.')
    if not np.isfinite(losses).any():
      raise ValueError(f'Model {name!r} answered none of the {len(losses)} validation prompts.')
    by_prompt = np.ndim(cost) > 0
    paid = np.ravel(cost)
    paid = paid[~np.isnan(paid)] if by_prompt else paid
    if (bad := paid[~(np.isfinite(paid) & (paid >= 0))]).size or not paid.size:
      value = f'{bad[0]:g}' if bad.size else 'nothing that is known'
      raise ValueError(f'Model {name!r} costs {value}; a cost is a finite number of 0 or more.')
    group_cost = self.group_cost
    if by_prompt or group_cost is not None:
      before = self.costs_by_group
      own = means(np.reshape(cost, (-1, 1))).T if by_prompt else np.full((1, before.shape[1]), cost)
      group_cost = np.concatenate([before, own])
    tokens, groups = self.tokens, self.psi.shape[1]
    if charged is not None or tokens is not None:
      own_tokens = prompt_tokens.free(1, groups)
      if charged is not None:
        own_tokens = PromptTokens(
          np.array([charged.price]), means(charged.tokens[:, None]).T,
          prompt_tokens.line(charged.characters, charged.tokens)[None],
        )  # fmt: skip
      tokens = (tokens or prompt_tokens.free(len(self.names), groups)).append(own_tokens)
    psi = means(losses[:, None]).T
    return Pool(
      (*self.names, name),
      np.append(self.cost, paid.mean()),
      np.concatenate([self.psi, psi.astype(self.psi.dtype)]),
      np.append(self.answers, np.isfinite(losses).sum()),
      group_cost,
      tokens,
    )

  @property
  def costs_by_group(self) -> Float[np.ndarray, 'J K']:
    """Mean cost of each model in each group."""
    if self.group_cost is None:
      return np.broadcast_to(self.cost[:, None], self.psi.shape)
    return self.group_cost

  def remove(self, name: str) -> Pool:
    """Pool without a model. Raises ValueError if it has no such model."""
    if name not in self.names:
      raise ValueError(f'The pool has no model {name!r}; it has {", ".join(self.names)}.')
    keep = [index for index, other in enumerate(self.names) if other != name]
    return Pool(
      tuple(self.names[i] for i in keep), self.cost[keep], self.psi[keep], self.answers[keep],
      None if self.group_cost is None else self.group_cost[keep],
      None if self.tokens is None else self.tokens.keep(keep),
    )  # fmt: skip

  def predict(
    self, position: Position, tokens: Float[np.ndarray, 'N J'] | None = None
  ) -> tuple[Float[np.ndarray, 'N J'], Float[np.ndarray, 'N J']]:
    """Predicted loss gamma and estimated cost of each model on prompts.

    Args:
      position: Group of each prompt, or its memberships Phi.
      tokens: Tokens of each prompt for each model; None for the mean ones of its group.
    """
    losses = mixed(self.psi.T, position)
    if self.group_cost is None:
      return losses, np.broadcast_to(self.cost, losses.shape)
    cost = mixed(self.group_cost.T, position)
    if tokens is None or self.tokens is None:
      return losses, cost
    mean = mixed(self.tokens.by_group.T, position)
    return losses, prompt_tokens.moved(cost, self.tokens.price, tokens, mean)


def mixed(values: Float[np.ndarray, 'K J'], position: Position) -> Float[np.ndarray, 'N J']:
  """Phi(x) . Psi: the values of the group of each prompt, or of all of them by its memberships.

  Models of equal values have equal sums; a matrix product may round them differently.
  """
  if position.ndim == 1:
    return values[position].astype(float)
  values = values.astype(float)
  rows = max(1, BLOCK // values.size)
  starts = range(0, max(1, len(position)), rows)
  return np.concatenate([(position[at : at + rows, :, None] * values).sum(axis=1) for at in starts])


def empty_pool(groups: int) -> Pool:
  """Pool without models, to which they are added."""
  return Pool((), np.empty(0), np.empty((0, groups), np.float32), np.empty(0, np.int64))


def zero_router(cost: Float[np.ndarray, 'J'], quality: Float[np.ndarray, 'J']) -> Sequence[int]:
  """Models between which ZeroRouter mixes, by ascending cost, whatever the prompt.

  The corners of the upper concave hull of the models' validation points; a budget between two of
  them is met by drawing the dearer one with probability (B - c_1) / (c_2 - c_1). Hu et al. 2024
  (RouterBench), https://arxiv.org/abs/2403.12031.

  Args:
    cost: Cost of each model.
    quality: Mean quality of each model on the validation prompts.
  """
  return curve_metrics.hull_points(cost, quality).tolist()


def constant_rules(
  cost: Float[np.ndarray, 'J'], quality: Float[np.ndarray, 'J']
) -> Mapping[str, Sequence[int]]:
  """Models between which rules mix that ignore the prompt, by the name of the rule.

  Each rule draws between two models that follow one another in its list, in the order of cost:

      ZeroRouter     the hull of the validation points, see `zero_router`
      best single    the cheapest model and the best one
      random         the cheapest model and the dearest one
      cost only      all models

  Args:
    cost: Cost of each model.
    quality: Mean quality of each model on the validation prompts.
  """
  by_cost = np.argsort(cost, kind='stable').tolist()
  best = curve_metrics.best_single(cost, quality)
  return {
    'ZeroRouter': zero_router(cost, quality),
    'best single': [best] if best == by_cost[0] else [by_cost[0], best],
    'random': [by_cost[0], by_cost[-1]],
    'cost only': by_cost,
  }


def guarded_path(
  near: Float[np.ndarray, 'N k J'], mean: Float[np.ndarray, 'J'],
  cost: Float[np.ndarray, 'J'], quality: Float[np.ndarray, 'N J'],
) -> tuple[Float[np.ndarray, 'P'], Float[np.ndarray, 'P']]:  # fmt: skip
  """Mean cost and quality of the guarded nearest neighbors, at each of `routing.prices`.

  The guard depends on the price, so that a grid of prices takes the place of `price_path`.

  Args:
    near: Validation quality of each model on the neighbors of each prompt.
    mean: Mean validation quality of each model.
    cost: Cost of each model.
    quality: Quality of each model's answer to each prompt.
  """
  rows = np.arange(len(quality))
  chosen = [
    routing.guarded_choice(near, mean, cost, price=price) for price in routing.prices(mean, cost)
  ]
  return (
    np.array([cost[models].mean() for models in chosen]),
    np.array([quality[rows, models].mean() for models in chosen]),
  )
