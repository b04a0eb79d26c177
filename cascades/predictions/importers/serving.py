"""Rows of the log that `python -m cascades.serve` writes."""

from __future__ import annotations

from typing import Any

from cascades.predictions import rows
from cascades.predictions.importers.answers import Answer, field

FILTERS = (None, 'both')


def exchange(record: Any, *, answered: str | None, judged: bool) -> Answer | None:
  """Answer in a row of the log; None for one that did not get to its end, or is filtered out.

  Args:
    record: The row.
    answered: 'both' to take only exchanges in which both models answered; None to take all.
    judged: True if targets will judge the answers.

  Raises:
    ValueError: The row is none of the log, or its answer is a digest, which nothing can judge.
  """
  if answered not in FILTERS:
    raise ValueError(f'--filter={answered!r}: of a log it is `both`, or left out')
  aux = field(record, 'aux', dict)
  if aux.get('finish') is None or answered not in (None, aux.get('answered')):
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
