"""The files of T5X's checkpoints: its native layout (version 3) and its Orbax layout.

Native is `checkpoint_N/checkpoint`, msgpack with small arrays in it and TensorStore specs of the
others, which lie beside it as zarr; Orbax is `checkpoint_N/state`, one store of zarr arrays.
Nothing here unpickles, and T5X is not needed. https://github.com/google-research/t5x.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import jax
import msgpack
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization, traverse_util

from cascades.checkpoints.store import CheckpointError
from cascades.interop import tensor_tables
from cascades.interop.tensor_tables import Weights
from cascades.runtime import files

VERSION = 3
INDEX = 'checkpoint'  # of the native layout
STATE = 'state'  # of the Orbax layout
CHUNK_BYTES = 64 * 2**20  # T5X's
_CACHED_BYTES = 256 * 2**20  # of decoded chunks, for the devices that share one


def arrays(path: epath.PathLike) -> dict[str, ts.TensorStore]:
  """All arrays of a `checkpoint_N` by path, read when they are sliced and asked.

  `target/...` are parameters, `state/step` and `state/param_states/...` the optimiser's.
  """
  directory = files.absolute(path)
  stores: dict[str, Any] = {}
  inline: dict[str, np.ndarray] = {}
  if (directory / INDEX).exists():
    stores, inline = _native(directory)
  elif (directory / STATE).is_dir():
    stores = _orbax(directory / STATE)
  else:
    there = sorted(found.name for found in directory.glob('checkpoint_*'))
    raise CheckpointError(
      f"{directory} is not a checkpoint of T5X: it has neither the native layout's file "
      "`checkpoint` nor the Orbax layout's folder `state`. Give a checkpoint_N"
      f'{": " + ", ".join(there) if there else ""}.'
    )
  context = ts.Context({'cache_pool': {'total_bytes_limit': _CACHED_BYTES}})
  zarr = {'driver': 'zarr', 'fill_missing_data_reads': False}  # a lost file is not zeros
  opening = {
    name: ts.open({**zarr, 'kvstore': kvstore}, read=True, open=True, context=context)
    for name, kvstore in stores.items()
  }
  opened, problems = {name: ts.array(value) for name, value in inline.items()}, {}
  for name, future in opening.items():
    try:
      opened[name] = future.result()
    except ValueError as error:
      problems[name] = _line(error)
  if problems:
    raise CheckpointError(
      f'{directory} is not whole. Missing or damaged: {tensor_tables.summarize(problems)} '
      f'({next(iter(problems.values()))}). Copy it again, with its folders.'
    )
  return opened


def weights(directory: epath.Path, found: Mapping[str, ts.TensorStore]) -> Weights:
  """The arrays as tensors, of which every device reads its piece."""

  def place(name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    def piece(index: Any) -> np.ndarray:
      try:
        return found[name][index].read().result().astype(like.dtype)
      except ValueError as error:
        raise CheckpointError(f'{directory}: {name} is damaged ({_line(error)}).') from error

    return jax.make_array_from_callback(like.shape, like.sharding, piece)

  def read(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    with futures.ThreadPoolExecutor() as threads:  # most of the time is unpacking
      return dict(zip(wanted, threads.map(place, wanted, wanted.values()), strict=True))

  tensors = {
    name: jax.ShapeDtypeStruct(tuple(array.shape), array.dtype.numpy_dtype)
    for name, array in found.items()
  }
  return Weights(os.fspath(directory), tensors, read)


def _native(directory: epath.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Where TensorStore finds arrays, and the inline ones, by path."""
  file = directory / INDEX
  content = file.read_bytes()
  if content.startswith(b'model_checkpoint_path'):
    raise CheckpointError(
      f'{file} belongs to TensorFlow: convert it with the script convert_tf_checkpoint of T5X.'
    )
  try:
    tree = serialization.msgpack_restore(content)
    version, optimizer = tree['version'], tree['optimizer']
  except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
    raise CheckpointError(f"{file} is damaged, or not T5X's: {error!r}.") from error
  if version != VERSION:
    raise CheckpointError(
      f'{file} has version {version!r} and {VERSION} is expected: load and save it with a T5X of '
      '2021-06-10 or later.'
    )
  stores, inline = {}, {}
  for name, leaf in _walk(optimizer, ''):
    if isinstance(leaf, dict):
      stores[name] = _beside(directory, name, leaf)
    elif leaf is not None:
      inline[name] = np.asarray(leaf)
  return stores, inline


def _walk(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
  if isinstance(tree, dict) and 'driver' not in tree:
    for key, value in tree.items():
      yield from _walk(value, f'{name}/{key}' if name else key)
  else:
    yield name, tree


def _beside(directory: epath.Path, name: str, spec: Mapping[str, Any]) -> Any:
  """Where an array is now; its own spec says where it was when it was written."""
  folder = str(spec.get('kvstore', {}).get('path') or spec.get('path', '')).rstrip('/')
  if spec['driver'] != 'zarr' or '/' in folder or folder in ('', '.', '..'):
    raise CheckpointError(
      f'{directory}: {name} is in {folder!r} (driver {spec["driver"]}), and T5X writes zarr '
      'folders beside the file `checkpoint`: it was tampered with, or is of another program.'
    )
  return _kvstore(directory / folder)


def _orbax(state: epath.Path) -> dict[str, Any]:
  """Where TensorStore finds arrays, by path: what the store lists is what can be read."""
  if (state / 'manifest.ocdbt').exists():
    base = _kvstore(state)
    try:
      keys = ts.KvStore.open({'driver': 'ocdbt', 'base': base}).result().list().result()
    except ValueError as error:
      raise CheckpointError(f'{state} is damaged: {_line(error)}.') from error
    names = [key.decode().removesuffix('/.zarray') for key in keys if key.endswith(b'/.zarray')]
    places = {name: {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'} for name in names}
  else:
    places = {found.parent.name: _kvstore(found.parent) for found in state.glob('*/.zarray')}
  return {name.replace('.', '/'): place for name, place in places.items()}


def _kvstore(folder: epath.Path) -> Any:
  place = os.fspath(folder) + '/'
  return place if '://' in place else {'driver': 'file', 'path': place}


def _line(error: Exception) -> str:
  return str(error).splitlines()[0]


def write_array(place: epath.Path, path: str, array: np.ndarray) -> dict[str, Any]:
  """Write an array as zarr, and give the spec that stands for it."""
  folder = path.replace('/', '.')
  spec = {
    'driver': 'zarr',
    'dtype': array.dtype.name,
    'metadata': {
      'chunks': _chunks(array.shape, array.itemsize),
      'compressor': {'id': 'gzip', 'level': 1},
      'shape': list(array.shape),
    },
  }
  here = {**spec, 'kvstore': _kvstore(place / folder)}
  ts.open(here, create=True, delete_existing=True).result().write(array).result()
  return {**spec, 'kvstore': {'driver': 'file', 'path': f'{folder}/'}}


def write_index(place: epath.Path, tree: Mapping[str, Any]) -> None:
  """The file that makes a checkpoint of the arrays, or of what `write_array` gave for them."""
  content = {'version': VERSION, 'optimizer': traverse_util.unflatten_dict(dict(tree), sep='/')}
  files.write(place / INDEX, serialization.msgpack_serialize(content))


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
  """Parts of at most CHUNK_BYTES that divide the shape, the longest axis cut first."""
  chunks = list(shape)
  while np.prod(chunks) * itemsize > CHUNK_BYTES:
    longest = int(np.argmax(chunks))
    chunks[longest] = next(n for n in range(chunks[longest] - 1, 0, -1) if not shape[longest] % n)
  return chunks
