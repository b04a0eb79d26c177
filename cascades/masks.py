"""Token masks: which target tokens a loss counts.

Each maps (small logits, large model, targets) to one bit a token. Piecewise constant in the
logits: no gradient flows through a mask. Argmax ties go to the lowest id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cascades.teachers import Teacher

TokenMask: TypeAlias = Callable[
  [Float[Array, '*n V'], Teacher | None, Int[Array, '*n']], Bool[Array, '*n']
]


def all_tokens(
  small: Float[Array, '*n V'], large: Teacher | None, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """Every token counts."""
  del small, large
  return jnp.ones(targets.shape, bool)


def small_correct(
  small: Float[Array, '*n V'], large: Teacher | None, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`c_S = [y = argmax p_S]`."""
  del large
  return jnp.argmax(small.astype(jnp.float32), axis=-1) == targets


def large_correct(
  small: Float[Array, '*n V'], large: Teacher | None, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`c_L = [y = argmax p_L]`."""
  del small
  if large is None:
    raise ValueError(
      'this loss asks which tokens the large model predicts, and no large model is given: '
      'give one (LARGE_CHECKPOINT_PATH or TEACHER_CACHE), or train with xent.'
    )
  return large.top1() == targets


def either_correct(
  small: Float[Array, '*n V'], large: Teacher | None, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`alpha = [y = argmax p_S  or  y = argmax p_L]`, the mask of cascade-aware training.

  Wang et al. 2024, https://arxiv.org/abs/2406.00060, equation 8.
  """
  return small_correct(small, large, targets) | large_correct(small, large, targets)


def count_agreement(
  small: Float[Array, '*n V'],
  large: Teacher | None,
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
) -> dict[str, Float[Array, '']]:
  """How many tokens both models, only one, or neither predict; without a large model, how many
  the small one predicts. The counts are weighted sums; they add up to `weights.sum()`."""
  by_small = small_correct(small, large, targets)
  if large is None:
    return {'correct': jnp.sum(weights, where=by_small)}
  by_large = large_correct(small, large, targets)
  return {
    'both': jnp.sum(weights, where=by_small & by_large),
    'only_small': jnp.sum(weights, where=by_small & ~by_large),
    'only_large': jnp.sum(weights, where=~by_small & by_large),
    'neither': jnp.sum(weights, where=~by_small & ~by_large),
  }
