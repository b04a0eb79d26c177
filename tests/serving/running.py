"""A server of fakes in the loop of a test, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai

from cascades.costs import Prices
from cascades.serving import app, listening
from cascades.serving.calls import Conduct
from cascades.serving.cascade import ServedCascade
from cascades.serving.legs import Member
from cascades.serving.service import HttpLimits, Listening, Service
from tests.serving.fake_models import END, FakeModel, rule

SURE = [('sm', -0.1), ('all', -0.1), END]
UNSURE = [('sm', -0.1), ('al', -3.0), ('l', -0.1), END]
LIMITS = HttpLimits(max_tokens=16)
CONNECTIONS = Listening(port=0, drain_seconds=5.0)
LARGE = [('la', -0.1), ('rge', -0.2), END]


class Running:
  """A running server: its models, records, and clients."""

  def __init__(self, service: Service, small: FakeModel, large: FakeModel, records: list[Any]):
    self.service, self.small, self.large, self.records = service, small, large, records
    self.server: Any = None
    self.url = ''
    self._clients: list[openai.AsyncOpenAI] = []

  def client(self, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=self.url, timeout=10.0, **options)

  def openai(self, **options: Any) -> openai.AsyncOpenAI:
    settings = {'api_key': 'EMPTY', 'max_retries': 0, 'timeout': 10.0} | options
    self._clients.append(openai.AsyncOpenAI(base_url=f'{self.url}/v1', **settings))
    return self._clients[-1]

  async def close(self) -> None:
    for client in self._clients:
      await client.close()


@contextlib.asynccontextmanager
async def serving(
  small: Any = SURE,
  large: Any = LARGE,
  *,
  threshold: float = 0.5,
  limits: HttpLimits = LIMITS,
  connections: Listening = CONNECTIONS,
  conduct: Conduct | None = None,
  **options: Any,
) -> AsyncIterator[Running]:
  """Context manager of a server, which is drained at its end."""
  models = FakeModel('mini', small), FakeModel('maxi', large)
  records: list[Any] = []
  cascade = ServedCascade(
    {
      'small': Member(models[0], Prices(1.0, 10.0)),
      'large': Member(models[1], Prices(100.0, 1000.0)),
    },
    rule(threshold),
    conduct=conduct or Conduct(),
    record=records.append,
  )
  running = Running(Service(cascade, limits=limits, **options), *models, records)
  listener = listening.bind(connections)
  running.server = listening.server(
    app.build(running.service, names=connections.host_names), connections, listener
  )
  running.url = running.server._url
  task = asyncio.create_task(running.server.serve([listener]))
  while not running.server.started:
    await asyncio.sleep(0.01)
  try:
    yield running
  finally:
    await running.close()
    if not running.server.should_exit:  # the tests of the end wait for it; others need not
      for connection in list(running.server.server_state.connections):
        connection.transport.abort()
    running.server.should_exit = True
    await asyncio.wait_for(task, 10)
