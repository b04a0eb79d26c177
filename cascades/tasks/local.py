"""Any user's rows: JSON lines or tab-separated values, plain or gzipped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from etils import epath

from cascades.runtime import files
from cascades.tasks import textfiles
from cascades.tasks.task import Row, Task

Splits: TypeAlias = Mapping[str, epath.PathLike]
Fields: TypeAlias = Mapping[str, Any]


class _Keys(NamedTuple):
  """Where a line keeps its fields."""

  inputs: str
  targets: str | None
  options: str
  id: str


def local_jsonl(
  name: str,
  splits: Splits,
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
  """A task of `{"inputs": ..., "targets": ...}` lines, one file a split.

  `targets` is a string, or a list of strings that are all right; with `targets_key=None` rows have
  no answers, only to be predicted. A line may have an `id`, else its number serves. `options` are
  the permitted answers of every line that brings none of its own.
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
  splits: Splits,
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
  """The same from lines of tab-separated cells, taken as they are: no quotes, no escapes.

  `columns` names the cells; None takes the names from each file's first line.
  """
  keys = _Keys(inputs_key, targets_key, 'options', id_key)
  _require_local(splits, allow_remote)

  def rows(file: epath.Path, prefix: str) -> Iterator[Row]:
    first, names = (1, columns) if columns else _header(file)
    parse = lambda number, line: _row(
      _cells(line, names), keys, options, default_id=f'{prefix}/{number}'
    )
    return textfiles.parsed_lines(file, parse, malformed=malformed, first=first)

  return _task(name, splits, metrics, rows, definition=(keys, tuple(options), columns))


def _task(
  name: str,
  splits: Splits,
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


def _require_local(splits: Splits, allow_remote: bool) -> None:
  for path in splits.values():
    files.require_local(path, allow_remote)


def _header(file: epath.Path) -> tuple[int, list[str]]:
  number, line = textfiles.first_line(file)
  return number + 1, line.split('\t')


def _cells(line: str, columns: Sequence[str]) -> Fields:
  cells = line.split('\t')
  if len(cells) != len(columns):
    raise ValueError(
      f'{len(cells)} tab-separated columns, expected {len(columns)}: {", ".join(columns)}'
    )
  return dict(zip(columns, cells, strict=True))


def _row(fields: Fields, keys: _Keys, options: Sequence[str], default_id: str) -> Row:
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


def _answers(key: str, fields: Fields) -> tuple[str, ...]:
  value = _field(fields, key)
  answers = (_text(key, value),) if isinstance(value, str) else _texts(key, value)
  if not answers or not all(answer.strip() for answer in answers):
    raise ValueError(f'{key!r} is empty')
  return answers


def _field(fields: Fields, key: str) -> Any:
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
