"""T5X's models, read and written: T5 1.0 and 1.1, the scanned T5, and the decoder-only example.

Their names are those of t5x/examples in https://github.com/google-research/t5x, which is not needed
here; what their files look like is in `t5x_files`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from cascades.checkpoints.store import CheckpointError
from cascades.interop import t5x_files, tensor_tables
from cascades.interop.tensor_tables import Row, Source, Table
from cascades.runtime import files
from cascades.types import Params

Dtype: TypeAlias = Literal['float32', 'bfloat16']
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

MIN_FACTORED = 128  # Adafactor factors a matrix only if both its sides are at least that
_RELATIVE = 'relpos_bias/rel_embedding'
_UNEMBEDDING = 'decoder/logits_dense/kernel'
_MAX_DISTANCE = 128
# What the decoder-only example is, of all that a decoder of ours may be.
_DECODER_ONLY = {
  'embedding_scale': 1.0,
  'norm_eps': 1e-6,
  'norm_offset': 0.0,
  'query_scale': 1.0,
  'attention_softcap': None,
  'logit_softcap': None,
  'window_pattern': (None,),
}


class _Part(NamedTuple):
  """A parameter of a layer: its names there and here, and its axes in plain T5."""

  theirs: str
  ours: str
  layout: str


def open_checkpoint(path: epath.PathLike) -> Source:
  """The model in a `checkpoint_N` of either layout; of its arrays only names and shapes are read.

  The configuration follows from them, but for what T5X keeps in its gin files: activations are
  taken to be those of T5 1.0 (relu) or 1.1 (gelu, linear). Raises CheckpointError if the checkpoint
  is not T5X's, not whole, or of a model that is not known here.
  """
  directory = files.absolute(path)
  found = {
    name.removeprefix('target/'): array
    for name, array in t5x_files.arrays(directory).items()
    if name.startswith('target/')
  }
  scan = next((n.split('/')[1] for n in found if re.match(r'encoder/(encoder|layers)/', n)), None)
  shapes = {name: tuple(array.shape) for name, array in found.items()}
  model = _describe(os.fspath(directory), shapes, scan)
  return Source(model, table(model, scan=scan), t5x_files.weights(directory, found))


def table(model: Mapping[str, Any], *, scan: str | None = None) -> Table:
  """All parameters of the model that is described, a T5 or a decoder.

  `scan` is what the scanned T5 calls its layers: 'encoder' (and 'decoder'), formerly 'layers'. It
  keeps them as one array, on axis 1, with the heads apart.
  """
  unembedding = Row(_UNEMBEDDING, 'unembedding', 'd v -> v d')
  every = [
    _Part(_RELATIVE, 'relative_bias/table', 'n b -> b n'),
    _Part('pre_mlp_layer_norm/scale', 'mlp_norm/scale', 'd -> d'),
    *_mlp(gated=len(model['mlp_activations']) == 2),
  ]
  if model['family'] == 'decoder':
    return Table(
      [
        Row('decoder/token_embedder/embedding', 'embedding'),
        unembedding,
        Row(f'decoder/{_RELATIVE}', 'relative_bias/table', 'n b -> b n'),
        Row('decoder/decoder_norm/scale', 'norm/scale'),
        *_layers('decoder', 'blocks', [*every, *_attention('self_attention', 'attention')]),
      ]
    )
  attentions = {
    'encoder': _attention('attention', 'self_attention'),
    'decoder': [
      *_attention('self_attention', 'self_attention'),
      *_attention('encoder_decoder_attention', 'cross_attention', norm='cross_attention'),
    ],
  }
  rows = [Row('token_embedder/embedding', 'embedding'), unembedding]
  for stack, parts in attentions.items():
    rows += [
      Row(f'{stack}/{_RELATIVE}', f'{stack}_bias/table', 'n b -> b n'),
      Row(f'{stack}/{stack}_norm/scale', f'{stack}_norm/scale'),
      *_layers(stack, stack, [*every, *parts], scan=scan),
    ]
  return Table(rows)


def _layers(
  theirs: str, ours: str, parts: Sequence[_Part], *, scan: str | None = None
) -> list[Row]:
  layers = f'{theirs}/{_scan_name(theirs, scan)}' if scan else f'{theirs}/layers_{{}}'
  return [
    Row(f'{layers}/{part.theirs}', f'{ours}/{part.ours}', (_scanned if scan else str)(part.layout))
    for part in parts
  ]


def _mlp(*, gated: bool) -> list[_Part]:
  names = {'wi_0': 'wi_0', 'wi_1': 'wi_1'} if gated else {'wi': 'wi_0'}
  return [
    _Part(f'mlp/{theirs}/kernel', f'mlp/{ours}/kernel', 'd m -> d m')
    for theirs, ours in {**names, 'wo': 'wo'}.items()
  ]


def _attention(theirs: str, ours: str, *, norm: str | None = None) -> list[_Part]:
  """Projections to and from heads, which plain T5 stores as one axis with their features."""
  return [
    _Part(
      f'pre_{norm or theirs}_layer_norm/scale',
      f'{ours.replace("_attention", "")}_norm/scale',
      'd -> d',
    ),
    *(
      _Part(f'{theirs}/{part}/kernel', f'{ours}/{part}/kernel', 'd (n h) -> d n h')
      for part in ('query', 'key', 'value')
    ),
    _Part(f'{theirs}/out/kernel', f'{ours}/out/kernel', '(n h) d -> n h d'),
  ]


def _scanned(layout: str) -> str:
  """A layer's layout, of all layers: 'd (n h) -> d n h' becomes 'd l n h -> l d n h'."""
  first, *others = re.sub(r'[()]', '', layout).split()
  return ' '.join([first, 'l', *others]).replace('->', '-> l')


def _scan_name(stack: str, scan: str | None) -> str:
  return stack if scan == 'encoder' else 'layers'


def _describe(origin: str, shapes: Shapes, scan: str | None) -> dict[str, Any]:
  """The model that parameters of these names and shapes are."""
  decoder_only = 'decoder/token_embedder/embedding' in shapes
  stack = 'decoder' if decoder_only else 'encoder'
  layers = f'{stack}/{_scan_name(stack, scan) if scan else "layers_0"}'
  per_layer = f'{layers}/{_RELATIVE}' in shapes
  wanted = (
    f'{"decoder/" if decoder_only else ""}token_embedder/embedding',
    f'{layers if per_layer else stack}/{_RELATIVE}',
    f'{layers}/{"self_attention" if decoder_only else "attention"}/query/kernel',
    f'{layers}/mlp/wo/kernel',
  )
  if missing := [name for name in wanted if len(shapes.get(name, ())) < 2]:
    raise CheckpointError(
      f'{origin} is no model of T5X: it lacks {tensor_tables.summarize(missing)}; it holds '
      f'{tensor_tables.summarize(shapes) or "no parameters"}.'
    )
  embedding, relative, query, wo = (shapes[name] for name in wanted)
  num_heads, width, tied = relative[0], embedding[1], _UNEMBEDDING not in shapes
  count = functools.partial(_count, shapes, scan=scan)
  return {
    'vocab_size': embedding[0],
    'emb_dim': width,
    'num_heads': num_heads,
    'head_dim': query[-1] if scan else query[-1] // num_heads,
    'mlp_dim': wo[0],
    'mlp_activations': ('gelu', 'linear') if f'{layers}/mlp/wi_1/kernel' in shapes else ('relu',),
    'logits_via_embedding': tied,
    'relative_attention_num_buckets': relative[-1],
    'relative_attention_max_distance': _MAX_DISTANCE,
    'relative_bias_per_layer': per_layer,
  } | (
    {
      'family': 'decoder',
      'num_layers': count('decoder'),
      'num_kv_heads': num_heads,
      'logit_scale': width**-0.5 if tied else 1.0,
      **_DECODER_ONLY,
    }
    if decoder_only
    else {
      'family': 't5',
      'num_encoder_layers': count('encoder'),
      'num_decoder_layers': count('decoder'),
    }
  )


def _count(shapes: Shapes, stack: str, *, scan: str | None) -> int:
  if scan:
    return shapes.get(f'{stack}/{_scan_name(stack, scan)}/mlp/wo/kernel', (0, 0))[1]
  return len({n.split('/')[1] for n in shapes if n.startswith(f'{stack}/layers_')})


def write(
  directory: epath.PathLike,
  model: Mapping[str, Any],
  params: Params,
  *,
  step: int,
  dtype: Dtype = 'float32',
  slots: Mapping[str, np.ndarray] | None = None,
  fetch: Callable[[Any], np.ndarray] = jax.device_get,
  primary: bool = True,
) -> epath.Path:
  """Write `directory/checkpoint_{step}` in the native layout, and give its path.

  `model` describes the parameters; all processes fetch them, the primary one writes. `slots` are
  Adafactor's by `<T5X's parameter>/{v,v_row,v_col,m}`; without them they start at zero, in T5X's
  shapes. It counts as a checkpoint, there and here, only once it is whole. Raises CheckpointError
  if T5X has no such model.
  """
  tensor_tables.check_dtype(dtype)
  place = files.absolute(directory) / f'checkpoint_{step}'
  if (place / t5x_files.INDEX).exists():
    raise CheckpointError(f'{place} is there already: remove it, or write to another directory.')
  # Plain T5 has one table of biases a stack.
  scan = 'encoder' if model['family'] == 't5' and model['relative_bias_per_layer'] else None
  tensors = tensor_tables.unload(table(model, scan=scan), params, fetch=fetch)
  _require_known(model, _describe('what is to be written', _shapes(tensors), scan))
  fresh = {name: _fresh_slots(name, shape) for name, shape in _shapes(tensors).items()}
  given = traverse_util.flatten_dict(fresh, sep='/') if slots is None else dict(slots)
  tree: dict[str, Any] = {'state/step': np.asarray(step, np.int32)}
  if primary:
    place.mkdir(parents=True, exist_ok=True)
  for name, tensor in tensors.items():
    path, array = f'target/{name}', np.asarray(tensor.make()).astype(dtype)
    if primary:
      tree[path] = t5x_files.write_array(place, path, array)
  if primary:
    for name, value in given.items():
      path = f'state/param_states/{name}'
      # T5X keeps whole what it does not partition.
      inline = value.shape == (1,) or not name.endswith('/v')
      tree[path] = value if inline else t5x_files.write_array(place, path, value)
    t5x_files.write_index(place, tree)
  return place


def _shapes(tensors: Mapping[str, tensor_tables.Tensor]) -> Shapes:
  return {name: tensor.shape for name, tensor in tensors.items()}


def _require_known(model: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
  """Activations are in T5X's gin files, and may be any; the rest is in its code."""
  ours = {name: tuple(v) if isinstance(v, list) else v for name, v in model.items()}
  different = [
    f'{name} is {ours[name]!r}, not {value!r}'
    for name, value in theirs.items()
    if name != 'mlp_activations' and ours[name] != value
  ]
  if different:
    raise CheckpointError(f'T5X does not compute this model: {"; ".join(different)}.')


def _fresh_slots(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Adafactor's state of a parameter that was never updated; what is not used is one zero."""
  zeros = functools.partial(np.zeros, dtype=np.float32)
  slots = {slot: zeros(1) for slot in ('v', 'v_row', 'v_col', 'm')}
  if len(shape) > 2 and not name.endswith(_RELATIVE):
    # Of all layers: those are left apart, and the model's width is a row, at whichever end it is.
    if name.endswith(('out/kernel', 'wo/kernel')):
      return slots | {'v_row': zeros((shape[1], shape[-1])), 'v_col': zeros(shape[:-1])}
    return slots | {'v_row': zeros(shape[:2]), 'v_col': zeros(shape[1:])}
  if len(shape) != 2 or min(shape) < MIN_FACTORED:
    return slots | {'v': zeros(shape)}
  return slots | {'v_row': zeros(min(shape)), 'v_col': zeros(max(shape))}
