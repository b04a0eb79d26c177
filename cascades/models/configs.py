"""Model configurations as JSON and back: every checkpoint contains the description of its model."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import jax
from flax import nnx

from cascades.models import bert, decoder, t5
from cascades.types import ModelConfig

LanguageModelConfig: TypeAlias = t5.T5Config | decoder.DecoderConfig
ROWS = 128  # so that the embedding table of any vocabulary can be sharded
ConfigT = TypeVar('ConfigT', t5.T5Config | decoder.DecoderConfig, bert.BertConfig)

# Larger than any published model, and small enough to loop over.
MAX_LAYERS = 1000
MAX_SIZE = 2**31 - 1
MAX_DISTANCE = 1 << 16  # of relative positions, which have one table entry each
_BOUNDS = {
  **dict.fromkeys(('num_layers', 'num_encoder_layers', 'num_decoder_layers'), (1, MAX_LAYERS)),
  **dict.fromkeys(('first_position', 'num_segments'), (0, MAX_SIZE)),
  'relative_attention_max_distance': (1, MAX_DISTANCE),
}

FAMILIES: dict[str, type[LanguageModelConfig]] = {
  'decoder': decoder.DecoderConfig,
  't5': t5.T5Config,
}
# Parameter name of each stack of layers, and the configuration's field of its size.
STACKS: Mapping[type[LanguageModelConfig], Mapping[str, str]] = {
  decoder.DecoderConfig: {'blocks': 'num_layers'},
  t5.T5Config: {'encoder': 'num_encoder_layers', 'decoder': 'num_decoder_layers'},
}
ENCODERS: dict[str, type[bert.BertConfig]] = {'bert': bert.BertConfig}


def describe(config: ModelConfig | bert.BertConfig) -> dict[str, Any]:
  """Describe a configuration as a JSON object: its family and all of its fields."""
  classes = {**FAMILIES, **ENCODERS}
  family = next((name for name, cls in classes.items() if cls is type(config)), None)
  if family is None or not isinstance(config, LanguageModelConfig | bert.BertConfig):
    raise ValueError(
      f'{type(config).__name__} is not a model configuration ({", ".join(classes)}).'
    )
  return {'family': family, **dataclasses.asdict(config)}


def from_description(description: Mapping[str, Any]) -> LanguageModelConfig:
  """Build the configuration of a language model from the JSON object of `describe`.

  Raises:
    ValueError: The family or a field is unknown, a field without default is missing, or a value
      is of another type or out of bounds.
  """
  return _from_description(description, FAMILIES)


def encoder(description: Mapping[str, Any]) -> bert.BertConfig:
  """Build the configuration of an encoder from the JSON object of `describe`.

  Raises:
    ValueError: As `from_description`.
  """
  return _from_description(description, ENCODERS)


def _from_description(
  description: Mapping[str, Any], families: Mapping[str, type[ConfigT]]
) -> ConfigT:
  fields = {name: value for name, value in description.items() if name != 'family'}
  family: Any = description.get('family')
  if not isinstance(family, str) or family not in families:
    raise ValueError(f'Unknown model family {family!r}; this version knows {", ".join(families)}.')
  defaults = {field.name: field.default for field in dataclasses.fields(families[family])}
  required = {name for name, default in defaults.items() if default is dataclasses.MISSING}
  for problem, names in (
    ('has unknown', fields.keys() - defaults.keys()),
    ('lacks the', required - fields.keys()),
  ):
    if names:
      raise ValueError(
        f'The description of a {family} model {problem} fields {", ".join(sorted(names))}; it was '
        'written by another version, or by hand. Its fields are ' + ', '.join(defaults) + '.'
      )
  for name, hint in typing.get_type_hints(families[family]).items():
    if name in fields:
      _check_value(family, name, fields[name], hint)
  return families[family](**fields)


def _check_value(family: str, name: str, value: Any, hint: Any) -> None:
  """Raises ValueError for a value of another type, or a size that is out of bounds."""
  types = typing.get_args(hint) or (hint,)  # of `int | None`; a tuple's are those of its items
  if value is None and types[-1] is type(None):
    return
  if 'tuple[' in str(hint):
    valid, expected = isinstance(value, list | tuple), 'a list'
  elif int in types:
    least, most = _BOUNDS.get(name, (1, MAX_SIZE))
    valid = type(value) is int and least <= value <= most
    expected = f'a whole number from {least} to {most}'
  elif float in types:
    valid = isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    expected = 'a finite number'
  else:
    valid, expected = isinstance(value, types), f'of type {types[0].__name__}'
  if not valid:
    raise ValueError(
      f'{name}={repr(value)[:100]} in the description of a {family} model must be {expected}.'
    )


def with_vocabulary(config: ModelConfig, size: int) -> Any:
  """Give a configuration of vocab_size 0 room for a vocabulary, in multiples of ROWS."""
  if config.vocab_size:
    return config
  return dataclasses.replace(config, vocab_size=-(-size // ROWS) * ROWS)  # type: ignore[type-var]


def count_parameters(config: ModelConfig | bert.BertConfig) -> int:
  """Count the parameters of a model without allocating them."""
  state = jax.eval_shape(lambda: nnx.state(config.build(jax.random.key(0))))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def linear_maps(config: ModelConfig) -> dict[tuple[Any, ...], tuple[int, ...]]:
  """Input axes, counted from the end, of each linear map of a model by path.

  Embedding tables are not included: their rows belong to tokens.
  """
  state = jax.eval_shape(lambda: nnx.state(config.build(jax.random.key(0))))
  described = {path: leaf.get_metadata() for path, leaf in nnx.to_flat_state(state)}
  return {
    path: metadata['inputs']
    for path, metadata in described.items()
    if metadata.get('inputs') and 'vocab' not in metadata['out_sharding']
  }
