"""Adafactor's second moments as earlier versions stored them, for runs that resume.

They took a stack of layers for one array and factored its two longest axes, if both had 128 entries
(optax's rule), so mostly not the kernels of attention. A mean over rows or columns commutes with
the average over steps; so the moments of today follow exactly from those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from cascades.runtime import partitioning
from cascades.training import adafactor
from cascades.training.train_step import TrainState

StoredShape: TypeAlias = tuple[int, ...]
Slots: TypeAlias = tuple[Any, Any, Any]  # v_row, v_col, v of one parameter


def adapt(
  like: TrainState, shapes: Mapping[str, StoredShape]
) -> tuple[TrainState, Callable[[TrainState], TrainState]]:
  """Describes a stored state, and converts what is read of it.

  Args:
    like: abstract state to be returned.
    shapes: shapes of the stored arrays by path, as `opt_state/0/v/embedding`.

  Returns:
    The abstract state to read, `like` itself where nothing differs, and a function from the state
    read to one like `like`.
  """
  is_factored = lambda node: isinstance(node, optax.FactoredState)
  changes: dict[str, dict[int, Any]] = {}

  def stored(path: Any, node: Any) -> Any:
    if not is_factored(node):
      return node
    prefix = jax.tree_util.keystr(path, simple=True, separator='/')
    leaves = jax.tree_util.tree_leaves_with_path(like.params)
    slots = [jax.tree.leaves(tree) for tree in (node.v_row, node.v_col, node.v)]
    for number, (name, param) in enumerate(leaves):
      suffix = jax.tree_util.keystr(name, simple=True, separator='/')
      actual = [shapes.get(f'{prefix}/{slot}/{suffix}') for slot in ('v_row', 'v_col', 'v')]
      expected = [tuple(slot[number].shape) for slot in slots]
      sides = adafactor.factors(name, param.shape, 1)
      if actual == expected or expected[2] == param.shape or sides is None:
        continue
      axes = _axes(param.shape, actual)
      if axes and len({axis in sides.longer for axis in axes}) == 1:
        continue  # no such array of our models, and it is refused by its shape
      changes.setdefault(prefix, {})[number] = (sides, axes)
      for slot, shape in zip(slots, actual, strict=True):
        slot[number] = jax.ShapeDtypeStruct(shape or (1,), slot[number].dtype)
    return optax.FactoredState(
      node.count, *(jax.tree.unflatten(jax.tree.structure(node.v), slot) for slot in slots)
    )

  def convert(path: Any, node: Any) -> Any:
    here = changes.get(jax.tree_util.keystr(path, simple=True, separator='/'), {})
    if not is_factored(node) or not here:
      return node
    slots = [jax.tree.leaves(tree) for tree in (node.v_row, node.v_col, node.v)]
    for number, (sides, axes) in here.items():
      row, column, full = (slot[number] for slot in slots)
      new = _converted((row, column, full), sides, axes)
      for slot, array in zip(slots, new, strict=True):
        slot[number] = array
    return optax.FactoredState(
      node.count, *(jax.tree.unflatten(jax.tree.structure(node.v), slot) for slot in slots)
    )

  mapped = lambda function, tree: jax.tree_util.tree_map_with_path(
    function, tree, is_leaf=is_factored
  )
  abstract = mapped(stored, like)
  if not changes:
    return like, lambda state: state
  shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
  converting = jax.jit(lambda state: mapped(convert, state), out_shardings=shardings)
  return partitioning.like_parameters(abstract, like.params), converting


def _axes(shape: StoredShape, stored: list[StoredShape | None]) -> tuple[int, int] | None:
  """The axes that the stored row and column have lost; None if all entries are stored."""
  if stored[2] == shape:
    return None
  second, first = (int(axis) for axis in np.argsort(shape)[-2:])
  return first, second


def _converted(slots: Slots, sides: adafactor.Factors, axes: tuple[int, int] | None) -> Slots:
  row, column, full = slots

  def mean(side: adafactor.Axes) -> Array:
    if axes is None:
      return jnp.mean(full, side)
    lost, array = (axes[0], row) if axes[0] in side else (axes[1], column)
    return jnp.mean(jnp.expand_dims(array, lost), side)

  return mean(sides.longer), mean(sides.shorter), jnp.zeros((1,), full.dtype)
