"""Tasks of user files: JSON lines or tab-separated values, plain or gzipped."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from etils import epath

from cascades.runtime import files
from cascades.tasks import textfiles
from cascades.tasks.task import Row, Task

SplitFiles: TypeAlias = Mapping[str, epath.PathLike]


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
    id_key: key of a line's id; a line without one is named by its number.
    options: permitted answers of lines without options of their own.
    malformed: 'error' stops at lines that cannot be used, 'skip' skips and counts them.
    allow_remote: accept files such as gs://...

  Returns:
    The task. Files are read when rows are.

  Raises:
    FileNotFoundError: if a file does not exist.
    ValueError: if a file is remote and `allow_remote` is False.
  """
  keys = _Keys(inputs_key, targets_key, options_key, id_key)
  _require_local(splits, allow_remote)

  def rows(file: epath.Path, prefix: str) -> Iterator[Row]:
    parse = lambda number, line: _row(
      textfiles.json_object(line), keys, options, default_id=f'{prefix}/{number}'
    )
    return textfiles.parsed_lines(file, parse, malformed=malformed)

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
  allow_remote: bool = False,
) -> Task:
  """Makes a task of lines of tab-separated cells, read without quotes or escapes.

  Args:
    name: name of the task.
    splits: file of each split; a name that ends in .gz is unpacked.
    metrics: names in `cascades.metrics`.
    columns: names of the cells; None takes them from each file's first line.
    inputs_key: column of the prompt.
    targets_key: column of the answer; None for rows without answers, which can be predicted only.
    id_key: column of the id; without one, rows are named by line numbers.
    options: the permitted answers.
    malformed: 'error' stops at lines that cannot be used, 'skip' skips and counts them.
    allow_remote: accept files such as gs://...

  Returns:
    The task. Files are read when rows are.

  Raises:
    FileNotFoundError: if a file does not exist.
    ValueError: if a file is remote and `allow_remote` is False.
  """
  keys = _Keys(inputs_key, targets_key, 'options', id_key)
  _require_local(splits, allow_remote)

  def rows(file: epath.Path, prefix: str) -> Iterator[Row]:
    first, names = 1, columns
    if names is None:
      number, header = textfiles.first_line(file)
      first, names = number + 1, header.split('\t')
    cells_of = functools.partial(_cells, columns=names)
    parse = lambda number, line: _row(
      cells_of(line), keys, options, default_id=f'{prefix}/{number}'
    )
    return textfiles.parsed_lines(file, parse, malformed=malformed, first=first)

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

  def fingerprint(split: str) -> str:
    content = f'{textfiles.sha256(files[split])} {definition}'
    return hashlib.sha256(content.encode()).hexdigest()

  return Task(
    name=name,
    splits=tuple(files),
    read=lambda split: read(files[split], f'{name}/{split}'),
    fingerprint=fingerprint,
    metrics=tuple(metrics),
    description=f'rows of {", ".join(str(file) for file in files.values())}',
  )


def _require_local(splits: SplitFiles, allow_remote: bool) -> None:
  for path in splits.values():
    files.require_local(path, allow_remote)


def _cells(line: str, columns: Sequence[str]) -> Mapping[str, Any]:
  cells = line.split('\t')
  if len(cells) != len(columns):
    raise ValueError(
      f'{len(cells)} tab-separated columns, expected {len(columns)}: {", ".join(columns)}'
    )
  return dict(zip(columns, cells, strict=True))


def _row(fields: Mapping[str, Any], keys: _Keys, options: Sequence[str], default_id: str) -> Row:
  inputs = _text(keys.inputs, _field(fields, keys.inputs))
  answers = _answers(keys.targets, fields) if keys.targets else ()
  options = tuple(_texts(keys.options, fields.get(keys.options) or options))
  if options and answers and answers[0] not in options:
    raise ValueError(f'the target {answers[0]!r} is not one of the options {list(options)}')
  label = options.index(answers[0]) if options and answers else -1
  return Row(
    id=str(fields.get(keys.id, default_id)),
    inputs=inputs,
    answers=answers,
    options=options,
    label=label if options else None,
  )


def _answers(key: str, fields: Mapping[str, Any]) -> tuple[str, ...]:
  value = _field(fields, key)
  answers = (_text(key, value),) if isinstance(value, str) else _texts(key, value)
  if not answers or not all(answer.strip() for answer in answers):
    raise ValueError(f'{key!r} is empty')
  return answers


def _field(fields: Mapping[str, Any], key: str) -> Any:
  if key not in fields:
    raise ValueError(
      f'there is no {key!r}; the line has {", ".join(map(repr, fields)) or "no keys"}'
    )
  return fields[key]


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
