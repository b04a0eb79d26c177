"""Ranking of documents: scores of token vectors, losses, the order, and cascades of scorers.

Late interaction, Khattab & Zaharia 2020, https://arxiv.org/abs/2004.12832; LITE, which learns it,
Ji et al. 2024, https://arxiv.org/abs/2406.17968 (`models.lite`).
Axes: B batch, C candidates of a query (the relevant one first, in losses), Q query tokens, L
document tokens, D width, M points of a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades.types import Curve

RankingLoss: TypeAlias = Callable[
  [Float[Array, 'B C'], 'Float[Array, "B C"] | None'], Float[Array, 'B']
]


def similarity(
  query: Float[Array, '*B Q D'], document: Float[Array, '*B L D']
) -> Float[Array, '*B Q L']:
  """Dot products of all token vectors: S = query document^T.

  With one vector a text, S is a single number, the score of a dual encoder.
  """
  return jnp.einsum('...qd,...ld->...ql', query, document)


def max_sim(
  similarities: Float[Array, '*B Q L'],
  query_mask: Bool[Array, '*B Q'],
  document_mask: Bool[Array, '*B L'],
  *,
  top: int = 1,
) -> Float[Array, '*B']:
  """ColBERT's score: sum_i max_j S_ij over the tokens in the masks.

  Args:
    similarities: S, as `similarity` gives it.
    query_mask: True on tokens of the query.
    document_mask: True on tokens of the document; a document without any scores 0.
    top: Number of best aligned document tokens whose mean takes the place of the maximum, as far
      as the document has them.

  Returns:
    The score of each pair. It does not depend on the order of the tokens.
  """
  masked = jnp.where(document_mask[..., None, :], similarities, -jnp.inf)
  if top == 1:
    aligned = masked.max(-1)
    aligned = jnp.where(jnp.isfinite(aligned), aligned, 0)
  else:
    best = jax.lax.top_k(masked, min(top, masked.shape[-1]))[0]
    count = jnp.isfinite(best).sum(-1)
    aligned = jnp.where(jnp.isfinite(best), best, 0).sum(-1) / jnp.maximum(count, 1)
  return jnp.where(query_mask, aligned, 0).sum(-1)


def margin_mse(
  scores: Float[Array, 'B C'], teacher: Float[Array, 'B C'] | None
) -> Float[Array, 'B']:
  """Margin-MSE: the mean over j of ((s_0 - s_j) - (t_0 - t_j))^2. https://arxiv.org/abs/2010.02666.

  A constant added to all scores of a query, or to all of its teacher, changes nothing.
  """
  gap = scores - _required(teacher)
  return jnp.square(gap[:, :1] - gap[:, 1:]).mean(-1)


def listwise_kl(
  scores: Float[Array, 'B C'], teacher: Float[Array, 'B C'] | None, *, temperature: float = 1.0
) -> Float[Array, 'B']:
  """tau^2 KL(softmax(t / tau) || softmax(s / tau)) over the candidates of a query.

  As in https://arxiv.org/abs/1503.02531, tau^2 keeps the size of the gradient; of two candidates
  it becomes (margin gap)^2 / 8 for a large tau.
  """
  own = jax.nn.log_softmax(scores / temperature)
  target = jax.nn.log_softmax(_required(teacher) / temperature)
  return temperature**2 * (jnp.exp(target) * (target - own)).sum(-1)


def contrastive(
  scores: Float[Array, 'B C'], teacher: Float[Array, 'B C'] | None = None
) -> Float[Array, 'B']:
  """One-hot cross-entropy: -log softmax(s)_0. The teacher is not read."""
  del teacher
  return -jax.nn.log_softmax(scores)[:, 0]


def _required(teacher: Float[Array, 'B C'] | None) -> Float[Array, 'B C']:
  if teacher is None:
    raise ValueError(
      'margin_mse and listwise_kl compare with the scores of a teacher, and there is none: give '
      'its scores, or take the loss `contrastive`.'
    )
  return teacher


def order(scores: Float[np.ndarray, 'C'], ids: Sequence[str]) -> Int[np.ndarray, 'C']:
  """Indices from the best document to the worst; equal scores by id, in the order of strings.

  Raises:
    ValueError: A score is no number.
  """
  if np.isnan(scores).any():
    name = ids[int(np.flatnonzero(np.isnan(scores))[0])]
    raise ValueError(f'the score of document {name!r} is no number: nothing can be ranked by it.')
  return np.lexsort((np.asarray(ids), -np.asarray(scores)))


class RankingLevel(NamedTuple):
  """One scorer of a cascade.

  Attributes:
    scores: Scores of each query's candidates; nan where the scorer has not run.
    per_query: Cost of a query before any document is scored, such as encoding it.
    per_document: Cost of scoring a document.
  """

  scores: Sequence[Float[np.ndarray, 'C']]
  per_query: float = 0.0
  per_document: float = 0.0


def cascade_order(
  scores: Sequence[Float[np.ndarray, 'C']], depths: Sequence[int], ids: Sequence[str]
) -> Int[np.ndarray, 'C']:
  """Order of one query's candidates by a cascade.

  The first scorer orders all. Scorer k > 0 reorders the first `depths[k - 1]`, and leaves those
  behind them in their places: documents are moved up only from where the next scorer reads.

  >>> cheap, dear = np.array([3., 2., 1.]), np.array([0., 1., 9.])
  >>> cascade_order([cheap, dear], [2], ['a', 'b', 'c'])
  array([1, 0, 2])

  Args:
    scores: Scores of all candidates by each scorer; those that it does not read may be nan.
    depths: Number of candidates that each scorer after the first reads.
    ids: Id of each candidate.

  Raises:
    ValueError: There is not one depth for each scorer after the first, they grow from one scorer to
      the next, or a score is no number.
  """
  if len(depths) != len(scores) - 1 or any(np.diff([*depths]) > 0) or min([*depths, 0]) < 0:
    raise ValueError(
      f'depths {list(depths)} of {len(scores)} scorers: expected one for each scorer after the '
      'first, none of them below 0 or above the one before.'
    )
  ranked = order(scores[0], ids)
  for own, depth in zip(scores[1:], depths, strict=True):
    head = ranked[:depth]
    ranked = np.append(head[order(own[head], [ids[i] for i in head])], ranked[depth:])
  return ranked


def cascade_cost(
  levels: Sequence[RankingLevel], depths: Sequence[int], counts: Sequence[int]
) -> float:
  """Mean cost of a query: sum_k [per_query_k + read_k per_document_k]; a scorer of depth 0 is free.

  Args:
    levels: The scorers.
    depths: Number of candidates that each scorer after the first reads.
    counts: Number of candidates of each query.
  """
  total = np.zeros(len(counts))
  for level, depth in zip(levels, [max(counts), *depths], strict=True):
    read = np.minimum(counts, depth)
    total += level.per_query * (read > 0) + level.per_document * read
  return float(total.mean())


def cascade_curve(
  levels: Sequence[RankingLevel],
  ids: Sequence[Sequence[str]],
  quality: Callable[[Sequence[Int[np.ndarray, 'C']]], float],
  *,
  depths: Sequence[int],
  before: Sequence[int] = (),
) -> Curve:
  """Quality against cost over the depth of the last scorer.

  A document's deferral score is minus its rank: those of a rank up to `depth` go to the last
  scorer, so the threshold is -depth, and inf at depth 0.

  Args:
    levels: The scorers, the cheapest first.
    ids: Ids of each query's candidates.
    quality: Quality of an order of each query's candidates.
    depths: Ascending depths of the last scorer.
    before: Depths of the scorers between the first and the last.

  Raises:
    ValueError: As in `cascade_order`.
  """
  counts = [len(own) for own in ids]
  points = []
  for depth in depths:
    read = [*before, depth]
    orders = [
      cascade_order([level.scores[i] for level in levels], read, own) for i, own in enumerate(ids)
    ]
    share = np.minimum(counts, depth).sum() / sum(counts)
    cost = cascade_cost(levels, read, counts)
    points.append((-depth if depth else np.inf, share, quality(orders), cost))
  return Curve(*np.array(points, float).T)
