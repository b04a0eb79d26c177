"""Tasks of user files: JSON lines or tab-separated values, plain or gzipped."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from etils import epath

from cascades.runtime import files
from cascades.tasks import textfiles
from cascades.tasks.task import Row, Task

SplitFiles: TypeAlias = Mapping[str, epath.PathLike]

MAX_ID_CHARACTERS = 1000

_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029]')
_SHOWN_NAMES = 20


class _Keys(NamedTuple):
  """Names of a line's fields. Their repr is part of fingerprints: renaming one rewrites records."""

  inputs: str
  targets: str | None
  options: str
  id: str


def local_jsonl(
  name: str,
  splits: SplitFiles,
  *,
  metrics: Sequence[str] = ('accuracy',),
  inputs_key: str = 'inputs',
  targets_key: str | None = 'targets',
  options_key: str = 'options',
  id_key: str = 'id',
  options: Sequence[str] = (),
  malformed: textfiles.Malformed = 'error',
  max_line_bytes: int = textfiles.MAX_LINE_BYTES,
  allow_remote: bool = False,
) -> Task:
  """Makes a task of `{"inputs": ..., "targets": ...}` lines.

  Args:
    name: name of the task.
    splits: file of each split; a name that ends in .gz is unpacked.
    metrics: names in `cascades.metrics`.
    inputs_key: key of the prompt, a string.
    targets_key: key of the answer, a string or a list of right answers; None for rows without
      answers, which can be predicted only.
    options_key: key of a line's permitted answers, a list of strings.
    id_key: key of a line's id, a text or a whole number; a line without one, or with null, is
      named by its number.
    options: permitted answers of lines without options of their own.
    malformed: 'error' stops at lines that cannot be used, 'skip' skips and counts them.
    max_line_bytes: a longer line cannot be used.
    allow_remote: accept files such as gs://...

  Returns:
    The task. Files are read when rows are.

  Raises:
    FileNotFoundError: if a file does not exist.
    ValueError: if a file is remote and `allow_remote` is False.
  """
  keys = _Keys(inputs_key, targets_key, options_key, id_key)
  _check(name, splits, allow_remote, {'metrics': metrics, 'options': options})

  def rows(file: epath.Path, prefix: str) -> Iterator[Row]:
    parse = lambda number, line: _row(
      textfiles.json_object(line), keys, options, default_id=f'{prefix}/{number}'
    )
    return textfiles.parsed_lines(file, parse, malformed=malformed, max_bytes=max_line_bytes)

  return _task(name, splits, metrics, rows, definition=(keys, tuple(options)))


def local_tsv(
  name: str,
  splits: SplitFiles,
  *,
  metrics: Sequence[str] = ('accuracy',),
  columns: Sequence[str] | None = ('inputs', 'targets'),
  inputs_key: str = 'inputs',
  targets_key: str | None = 'targets',
  id_key: str = 'id',
  options: Sequence[str] = (),
  malformed: textfiles.Malformed = 'error',
  max_line_bytes: int = textfiles.MAX_LINE_BYTES,
  allow_remote: bool = False,
) -> Task:
  """Makes a task of lines of tab-separated cells, read without quotes or escapes.

  Args:
    name: name of the task.
    splits: file of each split; a name that ends in .gz is unpacked.
    metrics: names in `cascades.metrics`.
    columns: distinct names of the cells; None takes them from each file's first line.
    inputs_key: column of the prompt.
    targets_key: column of the answer; None for rows without answers, which can be predicted only.
    id_key: column of the id; a line without one, or with an empty one, is named by its number.
    options: the permitted answers.
    malformed: 'error' stops at lines that cannot be used, 'skip' skips and counts them.
    max_line_bytes: a longer line cannot be used.
    allow_remote: accept files such as gs://...

  Returns:
    The task. Files are read when rows are.

  Raises:
    FileNotFoundError: if a file does not exist.
    ValueError: if a file is remote and `allow_remote` is False, or a column's name is empty or
      occurs twice.
  """
  keys = _Keys(inputs_key, targets_key, 'options', id_key)
  texts = {'metrics': metrics, 'options': options, 'columns': columns or ()}
  _check(name, splits, allow_remote, texts)
  if columns is not None and (defect := _defect(columns)):
    raise ValueError(f'The columns of task {name} cannot be used: {defect}.')

  def rows(file: epath.Path, prefix: str) -> Iterator[Row]:
    first, names = 1, columns
    if names is None:
      number, header = textfiles.first_line(file, max_line_bytes)
      first, names = number + 1, header.split('\t')
      if header and (defect := _defect(names)):
        raise textfiles.MalformedLineError(file, number, defect)
    cells_of = functools.partial(_cells, columns=names)
    parse = lambda number, line: _row(
      cells_of(line), keys, options, default_id=f'{prefix}/{number}'
    )
    return textfiles.parsed_lines(
      file, parse, malformed=malformed, first=first, max_bytes=max_line_bytes
    )

  return _task(name, splits, metrics, rows, definition=(keys, tuple(options), columns))


def _task(
  name: str,
  splits: SplitFiles,
  metrics: Sequence[str],
  read: Callable[[epath.Path, str], Iterator[Row]],
  *,
  definition: tuple[object, ...],
) -> Task:
  files = {split: textfiles.required(path) for split, path in splits.items()}

  def checked(split: str) -> Iterator[Row]:
    rows = read(files[split], f'{name}/{split}')
    first = next(rows, None)
    if first is None:
      raise ValueError(f'{files[split]} has no rows for split {split} of {name}.')
    return itertools.chain([first], rows)

  def fingerprint(split: str) -> str:
    content = f'{textfiles.sha256(files[split])} {definition}'
    return hashlib.sha256(content.encode()).hexdigest()

  return Task(
    name=name,
    splits=tuple(files),
    read=checked,
    fingerprint=fingerprint,
    metrics=tuple(metrics),
    description=f'rows of {", ".join(str(file) for file in files.values())}',
  )


def _check(
  name: str, splits: SplitFiles, allow_remote: bool, texts: Mapping[str, Sequence[str]]
) -> None:
  """Raises ValueError for a remote file, or one text in the place of several."""
  if not isinstance(splits, Mapping):
    raise ValueError(
      f'splits of task {name} is {splits!r:.80}, expected files by split, such as '
      "{'train': 'rows.jsonl'}."
    )
  for path in splits.values():
    files.require_local(path, allow_remote)
  for setting, value in texts.items():
    if isinstance(value, str):
      raise ValueError(
        f'{setting} of task {name} is the text {value!r:.80}, expected a list of texts: '
        f'[{value!r:.80}].'
      )


def _cells(line: str, columns: Sequence[str]) -> Mapping[str, Any]:
  cells = line.split('\t')
  if len(cells) != len(columns):
    raise ValueError(
      f'{len(cells)} tab-separated columns, expected {len(columns)}: {_listed(columns)}'
    )
  return dict(zip(columns, cells, strict=True))


def _defect(columns: Sequence[str]) -> str:
  """Reason why these names cannot name columns; empty if they can."""
  unnamed = [number for number, name in enumerate(columns, 1) if not name.strip()]
  if unnamed:
    return f'column {unnamed[0]} of {len(columns)} has no name; the names are {_listed(columns)}'
  if (name := textfiles.repeated(columns)) is not None:
    return f'two columns have the name {name!r}; the names are {_listed(columns)}'
  return ''


def _row(fields: Mapping[str, Any], keys: _Keys, options: Sequence[str], default_id: str) -> Row:
  inputs = _text(keys.inputs, _field(fields, keys.inputs))
  answers = _answers(keys.targets, fields) if keys.targets else ()
  if (own := fields.get(keys.options)) is not None:
    options = _texts(keys.options, own) or options
  if options and answers and answers[0] not in options:
    raise ValueError(f'the target {answers[0]!r} is not one of the options {list(options)}')
  label = list(options).index(answers[0]) if options and answers else -1
  return Row(
    id=_id(keys.id, fields.get(keys.id)) or default_id,
    inputs=inputs,
    answers=answers,
    options=tuple(options),
    label=label if options else None,
  )


def _id(key: str, value: object) -> str:
  """A line's own id; empty if it has none."""
  if value is None:
    return ''
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise ValueError(f'{key!r} has {value!r:.40}, expected a text or a whole number')
  text = _text(key, str(value))
  if len(text) > MAX_ID_CHARACTERS or _CONTROL.search(text):
    raise ValueError(
      f'{key!r} has {text!r:.40}, expected at most {MAX_ID_CHARACTERS:,} characters without line '
      'breaks and other control characters'
    )
  return text if text.strip() else ''


def _answers(key: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
  remedy = 'set targets_key=None for rows without answers, which can be predicted only'
  if key not in fields:
    raise ValueError(f'{_lacking(fields, key)}; {remedy}')
  if fields[key] is None:
    raise ValueError(f'{key!r} is None, expected a string or a list of strings; {remedy}')
  value = fields[key]
  answers = (_text(key, value),) if isinstance(value, str) else _texts(key, value)
  if not answers or not all(answer.strip() for answer in answers):
    raise ValueError(f'{key!r} is empty')
  return answers


def _field(fields: Mapping[str, Any], key: str) -> Any:
  if key not in fields:
    raise ValueError(_lacking(fields, key))
  return fields[key]


def _lacking(fields: Mapping[str, Any], key: str) -> str:
  return f'there is no {key!r}; the line has {_listed(map(repr, fields)) or "no keys"}'


def _listed(names: Iterable[str]) -> str:
  """The first names: a line may have a million."""
  return textfiles.abbreviated(', '.join(itertools.islice(names, _SHOWN_NAMES)))


def _texts(key: str, values: object) -> tuple[str, ...]:
  if not isinstance(values, list | tuple):
    raise ValueError(f'{key!r} is {values!r:.40}, expected a string or a list of strings')
  return tuple(_text(key, value) for value in values)


def _text(key: str, value: object) -> str:
  if not isinstance(value, str):
    raise ValueError(f'{key!r} has {value!r:.40}, expected a string')
  try:
    value.encode()
  except UnicodeEncodeError:
    raise ValueError(f'{key!r} has half a surrogate pair, which is no text') from None
  return value
