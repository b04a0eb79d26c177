"""Functions of tokens, computed one block of tokens at a time.

Logits of a whole batch, [B, T, V], exceed memory where vocabularies are large. Here they exist for
one block of tokens at a time. Counted tokens come first, and blocks without any, of prompts and
padding, are skipped. Training losses, scoring and teacher caches all read logits this way, within
one budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int

# Trees of arrays: [B, T, ...] or, of a block, [n, ...]; the same for all tokens; added over tokens.
Tokens = TypeVar('Tokens')
Shared = TypeVar('Shared')
Sums = TypeVar('Sums')
Outputs = TypeVar('Outputs')
Tree = TypeVar('Tree')

# Logits of one block on one device. Every block reads the whole readout table, which takes an
# accelerator longer than the products themselves if a block has few tokens: below 340 on a v5e.
LOGITS_ON_CPU = 1 << 23
LOGITS_ON_ACCELERATOR = 1 << 26


class MeshAxes(NamedTuple):
  """Mesh axes by what they split; `runtime.partitioning.block_axes` reads them off the mesh in use.

  Attributes:
    rows: the axes that the rows of a batch are split over.
    vocab: the axes that the vocabulary of the readout table is split over.
  """

  rows: tuple[str, ...] = ()
  vocab: tuple[str, ...] = ()


ONE_DEVICE = MeshAxes()


def max_logits(mesh: jax.sharding.AbstractMesh) -> int:
  """The number of logits that a block may have on each device of a mesh."""
  device = mesh.abstract_device
  on_cpu = device is None or device.platform == 'cpu'
  return LOGITS_ON_CPU if on_cpu else LOGITS_ON_ACCELERATOR


def default_length(num_rows: int, vocab_size: int, axes: MeshAxes = ONE_DEVICE) -> int:
  """The number of positions of all rows whose logits fit the budget; at least 1."""
  mesh = jax.sharding.get_abstract_mesh()
  devices = math.prod(mesh.shape[axis] for axis in {*axes.rows, *axes.vocab})
  return max(1, max_logits(mesh) // max(1, num_rows * vocab_size // devices))


def map_blocks(
  function: Callable[[Shared, Tokens], Outputs],
  shared: Shared,
  tokens: Tokens,
  counted: Bool[Array, 'B T'],
  *,
  length: int,
  axes: MeshAxes = ONE_DEVICE,
) -> Outputs:
  """`function(shared, tokens)` over blocks of the counted tokens; each token for itself.

  Args:
    function: maps `shared` and a block of tokens, arrays [n, ...], to arrays [n, ...].
    shared: a tree of arrays that every block reads, such as the readout table; with rows on several
      devices it is gathered over their axes once, before the blocks.
    tokens: a tree of arrays [B, T, ...].
    counted: the tokens to compute; of others the outputs are arbitrary.
    length: the positions of all rows that make a block; see `default_length`.
    axes: the mesh axes in use.

  Returns:
    The tree of arrays [B, T, ...] that `function` gives.
  """

  def outputs(shared: Shared, tokens: tuple[Tokens, Array]) -> Outputs:
    block = lambda tokens: (None, function(shared, tokens))
    return fold_blocks(block, *tokens, length=length, axes=axes.rows)[1]

  return per_device(outputs, axes.rows, PartitionSpec(axes.rows or None))(shared, (tokens, counted))


def per_device(
  function: Callable[[Shared, Tokens], Tree], axes: Sequence[str], out_specs: Any
) -> Callable[[Shared, Tokens], Tree]:
  """`function` on each device, for its own rows of `tokens`, which lie along `axes`."""
  if not axes:
    return function
  return jax.shard_map(
    function,
    in_specs=(PartitionSpec(), PartitionSpec(tuple(axes))),
    out_specs=out_specs,
    axis_names={*axes},
    check_vma=False,  # would sum gradients of what is the same everywhere in every block
  )


def fold_blocks(
  function: Callable[[Tokens], tuple[Sums, Outputs]],
  tokens: Tokens,
  counted: Bool[Array, 'B T'],
  *,
  length: int,
  axes: Sequence[str] = (),
) -> tuple[Sums, Outputs]:
  """`function(block) -> (sums, outputs)` over blocks of one device's tokens.

  Sums are added; outputs are returned at the tokens' positions, and are 0 for skipped blocks.
  Devices along `axes`, which hold other rows, take equally many blocks: XLA is free to let all of
  them take part in what those of one row exchange within a block, and then none may skip it alone.
  """
  count = -(-counted.shape[1] // length)
  unflatten = lambda x: x.reshape(*counted.shape, *x.shape[1:])
  if count == 1:
    sums, outputs = function(jax.tree.map(_flatten, tokens))
    return sums, jax.tree.map(unflatten, outputs)
  size = -(-counted.size // count)
  order = jnp.argsort(~counted.reshape(-1), stable=True)
  inverse = jnp.argsort(order)

  def split(x: Array) -> Array:
    padding = [(0, count * size - counted.size)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(_flatten(x)[order], padding).reshape(count, size, *x.shape[2:])

  blocks = jax.tree.map(split, tokens)
  shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], blocks))
  no_sums, no_outputs = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(sums: Sums, block: Tokens) -> tuple[Sums, Outputs]:
    more, outputs = function(block)
    return jax.tree.map(jnp.add, sums, more), outputs

  def skip(sums: Sums, block: Tokens) -> tuple[Sums, Outputs]:
    del block
    return sums, no_outputs

  def step(sums: Sums, numbered: tuple[Int[Array, ''], Tokens]) -> tuple[Sums, Outputs]:
    start, block = numbered
    return jax.lax.cond(start < end, add, skip, sums, block)

  end = jnp.sum(counted)
  if axes:
    end = jax.lax.pmax(end, tuple(axes))
  sums, outputs = jax.lax.scan(step, no_sums, (size * jnp.arange(count), blocks))
  return sums, jax.tree.map(lambda x: unflatten(_flatten(x)[inverse]), outputs)


def _flatten(x: Array) -> Array:
  """[B, T, ...] as [B * T, ...]."""
  return x.reshape(-1, *x.shape[2:])
