"""A server that sends given bytes and may close its connection, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any


class Script:
  """Bytes that each request gets, and the requests.

  Attributes:
    parts: Sent one after another; a number waits for so many seconds.
    requests: Head and body of each request.
    closed: Set once a client has closed its connection before the end.
  """

  def __init__(self) -> None:
    self.parts: Sequence[bytes | float] = ()
    self.requests: list[tuple[str, Any]] = []
    self.closed = asyncio.Event()
    self.url = ''

  async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
      head = (await reader.readuntil(b'\r\n\r\n')).decode()
      length = next(
        int(line.split(':')[1])
        for line in head.splitlines()
        if line.lower().startswith('content-l')
      )
      self.requests.append((head, json.loads(await reader.readexactly(length))))
      gone = asyncio.create_task(reader.read(1))
      for part in self.parts:
        if isinstance(part, bytes):
          writer.write(part)
          await writer.drain()
        else:
          await asyncio.wait([gone], timeout=part)
        if gone.done():
          self.closed.set()
          break
      gone.cancel()
    writer.close()


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Script]:
  """Context manager of a server."""
  script = Script()
  server = await asyncio.start_server(script._serve, '127.0.0.1', 0)
  script.url = f'http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1'
  async with server:
    yield script


def head(status: str = '200 OK', kind: str = 'text/event-stream', **headers: str) -> bytes:
  lines = [f'HTTP/1.1 {status}', f'Content-Type: {kind}', 'Connection: close']
  lines += [f'{name.replace("_", "-")}: {value}' for name, value in headers.items()]
  return '\r\n'.join([*lines, '', '']).encode()


def event(content: Any) -> bytes:
  text = content if isinstance(content, str) else json.dumps(content)
  return f'data: {text}\n\n'.encode()


def delta(
  text: str | None = None, finish: str | None = None, logprob: float | None = None
) -> bytes:
  choice: dict[str, Any] = {'index': 0, 'delta': {'content': text}, 'finish_reason': finish}
  if logprob is not None:
    content = {'token': text, 'logprob': logprob, 'bytes': list((text or '').encode())}
    content['top_logprobs'] = [{'token': text, 'logprob': logprob, 'bytes': None}]
    choice['logprobs'] = {'content': [content]}
  return event({'id': 'x', 'choices': [choice]})


USAGE = event({'choices': [], 'usage': {
  'prompt_tokens': 7, 'completion_tokens': 2, 'prompt_tokens_details': {'cached_tokens': 4},
}})  # fmt: skip
DONE = event('[DONE]')
