"""F1 of classes, from confusion counts: of one class, or the mean over several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cascades.types import Metric


def f1(positive: str, *others: str) -> Metric:
  """F1 of one class: 2 tp / (2 tp + fp + fn).

  Of MRPC and QQP with 'yes', and F1a of MultiRC with 'True'. An answer that is no label misses a
  positive target. To know that it also is wrong for another target, a false positive as in T5, it
  takes the names of all `others`; without them it counts there as a true negative.
  """
  labels = _distinct(positive, *others)

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, '3']:
    target, answer = targets[0].strip(), prediction.strip()
    if others:
      _check(target, labels)
      if answer not in labels and target != positive:
        answer = positive
    return _counts([positive], target, answer)

  return Metric(f'f1[{"|".join(labels)}]', statistics, mean_f1)


def macro_f1(*labels: str) -> Metric:
  """Unweighted mean of the F1 of each class, as for CB; a class that never occurs has 0.

  An answer that is no label is a false negative of the target's class, and no false positive.
  """
  labels = _distinct(*labels)

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    target = targets[0].strip()
    _check(target, labels)
    return _counts(labels, target, prediction.strip())

  return Metric(f'macro_f1[{"|".join(labels)}]', statistics, mean_f1)


def f1_by_class(sums: Float[np.ndarray, '*M K']) -> Float[np.ndarray, '*M C']:
  """Of each class, in the order of its counts: tp, fp, fn of the first, of the second, ..."""
  hits, false_alarms, misses = (sums[..., start::3] for start in range(3))
  bottom = 2 * hits + false_alarms + misses
  return np.divide(2 * hits, bottom, out=np.zeros(bottom.shape), where=bottom != 0)


def mean_f1(sums: Float[np.ndarray, '*M K']) -> Float[np.ndarray, '*M']:
  return f1_by_class(sums).mean(axis=-1)


def _counts(labels: Sequence[str], target: str, answer: str) -> Float[np.ndarray, 'K']:
  """Of each class whether this is a true positive, a false positive, a false negative."""
  pairs = [(target == label, answer == label) for label in labels]
  counts = [(wanted and given, given > wanted, wanted > given) for wanted, given in pairs]
  return np.array(counts, float).ravel()


def _distinct(*labels: str) -> tuple[str, ...]:
  if not all(labels) or len(set(labels)) < len(labels) or any(x != x.strip() for x in labels):
    raise ValueError(
      f'F1 needs different names of classes without space around them, found {list(labels)}; '
      "write them as in 'f1[yes|no]' or 'macro_f1[a|b|c]'."
    )
  return labels


def _check(target: str, labels: Sequence[str]) -> None:
  if target and target not in labels:  # a row without label has an empty target
    raise ValueError(
      f'The target {target!r} is none of the classes {list(labels)} that its F1 is to be taken '
      'over; name all classes of the task.'
    )
