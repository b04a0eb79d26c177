"""Conversion between config.json of Hugging Face and descriptions of models, as in model.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cascades.checkpoints.store import CheckpointError
from cascades.interop import known_options, rope_options
from cascades.interop.families import (
  DECODERS,
  ENCODERS,
  FAMILIES,
  SCALED,
  T5S,
  Description,
  Family,
  HuggingFaceConfig,
)
from cascades.interop.known_options import DECODER_SIZES, ENCODER_SIZES, T5_SIZES
from cascades.interop.option_values import boolean, integer, number, unsupported
from cascades.interop.rope_options import FULL, SLIDING
from cascades.models.configs import MAX_DISTANCE, MAX_LAYERS, MAX_SIZE

T5_ACTIVATIONS = {
  'relu': ('relu',),
  'silu': ('silu',),
  'gated-gelu': ('gelu', 'linear'),  # the tanh form, whatever the name
  'gated-silu': ('silu', 'linear'),
}
# Options that a description determines, besides those of its family.
_DETERMINED = {
  *DECODER_SIZES.values(),
  *T5_SIZES.values(),
  *SCALED,
  *('rope_theta', 'rope_scaling', 'rope_parameters', 'rope_local_base_freq'),
  *('layer_types', 'sliding_window', 'use_sliding_window', 'max_window_layers'),
  *('sliding_window_pattern', '_sliding_window_pattern', 'num_decoder_layers', 'dropout_rate'),
  *('relative_attention_num_buckets', 'relative_attention_max_distance', 'is_gated_act'),
  *('dense_act_fn', 'scale_decoder_outputs', 'tie_word_embeddings', 'is_encoder_decoder'),
  *('model_type', 'architectures', 'dtype', 'torch_dtype', 'transformers_version'),
}
TYPES = {SLIDING, FULL}
_LAYER_COUNTS = ('num_hidden_layers', 'num_layers', 'num_decoder_layers')


def describe(config: HuggingFaceConfig) -> dict[str, Any]:
  """Describes the model that a config.json configures.

  Args:
    config: the content of config.json.

  Returns:
    The description, for `configs.from_description` (or `configs.encoder`).

  Raises:
    CheckpointError: an option that the models here do not compute, or that is missing.
  """
  known_options.check_unquantized(config)
  config = text_config(config)
  model_type = config.get('model_type')
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise CheckpointError(
      f'model_type={model_type!r} of config.json is not supported; these are: '
      f'{", ".join(FAMILIES)} (and the language model of gemma3).'
    )
  family = FAMILIES[model_type]
  known_options.check(config, family)
  readers = (DECODERS, _describe_decoder), (T5S, _describe_t5), (ENCODERS, _describe_encoder)
  read = next(read for families, read in readers if family in families)
  try:
    return read({**family.defaults, **config}, family)
  except KeyError as error:
    raise CheckpointError(f'config.json of a {model_type} model lacks {error}.') from error


def determined_options(model_type: str) -> set[str]:
  """Options of config.json that `configuration` writes, or that lose their meaning by it."""
  family = FAMILIES[model_type]
  return {*_DETERMINED, *family.supported, *family.defaults}


def text_config(config: HuggingFaceConfig) -> HuggingFaceConfig:
  """The configuration of the language model in that of an image-text model."""
  if config.get('model_type') != 'gemma3':
    return config
  text = config.get('text_config') or {}
  if not isinstance(text, dict):
    raise unsupported('gemma3', 'text_config', text, ('an object',))
  return {**text, 'model_type': 'gemma3_text'}


def _sizes(config: HuggingFaceConfig, sizes: Mapping[str, str]) -> dict[str, int]:
  return {field: _size(config, option) for field, option in sizes.items()}


def _size(config: HuggingFaceConfig, option: str) -> int:
  return integer(config, option, most=MAX_LAYERS if option in _LAYER_COUNTS else MAX_SIZE)


def _describe_decoder(config: HuggingFaceConfig, family: Family) -> dict[str, Any]:
  sizes = _sizes(config, DECODER_SIZES)
  width, heads = sizes['emb_dim'], sizes['num_heads']
  windowed = _windowed_layers(config, family)
  rope = rope_options.read(config, family)
  ropes = [rope[SLIDING if window else FULL] for window in windowed]
  if any(r.llama3 != ropes[0].llama3 for r in ropes):
    raise unsupported(family.model_type, 'rope_type', 'llama3', ['llama3 in all layers'])
  scaled = {option: _optional_number(config, option) for option in family.optional}
  scalar = scaled.get('query_pre_attn_scalar')
  return {
    'family': 'decoder',
    **sizes,
    'num_kv_heads': _size(config, 'num_key_value_heads')
    if config['num_key_value_heads']
    else heads,
    'head_dim': _head_dim(config, width, heads),
    'logits_via_embedding': boolean(config, 'tie_word_embeddings'),
    'norm_eps': number(config, 'rms_norm_eps', zero=True),
    'embedding_scale': width**0.5 if 'norm_offset' in family.fields else 1.0,
    'query_scale': scalar**-0.5 if scalar else None,
    'attention_softcap': scaled.get('attn_logit_softcapping'),
    'logit_softcap': scaled.get('final_logit_softcapping'),
    'window_pattern': _period(
      [config['sliding_window'] if window else None for window in windowed]
    ),
    'rope_theta_pattern': _period([rope.theta for rope in ropes]),
    'rope_factor_pattern': _period([rope.factor for rope in ropes]),
    'rope_llama3': ropes[0].llama3,
    **family.fields,
  }


def _optional_number(config: HuggingFaceConfig, option: str) -> float | None:
  return None if config.get(option) is None else number(config, option)


def _head_dim(config: HuggingFaceConfig, width: int, heads: int) -> int:
  if config['head_dim'] is None and width % heads:
    raise CheckpointError(
      f'hidden_size={width} is not divisible by num_attention_heads={heads}, and config.json gives '
      'no head_dim.'
    )
  size = width // heads if config['head_dim'] is None else _size(config, 'head_dim')
  if size % 2:
    raise unsupported(config['model_type'], 'head_dim', size, ['even numbers, for rotary pairs'])
  return size


def _windowed_layers(config: HuggingFaceConfig, family: Family) -> list[bool]:
  """One boolean per layer: whether it attends to a window only."""
  layers, has_window = range(config['num_hidden_layers']), family.has_window
  if has_window is None:
    return [False for _ in layers]
  types = config.get('layer_types')
  if types is None:
    windowed = [has_window(config, layer) for layer in layers]
  elif isinstance(types, list) and len(types) == len(layers) and not {*map(str, types)} - TYPES:
    windowed = [layer_type == SLIDING for layer_type in types]
  else:
    names = f'{len(layers)} of {SLIDING} and {FULL}'
    raise unsupported(family.model_type, 'layer_types', types, [names])
  if any(windowed):
    if not boolean(config, 'use_sliding_window', True) and 'use_sliding_window' in family.defaults:
      raise CheckpointError(
        f'use_sliding_window=False and layer_types with {SLIDING} in config.json of a '
        f'{family.model_type} model contradict each other.'
      )
    integer(config, 'sliding_window')
  return windowed


def _describe_t5(config: HuggingFaceConfig, family: Family) -> dict[str, Any]:
  projection = config['feed_forward_proj']
  if not isinstance(projection, str) or projection not in T5_ACTIVATIONS:
    raise unsupported(family.model_type, 'feed_forward_proj', projection, [*T5_ACTIVATIONS])
  activations = T5_ACTIVATIONS[projection]
  # transformers derives these two, but lets the file replace them.
  derived = {'is_gated_act': len(activations) > 1, 'dense_act_fn': projection.split('-')[-1]}
  if projection == 'gated-gelu':
    derived['dense_act_fn'] = 'gelu_new'
  for option, value in derived.items():
    if config.get(option, value) not in (value, None):
      raise unsupported(family.model_type, option, config[option], [value])
  # In transformers 5 `tie_word_embeddings` is always true and has no effect.
  tied = boolean(config, 'tie_word_embeddings')
  scaled = boolean(config, 'scale_decoder_outputs', tied)
  sizes = _sizes(config, T5_SIZES)
  decoder = {'num_decoder_layers': sizes['num_encoder_layers'], **_given(config)}
  relative = {'relative_attention_num_buckets': 32, 'relative_attention_max_distance': 128}
  relative |= _given(config)
  buckets = integer(relative, 'relative_attention_num_buckets', least=4)
  dropout = number({'dropout_rate': 0.1, **_given(config)}, 'dropout_rate', zero=True)
  if dropout >= 1:
    raise unsupported(family.model_type, 'dropout_rate', dropout, ['numbers below 1'])
  return {
    'family': 't5',
    **sizes,
    'num_decoder_layers': _size(decoder, 'num_decoder_layers'),
    'mlp_activations': activations,
    'dropout_rate': float(dropout),
    'logits_via_embedding': scaled and family.model_type == 't5',
    'relative_attention_num_buckets': buckets,
    'relative_attention_max_distance': integer(
      relative, 'relative_attention_max_distance', least=buckets // 2 + 1, most=MAX_DISTANCE
    ),
  }


def _given(config: HuggingFaceConfig) -> dict[str, Any]:
  return {option: value for option, value in config.items() if value is not None}


def _describe_encoder(config: HuggingFaceConfig, family: Family) -> dict[str, Any]:
  segments = 'type_vocab_size'
  sizes = _sizes(config, ENCODER_SIZES)
  return {
    'family': 'bert',
    **sizes,
    'norm_eps': number(config, 'layer_norm_eps', zero=True),
    'num_segments': integer(config, segments, least=0) if segments in config else None,
    **family.fields,
    'max_length': sizes['num_positions'] - family.fields.get('first_position', 0),
  }


def configuration(model: Description, model_type: str | None = None) -> dict[str, Any]:
  """Writes the config.json of a model, as the first family (or `model_type`) that computes it.

  A family computes the model if `describe` of its config.json gives the description back.

  Args:
    model: the description.
    model_type: the family; None tries all.

  Returns:
    The content of config.json.

  Raises:
    CheckpointError: no family computes the model. The message lists the fields that differ.
  """
  if model['family'] == 'bert':
    raise CheckpointError(
      'encoders cannot be written: nothing here trains them, use the folder they are from.'
    )
  model = _canonical(model)
  fitting = [
    family
    for family in (T5S if model['family'] == 't5' else DECODERS)
    if model_type in (None, family.model_type)
  ]
  if not fitting:
    raise CheckpointError(f'a {model["family"]} model cannot be written as {model_type!r}.')
  differences = {}
  for family in fitting:
    written = (_write_t5 if family in T5S else _write_decoder)(model, family)
    try:
      again = _canonical(describe(written))
    except CheckpointError as error:
      differences[family.model_type] = [str(error)]
      continue
    different = [name for name in again if not _equal(again[name], model.get(name))]
    if not different:
      return written
    differences[family.model_type] = [
      f'{name} is {model.get(name)!r}, not {again[name]!r}' for name in different
    ]
  nearest = min(differences, key=lambda name: len(differences[name]))
  raise CheckpointError(
    'no model of transformers that is supported here computes this one; the nearest is '
    f'{nearest}, but {"; ".join(differences[nearest])}.'
  )


def _write_decoder(model: Description, family: Family) -> dict[str, Any]:
  windows = _repeated(model['window_pattern'], model['num_layers'])
  window = next((w for w in windows if w), None)
  scalar = round(model['query_scale'] ** -2)
  scaled = dict(
    zip(SCALED, (scalar, model['attention_softcap'], model['logit_softcap']), strict=True)
  )
  written = {
    **_identity(family),
    **{option: model[field] for field, option in DECODER_SIZES.items()},
    'num_key_value_heads': model['num_kv_heads'],
    'head_dim': model['head_dim'],
    'rms_norm_eps': model['norm_eps'],
    'tie_word_embeddings': model['logits_via_embedding'],
    **{name: scaled[name] for name in family.optional},
    **_write_ropes(model, windows, family),
  }
  if family.has_window:
    written |= {
      'sliding_window': window,
      'use_sliding_window': window is not None,
      'layer_types': [SLIDING if w else FULL for w in windows],
    }
  return written


def _write_ropes(
  model: Description, windows: Sequence[int | None], family: Family
) -> dict[str, Any]:
  """Options of transformers before version 5, which later versions read too."""
  num = model['num_layers']
  thetas = _repeated(model['rope_theta_pattern'], num)
  factors = _repeated(model['rope_factor_pattern'], num)
  full = next((i for i, w in enumerate(windows) if not w), 0)
  local = next((i for i, w in enumerate(windows) if w), full)
  written: dict[str, Any] = {'rope_theta': thetas[full]}
  if factors[full] != 1.0:
    written['rope_scaling'] = {'rope_type': 'linear', 'factor': factors[full]}
  if model['rope_llama3']:
    names = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
    values = zip(names, model['rope_llama3'], strict=True)
    written['rope_scaling'] = {'rope_type': 'llama3', **dict(values)}
  if 'rope_local_base_freq' in family.defaults:
    written['rope_local_base_freq'] = thetas[local]
  return written


def _write_t5(model: Description, family: Family) -> dict[str, Any]:
  projections = {activations: name for name, activations in T5_ACTIVATIONS.items()}
  return {
    **_identity(family),
    **{option: model[field] for field, option in T5_SIZES.items()},
    'num_decoder_layers': model['num_decoder_layers'],
    'relative_attention_num_buckets': model['relative_attention_num_buckets'],
    'relative_attention_max_distance': model['relative_attention_max_distance'],
    'feed_forward_proj': projections.get(model['mlp_activations'], 'relu'),
    'dropout_rate': model['dropout_rate'],
    'tie_word_embeddings': model['logits_via_embedding'],
    'is_encoder_decoder': True,
  }


def _identity(family: Family) -> dict[str, Any]:
  return {
    'model_type': family.model_type,
    'architectures': [family.architecture],
    **{option: values[0] for option, values in family.supported.items()},
  }


def _canonical(model: Description) -> dict[str, Any]:
  """A description with defaults filled in: equal for models that compute the same."""
  model = {name: tuple(v) if isinstance(v, list) else v for name, v in model.items()}
  for runtime in ('dtype', 'remat_policy'):
    model.pop(runtime, None)
  if model['family'] == 't5':
    model = {'relative_bias_per_layer': False, **model}
  if model['family'] == 'decoder':
    defaults = {'mlp_activations': ('silu', 'linear'), 'norm_offset': 0.0, 'post_norms': False}
    defaults |= {'relative_attention_num_buckets': None, 'bidirectional_prompt': False}
    defaults |= {'qk_norm': False, 'qkv_bias': False, 'dropout_rate': 0.0, 'logit_scale': 1.0}
    model = {**defaults, **model}
    model.pop('dropout_rate')
    model['query_scale'] = model['query_scale'] or model['head_dim'] ** -0.5
    for name in ('window_pattern', 'rope_theta_pattern', 'rope_factor_pattern'):
      model[name] = _period(_repeated(model[name], model['num_layers']))
  return model


def _equal(a: object, b: object) -> bool:
  if isinstance(a, float) and isinstance(b, int | float):
    return math.isclose(a, b, rel_tol=1e-6)
  return a == b


def _period(values: Sequence[Any]) -> tuple[Any, ...]:
  """The shortest pattern that repeats to `values`."""
  lengths = range(1, len(values) + 1)
  fits = lambda n: all(value == values[i % n] for i, value in enumerate(values))
  return tuple(values[: next(n for n in lengths if fits(n))])


def _repeated(pattern: Sequence[Any], num: int) -> list[Any]:
  return [pattern[i % len(pattern)] for i in range(num)]
