"""Symmetric int8 quantization of weights, with one scale per output feature.

Meant for frozen weights: a large model that only scores, or the base weights under `lora`'s
adapters. Matrices are multiplied as int8 and tables are dequantized row by row, so that no float
copy of the weights exists. qwix 0.1.8 was tried and is not used: its quantizer takes one method
per model, and matrices and tables need two.
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

MAX_INT8 = 127  # symmetric: -128 is not used


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """Weight `values` x `scale`; the scale has size 1 along the axes that products sum over."""

  values: Int8[Array, '*n']
  scale: Float[Array, '*n']

  def __getitem__(self, index: Any) -> Quantized:
    return jax.tree.map(lambda leaf: leaf[index], self)


def quantize(weight: Float[Array, '*n'], axes: Sequence[int]) -> Quantized:
  """Quantize a weight to int8.

      scale = max |w| / 127;  values = round(w / scale)

  No entry changes by more than scale / 2. All-zero features have scale 0.

  Args:
    weight: The weight, of any float dtype.
    axes: Axes that share a scale: those that products with the weight sum over.
  """
  x = weight.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=tuple(axes), keepdims=True) / MAX_INT8
  values = jnp.round(x / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
  return Quantized(values, scale)


def dequantize(weight: Any, dtype: Any) -> Float[Array, '*n']:
  """Convert a quantized or dense weight to a dense one of `dtype`."""
  if isinstance(weight, Quantized):
    return (weight.values * weight.scale).astype(dtype)
  return weight.astype(dtype)


def abstract(weight: Any, scale_shape: Sequence[int]) -> Quantized:
  """Describe the quantized form of an abstract weight; scales are sharded as their features are."""
  struct: Any = jax.ShapeDtypeStruct
  spec = (*weight.sharding.spec, *[None] * len(scale_shape))
  scale_spec = PartitionSpec(
    *(None if size == 1 else spec[i] for i, size in enumerate(scale_shape))
  )
  scale_sharding = NamedSharding(weight.sharding.mesh, scale_spec)
  return Quantized(
    struct(weight.shape, jnp.int8, sharding=weight.sharding),
    struct(tuple(scale_shape), jnp.float32, sharding=scale_sharding),
  )


def scale_shape(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
  """Shape of the scales of a weight whose entries along `axes` share one."""
  shared = {axis % len(shape) for axis in axes}
  return tuple(1 if axis in shared else size for axis, size in enumerate(shape))


def as_float32(abstract_weight: Any) -> jax.ShapeDtypeStruct:
  """Describe an abstract weight, dense or quantized, in float32 with the same sharding."""
  dense = abstract_weight.values if isinstance(abstract_weight, Quantized) else abstract_weight
  return jax.ShapeDtypeStruct(dense.shape, jnp.float32, sharding=dense.sharding)


def convert(weight: Any, like: Any) -> Any:
  """Convert a weight, dense or quantized, to the dtype and sharding of the abstract `like`."""
  shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
  if isinstance(like, Quantized):
    axes = tuple(axis for axis, size in enumerate(like.scale.shape) if size == 1)
    return jax.jit(quantize, static_argnames='axes', out_shardings=shardings)(weight, axes=axes)
  return jax.jit(dequantize, static_argnames='dtype', out_shardings=shardings)(
    weight, dtype=like.dtype
  )
