"""F1 from confusion counts: of one class, or the mean over several classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cascades.types import Metric


def f1(positive: str, *others: str) -> Metric:
  """F1 of one class: 2 tp / (2 tp + fp + fn).

  The metric of MRPC and QQP with 'yes', and F1a of MultiRC with 'True'. An answer that is no label
  is a false negative where the target is positive. Where it is not, the answer is a false positive,
  as in T5, if the `others` are given, and a true negative without them.

  Args:
    positive: Name of the class.
    *others: Names of all other classes.

  Raises:
    ValueError: if names are empty, repeated or surrounded by spaces.
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
  """Unweighted mean of the F1 of each class, as for CB; a class that never occurs has F1 0.

  An answer that is no label is a false negative of the target's class, and no false positive.

  Args:
    *labels: Names of all classes.

  Raises:
    ValueError: if names are empty, repeated or surrounded by spaces.
  """
  labels = _distinct(*labels)

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    target = targets[0].strip()
    _check(target, labels)
    return _counts(labels, target, prediction.strip())

  return Metric(f'macro_f1[{"|".join(labels)}]', statistics, mean_f1)


def f1_by_class(sums: Float[np.ndarray, '*M K']) -> Float[np.ndarray, '*M C']:
  """F1 of each class, from sums (tp, fp, fn) of the first class, of the second, and so on."""
  true_positives, false_positives, false_negatives = (sums[..., start::3] for start in range(3))
  denominator = 2 * true_positives + false_positives + false_negatives
  return np.divide(
    2 * true_positives, denominator, out=np.zeros(denominator.shape), where=denominator != 0
  )


def mean_f1(sums: Float[np.ndarray, '*M K']) -> Float[np.ndarray, '*M']:
  """Unweighted mean of `f1_by_class`."""
  return f1_by_class(sums).mean(axis=-1)


def _counts(labels: Sequence[str], target: str, answer: str) -> Float[np.ndarray, 'K']:
  """Counts (true positive, false positive, false negative) of each class for one example."""
  pairs = [(target == label, answer == label) for label in labels]
  counts = [(actual and given, given > actual, actual > given) for actual, given in pairs]
  return np.array(counts, float).ravel()


def _distinct(*labels: str) -> tuple[str, ...]:
  if not all(labels) or len(set(labels)) < len(labels) or any(x != x.strip() for x in labels):
    raise ValueError(
      f'F1 needs distinct names of classes without surrounding spaces, found {list(labels)}; '
      "write them as in 'f1[yes|no]' or 'macro_f1[a|b|c]'."
    )
  return labels


def _check(target: str, labels: Sequence[str]) -> None:
  if target and target not in labels:  # a row without label has an empty target
    raise ValueError(
      f'The target {target!r} is none of the classes {list(labels)} of its F1; name all classes of '
      'the task.'
    )
