"""Tiny checkpoints in T5X's layouts and by its names, and the parameters that they become."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from cascades.interop import t5x
from cascades.models import configs, decoder, t5
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from tests import testing

TINY = dataclasses.replace(testing.TINY_T5, relative_attention_max_distance=128)
TINY_1_0 = dataclasses.replace(TINY, mlp_activations=('relu',), logits_via_embedding=True)


class Loaded(NamedTuple):
  config: t5.T5Config | decoder.DecoderConfig
  params: Any


@functools.cache
def abstract(
  config: t5.T5Config | decoder.DecoderConfig, dtype: str, data: int, fsdp: int, tensor: int
) -> tuple[Any, Any]:
  mesh = partitioning.make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
  with partitioning.use(mesh):
    return abstract_model(config, dtype=dtype)


def load(path: Any, *, dtype: str = 'float32', mesh: tuple[int, int, int] = (1, 1, 1)) -> Loaded:
  """Reads configuration and parameters as a program does, onto a mesh."""
  source = t5x.open_checkpoint(path)
  config = configs.from_description(source.description)
  like = abstract(config, dtype, *mesh)[1]
  return Loaded(config, source.tensors.load(like))


def flat(params: Any) -> dict[str, np.ndarray]:
  leaves = traverse_util.flatten_dict(params, sep='/')
  return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def write_orbax(path: pathlib.Path, target: Mapping[str, np.ndarray], step: int = 5) -> None:
  """Writes arrays as T5X's Orbax checkpoints, with Orbax."""
  tree = {
    'target': traverse_util.unflatten_dict(dict(target), sep='/'),
    'state': {'step': np.int32(step)},
  }
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(path / 'state', tree)


def write_native(path: pathlib.Path, target: Mapping[str, np.ndarray], version: int = 3) -> None:
  """Writes arrays as T5X's native checkpoints, all of them inline."""
  path.mkdir(parents=True)
  tree = {
    'target': traverse_util.unflatten_dict(dict(target), sep='/'),
    'state': {'step': np.asarray(5, np.int32), 'param_states': {}},
  }
  content = serialization.msgpack_serialize({'version': version, 'optimizer': tree})
  (path / 'checkpoint').write_bytes(content)


def plain(config: t5.T5Config, original: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Our parameters from T5X's names of plain T5, one by one and without a table."""
  heads = (config.num_heads, config.head_dim)
  params = {'embedding': original['token_embedder/embedding']}
  if not config.logits_via_embedding:
    params['unembedding'] = original['decoder/logits_dense/kernel'].T
  inner = {'wi_0': 'wi_0', 'wi_1': 'wi_1'} if len(config.mlp_activations) == 2 else {'wi_0': 'wi'}
  for stack, num in (
    ('encoder', config.num_encoder_layers),
    ('decoder', config.num_decoder_layers),
  ):
    gather = lambda name, stack=stack, num=num: np.stack(
      [original[f'{stack}/layers_{i}/{name}'] for i in range(num)]
    )
    own = 'attention' if stack == 'encoder' else 'self_attention'
    attentions = {'self': (f'pre_{own}_layer_norm', own)}
    if stack == 'decoder':
      attentions['cross'] = ('pre_cross_attention_layer_norm', 'encoder_decoder_attention')
    params[f'{stack}_bias/table'] = original[f'{stack}/relpos_bias/rel_embedding'].T
    params[f'{stack}_norm/scale'] = original[f'{stack}/{stack}_norm/scale']
    params[f'{stack}/mlp_norm/scale'] = gather('pre_mlp_layer_norm/scale')
    for parameter, tensor in {**inner, 'wo': 'wo'}.items():
      params[f'{stack}/mlp/{parameter}/kernel'] = gather(f'mlp/{tensor}/kernel')
    for parameter, (norm, tensor) in attentions.items():
      params[f'{stack}/{parameter}_norm/scale'] = gather(f'{norm}/scale')
      for projection in ('query', 'key', 'value'):
        kernel = gather(f'{tensor}/{projection}/kernel')
        params[f'{stack}/{parameter}_attention/{projection}/kernel'] = kernel.reshape(
          num, -1, *heads
        )
      kernel = gather(f'{tensor}/out/kernel')
      params[f'{stack}/{parameter}_attention/out/kernel'] = kernel.reshape(num, *heads, -1)
  return params


def shapes(config: t5.T5Config) -> dict[str, tuple[int, ...]]:
  """All names and shapes of plain T5, from the format's description."""
  E, M, J = config.emb_dim, config.mlp_dim, config.num_heads * config.head_dim
  shapes: dict[str, tuple[int, ...]] = {'token_embedder/embedding': (config.vocab_size, E)}
  if not config.logits_via_embedding:
    shapes['decoder/logits_dense/kernel'] = (E, config.vocab_size)
  inner = ('wi_0', 'wi_1') if len(config.mlp_activations) == 2 else ('wi',)
  per_stack = {
    'encoder': (config.num_encoder_layers, ('attention',), ('attention', 'mlp')),
    'decoder': (
      config.num_decoder_layers,
      ('self_attention', 'encoder_decoder_attention'),
      ('self_attention', 'cross_attention', 'mlp'),
    ),
  }
  for stack, (num, attentions, norms) in per_stack.items():
    buckets = config.relative_attention_num_buckets
    shapes[f'{stack}/relpos_bias/rel_embedding'] = (config.num_heads, buckets)
    shapes[f'{stack}/{stack}_norm/scale'] = (E,)
    for layer in (f'{stack}/layers_{i}' for i in range(num)):
      shapes |= {f'{layer}/pre_{norm}_layer_norm/scale': (E,) for norm in norms}
      shapes |= {f'{layer}/mlp/{wi}/kernel': (E, M) for wi in inner}
      shapes[f'{layer}/mlp/wo/kernel'] = (M, E)
      for attention in attentions:
        shapes |= {f'{layer}/{attention}/{p}/kernel': (E, J) for p in ('query', 'key', 'value')}
        shapes[f'{layer}/{attention}/out/kernel'] = (J, E)
  return shapes


def decoder_shapes(config: decoder.DecoderConfig) -> dict[str, tuple[int, ...]]:
  """All names and shapes of the decoder-only example, from its code."""
  E, M, J = config.emb_dim, config.mlp_dim, config.num_heads * config.head_dim
  bias = {'relpos_bias/rel_embedding': (config.num_heads, config.relative_attention_num_buckets)}
  inner = ('wi_0', 'wi_1') if len(config.mlp_activations) == 2 else ('wi',)
  layer = {
    **{f'pre_{norm}_layer_norm/scale': (E,) for norm in ('self_attention', 'mlp')},
    **{f'self_attention/{projection}/kernel': (E, J) for projection in ('query', 'key', 'value')},
    'self_attention/out/kernel': (J, E),
    **{f'mlp/{wi}/kernel': (E, M) for wi in inner},
    'mlp/wo/kernel': (M, E),
    **(bias if config.relative_bias_per_layer else {}),
  }
  shapes = {
    'token_embedder/embedding': (config.vocab_size, E),
    'decoder_norm/scale': (E,),
    **({} if config.relative_bias_per_layer else bias),
    **({} if config.logits_via_embedding else {'logits_dense/kernel': (E, config.vocab_size)}),
    **{f'layers_{i}/{n}': shape for i in range(config.num_layers) for n, shape in layer.items()},
  }
  return {f'decoder/{name}': shape for name, shape in shapes.items()}


def random_arrays(
  config: t5.T5Config | decoder.DecoderConfig, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
  random = np.random.RandomState(0)
  named = shapes(config) if isinstance(config, t5.T5Config) else decoder_shapes(config)
  return {name: random.standard_normal(shape).astype(dtype) for name, shape in named.items()}


def scanned(
  config: t5.T5Config, original: Mapping[str, np.ndarray], *, layers: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The arrays as the scanned variant keeps them: all layers on axis 1, the heads apart."""
  arrays, groups = {}, {}
  for name, array in original.items():
    stack, _, rest = name.partition('/')
    if rest == 'relpos_bias/rel_embedding':
      # Each layer's own: the plain one's, and others.
      num = getattr(config, f'num_{stack}_layers')
      arrays[f'{stack}/{layers[stack]}/{rest}'] = np.stack(
        [(-1) ** i * array + i / 2 for i in range(num)], 1
      )
    elif rest.startswith('layers_'):
      heads = (config.num_heads, config.head_dim)
      if rest.endswith('out/kernel'):
        array = array.reshape(*heads, -1)
      elif 'attention/' in rest:
        array = array.reshape(-1, *heads)
      groups.setdefault(f'{stack}/{layers[stack]}/{rest.partition("/")[2]}', []).append(array)
    else:
      arrays[name] = array
  return arrays | {name: np.stack(layer, 1) for name, layer in groups.items()}
