"""Rows of the answers to a stream, and their counts."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from cascades.inference.online_stream import StreamAnswer
from cascades.inference.stream_files import StreamRow


class StreamTally:
  """Counts of the answers so far, by what happened."""

  def __init__(self, options: Sequence[str], numbers: Mapping[str, int] | None = None) -> None:
    """Starts from counts of an earlier run, or from none.

    Args:
      options: Texts of the classes.
      numbers: Counts by name.
    """
    self.options = options
    self.numbers: collections.Counter[str] = collections.Counter(numbers or {})

  def row(self, answer: StreamAnswer, given: StreamRow) -> dict[str, Any]:
    """Row of an answer, which is counted."""
    text = '' if answer.label is None else self.options[answer.label]
    row: dict[str, Any] = {
      'id': answer.query.id,
      'answer': text,
      'level': answer.choice.level + 1,
      'reason': answer.choice.reason,
      'probabilities': answer.probabilities,
      'deferring': answer.deferring,
      'threshold': answer.threshold,
    }
    if answer.failed:
      row['failed'] = answer.failed
    counted = ['queries', f'level {row["level"]}', row['reason']]
    counted += ['failed'] * bool(answer.failed) + ['unparsable'] * (answer.label is None)
    if given.targets is not None:
      gold = [given.targets] if isinstance(given.targets, str) else given.targets
      row['correct'] = int(text.lower() in [target.strip().lower() for target in gold])
      counted += ['labeled'] + ['correct'] * row['correct']
    self.numbers.update(counted)
    return row

  def shares(self, *, small: int, calls: int) -> dict[str, float]:
    """Accuracy and the share of the queries that each level answered.

    Args:
      small: Number of small models.
      calls: Calls of the expert.
    """
    n, queries = self.numbers, max(self.numbers['queries'], 1)
    accuracy = {'accuracy': n['correct'] / n['labeled']} if n['labeled'] else {}
    levels = {f'level {i}': n[f'level {i}'] / queries for i in range(1, small + 1)}
    return {**accuracy, **levels, 'expert': calls / queries}
