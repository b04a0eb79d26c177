"""How one tensor's axes become another's, written as '(n h) d -> d n h', and back.

Parentheses hold axes that are stored as one, the major one first; '' leaves an array as it is.
Sizes, mesh axes and arrays of the right side are given, those of the left side found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec


def source_shape(layout: str, shape: Sequence[int]) -> tuple[int, ...]:
  """The left side's shape."""
  if not layout:
    return tuple(shape)
  source, target = _axes(layout)
  sizes = dict(zip(target, shape, strict=True))
  return tuple(math.prod(sizes[name] for name in group) for group in source)


def source_spec(layout: str, spec: Sequence[Any]) -> PartitionSpec:
  """Where the left side's pieces must be for the right side's to be made without moving any."""
  if not layout:
    return PartitionSpec(*spec)
  source, target = _axes(layout)
  places = dict(zip(target, spec, strict=True))
  return PartitionSpec(*(places[group[0]] for group in source))


def forwards(layout: str, array: Any, shape: Sequence[int]) -> Any:
  """The right side, of `shape`, from the left; of NumPy or JAX."""
  if not layout:
    return array
  source, target = _axes(layout)
  flat = [name for group in source for name in group]
  sizes = dict(zip(target, shape, strict=True))
  return array.reshape([sizes[name] for name in flat]).transpose([flat.index(n) for n in target])


def backwards(layout: str, array: np.ndarray) -> np.ndarray:
  """The left side from the right."""
  if not layout:
    return array
  source, target = _axes(layout)
  flat = [name for group in source for name in group]
  return array.transpose([target.index(name) for name in flat]).reshape(
    source_shape(layout, array.shape)
  )


def _axes(layout: str) -> tuple[list[list[str]], list[str]]:
  """'(n h) d -> d n h' as [[n, h], [d]] and [d, n, h]."""
  source, _, target = layout.partition('->')
  split = [(many or one).split() for many, one in re.findall(r'\(([^)]*)\)|(\S+)', source)]
  return split, target.split()
