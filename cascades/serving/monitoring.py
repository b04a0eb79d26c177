"""Reports of a running server about itself: the page, its status, and the metrics."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

from starlette.routing import Route

from cascades.serving import app, metrics, page_routes, status
from cascades.serving.breaker import Breaker
from cascades.serving.exchanges import Exchange, Role
from cascades.serving.metering import Log
from cascades.serving.served_policy import ServedPolicy
from cascades.serving.service import Service

REFUSALS = (400, 401, 404, 408, 413, 415, 429, 503)  # statuses


class Monitoring:
  """Metrics, the last exchanges, and the log; `record` takes an exchange into all of them."""

  def __init__(self, policy: ServedPolicy, breakers: Mapping[Role, Breaker], log: Log | None):
    self._metrics, self._recent = metrics.Metrics(policy.entries), status.Recent()
    self._breakers, self._log = breakers, log
    for role, breaker in breakers.items():
      self._metrics.watch_breaker(role, breaker)
    if log is not None:
      self._metrics.watch_log(log)

  def record(self, exchange: Exchange) -> None:
    """Take an exchange into account."""
    self._metrics.record(exchange)
    self._recent.record(exchange)
    if self._log is not None:
      self._log.record(exchange)

  def watch(self, policy: ServedPolicy) -> None:
    """Monitor the scores of another policy."""
    self._metrics.watch(policy.entries)

  def routes(self, service: Service) -> list[Route]:
    """Routes of the page, the status and the metrics."""
    self._metrics.gauge('requests_running', 'Requests being answered.', lambda: service.running)
    for code in REFUSALS:
      count = functools.partial(service.refused.__getitem__, code)
      text = 'Requests refused before any model was asked.'
      self._metrics.gauge('requests_refused', text, count, status=str(code))
    return page_routes.routes(
      functools.partial(self._status, service),
      self._metrics.exposition,
      respond=app.json_response,
      check=service.client,
    )

  def _status(self, service: Service, since: int) -> dict[str, Any]:
    cascade = service.cascade
    state = status.status(
      self._recent,
      time=time.time(),
      models={role: member.model.name for role, member in cascade.members.items()},
      policy=cascade.policy,
      alarms=self._metrics.alarms(),
      breakers={role: breaker.state for role, breaker in self._breakers.items()},
      log=self._log.failure if self._log else '',
      since=since,
    )
    return state | {'name': service.name, 'notes': service.notes}
