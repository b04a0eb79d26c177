"""The mesh, the rules that map logical axes to it, and the placing of parameters and batches.

Layers name the axes of their parameters and activations; the list of pairs `RULES` is all that says
where they go. A rule applies to a dimension if its mesh axes are still free and divide the
dimension; the first that applies wins, and without one the dimension is replicated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx
from flax.core import spmd
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cascades.blocks import MeshAxes
from cascades.types import Params

Rules: TypeAlias = Sequence[tuple[str, str | tuple[str, ...] | None]]

AXES = ('data', 'fsdp', 'tensor')
BATCH = ('data', 'fsdp')

RULES: Rules = (
  # parameters
  ('vocab', 'tensor'),
  ('mlp', 'tensor'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('embed', 'fsdp'),
  # activations
  ('batch', BATCH),
  ('activation_heads', 'tensor'),
  ('activation_mlp', 'tensor'),
  ('activation_vocab', 'tensor'),
)


def partition_spec(
  shape: Sequence[int], names: Sequence[str | None], mesh_shape: Mapping[str, int], rules: Rules
) -> PartitionSpec:
  """Map an array's logical axes to mesh axes.

  Args:
    shape: The array's shape.
    names: Logical name of each axis; None is replicated.
    mesh_shape: Size of each mesh axis.
    rules: Pairs of logical name and mesh axis (or axes), in order of preference.
  """
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
  """`partition_spec` under the active rules and mesh; None without them.

  Axes that an enclosing `jax.shard_map` has split by hand are left out.
  """
  rules, mesh = spmd.get_logical_axis_rules(), jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty:
    return None
  free = {
    name: size
    for name, size, axis_type in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    if axis_type == AxisType.Auto
  }
  return partition_spec(shape, names, free, rules)


def block_axes(num_rows: int, table_shape: Sequence[int]) -> MeshAxes:
  """Mesh axes in use that split the rows of a batch, and the vocabulary of a table [V, D]."""
  mesh = jax.sharding.get_abstract_mesh()
  rows = active_spec((num_rows,), ('batch',)) or PartitionSpec(None)
  table = active_spec(table_shape, ('vocab', 'embed')) or PartitionSpec(None, None)
  row_axes, vocab_axes = (
    (entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in (rows[0], table[0])
  )
  return MeshAxes(tuple(axis for axis in row_axes if mesh.shape[axis] > 1), vocab_axes)


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Make a mesh over all devices.

  Args:
    data: Size of the data axis; -1 takes the devices that the other axes leave.
    fsdp: Size of the axis that shards parameters and optimizer state.
    tensor: Size of the axis that shards heads, MLPs and the vocabulary.
    devices: The devices, by default all.

  Returns:
    A mesh with the axes `data`, `fsdp` and `tensor`.

  Raises:
    ValueError: if the product of the sizes is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if data == -1:
    data = max(1, len(devices) // (fsdp * tensor))
  if data * fsdp * tensor != len(devices):
    raise ValueError(
      f'a mesh of data={data} x fsdp={fsdp} x tensor={tensor} needs {data * fsdp * tensor} devices '
      f'and there are {len(devices)}: choose sizes with that product.'
    )
  shape = (data, fsdp, tensor)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


@dataclasses.dataclass(frozen=True)
class Devices:
  """Mesh of devices that a program runs on, and the sharding rules of its arrays.

  Attributes:
    mesh: Makes the mesh.
    rules: Pairs of logical axis name and mesh axis (or axes), in order of preference.
  """

  mesh: Callable[..., Mesh] = make_mesh
  rules: Rules = RULES

  def use(self, **options: Any) -> contextlib.AbstractContextManager[None]:
    """Context manager that activates the mesh, made with these options, and the rules."""
    return use(self.mesh(**options), self.rules)


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
  """Context manager that activates a mesh and its rules; models are traced inside it."""
  with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
    yield


def like_parameters(tree: Any, params: Params) -> Any:
  """Shapes and shardings of a tree with parameter-shaped subtrees, such as an optimizer's state.

  A leaf whose path ends in a parameter's path takes that parameter's sharding, without the
  dimensions that it has reduced away (factored second moments); other leaves are replicated.
  """
  parameters = {
    _names(path): (leaf.shape, leaf.sharding.spec)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  mesh = active_mesh()

  def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
    names = _names(path)
    suffixes = (names[i:] for i in range(len(names)))
    matches = (parameters[suffix] for suffix in suffixes if suffix in parameters)
    shape, spec = next(matches, ((), PartitionSpec()))
    sharding = NamedSharding(mesh, _reduced(spec, shape, leaf.shape))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(place, tree)


def active_mesh() -> Mesh:
  """The mesh in use. Raises ValueError outside of `use`."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    raise ValueError('no mesh is in use: call within `partitioning.use(mesh)`.')
  return mesh


def _names(path: Any) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _reduced(
  spec: PartitionSpec, shape: tuple[int, ...], reduced: tuple[int, ...]
) -> PartitionSpec:
  """The spec of an array of `shape` after it loses dimensions and becomes `reduced`."""
  if shape == reduced:
    return spec
  remaining, axes = list(zip(shape, spec, strict=True)) if shape else [], []
  for size in reduced:
    while remaining and remaining[0][0] != size:
      remaining.pop(0)
    if not remaining:
      return PartitionSpec()
    axes.append(remaining.pop(0)[1])
  return PartitionSpec(*axes)


def place_batch(batch: Any) -> Any:
  """Make global arrays of this process's rows of a batch, sharded over data and fsdp.

  Global arrays of this sharding stay as they are.

  Raises:
    ValueError: if the rows do not split evenly over the devices.
  """
  sharding = NamedSharding(active_mesh(), PartitionSpec(BATCH))

  def place(rows: np.ndarray | jax.Array) -> jax.Array:
    if isinstance(rows, jax.Array) and rows.sharding == sharding:
      return rows
    _check_divisible(len(rows) * jax.process_count())
    return jax.make_array_from_process_local_data(sharding, rows)

  return jax.tree.map(place, batch)


def place_whole(batch: Any) -> Any:
  """Make arguments of a program from a batch whose rows every process holds.

  They are global arrays, or on a mesh of one device the NumPy arrays as they are, which a program
  takes sooner: `benchmarks.placing`.
  """
  mesh = active_mesh()
  if mesh.size == 1:
    return batch
  sharding = NamedSharding(mesh, PartitionSpec(BATCH))

  def place(rows: np.ndarray) -> jax.Array:
    _check_divisible(len(rows))
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

  return jax.tree.map(place, batch)


def fetch(tree: Any) -> Any:
  """Gather global arrays into NumPy arrays on every process."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(tree, tiled=True)
  if jax.default_backend() == 'cpu':
    return jax.tree.map(np.asarray, tree)  # sooner than `device_get`
  return jax.device_get(tree)


def from_process_0(array: np.ndarray) -> np.ndarray:
  """Broadcast process 0's array; shape and dtype must be the same on all processes."""
  return np.asarray(multihost_utils.broadcast_one_to_all(array))


def wait_on_virtual_devices(tree: Any) -> None:
  """Wait for a step on virtual CPU devices, which deadlock if steps queue up."""
  if jax.default_backend() == 'cpu' and jax.local_device_count() > 1:
    jax.block_until_ready(tree)


def row_shards() -> int:
  """Number of devices that the rows of a batch are split over."""
  return math.prod(active_mesh().shape[axis] for axis in BATCH)


def _check_divisible(rows: int) -> None:
  shards = row_shards()
  if rows % shards:
    raise ValueError(
      f'a batch of {rows} does not split over {shards} devices ({" x ".join(BATCH)}): '
      f'choose a BATCH_SIZE that {shards} divides.'
    )
