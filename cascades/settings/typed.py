"""Values checked against type annotations, and converted where a plain text can only mean one.

Settings come from gin files and the command line, where a value may be a text that stands for
something else: `false`, `none`, `3e-4`, or `test` for a list of one split. The annotation of the
argument that it is given to decides. Annotations that cannot be evaluated accept everything.
"""

from __future__ import annotations

import abc
import collections.abc
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from cascades.settings import type_hints

BOOLEANS = {
  **dict.fromkeys(('true', 'yes', 'on', '1'), True),
  **dict.fromkeys(('false', 'no', 'off', '0'), False),
}
NONE = ('none', 'null')


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
  types_allowed = type_hints.members(hint)
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
        if len(error.where) > len(where) or error.expected != type_hints.describe(member):
          deepest = error
  raise deepest or MisfitError(value, type_hints.describe(hint), where)


def _fit(value: Any, hint: Any, exact: bool, raw: str | None, where: str) -> Any:
  origin = type_hints.origin_of(hint)
  if origin in _SCALARS:
    return _SCALARS[origin](value, exact, raw, MisfitError(value, type_hints.describe(hint), where))
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
  elif inspect.isclass(origin) and type_hints.is_sequence(origin):
    if isinstance(value, Sequence) and not isinstance(value, str):
      return _fit_sequence(value, hint, where)
    if not exact and value is not None and not isinstance(value, Mapping):
      return _fit_sequence((value if raw is None else _first(value, raw, hint),), hint, where)
  elif _accepts(value, origin):
    return value
  raise MisfitError(value, type_hints.describe(hint), where)


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
  texts = items and str in type_hints.members(items[0])
  return raw if texts and not isinstance(value, str) else value


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
      raise MisfitError(value, type_hints.describe(hint), where)
  else:
    items = (items[0],) * len(value)
  named = where if len(value) == 1 else '{where}[{index}]'
  fitted = [
    fit(item, hint, where=named.format(where=where, index=index))
    for index, (item, hint) in enumerate(zip(value, items, strict=True))
  ]
  is_tuple = type_hints.origin_of(hint) is tuple
  if _same(fitted, list(value)) and not (isinstance(value, list) and is_tuple):
    return value
  return tuple(fitted) if isinstance(value, tuple) or is_tuple else fitted


def _same(fitted: Any, value: Any) -> bool:
  """True if no item was converted: 1, 1.0 and True are equal, and not the same."""
  return repr(fitted) == repr(value if isinstance(value, list) else dict(value))


def _is_word(value: Any, words: Sequence[str]) -> bool:
  return isinstance(value, str) and value.lower() in words


def _accepts(value: Any, origin: Any) -> bool:
  """True unless a value is certainly not of a class."""
  if not inspect.isclass(origin) or origin is object:
    return True
  if getattr(origin, '_is_protocol', False) or 'jaxtyping' in str(type(origin)):
    return not isinstance(value, type_hints.PLAIN) or (
      origin is os.PathLike and isinstance(value, str)
    )
  try:
    return isinstance(value, origin) or (origin is os.PathLike and isinstance(value, str))
  except TypeError:
    return True
