"""Types of the fields of a published row: the few types that rows of text need.

Values come from JSON and from TFDS, with class labels as names, indices or booleans and texts as
bytes, which a schema validator for JSON does not convert.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

# str, int, float or bool; the names of a class label, in order; [of these]; {field: of these}.
Feature: TypeAlias = Any
Features: TypeAlias = Mapping[str, Feature]
Example: TypeAlias = Mapping[str, Any]

NO_LABEL = -1


def encode(features: Features, fields: Mapping[str, Any]) -> dict[str, Any]:
  """Converts fields to the values that TFDS gives, such as a class label to its index.

  Args:
    features: the type of each field.
    fields: a row; fields without a type are dropped.

  Returns:
    The converted fields.

  Raises:
    ValueError: if a field is missing or of another type.
  """
  return {name: _value(name, feature, _get(fields, name)) for name, feature in features.items()}


def _get(fields: Mapping[str, Any], name: str) -> Any:
  if name not in fields:
    raise ValueError(f'there is no field {name!r}; the row has {", ".join(map(repr, fields))}')
  return fields[name]


def _value(name: str, feature: Feature, value: Any) -> Any:
  match feature:
    case tuple():
      return _label(name, feature, value)
    case dict():
      if not isinstance(value, Mapping):
        raise _type_error(name, 'an object', value)
      return {key: _value(f'{name}.{key}', of, _get(value, key)) for key, of in feature.items()}
    case [item]:
      if not isinstance(value, list | tuple):
        raise _type_error(name, 'a list', value)
      return [_value(name, item, element) for element in value]
  return _CONVERSIONS[feature](name, value)


def _text(name: str, value: Any) -> str:
  text = value.decode() if isinstance(value, bytes) else value
  if not isinstance(text, str):
    raise _type_error(name, 'text', value)
  try:
    text.encode()
  except UnicodeEncodeError:
    raise ValueError(f'{name!r} has half a surrogate pair, which is no text') from None
  return text


def _integer(name: str, value: Any) -> int:
  if isinstance(value, bool) or not isinstance(value, int):
    raise _type_error(name, 'an integer', value)
  return value


def _number(name: str, value: Any) -> float:
  """The number in float32, the precision that TFDS stores."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _type_error(name, 'a number', value)
  try:
    return struct.unpack('f', struct.pack('f', float(value)))[0]
  except OverflowError:
    raise _type_error(name, 'a number of moderate size', value) from None


def _truth(name: str, value: Any) -> bool:
  if value not in (0, 1):
    raise _type_error(name, 'true or false', value)
  return bool(value)


_CONVERSIONS: Mapping[type, Callable[[str, Any], Any]] = {
  str: _text,
  int: _integer,
  float: _number,
  bool: _truth,
}


def _label(name: str, names: tuple[str, ...], value: Any) -> int:
  label = str(value) if isinstance(value, bool) else value  # JSON's true for the label 'True'
  index = names.index(label) if label in names else label
  if not isinstance(index, int) or isinstance(index, bool) or not NO_LABEL <= index < len(names):
    raise ValueError(f'the label {value!r} of {name!r} is none of {list(names)}')
  return index


def _type_error(name: str, expected: str, value: Any) -> ValueError:
  return ValueError(f'{name!r} has {value!r:.60}, expected {expected}')
