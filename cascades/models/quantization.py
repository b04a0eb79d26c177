"""Weights in eight bits: symmetric, with one scale for each output feature.

For weights that are read and never trained: a large model that only scores, or the base under
`lora`'s adapters. They are widened where they are used, so that few of them are wide at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int8

LARGEST = 127  # symmetric: -128 is not used


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """`values` x `scale`, of which the scale has size 1 along the axes that products sum over."""

  values: Int8[Array, '*n']
  scale: Float[Array, '*n']

  def __getitem__(self, index: Any) -> Quantized:
    return jax.tree.map(lambda leaf: leaf[index], self)


def quantize(weight: Float[Array, '*n'], axes: Sequence[int]) -> Quantized:
  """Round to `LARGEST` steps to either side; `axes` are those that share a scale.

      scale = max |w| / 127;  values = round(w / scale)

  No entry moves by more than scale / 2. Where all are zero, so is the scale.
  """
  wide = weight.astype(jnp.float32)
  scale = jnp.max(jnp.abs(wide), axis=tuple(axes), keepdims=True) / LARGEST
  values = jnp.round(wide / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
  return Quantized(values, scale)


def widen(weight: Any, dtype: Any) -> Float[Array, '*n']:
  """In `dtype`, whatever holds it."""
  if isinstance(weight, Quantized):
    return (weight.values * weight.scale).astype(dtype)
  return weight.astype(dtype)


def abstract(weight: Any, scale: Sequence[int]) -> Quantized:
  """Shapes and places of `weight` with scales of that shape, which lie where their features do."""
  struct: Any = jax.ShapeDtypeStruct
  spec = (*weight.sharding.spec, *[None] * len(scale))
  place = PartitionSpec(*(None if size == 1 else spec[i] for i, size in enumerate(scale)))
  return Quantized(
    struct(weight.shape, jnp.int8, sharding=weight.sharding),
    struct(tuple(scale), jnp.float32, sharding=NamedSharding(weight.sharding.mesh, place)),
  )


def scale_shape(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
  """The shape of the scale that entries along `axes` share."""
  shared = {axis % len(shape) for axis in axes}
  return tuple(1 if axis in shared else size for axis, size in enumerate(shape))


def wide(like: Any) -> jax.ShapeDtypeStruct:
  """The float32 twin of an abstract parameter, in its place."""
  like = like.values if isinstance(like, Quantized) else like
  return jax.ShapeDtypeStruct(like.shape, jnp.float32, sharding=like.sharding)


def held_as(weight: Any, like: Any) -> Any:
  """`weight`, however it is held, as the abstract `like` is, and in its place."""
  places = jax.tree.map(lambda leaf: leaf.sharding, like)
  if isinstance(like, Quantized):
    axes = tuple(axis for axis, size in enumerate(like.scale.shape) if size == 1)
    return jax.jit(quantize, static_argnames='axes', out_shardings=places)(weight, axes=axes)
  return jax.jit(widen, static_argnames='dtype', out_shardings=places)(weight, dtype=like.dtype)
