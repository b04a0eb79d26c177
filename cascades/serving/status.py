"""State of a server for its page, `/v1/cascade/status`: the last exchanges, without their texts.

    {"version": 2, "name": name, "time": seconds, "models": {role: name}, "levels": [LEVEL, ...],
     "routed": bool, "drift": [{"role": ..., "task": ..., "monitor": ...}],
     "breakers": {role: "closed" | "half-open" | "open"}, "log": reason | "",
     "total": number of exchanges since the start, "recent": [POINT, ...]}

    LEVEL = {"role": role, "decider": name | null, "thresholds": {task: number | null}}
    POINT = {"number": int, "time": seconds, "task": str, "author": role | null,
             "decided": role | null, "score": number | null, "is_bound": bool,
             "threshold": number | null, "deferred": bool, "flag": str, "status": int,
             "seconds": number, "sides": {role: SIDE}}
    SIDE = {"dollars": number | null, "tokens": int, "seconds": number, "queue_seconds": number}

Models are in their order, and so are levels; one without a decider is final. A threshold of null
never defers. `score` and `threshold` are of the first decision, which is about `decided`;
`is_bound` is true of a score that is only a lower bound. `sides` has the models that were asked.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from cascades.serving.exchanges import Exchange, Leg, Role
from cascades.serving.served_policy import ServedPolicy

StatusPoint: TypeAlias = dict[str, Any]

VERSION = 2
MOST_POINTS = 500


class Recent:
  """The last exchanges, as points.

  Attributes:
    total: Number of exchanges so far.
    points: The last of them, the oldest first.
  """

  def __init__(self, most: int = MOST_POINTS):
    self.total = 0
    self.points: collections.deque[StatusPoint] = collections.deque(maxlen=most)

  def record(self, exchange: Exchange) -> None:
    """Add an exchange, if a model was asked."""
    if exchange.legs:
      self.total += 1
      self.points.append(point(self.total, exchange))


def status(
  recent: Recent,
  *,
  name: str = 'cascade',
  time: float,
  models: Mapping[Role, str],
  policy: ServedPolicy,
  alarms: Iterable[tuple[str, str, str]] = (),
  breakers: Mapping[str, str] | None = None,
  log: str = '',
  since: int = 0,
) -> dict[str, Any]:
  """State as JSON.

  Args:
    recent: The last exchanges.
    name: Name of the cascade among models.
    time: Seconds since the epoch.
    models: Names of the models by role, in order.
    policy: Policy that is in effect.
    alarms: Alarms of drift: model, task and monitor.
    breakers: States of circuit breakers by role.
    log: Reason why the log cannot be written.
    since: Number of the last point that is known already.
  """
  return {
    'version': VERSION,
    'name': name,
    'time': time,
    'models': dict(models),
    'levels': [
      {
        'role': role,
        'decider': rule.decider.name if rule else None,
        'thresholds': {task: _finite(t) for task, t in rule.thresholds.items()} if rule else {},
      }
      for role, rule in zip(policy.roles, policy.rules, strict=True)
    ],
    'routed': policy.router is not None,
    'drift': [dict(zip(('role', 'task', 'monitor'), alarm, strict=True)) for alarm in alarms],
    'breakers': dict(breakers or {}),
    'log': log,
    'total': recent.total,
    'recent': [each for each in recent.points if each['number'] > since],
  }


def point(number: int, exchange: Exchange) -> StatusPoint:
  """An exchange without its texts."""
  return {
    'number': number,
    'time': exchange.time,
    'task': exchange.task,
    'author': exchange.author,
    'decided': exchange.decisions[0].role if exchange.decisions else None,
    'score': _finite(exchange.score),
    'is_bound': exchange.is_bound,
    'threshold': _finite(exchange.threshold),
    'deferred': bool(exchange.deferred),
    'flag': exchange.flag,
    'status': exchange.status,
    'seconds': exchange.seconds,
    'sides': {
      role: _side(legs)
      for role in exchange.roles
      if (legs := [leg for leg in exchange.legs if leg.role == role])
    },
  }


def _side(legs: list[Leg]) -> dict[str, Any]:
  """Cost of a model for an exchange."""
  dollars = [leg.dollars for leg in legs if leg.dollars is not None]
  return {
    'dollars': sum(dollars) if len(dollars) == len(legs) else None,
    'tokens': sum(leg.generated_tokens for leg in legs),
    'seconds': sum(leg.seconds for leg in legs),
    'queue_seconds': sum(leg.queue_seconds for leg in legs),
  }


def _finite(value: float | None) -> float | None:
  return None if value is None or not math.isfinite(value) else float(value)
