"""Training losses of the small model: token loss x token mask.

A cell of the grid {cross-entropy, distillation mixture} x {all, either, large, small correct} maps
(small logits [*n, V], large logits [*n, V], targets [*n], weights [*n]) to (sum, count). Divide
the sums of all devices and microbatches by the sum of the counts: the number of valid target
tokens, masked or not, so that the cells compare.

Wang et al. 2024, Cascade-Aware Training, https://arxiv.org/abs/2406.00060, equations 2-3, 7-14.
No label smoothing, no z-loss, no distillation temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cascades import masks
from cascades.teachers import Large, Teacher, as_teacher

TokenLoss: TypeAlias = Callable[
  [Float[Array, '*n V'], Teacher | None, Int[Array, '*n']], Float[Array, '*n']
]
CascadeLoss: TypeAlias = Callable[
  [Float[Array, '*n V'], Large, Int[Array, '*n'], Float[Array, '*n']],
  tuple[Float[Array, ''], Float[Array, '']],
]


def cross_entropy(
  small: Float[Array, '*n V'], large: Teacher | None, targets: Int[Array, '*n']
) -> Float[Array, '*n']:
  """`l_i = -log p_S(y_i | x, y_<i)`. Per token: no masking, no mean."""
  del large
  return optax.softmax_cross_entropy_with_integer_labels(small, targets)


def distillation(
  small: Float[Array, '*n V'], large: Teacher | None, targets: Int[Array, '*n']
) -> Float[Array, '*n']:
  """`l_i = -sum_v p_L(v | x, y_<i) log p_S(v | x, y_<i)`, a cross-entropy and not a divergence:
  it exceeds KL(p_L || p_S) by the entropy of p_L, which has no gradient.

  Hinton et al. 2015, https://arxiv.org/abs/1503.02531. Per token: no masking, no mean.
  """
  del targets
  if large is None:
    raise ValueError(
      'distillation needs a large model, and none is given: give one (LARGE_CHECKPOINT_PATH or '
      'TEACHER_CACHE), or train with xent.'
    )
  return large.cross_entropy(jax.nn.log_softmax(small))


def mixture(
  small: Float[Array, '*n V'],
  large: Teacher | None,
  targets: Int[Array, '*n'],
  *,
  w: float,
) -> Float[Array, '*n']:
  """`w * cross_entropy + (1 - w) * distillation`, w in [0, 1]."""
  if not 0 <= w <= 1:
    raise ValueError(f'the weight w of the cross-entropy must lie in [0, 1]; it is {w}.')
  hard = cross_entropy(small, large, targets)
  return w * hard + (1 - w) * distillation(small, large, targets)


def cascade_loss(
  small: Float[Array, '*n V'],
  large: Large,
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
  *,
  token_loss: TokenLoss,
  token_mask: masks.TokenMask,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """`(sum_i weights_i alpha_i l_i,  sum_i weights_i)` in float32.

  alpha is the token mask, recomputed from the current small model and constant for the gradient.
  `weights` is 1 on target tokens, end of sequence included, and 0 on prompts and padding.
  """
  small = jnp.asarray(small, jnp.float32)
  teacher = as_teacher(large, small.shape[-1])
  kept = token_mask(jax.lax.stop_gradient(small), teacher, targets) * weights
  losses = jnp.where(kept > 0, token_loss(small, teacher, targets), 0.0)
  return jnp.sum(losses * kept), jnp.sum(weights)


def _mixture_loss(
  small: Float[Array, '*n V'],
  large: Large,
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
  *,
  token_mask: masks.TokenMask,
  w: float = 0.5,
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """`cascade_loss` of the mixture, with its weight within reach of a binding."""
  return cascade_loss(
    small, large, targets, weights, token_loss=partial(mixture, w=w), token_mask=token_mask
  )


xent = partial(cascade_loss, token_loss=cross_entropy, token_mask=masks.all_tokens)
cat_xent = partial(cascade_loss, token_loss=cross_entropy, token_mask=masks.either_correct)
cat_xent_l = partial(cascade_loss, token_loss=cross_entropy, token_mask=masks.large_correct)
cat_xent_s = partial(cascade_loss, token_loss=cross_entropy, token_mask=masks.small_correct)
dist = partial(_mixture_loss, token_mask=masks.all_tokens)
cat_dist = partial(_mixture_loss, token_mask=masks.either_correct)
cat_dist_l = partial(_mixture_loss, token_mask=masks.large_correct)
cat_dist_s = partial(_mixture_loss, token_mask=masks.small_correct)
