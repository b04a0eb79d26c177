"""Safetensors files, read through Orbax: each device reads the bytes of its shards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from cascades.checkpoints.arrays import CheckpointError

ContentT = TypeVar('ContentT')


def read_shapes(file: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of all tensors of a file."""
  tensors = _read(file, lambda path: ocp.metadata(path).metadata)
  return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in tensors.items()}


def read_tensors(
  file: epath.Path, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """The tensors of a file that `abstract` names, in its dtypes and shardings."""
  return _read(file, functools.partial(ocp.load, abstract_state=dict(abstract)))


def _read(file: epath.Path, call: Callable[[epath.Path], ContentT]) -> ContentT:
  context = ocp.Context()
  context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
  try:
    with context:
      return call(file)
  except (ValueError, OSError) as error:
    raise CheckpointError(f'{file} cannot be read: {error}') from error
