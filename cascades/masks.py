"""Token masks: the target tokens that a loss counts.

A mask maps (small logits, teachers, targets) to one bit per token. Masks are piecewise constant in
the logits: no gradient flows through them. Argmax ties go to the lowest id.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cascades.teachers import Teachers, required

TokenMask: TypeAlias = Callable[
  [Float[Array, '*n V'], Teachers, Int[Array, '*n']], Bool[Array, '*n']
]


def all_tokens(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`alpha = 1` for every token."""
  del small, teachers
  return jnp.ones(targets.shape, bool)


def small_correct(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`c_S = [y = argmax p_S]`."""
  del teachers
  return jnp.argmax(small.astype(jnp.float32), axis=-1) == targets


def large_correct(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`c_L = [y = argmax p_L]`; with several teachers, whether any of them is correct.

  Raises:
    TeacherError: if there is no teacher.
  """
  del small
  return functools.reduce(
    jnp.logical_or, [teacher.top1() == targets for teacher in required(teachers)]
  )


def either_correct(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`alpha = [y = argmax p_S  or  y = argmax p_L]`, the mask of cascade-aware training.

  With several teachers: the small model or any of them. Wang et al. 2024,
  https://arxiv.org/abs/2406.00060, equation 8.
  """
  return small_correct(small, teachers, targets) | large_correct(small, teachers, targets)


def small_wrong(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`[y != argmax p_S]`, the tokens that `small_correct` leaves out."""
  return ~small_correct(small, teachers, targets)


def only_large_correct(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Bool[Array, '*n']:
  """`[y = argmax p_L  and  y != argmax p_S]`, the tokens at which deferral helps."""
  return large_correct(small, teachers, targets) & small_wrong(small, teachers, targets)


def large_in_top(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n'], *, k: int = 5
) -> Bool[Array, '*n']:
  """`[y is among the k likeliest tokens of p_L]`; `large_correct` if k = 1.

  With several teachers, whether it is among those of any of them.

  Raises:
    TeacherError: if there is no teacher, or one that holds fewer than k choices.
  """
  del small
  return functools.reduce(
    jnp.logical_or, [teacher.in_top(targets, k) for teacher in required(teachers)]
  )


def largest(
  scores: Float[Array, '*n'], counted: Bool[Array, '*n'], share: float
) -> Bool[Array, '*n']:
  """The share of the counted tokens with the largest scores; of equal ones the first.

  The number of tokens is rounded to the nearest integer.
  """
  order = jnp.argsort(jnp.where(counted, -scores, jnp.inf), axis=None, stable=True)
  rank = jnp.argsort(order).reshape(scores.shape)
  return counted & (rank < jnp.round(share * jnp.sum(counted)))


def count_agreement(
  small: Float[Array, '*n V'],
  teachers: Teachers,
  targets: Int[Array, '*n'],
  weights: Float[Array, '*n'],
) -> dict[str, Float[Array, '']]:
  """Weighted counts of the tokens that both models, one of them, or neither predicts.

  Returns:
    `both`, `only_small`, `only_large` and `neither`, which add up to `weights.sum()`; of several
    teachers the large model is correct if any of them is. Without teachers `correct` alone, the
    count of the small model's correct tokens.
  """
  by_small = small_correct(small, teachers, targets)
  if not teachers:
    return {'correct': jnp.sum(weights, where=by_small)}
  by_large = large_correct(small, teachers, targets)
  return {
    'both': jnp.sum(weights, where=by_small & by_large),
    'only_small': jnp.sum(weights, where=by_small & ~by_large),
    'only_large': jnp.sum(weights, where=~by_small & by_large),
    'neither': jnp.sum(weights, where=~by_small & ~by_large),
  }
