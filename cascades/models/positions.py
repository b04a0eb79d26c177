"""How attention knows where tokens stand: T5's relative biases and rotary embedding.

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
) -> Int[np.ndarray, 'distances']:
  """The bucket of every distance (key less query position), from -max_distance to max_distance.

  Half of a side's buckets are exact distances, the other half grow logarithmically. Both sides
  share the buckets evenly if attention is bidirectional; otherwise keys to the right get bucket 0.
  T5, https://arxiv.org/abs/1910.10683.
  """
  distance = np.arange(-max_distance, max_distance + 1)
  side = num_buckets // 2 if bidirectional else num_buckets
  offset = np.where(distance > 0, side, 0) if bidirectional else 0
  far = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
  exact = side // 2
  growth = np.log(np.maximum(far, exact) / exact) / np.log(max_distance / exact)
  # The logarithm of an exact boundary may fall a rounding error short of it.
  logarithmic = exact + np.floor(growth * (side - exact) + 1e-6).astype(np.int64)
  return offset + np.where(far < exact, far, np.minimum(logarithmic, side - 1))


class RelativeBias(nnx.Module):
  """One learned number per head and bucket of distance, of a layer or of all layers of a stack."""

  def __init__(
    self, key: Array, num_heads: int, *, bidirectional: bool, num_buckets: int, max_distance: int
  ):
    self.table = layers.normal(
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

  def __call__(self, distance: Int[Array, '#B T S']) -> Float[Array, '#B N T S']:
    by_distance = jnp.take(self.table[...], self.buckets(), axis=0)
    reach = len(by_distance) // 2
    return jnp.moveaxis(by_distance[jnp.clip(distance, -reach, reach) + reach], -1, 1)


def relative_bias(
  config: Any, key: Array, *, bidirectional: bool, per_layer: bool
) -> RelativeBias | None:
  """The biases of a layer (`per_layer`) or of a stack, if that is where the model has any."""
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
  relative: RelativeBias | None, distance: Int[Array, '#B T S']
) -> Float[Array, '#B N T S'] | None:
  """What `relative` adds to attention's logits, if there is one."""
  return None if relative is None else relative(distance)


def inverse_frequencies(
  head_dim: int,
  theta: float,
  *,
  linear_factor: float = 1.0,
  llama3: tuple[float, float, float, int] | None = None,
) -> Float[np.ndarray, 'H/2']:
  """Radians per position of each pair of features: theta^(-2i / H), https://arxiv.org/abs/2104.09864.

  `linear_factor` stretches all positions (https://arxiv.org/abs/2306.15595). `llama3` = (factor,
  low_freq_factor, high_freq_factor, original length) divides by `factor` the frequencies that turn
  less than low_freq_factor times in the original length, leaves alone those that turn more than
  high_freq_factor times, and interpolates between (Llama 3.1).
  """
  frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim) / linear_factor
  if llama3 is None:
    return frequencies
  factor, low, high, length = llama3
  turns = length * frequencies / (2 * np.pi)
  keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return frequencies * (keep + (1.0 - keep) / factor)


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
