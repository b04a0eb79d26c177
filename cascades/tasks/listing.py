"""Tables of tasks, rows and checks for a terminal."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascades.tasks.checking import SplitCheck
from cascades.tasks.task import Mixture, Record, Task, both
from cascades.tasks.tokenize import row_by_row
from cascades.types import Vocabulary

_SHOWN_CHARACTERS = 1000
_SHOWN_TOKENS = 24
_WIDTH_OF_FILES = 240  # of output that is no terminal


def console() -> Console:
  """Standard output; wide where it is no terminal."""
  terminal = Console(highlight=False)
  return terminal if terminal.is_terminal else Console(highlight=False, width=_WIDTH_OF_FILES)


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
  table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
  for column in columns:
    table.add_column(column, justify='right' if column in right else 'left', overflow='fold')
  return table


def print_tasks(tasks: Sequence[Task], mixtures: Sequence[Mixture]) -> None:
  """Prints a line for each task, with suite, metrics, sizes and data; then the mixtures."""
  out = console()
  table = _table('task', 'suite', 'metrics', 'rows', 'data')
  for task in tasks:
    sizes = '  '.join(f'{split} {size:,}' for split, size in task.sizes.items())
    data = _data(task)
    table.add_row(task.name, task.suite, Text(' '.join(task.metrics)), sizes, data)
  out.print(table)
  mixed = _table('mixture', 'tasks', 'rates', right=('tasks',))
  for mixture in mixtures:
    rates = [task.rate for task in mixture.tasks if task.rate]
    total = f'{sum(rates):,} in all' if len(rates) == len(mixture.tasks) else "the tasks' rows"
    mixed.add_row(mixture.name, str(len(mixture.tasks)), total)
  out.print(mixed)


def _data(task: Task) -> Text:
  """Location of the splits, or the missing files."""
  if task.origin is None:
    return Text('', 'green')
  by_location, missing = {}, []
  for split in task.splits:
    try:
      by_location[task.origin.location(split)] = split
    except FileNotFoundError:
      missing.append(split)
  if not by_location:
    return Text(f'missing: {task.origin.required_files}', 'yellow')
  where = next(iter(by_location))
  more = f' (no {", ".join(missing)})' if missing else ''
  return Text(f'{where}{" ..." if len(by_location) > 1 else ""}{more}', 'green')


def print_rows(
  task: Task, split: str, count: int, vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> None:
  """Prints rows as published, as prompt and answer, and as trimmed tokens."""
  task.require(split)
  out = console()
  out.print(Text(f'{task.name}, split {split}', 'bold'))
  out.print(Text(task.description, 'dim'))
  if task.origin is not None:
    out.print(Text(f'from {task.origin.location(split)}', 'dim'))
    source = split if split in task.origin.splits else task.origin.splits[0]
    for example in itertools.islice(task.origin.examples(source), count):
      _print(out, 'published', json.dumps(example, ensure_ascii=False))
  tokenize = task.tokenize or row_by_row
  rows = task.rows(split)
  # A tokenization that joins rows may need many for one record.
  needed = rows if task.joins_rows else itertools.islice(rows, count)
  records = tokenize(needed, both(vocabulary), 0)
  for record in itertools.islice(records, count):
    _print_record(out, task, record, vocabulary, lengths)


def _print_record(
  out: Console, task: Task, record: Record, vocabulary: Vocabulary, lengths: Mapping[str, int]
) -> None:
  row = record.row
  out.print()
  extras = {'group': row.group, 'template': row.template, 'label': row.label}
  details = '  '.join(f'{name} {value}' for name, value in extras.items() if value is not None)
  _print(out, 'id', f'{row.id}  {details}'.rstrip())
  fields = [
    ('inputs', row.inputs, record.inputs, 'cyan'),
    ('targets', row.targets, record.targets, 'green'),
  ]
  for name, text, tokens, color in fields:
    end = int(
      task.special_tokens.prompt_end if name == 'inputs' else task.special_tokens.answer_end
    )
    limit = lengths[name] - end
    _print(out, name, text or vocabulary.decode(tokens.tolist()), color)
    left = min(len(tokens), limit) + end
    shown = ' '.join(map(str, tokens[:_SHOWN_TOKENS].tolist()))
    more = ' ...' if len(tokens) > _SHOWN_TOKENS else ''
    line = Text(f'{"":<11}{len(tokens) + end} tokens, {left} kept  [{shown}{more}]', 'dim')
    if len(tokens) > limit:
      line.append(f'  {len(tokens) - limit} trimmed', 'red')
    out.print(line)
  for answer in row.answers[1:]:
    _print(out, 'or', answer, 'green')
  for option in row.options:
    _print(out, 'option', option, 'magenta')


def _print(out: Console, name: str, text: str, color: str = 'cyan') -> None:
  out.print(Text.assemble((f'{name:<11}', color), _cut(text)))


def print_checks(checks: Iterable[SplitCheck], *, also_missing: bool) -> int:
  """Prints a line for each split and problem, as soon as it is read; 1 if there was a problem."""
  out = console()
  wrong = splits = 0
  for check in checks:
    if not check.where and not also_missing:
      continue
    splits += 1
    wrong += check.is_wrong
    published = f' of {check.published:,}' if check.published is not None else ''
    color = {'complete': 'green', 'malformed': 'red'}.get(check.verdict, 'yellow')
    out.print(
      Text(f'{check.verdict:<10}', color),
      Text(f'{check.task} {check.split}: {check.rows:,}{published} rows  {check.where}'),
      soft_wrap=True,
    )
    for problem in check.problems:
      out.print(Text(f'           {problem}', 'red'), soft_wrap=True)
  out.print(f'{splits} splits read, {wrong} of them with malformed rows.')
  return int(wrong > 0)


def _cut(text: str) -> str:
  """The beginning of a text with escaped control characters, on which a terminal would act."""
  beginning = ''.join(
    c if c.isprintable() or c == '\n' else repr(c)[1:-1] for c in text[:_SHOWN_CHARACTERS]
  )
  if len(text) <= _SHOWN_CHARACTERS:
    return beginning
  return f'{beginning} ... ({len(text):,} characters)'
