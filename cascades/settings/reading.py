"""Reading of gin files and bindings, with the file and line of every setting.

Every file knows the modules of `modules.known`; its own imports add to them. Files are UTF-8.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import importlib
import io
import logging
import os
import pathlib
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from gin import config_parser

from cascades.settings import hints, modules, references, type_hints

log = logging.getLogger(__name__)

# Files that are read after those of the command.
LAST_FILES = {'cascades.plan': ('runs/plan.gin',)}
# Names of earlier versions that are understood.
ALIASES = {'SPLIT': 'SPLITS'}
_GIN_ERRORS = (ValueError, NameError, AttributeError, SyntaxError, tokenize.TokenError, TypeError)


class Origin(NamedTuple):
  """File and line of a setting, or the text that was typed for it on the command line."""

  file: str = ''
  line: int = 0
  raw: str | None = None

  @property
  def by_user(self) -> bool:
    """False for the files of this package."""
    return not self.file or search_path()[0] not in pathlib.Path(self.file).resolve().parents

  def __str__(self) -> str:
    return f'{self.file}, line {self.line}: ' if self.file else ''


class GivenSettings(NamedTuple):
  """All settings of a program that were read, by their names as written.

  Attributes:
    program: Module of the program.
    imported: Modules that the user imports.
    origins: Origins of the settings.
    read_before: Keys of the settings that were read before the last files replaced some.
  """

  program: str
  imported: tuple[str, ...]
  origins: dict[str, Origin]
  read_before: frozenset[references.Key]

  @property
  def modules(self) -> tuple[str, ...]:
    return modules.known(self.program, self.imported)


def configure(
  program: str,
  files: Sequence[str],
  bindings: Sequence[str],
  search_paths: Sequence[str] = (),
  imported: Sequence[str] = (),
) -> GivenSettings:
  """Read gin files, then bindings that override them.

  Args:
    program: Module of the program, such as `cascades.train`.
    files: Gin files.
    bindings: Bindings, `NAME=value`.
    search_paths: Folders to search for gin files, besides the usual ones.
    imported: Modules whose functions bindings may name.

  Raises:
    ValueError: A file or a binding cannot be read, or names something that does not exist.
    ImportError: There is no such module.
    OSError: There is no such file.
  """
  folders = ['', *search_paths, *map(str, search_path())]
  preamble = _imported(program, imported)
  # gin takes folders here, as runs/, for packages and trips; and it reads in the locale's encoding.
  gin.config._FILE_READERS[:] = [(functools.partial(_open, preamble), os.path.isfile)]
  gin.config._LOCATION_PREFIXES[:] = folders
  settings = GivenSettings(program, tuple(imported), {}, frozenset())
  for file in files:
    _read(file, folders, settings, len(preamble))
  for old, new in ALIASES.items():
    if old in settings.origins:
      log.info('%s is called %s now.', old, new)
      gin.bind_parameter(f'{new}/macro.value', gin.query_parameter(f'{old}/macro.value'))
      settings.origins[new] = settings.origins.pop(old)
  if last := LAST_FILES.get(program, ()):
    settings = settings._replace(read_before=frozenset(references.read_keys('cascades.train')))
    for file in last:
      _read(file, folders, settings, len(preamble))
  for binding in bindings:
    _bind(binding, settings, preamble)
  return settings


def rebind(settings: GivenSettings, name: str, value: str) -> None:
  """Bind a setting to another value, written as in gin files."""
  gin.parse_config([*modules.preamble(settings.program, settings.imported), f'{name} = {value}'])


def model_of(program: str, file: str, search_paths: Sequence[str] = ()) -> Any:
  """The MODEL of a gin file. The configuration is empty before and after."""
  gin.clear_config()
  configure(program, [file], ['LARGE_MODEL = %MODEL'], search_paths)
  value = gin.config._CONFIG.get(('MODEL', references.MACRO), {}).get('value')
  if value is None or references.is_required(value):
    raise ValueError(f'--large_model={file}: the file sets no MODEL; name one as models/*.gin.')
  model = gin.get_bindings('setup.LargeModel')['config']
  gin.clear_config()
  return model


def task_of(
  file: str, bindings: Sequence[str] = (), imported: Sequence[str] = ()
) -> tuple[Any, Mapping[str, int] | None]:
  """The TASK of a gin file, and its TASK_FEATURE_LENGTHS. The configuration is empty afterwards.

  Args:
    file: A file that says which rows to read, such as README's task.gin.
    bindings: Bindings, `NAME=value`.
    imported: Modules whose functions the file may name.
  """
  gin.clear_config()
  configure('cascades.infer', ['runs/task.gin', file], bindings, imported=imported)
  task, lengths = (
    copy.deepcopy(gin.query_parameter(f'{name}/macro.value'))  # which calls what it refers to
    for name in ('TASK', 'TASK_FEATURE_LENGTHS')
  )
  gin.clear_config()
  return task, lengths if isinstance(lengths, Mapping) else None


def search_path() -> list[pathlib.Path]:
  """Folders of gin files: beside the package in a checkout, inside it in an installation."""
  package = pathlib.Path(__file__).parents[1]
  root = package if (package / 'gin_configs').is_dir() else package.parent
  return [root / 'gin_configs', root]


def _imported(program: str, imported: Sequence[str]) -> list[str]:
  for name in imported:
    try:
      importlib.import_module(name)
    except ImportError as error:
      raise ImportError(f'--import={name}: {error}{hints.of_import(error)}') from error
    except (Exception, SystemExit) as error:  # whatever the user's module does
      problem = f'{type(error).__name__}: {error}'
      raise ImportError(f'--import={name} cannot be imported: {problem}') from error
  return modules.preamble(program, imported)


def _read(file: str, folders: Sequence[str], settings: GivenSettings, offset: int) -> None:
  path = _located(file, folders)
  settings.origins.update((name, origin) for name, _, origin in scan(path, folders))
  with _explained('', settings, offset):
    gin.parse_config_file(path)


def _located(file: str, folders: Sequence[str]) -> str:
  paths = [os.path.join(folder, file) for folder in folders]
  for path in paths:
    if os.path.isfile(path):
      return path
  names = {
    os.path.relpath(path, folder)
    for folder in folders[1:]
    for path in pathlib.Path(folder).glob('*/*.gin')
  }
  searched = ', '.join(repr(os.path.dirname(path) or '.') for path in paths)
  raise FileNotFoundError(f'there is no gin file {file} in {searched}.{hints.nearest(file, names)}')


def _text(path: str) -> str:
  try:
    return pathlib.Path(path).read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = error.object[: error.start].count(b'\n') + 1
    raise ValueError(f'{path}, line {line}: a gin file is UTF-8, and this is not.') from error


def _open(preamble: Sequence[str], path: str) -> io.StringIO:
  """A gin file for gin's parser, which enables dynamic registration and imports for each file."""
  text = re.sub(r'^from __gin__ import dynamic_registration', '#', _text(path), flags=re.M)
  file = io.StringIO('\n'.join([*preamble, text]))
  file.name = path
  return file


class _AsWritten(config_parser.ParserDelegate):
  """Leaves references as they are written."""

  def configurable_reference(self, scoped_selector: str, evaluate: bool) -> str:
    return f'@{scoped_selector}{"()" if evaluate else ""}'

  def macro(self, name: str) -> str:
    return f'%{name}'


def scan(path: str, folders: Sequence[str]) -> Iterator[tuple[str, Any, Origin]]:
  """Yield the settings of a file and of those that it includes, in order.

  Values are plain; references are texts as they are written.
  """
  line = 1
  try:
    for statement in config_parser.ConfigParser(_text(path), _AsWritten()):
      line = statement.location.line_num
      if isinstance(statement, config_parser.IncludeStatement):
        yield from scan(_located(statement.filename, folders), folders)
      elif isinstance(statement, config_parser.BindingStatement):
        name = written(statement.scope, statement.selector, statement.arg_name)
        yield name, statement.value, Origin(path, line)
  except SyntaxError as error:
    line, content = (error.lineno or line), (error.text or '').strip()
    message = str(error.msg).splitlines()[0]
    if 'malformed node' in message or message == 'Unable to parse value.':
      message = 'this is no value; texts stand in quotes, and True, False and None are capitalized:'
    raise ValueError(f'{path}, line {line}: {message} {content!r:.200}') from error
  except tokenize.TokenError as error:
    raise ValueError(
      f'{path}: the file ends inside a bracket or text that is opened in or after line {line}.'
    ) from error
  except RecursionError as error:
    raise ValueError(
      f'{path}: gin files include each other in a circle, or a value is nested too deeply.'
    ) from error


def written(scope: str, selector: str, argument: str) -> str:
  """A setting's name in gin files."""
  return (f'{scope}/' if scope else '') + selector + (f'.{argument}' if argument else '')


def _bind(binding: str, settings: GivenSettings, preamble: Sequence[str]) -> None:
  """Bind a setting of the command line.

  A value that is neither a reference nor a Python literal is text: NAME=runs/demo/large. So is
  one that gin cannot read, if a text is wanted: NAME=[a]/x. A program's function has its module's
  name, so train.seed is short for train.train.seed.
  """
  name, equals, raw = map(str.strip, binding.partition('='))
  short = settings.program.rpartition('.')[2]
  if re.fullmatch(rf'{short}\.\w+', name):
    name = f'{short}.{name}'
  if not equals or not raw:
    raise ValueError(f'{binding!r} gives {name} no value: write --gin.{name or "NAME"}=VALUE.')
  if name in ALIASES:
    log.info('%s is called %s now.', name, ALIASES[name])
    name = ALIASES[name]
  parse = lambda value: gin.parse_config([*preamble, f'{name} = {value}'])
  expected = [hint for hint in references.hints_of(settings.program, name) if hint is not Any]
  text = bool(expected) and all(map(type_hints.is_text, expected))
  settings.origins[name] = Origin(raw=raw)
  with _explained(f'{name}={raw}: ', settings, 0):
    if raw[0] not in '@%([{':
      parse(_literal(raw))
      return
    try:
      parse(raw)
    except (*_GIN_ERRORS, ImportError):
      if not text:
        raise
      parse(repr(raw))
    if text and raw[0] == '%' and not references.is_bound(raw[1:]):
      parse(repr(raw))


def _literal(raw: str) -> str:
  try:
    value = ast.literal_eval(raw)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return repr(raw)
  # gin reads neither +5 nor numbers that overflow; and after a # Python reads no further.
  readable = isinstance(value, str | int | float | None) and value not in (1e999, -1e999)
  return repr(value) if readable and (isinstance(value, str) or '#' not in raw) else repr(raw)


@contextlib.contextmanager
def _explained(prefix: str, settings: GivenSettings, offset: int) -> Iterator[None]:
  """Context manager that turns gin's errors into one sentence with a suggestion."""
  try:
    yield
  except ImportError as error:
    raise ImportError(f'{_placed(error, prefix, offset)}{hints.of_import(error)}') from error
  except tokenize.TokenError as error:
    raise ValueError(f'{prefix}a bracket or a quote is not closed.') from error
  except _GIN_ERRORS as error:
    message = _placed(error, prefix, offset)
    hint = hints.of_name(message, settings.program, settings.modules)
    raise ValueError(f'{message}{hint}') from error


def _placed(error: BaseException, prefix: str, offset: int) -> str:
  """gin's message, after the file and line that it appends."""
  if isinstance(error, SyntaxError):
    return f'{prefix}{error.msg}'
  message, *locations = re.split(r'\n\s*In (?=file|bindings)', str(error))
  match = re.match(r'file "(.*)", line (\d+)', locations[0]) if locations else None
  start = f'{match[1]}, line {int(match[2]) - offset}: ' if match else prefix
  return f'{start}{hints.simplified(message)}'
