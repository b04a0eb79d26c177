"""The command `cascades`: `cascades train ...` does what `python -m cascades.train ...` does."""

from __future__ import annotations

import ast
import difflib
import pathlib
import re
import runpy
import sys

from cascades.runtime import environment

ONLY_IN_CHECKOUTS = ('benchmarks', 'launch')
USAGE = """Usage: cascades PROGRAM [--help] [arguments]

Programs, each with its own --help:

{programs}"""


def main() -> None:
  """Run the program that the first argument names."""
  environment.prepare()
  environment.end_on_interrupt()
  name, *arguments = sys.argv[1:] or ['--help']
  summaries = programs()
  if name in ('-h', '--help'):
    lines = [f'  {program:14}{summary}' for program, summary in summaries.items()]
    print(USAGE.format(programs='\n'.join(lines)))
  elif name in summaries:
    if environment.asks_for_help(arguments):
      from cascades import cli

      cli.help_and_exit(['-m', f'cascades.{name}'])
    sys.argv[1:] = arguments
    runpy.run_module(f'cascades.{name}', run_name='__main__', alter_sys=True)
  elif name.partition('.')[0] in ONLY_IN_CHECKOUTS:
    sys.exit(
      f'cascades: error: {name} is not part of the installed package: run '
      f'`python -m {name}` in a checkout of the project.'
    )
  else:
    near = difflib.get_close_matches(name, summaries, 1)
    hint = f' Did you mean {near[0]}?' if near else ''
    print(f'cascades: error: there is no program {name!r}.{hint}', file=sys.stderr)
    print('`cascades --help` lists all programs.', file=sys.stderr)
    sys.exit(2)


def programs() -> dict[str, str]:
  """The modules that run as programs, each with the first line of its docstring."""
  package = pathlib.Path(__file__).parent
  sources = {path.stem: path.read_text() for path in package.glob('*.py')}
  sources |= {path.parent.name: path.read_text() for path in package.glob('*/__main__.py')}
  return {
    name: (ast.get_docstring(ast.parse(source)) or '').partition('\n')[0]
    for name, source in sorted(sources.items())
    if name != '__main__' and re.search(r"^if __name__ == '__main__':", source, re.MULTILINE)
  }


if __name__ == '__main__':
  main()
