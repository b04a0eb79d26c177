"""Functions and classes of this package as their source states them, without importing it."""

from __future__ import annotations

import ast
import functools
import pathlib
from typing import NamedTuple

import cascades

_ROOT = pathlib.Path(cascades.__file__).parents[1]


class Definition(NamedTuple):
  """A function or class, and the module that defines it."""

  module: str
  node: ast.FunctionDef | ast.ClassDef


@functools.cache
def tree(module: str) -> ast.Module:
  """Syntax tree of a module of this package; empty for other modules."""
  path = _ROOT.joinpath(*module.split('.'))
  files = (path.with_suffix('.py'), path / '__init__.py')
  file = next((file for file in files if file.is_file()), None)
  return ast.parse(file.read_text(encoding='utf-8') if file else '')


def doc(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
  return ast.get_docstring(node) or ''


def definition(module: str, name: str) -> Definition | None:
  """Definition of a dotted name as a module sees it, if this package has it."""
  first, _, rest = name.partition('.')
  for node in tree(module).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
      return Definition(module, node)
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
      for alias in node.names:
        if first == (alias.asname or alias.name):
          source = (f'{node.module}.{alias.name}', rest) if rest else (node.module, alias.name)
          return definition(*source)
  return None


def arguments(function: Definition) -> dict[str, list[Definition]]:
  """Arguments of a function, each with the config objects (dataclasses) that it may be."""
  assert isinstance(function.node, ast.FunctionDef)
  every = function.node.args.args + function.node.args.kwonlyargs
  return {
    each.arg: [
      member
      for name in _members(each.annotation)
      if (member := definition(function.module, name)) and _is_dataclass(member.node)
    ]
    for each in every
    if each.annotation
  }


def _members(annotation: ast.expr | None) -> list[str]:
  """The types of a union, or the one type, as dotted names."""
  if isinstance(annotation, ast.BinOp):
    return _members(annotation.left) + _members(annotation.right)
  return [ast.unparse(annotation)] if isinstance(annotation, ast.Name | ast.Attribute) else []


def _is_dataclass(node: ast.FunctionDef | ast.ClassDef) -> bool:
  decorators = ' '.join(map(ast.unparse, node.decorator_list))
  return isinstance(node, ast.ClassDef) and 'dataclass' in decorators
