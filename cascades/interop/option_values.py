"""Values of a config.json, checked for type and range before anything is computed with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cascades.checkpoints.store import CheckpointError
from cascades.models.configs import MAX_SIZE


def integer(config: Mapping[str, Any], option: str, *, least: int = 1, most: int = MAX_SIZE) -> int:
  """The whole number of an option. Raises CheckpointError for other types and sizes."""
  value = config[option]
  if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
    raise CheckpointError(
      f'{option}={shortened(value)} in config.json must be a whole number from {least} to {most}.'
    )
  return value


def number(config: Mapping[str, Any], option: str, *, zero: bool = False) -> float:
  """The positive finite number of an option (or zero). Raises CheckpointError for others."""
  value = config[option]
  valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  if not valid or value < 0 or (value == 0 and not zero):
    least = 'at least 0' if zero else 'above 0'
    raise CheckpointError(f'{option}={shortened(value)} in config.json must be a number {least}.')
  return value


def boolean(config: Mapping[str, Any], option: str, default: bool = False) -> bool:
  """The truth value of an option; texts such as 'false' are refused."""
  value = config.get(option, default)
  if value is not None and not isinstance(value, bool):
    raise CheckpointError(f'{option}={shortened(value)} in config.json must be true or false.')
  return bool(value)


def unsupported(
  model_type: str, option: str, value: object, supported: Sequence[object]
) -> CheckpointError:
  """The error for a value that the models here do not compute."""
  return CheckpointError(
    f'{option}={shortened(value)} in config.json of a {model_type} model is not supported; '
    f'supported: {", ".join(map(repr, supported))}.'
  )


def shortened(value: object, limit: int = 200) -> str:
  """The representation of a value, cut where it is long."""
  text = repr(value)
  return text if len(text) <= limit else f'{text[:limit]}...'
