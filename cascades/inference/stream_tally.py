"""Rows of the answers to a stream, and their counts."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cascades.inference.stream_files import StreamRow
from cascades.online_step import StreamAnswer


class Heard(NamedTuple):
  """Class that the expert gives; None if its answer names none."""

  label: int | None


class StreamTally:
  """Counts of the answers so far, by what happened."""

  def __init__(
    self,
    options: Sequence[str],
    next_costs: Sequence[float],
    numbers: Mapping[str, int] | None = None,
    *,
    cost: float = 0.0,
  ) -> None:
    """Starts from counts of an earlier run, or from none.

    Args:
      options: Texts of the classes.
      next_costs: Cost of the level after each small model.
      numbers: Counts by name.
      cost: Cost of the answers so far.
    """
    self.options, self.cost = options, cost
    self._names = {option.strip().lower() for option in options}
    self._costs = [0.0, *itertools.accumulate(next_costs)]  # of answers of each level
    self.numbers: collections.Counter[str] = collections.Counter(numbers or {})

  def row(
    self, answer: StreamAnswer, given: StreamRow, expert: Heard | None = None
  ) -> dict[str, Any]:
    """Row of an answer, which is counted.

    Args:
      answer: The answer.
      given: Row of the stream.
      expert: What the expert says of it, if that is known.
    """
    text = '' if answer.label is None else self.options[answer.label]
    cost = self._costs[answer.choice.level - bool(answer.failed)]
    self.cost += cost
    row: dict[str, Any] = {
      'id': answer.query.id,
      'answer': text,
      'level': answer.choice.level + 1,
      'reason': answer.choice.reason,
      'cost': cost,
      'probabilities': answer.probabilities,
      'deferring': answer.deferring,
      'threshold': answer.threshold,
    }
    if answer.failed:
      row['failed'] = answer.failed
    counted = ['queries', f'level {row["level"]}', row['reason']]
    counted += ['failed'] * bool(answer.failed) + ['unparsable'] * (answer.label is None)
    if given.targets is not None:
      targets = [given.targets] if isinstance(given.targets, str) else given.targets
      gold = {target.strip().lower() for target in targets}
      if gold.isdisjoint(self._names):
        counted += ['label outside the options']
      else:
        right = [int(option.strip().lower() in gold) for option in self.options]
        row['correct'] = 0 if answer.label is None else right[answer.label]
        row['small_correct'] = [right[int(np.argmax(p))] for p in answer.probabilities]
        if expert is not None:
          row['expert_correct'] = 0 if expert.label is None else right[expert.label]
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
