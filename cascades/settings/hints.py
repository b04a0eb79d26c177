"""Suggestions in errors about names in gin files and bindings."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cascades.settings import modules, references, type_hints


def of_name(message: str, program: str, names: Sequence[str]) -> str:
  """Names that the unknown name in an error of gin may stand for."""
  parameter = re.search(r"'([\w.]+)' doesn't have a parameter named '(\w+)'", message)
  if parameter:
    near = list(_of_argument(parameter[1], parameter[2], program))
    return f' Did you mean {" or ".join(near)}?' if near else ''
  unknown = re.search(r'there is no ([\w.]+)|@([\w.]+)', message)
  if not unknown or 'no module' in message:
    return ''
  name = unknown[1] or unknown[2]
  return nearest(name, dict(modules.functions(names)))


def simplified(message: str) -> str:
  """gin's message about an unknown name, in the words of a user."""
  if match := re.match(r"Couldn't resolve selector ([\w.]+);", message):
    return f'there is no {match[1]}.'
  if match := re.match(r"'(\w+)' was not provided by an import statement", message):
    return f'no module {match[1]} is known: import your own with --import={match[1]}.'
  return message


def _of_argument(owner: str, argument: str, program: str) -> Iterator[str]:
  """Settings that an argument of a program's function may have moved to, nearest first.

  Programs take config objects: train.log_every is LOG_EVERY, which setup.Schedule gets.
  """
  bound = {use.key: references.name_of(use.key) for use in references.uses(program)}
  macros = {name for (_, selector, _), name in bound.items() if selector == references.MACRO}
  if argument.upper() in macros:
    yield argument.upper()
    return
  function = _function(owner, program)
  fields = [
    f'{hint.__module__.rpartition(".")[2]}.{hint.__name__}.{argument}'
    for hint in type_hints.of_arguments(function).values()
    for hint in type_hints.configs(hint)
    if argument in {field.name for field in dataclasses.fields(hint)}
  ]
  if fields:
    values = {use.name: use.value for use in references.uses(program)}
    read = [values.get(field) for field in fields]
    free = [field for field, value in zip(fields, read, strict=True) if value is None]
    yield from free or [
      str(v)[1:] if references.is_macro(v) else f for f, v in zip(fields, read, strict=True)
    ]
    return
  near = [*type_hints.parameters(function), *macros]
  match = re.match(r' Did you mean (.*)\?$', nearest(argument, near))
  if match:
    yield match[1]


def _function(owner: str, program: str) -> Any:
  for name, function in modules.functions(modules.known(program)):
    if name == owner or name.endswith(f'.{owner}'):
      return function
  return getattr(importlib.import_module(program), program.rpartition('.')[2])


def of_import(error: ImportError) -> str:
  """Imports of modules of this package whose name an import did not find."""
  package = pathlib.Path(__file__).parents[1]
  sought = re.search(r"cannot import name '(\w+)'|No module named 'cascades\.([\w.]+)'", str(error))
  stem = sought and (sought[1] or sought[2].rpartition('.')[2])
  paths = [path.relative_to(package) for path in sorted(package.rglob(f'{stem}.py'))]
  imports = ['.'.join(('cascades', *path.parts[:-1])) for path in paths]
  shown = ' or '.join(f'`from {name} import {stem}`' for name in imports)
  return f'\n  {shown} imports the module of this name.' if shown else ''


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
  """A question that names the nearest of some names, or nothing."""
  by_lower = {other.lower(): other for other in names}
  near = difflib.get_close_matches(name.lower(), by_lower, 3, cutoff)
  return f' Did you mean {" or ".join(by_lower[other] for other in near)}?' if near else ''
