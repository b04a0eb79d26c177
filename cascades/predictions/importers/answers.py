"""Answers as importers give them, and the reading of values from foreign JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from cascades.predictions.rows import NO_DETAILS, Details

LEAST = -9999.0  # servers write it for a token that is none of the most likely


class Answer(NamedTuple):
  """One answer of a source.

  Attributes:
    id: Name of the example; None where its place in the source is its only name.
    prediction: Text of the answer.
    inputs: Prompt, or None if the source does not hold it.
    targets: Accepted answers, or None.
    logprobs: Log-probabilities of the answer's tokens; None if the source does not hold them.
    qualities: Quality in [0, 1] by the source's own judgement, by name of a metric.
    details: Optional columns.
    model: Name of the model.
    is_cut_off: True if the answer reached the largest number of tokens.
    line: Its line in the source.
  """

  id: str | None
  prediction: str
  inputs: str | None = None
  targets: Sequence[str] | None = None
  logprobs: Sequence[float] | None = None
  qualities: Mapping[str, float] = MappingProxyType({})
  details: Details = NO_DETAILS
  model: str = ''
  is_cut_off: bool = False
  line: int = 0


def number(value: Any, name: str) -> float:
  """Finite number of a JSON value or of a text.

  Raises:
    ValueError: naming the field and the value found.
  """
  try:
    result = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    result = math.nan
  if not math.isfinite(result):
    raise ValueError(f'{name}: expected a finite number, found {value!r:.80}')
  return result


def field(record: Any, name: str, expected: type | tuple[type, ...], default: Any = ...) -> Any:
  """Value of a key of a JSON object, of a type.

  Args:
    record: The object.
    name: The key.
    expected: Type or types of the value.
    default: Value where the key is absent or null; if not given, it must be there.

  Raises:
    ValueError: naming the key, the type expected and the value found.
  """
  if not isinstance(record, Mapping):
    raise ValueError(f'expected an object with {name!r}, found {record!r:.80}')
  value = record.get(name)
  if value is None and default is not ...:
    return default
  if not isinstance(value, expected):
    types = expected if isinstance(expected, tuple) else (expected,)
    names = ' or '.join(each.__name__ for each in types)
    raise ValueError(f'{name}: expected {names}, found {value!r:.80}')
  return value


def probability(chosen: Any, alternatives: Sequence[float]) -> float:
  """Log-probability of a token; for one below all listed tokens, that of the last of them.

  Raises:
    ValueError: if the token is below all listed tokens and none is listed.
  """
  value = number(chosen, 'logprob')
  if value > LEAST:
    return value
  if not alternatives:
    raise ValueError(
      f'logprob: {value} says that the token is none of the most likely, and none is listed: '
      'request `top_logprobs`'
    )
  return min(alternatives)
