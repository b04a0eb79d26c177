"""Arrays of one checkpoint, read with given shardings, dtypes and quantization."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from cascades.checkpoints.finished import CheckpointError
from cascades.models import quantization

ParameterPath: TypeAlias = tuple[str, ...]
Adapt: TypeAlias = Callable[[Any, Mapping[str, tuple[int, ...]]], tuple[Any, Callable[[Any], Any]]]


def params(
  path: epath.Path,
  like: Any,
  changes: Mapping[ParameterPath, Callable[[Any], Any]] = types.MappingProxyType({}),
) -> Any:
  """Reads parameters and changes some of them.

  Parameters that change, or whose quantization differs from that on disk, are read one at a time,
  so that only one is in memory twice.

  Args:
    path: the folder of the checkpoint's arrays.
    like: tree of `jax.ShapeDtypeStruct` or `Quantized`: shapes, dtypes and shardings to return.
    changes: functions of parameters before quantization, by path.

  Raises:
    CheckpointError: the checkpoint is damaged, or lacks parameters in these shapes.
  """
  tree = _metadata(path)
  shapes, flat = _shapes_of(tree), traverse_util.flatten_dict(like)

  def as_stored(name: ParameterPath, leaf: Any) -> Any:
    scale = shapes.get((*name, 'scale'))
    if name not in changes and isinstance(leaf, quantization.Quantized) == (scale is not None):
      return leaf
    unquantized = quantization.as_float32(leaf)
    return unquantized if scale is None else quantization.abstract(unquantized, scale)

  stored = {name: as_stored(name, leaf) for name, leaf in flat.items()}
  _check_arrays(path, tree, {'params': traverse_util.unflatten_dict(stored)})
  load = lambda leaves: traverse_util.flatten_dict(
    _load(path, {'params': traverse_util.unflatten_dict(leaves)})['params']
  )
  unchanged = {name: leaf for name, leaf in flat.items() if stored[name] is leaf}
  params = load(unchanged) if unchanged else {}
  for name in (name for name in flat if name not in unchanged):
    (weight,) = load({name: stored[name]}).values()
    change = changes.get(name, lambda weight: weight)
    params[name] = quantization.convert(change(weight), flat[name])
  return traverse_util.unflatten_dict(params)


def _shapes_of(tree: Any) -> dict[ParameterPath, tuple[int, ...]]:
  flat = traverse_util.flatten_dict(tree.get('params', {}))
  return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def shapes(path: epath.Path) -> dict[ParameterPath, tuple[int, ...]]:
  """The shapes of all parameters of a checkpoint."""
  return _shapes_of(_metadata(path))


def _metadata(path: epath.Path) -> Any:
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      return checkpointer.metadata(path).item_metadata.tree
    except (FileNotFoundError, ValueError, KeyError, AttributeError) as error:
      raise CheckpointError(f'{path} is not a complete checkpoint: {error}.') from error


def restore(path: epath.Path, like: Any, adapt: Adapt | None = None) -> Any:
  """Reads the arrays of `like`. Raises CheckpointError if some are missing or of other shapes.

  Args:
    path: the folder of the checkpoint's arrays.
    like: tree of abstract arrays.
    adapt: maps `like` and the stored shapes to what to read, and what makes `like` of it.
  """
  tree = _metadata(path)
  convert: Callable[[Any], Any] = lambda state: state
  if adapt is not None:
    like, convert = adapt(like, {name: tuple(leaf.shape) for name, leaf in _leaves(tree)})
  _check_arrays(path, tree, like)
  return convert(_load(path, like))


def _load(path: epath.Path, like: Any) -> Any:
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      return checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=abstract,
          restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
          partial_restore=True,
        ),
      )
    except RuntimeError:  # such as out of memory on a device
      raise
    except Exception as error:  # Orbax raises many types for unreadable arrays
      raise CheckpointError(f'{path} is damaged: {error}') from error


def _check_arrays(path: epath.Path, stored: Any, expected: Any) -> None:
  """Raises CheckpointError, naming the arrays that are not stored in their expected shapes."""
  shapes = {name: tuple(leaf.shape) for name, leaf in _leaves(stored)}
  problems = [
    f'{name} is {shapes.get(name, "missing")}, expected {tuple(leaf.shape)}'
    for name, leaf in _leaves(expected)
    if shapes.get(name) != tuple(leaf.shape)
  ]
  if problems:
    more = f' (and {len(problems) - 5} more)' if len(problems) > 5 else ''
    raise CheckpointError(
      f'{path} is a checkpoint of another model: {"; ".join(problems[:5])}{more}.'
    )


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if hasattr(leaf, 'shape')
  ]
