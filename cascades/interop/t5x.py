"""Models of T5X, read and written: T5 1.0 and 1.1, the scanned T5, and the decoder-only example.

Parameter names are those of t5x/examples in https://github.com/google-research/t5x; the package is
not needed. `t5x_files` reads and writes the files.
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
from cascades.interop.tensor_names import summarize
from cascades.interop.tensor_tables import (
  PretrainedTensors,
  PretrainedWeights,
  TensorRule,
  TensorTable,
  TensorToWrite,
)
from cascades.runtime import files
from cascades.types import Params

Dtype: TypeAlias = Literal['float32', 'bfloat16']
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

MIN_FACTORED = 128  # Adafactor factors a matrix only if both its sides are at least that
_RELATIVE = 'relpos_bias/rel_embedding'
_UNEMBEDDING = 'decoder/logits_dense/kernel'
_MAX_DISTANCE = 128
# Fields of a decoder that are constants in the decoder-only example.
_DECODER_ONLY = {
  'embedding_scale': 1.0,
  'norm_eps': 1e-6,
  'norm_offset': 0.0,
  'query_scale': 1.0,
  'attention_softcap': None,
  'logit_softcap': None,
  'window_pattern': (None,),
}


class _LayerRule(NamedTuple):
  """A parameter of a layer: its names in T5X and here, and its layout in plain T5."""

  tensor: str
  parameter: str
  layout: str


def open_checkpoint(path: epath.PathLike) -> PretrainedWeights:
  """Opens the model in a `checkpoint_N` of either layout; only names and shapes are read.

  The description follows from these, but for options in T5X's gin files: activations are assumed
  to be those of T5 1.0 (relu) or 1.1 (gelu, linear).

  Raises:
    CheckpointError: the directory is no checkpoint of T5X, incomplete, or of another model.
  """
  directory = files.absolute(path)
  opened = {
    name.removeprefix('target/'): array
    for name, array in t5x_files.arrays(directory).items()
    if name.startswith('target/')
  }
  scan = next((n.split('/')[1] for n in opened if re.match(r'encoder/(encoder|layers)/', n)), None)
  shapes = {name: tuple(array.shape) for name, array in opened.items()}
  description = _describe(os.fspath(directory), shapes, scan)
  stored = t5x_files.stored_tensors(directory, opened)
  return PretrainedWeights(description, PretrainedTensors(table(description, scan=scan), stored))


def table(model: Mapping[str, Any], *, scan: str | None = None) -> TensorTable:
  """The parameters of a T5 or a decoder.

  Args:
    model: the description.
    scan: name of the layers in the scanned T5: 'encoder' (and 'decoder'), or 'layers' in its first
      versions. It stores them as one array, on axis 1, with the heads as an axis. None for others.
  """
  unembedding = TensorRule(_UNEMBEDDING, 'unembedding', 'd v -> v d')
  shared = [
    _LayerRule(_RELATIVE, 'relative_bias/table', 'n b -> b n'),
    _LayerRule('pre_mlp_layer_norm/scale', 'mlp_norm/scale', 'd -> d'),
    *_mlp(gated=len(model['mlp_activations']) == 2),
  ]
  if model['family'] == 'decoder':
    attention = _attention('self_attention', 'attention')
    return TensorTable(
      [
        TensorRule('decoder/token_embedder/embedding', 'embedding'),
        unembedding,
        TensorRule(f'decoder/{_RELATIVE}', 'relative_bias/table', 'n b -> b n'),
        TensorRule('decoder/decoder_norm/scale', 'norm/scale'),
        *_layers('decoder', 'blocks', [*shared, *attention]),
      ]
    )
  attentions = {
    'encoder': _attention('attention', 'self_attention'),
    'decoder': [
      *_attention('self_attention', 'self_attention'),
      *_attention('encoder_decoder_attention', 'cross_attention', norm='cross_attention'),
    ],
  }
  rules = [TensorRule('token_embedder/embedding', 'embedding'), unembedding]
  for stack, attention in attentions.items():
    rules += [
      TensorRule(f'{stack}/{_RELATIVE}', f'{stack}_bias/table', 'n b -> b n'),
      TensorRule(f'{stack}/{stack}_norm/scale', f'{stack}_norm/scale'),
      *_layers(stack, stack, [*shared, *attention], scan=scan),
    ]
  return TensorTable(rules)


def _layers(
  tensor: str, parameter: str, layer: Sequence[_LayerRule], *, scan: str | None = None
) -> list[TensorRule]:
  prefix = f'{tensor}/{_scan_name(tensor, scan)}' if scan else f'{tensor}/layers_{{}}'
  return [
    TensorRule(
      f'{prefix}/{rule.tensor}',
      f'{parameter}/{rule.parameter}',
      _scanned_layout(rule.layout) if scan else rule.layout,
    )
    for rule in layer
  ]


def _mlp(*, gated: bool) -> list[_LayerRule]:
  names = {'wi_0': 'wi_0', 'wi_1': 'wi_1'} if gated else {'wi': 'wi_0'}
  return [
    _LayerRule(f'mlp/{tensor}/kernel', f'mlp/{parameter}/kernel', 'd m -> d m')
    for tensor, parameter in {**names, 'wo': 'wo'}.items()
  ]


def _attention(tensor: str, parameter: str, *, norm: str | None = None) -> list[_LayerRule]:
  """Norm and projections; plain T5 stores heads and their features as one axis."""
  return [
    _LayerRule(
      f'pre_{norm or tensor}_layer_norm/scale',
      f'{parameter.replace("_attention", "")}_norm/scale',
      'd -> d',
    ),
    *(
      _LayerRule(f'{tensor}/{name}/kernel', f'{parameter}/{name}/kernel', 'd (n h) -> d n h')
      for name in ('query', 'key', 'value')
    ),
    _LayerRule(f'{tensor}/out/kernel', f'{parameter}/out/kernel', '(n h) d -> n h d'),
  ]


def _scanned_layout(layout: str) -> str:
  """The layout of all layers: 'd (n h) -> d n h' of one becomes 'd l n h -> l d n h'."""
  first, *others = re.sub(r'[()]', '', layout).split()
  return ' '.join([first, 'l', *others]).replace('->', '-> l')


def _scan_name(stack: str, scan: str | None) -> str:
  return stack if scan == 'encoder' else 'layers'


def _describe(origin: str, shapes: Shapes, scan: str | None) -> dict[str, Any]:
  """The description of the model with parameters of these names and shapes."""
  decoder_only = 'decoder/token_embedder/embedding' in shapes
  stack = 'decoder' if decoder_only else 'encoder'
  layers = f'{stack}/{_scan_name(stack, scan) if scan else "layers_0"}'
  per_layer = f'{layers}/{_RELATIVE}' in shapes
  required = (
    f'{"decoder/" if decoder_only else ""}token_embedder/embedding',
    f'{layers if per_layer else stack}/{_RELATIVE}',
    f'{layers}/{"self_attention" if decoder_only else "attention"}/query/kernel',
    f'{layers}/mlp/wo/kernel',
  )
  if missing := [name for name in required if len(shapes.get(name, ())) < 2]:
    raise CheckpointError(
      f'{origin} is no model of T5X: it lacks {summarize(missing)}; it holds '
      f'{summarize(shapes) or "no parameters"}.'
    )
  embedding, relative, query, wo = (shapes[name] for name in required)
  num_heads, width, tied = relative[0], embedding[1], _UNEMBEDDING not in shapes
  num_layers = functools.partial(_num_layers, shapes, scan=scan)
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
      'num_layers': num_layers('decoder'),
      'num_kv_heads': num_heads,
      'logit_scale': width**-0.5 if tied else 1.0,
      **_DECODER_ONLY,
    }
    if decoder_only
    else {
      'family': 't5',
      'num_encoder_layers': num_layers('encoder'),
      'num_decoder_layers': num_layers('decoder'),
    }
  )


def _num_layers(shapes: Shapes, stack: str, *, scan: str | None) -> int:
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
  overwrite: bool = False,
  primary: bool = True,
) -> epath.Path:
  """Writes `directory/checkpoint_{step}` in the native layout.

  Args:
    directory: where to write it.
    model: the description of the model.
    params: its parameters; all processes fetch them.
    step: the step that the checkpoint is of.
    dtype: of the parameters.
    slots: Adafactor's state by `<T5X's parameter>/{v,v_row,v_col,m}`; None writes zeros.
    fetch: brings an array to the host.
    overwrite: replaces the checkpoint of this step.
    primary: whether this process writes.

  Returns:
    The path of the checkpoint. Neither T5X nor this program reads it before it is complete.

  Raises:
    CheckpointError: T5X does not compute the model, or the checkpoint exists.
  """
  tensor_tables.check_dtype(dtype)
  checkpoint = files.absolute(directory) / f'checkpoint_{step}'
  t5x_files.check_output(checkpoint, overwrite=overwrite)
  # Plain T5 has one bias table per stack.
  scan = 'encoder' if model['family'] == 't5' and model['relative_bias_per_layer'] else None
  tensors = tensor_tables.unload(table(model, scan=scan), params, fetch=fetch)
  _check_model(model, _describe('the model to write', _shapes(tensors), scan))
  if slots is None:
    zeros = {name: _initial_slots(name, shape) for name, shape in _shapes(tensors).items()}
    slots = traverse_util.flatten_dict(zeros, sep='/')
  tree: dict[str, Any] = {'state/step': np.asarray(step, np.int32)}
  if primary:
    t5x_files.remove(checkpoint)
    checkpoint.mkdir(parents=True)
  for name, tensor in tensors.items():
    path, array = f'target/{name}', np.asarray(tensor.compute()).astype(dtype)
    if primary:
      tree[path] = t5x_files.write_array(checkpoint, path, array)
  if primary:
    for name, value in slots.items():
      path = f'state/param_states/{name}'
      # T5X stores inline what it does not partition.
      inline = value.shape == (1,) or not name.endswith('/v')
      tree[path] = value if inline else t5x_files.write_array(checkpoint, path, value)
    t5x_files.write_index(checkpoint, tree)
  return checkpoint


def _shapes(tensors: Mapping[str, TensorToWrite]) -> Shapes:
  return {name: tensor.shape for name, tensor in tensors.items()}


def _check_model(model: Mapping[str, Any], written: Mapping[str, Any]) -> None:
  """Raises CheckpointError if T5X's code, apart from activations in gin, computes another model."""
  fields = {name: tuple(v) if isinstance(v, list) else v for name, v in model.items()}
  different = [
    f'{name} is {fields[name]!r}, not {value!r}'
    for name, value in written.items()
    if name != 'mlp_activations' and fields[name] != value
  ]
  if different:
    raise CheckpointError(f'T5X does not compute this model: {"; ".join(different)}.')


def _initial_slots(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
  """Adafactor's state of a parameter before the first update; unused slots are one zero."""
  zeros = functools.partial(np.zeros, dtype=np.float32)
  slots = {slot: zeros(1) for slot in ('v', 'v_row', 'v_col', 'm')}
  if len(shape) > 2 and not name.endswith(_RELATIVE):
    # Scanned layers are not factored; the model's width is the row, whichever axis it is.
    if name.endswith(('out/kernel', 'wo/kernel')):
      return slots | {'v_row': zeros((shape[1], shape[-1])), 'v_col': zeros(shape[:-1])}
    return slots | {'v_row': zeros(shape[:2]), 'v_col': zeros(shape[1:])}
  if len(shape) != 2 or min(shape) < MIN_FACTORED:
    return slots | {'v': zeros(shape)}
  return slots | {'v_row': zeros(min(shape)), 'v_col': zeros(max(shape))}
