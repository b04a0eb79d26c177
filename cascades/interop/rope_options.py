"""Rotary positions in config.json: `rope_parameters` of transformers 5, and the options before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cascades.checkpoints.store import CheckpointError
from cascades.interop import option_values
from cascades.interop.families import Family, HuggingFaceConfig
from cascades.interop.option_values import integer, number, unsupported

SLIDING, FULL = 'sliding_attention', 'full_attention'
PLACES = ('rope_scaling', 'rope_parameters')
# Options that a type of scaling reads; any other one would be dropped in silence.
_READ = {
  'default': (),
  'linear': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
}
_ALWAYS_VALID = ('rope_type', 'type', 'rope_theta', 'partial_rotary_factor', 'finetuned')
_LENGTHS = ('original_max_position_embeddings', 'max_position_embeddings')
_NEUTRAL = (None, 1, False)


class Rope(NamedTuple):
  """Rotary positions of a type of layer; see `decoder.DecoderConfig`."""

  theta: float
  factor: float = 1.0
  llama3: tuple[float, float, float, int] | None = None


def read(config: HuggingFaceConfig, family: Family) -> Mapping[str, Rope]:
  """Rotary positions by type of layer, as transformers 5 computes them.

  Raises:
    CheckpointError: a scaling that the models here do not compute, or two that differ.
      transformers 5 takes `rope_scaling` then, and may lose the base that belongs to it.
  """
  given = {name: config[name] for name in PLACES if config.get(name)}
  for name, value in given.items():
    if not isinstance(value, dict):
      raise unsupported(family.model_type, name, value, ('an object', None))
  resolve = _by_layer_type if 'rope_local_base_freq' in family.defaults else _shared
  answers = [resolve(config, family, {name: value}) for name, value in given.items()]
  if answers[1:] and answers[0] != answers[1]:
    scaling, parameters = (f'{n}={option_values.shortened(given[n])}' for n in PLACES)
    raise CheckpointError(
      f'config.json gives rotary positions twice, and they differ: {scaling} and {parameters}. '
      f'Remove the one that the model was not trained with; a scaling needs its rope_theta beside '
      'it.'
    )
  return answers[0] if answers else resolve(config, family, {})


def _shared(config: HuggingFaceConfig, family: Family, given: Mapping[str, Any]) -> dict[str, Rope]:
  options: Mapping[str, Any] = next(iter(given.values()), {})
  if nested := {SLIDING, FULL} & options.keys():
    raise unsupported(
      family.model_type, f'rope_parameters of {min(nested)}', options, ('one for all layers',)
    )
  rope = _rope(options, {'rope_theta': 10_000.0, **config}, family)
  return {SLIDING: rope, FULL: rope}


def _by_layer_type(
  config: HuggingFaceConfig, family: Family, given: Mapping[str, Any]
) -> dict[str, Rope]:
  """Gemma 3: scaling is of the layers without a window, and each type has its base."""
  parameters = config.get('rope_parameters') or {}
  if parameters.keys() - {SLIDING, FULL} or not all(
    isinstance(v, dict) for v in parameters.values()
  ):
    raise unsupported(
      family.model_type, 'rope_parameters', parameters, (f'one for {SLIDING} and {FULL} each',)
    )
  # Beside the rope_type that transformers fills in, it ignores the older option `type`.
  scaling = given.get('rope_scaling', {})
  full = {**(parameters.get(FULL) or {'rope_type': 'default'}), **scaling}
  local = {**config, 'rope_theta': config['rope_local_base_freq']}
  return {
    SLIDING: _rope(parameters.get(SLIDING) or {}, local, family),
    FULL: _rope(full, config, family),
  }


def _rope(options: Mapping[str, Any], config: HuggingFaceConfig, family: Family) -> Rope:
  theta = float(number({'rope_theta': config['rope_theta'], **options}, 'rope_theta'))
  rotated = options.get('partial_rotary_factor', config.get('partial_rotary_factor', 1.0))
  if rotated not in (None, 1.0):
    raise unsupported(family.model_type, 'partial_rotary_factor', rotated, [1.0])
  rope_type = options.get('rope_type', options.get('type', 'default'))
  if options.get('type', rope_type) != rope_type:
    raise unsupported(family.model_type, 'type', options['type'], [f'rope_type={rope_type!r}'])
  if not isinstance(rope_type, str) or rope_type not in _READ:
    raise unsupported(family.model_type, 'rope_type', rope_type, [*_READ])
  for name in options.keys() - {*_READ[rope_type], *_ALWAYS_VALID, *_LENGTHS}:
    if options[name] not in _NEUTRAL:
      raise CheckpointError(
        f'{name}={option_values.shortened(options[name])} beside rope_type={rope_type!r} in '
        f'config.json of a {family.model_type} model has no effect in transformers: give the '
        'rope_type that it belongs to, or remove it.'
      )
  values = [float(number(options, name)) for name in _READ[rope_type]]
  if rope_type != 'llama3':
    return Rope(theta, values[0] if values else 1.0)
  factor, low, high = values
  if high <= low:
    raise unsupported(family.model_type, 'high_freq_factor', high, [f'above {low}'])
  lengths = {_LENGTHS[0]: config.get(_LENGTHS[1]), **options}
  length = integer(lengths, _LENGTHS[0])
  if config.get(_LENGTHS[0], length) != length:
    raise unsupported(family.model_type, _LENGTHS[0], config[_LENGTHS[0]], [length])
  return Rope(theta, llama3=(factor, low, high, length))
