"""Rows of CSV, TSV and JSON lines whose columns are named by the user."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cascades.predictions.importers.answers import Answer, number
from cascades.predictions.rows import Details
from cascades.types import COLUMNS

TEXTS = ('id', 'inputs', 'prediction', 'targets', 'group', 'slice')
NAMES = (*TEXTS, 'correct', 'logprobs', *COLUMNS)
TRUE, FALSE = ('true', 'yes'), ('false', 'no')


def parse(text: str) -> dict[str, str]:
  """Columns of a source by our names, from a text such as 'id=qid,confidence=conf'.

  Raises:
    ValueError: naming what is no name of ours.
  """
  columns = {}
  for entry in filter(None, (entry.strip() for entry in text.split(','))):
    name, _, source = entry.partition('=')
    if name not in NAMES or name in columns:
      raise ValueError(
        f'--columns: {entry!r} does not begin with a new one of our names; they are '
        f'{", ".join(NAMES)}, as in --columns=id=qid,prediction=answer,correct=ok.'
      )
    columns[name] = source or name
  return columns


def answer(record: Mapping[str, Any], columns: Mapping[str, str]) -> Answer:
  """Answer in a row.

  Args:
    record: The row, by its own names.
    columns: Its names by ours.
  """
  values = {name: record.get(source) for name, source in columns.items()}
  if absent := sorted(
    source for name, source in columns.items() if record.get(source) is None and name in TEXTS
  ):
    raise ValueError(f'no value of {", ".join(absent)}; the row has {", ".join(record)}')
  numbers = {name: number(value, columns[name]) for name, value in values.items()
             if name in COLUMNS and value not in (None, '')}  # fmt: skip
  correct = {} if values.get('correct') is None else {'accuracy': _share(values['correct'])}
  return Answer(
    _text(values.get('id')),
    _text(values.get('prediction')) or '',
    inputs=_text(values.get('inputs')),
    targets=_list(values.get('targets')),
    logprobs=_logprobs(values.get('logprobs')),
    qualities=correct,
    details=Details(
      group=_text(values.get('group')), slice=_text(values.get('slice')), columns=numbers
    ),
  )


def _text(value: Any) -> str | None:
  if value is not None and not isinstance(value, str | int | float):
    raise ValueError(f'expected a text, found {value!r:.80}')
  return None if value is None else str(value)


def _list(value: Any) -> Sequence[str] | None:
  if isinstance(value, list):
    return [_text(each) or '' for each in value] or None
  text = _text(value)
  return None if text is None else [text]


def _share(value: Any) -> float:
  """Quality in [0, 1] of a number, a truth value or its name."""
  if isinstance(value, bool):
    return float(value)
  text = str(value).strip().lower()
  if text in TRUE or text in FALSE:
    return float(text in TRUE)
  share = number(value, 'correct')
  if not 0 <= share <= 1:
    raise ValueError(f'correct: expected a number from 0 to 1, true or false, found {value!r:.80}')
  return share


def _logprobs(value: Any) -> Sequence[float] | None:
  """Numbers of a list, also of one written as JSON in a text."""
  if value is None or value == '':
    return None
  try:
    values = json.loads(value) if isinstance(value, str) else value
  except (ValueError, RecursionError):
    values = None
  if not isinstance(values, list):
    raise ValueError(f'logprobs: expected a list of numbers, found {value!r:.80}')
  return [number(each, 'logprobs') for each in values]
