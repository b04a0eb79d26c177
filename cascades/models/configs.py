"""Model configurations as JSON and back, so that a checkpoint can carry its own description."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import jax
from flax import nnx

from cascades.models import bert, decoder, t5
from cascades.types import ModelConfig

LanguageModelConfig: TypeAlias = t5.T5Config | decoder.DecoderConfig
ConfigT = TypeVar('ConfigT', t5.T5Config | decoder.DecoderConfig, bert.BertConfig)

FAMILIES: dict[str, type[LanguageModelConfig]] = {
  'decoder': decoder.DecoderConfig,
  't5': t5.T5Config,
}
ENCODERS: dict[str, type[bert.BertConfig]] = {'bert': bert.BertConfig}


def describe(config: ModelConfig | bert.BertConfig) -> dict[str, Any]:
  """All fields of a configuration and its family; `json.dumps` takes it."""
  known = {**FAMILIES, **ENCODERS}
  family = next((name for name, kind in known.items() if kind is type(config)), None)
  if family is None or not isinstance(config, LanguageModelConfig | bert.BertConfig):
    raise ValueError(f'{type(config).__name__} is not a model configuration ({", ".join(known)}).')
  return {'family': family, **dataclasses.asdict(config)}


def from_description(description: Mapping[str, Any]) -> LanguageModelConfig:
  """The configuration of the language model that `describe` described."""
  return _from_description(description, FAMILIES)


def encoder(description: Mapping[str, Any]) -> bert.BertConfig:
  """The configuration of the encoder that `describe` described."""
  return _from_description(description, ENCODERS)


def _from_description(
  description: Mapping[str, Any], families: Mapping[str, type[ConfigT]]
) -> ConfigT:
  fields = {name: value for name, value in description.items() if name != 'family'}
  family: Any = description.get('family')
  if family not in families:
    raise ValueError(f'Unknown model family {family!r}; this version knows {", ".join(families)}.')
  known = {field.name: field for field in dataclasses.fields(families[family])}
  required = {name for name, field in known.items() if field.default is dataclasses.MISSING}
  for problem, names in (
    ('has unknown', fields.keys() - known.keys()),
    ('lacks the', required - fields.keys()),
  ):
    if names:
      raise ValueError(
        f'The description of a {family} model {problem} fields {", ".join(sorted(names))}; it was '
        'written by another version, or by hand. Its fields are ' + ', '.join(known) + '.'
      )
  return families[family](**fields)


def count_parameters(config: ModelConfig | bert.BertConfig) -> int:
  """How many numbers a model holds, without making them."""
  state = jax.eval_shape(lambda: nnx.state(config.build(jax.random.key(0))))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def linear_maps(config: ModelConfig) -> dict[tuple[Any, ...], tuple[int, ...]]:
  """The paths of a model's linear maps, each with the axes, from the end, that are its inputs.

  Tables are none, though they are multiplied with: their rows belong to tokens.
  """
  state = jax.eval_shape(lambda: nnx.state(config.build(jax.random.key(0))))
  described = {path: leaf.get_metadata() for path, leaf in nnx.to_flat_state(state)}
  return {
    path: metadata['inputs']
    for path, metadata in described.items()
    if metadata.get('inputs') and 'vocab' not in metadata['out_sharding']
  }
