"""Values checked against type annotations, and converted where a plain text can only mean one.

Settings come from gin files and the command line, where a value may be a text that stands for
something else: `false`, `none`, `3e-4`, or `test` for a list of one split. The annotation of the
argument that it is given to decides. Annotations that cannot be evaluated accept everything.
"""

from __future__ import annotations

import abc
import collections.abc
import dataclasses
import difflib
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

BOOLEANS = {
  **dict.fromkeys(('true', 'yes', 'on', '1'), True),
  **dict.fromkeys(('false', 'no', 'off', '0'), False),
}
NONE = ('none', 'null')
_NO_ITEMS = (Literal, collections.abc.Callable, type)
# Values that are no object of a class with methods, such as a vocabulary.
PLAIN = (str, int, float, bool, list, tuple, dict, type(None))


class Deferred(abc.ABC):  # noqa: B024 - classes are registered
  """A value that is not there yet, and is accepted everywhere."""


class MisfitError(ValueError):
  """A value that its annotation does not allow: where in the value, and what is expected."""

  def __init__(self, value: Any, expected: str, where: str = '') -> None:
    super().__init__(f'{where or "the value"} is {shown(value)}; expected {expected}.')
    self.value, self.expected, self.where = value, expected, where


def shown(value: Any) -> str:
  """A value as an error names it: shortened, and with its type where that is not plain."""
  text = repr(value)
  text = text if len(text) <= 80 else f'{text[:79]}…'
  return f'the text {text}' if isinstance(value, str) else text


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


def fit(value: Any, hint: Any, *, raw: str | None = None, where: str = '') -> Any:
  """Returns `value` as its annotation wants it.

  Args:
    value: A plain value.
    hint: The annotation.
    raw: The value as typed, where it was typed as a number or another literal: a folder may be
      called 20261128.
    where: Name of the value in errors.

  Raises:
    MisfitError: The annotation does not allow the value.
  """
  types_allowed = members(hint)
  if isinstance(value, Deferred):
    return value
  if type(None) in types_allowed and (value is None or _is_word(value, NONE)):
    return None
  deepest: MisfitError | None = None
  for exact in (True, False):
    for member in types_allowed:
      try:
        return _fit(value, member, exact, raw, where)
      except MisfitError as error:
        if len(error.where) > len(where) or error.expected != describe(member):
          deepest = error
  raise deepest or MisfitError(value, describe(hint), where)


def _fit(value: Any, hint: Any, exact: bool, raw: str | None, where: str) -> Any:
  origin = _origin(hint)
  if origin in _SCALARS:
    return _SCALARS[origin](value, exact, raw, MisfitError(value, describe(hint), where))
  if origin is Literal:
    for choice in get_args(hint):
      same = value == choice and type(value) is type(choice)
      if same or (not exact and str(choice).lower() in (str(value).lower(), str(raw).lower())):
        return choice
  elif origin in (collections.abc.Callable, type):
    if callable(value):
      return value
  elif inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
    if isinstance(value, Mapping):
      return _fit_mapping(value, hint, where)
  elif inspect.isclass(origin) and _is_sequence(origin):
    if isinstance(value, Sequence) and not isinstance(value, str):
      return _fit_sequence(value, hint, where)
    if not exact and value is not None and not isinstance(value, Mapping):
      return _fit_sequence((value if raw is None else _first(value, raw, hint),), hint, where)
  elif _accepts(value, origin):
    return value
  raise MisfitError(value, describe(hint), where)


def _fit_none(value: Any, exact: bool, raw: str | None, misfit: MisfitError) -> Any:
  del exact, raw
  if value is not None:
    raise misfit
  return value


def _fit_bool(value: Any, exact: bool, raw: str | None, misfit: MisfitError) -> bool:
  del raw
  if isinstance(value, bool):
    return value
  if not exact and str(value).lower() in BOOLEANS:
    return BOOLEANS[str(value).lower()]
  raise misfit


def _fit_int(value: Any, exact: bool, raw: str | None, misfit: MisfitError) -> Any:
  del raw
  if hasattr(value, '__index__') and not isinstance(value, bool):
    return value
  if not exact and isinstance(value, str):
    try:
      return int(value)
    except ValueError:
      pass
  if isinstance(value, float) and value.is_integer():
    misfit = MisfitError(value, f'{misfit.expected}, written {value:.0f}', misfit.where)
  raise misfit


def _fit_float(value: Any, exact: bool, raw: str | None, misfit: MisfitError) -> Any:
  del raw
  if not exact and isinstance(value, str):
    try:
      value = float(value)
    except ValueError:
      raise misfit from None
  if isinstance(value, bool) or not hasattr(value, '__float__') or math.isnan(value):
    raise misfit
  return value


def _fit_str(value: Any, exact: bool, raw: str | None, misfit: MisfitError) -> str:
  if isinstance(value, str):
    return value
  if not exact and isinstance(value, list | tuple) and len(value) == 1:
    return _fit_str(value[0], exact, raw, misfit)
  if not exact and raw is not None and value is not None and not {*raw} & {*'\'"'}:
    return raw
  raise misfit


_SCALARS: dict[Any, Callable[[Any, bool, str | None, MisfitError], Any]] = {
  type(None): _fit_none,
  None: _fit_none,
  bool: _fit_bool,
  int: _fit_int,
  float: _fit_float,
  str: _fit_str,
}


def _first(value: Any, raw: str, hint: Any) -> Any:
  """The only item of a list, as typed if the list is one of texts."""
  items = get_args(hint)
  return raw if items and str in members(items[0]) and not isinstance(value, str) else value


def _fit_mapping(value: Mapping[Any, Any], hint: Any, where: str) -> Any:
  keys, values = (*get_args(hint), Any, Any)[:2]
  fitted = {
    fit(key, keys, where=f'a key of {where}'): fit(item, values, where=f'{where}[{key!r}]')
    for key, item in value.items()
  }
  return value if _same(fitted, value) else fitted


def _fit_sequence(value: Sequence[Any], hint: Any, where: str) -> Any:
  items = get_args(hint) or (Any,)
  if get_origin(hint) is tuple and items[-1:] != (...,):
    if len(items) != len(value):
      raise MisfitError(value, describe(hint), where)
  else:
    items = (items[0],) * len(value)
  named = where if len(value) == 1 else '{where}[{index}]'
  fitted = [
    fit(item, hint, where=named.format(where=where, index=index))
    for index, (item, hint) in enumerate(zip(value, items, strict=True))
  ]
  if _same(fitted, list(value)) and not (isinstance(value, list) and _origin(hint) is tuple):
    return value
  return tuple(fitted) if isinstance(value, tuple) or _origin(hint) is tuple else fitted


def _same(fitted: Any, value: Any) -> bool:
  """True if no item was converted: 1, 1.0 and True are equal, and not the same."""
  return repr(fitted) == repr(value if isinstance(value, list) else dict(value))


def members(hint: Any) -> tuple[Any, ...]:
  """The types of a union, or the one type."""
  if get_origin(hint) in (Union, types.UnionType):
    return tuple(member for each in get_args(hint) for member in members(each))
  if get_origin(hint) is typing.Annotated:
    return members(get_args(hint)[0])
  return (hint,)


def _is_word(value: Any, words: Sequence[str]) -> bool:
  return isinstance(value, str) and value.lower() in words


def _is_sequence(origin: type) -> bool:
  abstract = collections.abc.Iterable, collections.abc.Collection, collections.abc.Sequence
  return origin in (list, tuple, *abstract)


def _accepts(value: Any, origin: Any) -> bool:
  """True unless a value is certainly not of a class."""
  if not inspect.isclass(origin) or origin is object:
    return True
  if getattr(origin, '_is_protocol', False) or 'jaxtyping' in str(type(origin)):
    return not isinstance(value, PLAIN) or (origin is os.PathLike and isinstance(value, str))
  try:
    return isinstance(value, origin) or (origin is os.PathLike and isinstance(value, str))
  except TypeError:
    return True


def may_return(result: Any, hint: Any) -> bool:
  """False if a function with this result certainly gives no value of the annotation."""
  return any(_may_be(each, member) for each in members(result) for member in members(hint))


def _may_be(result: Any, hint: Any) -> bool:
  if result == hint or Any in (result, hint):
    return True
  if result in (None, type(None)):
    return hint in (None, type(None))
  result, origin = _origin(result), _origin(hint)
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


def configs(hint: Any) -> list[Any]:
  """The config objects, which are dataclasses, among the types of an annotation."""
  return [member for member in members(hint) if dataclasses.is_dataclass(member)]


def is_callable(hint: Any) -> bool:
  """True if the annotation allows a function."""
  return any(
    member in (Any, object)
    or _origin(member) in (collections.abc.Callable, type)
    or (getattr(member, '_is_protocol', False) and '__call__' in vars(member))
    or not (inspect.isclass(_origin(member)) or get_origin(member) is Literal)
    for member in members(hint)
  )


def _origin(hint: Any) -> Any:
  return get_origin(hint) or hint


def is_text(hint: Any) -> bool:
  """True if the annotation allows a text, and neither numbers nor objects."""
  texts = [_origin(member) for member in members(hint) if member is not type(None)]
  return str in texts and set(texts) <= {str, os.PathLike}


def describe(hint: Any) -> str:
  """An annotation in words: 'a whole number, or None'."""
  names = list(dict.fromkeys(_name(member) for member in members(hint)))
  return ', or '.join(sorted(names, key=lambda name: name == 'None'))


def _name(member: Any) -> str:
  origin = _origin(member)
  if origin is Literal:
    return ' or '.join(map(repr, get_args(member)))
  if inspect.isclass(origin) and _is_sequence(origin):
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


def nearest(name: str, names: typing.Iterable[str], cutoff: float = 0.6) -> str:
  """A question that names the nearest of some names, or nothing."""
  by_lower = {other.lower(): other for other in names}
  near = difflib.get_close_matches(name.lower(), by_lower, 3, cutoff)
  return f' Did you mean {" or ".join(by_lower[other] for other in near)}?' if near else ''


def of_items(hint: Any) -> Any:
  """Annotation of the items of a sequence, or of the values of a mapping; Any if unknown."""
  arguments = [get_args(member) for member in members(hint) if get_origin(member) not in _NO_ITEMS]
  items = [each[-1] if each[-1] is not ... else each[0] for each in arguments if each]
  return items[0] if len(items) == 1 else Any


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
