"""Model configurations as JSON and back, so that a checkpoint can carry its own description."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from flax import nnx

from cascades.models import decoder, t5
from cascades.types import ModelConfig

Config: TypeAlias = t5.Config | decoder.Config

FAMILIES: dict[str, type[Config]] = {'decoder': decoder.Config, 't5': t5.Config}


def describe(config: ModelConfig) -> dict[str, Any]:
  """All fields of a configuration and its family; `json.dumps` takes it."""
  family = next((name for name, known in FAMILIES.items() if known is type(config)), None)
  if family is None or not isinstance(config, Config):
    raise ValueError(f'{type(config).__name__} is not a model configuration ({_known()}).')
  return {'family': family, **dataclasses.asdict(config)}


def from_description(description: Mapping[str, Any]) -> Config:
  """The configuration that `describe` described."""
  fields = {name: value for name, value in description.items() if name != 'family'}
  family = description.get('family')
  if family not in FAMILIES:
    raise ValueError(f'Unknown model family {family!r}; this version knows {_known()}.')
  known = {field.name: field for field in dataclasses.fields(FAMILIES[family])}
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
  return FAMILIES[family](**fields)


def count_parameters(config: ModelConfig) -> int:
  """How many numbers a model holds, without making them."""
  state = jax.eval_shape(lambda: nnx.state(config.build(jax.random.key(0))))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


def _known() -> str:
  return ', '.join(FAMILIES)
