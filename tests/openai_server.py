"""A server with OpenAI's API, on a real socket, whose faults a test chooses.

It answers the words of tests/tiny.py: `large` always right, `small` right for words of few letters,
with lower log-probabilities where it is wrong.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[BaseHTTPRequestHandler], None]


def answer(model: str, prompt: str) -> tuple[list[str], list[float]]:
  """Tokens and log-probabilities of an answer."""
  letters = prompt.split()[::-1]
  wrong = model == 'small' and len(letters) > 3
  words = letters if wrong else [letter.upper() for letter in letters]
  tokens = [word if i == 0 else f' {word}' for i, word in enumerate(words)]
  return tokens, [-0.9 if wrong else -0.01 * (i + 1) for i in range(len(tokens))]


def body(path: str, request: dict[str, Any]) -> dict[str, Any]:
  """Response to a request, as vLLM would write it."""
  chat = path.endswith('/chat/completions')
  prompt = request['messages'][-1]['content'] if chat else request['prompt']
  tokens, logprobs = answer(request['model'], prompt)
  usage = {'prompt_tokens': len(prompt.split()), 'completion_tokens': len(tokens)}
  choice: dict[str, Any] = {'index': 0, 'finish_reason': 'stop'}
  count = request.get('top_logprobs', 0) if chat else request.get('logprobs', 0)
  tops = [
    {token: p, **{f'{token}{n}': p - n for n in range(1, count)}}
    for token, p in zip(tokens, logprobs, strict=True)
  ]
  if chat:
    choice['message'] = {'role': 'assistant', 'content': ''.join(tokens)}
    listed: Any = [
      {
        'token': token, 'logprob': p, 'bytes': list(token.encode()),
        'top_logprobs': [{'token': t, 'logprob': q, 'bytes': []} for t, q in top.items()][:count],
      }
      for token, p, top in zip(tokens, logprobs, tops, strict=True)
    ]  # fmt: skip
    listed = {'content': listed}
  else:
    choice['text'] = ''.join(tokens)
    listed = {'tokens': tokens, 'token_logprobs': logprobs, 'top_logprobs': tops}
  choice['logprobs'] = listed if request.get('logprobs') else None
  return {'id': 'x', 'model': request['model'], 'choices': [choice], 'usage': usage}


class Server:
  """A running server: its address, the requests that it got, and the faults that come next.

  Attributes:
    faults: What the next requests get instead of an answer, the first first.
    change: Changes each response before it is sent.
    requests: Path, headers and body of each request, in the order of arrival.
    most_at_once: Largest number of requests that were answered at a time.
  """

  def __init__(self) -> None:
    self.faults: deque[Fault | None] = deque()
    self.change: Callable[[dict[str, Any], dict[str, Any]], Any] = lambda response, request: (
      response
    )
    self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
    self.delay = 0.0
    self.most_at_once = self.at_once = 0
    self.lock = threading.Lock()
    self.released = threading.Event()
    self.http = ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
    self.http.daemon_threads = True

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.http.server_address[1]}/v1'

  @property
  def prompts(self) -> list[str]:
    return [sent['messages'][-1]['content'] for _, _, sent in self.requests]

  def _handler(server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'
      disable_nagle_algorithm = True

      def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with server.lock:
          server.requests.append((self.path, dict(self.headers), request))
          fault = server.faults.popleft() if server.faults else None
          server.at_once += 1
          server.most_at_once = max(server.most_at_once, server.at_once)
        try:
          server.released.wait(server.delay)
          if fault:
            fault(self)
          else:
            send(self, 200, server.change(body(self.path, request), request))
        finally:
          with server.lock:
            server.at_once -= 1

      def log_message(self, *_: Any) -> None:
        pass

    return Handler


def send(
  handler: BaseHTTPRequestHandler, status: int, content: Any, headers: dict[str, str] | None = None
) -> None:
  """Send JSON, or bytes as they are."""
  data = content if isinstance(content, bytes) else json.dumps(content).encode()
  handler.send_response(status)
  for name, value in {'Content-Length': str(len(data)), **(headers or {})}.items():
    handler.send_header(name, value)
  handler.end_headers()
  handler.wfile.write(data)


def status(code: int, message: str = 'no', **headers: str) -> Fault:
  """Fault: an error in OpenAI's form."""
  content = {'error': {'message': message, 'type': 'x', 'code': None}}
  return lambda handler: send(handler, code, content, headers)


def content(data: bytes) -> Fault:
  """Fault: a response of these bytes."""
  return lambda handler: send(handler, 200, data)


def truncated(handler: BaseHTTPRequestHandler) -> None:
  """Fault: a body that ends before its length."""
  handler.send_response(200)
  handler.send_header('Content-Length', '1000')
  handler.end_headers()
  handler.wfile.write(b'{"choices": [')
  closed(handler)


def closed(handler: BaseHTTPRequestHandler) -> None:
  """Fault: the connection is closed without a response."""
  handler.close_connection = True
  handler.connection.close()


def slow(seconds: float) -> Fault:
  """Fault: a whole response that comes byte by byte, so that no single wait is long."""

  def drip(handler: BaseHTTPRequestHandler) -> None:
    data = json.dumps({'choices': [{'message': {'content': 'late'}}]}).encode()
    spaces = math.ceil(seconds / 0.05)
    handler.send_response(200)
    handler.send_header('Content-Length', str(spaces + len(data)))
    handler.end_headers()
    event = threading.Event()
    with contextlib.suppress(OSError):
      for _ in range(spaces):
        handler.wfile.write(b' ')
        event.wait(0.05)
      handler.wfile.write(data)

  return drip


@contextlib.contextmanager
def running() -> Iterator[Server]:
  """Context manager of a server in a thread."""
  server = Server()
  thread = threading.Thread(target=server.http.serve_forever, kwargs={'poll_interval': 0.01})
  thread.start()
  try:
    yield server
  finally:
    server.released.set()
    server.http.shutdown()
    server.http.server_close()
    thread.join()
