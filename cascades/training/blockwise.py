"""Sums over blocks of tokens, with their gradient formed on the way forward.

Logits of all tokens, [B, T, V], are what a step with a large vocabulary has no room for. Here they
exist for a block of tokens at a time. Tokens that count come first, and blocks without any, of
prompts and padding, are not read out. A sum hands every block the same cotangent, one number; so a
block can form its gradient while its logits are there, and nothing is read out twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from cascades.runtime import partitioning

Totals: TypeAlias = dict[str, Float[Array, '']]  # sums over tokens, of a block, batch or data set
# Of (table, hidden, frozen, rows), each of one block but for the table and what is frozen.
TotalsOf: TypeAlias = Callable[[Any, Array, Any, Any], Totals]
# Of (of, arrays, counted): `of(block) -> (sums, kept)` over all blocks, as `_fold` does it.
Fold: TypeAlias = Callable[[Callable[[Any], tuple[Any, Any]], Any, Array], tuple[Any, Any]]

# Logits of a block on a device, unless its length is given. Every block reads the tables anew, for
# which a chip takes longer than for the products if a block has few tokens: below 340 on a v5e.
LOGITS = 1 << 23
LOGITS_ON_CHIPS = 1 << 26


def sum_blocks(
  totals_of: TotalsOf,
  table: Any,
  hidden: Float[Array, 'B T D'],
  frozen: Any,
  rows: Any,
  counted: Bool[Array, 'B T'],
  *,
  length: int | None = None,
  gradient_dtype: str = 'float32',
) -> Totals:
  """`totals_of(table, hidden, frozen, rows)`, summed over blocks of the tokens that are `counted`.

  `rows` is a tree of arrays [B, T, ...], cut into blocks as `hidden` is. A block, [n, ...], has the
  tokens of up to `length` positions of all rows; other tokens or zeros fill the last one up, and
  what `totals_of` adds for those must be 0. Only `totals['loss']` has a gradient, to `table` and
  `hidden`; that of the table is summed in `gradient_dtype`.

  Rows that lie on several devices stay there: the tables are gathered once before the blocks, and
  the table's gradient is reduced once after them.
  """
  places = _Places(hidden.shape[0], jax.tree.leaves(table)[0].shape)
  fold = functools.partial(_fold, length=length or places.length, largest=places.largest)
  narrow = lambda tree: _cast(tree, hidden.dtype)

  @jax.custom_vjp
  def total(table: Any, hidden: Array, frozen: Any, rows: Any) -> Totals:
    local = places.split(
      lambda *arrays: places.sum(_sums(totals_of, *arrays, fold=fold)), PartitionSpec()
    )
    return local(narrow(table), hidden, narrow(frozen), rows)

  def forward(*arrays: Any) -> tuple[Totals, Any]:
    # A table that is not trained, as that beside adapters, is told from one that is.
    trained = any(p.perturbed for p in jax.tree.leaves(arrays[0], is_leaf=_is_primal))
    wanted = (0, 1) if trained else (1,)
    table, hidden, frozen, rows = jax.tree.map(lambda p: p.value, arrays, is_leaf=_is_primal)

    def local(*arrays: Any) -> tuple[Totals, Any, Array]:
      totals, of_table, of_hidden = _gradients(
        totals_of, *arrays, wanted=wanted, fold=fold, dtype=gradient_dtype
      )
      return places.sum(totals), jax.tree.map(lambda x: x[None], of_table), of_hidden

    local = places.split(local, (PartitionSpec(), places.rows, places.rows))
    totals, of_table, of_hidden = local(narrow(table), hidden, narrow(frozen), rows)
    like = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), table)
    return totals, (places.reduce(of_table), of_hidden, like)

  def backward(kept: Any, cotangents: Totals) -> tuple[Any, Any, None, None]:
    (of_table, of_hidden, like), cotangent = kept, cotangents['loss']
    scaled = lambda gradient, like: (gradient * cotangent).astype(like.dtype)
    table = None if of_table is None else jax.tree.map(scaled, of_table, like)
    return table, scaled(of_hidden, of_hidden), None, None

  total.defvjp(forward, backward, symbolic_zeros=True)
  return total(table, hidden, frozen, (rows, counted))


def _sums(
  totals_of: TotalsOf,
  table: Any,
  hidden: Array,
  frozen: Any,
  rows_counted: tuple[Any, Array],
  *,
  fold: Fold,
) -> Totals:
  """The totals of all blocks."""

  def block(arrays: tuple[Array, Any]) -> tuple[Totals, None]:
    hidden, rows = arrays
    return totals_of(table, hidden, frozen, rows), None

  rows, counted = rows_counted
  return fold(block, (hidden, rows), counted)[0]


def _gradients(
  totals_of: TotalsOf,
  table: Any,
  hidden: Array,
  frozen: Any,
  rows_counted: tuple[Any, Array],
  *,
  wanted: tuple[int, ...],
  fold: Fold,
  dtype: str,
) -> tuple[Totals, Any, Array]:
  """The same, and the loss's gradients to the table, summed in `dtype`, and to hidden.

  Without argument 0 among the `wanted`, that of the table is None.
  """

  def block(arrays: tuple[Array, Any]) -> tuple[Any, Array]:
    hidden, rows = arrays

    def loss(table: Any, hidden: Array) -> tuple[Array, Totals]:
      totals = totals_of(table, hidden, frozen, rows)
      return totals['loss'], totals

    (*of_table, of_hidden), totals = jax.grad(loss, wanted, has_aux=True)(table, hidden)
    return (totals, _cast(of_table[0], dtype) if of_table else None), of_hidden

  rows, counted = rows_counted
  (totals, of_table), of_hidden = fold(block, (hidden, rows), counted)
  return totals, of_table, of_hidden


def _is_primal(leaf: Any) -> bool:
  return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)


def _cast(tree: Any, dtype: Any) -> Any:
  """Floating-point arrays in `dtype`; eight bits, and their scales, stay what they are."""
  return jax.tree.map(
    lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
  )


def _fold(
  of: Callable[[Any], tuple[Any, Any]],
  arrays: Any,
  counted: Bool[Array, 'B T'],
  *,
  length: int,
  largest: Callable[[Array], Array],
) -> tuple[Any, Any]:
  """`of(block) -> (sums, kept)` over blocks of the arrays' tokens: sums are added, what is kept is
  put back where its tokens were.

  Tokens that are counted come first, and blocks without any are passed over: 0 is kept of them.
  Devices agree on the `largest` number of tokens: XLA is free to let all of them take part in what
  those of one row exchange within a block, and then none may pass over it alone.
  """
  count = -(-counted.shape[1] // length)
  restore = lambda x: x.reshape(*counted.shape, *x.shape[1:])
  if count == 1:
    sums, kept = of(jax.tree.map(_flat, arrays))
    return sums, jax.tree.map(restore, kept)
  size = -(-counted.size // count)
  order = jnp.argsort(~counted.reshape(-1), stable=True)
  inverse = jnp.argsort(order)
  blocks = jax.tree.map(lambda x: _cut(_flat(x)[order], count, size), arrays)
  shapes = jax.eval_shape(of, jax.tree.map(lambda x: x[0], blocks))
  zeros, nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(sums: Any, block: Any) -> tuple[Any, Any]:
    more, kept = of(block)
    return jax.tree.map(jnp.add, sums, more), kept

  def pass_over(sums: Any, block: Any) -> tuple[Any, Any]:
    del block
    return sums, nothing

  def step(sums: Any, numbered: tuple[Int[Array, ''], Any]) -> tuple[Any, Any]:
    start, block = numbered
    return jax.lax.cond(start < end, add, pass_over, sums, block)

  end = largest(jnp.sum(counted))
  sums, kept = jax.lax.scan(step, zeros, (size * jnp.arange(count), blocks))
  return sums, jax.tree.map(lambda x: restore(_flat(x)[inverse]), kept)


def _flat(x: Array) -> Array:
  """[B, T, ...] as [B * T, ...]."""
  return x.reshape(-1, *x.shape[2:])


def _cut(x: Array, count: int, size: int) -> Array:
  """[N, ...] as [count, size, ...], filled up with zeros."""
  padding = [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1)
  return jnp.pad(x, padding).reshape(count, size, *x.shape[1:])


def room(mesh: Any) -> int:
  """How many logits a block may have on each device of a mesh."""
  device = mesh.abstract_device
  return LOGITS if device is None or device.platform == 'cpu' else LOGITS_ON_CHIPS


def _named(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


class _Places:
  """Which mesh axes the rows lie on, and how sums over rows come together.

  `length` is how many positions of a row there is room for at a time.
  """

  def __init__(self, num_rows: int, table_shape: Sequence[int]):
    rows = partitioning.active_spec((num_rows,), ('batch',)) or PartitionSpec(None)
    mesh = jax.sharding.get_abstract_mesh()
    self.axes = tuple(axis for axis in _named(rows[0]) if mesh.shape[axis] > 1)
    self.rows = PartitionSpec(self.axes or None)
    self.table = partitioning.active_spec(table_shape, ('vocab', 'embed')) or PartitionSpec(
      None, None
    )
    parts = math.prod(mesh.shape[axis] for axis in {*self.axes, *_named(self.table[0])})
    self.length = max(1, room(mesh) // max(1, num_rows * table_shape[0] // parts))

  def split(self, function: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
    """`function(table, hidden, frozen, rows)`, on each device for its own rows."""
    if not self.axes:
      return function
    return jax.shard_map(
      function,
      in_specs=(PartitionSpec(), self.rows, PartitionSpec(), self.rows),
      out_specs=out_specs,
      axis_names={*self.axes},
      check_vma=False,  # would sum gradients of what is the same everywhere in every block
    )

  def largest(self, number: Array) -> Array:
    return jax.lax.pmax(number, self.axes) if self.axes else number

  def sum(self, tree: Any) -> Any:
    return jax.lax.psum(tree, self.axes) if self.axes else tree

  def reduce(self, tables: Any) -> Any:
    """Sums [V, D] of what each device holds, [1, V, D]; each keeps the part that it stores.

    Split by hand over all axes: left to XLA, those of the vocabulary would be gathered for it.
    """
    if not self.axes:
      return jax.tree.map(lambda x: x[0], tables)
    scattered = [(axis, dim) for dim, axis in enumerate(self.table) if axis in self.axes]
    rest = tuple(axis for axis in self.axes if axis not in self.table)
    whole = (None if axis in self.axes else axis for axis in self.table)

    def reduce(x: Array) -> Array:
      x = x[0]
      for axis, dim in scattered:
        x = jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)
      return jax.lax.psum(x, rest) if rest else x

    split = jax.shard_map(
      reduce, in_specs=PartitionSpec(self.axes, *whole), out_specs=self.table, check_vma=False
    )
    return jax.tree.map(split, tables)
