"""Sums over blocks of tokens, with their gradient formed on the way forward.

Logits exist for one block of tokens at a time (`blocks`). A sum hands every block the same
cotangent, one number; so a block can form its gradient while its logits exist, and nothing is read
out twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from cascades import blocks
from cascades.runtime import partitioning

Totals: TypeAlias = dict[str, Float[Array, '']]  # sums over tokens, of a block, batch or data set
Table = TypeVar('Table')  # an array [V, D], or its int8 values and scales
Constants = TypeVar('Constants')  # a tree of arrays without gradient, the same for all tokens
Rows = TypeVar('Rows')  # a tree of arrays without gradient, [B, T, ...] or, of a block, [n, ...]
Tree = TypeVar('Tree')
TotalsOf: TypeAlias = Callable[[Table, Array, Constants, Rows], Totals]
_Tokens: TypeAlias = tuple[Array, Rows, Array]  # hidden states, rows, and which tokens count
_Fold: TypeAlias = Callable[[Callable[[Any], Any], Any, Array], tuple[Any, Any]]


class _WithGradients(NamedTuple):
  """Sums over tokens, and the gradients of their loss."""

  totals: Any
  table: Any  # one of each device, or None if the table is not trained
  hidden: Any


def sum_blocks(
  totals_of: TotalsOf[Table, Constants, Rows],
  table: Table,
  hidden: Float[Array, 'B T D'],
  constants: Constants,
  rows: Rows,
  counted: Bool[Array, 'B T'],
  *,
  trains_table: bool = True,
  length: int | None = None,
  gradient_dtype: str = 'float32',
) -> Totals:
  """`totals_of(table, hidden, constants, rows)`, summed over blocks of the counted tokens.

  Only `totals['loss']` has a gradient, with respect to `table` and `hidden`. Rows on several
  devices stay there: the tables are gathered once before the blocks, and the table's gradient is
  reduced once after them.

  Args:
    totals_of: maps a block, arrays [n, ...], to its sums by name, 'loss' among them. It has the
      tokens of up to `length` positions of all rows; other tokens or zeros fill up the last block,
      and must add 0.
    table: the readout table of the model that is trained.
    hidden: final hidden states.
    constants: what every block reads and has no gradient, such as a frozen model's table.
    rows: a tree of arrays [B, T, ...], split into blocks as `hidden` is.
    counted: the tokens to sum over.
    trains_table: whether the table has a gradient; without one, as beside adapters, none is
      computed.
    length: positions of all rows per block, by default as many as fit the budget of `blocks`.
    gradient_dtype: the type in which the table's gradient is summed over blocks.
  """
  num_rows, table_shape = hidden.shape[0], jax.tree.leaves(table)[0].shape
  axes = partitioning.block_axes(num_rows, table_shape)
  length = length or blocks.default_length(num_rows, table_shape[0], axes)
  fold = functools.partial(blocks.fold_blocks, length=length, axes=axes.rows)
  everywhere, by_row = PartitionSpec(), PartitionSpec(axes.rows or None)
  # Before they are gathered: half the bytes, if activations have 16 bits.
  shared_arrays = lambda table, constants: _cast((table, constants), hidden.dtype)

  def add_up(tree: Tree) -> Tree:
    return jax.lax.psum(tree, axes.rows) if axes.rows else tree

  def local_totals(shared: tuple[Table, Constants], tokens: _Tokens[Rows]) -> Totals:
    return add_up(_totals(totals_of, shared, tokens, fold=fold))

  def local_gradients(shared: tuple[Table, Constants], tokens: _Tokens[Rows]) -> _WithGradients:
    totals, of_table, of_hidden = _gradients(
      totals_of, shared, tokens, fold=fold, dtype=gradient_dtype if trains_table else None
    )
    of_table = jax.tree.map(lambda x: x[None], of_table)  # an axis of devices
    return _WithGradients(add_up(totals), of_table, of_hidden)

  @jax.custom_vjp
  def total(table: Table, hidden: Array, constants: Constants, rows: tuple[Rows, Array]) -> Totals:
    totals = blocks.per_device(local_totals, axes.rows, everywhere)
    return totals(shared_arrays(table, constants), (hidden, *rows))

  def forward(
    table: Table, hidden: Array, constants: Constants, rows: tuple[Rows, Array]
  ) -> tuple[Totals, tuple[Any, Array, Any]]:
    specs = _WithGradients(everywhere, by_row, by_row)
    totals, of_table, of_hidden = blocks.per_device(local_gradients, axes.rows, specs)(
      shared_arrays(table, constants), (hidden, *rows)
    )
    like = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), table)
    return totals, (_sum_over_devices(of_table, axes.rows, table_shape), of_hidden, like)

  def backward(
    residuals: tuple[Any, Array, Any], cotangents: Totals
  ) -> tuple[Any, Array, None, None]:
    of_table, of_hidden, like = residuals
    scale = lambda gradient, like: (gradient * cotangents['loss']).astype(like.dtype)
    table = jax.tree.map(scale, of_table, like) if trains_table else None
    return table, scale(of_hidden, of_hidden), None, None

  total.defvjp(forward, backward)
  return total(table, hidden, constants, (rows, counted))


def _totals(
  totals_of: TotalsOf[Table, Constants, Rows],
  shared: tuple[Table, Constants],
  tokens: _Tokens[Rows],
  *,
  fold: _Fold,
) -> Totals:
  """The totals of one device's blocks."""
  table, constants = shared
  hidden, rows, counted = tokens

  def block(arrays: tuple[Array, Rows]) -> tuple[Totals, None]:
    hidden, rows = arrays
    return totals_of(table, hidden, constants, rows), None

  return fold(block, (hidden, rows), counted)[0]


def _gradients(
  totals_of: TotalsOf[Table, Constants, Rows],
  shared: tuple[Table, Constants],
  tokens: _Tokens[Rows],
  *,
  fold: _Fold,
  dtype: str | None,
) -> tuple[Totals, Any, Array]:
  """The totals of one device's blocks, and the loss's gradients to the table and to hidden.

  That of the table is summed in `dtype`; None is its gradient and its type if it is not trained.
  """
  table, constants = shared
  hidden, rows, counted = tokens

  def block(arrays: tuple[Array, Rows]) -> tuple[tuple[Totals, Any], Array]:
    hidden, rows = arrays

    def loss(hidden: Array, table: Table) -> tuple[Array, Totals]:
      totals = totals_of(table, hidden, constants, rows)
      return totals['loss'], totals

    if dtype is None:
      of_hidden, totals = jax.grad(loss, has_aux=True)(hidden, table)
      return (totals, None), of_hidden
    (of_hidden, of_table), totals = jax.grad(loss, (0, 1), has_aux=True)(hidden, table)
    return (totals, _cast(of_table, dtype)), of_hidden

  (totals, of_table), of_hidden = fold(block, (hidden, rows), counted)
  return totals, of_table, of_hidden


def _cast(tree: Tree, dtype: DTypeLike) -> Tree:
  """Floating-point arrays in `dtype`; quantized tables stay as they are."""
  return jax.tree.map(
    lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
  )


def _sum_over_devices(gradients: Tree, row_axes: Sequence[str], table_shape: Sequence[int]) -> Tree:
  """Sums [V, D] of the devices' gradients, [1, V, D] each; every device keeps its shard of the sum.

  Split by hand over all axes: left to XLA, those of the vocabulary would be gathered for it.
  """
  if not row_axes:
    return jax.tree.map(lambda x: x[0], gradients)
  spec = partitioning.active_spec(table_shape, ('vocab', 'embed')) or PartitionSpec(None, None)
  scattered = [(axis, dim) for dim, axis in enumerate(spec) if axis in row_axes]
  others = tuple(axis for axis in row_axes if axis not in spec)
  unscattered = (None if axis in row_axes else axis for axis in spec)

  def add_up(x: Array) -> Array:
    x = x[0]
    for axis, dim in scattered:
      x = jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)
    return jax.lax.psum(x, others) if others else x

  return jax.tree.map(
    jax.shard_map(
      add_up, in_specs=PartitionSpec(tuple(row_axes), *unscattered), out_specs=spec, check_vma=False
    ),
    gradients,
  )
