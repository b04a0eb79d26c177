"""T5X's checkpoints: its native layout (version 3) read and written, its Orbax layout read.

Native is `checkpoint_N/checkpoint`, msgpack with small arrays in it and TensorStore specs of the
others, which lie beside it as zarr; Orbax is `checkpoint_N/state`, one store of zarr arrays.
Nothing here unpickles, and T5X is not needed. https://github.com/google-research/t5x.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, Literal, TypeAlias

import jax
import msgpack
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization, traverse_util

from cascades import files
from cascades.checkpoints import convert
from cascades.checkpoints.convert import Row, Source, Table, Weights
from cascades.checkpoints.store import CheckpointError
from cascades.types import Params

Dtype: TypeAlias = Literal['float32', 'bfloat16']

VERSION = 3
CHUNK_BYTES = 64 * 2**20  # T5X's
MIN_FACTORED = 128  # Adafactor factors a matrix only if both its sides are at least that
_RELATIVE = 'relpos_bias/rel_embedding'
_CACHED_BYTES = 256 * 2**20  # of decoded chunks, for the devices that share one


def open_checkpoint(
  path: epath.PathLike, *, mlp_activations: Sequence[str] | None = None
) -> Source:
  """The T5 in a `checkpoint_N` of either layout; of its arrays only names and shapes are read.

  The configuration follows from them, but for the activations: those of T5 1.0 (relu) or 1.1
  (gelu, linear) unless given. Raises CheckpointError if the checkpoint is not T5X's, not whole, or
  of a variant that models.t5 cannot be.
  """
  directory = files.absolute(path)
  found = {
    name.removeprefix('target/'): array
    for name, array in arrays(directory).items()
    if name.startswith('target/')
  }
  if 'decoder/token_embedder/embedding' in found:
    raise CheckpointError(
      f"{directory} is of T5X's decoder-only example. Its attention has relative position biases "
      f'(decoder/{_RELATIVE}) and no rotary positions; models.decoder has rotary positions alone, '
      'and models.t5 is an encoder-decoder.'
    )
  scan = next((n.split('/')[1] for n in found if re.match(r'encoder/(encoder|layers)/', n)), None)
  for stack in ('encoder', 'decoder') if scan else ():
    name = f'{stack}/{_scan_name(stack, scan)}/{_RELATIVE}'
    if name in found:
      found[name] = _shared(directory, name, found[name])
  model = _describe(directory, {name: tuple(array.shape) for name, array in found.items()}, scan)
  gated = len(model['mlp_activations']) == 2
  if mlp_activations:
    model['mlp_activations'] = tuple(mlp_activations)
  return Source(model, table(gated=gated, scan=scan), _weights(directory, found))


def table(*, gated: bool, scan: str | None = None) -> Table:
  """All parameters of a T5. `gated` is T5 1.1, whose MLP has two input projections.

  `scan` is what the scanned variant calls its layers: 'encoder' (and 'decoder'), formerly 'layers'.
  It keeps them as one array, on axis 1, with the heads apart.
  """
  # The layers' parameters: their names there and here, and their axes in plain T5.
  parts = [
    *(('pre_mlp_layer_norm/scale', 'mlp_norm/scale', 'd -> d'),),
    *(
      (f'mlp/{theirs}/kernel', f'mlp/{ours}/kernel', 'd m -> d m')
      for theirs, ours in (('wi_0', 'wi_0'), ('wi_1', 'wi_1'), ('wo', 'wo'))
      if gated or theirs == 'wo'
    ),
  ]
  if not gated:
    parts.append(('mlp/wi/kernel', 'mlp/wi_0/kernel', 'd m -> d m'))
  self_attention = {
    'encoder': ('pre_attention_layer_norm', 'attention'),
    'decoder': ('pre_self_attention_layer_norm', 'self_attention'),
  }
  cross_attention = ('pre_cross_attention_layer_norm', 'encoder_decoder_attention')
  rows = [
    Row('token_embedder/embedding', 'embedding'),
    Row('decoder/logits_dense/kernel', 'unembedding', 'd v -> v d'),
  ]
  for stack in ('encoder', 'decoder'):
    layers = f'{stack}/{_scan_name(stack, scan)}' if scan else f'{stack}/layers_{{}}'
    inner = parts + _attention(*self_attention[stack], 'self')
    if stack == 'decoder':
      inner += _attention(*cross_attention, 'cross')
    rows += [
      Row(f'{layers if scan else stack}/{_RELATIVE}', f'{stack}_bias/table', 'n b -> b n'),
      Row(f'{stack}/{stack}_norm/scale', f'{stack}_norm/scale'),
      *(
        Row(f'{layers}/{theirs}', f'{stack}/{ours}', _scanned(layout) if scan else layout)
        for theirs, ours, layout in inner
      ),
    ]
  return Table(rows)


def _attention(norm: str, attention: str, ours: str) -> list[tuple[str, str, str]]:
  """Projections to and from heads, which plain T5 stores as one axis with their features."""
  return [
    (f'{norm}/scale', f'{ours}_norm/scale', 'd -> d'),
    *(
      (f'{attention}/{part}/kernel', f'{ours}_attention/{part}/kernel', 'd (n h) -> d n h')
      for part in ('query', 'key', 'value')
    ),
    (f'{attention}/out/kernel', f'{ours}_attention/out/kernel', '(n h) d -> n h d'),
  ]


def _scanned(layout: str) -> str:
  """A layer's layout, of all layers: 'd (n h) -> d n h' becomes 'd l n h -> l d n h'."""
  axes = layout.partition('->')[2].split()
  return f'{" ".join([axes[0], "l", *axes[1:]])} -> {" ".join(["l", *axes])}'


def _scan_name(stack: str, scan: str | None) -> str:
  return stack if scan == 'encoder' else 'layers'


def _shared(directory: epath.Path, name: str, tables: ts.TensorStore) -> ts.TensorStore:
  """The one table [heads, buckets] that all layers of [heads, layers, buckets] have."""
  values = np.asarray(tables.read().result())
  others = [i for i in range(values.shape[1]) if not np.array_equal(values[:, i], values[:, 0])]
  if others:
    raise CheckpointError(
      f'{directory} is of the scanned T5, and its layers have relative position tables of their '
      f'own: {name} of layers {", ".join(map(str, others))} differs from that of layer 0. All '
      'layers of a stack share one table in models.t5, so it cannot be this model.'
    )
  return ts.array(values[:, 0])


def _describe(
  directory: epath.Path, shapes: Mapping[str, tuple[int, ...]], scan: str | None
) -> dict[str, Any]:
  layers = 'encoder/layers_0' if scan is None else f'encoder/{_scan_name("encoder", scan)}'
  wanted = (
    'token_embedder/embedding',
    f'{layers if scan else "encoder"}/{_RELATIVE}',
    f'{layers}/attention/query/kernel',
    f'{layers}/mlp/wo/kernel',
  )
  if missing := [name for name in wanted if len(shapes.get(name, ())) < 2]:
    raise CheckpointError(
      f'{directory} is not a T5 of T5X: it lacks {convert.summarize(missing)}; it holds '
      f'{convert.summarize(shapes) or "no parameters"}.'
    )
  embedding, relative, query, wo = (shapes[name] for name in wanted)
  num_heads = relative[0]
  return {
    'family': 't5',
    'vocab_size': embedding[0],
    'emb_dim': embedding[1],
    'num_heads': num_heads,
    'num_encoder_layers': _count(shapes, 'encoder', scan),
    'num_decoder_layers': _count(shapes, 'decoder', scan),
    'head_dim': query[-1] if scan else query[-1] // num_heads,
    'mlp_dim': wo[0],
    'mlp_activations': ('gelu', 'linear') if f'{layers}/mlp/wi_1/kernel' in shapes else ('relu',),
    'logits_via_embedding': 'decoder/logits_dense/kernel' not in shapes,
    'relative_attention_num_buckets': relative[1],
  }


def _count(shapes: Mapping[str, tuple[int, ...]], stack: str, scan: str | None) -> int:
  if scan:
    return shapes.get(f'{stack}/{_scan_name(stack, scan)}/mlp/wo/kernel', (0, 0))[1]
  return len({n.split('/')[1] for n in shapes if n.startswith(f'{stack}/layers_')})


def _weights(directory: epath.Path, found: Mapping[str, ts.TensorStore]) -> Weights:
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


def arrays(path: epath.PathLike) -> dict[str, ts.TensorStore]:
  """All arrays of a `checkpoint_N` by path, read when they are sliced and asked.

  `target/...` are parameters, `state/step` and `state/param_states/...` the optimiser's.
  """
  directory = files.absolute(path)
  stores: dict[str, Any] = {}
  inline: dict[str, np.ndarray] = {}
  if (directory / 'checkpoint').exists():
    stores, inline = _native(directory)
  elif (directory / 'state').is_dir():
    stores = _orbax(directory / 'state')
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
      f'{directory} is not whole. Missing or damaged: {convert.summarize(problems)} '
      f'({next(iter(problems.values()))}). Copy it again, with its folders.'
    )
  return opened


def _native(directory: epath.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Where TensorStore finds arrays, and the inline ones, by path."""
  file = directory / 'checkpoint'
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


def write(
  directory: epath.PathLike,
  params: Params,
  *,
  step: int,
  dtype: Dtype = 'float32',
  slots: Mapping[str, np.ndarray] | None = None,
) -> epath.Path:
  """Write `directory/checkpoint_{step}` in the native layout, and give its path.

  The parameters are those of a models.t5, whole on this process. `slots` are Adafactor's by
  `<T5X's parameter>/{v,v_row,v_col,m}`; without them they start at zero, in T5X's shapes. It
  counts as a checkpoint, there and here, only once it is whole.
  """
  if dtype not in ('float32', 'bfloat16'):
    raise CheckpointError(f'dtype={dtype!r} cannot be written: choose float32 or bfloat16.')
  place = files.absolute(directory) / f'checkpoint_{step}'
  if (place / 'checkpoint').exists():
    raise CheckpointError(f'{place} is there already: remove it, or write to another directory.')
  gated = 'wi_1' in params.get('encoder', {}).get('mlp', {})
  tensors = convert.unload(table(gated=gated), params)
  fresh = {name: _fresh_slots(tensor.shape) for name, tensor in tensors.items()}
  given = traverse_util.flatten_dict(fresh, sep='/') if slots is None else dict(slots)
  tree: dict[str, Any] = {'state/step': np.asarray(step, np.int32)}
  place.mkdir(parents=True, exist_ok=True)
  for name, tensor in tensors.items():
    path = f'target/{name}'
    tree[path] = _write_array(place, path, np.asarray(tensor.make()).astype(dtype))
  for name, value in given.items():
    path = f'state/param_states/{name}'
    # T5X keeps whole what it does not partition.
    inline = value.shape == (1,) or not name.endswith('/v')
    tree[path] = value if inline else _write_array(place, path, value)
  content = {'version': VERSION, 'optimizer': traverse_util.unflatten_dict(tree, sep='/')}
  files.write(place / 'checkpoint', serialization.msgpack_serialize(content))
  return place


def _fresh_slots(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Adafactor's state of a parameter that was never updated; what is not used is one zero."""
  zeros = functools.partial(np.zeros, dtype=np.float32)
  slots = {slot: zeros(1) for slot in ('v', 'v_row', 'v_col', 'm')}
  if len(shape) < 2 or min(shape) < MIN_FACTORED:
    return slots | {'v': zeros(shape)}
  return slots | {'v_row': zeros(min(shape)), 'v_col': zeros(max(shape))}


def _write_array(place: epath.Path, path: str, array: np.ndarray) -> dict[str, Any]:
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


def _chunks(shape: tuple[int, ...], itemsize: int) -> list[int]:
  """Parts of at most CHUNK_BYTES that divide the shape, the longest axis cut first."""
  chunks = list(shape)
  while np.prod(chunks) * itemsize > CHUNK_BYTES:
    longest = int(np.argmax(chunks))
    chunks[longest] = next(n for n in range(chunks[longest] - 1, 0, -1) if not shape[longest] % n)
  return chunks
