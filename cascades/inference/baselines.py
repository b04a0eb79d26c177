"""Cheap answers to tasks with few distinct targets, to compare models with.

A model that does not beat them has not learned the task. They need seconds on a CPU: the most
frequent target, and logistic regression on TF-IDF of the inputs' words and pairs of words.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from cascades import metrics
from cascades.tasks.task import Row, Task

log = logging.getLogger(__name__)

MOST_READ = 200_000  # training rows; of those, evenly spaced ones are fitted
MOST_FITTED = 10_000
MOST_JUDGED = 50_000  # rows of the split
MOST_TARGETS = 50  # distinct ones
MOST_CHARACTERS = 2_000  # of an input


def judge(task: Task, split: str, *, training: str = 'train') -> dict[str, dict[str, float]]:
  """Quality of cheap answers to a split, by baseline and metric of the task.

  Args:
    task: The task.
    split: The split whose rows are answered.
    training: The split whose rows are fitted.

  Returns:
    Quality as the task's metrics measure it; empty for tasks with many distinct targets, without
    training rows or labels, or of too many rows.
  """
  if training not in task.splits or split == training or task.joins_rows:
    return {}
  try:
    fitted = _fitted_rows(task, training)
    judged = list(islice(task.rows(split), MOST_JUDGED + 1)) if fitted else []
  except (OSError, ValueError) as error:
    log.info('no baselines of %s: %s', task.name, error)
    return {}
  if not fitted or len(judged) > MOST_JUDGED or not all(row.answers for row in judged):
    return {}
  most_frequent = Counter(row.targets for row in fitted).most_common(1)[0][0]
  answers = {'most frequent target': [most_frequent] * len(judged)}
  if regression := _regression(fitted, judged):
    answers['TF-IDF + logistic regression'] = regression
  return {name: dict(_quality(task, judged, texts)) for name, texts in answers.items()}


def _fitted_rows(task: Task, training: str) -> list[Row]:
  """Evenly spaced training rows; none if they have many distinct targets, or only one."""
  targets: set[str] = set()
  rows = []
  for row in islice(task.rows(training), MOST_READ):
    rows.append(row)
    targets.add(row.targets)
    if len(targets) > MOST_TARGETS:
      return []
  return rows[:: -(-len(rows) // MOST_FITTED)] if len(targets) > 1 else []


def _regression(fitted: Sequence[Row], judged: Sequence[Row]) -> list[str]:
  """Answers of logistic regression; none if the inputs have no words."""
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline

  model = make_pipeline(
    TfidfVectorizer(ngram_range=(1, 2), max_features=50_000, sublinear_tf=True),
    LogisticRegression(C=10.0, max_iter=200),
  )
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', ConvergenceWarning)
      model.fit([row.inputs[:MOST_CHARACTERS] for row in fitted], [row.targets for row in fitted])
  except ValueError as error:  # an empty vocabulary, or one class among the spaced rows
    log.info('no logistic regression: %s', error)
    return []
  return model.predict([row.inputs[:MOST_CHARACTERS] for row in judged]).tolist()


def _quality(task: Task, rows: Sequence[Row], texts: Sequence[str]) -> Mapping[str, float]:
  return {
    name: float(
      metric.finalize(np.sum([*map(metric.statistics, (r.answers for r in rows), texts)], axis=0))
    )
    for name in task.metrics
    if (metric := metrics.find(name))
  }
