"""Functions and other values as JSON, so that a later run can tell whether they are the same.

A function is its name, its arguments, and the variables that it was made with. Of functions that
the user wrote, the source and the numbers of their module that it reads count as well.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import pathlib
import re
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

_DEPTH = 6  # of nested closures and configs
_MOST_CHARACTERS = 2000  # of longer values a digest is recorded
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_STANDARD = pathlib.Path(sysconfig.get_path('stdlib')).resolve()


def plain(value: Any, *, bound: Mapping[str, Any], depth: int = _DEPTH) -> Any:
  """A value as JSON.

  Args:
    value: Anything that a setting may be.
    bound: Arguments bound to functions by the command line, by selector and argument.
    depth: Of nested values; deeper ones are named by their type.
  """
  deeper = functools.partial(plain, bound=bound, depth=depth - 1)
  if isinstance(value, float) and not math.isfinite(value):
    return repr(value)  # JSON has none
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, np.generic):
    return plain(value.item(), bound=bound)
  if not depth:
    return type(value).__name__
  if isinstance(value, np.ndarray | jax.Array):
    array = np.asarray(value)
    text = f'{array.dtype} {array.shape} {array.tolist()}'
    return {'type': type(value).__name__, 'value': digest(text)}
  if isinstance(value, Mapping):
    return _short({str(key): deeper(item) for key, item in value.items()})
  if hasattr(value, '_asdict'):
    return deeper(value._asdict())
  if isinstance(value, set | frozenset):
    return _short(sorted(map(deeper, value), key=json.dumps))
  if isinstance(value, list | tuple):
    return _short([deeper(item) for item in value])
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {'function': type(value).__name__, **deeper(fields)}
  if isinstance(value, types.ModuleType):
    return value.__name__
  if not callable(value):
    return {'type': type(value).__name__, 'value': _of_object(value, deeper)}
  function = inspect.unwrap(value)
  name = _name(function)
  arguments = dict(_arguments(value)) | dict(_bound(name, bound))
  short = '.'.join(name.split('.')[-2:])
  return {'function': short, **{key: deeper(item) for key, item in arguments.items()}}


def digest(text: str) -> str:
  """A short hash of a text."""
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _short(value: Any) -> Any:
  text = json.dumps(value)
  if len(text) <= _MOST_CHARACTERS:
    return value
  return {'type': type(value).__name__, 'value': digest(text)}


def _of_object(value: Any, deeper: Callable[[Any], Any]) -> Any:
  """Text that an object gives of itself, without its address; else its attributes."""
  if type(value).__repr__ is object.__repr__:
    return deeper(getattr(value, '__dict__', {}))
  return _short(re.sub(r' at 0x[0-9a-f]+', '', repr(value)))


def _name(function: Any) -> str:
  """Dotted name; of a `partial`, that of the variable in the module of its function."""
  target = function
  while isinstance(target, functools.partial):
    target = inspect.unwrap(target.func)
  module = getattr(target, '__module__', None) or ''
  variables = vars(sys.modules[module]) if module in sys.modules else {}
  named = next((name for name, value in variables.items() if value is function), None)
  return f'{module}.{named or getattr(target, "__qualname__", type(target).__name__)}'


def _arguments(function: Any) -> Iterable[tuple[str, Any]]:
  """Values that decide what a function does; of a decorated one, also what its decorators hold."""
  while hasattr(function, '__wrapped__'):
    if _is_own(function):
      yield from _variables(function, without=function.__wrapped__)
    function = function.__wrapped__
  target = function.func if isinstance(function, functools.partial) else function
  yield from _variables(target)
  if isinstance(target, types.MethodType):
    yield 'self', target.__self__
  elif not isinstance(target, type) and not hasattr(target, '__code__'):
    yield from getattr(target, '__dict__', {}).items()  # an object that can be called
  if isinstance(function, functools.partial):
    yield from ((str(index), value) for index, value in enumerate(function.args))
  try:
    signature = inspect.signature(function)
  except (ValueError, TypeError):  # written in C
    return
  for name, parameter in signature.parameters.items():
    if parameter.default is not inspect.Parameter.empty:
      yield name, parameter.default


def _variables(function: Any, without: Any = None) -> Iterator[tuple[str, Any]]:
  """Variables of the functions around a function; of the user's own, also source and numbers."""
  code, cells = getattr(function, '__code__', None), getattr(function, '__closure__', None) or ()
  if _is_own(function):
    yield 'source', digest(_source(function))
    yield from _globals(function)
  for name, cell in zip(code.co_freevars if code else (), cells, strict=True):
    try:
      content = cell.cell_contents
    except ValueError:  # not yet assigned
      continue
    if content is not without and content is not function:
      yield name, content


def _is_own(function: Any) -> bool:
  """Tell if the user wrote it: it belongs neither to this package nor to an installed one."""
  code = getattr(function, '__code__', None)
  if code is None or code.co_filename.startswith('<'):
    return False
  path = pathlib.Path(code.co_filename).resolve()
  installed = {'site-packages', 'dist-packages'} & {*path.parts}
  return not (installed or path.is_relative_to(_PACKAGE) or path.is_relative_to(_STANDARD))


def _source(function: Any) -> str:
  """The source without comments and spaces, as far as it can be told."""
  try:
    source = textwrap.dedent(inspect.getsource(function))
  except (OSError, TypeError):
    return ''
  try:
    return ast.unparse(ast.parse(source))
  except SyntaxError:  # a lambda within an expression
    return source


def _globals(function: Any) -> Iterator[tuple[str, Any]]:
  """Values and own functions among the variables of its module that a function reads."""
  codes, names = [function.__code__], dict[str, None]()
  while codes:
    code = codes.pop()
    names |= dict.fromkeys(code.co_names)
    codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
  for name in names:
    value = function.__globals__.get(name)
    if value is not function and (_is_constant(value) or _is_own(value)):
      yield name, value


def _is_constant(value: Any) -> bool:
  """Numbers, texts, and collections of them; others may be caches."""
  if isinstance(value, Mapping):
    return _is_constant([*value.keys(), *value.values()])
  if isinstance(value, list | tuple | set | frozenset):
    return all(map(_is_constant, value))
  return isinstance(value, bool | int | float | str | np.ndarray | np.generic)


def _bound(name: str, bound: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  for key, value in bound.items():
    selector, _, argument = key.rpartition('.')
    if f'.{name}'.endswith(f'.{selector}'):
      yield argument, value
