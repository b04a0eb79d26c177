"""A policy on other rows: promised against realized, and whether its assumptions still hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cascades import drift, guarantees
from cascades import metrics as metric_library
from cascades.evaluation import calibration, pooling
from cascades.evaluation import policy as policies
from cascades.evaluation.calibration import COST, MARGIN, QUALITY, RATE, Judged
from cascades.evaluation.policy import MONITORED, Interval, Policy, Promise, Threshold
from cascades.predictions import alignment
from cascades.risk_tests import ROUNDING
from cascades.types import Predictions

ALPHA = 0.05  # of false alarms, all monitors of a threshold together


class Realized(NamedTuple):
  """A promise on other rows.

  Attributes:
    name: Name of the promise.
    demanded: Value that was promised.
    value: Value on these rows.
    fulfilled: True if the value is as promised.
    refuted: True if the rows refute the promise: a value that is not as promised is usual for few
      rows, and a test at the promise's delta tells chance from a broken promise.
  """

  name: str
  demanded: float
  value: float
  fulfilled: bool
  refuted: bool


class Alarm(NamedTuple):
  """A monitor, and the number of rows after which it raised an alarm, if it did."""

  monitor: str
  rows: int | None


class Outcome(NamedTuple):
  """A threshold of a policy on the rows of one task, or of all.

  Attributes:
    task: Name of the task, or POOLED.
    rows: Number of rows.
    calibrated: True if all rows are those of the calibration, so that nothing new is learned.
    deferral_rate: Deferral rate with its interval.
    quality: Quality with its interval; None without labels.
    promises: Promises that these rows say something about.
    alarms: One for each monitor that has something to look at.
  """

  task: str
  rows: int
  calibrated: bool
  deferral_rate: Interval
  quality: Interval | None
  promises: tuple[Realized, ...]
  alarms: tuple[Alarm, ...]

  @property
  def holds(self) -> bool:
    """True if no promise is refuted and no alarm was raised."""
    return not any(p.refuted for p in self.promises) and all(a.rows is None for a in self.alarms)


def outcomes(
  policy: Policy, small: Sequence[Predictions], large: Sequence[Predictions], *, labels: bool = True
) -> list[Outcome]:
  """Applies a policy to tables of its two models.

  Args:
    policy: The policy.
    small: The small model's tables, of any order of rows.
    large: The large model's tables of the same rows.
    labels: False if the rows have no targets; only scores and deferrals are looked at then.

  Raises:
    ValueError: The tables are of other models or tasks, or lack what the decider reads.
  """
  for role, tables in (('small', small), ('large', large)):
    for table in tables:
      policies.check_model(role, policy.models[role], table)
  by_entry: dict[str, list[int]] = {}
  for index, table in enumerate(small):
    by_entry.setdefault(policy.threshold_of(table.task).task, []).append(index)
  entries = {entry.task: entry for entry in policy.thresholds}
  return [
    _outcome(policy, entries[task], [small[i] for i in at], [large[i] for i in at], labels)
    for task, at in by_entry.items()
  ]


def _outcome(
  policy: Policy,
  entry: Threshold,
  small: Sequence[Predictions],
  large: Sequence[Predictions],
  labels: bool,
) -> Outcome:
  decider, judged = policies.stored_decider(policy), None
  if labels:
    metric = metric_library.by_name(policy.metric.name)
    judged = calibration.judged(
      [alignment.judge(table, metric) for table in small],
      [alignment.judge(table, metric) for table in large],
      metric,
      decider,
      surrogate=policy.metric.surrogate,
      by_task=False,
      cost_axis=policy.cost_axis,
    )[0]
  score = np.concatenate([np.asarray(decider.score(table), float) for table in small])
  deferred = score >= entry.value
  stored = policy.data['tasks']
  rate = Interval(*calibration.rate_at(deferred, ALPHA))
  return Outcome(
    task=entry.task if entry.task == pooling.POOLED else small[0].task,
    rows=len(score),
    calibrated=all(
      stored[table.task].get('small') == policies.fingerprint(table) for table in small
    ),
    deferral_rate=rate,
    quality=judged
    and Interval(
      *calibration.quality_at(np.where(deferred, judged.large, judged.small), judged.scale, ALPHA)
    ),
    promises=_promises(entry, judged, deferred),
    alarms=tuple(_alarms(entry, judged, score, deferred)),
  )


def _promises(
  entry: Threshold, judged: Judged | None, deferred: np.ndarray
) -> tuple[Realized, ...]:
  realized = []
  for promise in entry.promises:
    losses = _losses(promise, judged, deferred)
    if losses is None:
      continue
    loss = value = float(losses.mean())
    fulfilled = loss <= promise.level + ROUNDING
    if judged is not None:
      costs = np.where(deferred, judged.large_cost, judged.small_cost)
      values = {COST: float(costs.mean()), MARGIN: loss * judged.scale, RATE: loss}
      value = values.get(promise.name, judged.scale * float(judged.loss(loss * judged.scale)))
    refuted = not fulfilled and guarantees.mean_refuted(losses, promise.level, promise.delta)
    realized.append(Realized(promise.name, promise.demanded, value, fulfilled, refuted))
  return tuple(realized)


def _losses(promise: Promise, judged: Judged | None, deferred: np.ndarray) -> np.ndarray | None:
  """Losses that a promise bounds; None if they cannot be told without labels."""
  if promise.name == RATE or (promise.name == COST and promise.test == 'binomial'):
    return deferred.astype(float)
  if judged is None:
    return None
  if promise.name == MARGIN:
    return np.where(deferred, 0, judged.loss(judged.small) - judged.loss(judged.large))
  if promise.name == QUALITY:
    return np.where(deferred, judged.loss(judged.large), judged.loss(judged.small))
  costs = np.where(deferred, judged.large_cost, judged.small_cost)
  return np.minimum(costs * promise.level / promise.demanded, 1)


def _alarms(
  entry: Threshold, judged: Judged | None, score: np.ndarray, deferred: np.ndarray
) -> list[Alarm]:
  """Numbers of rows after which the monitors raise an alarm."""
  loss = np.full(len(score), np.nan)
  if judged is not None:
    loss = np.where(deferred, judged.loss(judged.large), judged.loss(judged.small))
  return watched(entry, score, deferred, loss, alpha=ALPHA)


def watched(
  entry: Threshold,
  score: np.ndarray,
  deferred: np.ndarray,
  loss: np.ndarray,
  *,
  alpha: float,
  role: str = '',
) -> list[Alarm]:
  """Numbers of rows after which the monitors of a threshold raise an alarm.

  The rows are shuffled: tables are often sorted by their content, which is no drift.

  Args:
    entry: The threshold.
    score: Scores of rows that reach it.
    deferred: True for those that are deferred.
    loss: Loss of their answers; nan without labels.
    alpha: Largest probability of a false alarm.
    role: Name of the model, for the names of the monitors of a chain.
  """
  monitor = policies.monitor(entry, alpha=alpha)
  observed = np.stack([deferred, ~deferred, loss], axis=-1).astype(float)
  generator = np.random.default_rng(0)
  state, first = drift.start(monitor), np.zeros(len(MONITORED), int)
  for count, row in enumerate(generator.permutation(len(score)), start=1):
    state = drift.update(monitor, state, score[row], observed[row], uniform=generator.random())
    first = np.where((first == 0) & drift.alarms(monitor, state), count, first)
  promised = {promise.name for promise in entry.promises}
  has_quality = QUALITY in promised and not np.isnan(loss).all()
  return [
    Alarm(f'{role}: {name}' if role else name, int(first[i]) or None)
    for i, name in enumerate(MONITORED)
    if name != QUALITY or has_quality
  ]
