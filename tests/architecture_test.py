"""Holds the architecture: who may import whom, how long a file and a function may be."""

import ast
import pathlib
import statistics
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = sorted((ROOT / 'cascades').rglob('*.py'))
TESTS = sorted((ROOT / 'tests').rglob('*.py'))

EQUATIONS = {
  'losses', 'masks', 'teachers', 'deferral', 'learned_deferral', 'routing', 'speculative',
  'online', 'metrics', 'confusion', 'correlation', 'costs', 'curves', 'grouped',
  'bootstrap', 'tables', 'pooling', 'comparison', 'rows', 'referents', 'lora', 'quantization',
  'blockwise', 'flops', 'chips', 'hlo', 'hlo_costs',
}  # fmt: skip
# Put together out of the machinery, for several programs.
SHARED = {'assembly', 'cached', 'journal', 'loading', 'planning', 'usage', 'validating'}
PROGRAMS = {
  'train', 'infer', 'evaluate', 'convert', 'export', 'prune', 'plan', 'cache_teacher',
}  # fmt: skip
ONLY_IN = {
  'gin': {'cli'},
  'seqio': {'tasks'},
  'tensorflow': {'tasks'},
  'tensorflow_datasets': {'tasks'},
  'grain': {'tasks'},
  'orbax': {'checkpoints'},
}
FORBIDDEN_IN_EQUATIONS = {'absl', 'etils', 'flax', 'logging', 'os', 'pathlib', 'time'}


def _module(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _imports(path: pathlib.Path) -> set[str]:
  """Dotted names of everything that a file imports, wherever in the file."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _upward_import(node: ast.stmt) -> bool:
  """`if __name__ == '__main__':`, the one place where a program imports the command line."""
  return isinstance(node, ast.If) and "__name__ == '__main__'" in ast.unparse(node.test)


def _place(module: str) -> str:
  """The file, or the folder of F2, that a module lives in."""
  parts = module.split('.')
  return parts[1] if len(parts) > 1 else ''


def _floor(place: str) -> int:
  if place in ('', 'types', 'axes', 'files', 'gguf_files'):
    return 0
  if place in EQUATIONS:
    return 1
  if place in SHARED:
    return 3
  if place in PROGRAMS:
    return 4
  return 5 if place == 'cli' else 2


def _ours(path: pathlib.Path) -> set[str]:
  known = {_module(source) for source in SOURCES}
  tree = ast.parse(path.read_text())
  tree.body = [node for node in tree.body if not _upward_import(node)]
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names if alias.name in known}
    elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'cascades':
      for alias in node.names:
        dotted = f'{node.module}.{alias.name}'
        names.add(dotted if dotted in known else node.module)
  return names - {'cascades'}


@pytest.mark.parametrize('path', SOURCES, ids=_module)
def test_a_file_imports_only_from_lower_floors(path):
  here = _place(_module(path))
  for name in _ours(path):
    there = _place(name)
    if there == here:
      continue
    assert _floor(there) < _floor(here) or _floor(here) == _floor(there) in (1, 3), (
      f'{_module(path)} (floor {_floor(here)}) imports {name} (floor {_floor(there)})'
    )


@pytest.mark.parametrize('path', SOURCES, ids=_module)
def test_libraries_stay_in_their_rooms(path):
  here = _place(_module(path))
  for name in _imports(path):
    library = name.split('.')[0]
    assert here in ONLY_IN.get(library, {here}), f'{_module(path)} imports {library}'
    if here in EQUATIONS:
      assert library not in FORBIDDEN_IN_EQUATIONS, f'{_module(path)} is pure and imports {library}'


def test_there_is_no_import_cycle():
  graph = {_module(path): _ours(path) for path in SOURCES}
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
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f'{_module(path)} wants to be two files'
    lengths += [
      node.end_lineno - node.lineno + 1
      for node in ast.walk(ast.parse(text))
      if isinstance(node, ast.FunctionDef)
    ]
  assert statistics.quantiles(lengths, n=10)[-1] <= 45


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


def test_equations_and_programs_do_not_import_tensorflow():
  modules = [
    'cascades.types',
    *(_module(p) for p in SOURCES if _place(_module(p)) in EQUATIONS | PROGRAMS),
  ]
  loaded = _modules_after('; '.join(f'import {name}' for name in modules))
  assert 'tensorflow' not in loaded
