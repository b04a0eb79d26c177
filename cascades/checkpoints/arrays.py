"""Reading one checkpoint's arrays, placed and held as asked for."""

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

Name: TypeAlias = tuple[str, ...]  # of a parameter


def params(
  path: epath.Path,
  like: Any,
  changes: Mapping[Name, Callable[[Any], Any]] = types.MappingProxyType({}),
) -> Any:
  """Parameters as `like` holds them, some of them changed.

  Those and the ones that are held otherwise on disk come one by one.
  """
  tree = _metadata(path)
  shapes, flat = _shapes_of(tree), traverse_util.flatten_dict(like)

  def stored(name: Name, leaf: Any) -> Any:
    scale = shapes.get((*name, 'scale'))
    if name not in changes and isinstance(leaf, quantization.Quantized) == (scale is not None):
      return leaf
    wide = quantization.as_float32(leaf)
    return wide if scale is None else quantization.abstract(wide, scale)

  there = {name: stored(name, leaf) for name, leaf in flat.items()}
  _check_arrays(path, tree, {'params': traverse_util.unflatten_dict(there)})
  load = lambda some: traverse_util.flatten_dict(
    _load(path, {'params': traverse_util.unflatten_dict(some)})['params']
  )
  alike = {name: leaf for name, leaf in flat.items() if there[name] is leaf}
  found = load(alike) if alike else {}
  for name in (name for name in flat if name not in alike):
    (weight,) = load({name: there[name]}).values()
    found[name] = quantization.convert(changes.get(name, lambda same: same)(weight), flat[name])
  return traverse_util.unflatten_dict(found)


def _shapes_of(tree: Any) -> dict[Name, tuple[int, ...]]:
  flat = traverse_util.flatten_dict(tree.get('params', {}))
  return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def shapes(path: epath.Path) -> dict[Name, tuple[int, ...]]:
  """The shapes of all parameters of a checkpoint."""
  return _shapes_of(_metadata(path))


def _metadata(path: epath.Path) -> Any:
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    try:
      return checkpointer.metadata(path).item_metadata.tree
    except (FileNotFoundError, ValueError, KeyError, AttributeError) as error:
      raise CheckpointError(f'{path} is not a whole checkpoint: {error}.') from error


def restore(path: epath.Path, like: Any) -> Any:
  """All of `like`, or an error that names what is not there."""
  _check_arrays(path, _metadata(path), like)
  return _load(path, like)


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
    except RuntimeError:  # the device's memory, say
      raise
    except Exception as error:  # Orbax raises no narrower one for arrays that it cannot read
      raise CheckpointError(f'{path} is damaged: {error}') from error


def _check_arrays(path: epath.Path, found: Any, wanted: Any) -> None:
  """Every wanted array is there in its shape, or an error names all that are not."""
  shapes = {name: tuple(leaf.shape) for name, leaf in _leaves(found)}
  problems = [
    f'{name} is {shapes.get(name, "missing")}, expected {tuple(leaf.shape)}'
    for name, leaf in _leaves(wanted)
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
