"""Other programs' tensors into our parameters and back, by tables of names.

A table is data: which tensor is which parameter, and how its axes lie. The same rows read and
write, so what was read is written back bit by bit.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from cascades.checkpoints.store import CheckpointError
from cascades.interop import axis_layouts
from cascades.types import Params

BATCH_BYTES = 1 << 28  # of tensors read together, on one device
# Anything else is quantised, or no weight; float64 would lose digits without a word.
DTYPES = ('float32', 'bfloat16', 'float16')
STORED = ('float32', 'bfloat16')


def check_dtype(dtype: str) -> None:
  """Raises ValueError for a type that checkpoints are not stored in."""
  if dtype not in STORED:
    raise ValueError(f'DTYPE is {dtype!r}; weights are stored as {" or ".join(STORED)}.')


class Row(NamedTuple):
  """One parameter. `{}` in `source` is the layer, of a target whose first axis is the layers.

  `layout` says how one tensor's axes become the parameter's: '(n h) d -> d n h' splits the first,
  n being the major one, and moves d to the front; without it they are the same. `copies` are names
  of tensors that may repeat the source, or stand for it.
  """

  source: str
  target: str
  layout: str = ''
  copies: tuple[str, ...] = ()


class Table(NamedTuple):
  """The rows of a model. Tensors `ignored` (shell patterns) may be there and mean nothing to it."""

  rows: Sequence[Row]
  ignored: Sequence[str] = ()


class Weights(NamedTuple):
  """Tensors by name, somewhere. `read` brings those asked for, typed and placed as asked."""

  origin: str  # for messages
  tensors: Mapping[str, jax.ShapeDtypeStruct]
  read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, jax.Array]]


class Source(NamedTuple):
  """A checkpoint of another program: its model, described as in model.json, and its tensors."""

  model: Mapping[str, Any]
  table: Table
  weights: Weights


class Tensor(NamedTuple):
  """A tensor to be written, and how to make it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]


def from_arrays(origin: str, arrays: Mapping[str, Any]) -> Weights:
  """Arrays, or what has a shape and a dtype and becomes one by `np.asarray`, when it is read."""

  def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    return {name: place(np.asarray(arrays[name]), like) for name, like in wanted.items()}

  def place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    piece = lambda index: array[index].astype(like.dtype)
    return jax.make_array_from_callback(array.shape, like.sharding, piece)

  tensors = {
    name: jax.ShapeDtypeStruct(tuple(array.shape), array.dtype) for name, array in arrays.items()
  }
  return Weights(origin, tensors, read)


def load(table: Table, weights: Weights, like: Params, *, batch_bytes: int = BATCH_BYTES) -> Params:
  """The parameters, typed and placed as `like`.

  Read in batches of `batch_bytes`, of several parameters or of some layers of one (a tensor is not
  split); what a process holds of a batch is what passes through its memory.

  Raises CheckpointError, naming all of them, if tensors are missing, not known to the table, of
  another shape or type, or copies that are none.
  """
  leaves = _by_path(like)
  _check(table, weights, leaves)
  parts = [_Part(row, leaves[row.target]) for row in table.rows if row.target in leaves]
  large = [part for part in parts if _stacked(part.row) and _bytes(part.leaf) > batch_bytes]
  params = {part.row.target: _load_by_layers(part, weights, batch_bytes) for part in large}
  for batch in _batches([part for part in parts if part not in large], batch_bytes):
    params |= _load_batch(batch, weights)
  return jax.tree_util.tree_map_with_path(lambda path, _: params[_name(path)], like)


def unload(
  table: Table, params: Params, *, fetch: Callable[[Any], np.ndarray] = jax.device_get
) -> dict[str, Tensor]:
  """What `load` would read as `params`, made tensor by tensor.

  Raises CheckpointError, naming them, if parameters have no name there.
  """
  leaves = _by_path(params)
  _complain('the model cannot be written', {'without a name there': _nameless(table, leaves)})
  tensors = {}
  for row in table.rows:
    if row.target in leaves:
      leaf = leaves[row.target]
      for layer, name in enumerate(_names(row, leaf)):
        piece = functools.partial(_piece, row, leaf, layer, fetch)
        tensors[name] = Tensor(_source_shape(row, leaf), np.dtype(leaf.dtype), piece)
  return tensors


def summarize(names: Iterable[str]) -> str:
  """All names, those that differ in their first number as one: `layers.{0-3,7}.weight`."""
  groups: dict[str, list[int]] = {}
  for name in names:
    number = re.search(r'\d+', name)
    template = re.sub(r'\d+', '{}', name, count=1)
    groups.setdefault(template, []).extend([int(number[0])] if number else [])
  return ', '.join(
    template.replace('{}', _ranges(numbers) if len(numbers) > 1 else str(numbers[0]), 1)
    if numbers
    else template
    for template, numbers in groups.items()
  )


def _ranges(numbers: Sequence[int]) -> str:
  runs: list[list[int]] = []
  for number in sorted(set(numbers)):
    if runs and number == runs[-1][-1] + 1:
      runs[-1][1:] = [number]
    else:
      runs.append([number])
  return '{' + ','.join('-'.join(map(str, run)) for run in runs) + '}'


def _check(table: Table, weights: Weights, leaves: Mapping[str, Any]) -> None:
  found = weights.tensors
  wanted = {
    _present(row, name, found): _source_shape(row, leaves[row.target])
    for row in table.rows
    if row.target in leaves
    for name in _names(row, leaves[row.target])
  }
  copies = {copy for row in table.rows for copy in row.copies if row.target in leaves}
  misshapen = [
    f'{name} is {tuple(found[name].shape)}, expected {shape}'
    for name, shape in wanted.items()
    if name in found and tuple(found[name].shape) != shape
  ]
  _complain(
    f'{weights.origin} does not fit the model',
    {
      'missing': [name for name in wanted if name not in found],
      'not known to this model': [
        name
        for name in found
        if name not in wanted
        and name not in copies
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in table.ignored)
      ],
      'of another shape': misshapen,
      f'of a type other than {", ".join(DTYPES)}': [
        f'{name} ({found[name].dtype})'
        for name in wanted
        if name in found and found[name].dtype not in DTYPES
      ],
      'parameters that no tensor fills': _nameless(table, leaves),
    },
  )


def _complain(what: str, problems: Mapping[str, Sequence[str]]) -> None:
  said = [f'{kind}: {summarize(names)}' for kind, names in problems.items() if names]
  if said:
    raise CheckpointError(f'{what}; ' + '; '.join(said) + '.')


def _nameless(table: Table, leaves: Mapping[str, Any]) -> list[str]:
  named = {row.target for row in table.rows}
  return [path for path in leaves if path not in named]


def _present(row: Row, name: str, found: Mapping[str, Any]) -> str:
  """The name itself, or a copy's if only that is there."""
  return next((one for one in (name, *row.copies) if one in found), name)


class _Part(NamedTuple):
  """A row and the parameter that it fills."""

  row: Row
  leaf: jax.ShapeDtypeStruct


def _batches(parts: Sequence[_Part], limit: int) -> Iterator[list[_Part]]:
  batch: list[_Part] = []
  for part in parts:
    if batch and sum(_bytes(one.leaf) for one in (*batch, part)) > limit:
      yield batch
      batch = []
    batch.append(part)
  yield batch


def _bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """Of the part that one device holds."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _load_batch(batch: Sequence[_Part], weights: Weights) -> dict[str, jax.Array]:
  likes = [_tensor_like(part) for part in batch]
  names = [
    [_present(part.row, name, weights.tensors) for name in _names(part.row, part.leaf)]
    for part in batch
  ]
  copies = [
    [name for name in part.row.copies if name in weights.tensors and name not in mine]
    for part, mine in zip(batch, names, strict=True)
  ]
  wanted = {
    name: like
    for like, mine, other in zip(likes, names, copies, strict=True)
    for name in (*mine, *other)
  }
  arrays = weights.read(wanted)
  for mine, other in zip(names, copies, strict=True):
    for copy in other:
      if not jnp.array_equal(arrays[copy], arrays[mine[0]]):
        raise CheckpointError(
          f'{weights.origin}: {copy} should repeat {mine[0]} and differs from it: its model does '
          'not share these weights, contrary to what its configuration says.'
        )
  made = _assembling(tuple(_form(part) for part in batch))(
    [[arrays[name] for name in mine] for mine in names]
  )
  # One after the other: else several batches wait in memory, beside what they become.
  jax.block_until_ready(made)
  return dict(zip((part.row.target for part in batch), made, strict=True))


def _load_by_layers(part: _Part, weights: Weights, limit: int) -> jax.Array:
  """A parameter larger than a batch: a few layers at a time into its place."""
  row, leaf = part
  like, names = _tensor_like(part), _names(row, leaf)
  count = max(1, limit * len(names) // _bytes(leaf))
  param = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
  for begin in range(0, len(names), count):
    some = names[begin : begin + count]
    arrays = weights.read(dict.fromkeys(some, like))
    insert = _inserting(_form(part)._replace(shape=(len(some), *leaf.shape[1:])))
    # One after the other: else several wait in memory.
    param = jax.block_until_ready(insert(param, [arrays[name] for name in some], begin))
  return param


class _Form(NamedTuple):
  """What has to be compiled to make a parameter of its tensors."""

  layout: str
  stacked: bool
  shape: tuple[int, ...]
  sharding: NamedSharding


def _form(part: _Part) -> _Form:
  row, leaf = part
  return _Form(row.layout, _stacked(row), tuple(leaf.shape), leaf.sharding)


def _tensor_like(part: _Part) -> jax.ShapeDtypeStruct:
  """One of the tensors, where its pieces are needed."""
  row, leaf = part
  spec = (*leaf.sharding.spec, *(None,) * (len(leaf.shape) - len(leaf.sharding.spec)))
  place = axis_layouts.source_spec(row.layout, spec[_stacked(row) :])
  sharding = NamedSharding(leaf.sharding.mesh, place)
  return jax.ShapeDtypeStruct(_source_shape(row, leaf), leaf.dtype, sharding=sharding)


@functools.cache
def _assembling(forms: tuple[_Form, ...]) -> Callable[[list[list[jax.Array]]], list[jax.Array]]:
  """Compiled, so that it works on pieces of arrays wherever they are."""

  return jax.jit(
    lambda batch: [_assembled(*pair) for pair in zip(forms, batch, strict=True)],
    out_shardings=[form.sharding for form in forms],
  )


@functools.cache
def _inserting(form: _Form) -> Callable[[jax.Array, list[jax.Array], int], jax.Array]:
  """Some layers of a parameter, compiled to be written where it is."""

  def insert(param: jax.Array, tensors: list[jax.Array], begin: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(param, _assembled(form, tensors), begin, axis=0)

  return jax.jit(insert, donate_argnums=0, out_shardings=form.sharding)


def _assembled(form: _Form, tensors: list[jax.Array]) -> jax.Array:
  shape = form.shape[form.stacked :]
  laid_out = [axis_layouts.forwards(form.layout, tensor, shape) for tensor in tensors]
  return jnp.stack(laid_out) if form.stacked else laid_out[0]


def _piece(row: Row, leaf: Any, layer: int, fetch: Callable[[Any], np.ndarray]) -> np.ndarray:
  array = np.asarray(fetch(leaf[layer] if _stacked(row) else leaf))
  return np.ascontiguousarray(axis_layouts.backwards(row.layout, array))


def _names(row: Row, leaf: Any) -> list[str]:
  if not _stacked(row):
    return [row.source]
  return [row.source.replace('{}', str(layer)) for layer in range(leaf.shape[0])]


def _source_shape(row: Row, leaf: Any) -> tuple[int, ...]:
  return axis_layouts.source_shape(row.layout, tuple(leaf.shape)[_stacked(row) :])


def _stacked(row: Row) -> bool:
  return '{}' in row.source


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _by_path(tree: Params) -> dict[str, Any]:
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
