"""Positions of tokens in attention: T5's relative biases and rotary embeddings.

Axes: B batch, T queries, S keys, N heads, H head size.
"""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from cascades.models import layers


def relative_buckets(
  *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[np.ndarray, '2*max_distance+1']:
  """Bucket of every relative position (key less query) from -max_distance to max_distance.

  Half of a side's buckets are exact distances; the others grow logarithmically. Bidirectional
  attention gives half of the buckets to each side; otherwise keys to the right get bucket 0.
  T5, https://arxiv.org/abs/1910.10683.
  """
  relative = np.arange(-max_distance, max_distance + 1)
  side = num_buckets // 2 if bidirectional else num_buckets
  offset = np.where(relative > 0, side, 0) if bidirectional else 0
  distance = np.abs(relative) if bidirectional else np.maximum(-relative, 0)
  exact = side // 2
  growth = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
  # The logarithm of an exact boundary may fall a rounding error short of it.
  logarithmic = exact + np.floor(growth * (side - exact) + 1e-6).astype(np.int64)
  return offset + np.where(distance < exact, distance, np.minimum(logarithmic, side - 1))


class RelativeBias(nnx.Module):
  """Learned bias per head and bucket of relative positions, of one layer or of all in a stack."""

  def __init__(
    self, key: Array, num_heads: int, *, bidirectional: bool, num_buckets: int, max_distance: int
  ):
    self.table = layers.normal_parameter(
      key,
      (num_buckets, num_heads),
      'relpos_buckets',
      'heads',
      stddev=(2 / (num_buckets + num_heads)) ** 0.5,
    )
    self.buckets = functools.partial(
      relative_buckets,
      bidirectional=bidirectional,
      num_buckets=num_buckets,
      max_distance=max_distance,
    )

  def __call__(self, relative_positions: Int[Array, '#B T S']) -> Float[Array, '#B N T S']:
    biases = jnp.take(self.table[...], self.buckets(), axis=0)
    max_distance = len(biases) // 2
    index = jnp.clip(relative_positions, -max_distance, max_distance) + max_distance
    return jnp.moveaxis(biases[index], -1, 1)


def relative_bias(
  config: Any, key: Array, *, bidirectional: bool, per_layer: bool
) -> RelativeBias | None:
  """Build the biases of a layer (`per_layer`) or of a stack; None if the model has none there."""
  if config.relative_attention_num_buckets is None or config.relative_bias_per_layer != per_layer:
    return None
  return RelativeBias(
    key,
    config.num_heads,
    bidirectional=bidirectional,
    num_buckets=config.relative_attention_num_buckets,
    max_distance=config.relative_attention_max_distance,
  )


def bias(
  relative: RelativeBias | None, relative_positions: Int[Array, '#B T S']
) -> Float[Array, '#B N T S'] | None:
  """Biases of attention's logits; None without a table of biases."""
  return None if relative is None else relative(relative_positions)


def inverse_frequencies(
  head_dim: int,
  theta: float,
  *,
  linear_factor: float = 1.0,
  llama3: tuple[float, float, float, int] | None = None,
) -> Float[np.ndarray, 'H/2']:
  """Rotary frequencies of the pairs of features: theta^(-2i / H), in radians per position.

  https://arxiv.org/abs/2104.09864.

  Args:
    head_dim: Size H of a head, even.
    theta: Base of the frequencies.
    linear_factor: Divisor of all frequencies (https://arxiv.org/abs/2306.15595).
    llama3: Factor, low_freq_factor, high_freq_factor and original length of Llama 3.1: divide by
      `factor` the frequencies of fewer than low_freq_factor rotations over the original length,
      keep those of more than high_freq_factor rotations, and interpolate between them.
  """
  frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim) / linear_factor
  if llama3 is None:
    return frequencies
  factor, low, high, length = llama3
  rotations = length * frequencies / (2 * np.pi)
  weight = np.clip((rotations - low) / (high - low), 0.0, 1.0)
  return frequencies * (weight + (1.0 - weight) / factor)


def rotate(
  x: Float[Array, 'B T N H'], positions: Int[Array, '#B T'], frequencies: Float[Array, 'H/2']
) -> Float[Array, 'B T N H']:
  """Rotate features i and i + H/2 by position x frequency_i (rotary position embedding)."""
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
    x.dtype
  )
