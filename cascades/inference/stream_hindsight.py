"""Policies beside a stream that was answered, from the rows of its answers: no model runs again.

A row with a gold label says which of the levels that ran were right, and whether the expert was
where its answer is known: where it was asked, and everywhere if its answers are recorded. What is
known of each query gives a baseline of all of them; what is not, gives none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from cascades import online_baselines


class StreamBaselines(NamedTuple):
  """Baselines of a stream over its T queries with gold labels.

  Attributes:
    numbers: Accuracies, thresholds and regret, as JSON.
    curves: Correct answers of each policy, by its name.
  """

  numbers: Mapping[str, Any]
  curves: Mapping[str, Bool[np.ndarray, 'T']]


def baselines(answers: Iterable[Mapping[str, Any]], *, levels: int) -> StreamBaselines:
  """Baselines from the rows of answers.

  Args:
    answers: Rows of `answers.jsonl`; those without a gold label are left out.
    levels: Number of levels, the expert last.

  Returns:
    `levels`: the accuracy of each level alone over the share of the queries where it is known.
    `best single level`: the best small model of those that are known everywhere. `ensemble`: what
    levels of these accuracies would reach if they were used at random, as often as the cascade did
    (Nie et al. compute it so). `best static`: the thresholds of confidence that would have been
    right most often with as many calls, over the first small models as far as they are known
    everywhere, and the regret of the cascade. Those that cannot be told are left out.
  """
  columns = [_column(row, levels) for row in answers if 'correct' in row]
  if not columns:
    return StreamBaselines({}, {})
  table = np.array(columns)
  answered, level = table[:, 0].astype(bool), table[:, 1].astype(int)
  confidence, right = table[:, 2 : levels + 1], table[:, levels + 1 :]
  finite = np.isfinite(right)
  everywhere = finite.all(0)
  accuracy = np.nansum(right, 0) / np.maximum(finite.sum(0), 1)
  names = [*(f'level {i}' for i in range(1, levels)), 'expert']
  numbers: dict[str, Any] = {
    'levels': {
      name: {'accuracy': float(accuracy[i]), 'known': float(finite[:, i].mean())}
      for i, name in enumerate(names)
      if finite[:, i].any()
    }
  }
  curves = {'expert alone': right[:, -1].astype(bool)} if everywhere[-1] else {}
  if small := [i for i in range(levels - 1) if everywhere[i]]:
    best = max(small, key=lambda i: accuracy[i])
    numbers['best single level'] = {'level': best + 1, 'accuracy': float(accuracy[best])}
    curves['best single level'] = right[:, best].astype(bool)
  if everywhere[:-1].all():
    asked = level == levels - 1
    own = answered[asked].mean() if asked.any() else 0.0
    shares = np.bincount(level, minlength=levels) / len(level)
    ensemble = online_baselines.ensemble_accuracy(shares, np.append(accuracy[:-1], own))
    numbers['ensemble'] = {'accuracy': ensemble}
  first = int(np.argmin(np.append(everywhere[:-1], False)))
  if first and everywhere[-1]:
    numbers['best static'], curves['best static thresholds'] = _static(
      confidence[:, :first], right[:, [*range(first), -1]].astype(bool), answered, level, levels
    )
  return StreamBaselines(numbers, curves)


def _column(row: Mapping[str, Any], levels: int) -> list[float]:
  """Columns of a row: if the answer is right, its level, confidences, and which levels are right.

  Rows of earlier versions do not tell of the levels.
  """
  unknown = [np.nan] * (levels - 1)
  confidence = [*map(max, row['probabilities']), *unknown][: levels - 1]
  small = [*row.get('small_correct', ()), *unknown][: levels - 1]
  expert = row.get('expert_correct', np.nan)
  return [row['correct'], row['level'] - 1, *confidence, *small, expert]


def _static(
  confidence: Float[np.ndarray, 'T M'], right: Bool[np.ndarray, 'T N'],
  answered: Bool[np.ndarray, 'T'], level: Any, levels: int,
) -> tuple[dict[str, Any], Bool[np.ndarray, 'T']]:  # fmt: skip
  calls = int((level == levels - 1).sum())
  best = online_baselines.in_hindsight(confidence, right, answered, calls)
  numbers = {
    'accuracy': float(best.right.mean()),
    'small models': confidence.shape[1],
    'calls': int((best.policy.levels == confidence.shape[1]).sum()),
    # no answer is as sure as infinity, which JSON does not have
    'thresholds': [x if np.isfinite(x) else None for x in best.policy.thresholds],
    'regret': float(best.regret[-1]),
  }
  return numbers, best.right
