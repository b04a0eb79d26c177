"""Safetensors files, read through Orbax: each device reads the bytes of its shards.

Orbax reads what a header says. Headers are validated by the rules of the safetensors library
first, in which every byte belongs to one tensor:
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from cascades.checkpoints.arrays import CheckpointError

ContentT = TypeVar('ContentT')

MAX_HEADER_BYTES = 100_000_000  # the library's
_ITEM_BITS = {
  **{'BOOL': 8, 'U8': 8, 'I8': 8, 'U16': 16, 'I16': 16, 'U32': 32, 'I32': 32, 'U64': 64},
  **{'I64': 64, 'F16': 16, 'BF16': 16, 'F32': 32, 'F64': 64, 'C64': 64, 'F4': 4},
  **{'F6_E2M3': 6, 'F6_E3M2': 6, 'F8_E4M3': 8, 'F8_E5M2': 8, 'F8_E8M0': 8},
}


def read_shapes(file: epath.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of all tensors of a file.

  Raises:
    CheckpointError: the file cannot be read, or its header describes other bytes than it has.
  """
  _read(file, _validate)
  tensors = _read(file, lambda path: ocp.metadata(path).metadata)
  return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in tensors.items()}


def read_tensors(
  file: epath.Path, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """The tensors of a file that `abstract` names, in its dtypes and shardings."""
  return _read(file, functools.partial(ocp.load, abstract_state=dict(abstract)))


def _validate(file: epath.Path) -> None:
  """Raises ValueError unless the tensors of the header fill the file without gap or overlap."""
  length = file.stat().length
  with file.open('rb') as content:
    (size,) = struct.unpack('<Q', content.read(8).ljust(8, b'\xff'))
    if size > min(MAX_HEADER_BYTES, length - 8):
      raise ValueError(
        f'a header of {size} bytes, where {min(MAX_HEADER_BYTES, max(length - 8, 0))} are possible '
        '(truncated, or no safetensors file)'
      )
    header = json.loads(content.read(size), object_pairs_hook=_without_repetitions)
  if not isinstance(header, dict):
    raise ValueError('a header without tensors')
  header.pop('__metadata__', None)
  end = 0
  for start, stop, name in sorted(_extent(name, fields) for name, fields in header.items()):
    if start != end:
      raise ValueError(f'tensor {name!r} begins at byte {start} of the data, expected {end}')
    end = stop
  if end != length - 8 - size:
    raise ValueError(
      f'{length - 8 - size} bytes of data, where the header describes {end} (truncated or damaged)'
    )


def _extent(name: str, fields: Any) -> tuple[int, int, str]:
  """First byte of a tensor and that behind it."""
  try:
    dtype, shape, (start, stop) = fields['dtype'], fields['shape'], fields['data_offsets']
    bits = _ITEM_BITS[dtype]
    valid = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'tensor {name!r} is described as {str(fields)[:200]}') from error
  if not valid or (stop - start) * 8 != math.prod(shape) * bits:
    raise ValueError(
      f'tensor {name!r} of shape {shape} and type {dtype} in bytes {start} to {stop}'
    )
  return start, stop, name


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    raise ValueError('a header that names a tensor twice')
  return fields


def _read(file: epath.Path, call: Callable[[epath.Path], ContentT]) -> ContentT:
  context = ocp.Context()
  context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
  try:
    with context:
      return call(file)
  except (ValueError, KeyError, OSError, RecursionError) as error:
    raise CheckpointError(f'{file} cannot be read: {error}') from error
