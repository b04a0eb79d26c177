"""Files of T5X checkpoints: the native layout (version 3) and the Orbax layout.

Native: `checkpoint_N/checkpoint` is msgpack with small arrays inline and TensorStore specs of the
others, zarr folders beside it. Orbax: `checkpoint_N/state` is a store of zarr arrays.
Neither pickles nor T5X are needed. https://github.com/google-research/t5x.
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
from cascades.interop.tensor_names import summarize
from cascades.interop.tensor_tables import StoredTensors
from cascades.runtime import files

VERSION = 3
INDEX = 'checkpoint'  # of the native layout
STATE = 'state'  # of the Orbax layout
CHUNK_BYTES = 64 * 2**20  # T5X's
_CACHED_BYTES = 256 * 2**20  # of decoded chunks, for the devices that share one


def arrays(path: epath.PathLike) -> dict[str, ts.TensorStore]:
  """Opens all arrays of a `checkpoint_N`, by path; TensorStore reads the slices that are used.

  `target/...` are parameters, `state/step` and `state/param_states/...` the optimizer's state.

  Raises:
    CheckpointError: the directory is no checkpoint of T5X, or arrays are missing or damaged.
  """
  directory = files.absolute(path)
  stores: dict[str, Any] = {}
  inline: dict[str, np.ndarray] = {}
  if (directory / INDEX).exists():
    stores, inline = _native(directory)
  elif (directory / STATE).is_dir():
    stores = _orbax(directory / STATE)
  else:
    checkpoints = sorted(path.name for path in directory.glob('checkpoint_*'))
    raise CheckpointError(
      f"{directory} is not a checkpoint of T5X: it has neither the native layout's file "
      "`checkpoint` nor the Orbax layout's folder `state`. Give a checkpoint_N"
      f'{": " + ", ".join(checkpoints) if checkpoints else ""}.'
    )
  context = ts.Context({'cache_pool': {'total_bytes_limit': _CACHED_BYTES}})
  zarr = {'driver': 'zarr', 'fill_missing_data_reads': False}  # else a missing file reads as zeros
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
      f'{directory} is incomplete. Missing or damaged: {summarize(problems)} '
      f'({next(iter(problems.values()))}). Copy it again, with its folders.'
    )
  return opened


def stored_tensors(directory: epath.Path, opened: Mapping[str, ts.TensorStore]) -> StoredTensors:
  """The arrays as tensors, of which every device reads its shard."""

  def load(name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
    def shard(index: Any) -> np.ndarray:
      try:
        return opened[name][index].read().result().astype(like.dtype)
      except ValueError as error:
        raise CheckpointError(f'{directory}: {name} is damaged ({_line(error)}).') from error

    return jax.make_array_from_callback(like.shape, like.sharding, shard)

  def read(specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    with futures.ThreadPoolExecutor() as threads:  # most of the time is decompression
      return dict(zip(specs, threads.map(load, specs, specs.values()), strict=True))

  shapes = {
    name: jax.ShapeDtypeStruct(tuple(array.shape), array.dtype.numpy_dtype)
    for name, array in opened.items()
  }
  return StoredTensors(os.fspath(directory), shapes, read)


def _native(directory: epath.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """TensorStore's specs of the zarr arrays, and the inline arrays, by path."""
  file = directory / INDEX
  content = file.read_bytes()
  if content.startswith(b'model_checkpoint_path'):
    raise CheckpointError(
      f"{file} is a TensorFlow checkpoint: convert it with T5X's script convert_tf_checkpoint."
    )
  try:
    tree = serialization.msgpack_restore(content)
    version, optimizer = tree['version'], tree['optimizer']
  except (ValueError, TypeError, KeyError, msgpack.exceptions.UnpackException) as error:
    raise CheckpointError(f'{file} is damaged, or not of T5X: {error!r}.') from error
  if version != VERSION:
    raise CheckpointError(
      f'{file} has version {version!r}, expected {VERSION}: load and save it with a T5X of '
      '2021-06-10 or later.'
    )
  stores, inline = {}, {}
  for name, leaf in _walk(optimizer, ''):
    if isinstance(leaf, dict):
      stores[name] = _local_kvstore(directory, name, leaf)
    elif leaf is not None:
      inline[name] = np.asarray(leaf)
  return stores, inline


def _walk(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
  if isinstance(tree, dict) and 'driver' not in tree:
    for key, value in tree.items():
      yield from _walk(value, f'{name}/{key}' if name else key)
  else:
    yield name, tree


def _local_kvstore(directory: epath.Path, name: str, spec: Mapping[str, Any]) -> Any:
  """The key-value store of an array; the path in its spec is the one at the time of writing."""
  folder = str(spec.get('kvstore', {}).get('path') or spec.get('path', '')).rstrip('/')
  if spec['driver'] != 'zarr' or '/' in folder or folder in ('', '.', '..'):
    raise CheckpointError(
      f'{directory}: {name} is in {folder!r} (driver {spec["driver"]}), but T5X writes zarr '
      'folders beside the file `checkpoint`: the file was manipulated, or is of another program.'
    )
  return _kvstore(directory / folder)


def _orbax(state: epath.Path) -> dict[str, Any]:
  """TensorStore's specs of all arrays that the store lists, by path."""
  if (state / 'manifest.ocdbt').exists():
    base = _kvstore(state)
    try:
      keys = ts.KvStore.open({'driver': 'ocdbt', 'base': base}).result().list().result()
    except ValueError as error:
      raise CheckpointError(f'{state} is damaged: {_line(error)}.') from error
    names = [key.decode().removesuffix('/.zarray') for key in keys if key.endswith(b'/.zarray')]
    stores = {name: {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'} for name in names}
  else:
    stores = {path.parent.name: _kvstore(path.parent) for path in state.glob('*/.zarray')}
  return {name.replace('.', '/'): kvstore for name, kvstore in stores.items()}


def _kvstore(folder: epath.Path) -> Any:
  path = os.fspath(folder) + '/'
  return path if '://' in path else {'driver': 'file', 'path': path}


def _line(error: Exception) -> str:
  return str(error).splitlines()[0]


def check_output(checkpoint: epath.Path, *, overwrite: bool) -> None:
  """Raises CheckpointError if a checkpoint cannot be written: there is one, or something else."""
  names = [path.name for path in checkpoint.iterdir()] if checkpoint.is_dir() else []
  own = lambda name: name == INDEX or name.startswith(('target.', 'state.'))
  others = [name for name in names if not own(name) and not files.is_leftover(name)]
  if others or (checkpoint.exists() and not checkpoint.is_dir()):
    raise CheckpointError(
      f'{checkpoint} is no checkpoint of T5X ({", ".join(map(repr, sorted(others)[:5]))}): choose '
      'another OUTPUT_DIR.'
    )
  if INDEX in names and not overwrite:
    raise CheckpointError(
      f'{checkpoint} exists: remove it, choose another OUTPUT_DIR, or set OVERWRITE=True.'
    )


def remove(checkpoint: epath.Path) -> None:
  """Removes a checkpoint, its index first: without it no program reads the rest."""
  if os.path.islink(checkpoint):
    checkpoint.unlink()
  elif checkpoint.exists():
    (checkpoint / INDEX).unlink(missing_ok=True)
    checkpoint.rmtree()


def write_array(checkpoint: epath.Path, path: str, array: np.ndarray) -> dict[str, Any]:
  """Writes an array as zarr and returns its spec for the index."""
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
  absolute = {**spec, 'kvstore': _kvstore(checkpoint / folder)}
  ts.open(absolute, create=True, delete_existing=True).result().write(array).result()
  return {**spec, 'kvstore': {'driver': 'file', 'path': f'{folder}/'}}


def write_index(checkpoint: epath.Path, tree: Mapping[str, Any]) -> None:
  """Writes the file that completes a checkpoint: inline arrays, and specs of `write_array`."""
  content = {'version': VERSION, 'optimizer': traverse_util.unflatten_dict(dict(tree), sep='/')}
  files.write(checkpoint / INDEX, serialization.msgpack_serialize(content))


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
  """Chunks of at most CHUNK_BYTES that divide the shape, splitting the longest axis first."""
  chunks = list(shape)
  while np.prod(chunks) * itemsize > CHUNK_BYTES:
    longest = int(np.argmax(chunks))
    chunks[longest] = next(n for n in range(chunks[longest] - 1, 0, -1) if not shape[longest] % n)
  return chunks
