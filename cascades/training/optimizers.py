"""Learning-rate schedules and optimizers: optax, with the defaults of this field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

Optimizer: TypeAlias = Callable[[optax.Schedule], optax.GradientTransformation]


def constant(learning_rate: float, *, warmup_steps: int = 0) -> optax.Schedule:
  """Constant after a linear warm-up from 0."""
  return _warmed_up(optax.constant_schedule(learning_rate), learning_rate, warmup_steps)


def linear(
  learning_rate: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> optax.Schedule:
  """Linear warm-up, then linear decay to `final` at `total_steps`."""
  decay = optax.linear_schedule(learning_rate, final, total_steps - warmup_steps)
  return _warmed_up(decay, learning_rate, warmup_steps)


def cosine(
  learning_rate: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> optax.Schedule:
  """Linear warm-up, then half a cosine down to `final` at `total_steps`."""
  decay = optax.cosine_decay_schedule(
    learning_rate, total_steps - warmup_steps, alpha=final / learning_rate
  )
  return _warmed_up(decay, learning_rate, warmup_steps)


def rsqrt(learning_rate: float, *, warmup_steps: int = 10_000) -> optax.Schedule:
  """`learning_rate / sqrt(max(step, warmup_steps))`, T5's pre-training schedule."""
  return lambda step: learning_rate / jnp.sqrt(jnp.maximum(step, warmup_steps))


def _warmed_up(decay: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
  if not warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, peak, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def adafactor(
  learning_rate: optax.Schedule,
  *,
  clip_norm: float | None = None,
  decay_rate: float = 0.8,
  multiply_by_parameter_scale: bool = True,
  weight_decay: float | None = None,
) -> optax.GradientTransformation:
  """Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235. No momentum.

  Updates are relative to each parameter's own scale unless told otherwise, so the rate is large
  for Adam's habits: 1e-3 to 1e-2. `clip_norm` bounds the gradient's global norm first.
  """
  return _clipped(
    optax.adafactor(
      learning_rate,
      decay_rate=decay_rate,
      multiply_by_parameter_scale=multiply_by_parameter_scale,
      weight_decay_rate=weight_decay,
    ),
    clip_norm,
  )


def adamw(
  learning_rate: optax.Schedule,
  *,
  clip_norm: float | None = 1.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101.

  Weight decay spares scales and biases.
  """
  return _clipped(
    optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decayed),
    clip_norm,
  )


def _decayed(params: Any) -> Any:
  def decays(path: Any, leaf: Any) -> bool:
    del leaf
    return not {'scale', 'bias'} & {str(getattr(key, 'key', '')) for key in path}

  return jax.tree_util.tree_map_with_path(decays, params)


def _clipped(
  optimizer: optax.GradientTransformation, clip_norm: float | None
) -> optax.GradientTransformation:
  if clip_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
