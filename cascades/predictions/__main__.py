"""Check tables of predictions, and import those that other systems wrote.

    python -m cascades.predictions check runs/small/predictions/test
    python -m cascades.predictions import --format=batch --labels=labels.jsonl --metric=exact_match
      --parameters=1e9 answers.jsonl tables/small/test

`import` writes the table of one model and split. Models are compared with the tables' parents:
`python -m cascades.evaluate --gin.SMALL="{'small': 'tables/small'}" --gin.LARGE=tables/large ...`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from cascades.predictions import checks, imported
from cascades.runtime import files


def main(argv: Sequence[str] | None = None, *, escape: Callable[[str], str] = str) -> int:
  """Run a command.

  Args:
    argv: The arguments; None for those of the process.
    escape: Makes the control characters of foreign texts visible.

  Returns:
    The exit code: 0, or 1 after an error.
  """
  arguments = _parser().parse_args(argv)
  try:
    if arguments.command == 'import':
      _import(arguments)
    for line in checks.describe(files.absolute(arguments.directory), mode=arguments.mode):
      print(escape(line))
  except (ValueError, OSError) as error:
    print(escape(f'Error: {error}'), file=sys.stderr)
    return 1
  return 0


def _import(arguments: argparse.Namespace) -> None:
  fields = imported.Source.__dataclass_fields__
  source = imported.Source(**{name: getattr(arguments, name) for name in fields})
  directory = files.absolute(arguments.directory)
  imported.write(
    source,
    directory,
    task=arguments.task,
    split=arguments.split or directory.name,
    parameters=arguments.parameters,
    metric=arguments.metric,
    model=arguments.model,
    overwrite=arguments.overwrite,
  )


def _parameters(text: str) -> int:
  try:
    value = int(float(text))
  except (ValueError, OverflowError):
    value = 0
  if value < 1:
    raise argparse.ArgumentTypeError(f'expected a number such as 7e9, found {text!r}')
  return value


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='cascades.predictions',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  check = commands.add_parser('check', help='validate tables, and list what can be done with them')
  check.add_argument('--mode', default='predict', choices=('predict', 'score'))
  check.add_argument('directory', help='directory of a split')
  add = commands.add_parser('import', help='write the table of answers of another system')
  option = add.add_argument
  option('--format', required=True, choices=imported.FORMATS)
  option('--columns', default='', metavar='NAME=COLUMN,...', help='of the format `columns`')
  option('--labels', help='file with the targets by id, where the source has none')
  option('--label_columns', default='id,inputs,targets', metavar='NAME=COLUMN,...')
  option('--metric', help="judge by the targets (default: the source's judgement, or accuracy)")
  option('--task', default='imported', help='name of the task (default: %(default)s)')
  option('--split', help="name of the split (default: the directory's name)")
  option('--model', help='name of the model (default: the one that the source names)')
  option(
    '--parameters', type=_parameters, required=True,
    help='parameters of the model, or an estimate: FLOPs per token are twice as many',
  )  # fmt: skip
  option(
    '--filter',
    help='of lm-evaluation-harness; or, of a log, what all models answered: `all`, `audit`',
  )
  option('--choice', type=int, help='of responses with several')
  option('--ignore_logprobs', action='store_true', help='where only some answers have them')
  option('--overwrite', action='store_true', help='replace another table')
  option('path', metavar='SOURCE', help='JSON lines, CSV or TSV, also as .gz')
  option('directory', help='directory of the split to write')
  add.set_defaults(mode='predict')
  return parser


if __name__ == '__main__':
  from cascades.reporting import escaping

  sys.exit(main(escape=escaping.lines))
