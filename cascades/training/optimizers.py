"""Learning-rate schedules and optimizers: optax, with the defaults of this field."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
import optax

from cascades.runtime import ranges
from cascades.training import adafactor as layerwise

Optimizer: TypeAlias = Callable[[optax.Schedule], optax.GradientTransformation]


def constant(learning_rate: float, *, warmup_steps: int = 0) -> optax.Schedule:
  """Constant after a linear warm-up from 0."""
  _check_schedule(learning_rate, warmup_steps)
  return _warmed_up(optax.constant_schedule(learning_rate), learning_rate, warmup_steps)


def linear(
  learning_rate: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> optax.Schedule:
  """Linear warm-up, then linear decay to `final` at `total_steps`."""
  _check_schedule(learning_rate, warmup_steps, total_steps, final)
  decay = optax.linear_schedule(learning_rate, final, total_steps - warmup_steps)
  return _warmed_up(decay, learning_rate, warmup_steps)


def cosine(
  learning_rate: float, *, total_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> optax.Schedule:
  """Linear warm-up, then half a cosine down to `final` at `total_steps`."""
  _check_schedule(learning_rate, warmup_steps, total_steps, final)
  alpha = final / learning_rate if learning_rate else 0.0
  decay = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps, alpha=alpha)
  return _warmed_up(decay, learning_rate, warmup_steps)


def rsqrt(learning_rate: float, *, warmup_steps: int = 10_000) -> optax.Schedule:
  """`learning_rate / sqrt(max(step, warmup_steps))`, T5's pre-training schedule."""
  _check_schedule(learning_rate, warmup_steps)
  if not warmup_steps:
    raise ValueError(
      'WARMUP_STEPS=0 makes the first rate of optimizers.rsqrt infinite: T5 takes 10000.'
    )
  return lambda step: learning_rate / jnp.sqrt(jnp.maximum(step, warmup_steps))


def _check_schedule(
  learning_rate: float, warmup_steps: int, total_steps: int | None = None, final: float = 0.0
) -> None:
  """Raises ValueError, by the macros of the values, for a schedule that cannot be."""
  ranges.check({'LEARNING_RATE': learning_rate, 'final': final}, least=0)
  ranges.check({'WARMUP_STEPS': warmup_steps}, least=0, integer=True)
  ranges.check({'TRAIN_STEPS': total_steps}, least=1, integer=True)
  if total_steps is not None and warmup_steps >= total_steps:
    raise ValueError(
      f'WARMUP_STEPS={warmup_steps} is not below TRAIN_STEPS={total_steps}: the learning rate '
      'would never decay. Warm up for fewer steps, or train for more.'
    )


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
  weight_decay: float = 0.0,
  min_size_to_factor: int = 128,
) -> optax.GradientTransformation:
  """Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, as in T5X. No momentum.

  Updates are relative to each parameter's own scale unless told otherwise, so the rate is large
  for Adam's habits: 1e-3 to 1e-2. Every layer of a stack is a parameter of its own.

  Args:
    learning_rate: Maps the number of earlier updates to the rate.
    clip_norm: Bound of the gradient's global norm before all else; None for no bound.
    decay_rate: Exponent c of the second moment's decay 1 - t^-c.
    multiply_by_parameter_scale: Multiplies an update by the RMS of its parameter.
    weight_decay: Times the learning rate, the share that a matrix loses in a step; as in `adamw`
      norms and biases are spared. T5X's `weight_decay_rate` is not times the rate.
    min_size_to_factor: The second moment of a matrix is factored if both sides are that long.
  """
  ranges.check({'adafactor.clip_norm': clip_norm, 'adafactor.decay_rate': decay_rate}, above=0)
  ranges.check({'adafactor.weight_decay': weight_decay}, least=0)
  ranges.check({'adafactor.min_size_to_factor': min_size_to_factor}, least=1, integer=True)
  steps = [
    layerwise.scale_by_factored_rms(decay_rate=decay_rate, min_size_to_factor=min_size_to_factor),
    layerwise.clip_by_layer_rms(),
    optax.scale_by_learning_rate(learning_rate, flip_sign=False),
  ]
  if multiply_by_parameter_scale:
    steps.append(layerwise.scale_by_layer_rms())
  if weight_decay:
    decay = lambda step: weight_decay * learning_rate(step)
    steps.append(optax.add_decayed_weights(decay, mask=layerwise.matrices))
  return _clipped(optax.chain(*steps, optax.scale(-1)), clip_norm)


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

  Args:
    learning_rate: Maps the number of earlier updates to the rate.
    clip_norm: Bound of the gradient's global norm before all else; None for no bound.
    b1: Decay of the gradient's mean.
    b2: Decay of the squared gradient's mean.
    eps: Added to the root of the squared gradient's mean.
    weight_decay: Times the learning rate, the share that a matrix loses in a step. Scales of
      norms, biases and relative position biases are spared.
  """
  ranges.check({'adamw.clip_norm': clip_norm, 'adamw.eps': eps}, above=0)
  ranges.check({'adamw.b1': b1, 'adamw.b2': b2}, least=0, below=1)
  ranges.check({'adamw.weight_decay': weight_decay}, least=0)
  mask = layerwise.matrices
  return _clipped(
    optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask),
    clip_norm,
  )


def _clipped(
  optimizer: optax.GradientTransformation, clip_norm: float | None
) -> optax.GradientTransformation:
  if clip_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
