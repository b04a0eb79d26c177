"""Rows of the log that `python -m cascades.serve` writes."""

from __future__ import annotations

from typing import Any

from cascades.predictions import rows
from cascades.predictions.importers.answers import Answer, field

FILTERS = (None, 'both', 'all', 'audit')
EVERY = ('both', 'all')  # values of `answered` of exchanges in which every model did


def exchange(record: Any, *, answered: str | None, judged: bool) -> Answer | None:
  """Answer in a row of the log; None for one that did not get to its end, or is filtered out.

  Args:
    record: The row.
    answered: 'both' or 'all' to take only exchanges in which every model answered, 'audit' those of
      them that were drawn for it; None to take all.
    judged: True if targets will judge the answers.

  Raises:
    ValueError: The row is none of the log, or its answer is a digest, which nothing can judge.
  """
  if answered not in FILTERS:
    raise ValueError(f'--filter={answered!r}: of a log it is `all`, `audit`, or left out')
  aux = field(record, 'aux', dict)
  if aux.get('finish') is None or (answered and aux.get('answered') not in EVERY):
    return None
  if answered == 'audit' and aux.get('audit') is not True:
    return None
  if judged and field(aux, 'text', str) == 'digest':
    raise ValueError(
      'the log holds digests of the texts, so that targets cannot judge the answers: leave out '
      '--labels, or let the server log texts with LOG_TEXT=True'
    )
  row = rows.parse(record, 'predict')
  details = rows.Details(row.group, row.slice, row.columns, row.alternatives)
  return Answer(
    row.id,
    row.prediction,
    inputs=row.inputs,
    logprobs=row.logprobs or None,
    details=details,
    model=field(aux, 'model', str, default=''),
    is_cut_off=aux.get('cut_off') is True,
  )
