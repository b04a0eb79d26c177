"""Axis layouts: einops patterns from a stored tensor to a parameter, '(n h) d -> d n h', and back.

A pattern groups axes of the tensor only, so that the parameter's shape gives the size of every
axis. The empty pattern leaves an array as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import einops
from einops.parsing import ParsedExpression
from jax.sharding import PartitionSpec


def tensor_shape(layout: str, shape: Sequence[int]) -> tuple[int, ...]:
  """Shape of the tensor that becomes a parameter of `shape`."""
  if not layout:
    return tuple(shape)
  sizes = _sizes(layout, shape)
  return tuple(math.prod(sizes[axis] for axis in group) for group in _tensor_axes(layout))


def tensor_spec(layout: str, spec: Sequence[Any]) -> PartitionSpec:
  """Sharding of the tensor that lets every device build its shard of the parameter locally."""
  if not layout:
    return PartitionSpec(*spec)
  mesh_axes = _sizes(layout, spec)
  return PartitionSpec(*(mesh_axes[group[0]] for group in _tensor_axes(layout)))


def to_parameter(layout: str, tensor: Any, shape: Sequence[int]) -> Any:
  """The parameter of `shape` that a tensor, of NumPy or JAX, becomes."""
  return einops.rearrange(tensor, layout, **_sizes(layout, shape)) if layout else tensor


def to_tensor(layout: str, parameter: Any) -> Any:
  """The tensor that becomes `parameter`: the inverse of `to_parameter`."""
  tensor_axes, _, parameter_axes = layout.partition('->')
  return einops.rearrange(parameter, f'{parameter_axes} -> {tensor_axes}') if layout else parameter


def _sizes(layout: str, values: Sequence[Any]) -> dict[str, Any]:
  """The value of every axis, given those of the parameter's axes in order."""
  return dict(zip(layout.partition('->')[2].split(), values, strict=True))


def _tensor_axes(layout: str) -> list[list[str]]:
  """The axes of each axis of the tensor, major first: [['n', 'h'], ['d']]."""
  return [list(group) for group in ParsedExpression(layout.partition('->')[0]).composition]
