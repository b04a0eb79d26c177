"""The architecture: who may import whom, where libraries live, how long files and functions are.

Floors are told from shape. A top-level file is a word of the field (no `__main__` block), a program
(a `__main__` block), or `cli`; a folder is machinery, on the one floor of `FLOORS` that names it.
Above the programs, `settings` reads gin files and checks them, `cli` uses it, and `__main__` is the
command of all programs.
"""

import ast
import collections
import functools
import itertools
import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / 'cascades').rglob('*.py'))
TESTS = sorted((ROOT / 'tests').rglob('*.py'))

FLOORS = (
  ('runtime', 'performance'),
  ('models', 'tokenizers', 'predictions'),
  ('tasks', 'checkpoints', 'evaluation'),
  ('data', 'interop', 'reporting'),
  ('training', 'inference'),
  ('serving',),
)
ABOVE = ('settings', 'cli', '__main__')  # the programs
ONLY_IN = {
  'gin': {'cli', 'settings'},
  'seqio': {'tasks', 'data'},
  'tensorflow': {'tasks', 'data'},
  'tensorflow_datasets': {'tasks', 'data'},
  'grain': {'tasks', 'data'},
  'orbax': {'checkpoints'},
}
FORBIDDEN_IN_WORDS = {
  'absl', 'etils', 'flax', 'logging', 'orbax', 'os', 'pathlib', 'seqio', 'tensorflow', 'time',
}  # fmt: skip


def _module(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {_module(path): path for path in SOURCES}


@functools.cache
def _body(path: pathlib.Path) -> list[ast.stmt]:
  return ast.parse(path.read_text()).body


@functools.cache
def _nodes(path: pathlib.Path) -> list[ast.AST]:
  """All nodes of a file, but for the `__main__` block of a program."""
  body = [node for node in _body(path) if not _is_main_block(node)]
  return [*ast.walk(ast.Module(body, []))]


@functools.cache
def _imports(path: pathlib.Path) -> set[str]:
  """Dotted names of everything that a file imports, wherever in the file."""
  names = set()
  for node in itertools.chain.from_iterable(map(ast.walk, _body(path))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _is_main_block(node: ast.stmt) -> bool:
  """`if __name__ == '__main__':`, the one place where a program imports the command line."""
  return isinstance(node, ast.If) and "__name__ == '__main__'" in ast.unparse(node.test)


@functools.cache
def _floor(module: str) -> int:
  """0 for words of the field, then the packages, then programs, then the command line.

  Raises ValueError for a module that the house has no room for.
  """
  _, room, *rest = module.split('.')
  if room in ABOVE:
    return len(FLOORS) + 2 + ABOVE.index(room)
  if rest or MODULES[module].name == '__init__.py':
    floors = [number for number, rooms in enumerate(FLOORS, 1) if room in rooms]
    if len(floors) != 1:
      raise ValueError(f'no floor holds the folder cascades/{room}: see FLOORS.')
    return floors[0]
  return len(FLOORS) + 1 if any(map(_is_main_block, _body(MODULES[module]))) else 0


def _room(module: str) -> str:
  return module.split('.')[1]


@functools.cache
def _imported_modules(path: pathlib.Path) -> set[str]:
  """Modules of this package that a file imports, but for the command line in its `__main__`."""
  names = set()
  for node in _nodes(path):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names if alias.name in MODULES}
    elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'cascades':
      for alias in node.names:
        dotted = f'{node.module}.{alias.name}'
        names.add(dotted if dotted in MODULES else node.module)
  return names - {'cascades'}


WORDS = [name for name in MODULES if name != 'cascades' and _floor(name) == 0]
PROGRAMS = [name for name in MODULES if name != 'cascades' and _floor(name) == len(FLOORS) + 1]


@pytest.mark.parametrize('module', sorted(MODULES.keys() - {'cascades'}))
def test_a_file_imports_only_from_lower_floors(module):
  floor = _floor(module)
  for name in _imported_modules(MODULES[module]):
    if floor == 0 == _floor(name) or _room(name) == _room(module):
      continue
    assert _floor(name) < floor, (
      f'{module} (floor {floor}) imports {name} (floor {_floor(name)}): siblings do not know each '
      'other, and nobody looks up.'
    )


def test_a_folder_in_no_floor_is_an_error(monkeypatch):
  path = ROOT / 'cascades' / 'helpers' / 'strings.py'
  monkeypatch.setitem(MODULES, 'cascades.helpers.strings', path)
  with pytest.raises(ValueError, match='no floor holds the folder cascades/helpers'):
    _floor('cascades.helpers.strings')


@pytest.mark.parametrize('module', MODULES)
def test_libraries_stay_in_their_rooms(module):
  room = module.split('.')[1] if '.' in module else ''
  for name in _imports(MODULES[module]):
    library = name.split('.')[0]
    assert room in ONLY_IN.get(library, {room}), f'{module} imports {library}'
    if module in WORDS:
      assert library not in FORBIDDEN_IN_WORDS, f'{module} is pure and imports {library}'


@pytest.mark.parametrize('above', ['benchmarks', 'experiments', 'launch', 'tests'])
def test_nothing_imports_what_stands_above_the_package(above):
  assert not [name for name, path in MODULES.items() if above in map(_top, _imports(path))]


def _top(name: str) -> str:
  return name.split('.')[0]


def test_there_is_no_import_cycle():
  graph = {name: _imported_modules(path) for name, path in MODULES.items()}
  done: set[str] = set()

  def visit(name: str, trail: tuple[str, ...]) -> None:
    assert name not in trail, ' -> '.join((*trail, name))
    if name not in done:
      for other in graph.get(name, ()):
        visit(other, (*trail, name))
      done.add(name)

  for name in graph:
    visit(name, ())


def test_files_and_functions_stay_short():
  lengths = []
  for path in SOURCES:
    assert len(path.read_text().splitlines()) <= 400, f'{_module(path)} wants to be two files'
    lengths += [
      node.end_lineno - node.lineno + 1
      for node in _nodes(path)
      if isinstance(node, ast.FunctionDef)
    ]
  assert statistics.quantiles(lengths, n=10)[-1] <= 45


# Names that say nothing: a reader has to look up what they hold.
FILLERS = {
  'found', 'held', 'kept', 'kind', 'known', 'made', 'one', 'ours', 'part', 'parts', 'place',
  'places', 'said', 'some', 'theirs', 'there', 'wanted', 'whole',
}  # fmt: skip
# Openers of docstrings that read as a riddle; a verb or a noun phrase says what a thing does or is.
OPENERS = {'What', 'How', 'Which', 'Where', 'Whether', 'Within', 'Who', 'When', 'Why'}
# 'unlabelled' is a key of manifests on disk, CancelledError a name of the standard library.
BRITISH = re.compile(
  r'(normal|token|quant|optim|initial|material|serial|recogn|organ|summar|general|regular|vector|'
  r'parallel|minim|maxim|random|synchron|factor|util|special|stabil|visual)is(e|ed|es|er|ers|ing|'
  r'ation|ations)\b|behaviour|neighbour|colour|favour|honour|(?<!un)labell|modell|artefact|cancell(ed(?!Error)|ing)',
  re.IGNORECASE,
)
MOST_PARAMETERS = 12


def _bindings(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Line and name of every variable and parameter that a file binds."""
  for node in _nodes(path):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      yield node.lineno, node.id
    elif isinstance(node, ast.arg):
      yield node.lineno, node.arg


def _docstrings(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  for node in _nodes(path):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
      text = ast.get_docstring(node)
      if text:
        yield getattr(node, 'lineno', 1), text


@pytest.mark.parametrize('module', MODULES)
def test_names_docstrings_and_spelling_are_those_of_the_field(module):
  path = MODULES[module]
  problems = [f'line {n}: {name} says nothing' for n, name in _bindings(path) if name in FILLERS]
  problems += [
    f'line {n}: a docstring opens with {docstring.split()[0]}'
    for n, docstring in _docstrings(path)
    if docstring.split()[0].rstrip(',') in OPENERS
  ]
  problems += [
    f'line {n}: {match[0]} is not American'
    for n, line in enumerate(path.read_text().splitlines(), 1)
    for match in BRITISH.finditer(line)
  ]
  assert not problems


@pytest.mark.parametrize('module', MODULES)
def test_no_function_has_more_parameters_than_one_can_remember(module):
  for node in _nodes(MODULES[module]):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      arguments = node.args
      count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
      assert count <= MOST_PARAMETERS, f'{module}.{node.name} has {count} parameters'


def test_one_type_name_means_one_thing():
  homes = collections.defaultdict(set)
  for module, path in MODULES.items():
    for node in _body(path):
      if isinstance(node, ast.ClassDef):
        homes[node.name].add(module)
      elif isinstance(node, ast.AnnAssign) and 'TypeAlias' in ast.unparse(node.annotation):
        homes[ast.unparse(node.target)].add(module)
  assert not {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_equations_do_not_name_settings_of_the_command_line():
  for module in WORDS:
    text = MODULES[module].read_text()
    macros = re.findall(r'\b(?:[A-Z]{3,}_)+(?:PATH|CACHE|STEPS|SIZE|DIR|K)\b', text)
    assert not macros, f'{module} names {macros}'


def test_tests_weigh_as_much_as_the_code():
  def lines(paths):
    return sum(len(path.read_text().splitlines()) for path in paths)

  assert lines(TESTS) >= 0.8 * lines(SOURCES)


def _modules_after(statement: str) -> set[str]:
  code = f'import sys; {statement}; print(*sys.modules)'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  return set(out.stdout.split())


def test_importing_the_package_imports_neither_jax_nor_tensorflow():
  assert not {'jax', 'tensorflow', 'numpy'} & _modules_after('import cascades')


def test_words_and_programs_do_not_import_tensorflow():
  loaded = _modules_after('; '.join(f'import {name}' for name in [*WORDS, *PROGRAMS]))
  assert 'tensorflow' not in loaded
