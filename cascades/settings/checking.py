"""Checks of all settings before a program starts: types, functions, what is missing or not read."""

from __future__ import annotations

import inspect
import logging
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin

from cascades.settings import hints, modules, reading, references, type_hints, typed
from cascades.settings.reading import GivenSettings
from cascades.settings.references import MACRO, Use

log = logging.getLogger(__name__)


def refuse(message: str) -> None:
  """Reaction to a setting that nothing reads: an error."""
  raise ValueError(message)


def warn(message: str) -> None:
  """Reaction to a setting that nothing reads: a line in the log."""
  log.warning('%s', message)


def finish(
  settings: GivenSettings,
  *,
  optional: frozenset[str] = frozenset(),
  on_unread: Callable[[str], None] = refuse,
) -> None:
  """Check all settings, convert texts to the types that are wanted, and lock gin's configuration.

  Args:
    settings: What `reading.configure` returned.
    optional: Macros that become None where files require them.
    on_unread: Reaction to a setting of the user's that nothing reads.

  Raises:
    ValueError: A setting has the wrong type, is missing, or is not read by anything.
  """
  references.check_circles()
  for use in references.uses(settings.program):
    if isinstance(use.value, typed.Deferred):
      _check_reference(use, settings)
  _require(settings, optional)
  for _ in range(1000):  # a value that is replaced may refer to other settings
    if not any(_replaced(use, settings) for use in references.uses(settings.program)):
      break
  for reference, hint in references.functions(settings.program):
    _check_call(reference, hint, settings)
  for message in _unread(settings):
    on_unread(message)
  gin.finalize()


def _require(settings: GivenSettings, optional: frozenset[str]) -> None:
  """Check that everything required is given; what is required and not read becomes None."""
  missing = []
  for use in list(references.uses(settings.program)):
    if use.value is references.UNBOUND or references.is_required(use.value):
      if use.name in optional:
        _bind(use, None)
      elif use.name not in missing:
        missing.append(use.name)
  missing = missing or list(_arguments_without_values(settings))
  if missing:
    first = f'{missing[0]} is required: set it with --gin.{missing[0]}=VALUE.'
    others = f' Also required: {", ".join(missing[1:])}.' if missing[1:] else ''
    raise ValueError(f'{first}{others}')
  for (scope, selector), values in list(gin.config._CONFIG.items()):
    for argument, value in values.items():
      if references.is_required(value):
        gin.bind_parameter((scope, selector, argument), None)


def _arguments_without_values(settings: GivenSettings) -> Iterator[str]:
  """Names of arguments without a default that no setting gives a value to."""
  program = settings.program
  root = references.root_of(program)
  last = program in reading.LAST_FILES
  if not references.bound(root) or (last and not settings.read_before):
    name = 'train' if last else program.rpartition('.')[2]
    raise ValueError(
      f'no gin file is given: name one, as --gin_file=runs/{name}.gin does, or a recipe, and set '
      f'what it requires with --gin.NAME=VALUE. `python -m {program} --help` lists both.'
    )
  given = {key[1:] for key in references.read_keys(program)}
  for reference, _ in references.functions(program):
    if reference.evaluate:
      selector, function = reference.configurable.selector, reference.configurable.wrapped
      for name, parameter in type_hints.parameters(function).items():
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not variable and (selector, name) not in given:
          yield references.name_of(('', selector, name))


def _replaced(use: Use, settings: GivenSettings) -> bool:
  """Check one value; True if it is replaced by another, which has to be checked."""
  if references.is_macro(use.value) or use.value is references.UNBOUND:
    return False
  if isinstance(use.value, typed.Deferred):
    return False
  if use.value == '' and str in type_hints.members(use.hint) and use.name in known_macros():
    raise ValueError(
      f"{_place(use, settings)}{use.name} is the text ''; expected a text that is not empty."
    )
  origin = settings.origins.get(_written(use, settings), reading.Origin())
  raw = origin.raw if origin.raw is not None and not isinstance(use.value, str) else None
  try:
    value = typed.fit(use.value, use.hint, raw=raw, where=use.name)
  except typed.MisfitError as error:
    reference = _function(use, settings) if isinstance(use.value, str) else ''
    if not reference:
      hint = _suggestion(use, settings)
      raise ValueError(f'{_place(use, settings)}{error}{hint}') from error
    reading.rebind(settings, use.name, reference)
    return True
  if repr(value) == repr(use.value):
    return False
  _bind(use, value)
  return True


def _bind(use: Use, value: Any) -> None:
  scope, selector, argument = use.key
  gin.bind_parameter((scope, selector, argument), value)


def _written(use: Use, settings: GivenSettings) -> str:
  """The name under which a value was set: bindings may name more of their module, or less."""
  if use.key[1] == MACRO:
    return use.name
  scope, selector, argument = use.key
  full = f'.{selector}.{argument}'
  for name in settings.origins:
    prefix, _, short = name.rpartition('/')
    if prefix == scope and '.' in short and full.endswith(f'.{short}'):
      return name
  return use.name


def _function(use: Use, settings: GivenSettings) -> str:
  """Reference to the function or class that a text names, if the annotation allows it."""
  fitting = {
    reference
    for name, function in modules.functions(settings.modules)
    if use.value in (name, name.rpartition('.')[2])
    and (reference := _reference(name, function, use.hint))
  }
  if len(fitting) > 1:
    raise ValueError(f'{use.name}={use.value} may be {" or ".join(sorted(fitting))}: write one.')
  return fitting.pop() if fitting else ''


def _reference(name: str, function: Any, hint: Any) -> str:
  """A reference as the annotation wants it, with or without a call; empty if it wants neither."""
  result = type_hints.of_result(function)
  if result is not Any and _is_result(result, hint):
    return f'@{name}()'
  if type_hints.is_callable(hint) and hint is not Any and not inspect.isclass(function):
    return f'@{name}'
  return ''


def _is_result(result: Any, hint: Any) -> bool:
  """True if a call of the function is wanted, and not the function."""
  return hint is not Any and type_hints.certainly_returns(result, hint)


def _check_reference(use: Use, settings: GivenSettings) -> None:
  """Check that a function may be given, or what it returns."""
  reference, hint = use.value, use.hint
  if hint is Any or references.is_required(reference) or references.is_macro(reference):
    return
  result = type_hints.of_result(reference.configurable.wrapped)
  function = f'@{reference.selector}'
  if reference.evaluate and not type_hints.may_return(result, hint):
    problem = f'returns {type_hints.describe(result)}; expected {type_hints.describe(hint)}'
    if type_hints.is_callable(hint):
      problem = f'calls the function: write {function}, without parentheses'
  elif not reference.evaluate and result is not Any and _is_result(result, hint):
    problem = f'is a function that is not called: write {function}()'
  elif not reference.evaluate and not type_hints.is_callable(hint):
    problem = f'is a function; expected {type_hints.describe(hint)}'
  else:
    return
  raise ValueError(f'{_place(use, settings)}{use.name}={reference} {problem}.')


def _place(use: Use, settings: GivenSettings) -> str:
  """File and line of a value that the user gave in a file."""
  origin = settings.origins.get(_written(use, settings), reading.Origin())
  return str(origin) if origin.by_user else ''


def _check_call(reference: Any, hint: Any, settings: GivenSettings) -> None:
  """Check that a function that is handed over can be called as its annotation says."""
  if reference.evaluate:
    return
  configurable = reference.configurable
  call = type_hints.call_of(hint)
  given = set(references.bound(configurable.selector, reference.scopes))
  if call is None or not type_hints.parameters(configurable.wrapped):
    return
  positions, names = call
  signature = inspect.signature(configurable.wrapped)
  try:
    signature.bind(*[None] * positions, **dict.fromkeys({*names, *given}))
  except TypeError as error:
    arguments = ', '.join([*['...'] * positions, *(f'{name}=...' for name in names)])
    raise ValueError(
      f'@{reference.selector} cannot be called as {reference.selector}({arguments}), which '
      f'{settings.program.rpartition(".")[2]} does: {error}.'
    ) from error


def _suggestion(use: Use, settings: GivenSettings) -> str:
  """Functions that a text may stand for."""
  if not isinstance(use.value, str) or use.hint is Any:
    return ''
  if use.name == 'TASK':
    return f' A task of the catalog is named by MIXTURE_OR_TASK_NAME={use.value}.'
  references_ = {
    name.rpartition('.')[2]: reference
    for name, function in modules.functions(settings.modules)
    if (reference := _reference(name, function, use.hint))
  }
  short = use.value.rpartition('.')[2]
  near = hints.nearest(short, references_)
  return re.sub(r'\b(\w+)(?=\?| or )', lambda match: references_.get(match[1], match[1]), near)


def _unread(settings: GivenSettings) -> Iterator[str]:
  """Yield a sentence about each setting of the user's that nothing reads.

  A file may serve several programs: there a macro that another program reads is no mistake, nor
  is what such a macro refers to.
  """
  keys = {*references.read_keys(settings.program), *settings.read_before}
  read = {references.name_of(key) for key in keys} | {'/'.join(key[:2]) for key in keys}
  macros: Mapping[str, list[str]] | None = None
  for name, origin in settings.origins.items():
    if not origin.by_user or _is_read(name, keys):
      continue
    macros = macros or known_macros()
    if origin.file and (name in macros or _is_read(name, _keys_of(macros))):
      continue
    yield f'{origin}{_explain(name, settings, macros, read)}'


def _is_read(name: str, keys: set[references.Key]) -> bool:
  scope, _, short = name.rpartition('/')
  for key_scope, selector, argument in keys:
    if selector == MACRO:
      if name == key_scope:
        return True
    elif scope == key_scope and '.' in short and f'.{selector}.{argument}'.endswith(f'.{short}'):
      return True
  return False


def _keys_of(macros: Mapping[str, list[str]]) -> set[references.Key]:
  return {use.key for name in macros for use in references.uses_of_macro(name)}


def _explain(
  name: str, settings: GivenSettings, macros: Mapping[str, list[str]], read: set[str]
) -> str:
  program = settings.program
  programs = macros.get(name, [])
  if {program.rpartition('.')[2], 'task'} & {*programs} or (name in macros and not programs):
    return f'{program} does not read {name} with these settings: no other refers to it.'
  if programs:
    return f'{program} does not read {name}, which is a setting of {", ".join(programs)}.'
  macro = name.isupper()
  near = hints.nearest(name, [other for other in read if other.isupper() or not macro])
  near = near or (hints.nearest(name, macros) if macro else '')
  if '.' not in name:
    return f'there is no setting {name}.{near} (--help lists all)'
  function = name.rpartition('.')[0]
  return f'nothing reads {name}: no setting of {program} refers to @{function}.{near}'


def known_macros() -> dict[str, list[str]]:
  """Macros of the gin files of this package, each with the programs whose file sets it."""
  macros: dict[str, list[str]] = {}
  for path in sorted(reading.search_path()[0].rglob('*.gin')):
    for name in re.findall(
      r'^([A-Z][A-Z0-9_]*) = ', path.read_text(encoding='utf-8'), re.MULTILINE
    ):
      programs = macros.setdefault(name, [])
      if path.parent.name == 'runs':
        programs.append(pathlib.Path(path).stem)
  return macros
