"""The policy of a chain on other rows: promised against realized, level by level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cascades import guarantees
from cascades import metrics as metric_library
from cascades.evaluation import calibration, chain_judgements, pooling, realized
from cascades.evaluation import policy as policies
from cascades.evaluation.calibration import COST, MARGIN, QUALITY, RATE
from cascades.evaluation.chain_judgements import JudgedRows, loss_of, quality_of
from cascades.evaluation.chain_policy import ChainPolicy, Expected
from cascades.evaluation.chain_rows import ModelTables
from cascades.evaluation.policy import Interval, Promise
from cascades.evaluation.realized import ALPHA, Alarm, Outcome, Realized
from cascades.evaluation.routing_policy import Beginning
from cascades.predictions import alignment
from cascades.risk_tests import ROUNDING


def outcomes(
  policy: ChainPolicy, tables: ModelTables, begins: Beginning | None, *, labels: bool = True
) -> list[Outcome]:
  """Applies the policy of a chain to tables of its models.

  Args:
    policy: The policy.
    tables: Tables by the names of the policy's models, in its order, of the same rows.
    begins: Model that each prompt begins at; None for the first one.
    labels: False if the rows have no targets; only scores and deferrals are looked at then.

  Raises:
    ValueError: The tables are of other models or tasks, or lack what a decider reads.
  """
  for name, own in tables.items():
    for table in own:
      policies.check_model(name, policy.models[name], table)
  first = next(iter(tables.values()))
  subsets = {
    expected.task: [
      index for index, table in enumerate(first) if expected.task in (pooling.POOLED, table.task)
    ]
    for expected in policy.expected
  }
  return [
    _outcome(
      policy, expected, {name: [own[i] for i in at] for name, own in tables.items()}, begins, labels
    )
    for expected in policy.expected
    if (at := subsets[expected.task])
  ]


def _outcome(
  policy: ChainPolicy,
  expected: Expected,
  tables: ModelTables,
  begins: Beginning | None,
  labels: bool,
) -> Outcome:
  metric, nobody = metric_library.by_name(policy.metric.name), policy.unanswered_quality
  if labels:
    tables = {name: [alignment.judge(t, metric) for t in own] for name, own in tables.items()}
  rows = chain_judgements.judged(
    tables,
    [policies.stored_decider(level) if level else None for level in policy.levels],
    begins,
    metric,
    cost_axis=policy.cost_axis,
    abstention=None if nobody is None else 1 - float(loss_of(np.array(nobody), metric)),
    surrogate=policy.metric.surrogate,
    labels=labels,
  )[0]
  limits = [level.threshold_of(expected.task) if level else np.inf for level in policy.levels]
  loss, _, answers = rows.measure(limits)
  passed, stored = answers > rows.rows.start, policy.data['tasks']
  name, own = next(iter(tables.items()))
  quality = calibration.quality_at(quality_of(loss, metric), metric.scale, ALPHA)
  return Outcome(
    task=expected.task,
    rows=len(loss),
    calibrated=all(stored[t.task].get(name) == policies.fingerprint(t) for t in own),
    deferral_rate=Interval(*calibration.rate_at(passed, ALPHA)),
    quality=Interval(*quality) if labels else None,
    promises=tuple(
      _promise(promise, rows, limits)
      for promise in expected.promises
      if labels or promise.name in (RATE, COST)
    ),
    alarms=tuple(_alarms(policy, expected.task, rows, limits)),
  )


def _promise(promise: Promise, rows: JudgedRows, limits: Sequence[float]) -> Realized:
  loss, paid, answers = rows.measure(limits)
  losses, value = {
    QUALITY: (loss, float(quality_of(loss.mean(), rows.metric))),
    MARGIN: (loss - rows.losses[-2], float((loss - rows.losses[-2]).mean()) * rows.metric.scale),
    RATE: ((passed := (answers > rows.rows.start).astype(float)), float(passed.mean())),
    COST: (np.minimum(paid * promise.level / promise.demanded, 1), float(paid.mean())),
  }[promise.name]
  fulfilled = float(losses.mean()) <= promise.level + ROUNDING
  refuted = not fulfilled and guarantees.mean_refuted(losses, promise.level, promise.delta)
  return Realized(promise.name, promise.demanded, value, fulfilled, refuted)


def _alarms(
  policy: ChainPolicy, task: str, rows: JudgedRows, limits: Sequence[float]
) -> list[Alarm]:
  """Alarms of all levels, whose false ones have a probability of ALPHA together."""
  loss, _, answers = rows.measure(limits)
  entries = {
    number: entry
    for number, level in enumerate(policy.levels)
    for entry in (level.entries if level else [])
    if entry.task == task
  }
  alarms = []
  for number, entry in entries.items():
    reached = (rows.rows.start <= number) & (answers >= number)
    score = rows.rows.scores[number][reached]
    alarms += realized.watched(
      entry, score, score >= limits[number], loss[reached],
      alpha=ALPHA / len(entries), role=rows.names[number],
    )  # fmt: skip
  return alarms
