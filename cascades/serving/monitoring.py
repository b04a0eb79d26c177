"""Reports of a running server about itself: `/metrics` and `/v1/cascade/status`."""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cascades.serving import app, metrics, status
from cascades.serving.breaker import Breaker
from cascades.serving.decisions import DecisionRule
from cascades.serving.exchanges import Exchange, Role
from cascades.serving.metering import Log
from cascades.serving.refusals import Refusal
from cascades.serving.service import Service

MOST_DIGITS = 15  # of a number in a query


class Monitoring:
  """Metrics, the last exchanges, and the log; `record` takes an exchange into all of them."""

  def __init__(self, rule: DecisionRule, breakers: Mapping[Role, Breaker], log: Log | None):
    self._metrics, self._recent = metrics.Metrics(rule.entries), status.Recent()
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

  def watch(self, rule: DecisionRule) -> None:
    """Monitor the scores of another policy."""
    self._metrics.watch(rule.entries)

  def routes(self, service: Service) -> list[BaseRoute]:
    """Routes, which ask for a key as the others do."""
    self._metrics.gauge('requests_running', 'Requests being answered.', lambda: service.running)

    async def exposition(request: Request) -> Response:
      service.client(request.headers.get('authorization'))
      return Response(self._metrics.exposition(), headers={'Content-Type': metrics.CONTENT_TYPE})

    async def state(request: Request) -> Response:
      service.client(request.headers.get('authorization'))
      return app.json_response(self._state(service, request.query_params.get('since', '0')))

    return [
      Route('/metrics', app.guarded(exposition), methods=['GET']),
      Route('/v1/cascade/status', app.guarded(state), methods=['GET']),
    ]

  def _state(self, service: Service, since: str) -> dict[str, object]:
    if not (since.isascii() and since.isdecimal() and len(since) <= MOST_DIGITS):
      raise Refusal(400, f'since: expected the number of a point, found {since!r:.80}.')
    cascade = service.cascade
    return status.status(
      self._recent,
      time=time.time(),
      models={
        'small': cascade.small.model.name,
        'large': cascade.large.model.name if cascade.large else None,
      },
      decider=cascade.rule.decider.name,
      thresholds=cascade.rule.thresholds,
      alarms=self._metrics.alarms(),
      breakers={role: breaker.state for role, breaker in self._breakers.items()},
      log=self._log.failure if self._log else '',
      since=int(since),
    )
