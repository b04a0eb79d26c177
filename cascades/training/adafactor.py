"""Adafactor's transformations, with stacked layers as a batch axis.

optax's take every array for one parameter. Here a stack of layers is one array, and like T5X
(`averaging_dims` and factor rules of its adafactor.py) a layer's moments, scale and clipping are
its own. Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from cascades.models import configs
from cascades.types import Params

Axes: TypeAlias = tuple[int, ...]

# Names of parameters that are no matrix: scales of norms, biases, relative position biases.
NOT_MATRICES = frozenset({'scale', 'bias', 'table'})
EPSILON = 1e-30  # added to squared gradients
SMALLEST_SCALE = 1e-3  # of a parameter, so that zeros can be left

_STACKS = frozenset(itertools.chain.from_iterable(configs.STACKS.values()))


def matrices(params: Params) -> Any:
  """Tree of booleans: True for linear maps, their adapters, and embedding tables."""
  return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path), params)


def layer_axes(path: Any, num_axes: int) -> Axes:
  """Axes of a parameter at `path` that belong to one layer: all but the first below a stack."""
  stacked = not _STACKS.isdisjoint(_names(path)[:1])
  return tuple(range(int(stacked), num_axes))


class Factors(NamedTuple):
  """Axes of a matrix, the shorter and the longer side; a side may be several axes."""

  shorter: Axes
  longer: Axes


def factors(path: Any, shape: tuple[int, ...], min_size: int) -> Factors | None:
  """Sides of a parameter's matrix if both have at least `min_size` entries, else None.

  The model's width is one side; heads and their features together are the other.
  """
  axes = layer_axes(path, len(shape))
  if not _is_matrix(path) or len(axes) < 2:
    return None
  split = len(axes) - 1 if 'out' in _names(path) else 1
  size = lambda side: math.prod(shape[axis] for axis in side)
  shorter, longer = sorted((axes[:split], axes[split:]), key=size)
  return Factors(shorter, longer) if size(shorter) >= min_size else None


def scale_by_factored_rms(
  *, decay_rate: float = 0.8, min_size_to_factor: int = 128
) -> optax.GradientTransformation:
  """Divide by the root of the second moment, factored into means over rows and columns.

  Args:
    decay_rate: Exponent c of the moment's decay 1 - t^-c at step t.
    min_size_to_factor: A matrix with a shorter side keeps the moment of every entry.
  """

  def init(params: Params) -> optax.FactoredState:
    def zeros(path: Any, leaf: Array, slot: str) -> Array:
      sides = factors(path, leaf.shape, min_size_to_factor)
      if (sides is None) != (slot == 'v'):
        return jnp.zeros((1,), leaf.dtype)
      averaged = {} if sides is None else {'v_row': sides.longer, 'v_col': sides.shorter}
      axes = (axis for axis in range(leaf.ndim) if axis not in averaged.get(slot, ()))
      return jnp.zeros([leaf.shape[axis] for axis in axes], leaf.dtype)

    slots = {
      slot: jax.tree_util.tree_map_with_path(
        lambda p, leaf, slot=slot: zeros(p, leaf, slot), params
      )
      for slot in ('v_row', 'v_col', 'v')
    }
    return optax.FactoredState(jnp.zeros([], jnp.int32), **slots)

  def update(
    gradients: Params, state: optax.FactoredState, params: Params | None = None
  ) -> tuple[Params, optax.FactoredState]:
    del params
    decay = 1.0 - jnp.array(state.count + 1, jnp.float32) ** (-decay_rate)

    def moved(path: Any, gradient: Array, row: Array, column: Array, full: Array) -> _Scaled:
      square = jnp.square(gradient) + EPSILON
      average = lambda old, new: (decay * old + (1.0 - decay) * new).astype(old.dtype)
      sides = factors(path, gradient.shape, min_size_to_factor)
      if sides is None:
        full = average(full, square)
        return _Scaled(gradient * full**-0.5, row, column, full)
      over_columns = jnp.mean(square, sides.longer, keepdims=True)
      over_rows = jnp.mean(square, sides.shorter, keepdims=True)
      row = average(row.reshape(over_columns.shape), over_columns)
      column = average(column.reshape(over_rows.shape), over_rows)
      relative = row / jnp.mean(row, sides.shorter, keepdims=True)
      scaled = gradient * relative**-0.5 * column**-0.5
      return _Scaled(scaled, row.squeeze(sides.longer), column.squeeze(sides.shorter), full)

    scaled = jax.tree_util.tree_map_with_path(moved, gradients, state.v_row, state.v_col, state.v)
    fields = [
      jax.tree.map(lambda leaf, name=name: getattr(leaf, name), scaled, is_leaf=_is_scaled)
      for name in _Scaled._fields
    ]
    return fields[0], optax.FactoredState(optax.safe_increment(state.count), *fields[1:])

  return optax.GradientTransformation(init, update)


def clip_by_layer_rms(threshold: float = 1.0) -> optax.GradientTransformation:
  """Divide each layer's update by max(1, RMS / threshold)."""

  def clipped(path: Any, update: Array) -> Array:
    return update / jnp.maximum(1.0, _rms(path, update) / threshold)

  return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(clipped, updates))


def scale_by_layer_rms() -> optax.GradientTransformation:
  """Multiply each layer's update by the RMS of its parameter."""

  def scaled(path: Any, update: Array, param: Array) -> Array:
    return update * jnp.maximum(_rms(path, param), SMALLEST_SCALE)

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(scaled, updates, params)
  )


class _Scaled(NamedTuple):
  """A scaled gradient, and its new moments."""

  update: Array
  v_row: Array
  v_col: Array
  v: Array


def _is_scaled(node: Any) -> bool:
  return isinstance(node, _Scaled)


def _rms(path: Any, x: Float[Array, '*n']) -> Array:
  return jnp.sqrt(jnp.mean(jnp.square(x), layer_axes(path, x.ndim), keepdims=True))


def _is_matrix(path: Any) -> bool:
  return not NOT_MATRICES & set(_names(path))


def _names(path: Any) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
