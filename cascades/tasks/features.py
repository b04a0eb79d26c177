"""What the fields of a published row hold, in the few kinds that rows of text need."""

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
  """The fields as TFDS would give them: a class label as its index, whatever it was written as.

  Further fields are dropped. Raises ValueError for one that is missing or of another kind.
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
        raise _wrong(name, 'an object', value)
      return {key: _value(f'{name}.{key}', of, _get(value, key)) for key, of in feature.items()}
    case [item]:
      if not isinstance(value, list | tuple):
        raise _wrong(name, 'a list', value)
      return [_value(name, item, one) for one in value]
  return _KINDS[feature](name, value)


def _text(name: str, value: Any) -> str:
  text = value.decode() if isinstance(value, bytes) else value
  if not isinstance(text, str):
    raise _wrong(name, 'text', value)
  try:
    text.encode()
  except UnicodeEncodeError:
    raise ValueError(f'{name!r} has half a surrogate pair, which is no text') from None
  return text


def _integer(name: str, value: Any) -> int:
  if isinstance(value, bool) or not isinstance(value, int):
    raise _wrong(name, 'an integer', value)
  return value


def _number(name: str, value: Any) -> float:
  """With the precision that TFDS stores."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise _wrong(name, 'a number', value)
  try:
    return struct.unpack('f', struct.pack('f', float(value)))[0]
  except OverflowError:
    raise _wrong(name, 'a number of moderate size', value) from None


def _truth(name: str, value: Any) -> bool:
  if value not in (0, 1):
    raise _wrong(name, 'true or false', value)
  return bool(value)


_KINDS: Mapping[type, Callable[[str, Any], Any]] = {
  str: _text,
  int: _integer,
  float: _number,
  bool: _truth,
}


def _label(name: str, names: tuple[str, ...], value: Any) -> int:
  found = str(value) if isinstance(value, bool) else value  # JSON's true for the label 'True'
  index = names.index(found) if found in names else found
  if not isinstance(index, int) or isinstance(index, bool) or not NO_LABEL <= index < len(names):
    raise ValueError(f'the label {value!r} of {name!r} is none of {list(names)}')
  return index


def _wrong(name: str, expected: str, value: Any) -> ValueError:
  return ValueError(f'{name!r} has {value!r:.60}, expected {expected}')
