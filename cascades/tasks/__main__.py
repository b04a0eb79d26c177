"""Look at tasks, and prepare what training reads.

  python -m cascades.tasks list
  python -m cascades.tasks show cmudict_g2p -n 3
  python -m cascades.tasks show my_data.jsonl
  python -m cascades.tasks train_vocabulary --task=my_data.jsonl --size=8000 --output=my.model
  python -m cascades.tasks materialize superglue_rte --data_dir=superglue --vocabulary=my.model

TASK is a name from `list`, or a file: .jsonl with keys inputs and targets (or --inputs_key and
--targets_key), or .tsv with two columns, either gzipped. Without --vocabulary a task's own is used,
which is bytes for most.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import logging
import pathlib
import sys
from collections.abc import Callable, Sequence

from cascades.tasks import catalog, local, vocabularies
from cascades.tasks.task import Task, both
from cascades.types import Vocabulary

_SHOWN_CHARACTERS = 1000
_SHOWN_TOKENS = 24


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; the exit code."""
  arguments = _parser().parse_args(argv)
  logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
  try:
    for module in arguments.imports:
      importlib.import_module(module)
    arguments.run(arguments)
  except (ValueError, OSError, ImportError) as error:
    print(f'Error: {error}', file=sys.stderr)
    return 1
  return 0


def list_tasks(arguments: argparse.Namespace) -> None:
  """Names, splits and metrics."""
  for name in catalog.names():
    task = _task(name, arguments)
    print(f'{name:<18}{task.description}')
    print(f'{"":<18}splits {", ".join(task.splits)}; metrics {", ".join(task.metrics)}')


def show(arguments: argparse.Namespace) -> None:
  """The first rows as text and as tokens."""
  task = _task(arguments.task, arguments)
  vocabulary = _vocabulary(task, arguments)
  for row in itertools.islice(task.rows(arguments.split or task.splits[0]), arguments.n):
    print(f'id       {row.id}')
    for field, texts in (
      ('inputs', [row.inputs]),
      ('answer', row.answers),
      ('option', row.options),
    ):
      for text in texts:
        ids = vocabulary.encode(text)
        print(f'{field:<9}{text[:_SHOWN_CHARACTERS]!r}  {len(ids)} tokens {_shortened(ids)}')
    print()


def materialize(arguments: argparse.Namespace) -> None:
  """Tokenise splits once, to be read by training and inference."""
  from cascades.tasks import records

  task = _task(arguments.task, arguments)
  vocabulary = both(_vocabulary(task, arguments))
  for split in [arguments.split] if arguments.split else task.splits:
    made = records.materialize(task, split, vocabulary, arguments.output or records.DIRECTORY)
    longest = made.lengths.max(axis=0)
    print(
      f'{task.name} {split}: {len(made)} rows, at most {longest[0]} + {longest[1]} tokens, '
      f'in {made.directory}'
    )


def train_vocabulary(arguments: argparse.Namespace) -> None:
  """Train a SentencePiece model on a split's inputs and answers."""
  from cascades.tasks import sentencepiece_training

  task = _task(arguments.task, arguments)
  rows = task.rows(arguments.split or task.splits[0])
  texts = (text for row in rows for text in (row.inputs, *row.answers))
  made = sentencepiece_training.train_sentencepiece(
    texts, arguments.output, size=arguments.size, model_type=arguments.model_type
  )
  print(f'{arguments.output}: {made.size} ids, {made.extra_ids} of them extra ids')


def _task(name: str, arguments: argparse.Namespace) -> Task:
  file = pathlib.Path(name.removesuffix('.gz'))
  if file.suffix == '.jsonl':
    keys = {'inputs_key': arguments.inputs_key, 'targets_key': arguments.targets_key}
    return local.local_jsonl(file.stem, {'train': name}, **keys)
  if file.suffix == '.tsv':
    return local.local_tsv(file.stem, {'train': name})
  return catalog.get(name, arguments.data_dir, arguments.tfds_data_dir, arguments.allow_download)


def _vocabulary(task: Task, arguments: argparse.Namespace) -> Vocabulary:
  path = arguments.vocabulary
  return vocabularies.sentencepiece(path) if path else task.vocabulary()


def _shortened(ids: Sequence[int]) -> str:
  shown = ' '.join(map(str, ids[:_SHOWN_TOKENS]))
  return f'[{shown}{" ..." if len(ids) > _SHOWN_TOKENS else ""}]'


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m cascades.tasks',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(metavar='COMMAND', required=True)

  places = argparse.ArgumentParser(add_help=False)
  places.add_argument('--data_dir', help='folder of official files, such as BoolQ/val.jsonl')
  places.add_argument('--tfds_data_dir', help='folder of prepared TFDS data sets')
  places.add_argument('--allow_download', action='store_true', help='fetch what is not there')
  places.add_argument('--inputs_key', default='inputs', help='of the lines of a .jsonl file')
  places.add_argument('--targets_key', default='targets', help='of the lines of a .jsonl file')
  places.add_argument(
    '--import', dest='imports', metavar='MODULE', action='append', default=[],
    help='a module that registers SeqIO tasks; may be repeated',
  )  # fmt: skip

  def command(function: Callable[[argparse.Namespace], None], name: str) -> argparse.ArgumentParser:
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

  added = command(materialize, 'materialize')
  added.add_argument('task', metavar='TASK')
  added.add_argument('--split', help='all splits, if not given')
  added.add_argument('--vocabulary', help='a SentencePiece model')
  added.add_argument('--output', help='where token records go (~/.cache/cascades/records)')

  added = command(train_vocabulary, 'train_vocabulary')
  added.add_argument('--task', required=True)
  added.add_argument('--split', help="the task's first, if not given")
  added.add_argument('--size', type=int, required=True, help='how many pieces, e.g. 8000')
  added.add_argument('--output', required=True, help='where the model goes')
  added.add_argument('--model_type', choices=('unigram', 'bpe'), default='unigram')
  return parser


if __name__ == '__main__':
  sys.exit(main())
