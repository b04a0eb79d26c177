"""The settings that a program reads: what is bound, followed from its function by reference."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import gin
from gin.config import ConfigurableReference

from cascades.settings import type_hints, typed

Key: TypeAlias = tuple[str, str, str]  # scope, full name of a function or of gin.macro, argument

MACRO = 'gin.macro'
UNBOUND = object()
typed.Deferred.register(ConfigurableReference)


class Use(NamedTuple):
  """A value that an argument gets, directly or through a macro.

  Attributes:
    key: Binding that holds the value.
    value: The value, UNBOUND if a macro has none.
    hint: Annotation of the argument.
  """

  key: Key
  value: Any
  hint: Any

  @property
  def name(self) -> str:
    """The setting's name, as in gin files."""
    return name_of(self.key)


def name_of(key: Key) -> str:
  """A setting's name in gin files: module and function, or the macro alone."""
  scope, selector, argument = key
  if selector == MACRO:
    return scope
  short = '.'.join(selector.split('.')[-2:])
  return (f'{scope}/' if scope else '') + f'{short}.{argument}'


def is_macro(value: Any) -> bool:
  """True for a reference to a macro, %NAME."""
  return isinstance(value, ConfigurableReference) and value.configurable.selector == MACRO


def is_bound(name: str) -> bool:
  """True if a macro has a value."""
  return (name, MACRO) in _config() or name == 'gin.REQUIRED'


def is_required(value: Any) -> bool:
  """True for %gin.REQUIRED."""
  return isinstance(value, ConfigurableReference) and '/'.join(value.scopes) == 'gin.REQUIRED'


def bound(selector: str, scopes: Sequence[str] = ()) -> dict[str, tuple[Key, Any]]:
  """Bindings of a function in a scope, by argument."""
  values = {}
  for end in range(len(scopes) + 1):
    scope = '/'.join(scopes[:end])
    for argument, value in _config().get((scope, selector), {}).items():
      values[argument] = ((scope, selector, argument), value)
  return values


def uses(program: str) -> Iterator[Use]:
  """Yield everything that a program reads, from its function on."""
  root = root_of(program)
  function = getattr(importlib.import_module(program), root.rpartition('.')[2])
  yield from _of_function(root, function, (), set())


def root_of(program: str) -> str:
  """gin's full name of a program's function, which is called like its module."""
  return f'{program}.{program.rpartition(".")[2]}'


def check_circles() -> None:
  """Raise ValueError if a macro is set to itself, or to others that are set to it."""
  following = {
    name: '/'.join(items['value'].scopes)
    for (name, selector), items in _config().items()
    if selector == MACRO and is_macro(items['value'])
  }
  for name in following:
    chain = [name]
    while chain[-1] in following and chain[-1] not in chain[:-1]:
      chain.append(following[chain[-1]])
    if chain[-1] in chain[:-1]:
      raise ValueError(f'{" = %".join(chain)} never becomes a value: set one of them to one.')


def uses_of_macro(name: str) -> Iterator[Use]:
  """Yield everything that is read when a macro is."""
  key = (name, MACRO, 'value')
  if (name, MACRO) in _config():
    yield from _of_value(key, _config()[name, MACRO]['value'], Any, (name,), set())


def read_keys(program: str) -> Iterator[Key]:
  """Yield the keys of all settings that a program reads."""
  for use in uses(program):
    yield use.key


def hints_of(program: str, name: str) -> list[Any]:
  """Annotations of the arguments that a macro or binding gives a value to."""
  return [use.hint for use in uses(program) if name in (use.name, '.'.join(use.key[1:]))]


def functions(program: str) -> Iterator[tuple[ConfigurableReference, Any]]:
  """Yield the functions that a program is given, each with the annotation of its argument."""
  for use in uses(program):
    for reference, hint in _inside(use.value, use.hint):
      if not is_macro(reference) and not is_required(reference):
        yield reference, hint


def _config() -> Mapping[tuple[str, str], dict[str, Any]]:
  return gin.config._CONFIG


def _of_function(
  selector: str, function: Any, scopes: Sequence[str], seen: set[Any]
) -> Iterator[Use]:
  if (selector, *scopes) in seen:
    return
  seen.add((selector, *scopes))
  hints = type_hints.of_arguments(function)
  for argument, (key, value) in bound(selector, scopes).items():
    yield from _of_value(key, value, hints.get(argument, Any), scopes, seen)


def _of_value(
  key: Key, value: Any, hint: Any, scopes: Sequence[str], seen: set[Any]
) -> Iterator[Use]:
  yield Use(key, value, hint)
  for reference, inner in _inside(value, hint):
    inside = reference.scopes or (scopes if reference.evaluate else ())
    if is_macro(reference):
      name = '/'.join(reference.scopes)
      item = _config().get((name, MACRO), {}).get('value', UNBOUND)
      if (name, MACRO, str(inner), key) not in seen:
        seen.add((name, MACRO, str(inner), key))
        yield from _of_value((name, MACRO, 'value'), item, inner, inside, seen)
    elif not is_required(reference):
      configurable = reference.configurable
      yield from _of_function(configurable.selector, configurable.wrapped, inside, seen)


def _inside(value: Any, hint: Any) -> Iterator[tuple[ConfigurableReference, Any]]:
  """Yield the references in a value, each with the annotation of its place."""
  if isinstance(value, ConfigurableReference):
    yield value, hint
  elif isinstance(value, Mapping):
    for key, item in value.items():
      yield from _inside(key, Any)
      yield from _inside(item, type_hints.of_items(hint))
  elif isinstance(value, list | tuple):
    for item in value:
      yield from _inside(item, type_hints.of_items(hint))
