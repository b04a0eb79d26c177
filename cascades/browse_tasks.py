"""List and show tasks, check their data, and prepare the files that training reads.

  python -m cascades.browse_tasks list superglue
  python -m cascades.browse_tasks show superglue_rte -n 3 --sample
  python -m cascades.browse_tasks show my_data.jsonl
  python -m cascades.browse_tasks show task.gin --split=test
  python -m cascades.browse_tasks stream_rows stream_isear --data_dir=data --expert=gpt35
  python -m cascades.browse_tasks check --data_dir=data
  python -m cascades.browse_tasks prepare superglue_rte --data_dir=data --tfds_data_dir=tfds
  python -m cascades.browse_tasks download superglue_rte
  python -m cascades.browse_tasks train_vocabulary superglue flan2021 --size=8000 --output=my.model
  python -m cascades.browse_tasks materialize superglue --data_dir=data --vocabulary=my.model
  python -m cascades.browse_tasks materialize c4_causal_lm --data_dir=data --runner=FlinkRunner

TASK is the name of a task or mixture from `list`, or a file: .jsonl with the keys inputs and
targets (or --inputs_key and --targets_key; `--targets_key=` for rows without answers), .tsv with
two columns, plain or gzipped, or .gin with the TASK that programs are given. Without --vocabulary
the task's own vocabulary is used: bytes for most tasks.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from cascades.reporting import escaping
from cascades.runtime import environment
from cascades.tasks import catalog, local
from cascades.tasks.task import DataSource, Mixture, Task, both
from cascades.tokenizers import named, vocabularies
from cascades.types import Vocabulary

# The task of a gin file and its feature lengths; takes the file, bindings, and modules to import.
ReadTask: TypeAlias = Callable[
  [str, Sequence[str], Sequence[str]], tuple[Task | Mixture, Mapping[str, int] | None]
]


def main(argv: Sequence[str] | None = None, *, read_task: ReadTask | None = None) -> int:
  """Runs a command.

  Args:
    argv: the arguments; None for those of the process.
    read_task: reads gin files; None refuses them.

  Returns:
    The exit code: 0, 1 after an error or malformed rows, 130 if interrupted.
  """
  environment.raise_on_interrupt()
  parser = _parser()
  arguments, beam = parser.parse_known_args(argv)
  arguments.beam = beam
  if beam and not getattr(arguments, 'runner', None):
    parser.error(f'unrecognized arguments: {" ".join(beam)}')
  arguments.read_task, arguments.lengths = read_task, {}
  level = logging.WARNING if arguments.run in (list_tasks, show) else logging.INFO
  logging.basicConfig(level=level, format='%(message)s', stream=sys.stderr)
  try:
    for module in arguments.imports:
      importlib.import_module(module)
    return arguments.run(arguments) or 0
  except Exception as error:
    sentence = str(error).partition('\n  In call to configurable')[0]  # which gin appends
    if not isinstance(error, ValueError | OSError | ImportError):
      sentence = f'{type(error).__name__}: {sentence}'
    print(escaping.lines(f'Error: {sentence}'), file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print('Interrupted. Rerun the same command to resume.', file=sys.stderr)
    return 130


def list_tasks(arguments: argparse.Namespace) -> None:
  """List tasks with suite, metrics, sizes and data files: all, or those of the given names."""
  from cascades.tasks import listing

  tasks = list(_tasks(catalog.names(), arguments))
  mixtures = [m for n in catalog.mixtures() if isinstance(m := _task(n, arguments), Mixture)]
  if arguments.tasks:
    listed = {name for given in arguments.tasks for name in _listed(given, tasks, mixtures)}
    tasks = [task for task in tasks if task.name in listed]
    mixtures = [mixture for mixture in mixtures if mixture.name in listed]
  listing.print_tasks(tasks, mixtures)


def _listed(name: str, tasks: Sequence[Task], mixtures: Sequence[Mixture]) -> set[str]:
  """Names of the tasks and mixtures of a suite, a mixture, or with `name` in their own."""
  of_mixture = {task.name for m in mixtures if m.name == name for task in m.tasks}
  of_suite = {task.name for task in tasks if task.suite == name}
  names = [each.name for each in tasks] + [each.name for each in mixtures]
  listed = of_mixture | of_suite | ({name} & set(names)) or {n for n in names if name in n}
  if not listed:
    catalog.get(name)  # raises, with similar names
  return listed


def show(arguments: argparse.Namespace) -> None:
  """Show the first rows as published, as text and as tokens."""
  from cascades.tasks import listing

  named = _task(arguments.task, arguments)
  lengths = {'inputs': 512, 'targets': 128} | arguments.lengths
  for feature in lengths:
    lengths[feature] = getattr(arguments, f'{feature}_length', None) or lengths[feature]
  for task in _split_mixture(named):
    split = arguments.split or task.splits[0]
    listing.print_rows(task, split, arguments.n, _vocabulary(named, arguments), lengths)


def stream_rows(arguments: argparse.Namespace) -> None:
  """Print the rows of a stream as JSON lines, which `cascades.stream` answers."""
  from cascades.tasks import streams
  from cascades.tasks.sources import Sources

  names = ('data_dir', 'tfds_data_dir', 'sample', 'malformed', 'allow_remote')
  sources = Sources(**{name: getattr(arguments, name) for name in names})
  options = {name: getattr(arguments, name) for name in ('split', 'expert', 'prompt')}
  for row in streams.recorded(arguments.task, sources, **options):
    print(json.dumps(row))


def check(arguments: argparse.Namespace) -> int:
  """Read all local data; compare row counts with published ones and report malformed rows."""
  from cascades.tasks import checking, listing

  names = arguments.tasks or catalog.names()
  arguments.malformed = 'skip'
  checks = (check for task in _tasks(names, arguments) for check in checking.check(task))
  return listing.print_checks(checks, also_missing=bool(arguments.tasks))


def prepare(arguments: argparse.Namespace) -> None:
  """Write prepared TFDS directories from local files."""
  from cascades.tasks import preparing
  from cascades.tasks.sources import Sources

  root = Sources(tfds_data_dir=arguments.tfds_data_dir).tfds_root
  for origin in _origins(_tasks(arguments.tasks, arguments)):
    rows = preparing.prepare(origin, root)
    counts = ', '.join(f'{split} {count}' for split, count in rows.items())
    print(f'{origin.dataset.builder}: {counts} rows in {root}')


def _origins(tasks: Iterable[Task]) -> Iterator[DataSource]:
  """The data sources of the tasks, each data set once."""
  seen: set[str] = set()
  for task in tasks:
    if task.origin is None:
      raise ValueError(f'{task.name} is not made from a published data set.')
    if task.origin.dataset.builder not in seen:
      seen.add(task.origin.dataset.builder)
      yield task.origin


def download(arguments: argparse.Namespace) -> None:
  """Let TFDS download and prepare the data sets of tasks."""
  from cascades.tasks import tfds_directories
  from cascades.tasks.sources import Sources

  root = Sources(tfds_data_dir=arguments.tfds_data_dir).tfds_root
  for origin in _origins(_tasks(arguments.tasks, arguments)):
    name = origin.dataset.builder
    if not origin.dataset.in_tfds:
      raise ValueError(
        f'TFDS has no builder for {name}: put {origin.required_files} below a data_dir.'
      )
    if directory := tfds_directories.find(origin.dataset, root):
      print(f'{name}: exists already in {directory}')
    else:
      print(f'{name}: in {tfds_directories.download(origin.dataset, root)}')


def materialize(arguments: argparse.Namespace) -> None:
  """Tokenize splits once, for training and inference to read."""
  from cascades.data import materialize as token_records
  from cascades.data.workers import Workers

  directory = arguments.output or token_records.DIRECTORY
  write_shards = None
  if arguments.runner:
    from cascades.data import beam_shards

    flags = [f'--runner={arguments.runner}', *arguments.beam]
    write_shards = beam_shards.ShardPipeline(flags, arguments.processes)
  with Workers(arguments.processes) as workers:
    for name in arguments.tasks:
      named = _task(name, arguments)
      vocabulary = both(_vocabulary(named, arguments))
      for task in _split_mixture(named):
        for split in [arguments.split] if arguments.split else task.splits:
          records = token_records.materialize(
            task, split, vocabulary, directory, workers=workers, write_shards=write_shards
          )
          longest = records.lengths.max(axis=0)
          print(
            f'{task.name} {split}: {len(records)} rows, at most {longest[0]} + {longest[1]} '
            f'tokens, in {records.directory}'
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
  vocabulary = train_sentencepiece.train_sentencepiece(
    texts, arguments.output, size=arguments.size, model_type=arguments.model_type
  )
  print(f'{arguments.output}: {vocabulary.size} ids, {vocabulary.extra_ids} of them extra ids')


def _tasks(names: Sequence[str], arguments: argparse.Namespace) -> Iterator[Task]:
  """The named tasks, and the tasks of named mixtures."""
  if not names:
    raise ValueError('Name at least one task; `python -m cascades.browse_tasks list` shows them.')
  for name in names:
    yield from _split_mixture(_task(name, arguments))


def _split_mixture(task: Task | Mixture) -> tuple[Task, ...]:
  return task.tasks if isinstance(task, Mixture) else (task,)


def _task(name: str, arguments: argparse.Namespace) -> Task | Mixture:
  file = pathlib.Path(name.removesuffix('.gz'))
  if file.suffix == '.jsonl':
    keys = {'inputs_key': arguments.inputs_key, 'targets_key': arguments.targets_key or None}
    return local.local_jsonl(file.stem, {'train': name}, **keys)
  if file.suffix == '.tsv':
    return local.local_tsv(file.stem, {'train': name})
  if file.suffix == '.gin':
    return _task_of_gin_file(name, arguments)
  return catalog.get(
    name,
    arguments.data_dir,
    arguments.tfds_data_dir,
    arguments.allow_download,
    sample=arguments.sample,
    malformed=arguments.malformed,
    allow_remote=arguments.allow_remote,
  )


def _task_of_gin_file(name: str, arguments: argparse.Namespace) -> Task | Mixture:
  if arguments.read_task is None:
    raise ValueError(f'{name}: gin files are read by `python -m cascades.browse_tasks` alone.')
  names = ('data_dir', 'tfds_data_dir', 'allow_download', 'sample')
  given = {name: getattr(arguments, name) for name in names}
  bindings = [f'{name.upper()}={value}' for name, value in given.items() if value]
  if arguments.malformed != 'error':
    bindings.append(f'MALFORMED={arguments.malformed}')
  task, lengths = arguments.read_task(name, bindings, arguments.imports)
  if not isinstance(task, Task | Mixture):
    raise ValueError(
      f'TASK of {name} is {task!r:.80}, expected a task such as @local.local_jsonl().'
    )
  arguments.lengths = dict(lengths or {})
  return task


def _vocabulary(task: Task | Mixture, arguments: argparse.Namespace) -> Vocabulary:
  path = arguments.vocabulary
  if path:
    return named.named(path, allow_remote=arguments.allow_remote)
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

  common = argparse.ArgumentParser(add_help=False)
  common.add_argument('--data_dir', help='folder of official files, such as BoolQ/val.jsonl')
  common.add_argument('--tfds_data_dir', help='folder of prepared TFDS data sets')
  common.add_argument(
    '--allow_download', action='store_true', help='let TFDS download missing data sets'
  )
  common.add_argument('--allow_remote', action='store_true', help='accept paths such as gs://...')
  common.add_argument(
    '--sample', action='store_true', help='read the hand-written rows that ship with each task'
  )
  common.add_argument(
    '--malformed',
    choices=('error', 'skip'),
    default='error',
    help='stop at rows that cannot be used, or skip them',
  )
  common.add_argument('--inputs_key', default='inputs', help='key of the prompt in a .jsonl file')
  common.add_argument('--targets_key', default='targets', help='key of the answer in a .jsonl file')
  common.add_argument(
    '--import', dest='imports', metavar='MODULE', action='append', default=[],
    help='a module that registers SeqIO tasks; may be repeated',
  )  # fmt: skip

  def command(
    function: Callable[[argparse.Namespace], int | None], name: str
  ) -> argparse.ArgumentParser:
    summary = inspect.getdoc(function)
    added = commands.add_parser(name, parents=[common], help=summary, description=summary)
    added.set_defaults(run=function)
    return added

  added = command(list_tasks, 'list')
  added.add_argument(
    'tasks', metavar='NAME', nargs='*', help='a task, mixture, suite, or a part of names'
  )

  added = command(show, 'show')
  added.add_argument('task', metavar='TASK')
  added.add_argument('-n', type=int, default=3, help='number of rows (default: 3)')
  added.add_argument('--split', help="a split (default: the task's first)")
  added.add_argument('--vocabulary', help="'bytes', or a tokenizer's file or folder")
  for feature, length in (('inputs', 512), ('targets', 128)):
    added.add_argument(
      f'--{feature}_length',
      type=int,
      help=f'maximum tokens (default: {length}, or those of a .gin file)',
    )

  added = command(stream_rows, 'stream_rows')
  added.add_argument('task', metavar='STREAM', help='such as stream_isear')
  added.add_argument('--split', default='train', help='a split (default: train)')
  added.add_argument('--expert', help='gpt35 or llama2_70b, whose recorded answer is a key')
  added.add_argument('--prompt', help="with {text}; '{text}' alone prints bare texts")

  added = command(check, 'check')
  added.add_argument('tasks', metavar='TASK', nargs='*', help='default: all tasks with data')

  for function, name in ((prepare, 'prepare'), (download, 'download')):
    command(function, name).add_argument('tasks', metavar='TASK', nargs='+')

  added = command(materialize, 'materialize')
  added.add_argument('tasks', metavar='TASK', nargs='+')
  added.add_argument('--split', help='a split (default: all splits)')
  added.add_argument('--vocabulary', help="'bytes', or a tokenizer's file or folder")
  added.add_argument(
    '--output', help='directory of token records (default: ~/.cache/cascades/records)'
  )
  added.add_argument(
    '--processes', type=int, help='number of tokenizing processes (default: one for each core)'
  )
  added.add_argument(
    '--runner',
    help='runner of Apache Beam, such as DirectRunner; flags that are not listed here are passed '
    'to it',
  )

  added = command(train_vocabulary, 'train_vocabulary')
  added.add_argument('tasks', metavar='TASK', nargs='*')
  added.add_argument('--task', action='append', default=[], help='another TASK; may be repeated')
  added.add_argument('--split', help="a split (default: each task's first)")
  added.add_argument('--size', type=int, required=True, help='number of pieces, such as 8000')
  added.add_argument('--output', required=True, help='file of the model')
  added.add_argument('--model_type', choices=('unigram', 'bpe'), default='unigram')
  return parser


if __name__ == '__main__':
  from cascades.settings import reading

  sys.exit(main(read_task=reading.task_of))
