"""Look at tasks, check their data, and prepare what training reads.

  python -m cascades.browse_tasks list
  python -m cascades.browse_tasks show superglue_rte -n 3 --sample
  python -m cascades.browse_tasks show my_data.jsonl
  python -m cascades.browse_tasks check --data_dir=data
  python -m cascades.browse_tasks prepare superglue_rte --data_dir=data --tfds_data_dir=tfds
  python -m cascades.browse_tasks download superglue_rte
  python -m cascades.browse_tasks train_vocabulary superglue flan2021 --size=8000 --output=my.model
  python -m cascades.browse_tasks materialize superglue --data_dir=data --vocabulary=my.model

TASK is a name from `list`, of a task or of a mixture, or a file: .jsonl with keys inputs and
targets (or --inputs_key and --targets_key), or .tsv with two columns, either gzipped. Without
--vocabulary a task's own is used, which is bytes for most.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from cascades.tasks import catalog, local
from cascades.tasks.task import DataSource, Mixture, Task, both
from cascades.tokenizers import vocabularies
from cascades.types import Vocabulary


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; the exit code."""
  arguments = _parser().parse_args(argv)
  level = logging.WARNING if arguments.run in (list_tasks, show) else logging.INFO
  logging.basicConfig(level=level, format='%(message)s', stream=sys.stderr)
  try:
    for module in arguments.imports:
      importlib.import_module(module)
    return arguments.run(arguments) or 0
  except (ValueError, OSError, ImportError) as error:
    print(f'Error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print('Interrupted; the same command goes on with what is missing.', file=sys.stderr)
    return 130


def list_tasks(arguments: argparse.Namespace) -> None:
  """All tasks: suite, metrics, sizes, and where their data are."""
  from cascades.tasks import listing

  mixtures = (_task(name, arguments) for name in catalog.mixtures())
  listing.print_tasks(
    list(_tasks(catalog.names(), arguments)), [one for one in mixtures if isinstance(one, Mixture)]
  )


def show(arguments: argparse.Namespace) -> None:
  """The first rows as published, as text and as tokens."""
  from cascades.tasks import listing

  task = _task(arguments.task, arguments)
  tasks = task.tasks if isinstance(task, Mixture) else (task,)
  lengths = {'inputs': arguments.inputs_length, 'targets': arguments.targets_length}
  for one in tasks:
    split = arguments.split or one.splits[0]
    listing.print_rows(one, split, arguments.n, _vocabulary(task, arguments), lengths)


def check(arguments: argparse.Namespace) -> int:
  """Read all local data: counts against the published ones, malformed rows by file and line."""
  from cascades.tasks import checking, listing

  names = arguments.tasks or catalog.names()
  arguments.malformed = 'skip'
  found = (one for task in _tasks(names, arguments) for one in checking.check(task))
  return listing.print_checked(found, also_missing=bool(arguments.tasks))


def prepare(arguments: argparse.Namespace) -> None:
  """Write TFDS directories from local files."""
  from cascades.tasks import preparing
  from cascades.tasks.sources import Sources

  root = Sources(tfds_data_dir=arguments.tfds_data_dir).tfds_root
  for origin in _origins(_tasks(arguments.tasks, arguments)):
    rows = preparing.prepare(origin, root)
    counts = ', '.join(f'{split} {count}' for split, count in rows.items())
    print(f'{origin.dataset.builder}: {counts} rows in {root}')


def _origins(tasks: Iterable[Task]) -> Iterator[DataSource]:
  """What the tasks are made from, each data set once."""
  seen: set[str] = set()
  for task in tasks:
    if task.origin is None:
      raise ValueError(f'{task.name} is not made from a published data set.')
    if task.origin.dataset.builder not in seen:
      seen.add(task.origin.dataset.builder)
      yield task.origin


def download(arguments: argparse.Namespace) -> None:
  """Let TFDS fetch and prepare the data sets of tasks."""
  from cascades.tasks import sources

  places = sources.Sources(tfds_data_dir=arguments.tfds_data_dir, allow_download=True)
  for origin in _origins(_tasks(arguments.tasks, arguments)):
    name = origin.dataset.builder
    if not origin.dataset.in_tfds:
      raise ValueError(
        f'TFDS has no builder for {name}: put {origin.required_files} below a data_dir.'
      )
    if sources.prepared_directory(origin.dataset, places):
      print(f'{name}: is there already')
    else:
      print(f'{name}: in {sources.download(origin.dataset, places)}')


def materialize(arguments: argparse.Namespace) -> None:
  """Tokenise splits once, to be read by training and inference."""
  from cascades.data import materialize as records
  from cascades.data.workers import Workers

  task = _task(arguments.task, arguments)
  vocabulary = both(_vocabulary(task, arguments))
  place = arguments.output or records.DIRECTORY
  with Workers(arguments.processes) as workers:
    for one in task.tasks if isinstance(task, Mixture) else (task,):
      for split in [arguments.split] if arguments.split else one.splits:
        made = records.materialize(one, split, vocabulary, place, workers=workers)
        longest = made.lengths.max(axis=0)
        print(
          f'{one.name} {split}: {len(made)} rows, at most {longest[0]} + {longest[1]} tokens, '
          f'in {made.directory}'
        )


def train_vocabulary(arguments: argparse.Namespace) -> None:
  """Train a SentencePiece model on the inputs and answers of tasks."""
  from cascades.tokenizers import train_sentencepiece

  tasks = _tasks([*arguments.tasks, *arguments.task], arguments)
  texts = (
    text
    for task in tasks
    for row in task.rows(arguments.split or task.splits[0])
    for text in (row.inputs, *row.answers)
    if text
  )
  made = train_sentencepiece.train_sentencepiece(
    texts, arguments.output, size=arguments.size, model_type=arguments.model_type
  )
  print(f'{arguments.output}: {made.size} ids, {made.extra_ids} of them extra ids')


def _tasks(names: Sequence[str], arguments: argparse.Namespace) -> Iterator[Task]:
  """The tasks of these names, and those of the mixtures among them."""
  if not names:
    raise ValueError('No task is named; `python -m cascades.browse_tasks list` shows them.')
  for name in names:
    found = _task(name, arguments)
    yield from found.tasks if isinstance(found, Mixture) else (found,)


def _task(name: str, arguments: argparse.Namespace) -> Task | Mixture:
  file = pathlib.Path(name.removesuffix('.gz'))
  if file.suffix == '.jsonl':
    keys = {'inputs_key': arguments.inputs_key, 'targets_key': arguments.targets_key}
    return local.local_jsonl(file.stem, {'train': name}, **keys)
  if file.suffix == '.tsv':
    return local.local_tsv(file.stem, {'train': name})
  return catalog.get(
    name,
    arguments.data_dir,
    arguments.tfds_data_dir,
    arguments.allow_download,
    sample=arguments.sample,
    malformed=arguments.malformed,
    allow_remote=arguments.allow_remote,
  )


def _vocabulary(task: Task | Mixture, arguments: argparse.Namespace) -> Vocabulary:
  path = arguments.vocabulary
  if path:
    return vocabularies.sentencepiece(path, allow_remote=arguments.allow_remote)
  # Span corruption needs sentinels, of which bytes have none unless asked.
  is_c4 = isinstance(task, Task) and task.suite == 'c4'
  return vocabularies.bytes_vocabulary(100) if is_c4 else task.vocabulary()


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m cascades.browse_tasks',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(metavar='COMMAND', required=True)

  places = argparse.ArgumentParser(add_help=False)
  places.add_argument('--data_dir', help='folder of official files, such as BoolQ/val.jsonl')
  places.add_argument('--tfds_data_dir', help='folder of prepared TFDS data sets')
  places.add_argument('--allow_download', action='store_true', help='fetch what is not there')
  places.add_argument('--allow_remote', action='store_true', help='accept paths such as gs://...')
  places.add_argument('--sample', action='store_true', help='the hand-written rows that ship')
  places.add_argument(
    '--malformed', choices=('error', 'skip'), default='error', help='rows that cannot be used'
  )
  places.add_argument('--inputs_key', default='inputs', help='of the lines of a .jsonl file')
  places.add_argument('--targets_key', default='targets', help='of the lines of a .jsonl file')
  places.add_argument(
    '--import', dest='imports', metavar='MODULE', action='append', default=[],
    help='a module that registers SeqIO tasks; may be repeated',
  )  # fmt: skip

  def command(
    function: Callable[[argparse.Namespace], int | None], name: str
  ) -> argparse.ArgumentParser:
    summary = inspect.getdoc(function)
    added = commands.add_parser(name, parents=[places], help=summary, description=summary)
    added.set_defaults(run=function)
    return added

  command(list_tasks, 'list')

  added = command(show, 'show')
  added.add_argument('task', metavar='TASK')
  added.add_argument('-n', type=int, default=3, help='how many rows (3)')
  added.add_argument('--split', help="the task's first, if not given")
  added.add_argument('--vocabulary', help='a SentencePiece model')
  added.add_argument('--inputs_length', type=int, default=512, help='tokens kept (512)')
  added.add_argument('--targets_length', type=int, default=128, help='tokens kept (128)')

  added = command(check, 'check')
  added.add_argument('tasks', metavar='TASK', nargs='*', help='all that have data, if none')

  for function, name in ((prepare, 'prepare'), (download, 'download')):
    command(function, name).add_argument('tasks', metavar='TASK', nargs='+')

  added = command(materialize, 'materialize')
  added.add_argument('task', metavar='TASK')
  added.add_argument('--split', help='all splits, if not given')
  added.add_argument('--vocabulary', help='a SentencePiece model')
  added.add_argument('--output', help='where token records go (~/.cache/cascades/records)')
  added.add_argument('--processes', type=int, help='that tokenise (one a core)')

  added = command(train_vocabulary, 'train_vocabulary')
  added.add_argument('tasks', metavar='TASK', nargs='*')
  added.add_argument('--task', action='append', default=[], help='one more TASK')
  added.add_argument('--split', help="the tasks' first, if not given")
  added.add_argument('--size', type=int, required=True, help='how many pieces, e.g. 8000')
  added.add_argument('--output', required=True, help='where the model goes')
  added.add_argument('--model_type', choices=('unigram', 'bpe'), default='unigram')
  return parser


if __name__ == '__main__':
  sys.exit(main())
