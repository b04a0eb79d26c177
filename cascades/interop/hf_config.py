"""Conversion between config.json of Hugging Face and descriptions of models, as in model.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from cascades.checkpoints.store import CheckpointError
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

# Fields of a description and the options that equal them. Other fields have a function below.
DECODER_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'hidden_size',
  'num_heads': 'num_attention_heads',
  'num_layers': 'num_hidden_layers',
  'mlp_dim': 'intermediate_size',
}
T5_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'd_model',
  'num_heads': 'num_heads',
  'num_encoder_layers': 'num_layers',
  'head_dim': 'd_kv',
  'mlp_dim': 'd_ff',
}
ENCODER_SIZES = {
  'vocab_size': 'vocab_size',
  'emb_dim': 'hidden_size',
  'num_heads': 'num_attention_heads',
  'num_layers': 'num_hidden_layers',
  'mlp_dim': 'intermediate_size',
  'num_positions': 'max_position_embeddings',
  'norm_eps': 'layer_norm_eps',
}
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
SLIDING, FULL = 'sliding_attention', 'full_attention'


def describe(config: HuggingFaceConfig) -> dict[str, Any]:
  """Describes the model that a config.json configures.

  Args:
    config: the content of config.json.

  Returns:
    The description, for `configs.from_description` (or `configs.encoder`).

  Raises:
    CheckpointError: an option that the models here do not compute, or that is missing.
  """
  config = text_config(config)
  model_type = config.get('model_type')
  if model_type not in FAMILIES:
    raise CheckpointError(
      f'model_type={model_type!r} of config.json is not supported; these are: '
      f'{", ".join(FAMILIES)} (and the language model of gemma3).'
    )
  family = FAMILIES[model_type]
  _check_options(config, family)
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
  return {**config.get('text_config', {}), 'model_type': 'gemma3_text'}


def _check_options(config: HuggingFaceConfig, family: Family) -> None:
  if config.get('quantization_config'):
    raise CheckpointError(
      'config.json has a quantization_config: quantized weights cannot be read; give the folder '
      'of the original weights, or a GGUF file.'
    )
  for option, values in family.supported.items():
    if option in config and config[option] not in values:
      raise _unsupported(family.model_type, option, config[option], values)


def _unsupported(
  model_type: str, option: str, value: object, supported: Sequence[object]
) -> CheckpointError:
  return CheckpointError(
    f'{option}={value!r} in config.json of a {model_type} model is not supported; '
    f'supported: {", ".join(map(repr, supported))}.'
  )


def _describe_decoder(config: HuggingFaceConfig, family: Family) -> dict[str, Any]:
  sizes = {field: config[option] for field, option in DECODER_SIZES.items()}
  width, heads = sizes['emb_dim'], sizes['num_heads']
  windowed = _windowed_layers(config, family)
  ropes = [_rope(config, SLIDING if window else FULL) for window in windowed]
  scalar = config.get('query_pre_attn_scalar')
  return {
    'family': 'decoder',
    **sizes,
    'num_kv_heads': config['num_key_value_heads'] or heads,
    'head_dim': config['head_dim'] or width // heads,
    'logits_via_embedding': config.get('tie_word_embeddings', False),
    'norm_eps': config['rms_norm_eps'],
    'embedding_scale': width**0.5 if 'norm_offset' in family.fields else 1.0,
    'query_scale': scalar**-0.5 if scalar else None,
    'attention_softcap': config.get('attn_logit_softcapping'),
    'logit_softcap': config.get('final_logit_softcapping'),
    'window_pattern': _period(
      [config['sliding_window'] if window else None for window in windowed]
    ),
    'rope_theta_pattern': _period([rope.theta for rope in ropes]),
    'rope_factor_pattern': _period([rope.factor for rope in ropes]),
    'rope_llama3': ropes[0].llama3,
    **family.fields,
  }


def _windowed_layers(config: HuggingFaceConfig, family: Family) -> list[bool]:
  """One boolean per layer: whether it attends to a window only."""
  layers = range(config['num_hidden_layers'])
  if family.has_window is None or not config.get('use_sliding_window', True):
    return [False for _ in layers]
  if config.get('layer_types'):
    return [layer_type == SLIDING for layer_type in config['layer_types']]
  return [family.has_window(config, layer) for layer in layers]


class _Rope(NamedTuple):
  theta: float
  factor: float = 1.0
  llama3: tuple[float, float, float, int] | None = None


def _rope(config: HuggingFaceConfig, layer_type: str) -> _Rope:
  """Rotary positions of a type of layer, in the options of transformers 5 or of those before."""
  options: HuggingFaceConfig = config.get('rope_parameters') or {}
  options = options.get(layer_type, {}) if {SLIDING, FULL} & options.keys() else options
  local = layer_type == SLIDING and 'rope_local_base_freq' in config
  if not options:
    options = {} if local else config.get('rope_scaling') or {}
  default: float = config['rope_local_base_freq'] if local else config.get('rope_theta', 10_000.0)
  theta = float(options.get('rope_theta', default))
  rotated = options.get('partial_rotary_factor', config.get('partial_rotary_factor', 1.0))
  if rotated != 1.0:
    raise _unsupported(config['model_type'], 'partial_rotary_factor', rotated, [1.0])
  rope_type = options.get('rope_type', options.get('type', 'default'))
  if rope_type == 'default':
    return _Rope(theta)
  if rope_type == 'linear':
    return _Rope(theta, float(options['factor']))
  if rope_type == 'llama3':
    names = ('factor', 'low_freq_factor', 'high_freq_factor')
    length = int(options['original_max_position_embeddings'])
    factor, low, high = (float(options[name]) for name in names)
    return _Rope(theta, llama3=(factor, low, high, length))
  raise _unsupported(config['model_type'], 'rope_type', rope_type, ('default', 'linear', 'llama3'))


def _describe_t5(config: HuggingFaceConfig, family: Family) -> dict[str, Any]:
  projection = config['feed_forward_proj']
  if projection not in T5_ACTIVATIONS:
    raise _unsupported(family.model_type, 'feed_forward_proj', projection, [*T5_ACTIVATIONS])
  # In transformers 5 `tie_word_embeddings` is always true and has no effect.
  scaled = config.get('scale_decoder_outputs', config['tie_word_embeddings'])
  return {
    'family': 't5',
    **{field: config[option] for field, option in T5_SIZES.items()},
    'num_decoder_layers': config.get('num_decoder_layers') or config['num_layers'],
    'mlp_activations': T5_ACTIVATIONS[projection],
    'dropout_rate': float(config.get('dropout_rate', 0.1)),
    'logits_via_embedding': bool(scaled) and family.model_type == 't5',
    'relative_attention_num_buckets': config.get('relative_attention_num_buckets', 32),
    'relative_attention_max_distance': config.get('relative_attention_max_distance', 128),
  }


def _describe_encoder(config: HuggingFaceConfig, family: Family) -> dict[str, Any]:
  return {
    'family': 'bert',
    **{field: config[option] for field, option in ENCODER_SIZES.items()},
    'num_segments': config.get('type_vocab_size'),
    **family.fields,
    'max_length': config['max_position_embeddings'] - family.fields.get('first_position', 0),
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
    again = _canonical(describe(written))
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
    **_write_ropes(model, windows),
  }
  if family.has_window:
    written |= {
      'sliding_window': window,
      'use_sliding_window': window is not None,
      'layer_types': [SLIDING if w else FULL for w in windows],
    }
  return written


def _write_ropes(model: Description, windows: Sequence[int | None]) -> dict[str, Any]:
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
  if model['qk_norm'] and model['post_norms']:
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
