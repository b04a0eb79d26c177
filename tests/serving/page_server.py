"""A server of imaginary models in a thread of the test, with the page."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence

import uvicorn

from cascades.costs import Prices
from cascades.serving import app, page_routes
from cascades.serving import status as statuses
from cascades.serving.breaker import Breaker
from cascades.serving.cascade import ServedCascade
from cascades.serving.exchanges import Question
from cascades.serving.keys import ApiKey
from cascades.serving.legs import Member
from cascades.serving.metrics import Metrics
from cascades.serving.service import Service
from tests.serving.fake_models import END, FakeModel, rule

THRESHOLD = 0.5


def phonemes(question: Question) -> list[tuple[str, float]]:
  """An answer whose tokens are the less certain, the more z's the question has."""
  prompt = question.prompt if isinstance(question.prompt, str) else question.prompt[0].content
  letters = [letter for letter in prompt if letter != ' ']
  doubt = 0.02 + 1.5 * letters.count('z') / len(letters)
  draw = random.Random(prompt)
  words = [(' ' if i else '') + letter.upper() for i, letter in enumerate(letters)]
  return [(word, -doubt * draw.choice((0.1, 0.5, 1, 3))) for word in words] + [END]


class PageServer:
  """The server.

  Attributes:
    url: Address of the page.
    recent: What the status shows.
    alarms: Alarms of drift that it shows.
    breaker: Circuit breaker that it shows.
  """

  def __init__(self, keys: Sequence[ApiKey] = (), seconds: float = 0.0):
    self.recent, self.metrics, self.breaker = statuses.Recent(), Metrics(), Breaker(failures=1)
    self.alarms: list[tuple[str, str, str]] = []
    self.small = FakeModel('runs/demo/small', phonemes, seconds)
    self.large = FakeModel('runs/demo/large', phonemes, seconds)
    self.cascade = ServedCascade(
      {
        'small': Member(self.small, Prices(1e-8, 2e-8)),
        'large': Member(self.large, Prices(1e-7, 4e-7)),
      },
      rule(THRESHOLD), record=self._record,
    )  # fmt: skip
    self.service = Service(self.cascade, keys=keys)
    routes = page_routes.routes(
      self._status, self.metrics.exposition, respond=app.json_response, check=self.service.client
    )
    config = uvicorn.Config(
      app.build(self.service, routes=routes), port=0, log_level='error', lifespan='off'
    )
    self._server = uvicorn.Server(config)
    self.url = ''

  def _record(self, exchange):
    self.recent.record(exchange)
    self.metrics.record(exchange)

  def _status(self, since):
    return statuses.status(
      self.recent, name='cascade', time=time.time(),
      models={role: member.model.name for role, member in self.cascade.members.items()},
      policy=self.cascade.policy, alarms=self.alarms,
      breakers={'large': self.breaker.state}, since=since,
    )  # fmt: skip

  @contextlib.contextmanager
  def running(self) -> Iterator[PageServer]:
    thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()), daemon=True)
    thread.start()
    while not self._server.started:
      time.sleep(0.005)
    port = self._server.servers[0].sockets[0].getsockname()[1]
    self.url = f'http://127.0.0.1:{port}/'
    try:
      yield self
    finally:
      self._server.should_exit = True
      thread.join(10)
