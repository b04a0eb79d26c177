"""Type annotations of arguments and results: what they allow, and their names in words.

Annotations that cannot be evaluated are Any, which allows everything.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

_NO_ITEMS = (Literal, collections.abc.Callable, type)
# Values that are no object of a class with methods, such as a vocabulary.
PLAIN = (str, int, float, bool, list, tuple, dict, type(None))


def of_arguments(function: Callable[..., Any]) -> dict[str, Any]:
  """Annotation of each argument of a function or class that has one, evaluated."""
  evaluated = {
    name: _evaluated(function, parameter.annotation)
    for name, parameter in parameters(function).items()
    if parameter.annotation is not inspect.Parameter.empty
  }
  return {name: hint for name, hint in evaluated.items() if hint is not Any}


def of_result(function: Callable[..., Any]) -> Any:
  """Type that a function returns, or the class itself; Any if that is unknown."""
  while isinstance(function, functools.partial):
    function = function.func
  if inspect.isclass(function):
    return function
  return _evaluated(function, getattr(function, '__annotations__', {}).get('return', Any))


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
  """Parameters by name; none if the function does not tell."""
  try:
    return inspect.signature(function).parameters
  except (ValueError, TypeError):
    return {}


def _evaluated(function: Any, annotation: Any) -> Any:
  while isinstance(function, functools.partial):
    function = function.func
  function = inspect.unwrap(function)
  names = getattr(function, '__globals__', None) or vars(
    sys.modules.get(getattr(function, '__module__', ''), types)
  )
  stub = types.SimpleNamespace(__annotations__={'value': annotation})
  try:
    return typing.get_type_hints(stub, globalns=dict(names))['value']
  except Exception:  # a name that is imported for type checkers only
    return Any


def members(hint: Any) -> tuple[Any, ...]:
  """The types of a union, or the one type."""
  if get_origin(hint) in (Union, types.UnionType):
    return tuple(member for each in get_args(hint) for member in members(each))
  if get_origin(hint) is typing.Annotated:
    return members(get_args(hint)[0])
  return (hint,)


def of_items(hint: Any) -> Any:
  """Annotation of the items of a sequence, or of the values of a mapping; Any if unknown."""
  arguments = [get_args(member) for member in members(hint) if get_origin(member) not in _NO_ITEMS]
  items = [each[-1] if each[-1] is not ... else each[0] for each in arguments if each]
  return items[0] if len(items) == 1 else Any


def configs(hint: Any) -> list[Any]:
  """The config objects, which are dataclasses, among the types of an annotation."""
  return [member for member in members(hint) if dataclasses.is_dataclass(member)]


def is_callable(hint: Any) -> bool:
  """True if the annotation allows a function."""
  return any(
    member in (Any, object)
    or origin_of(member) in (collections.abc.Callable, type)
    or (getattr(member, '_is_protocol', False) and '__call__' in vars(member))
    or not (inspect.isclass(origin_of(member)) or get_origin(member) is Literal)
    for member in members(hint)
  )


def is_text(hint: Any) -> bool:
  """True if the annotation allows a text, and neither numbers nor objects."""
  texts = [origin_of(member) for member in members(hint) if member is not type(None)]
  return str in texts and set(texts) <= {str, os.PathLike}


def call_of(hint: Any) -> tuple[int, list[str]] | None:
  """Number of positions and names with which a function of this annotation is called, if known."""
  functions = [member for member in members(hint) if is_callable(member)]
  if len(functions) != 1:
    return None
  (member,) = functions
  if getattr(member, '_is_protocol', False):
    _, *arguments = parameters(vars(member)['__call__']).values()
    names = [each.name for each in arguments if each.kind is each.KEYWORD_ONLY]
    return len(arguments) - len(names), names
  arguments = (*get_args(member), ...)[0]
  return (len(arguments), []) if isinstance(arguments, list) else None


def may_return(result: Any, hint: Any) -> bool:
  """False if a function with this result certainly gives no value of the annotation."""
  return any(_may_be(each, member) for each in members(result) for member in members(hint))


def _may_be(result: Any, hint: Any) -> bool:
  if result == hint or Any in (result, hint):
    return True
  if result in (None, type(None)):
    return hint in (None, type(None))
  result, origin = origin_of(result), origin_of(hint)
  if not inspect.isclass(result) or not inspect.isclass(origin):
    return not (inspect.isclass(result) and origin is Literal and not issubclass(result, str | int))
  if origin is collections.abc.Callable:
    return any('__call__' in vars(base) for base in result.__mro__)
  if getattr(origin, '_is_protocol', False):
    return result not in PLAIN
  if getattr(result, '_is_protocol', False):
    return origin not in PLAIN
  try:
    return issubclass(result, origin) or issubclass(origin, result)
  except TypeError:
    return True


def certainly_returns(result: Any, hint: Any) -> bool:
  """True if a function with this result gives a value of the annotation."""
  return any(_is_certainly(each, member) for each in members(result) for member in members(hint))


def _is_certainly(result: Any, hint: Any) -> bool:
  if result == hint:
    return result not in (Any, type(None))
  if not inspect.isclass(result) or not inspect.isclass(hint):
    return False
  if getattr(hint, '_is_protocol', False):
    if '__call__' in vars(hint):
      return False
    fields = {*dir(result), *getattr(result, '__dataclass_fields__', ())}
    return result not in PLAIN and {name for name in vars(hint) if name[0] != '_'} <= fields
  return result not in PLAIN and issubclass(result, hint)


def describe(hint: Any) -> str:
  """An annotation in words: 'a whole number, or None'."""
  names = list(dict.fromkeys(_name(member) for member in members(hint)))
  return ', or '.join(sorted(names, key=lambda name: name == 'None'))


def _name(member: Any) -> str:
  origin = origin_of(member)
  if origin is Literal:
    return ' or '.join(map(repr, get_args(member)))
  if inspect.isclass(origin) and is_sequence(origin):
    items = [item for item in get_args(member) if item is not ...]
    return f'a list, each item {describe(items[0])}' if items else 'a list'
  if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
    values = get_args(member)[1:]
    return 'a mapping {key: value}' + (f', each value {describe(values[0])}' if values else '')
  names = {
    bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a text',
    type(None): 'None', os.PathLike: 'a path', collections.abc.Callable: 'a function',
  }  # fmt: skip
  if getattr(origin, '_is_protocol', False) and '__call__' in vars(origin):
    return f'a function ({origin.__name__})'
  return names.get(origin) or f'a {getattr(origin, "__name__", None) or str(origin)}'


def is_sequence(origin: type) -> bool:
  abstract = collections.abc.Iterable, collections.abc.Collection, collections.abc.Sequence
  return origin in (list, tuple, *abstract)


def origin_of(hint: Any) -> Any:
  return get_origin(hint) or hint
