"""ResMem: a base model plus a nearest-neighbor regression of its own residuals.

    r_i(T)    = onehot(y_i) - softmax(f(x_i) / T)                   residual of entry i
    w_i(x)    = exp(-||phi(x) - phi(x_i)|| / sigma), normalized     over the k nearest entries
    f_ResMem  = softmax(f(x) / T) + sum_i w_i(x) r_i(T)             sums to 1, leaves [0, 1]
    f_kNN-LM  = (1 - lambda) softmax(f(x) / T) + lambda sum_i w_i(x) onehot(y_i)

Yang et al. 2023, https://arxiv.org/abs/2302.01576, of whose equations only the scheme was at hand:
that the same T stands in both places is ours, and is what makes memorization exact. Khandelwal et
al. 2020, https://arxiv.org/abs/1911.00172, weigh by exp(-squared distance); here both weigh alike.
Regression is `add` with residuals y - f. Embeddings are not normalized.

Axes: Q queries, N entries, D width, k neighbors, L classes or tokens, m stored probabilities.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

# Indices of the nearest entries, nearest first: (queries, keys, k) -> [Q, k].
Search: TypeAlias = Callable[[Float[Array, 'Q D'], Float[Array, 'N D'], int], Int[Array, 'Q k']]
# Error of each prediction, whose entries may leave [0, 1].
Criterion: TypeAlias = Callable[[Float[Array, 'Q L'], Int[Array, 'Q']], Float[Array, 'Q']]

FLOOR = 1e-6  # least probability before `clip` renormalizes
NEIGHBORS = (1, 5, 10, 20, 50, 100)
BANDWIDTHS = (0.1, 0.3, 0.7, 1.0, 3.0)  # times the median distance of a neighbor
TEMPERATURES = (0.7, 1.0, 1.4, 2.0)
INTERPOLATIONS = (0.1, 0.25, 0.5, 0.75, 0.9)


class Lookup(NamedTuple):
  """Combination of a prediction with its neighbors.

  Attributes:
    k: Number of neighbors.
    sigma: Distance at which a weight falls by e; inf weighs all neighbors alike.
    temperature: Divisor T of the base model's logits, here and in the residuals.
    interpolation: None adds residuals (ResMem); lambda interpolates with the neighbors' labels
      (kNN-LM).
  """

  k: int
  sigma: float | Array
  temperature: float | Array = 1.0
  interpolation: float | Array | None = None


class Datastore(NamedTuple):
  """Entries of a memory of next tokens.

  Attributes:
    keys: Final hidden states, before the readout.
    tokens: Tokens that followed.
    top_tokens: Most probable tokens under the base model; None to read the keys out again.
    top_logprobs: Their log-probabilities at temperature 1.
  """

  keys: Float[Array, 'N D']
  tokens: Int[Array, 'N']
  top_tokens: Int[Array, 'N m'] | None = None
  top_logprobs: Float[Array, 'N m'] | None = None


def residuals(
  logits: Float[Array, '*n L'], labels: Int[Array, '*n'], *, temperature: float | Array = 1.0
) -> Float[Array, '*n L']:
  """Residuals onehot(y) - softmax(f / T); each sums to 0."""
  return jax.nn.one_hot(labels, logits.shape[-1]) - jax.nn.softmax(logits / temperature)


def nearest(
  queries: Float[Array, 'Q D'],
  keys: Float[Array, 'N D'],
  k: int,
  *,
  excluded: Int[Array, 'Q'] | None = None,
  groups: Int[Array, 'N'] | None = None,
  block: int = 4096,
) -> Int[Array, 'Q k']:
  """Exact Euclidean nearest neighbors, nearest first, ties by index.

  Distances exist for one block of queries and one of keys at a time: memory is O(block^2 / 4), not
  O(Q N). They are compared as ||key||^2 - 2 <query, key>, about the first key, in float32.

  Args:
    queries: Vectors to search for.
    keys: Entries.
    k: Number of neighbors.
    excluded: One entry for each query that is not its neighbor, itself in leave-one-out; negative
      for none.
    groups: Group of each entry, such as its text; then `excluded` are groups, and what is left must
      have k entries.
    block: Keys of a block; a quarter as many queries are searched for at a time.

  Raises:
    ValueError: There are fewer than k entries, or nothing is left of them.
  """
  Q, N = len(queries), len(keys)
  if not 1 <= k <= N - (excluded is not None):
    raise ValueError(
      f'k={k} neighbors among {N} entries{" without itself" if excluded is not None else ""}: '
      'choose k from 1 to the number of entries.'
    )
  center = keys[0]
  size, rows = min(block, N), min(max(1, block // 4), Q)
  padded = jnp.pad(keys - center, ((0, -N % size), (0, 0))).reshape(-1, size, keys.shape[1])
  masked = jnp.full(Q, -1) if excluded is None else excluded
  owners = None if groups is None else jnp.pad(groups, (0, -N % size)).reshape(-1, size)

  def search(batch: tuple[Array, Array]) -> Array:
    q, own = batch

    def merge(best: tuple[Array, Array], numbered: Any) -> tuple[tuple[Array, Array], None]:
      start, entries, group = numbered
      index = start + jnp.arange(size)
      owner = index if group is None else group
      dot = jnp.matmul(q, entries.T, precision=jax.lax.Precision.HIGHEST)
      score = 2.0 * dot - jnp.sum(entries**2, -1)
      score = jnp.where((index < N) & (owner != own[:, None]), score, -jnp.inf)
      top, chosen = jax.lax.top_k(jnp.concatenate([best[0], score], 1), k)
      earlier = jnp.take_along_axis(best[1], jnp.minimum(chosen, k - 1), 1)
      return (top, jnp.where(chosen < k, earlier, start + chosen - k)), None

    empty = jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32)
    starts = size * jnp.arange(len(padded))
    return jax.lax.scan(merge, empty, (starts, padded, owners))[0][1]

  q = jnp.pad(queries - center, ((0, -Q % rows), (0, 0))).reshape(-1, rows, keys.shape[1])
  own = jnp.pad(masked, (0, -Q % rows)).reshape(-1, rows)
  return jax.lax.map(search, (q, own)).reshape(-1, k)[:Q]


def distances(
  queries: Float[Array, 'Q D'], keys: Float[Array, 'N D'], neighbors: Int[Array, 'Q k']
) -> Float[Array, 'Q k']:
  """Euclidean distances to chosen entries, by differences; the width is summed over at once."""
  squares = jax.lax.map(
    lambda column: jnp.sum((queries - keys[column]) ** 2, -1), jnp.moveaxis(neighbors, 1, 0)
  )
  return jnp.sqrt(jnp.moveaxis(squares, 0, 1))


def weights(distance: Float[Array, '*n k'], sigma: float | Array) -> Float[Array, '*n k']:
  """Weights exp(-distance / sigma), normalized to sum to 1; the nearest alone for sigma -> 0."""
  return jax.nn.softmax((distance.min(-1, keepdims=True) - distance) / sigma, -1)


def add(
  base: Float[Array, 'Q L'], weight: Float[Array, 'Q k'], residual: Float[Array, 'Q k L']
) -> Float[Array, 'Q L']:
  """Base predictions plus the weighted residuals of their neighbors; for any real targets."""
  return base + jnp.einsum('qk,qkl->ql', weight, residual)


def classify(
  logits: Float[Array, 'Q L'],
  distance: Float[Array, 'Q k'],
  neighbor_logits: Float[Array, 'Q k L'],
  labels: Int[Array, 'Q k'],
  lookup: Lookup,
) -> Float[Array, 'Q L']:
  """Combine predictions with neighbors, of which the first `lookup.k` are read.

  Args:
    logits: Base logits of the queries.
    distance: Distances of neighbors, ascending.
    neighbor_logits: Base logits of the neighbors.
    labels: Labels of the neighbors.
    lookup: Number of neighbors, weights, temperature, and ResMem or kNN-LM.
  """
  base = jax.nn.softmax(logits / lookup.temperature)
  weight, read = weights(distance[:, : lookup.k], lookup.sigma), np.s_[:, : lookup.k]
  if lookup.interpolation is not None:
    votes = jnp.einsum('qk,qkl->ql', weight, jax.nn.one_hot(labels[read], logits.shape[-1]))
    return (1.0 - lookup.interpolation) * base + lookup.interpolation * votes
  residual = residuals(neighbor_logits[read], labels[read], temperature=lookup.temperature)
  return add(base, weight, residual)


def next_token(
  logits: Float[Array, 'Q V'],
  distance: Float[Array, 'Q k'],
  neighbors: Int[Array, 'Q k'],
  memory: Datastore,
  readout: Callable[[Float[Array, 'Q D']], Float[Array, 'Q V']],
  lookup: Lookup,
) -> Float[Array, 'Q V']:
  """Same as `classify` for vocabularies: one neighbor is read at a time, with memory O(Q V).

  A stored distribution is its most probable tokens and a uniform rest, tempered as it is.

  Args:
    logits: Base logits of the queries.
    distance: Distances of neighbors, ascending.
    neighbors: Indices of the neighbors, of which the first `lookup.k` are read.
    memory: Entries.
    readout: Logits of hidden states, where the memory stores no probabilities.
    lookup: Number of neighbors, weights, temperature, and ResMem or kNN-LM.
  """
  Q, V = logits.shape
  base, row = jax.nn.softmax(logits / lookup.temperature), jnp.arange(Q)
  weight = weights(distance[:, : lookup.k], lookup.sigma)
  scale = 1.0 if lookup.interpolation is None else lookup.interpolation

  def read(total: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
    w, index = column
    total = total.at[row, memory.tokens[index]].add(scale * w)
    if lookup.interpolation is not None:
      return total, None
    if memory.top_tokens is None or memory.top_logprobs is None:
      own = jax.nn.softmax(readout(memory.keys[index]) / lookup.temperature)
      return total - w[:, None] * own, None
    top, rest = tempered(memory.top_logprobs[index], V, lookup.temperature)
    total = total.at[row[:, None], memory.top_tokens[index]].add(w[:, None] * (rest - top))
    return total - w[:, None] * rest, None

  start = base if lookup.interpolation is None else (1.0 - lookup.interpolation) * base
  columns = jnp.moveaxis(weight, 1, 0), jnp.moveaxis(neighbors[:, : lookup.k], 1, 0)
  return jax.lax.scan(read, start, columns)[0]


def tempered(
  top_logprobs: Float[Array, '*n m'], vocab_size: int, temperature: float | Array
) -> tuple[Float[Array, '*n m'], Float[Array, '*n 1']]:
  """Probabilities of stored tokens, and of each other token, at a temperature.

  The mass that is not stored is spread evenly. For log(0.5, 0.3), V = 4 and T = 1: (0.5, 0.3), 0.1.
  """
  others = max(vocab_size - top_logprobs.shape[-1], 1)
  mass = jnp.maximum(1.0 - jnp.exp(top_logprobs).sum(-1, keepdims=True), 1e-12)
  top = jnp.exp(top_logprobs / temperature)
  rest = jnp.where(vocab_size > top_logprobs.shape[-1], mass / others, 0.0) ** (1.0 / temperature)
  total = top.sum(-1, keepdims=True) + (vocab_size - top_logprobs.shape[-1]) * rest
  return top / total, rest / total


def clip(prediction: Float[Array, '*n L'], floor: float = FLOOR) -> Float[Array, '*n L']:
  """Distribution of a signed prediction: entries below `floor` are raised to it, then rescaled."""
  raised = jnp.maximum(prediction, floor)
  return raised / raised.sum(-1, keepdims=True)


def squared_error(prediction: Float[Array, 'Q L'], labels: Int[Array, 'Q']) -> Float[Array, 'Q']:
  """Squared distance to the one-hot label, proper for signed predictions too."""
  return jnp.sum((prediction - jax.nn.one_hot(labels, prediction.shape[-1])) ** 2, -1)


def log_loss(prediction: Float[Array, 'Q L'], labels: Int[Array, 'Q']) -> Float[Array, 'Q']:
  """Negative log-probability of the label after `clip`."""
  return -jnp.log(jnp.take_along_axis(clip(prediction), labels[:, None], -1)[:, 0])


def error(prediction: Float[Array, 'Q L'], labels: Int[Array, 'Q']) -> Float[Array, 'Q']:
  """1 where another entry than the label's is the largest."""
  return jnp.asarray(prediction.argmax(-1) != labels, jnp.float32)


def grid(
  median: float, entries: int, *, interpolate: bool, neighbors: Sequence[int] = NEIGHBORS
) -> Iterator[Lookup]:
  """Lookups to choose from: ResMem's over T, or kNN-LM's over lambda at T = 1.

  Args:
    median: Median distance of a neighbor; bandwidths are multiples of it.
    entries: Number of entries; larger k are left out.
    interpolate: True for kNN-LM.
    neighbors: Numbers of neighbors. With k = 1 weights do not depend on sigma: one is tried.
  """
  scale = max(median, 1e-12)
  options = INTERPOLATIONS if interpolate else TEMPERATURES
  for k, bandwidth, option in itertools.product(neighbors, BANDWIDTHS, options):
    if k <= entries and not (k == 1 and bandwidth != 1.0):
      mix: dict[str, float] = {'interpolation': option} if interpolate else {'temperature': option}
      yield Lookup(k, bandwidth * scale, **mix)


def tune(
  predict: Callable[[Lookup], Float[Array, 'Q L']],
  labels: Int[Array, 'Q'],
  lookups: Sequence[Lookup],
  *,
  criterion: Criterion = squared_error,
) -> tuple[Lookup, list[float]]:
  """Lookup of the lowest mean error, and the errors of all; the first of equal ones.

  `predict` must leave each query out of its own neighbors (`excluded` of `nearest`): otherwise
  k = 1 reproduces every label and is always chosen.
  """
  if not lookups:
    raise ValueError('There is no lookup to choose from: the memory needs two entries or more.')
  errors = [float(criterion(predict(lookup), labels).mean()) for lookup in lookups]
  return lookups[int(np.argmin(errors))], errors
