"""Scores that choose training rows: challenging, yet learnable, as a smaller model sees them.

A row's score is the median of its tokens' losses after a filter: a token counts as learnable if it
is among the k most probable ones of the scoring model, and all others as noise. Two readings of the
filter: `zeroed_median` (A) sets the losses of filtered tokens to 0, `filtered_median` (B) leaves
them out. Rawat et al. 2024, https://arxiv.org/abs/2410.18779, section on data selection; the score
is described there in words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# Losses [*n T], learnable tokens, valid tokens -> a score for each row.
RowScore: TypeAlias = Callable[
  [Float[Array, '*n T'], Bool[Array, '*n T'], Bool[Array, '*n T']], Float[Array, '*n']
]


def learnable(
  logits: Float[Array, '*n V'], targets: Int[Array, '*n'], *, k: int
) -> Bool[Array, '*n']:
  """`a_i = [fewer than k tokens are more probable than y_i]`; ties count for the target.

  The token of rank r has a probability of at most 1 / r, so the loss of a token that is not
  learnable is at least log(k + 1).
  """
  logits = logits.astype(jnp.float32)
  of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  return jnp.sum(logits > of_target, axis=-1) < k


def zeroed_median(
  losses: Float[Array, '*n T'], learnable: Bool[Array, '*n T'], valid: Bool[Array, '*n T']
) -> Float[Array, '*n']:
  """Reading A: `median_i a_i l_i` over the valid tokens.

  A row of which more than half of the tokens are not learnable scores 0. It is never above the
  median loss, and never falls with k. Rows without a valid token score -inf.

  Args:
    losses: `l_i = -log p(y_i)` of the scoring model.
    learnable: a_i; see `learnable`.
    valid: target tokens, as opposed to prompts and padding.
  """
  return _median(jnp.where(learnable, losses, 0.0), valid)


def filtered_median(
  losses: Float[Array, '*n T'], learnable: Bool[Array, '*n T'], valid: Bool[Array, '*n T']
) -> Float[Array, '*n']:
  """Reading B: the median of `l_i` over valid tokens with a_i = 1; -inf if there are none."""
  return _median(losses, valid & learnable)


def _median(values: Float[Array, '*n T'], counted: Bool[Array, '*n T']) -> Float[Array, '*n']:
  """The median of the counted values, of an even number the mean of the middle two."""
  ordered = jnp.sort(jnp.where(counted, values.astype(jnp.float32), jnp.inf), axis=-1)
  count = jnp.sum(counted, axis=-1, keepdims=True)
  middle = jnp.concatenate([jnp.maximum(count - 1, 0) // 2, count // 2], axis=-1)
  middle = jnp.minimum(middle, values.shape[-1] - 1)
  median = jnp.mean(jnp.take_along_axis(ordered, middle, axis=-1), axis=-1)
  return jnp.where(count[..., 0] > 0, median, -jnp.inf)


def token_losses(logits: Float[Array, '*n V'], targets: Int[Array, '*n']) -> Float[Array, '*n']:
  """`l_i = -log p(y_i)`, in float32."""
  logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]


def best(scores: Float[np.ndarray, 'N'], rows: float) -> Int[np.ndarray, 'm']:
  """Numbers of the rows of the highest scores, ascending; of equal scores the first rows.

  Args:
    scores: one a row.
    rows: number of rows, an integer, or a fraction of all, a number below 1; at least one row.

  Raises:
    ValueError: if there are fewer rows, or a score is not a number.
  """
  scores = np.asarray(scores)
  count = rows if isinstance(rows, int) else max(round(rows * len(scores)), 1)
  if not 1 <= count <= len(scores):
    raise ValueError(f'{rows} of {len(scores)} rows cannot be selected: choose at most all.')
  if np.isnan(scores).any():
    raise ValueError(f'the score of row {int(np.isnan(scores).argmax())} is not a number.')
  return np.sort(np.argsort(-scores, kind='stable')[:count])
