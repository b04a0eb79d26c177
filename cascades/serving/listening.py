"""The socket, its connections, and the end of a server.

A connection that sends no request is closed after some seconds, and more connections than a limit
are refused, so that idle clients take no room from others. At SIGTERM or Ctrl-C the server takes on
nothing more, finishes what is running, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from cascades.runtime import stopping
from cascades.serving.service import Listening

log = logging.getLogger(__name__)

BACKLOG = 512
KEEP_ALIVE_SECONDS = 30
FULL = (
  b'HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n'
  b'Connection: close\r\n\r\n'
)


def bind(options: Listening) -> socket.socket:
  """Socket of the address.

  Raises:
    OSError: The address is not of this machine, or the port is taken.
  """
  family = socket.AF_INET6 if ':' in options.host else socket.AF_INET
  try:
    listener = socket.create_server((options.host, options.port), family=family, backlog=BACKLOG)
  except OSError as error:
    raise OSError(
      error.errno,
      f'HOST={options.host} and PORT={options.port} cannot be listened on ({error.strerror}): '
      'choose another port, or end the program that has it',
    ) from error
  # Connections inherit it. Else the second packet of a response waits 40 ms for an acknowledgment.
  listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  return listener


class _Connection(H11Protocol):
  """A connection that must not be idle."""

  def __init__(self, *arguments: Any, options: Listening, **named: Any):
    super().__init__(*arguments, **named)
    self._options = options
    self._idle: asyncio.TimerHandle | None = None

  def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
    super().connection_made(transport)
    if len(self.connections) > self._options.connections:
      transport.write(FULL)
      transport.close()
      return
    self._expect()

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    self._expect()

  def connection_lost(self, exc: Exception | None) -> None:
    super().connection_lost(exc)
    if self._idle is not None:
      self._idle.cancel()

  def _expect(self) -> None:
    """Set a time for the head of a request, or end it once the head is complete."""
    if self.cycle is not None and not self.cycle.response_complete:
      if self._idle is not None:
        self._idle.cancel()
        self._idle = None
    elif self._idle is None:
      self._idle = self.loop.call_later(self._options.idle_seconds, self._close_idle)

  def _close_idle(self) -> None:
    self._idle = None
    if self.cycle is None or self.cycle.response_complete:
      self.transport.close()


def _is_not_cancellation(record: logging.LogRecord) -> bool:
  return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class DrainingServer(uvicorn.Server):
  """A server that ends as the program does: after a signal, with what is running finished."""

  def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None], url: str):
    super().__init__(config)
    self._on_exit, self._url = on_exit, url

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    await super().startup(sockets)
    if self.started:
      log.info('Listening at %s', self._url)

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    # Uvicorn logs a traceback for each canceled request, at the time limit or when the loop closes.
    logging.getLogger('uvicorn.error').addFilter(_is_not_cancellation)
    await super().shutdown(sockets)
    if self.force_exit:
      # Uvicorn skips this then, and the canceled lifespan would log a traceback.
      await self.lifespan.shutdown()
    log.info('Ended')

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    with stopping.on_signals(self._end):
      yield

  def _end(self, number: int) -> None:
    del number
    if self.should_exit:
      self.force_exit = True
    else:
      count = len(self.server_state.tasks)
      log.info('Ending: %d requests are finished first; a second signal leaves them', count)
    self._on_exit()
    self.should_exit = True


def server(
  app: Starlette,
  options: Listening,
  listener: socket.socket,
  *,
  on_exit: Callable[[], None] = lambda: None,
) -> DrainingServer:
  """Server of an application; `serve([listener])` runs it.

  Args:
    app: The application.
    options: Its connections.
    listener: Socket of `bind`.
    on_exit: Called when the server is asked to end.
  """
  host, port = listener.getsockname()[:2]
  config = uvicorn.Config(
    app,
    http=functools.partial(_Connection, options=options),  # type: ignore[arg-type]
    ws='none',
    loop='asyncio',
    lifespan='on',
    log_config=None,
    access_log=False,
    proxy_headers=False,
    server_header=False,
    timeout_keep_alive=KEEP_ALIVE_SECONDS,
    timeout_graceful_shutdown=round(options.drain_seconds) or 1,
  )
  url = f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'
  return DrainingServer(config, on_exit, url)
