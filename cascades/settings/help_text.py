"""Help of a program: purpose, examples, settings with meaning and default, recipes, arguments.

Everything is read from files: nothing is imported, so that help is there at once.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping

from cascades.settings import sources
from cascades.settings.reading import LAST_FILES, scan, search_path

WIDTH = 100
_EXAMPLE = re.compile(r'^ {2,}(?:python -m|--|for )')
EXIT_CODES = """\
Exit codes: 0 success; 1 error; 75 ended by SIGTERM or because another process of the run was
lost. After 75 all checkpoints are complete: rerun the same command to resume."""


def exists(program: str) -> bool:
  """True for the programs that are described here; others parse their own arguments."""
  package, _, name = program.rpartition('.')
  file = search_path()[0] / 'runs' / f'{name}.gin'
  return package == 'cascades' and file.is_file() and bool(sources.definition(program, name))


def of_program(program: str, flags: Mapping[str, str]) -> str:
  """Help text of a program.

  Args:
    program: Its module, such as `cascades.train`; its function has the same name.
    flags: Meaning of the flags.
  """
  name = program.rpartition('.')[2]
  file = 'train' if LAST_FILES.get(program) else name
  folder = search_path()[0]
  text = (folder / 'runs' / f'{name}.gin').read_text(encoding='utf-8')
  sections = {
    'Examples': _examples(text),
    'Settings (--gin.NAME=VALUE), with their defaults': _wrapped(_settings(f'runs/{file}.gin', {})),
    'Recipes (--gin_file=recipes/...)': _recipes(file),
    'Arguments, and the settings that give them': _wrapped(
      _arguments(program, _macros(str(folder / 'runs' / f'{file}.gin')))
    ),
    'Flags': _wrapped({f'--{flag}': meaning for flag, meaning in sorted(flags.items())}),
  }
  lines = _purpose(sources.doc(sources.tree(program)))
  for title, section in sections.items():
    if body := list(section):
      lines += ['', f'{title}:', '', *body]
  return '\n'.join([*lines, '', EXIT_CODES])


def _purpose(doc: str) -> list[str]:
  """A program's docstring without its commands, which the examples show."""
  paragraphs = [text for text in doc.split('\n\n') if not _EXAMPLE.match(text)]
  return '\n\n'.join(paragraphs).splitlines()


def _examples(text: str) -> Iterator[str]:
  """Lines of the commands in a gin file's first comment."""
  for line in text.splitlines():
    if not line.startswith('#'):
      return
    if _EXAMPLE.match(line[1:]):
      yield line[1:]


def _settings(file: str, settings: dict[str, str]) -> dict[str, str]:
  """Meaning of each macro of a gin file and of those that it includes, by 'NAME = default'."""
  name = ''
  for line in (search_path()[0] / file).read_text(encoding='utf-8').splitlines():
    if include := re.match(r"include '(.+)'", line):
      _settings(include[1], settings)
    elif setting := re.match(r'([A-Z][A-Z0-9_]*) = (.*?)(?:  # (.*))?$', line):
      name = setting[1]
      settings.pop(next((key for key in settings if key.split()[0] == name), ''), None)
      name += ' (required)' if 'REQUIRED' in setting[2] else f' = {setting[2]}'
      settings[name] = setting[3] or ''
    elif name and (more := re.match(r' +# (.*)', line)):
      settings[name] += f' {more[1]}'
    else:
      name = ''
  return settings


def _wrapped(settings: dict[str, str]) -> Iterator[str]:
  for name, meaning in settings.items():
    indent = '  ' + name.ljust(34)
    if len(name) > 34:
      yield indent
      indent = ' ' * 36
    yield from (
      textwrap.wrap(
        meaning, WIDTH, initial_indent=f'{indent}  ', subsequent_indent=' ' * 38,
        break_on_hyphens=False,
      )
      or [indent.rstrip()]
    )  # fmt: skip


def _recipes(file: str) -> Iterator[str]:
  """Recipes that include a program's gin file, directly or through another."""
  folder = search_path()[0]

  def includes(path: str) -> bool:
    text = (folder / path).read_text(encoding='utf-8')
    inner = re.findall(r"^include '(.+)'", text, re.MULTILINE)
    return f'runs/{file}.gin' in inner or any(map(includes, inner))

  for recipe in sorted((folder / 'recipes').glob('*.gin')):
    if includes(f'recipes/{recipe.name}'):
      first = recipe.read_text(encoding='utf-8').partition('\n')[0].lstrip('# ')
      yield f'  {recipe.name:34}{first}'


def _macros(file: str) -> dict[str, str]:
  """Macro that gives each argument its value, by 'module.Function.argument'."""
  folders = ['', *map(str, search_path())]
  return {
    name: value[1:]
    for name, value, _ in scan(file, folders)
    if isinstance(value, str) and value.startswith('%')
  }


def _arguments(program: str, macros: Mapping[str, str]) -> dict[str, str]:
  """Meaning of the arguments of a program and of the fields of its config objects."""
  short = program.rpartition('.')[2]
  described: dict[str, str] = {}
  function = sources.definition(program, short)
  assert function
  documented = _documented(sources.doc(function.node), 'Args')
  for name, configs in sources.arguments(function).items():
    if not configs and name not in ('provenance', 'topology', 'profile_steps'):  # flags, or ours
      described[f'{short}.{short}.{name}'] = documented.get(name, '')
    for config in configs:
      module = config.module.rpartition('.')[2]
      fields = _documented(sources.doc(config.node), 'Attributes')
      described |= {f'{module}.{config.node.name}.{key}': text for key, text in fields.items()}
  return {
    f'{name} ({macros[name]})' if name in macros else name: text for name, text in described.items()
  }


def _documented(doc: str, section: str) -> dict[str, str]:
  """Texts of a docstring's section, by name."""
  body = re.search(rf'^{section}:\n((?:  .*\n?|\n)+)', doc, re.MULTILINE)
  entries = re.split(r'^  (?=\w+:)', body[1], flags=re.MULTILINE)[1:] if body else []
  pairs = (entry.partition(':') for entry in entries)
  return {name: ' '.join(text.split()) for name, _, text in pairs}
