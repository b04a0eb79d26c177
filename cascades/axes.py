"""Logical axis names to mesh axes: the one rule that parameters, activations and blocks go by.

A rule applies to a dimension if its mesh axes are still free and divide the dimension; the first
that applies wins, and without one the dimension is replicated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
from flax.core import spmd
from jax.sharding import AxisType, PartitionSpec

Rules: TypeAlias = Sequence[tuple[str, str | tuple[str, ...] | None]]


def partition_spec(
  shape: Sequence[int], names: Sequence[str | None], mesh_shape: Mapping[str, int], rules: Rules
) -> PartitionSpec:
  """Where an array of `shape` with axes `names` goes."""
  taken: set[str] = set()

  def place(size: int, name: str | None) -> str | tuple[str, ...] | None:
    for rule, target in rules:
      axes = (target,) if isinstance(target, str) else tuple(target or ())
      fits = {*axes} <= mesh_shape.keys() and size % math.prod(mesh_shape[a] for a in axes) == 0
      if rule == name and fits and not taken & {*axes}:
        taken.update(axes)
        return target or None
    return None

  return PartitionSpec(*(place(size, name) for size, name in zip(shape, names, strict=True)))


def active_spec(shape: Sequence[int], names: Sequence[str | None]) -> PartitionSpec | None:
  """The same under the rules and on the mesh in use; None without them.

  Axes that an enclosing `jax.shard_map` has split by hand are left out.
  """
  rules, mesh = spmd.get_logical_axis_rules(), jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty:
    return None
  free = {
    name: size
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    if kind == AxisType.Auto
  }
  return partition_spec(shape, names, free, rules)
