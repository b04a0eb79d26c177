"""State of a server for its page, `/v1/cascade/status`: the last exchanges, without their texts.

    {"version": 1, "name": name, "time": seconds, "models": {"small": name, "large": name | null},
     "decider": name, "thresholds": {task: number | null}, "drift": [{"task": ..., "monitor": ...}],
     "breakers": {role: "closed" | "half-open" | "open"}, "log": reason | "",
     "total": number of exchanges since the start, "recent": [POINT, ...]}

    POINT = {"number": int, "time": seconds, "task": str, "author": "small" | "large" | null,
             "score": number | null, "is_bound": bool, "threshold": number | null,
             "deferred": bool, "flag": str, "status": int, "seconds": number,
             "small": SIDE | null, "large": SIDE | null}
    SIDE = {"dollars": number | null, "tokens": int, "seconds": number, "queue_seconds": number}

A threshold of null never defers. `is_bound` is true of a score that is only a lower bound.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from cascades.serving.exchanges import Exchange, Leg, Role
from cascades.serving.metrics import is_bound

StatusPoint: TypeAlias = dict[str, Any]

VERSION = 1
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
  models: Mapping[Role, str | None],
  decider: str,
  thresholds: Mapping[str, float],
  alarms: Iterable[tuple[str, str]] = (),
  breakers: Mapping[str, str] | None = None,
  log: str = '',
  since: int = 0,
) -> dict[str, Any]:
  """State as JSON.

  Args:
    recent: The last exchanges.
    name: Name of the cascade among models.
    time: Seconds since the epoch.
    models: Names of the models.
    decider: Name of the decider.
    thresholds: Thresholds by task; inf never defers.
    alarms: Alarms of drift, by task and monitor.
    breakers: States of circuit breakers by role.
    log: Reason why the log cannot be written.
    since: Number of the last point that is known already.
  """
  return {
    'version': VERSION,
    'name': name,
    'time': time,
    'models': dict(models),
    'decider': decider,
    'thresholds': {task: _finite(value) for task, value in thresholds.items()},
    'drift': [{'task': task, 'monitor': monitor} for task, monitor in alarms],
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
    'score': _finite(exchange.score),
    'is_bound': is_bound(exchange),
    'threshold': _finite(exchange.threshold),
    'deferred': bool(exchange.deferred),
    'flag': exchange.flag,
    'status': exchange.status,
    'seconds': exchange.seconds,
    'small': _side([leg for leg in exchange.legs if leg.role == 'small']),
    'large': _side([leg for leg in exchange.legs if leg.role == 'large']),
  }


def _side(legs: list[Leg]) -> dict[str, Any] | None:
  """Cost of a model for an exchange; None if it was not asked."""
  if not legs:
    return None
  dollars = [leg.dollars for leg in legs if leg.dollars is not None]
  return {
    'dollars': sum(dollars) if len(dollars) == len(legs) else None,
    'tokens': sum(leg.generated_tokens for leg in legs),
    'seconds': sum(leg.seconds for leg in legs),
    'queue_seconds': sum(leg.queue_seconds for leg in legs),
  }


def _finite(value: float | None) -> float | None:
  return None if value is None or not math.isfinite(value) else float(value)
