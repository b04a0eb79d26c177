"""Tables of names that turn another program's tensors into parameters, and back.

A table says which tensor is which parameter and how their axes correspond. The same rules read and
write, so a round trip is bit-exact.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cascades.checkpoints.store import CheckpointError
from cascades.interop import axis_layouts
from cascades.interop.tensor_names import summarize
from cascades.types import Params

BATCH_BYTES = 1 << 28  # of tensors read together, on one device
# Other types are quantized or not weights; float64 would silently lose digits.
DTYPES = ('float32', 'bfloat16', 'float16')
STORED = ('float32', 'bfloat16')


def check_dtype(dtype: str) -> None:
  """Raises ValueError for a type that checkpoints are not stored in."""
  if dtype not in STORED:
    raise ValueError(f'DTYPE is {dtype!r}; weights are stored as {" or ".join(STORED)}.')


class TensorRule(NamedTuple):
  """Correspondence of one parameter and its tensor, or the tensors of its layers.

  Attributes:
    tensor: name of the tensor; `{}` in it is the layer, the first axis of the parameter.
    parameter: path of the parameter, joined by '/'.
    layout: einops pattern from a tensor's axes to the parameter's, '(n h) d -> d n h'; empty if
      they are the same.
    copies: names of tensors that may repeat the tensor, or replace it.
  """

  tensor: str
  parameter: str
  layout: str = ''
  copies: tuple[str, ...] = ()


class TensorTable(NamedTuple):
  """The rules of a model, and shell patterns of tensors that it does not need."""

  rules: Sequence[TensorRule]
  ignored: Sequence[str] = ()


class StoredTensors(NamedTuple):
  """Tensors in a file, none of which is read before `read` is called.

  Attributes:
    origin: path of the file, for messages.
    shapes: shape and dtype of every tensor, by name.
    read: brings the tensors that it is given by name, in the dtype and sharding given for each.
  """

  origin: str
  shapes: Mapping[str, jax.ShapeDtypeStruct]
  read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], Mapping[str, jax.Array]]


class PretrainedTensors(NamedTuple):
  """Stored tensors and the table that makes them parameters. Nothing is read before `load`."""

  table: TensorTable
  stored: StoredTensors

  def load(self, like: Params, *, batch_bytes: int = BATCH_BYTES) -> Params:
    """Reads the parameters; see `load` of this module."""
    return load(self.table, self.stored, like, batch_bytes=batch_bytes)


class PretrainedWeights(NamedTuple):
  """Description of a model, with the fields of model.json, and its tensors."""

  description: Mapping[str, Any]
  tensors: PretrainedTensors


class TensorToWrite(NamedTuple):
  """A tensor of an export; `compute` fetches and transposes it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  compute: Callable[[], np.ndarray]


def from_arrays(origin: str, arrays: Mapping[str, Any]) -> StoredTensors:
  """Wraps arrays, or objects with a shape and a dtype that `np.asarray` reads."""

  def read(specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    return {name: put(np.asarray(arrays[name]), like) for name, like in specs.items()}

  def put(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    shard = lambda index: array[index].astype(like.dtype)
    return jax.make_array_from_callback(array.shape, like.sharding, shard)

  shapes = {
    name: jax.ShapeDtypeStruct(tuple(array.shape), array.dtype) for name, array in arrays.items()
  }
  return StoredTensors(origin, shapes, read)


def load(
  table: TensorTable, stored: StoredTensors, like: Params, *, batch_bytes: int = BATCH_BYTES
) -> Params:
  """Reads the parameters of a model from the tensors of another program.

  Example: with the rule `('layers.{}.proj', 'blocks/kernel', 'o i -> i o')` the tensors
  layers.0.proj and layers.1.proj of shape [2, 4] become the parameter blocks/kernel of shape
  [2, 4, 2], whose first axis is the layer.

  Args:
    table: which tensor is which parameter.
    stored: the tensors.
    like: tree of `jax.ShapeDtypeStruct` with the parameters' shapes, dtypes and shardings.
    batch_bytes: bytes per device to read at a time, of several parameters or of some layers of
      one. A tensor is never split. A process holds its shards of one batch in host memory.

  Returns:
    Arrays in the structure of `like`.

  Raises:
    CheckpointError: tensors are missing, not in the table, of another shape or dtype, copies
      that differ from their original, or not finite. The message names them.
  """
  leaves = _by_path(like)
  _check(table, stored, leaves)
  parameters = [
    _Parameter(rule, leaves[rule.parameter]) for rule in table.rules if rule.parameter in leaves
  ]
  large = [p for p in parameters if _stacked(p.rule) and _device_bytes(p.leaf) > batch_bytes]
  params = {p.rule.parameter: _load_by_layers(p, stored, batch_bytes) for p in large}
  for batch in _batches([p for p in parameters if p not in large], batch_bytes):
    params |= _load_batch(batch, stored)
  return jax.tree_util.tree_map_with_path(lambda path, _: params[_path(path)], like)


def unload(
  table: TensorTable, params: Params, *, fetch: Callable[[Any], np.ndarray] = jax.device_get
) -> dict[str, TensorToWrite]:
  """Turns parameters back into the tensors that `load` reads them from.

  Args:
    table: which tensor is which parameter.
    params: the parameters.
    fetch: brings an array to the host, called once for every tensor, when it is computed.

  Returns:
    The tensors by name, in the order of the table. None is computed yet.

  Raises:
    CheckpointError: the table has no name for some parameters; the message lists them.
  """
  leaves = _by_path(params)
  _raise_problems('the model cannot be written', {'not in the table': _unnamed(table, leaves)})
  tensors = {}
  for rule in table.rules:
    if rule.parameter in leaves:
      leaf = leaves[rule.parameter]
      for layer, name in enumerate(_tensor_names(rule, leaf)):
        compute = functools.partial(_fetch_tensor, rule, leaf, layer, fetch)
        tensors[name] = TensorToWrite(_tensor_shape(rule, leaf), np.dtype(leaf.dtype), compute)
  return tensors


def _check(table: TensorTable, stored: StoredTensors, leaves: Mapping[str, Any]) -> None:
  shapes = stored.shapes
  rules = [rule for rule in table.rules if rule.parameter in leaves]
  expected = {
    _stored_name(rule, name, shapes): _tensor_shape(rule, leaves[rule.parameter])
    for rule in rules
    for name in _tensor_names(rule, leaves[rule.parameter])
  }
  copies = {copy for rule in rules for copy in rule.copies}
  _raise_problems(
    f'{stored.origin} does not fit the model',
    {
      'missing': [name for name in expected if name not in shapes],
      'not known to this model': [
        name
        for name in shapes
        if name not in expected
        and name not in copies
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in table.ignored)
      ],
      'of another shape': [
        f'{name} is {tuple(shapes[name].shape)}, expected {shape}'
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name].shape) != shape
      ],
      f'of a type other than {", ".join(DTYPES)}': [
        f'{name} ({shapes[name].dtype})'
        for name in expected
        if name in shapes and shapes[name].dtype not in DTYPES
      ],
      'parameters that no tensor fills': _unnamed(table, leaves),
    },
  )


def _raise_problems(summary: str, problems: Mapping[str, Sequence[str]]) -> None:
  lines = [f'{problem}: {summarize(names)}' for problem, names in problems.items() if names]
  if lines:
    raise CheckpointError(f'{summary}; ' + '; '.join(lines) + '.')


def _unnamed(table: TensorTable, leaves: Mapping[str, Any]) -> list[str]:
  named = {rule.parameter for rule in table.rules}
  return [path for path in leaves if path not in named]


def _stored_name(rule: TensorRule, name: str, stored: Mapping[str, Any]) -> str:
  """The name itself, or that of a copy if only the copy is stored."""
  return next((candidate for candidate in (name, *rule.copies) if candidate in stored), name)


class _Parameter(NamedTuple):
  """A parameter to fill and the rule that fills it."""

  rule: TensorRule
  leaf: jax.ShapeDtypeStruct


def _batches(parameters: Sequence[_Parameter], limit: int) -> Iterator[list[_Parameter]]:
  batch: list[_Parameter] = []
  for parameter in parameters:
    if batch and sum(_device_bytes(p.leaf) for p in (*batch, parameter)) > limit:
      yield batch
      batch = []
    batch.append(parameter)
  if batch:
    yield batch


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """Bytes of the shard of one device."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _load_batch(batch: Sequence[_Parameter], stored: StoredTensors) -> dict[str, jax.Array]:
  names = [
    [_stored_name(p.rule, name, stored.shapes) for name in _tensor_names(p.rule, p.leaf)]
    for p in batch
  ]
  copies = [
    [name for name in p.rule.copies if name in stored.shapes and name not in originals]
    for p, originals in zip(batch, names, strict=True)
  ]
  specs = {
    name: _tensor_spec(p)
    for p, originals, repeats in zip(batch, names, copies, strict=True)
    for name in (*originals, *repeats)
  }
  arrays = stored.read(specs)
  for originals, repeats in zip(names, copies, strict=True):
    for copy in repeats:
      if not jnp.array_equal(arrays[copy], arrays[originals[0]]):
        raise CheckpointError(
          f'{stored.origin}: {copy} should repeat {originals[0]} and differs from it: the model '
          'does not share these weights, contrary to its configuration.'
        )
  assemble = _jit_assemble(tuple(_assembly(p) for p in batch))
  params, finite = assemble([[arrays[name] for name in originals] for originals in names])
  # Without waiting, several batches are in memory beside the parameters that they become.
  jax.block_until_ready(params)
  _check_finite(stored, [name for originals in names for name in originals], finite)
  return dict(zip((p.rule.parameter for p in batch), params, strict=True))


def _load_by_layers(parameter: _Parameter, stored: StoredTensors, limit: int) -> jax.Array:
  """Fills a parameter that is larger than a batch, a few layers at a time."""
  rule, leaf = parameter
  spec, names = _tensor_spec(parameter), _tensor_names(rule, leaf)
  count = max(1, limit * len(names) // _device_bytes(leaf))
  param = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
  for begin in range(0, len(names), count):
    batch = names[begin : begin + count]
    arrays = stored.read(dict.fromkeys(batch, spec))
    shape = (len(batch), *leaf.shape[1:])
    insert = _jit_insert(_assembly(parameter)._replace(shape=shape))
    # Without waiting, several batches are in memory.
    param, finite = jax.block_until_ready(insert(param, [arrays[name] for name in batch], begin))
    _check_finite(stored, batch, finite)
  return param


def _check_finite(stored: StoredTensors, names: Sequence[str], finite: jax.Array) -> None:
  wrong = [name for name, good in zip(names, np.asarray(finite), strict=True) if not good]
  if wrong:
    raise CheckpointError(
      f'{stored.origin} holds weights that are NaN or infinite, or become so in the type to store: '
      f'{summarize(wrong)}. The file is damaged, or its training diverged.'
    )


class _Assembly(NamedTuple):
  """The static arguments of the compiled function that builds a parameter of its tensors."""

  layout: str
  stacked: bool
  shape: tuple[int, ...]
  sharding: NamedSharding


def _assembly(parameter: _Parameter) -> _Assembly:
  rule, leaf = parameter
  return _Assembly(rule.layout, _stacked(rule), tuple(leaf.shape), leaf.sharding)


def _tensor_spec(parameter: _Parameter) -> jax.ShapeDtypeStruct:
  """Shape, dtype and sharding of one of the tensors of a parameter."""
  rule, leaf = parameter
  spec = (*leaf.sharding.spec, *(None,) * (len(leaf.shape) - len(leaf.sharding.spec)))
  tensor_spec = axis_layouts.tensor_spec(rule.layout, spec[_stacked(rule) :])
  sharding = NamedSharding(leaf.sharding.mesh, tensor_spec)
  return jax.ShapeDtypeStruct(_tensor_shape(rule, leaf), leaf.dtype, sharding=sharding)


@functools.cache
def _jit_assemble(
  assemblies: tuple[_Assembly, ...],
) -> Callable[[list[list[jax.Array]]], tuple[list[jax.Array], jax.Array]]:
  """Compiled, so that it also works on arrays with shards on other hosts."""

  def assemble(batch: list[list[jax.Array]]) -> tuple[list[jax.Array], jax.Array]:
    params = [_assemble(*pair) for pair in zip(assemblies, batch, strict=True)]
    return params, _finite([tensor for tensors in batch for tensor in tensors])

  shardings = [assembly.sharding for assembly in assemblies]
  return jax.jit(
    assemble, out_shardings=(shardings, NamedSharding(assemblies[0].sharding.mesh, PartitionSpec()))
  )


@functools.cache
def _jit_insert(
  assembly: _Assembly,
) -> Callable[[jax.Array, list[jax.Array], int], tuple[jax.Array, jax.Array]]:
  """Writes some layers of a parameter in place."""

  def insert(param: jax.Array, tensors: list[jax.Array], begin: int) -> tuple[jax.Array, jax.Array]:
    layers = _assemble(assembly, tensors)
    return jax.lax.dynamic_update_slice_in_dim(param, layers, begin, axis=0), _finite(tensors)

  out_shardings = assembly.sharding, NamedSharding(assembly.sharding.mesh, PartitionSpec())
  return jax.jit(insert, donate_argnums=0, out_shardings=out_shardings)


def _finite(tensors: list[jax.Array]) -> jax.Array:
  """For each tensor, true if all of its numbers are finite."""
  return jnp.stack([jnp.isfinite(tensor).all() for tensor in tensors])


def _assemble(assembly: _Assembly, tensors: list[jax.Array]) -> jax.Array:
  shape = assembly.shape[assembly.stacked :]
  layers = [axis_layouts.to_parameter(assembly.layout, tensor, shape) for tensor in tensors]
  return jnp.stack(layers) if assembly.stacked else layers[0]


def _fetch_tensor(
  rule: TensorRule, leaf: Any, layer: int, fetch: Callable[[Any], np.ndarray]
) -> np.ndarray:
  array = np.asarray(fetch(leaf[layer] if _stacked(rule) else leaf))
  return np.ascontiguousarray(axis_layouts.to_tensor(rule.layout, array))


def _tensor_names(rule: TensorRule, leaf: Any) -> list[str]:
  if not _stacked(rule):
    return [rule.tensor]
  return [rule.tensor.replace('{}', str(layer)) for layer in range(leaf.shape[0])]


def _tensor_shape(rule: TensorRule, leaf: Any) -> tuple[int, ...]:
  return axis_layouts.tensor_shape(rule.layout, tuple(leaf.shape)[_stacked(rule) :])


def _stacked(rule: TensorRule) -> bool:
  return '{}' in rule.tensor


def _path(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _by_path(tree: Params) -> dict[str, Any]:
  return {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
