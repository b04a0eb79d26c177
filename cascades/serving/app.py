"""The HTTP application: routes, errors, and streams.

Everything below /v1 asks for a key where there are keys. No route allows other origins, and bodies
must be `application/json`, which a page of another origin cannot send without being allowed to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cascades.serving import openapi, request_forms, response_forms
from cascades.serving.calls import Call, Event, Replaced
from cascades.serving.exchanges import Exchange, Token
from cascades.serving.keys import ApiKey
from cascades.serving.legs import Delta
from cascades.serving.refusals import CLIENT_CLOSED, Refusal
from cascades.serving.request_forms import Asked, ChatRequest, CompletionRequest
from cascades.serving.response_forms import CHAT, COMPLETIONS, Head, Style
from cascades.serving.service import NamedModel, Service

log = logging.getLogger(__name__)

FIRST_SECONDS = 10.0  # in which a failure is still an HTTP status, and not an event of a stream
PING_SECONDS = 15
HEADERS = {'Cache-Control': 'no-store', 'X-Content-Type-Options': 'nosniff'}

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Answering: TypeAlias = AsyncGenerator[Event, None]


def build(
  service: Service,
  *,
  routes: Sequence[BaseRoute] = (),
  names: Collection[str] | None = None,
) -> Starlette:
  """The application of a service.

  Args:
    service: Answers the requests.
    routes: More routes, such as those of a page.
    names: Names by which clients may call the server; None for any.
  """
  AppStatus.disable_automatic_graceful_drain()  # it would cut streams off at a shutdown
  pages = _Pages(service)
  return Starlette(
    routes=[
      Route('/v1/chat/completions', guarded(pages.chat), methods=['POST']),
      Route('/v1/completions', guarded(pages.completions), methods=['POST']),
      Route('/v1/models', guarded(pages.models), methods=['GET']),
      Route('/v1/models/{name:path}', guarded(pages.model), methods=['GET']),
      Route('/healthz', guarded(pages.health), methods=['GET']),
      Route('/readyz', guarded(pages.readiness), methods=['GET']),
      Route('/openapi.json', guarded(pages.description), methods=['GET']),
      *routes,
    ],
    exception_handlers={HTTPException: _http_error},
    middleware=[] if names is None else [Middleware(_NamedHost, names=names)],
  )


def json_response(
  content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
  """Response of a JSON value."""
  return Response(
    msgspec.json.encode(content),
    status,
    headers={**HEADERS, **(headers or {})},
    media_type='application/json',
  )


def _refused(refusal: Refusal) -> Response:
  return json_response(refusal.body, refusal.status, refusal.headers)


async def _http_error(request: Request, error: Exception) -> Response:
  """Errors of the router, such as an unknown path, in OpenAI's form."""
  del request
  assert isinstance(error, HTTPException)
  refusal = Refusal(error.status_code, f'{error.detail}.')
  return json_response(refusal.body, refusal.status, error.headers)


def guarded(endpoint: Handler) -> Handler:
  """Endpoint with refusals as responses; a bug shows its clients nothing."""

  async def answer(request: Request) -> Response:
    try:
      return await endpoint(request)
    except Refusal as refusal:
      return _refused(refusal)
    except ClientDisconnect:
      return Response(status_code=CLIENT_CLOSED)
    except Exception as error:
      return _refused(_bug(error))

  return answer


def _bug(error: Exception) -> Refusal:
  """Refusal for an error that nobody expects. Its message may quote a request, so it stays out."""
  frame = traceback.extract_tb(error.__traceback__)[-1]
  log.error('%s at %s:%s', type(error).__name__, frame.filename, frame.lineno)
  return Refusal(500, 'The server has failed at this request; its log says where.')


class _NamedHost:
  """Application that refuses requests to other names than its own.

  A page elsewhere can make its own name lead to this machine, and its browser would then let it
  read answers as if they came from there.
  """

  def __init__(self, app: ASGIApp, names: Collection[str]):
    self._app, self._names = app, names

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] == 'http' and _host_name(Headers(scope=scope)) not in self._names:
      message = 'The server is not called so: name the host in HOST_NAMES.'
      await _refused(Refusal(421, message))(scope, receive, send)
      return
    await self._app(scope, receive, send)


def _host_name(headers: Headers) -> str:
  try:
    return urllib.parse.urlsplit(f'//{headers.get("host", "")}').hostname or ''
  except ValueError:
    return ''


class _Pages:
  """Endpoints of a service."""

  def __init__(self, service: Service):
    self._service = service

  async def chat(self, request: Request) -> Response:
    return await self._answer(request, CHAT, ChatRequest)

  async def completions(self, request: Request) -> Response:
    return await self._answer(request, COMPLETIONS, CompletionRequest)

  async def models(self, request: Request) -> Response:
    self._service.client(request.headers.get('authorization'))
    names = self._service.targets
    return json_response({'object': 'list', 'data': [self._model(name) for name in names]})

  async def model(self, request: Request) -> Response:
    self._service.client(request.headers.get('authorization'))
    name = request.path_params['name']
    self._service.target(name)
    return json_response(self._model(name))

  def _model(self, name: str) -> dict[str, Any]:
    return {'id': name, 'object': 'model', 'created': 0, 'owned_by': 'cascades'}

  async def health(self, request: Request) -> Response:
    del request
    return json_response({'status': 'ok'})

  async def readiness(self, request: Request) -> Response:
    del request
    reasons = self._service.reasons()
    content = {'ready': not reasons, 'reasons': reasons, 'notes': self._service.notes}
    return json_response(content, 503 if reasons else 200)

  async def description(self, request: Request) -> Response:
    del request
    names = list(self._service.targets)
    return json_response(openapi.description(names, self._service.limits.max_tokens))

  async def _answer(
    self, request: Request, style: Style, form: type[ChatRequest] | type[CompletionRequest]
  ) -> Response:
    service = self._service
    with contextlib.ExitStack() as stack:
      try:
        key, asked, target = await self._admitted(request, form, stack)
      except Refusal as refusal:
        service.refused[refusal.status] += 1
        raise
      head = _head(asked, service.new_id(style.prefix))
      call = Call(
        head.id,
        asked.question,
        task=target.task,
        role=target.role,
        key=key,
        live=asked.stream,
        provisional=asked.provisional,
      )
      events = service.cascade.answer(call)
      if not asked.stream:
        return await _whole(request, style, head, events)
      first = asyncio.ensure_future(anext(events))
      try:
        await _connected(request.receive, first, FIRST_SECONDS)
        if first.done():
          first.result()  # a refusal is a response of its own
      except BaseException:
        await _close(first, events)
        raise
      release = stack.pop_all()
      chunks = _chunks(style, head, asked.usage, first, events)
      return _EventStream(chunks, first, events, release)

  async def _admitted(
    self,
    request: Request,
    form: type[ChatRequest] | type[CompletionRequest],
    stack: contextlib.ExitStack,
  ) -> tuple[ApiKey, Asked, NamedModel]:
    """Client, request and model, once there is room for it. Raises Refusal."""
    service = self._service
    key = service.client(request.headers.get('authorization'))
    stack.enter_context(service.admitted(key))
    asked = request_forms.parse(await self._body(request), form, service.limits.max_tokens)
    return key, asked, service.target(asked.model)

  async def _body(self, request: Request) -> bytes:
    """Body of a request, of bounded size and time."""
    limits = self._service.limits
    media_type = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if media_type != 'application/json':
      raise Refusal(415, f'Content-Type: expected application/json, found {media_type!r:.80}.')
    body = bytearray()
    try:
      async with asyncio.timeout(limits.body_seconds):
        async for data in request.stream():
          body += data
          if len(body) > limits.body_bytes:
            raise Refusal(413, f'The body has more than {limits.body_bytes} bytes.')
    except TimeoutError as error:
      message = f'The body has not arrived in {limits.body_seconds:g} s.'
      raise Refusal(408, message) from error
    return bytes(body)


def _head(asked: Asked, response_id: str) -> Head:
  return Head(
    id=response_id,
    created=int(time.time()),
    model=asked.model,
    logprobs=asked.logprobs,
    alternatives=asked.question.alternatives,
    ignored=asked.ignored,
  )


async def _connected(
  receive: Receive, work: asyncio.Future[Any], seconds: float | None = None
) -> None:
  """Wait for work, or so many seconds. Raises ClientDisconnect if the client goes away."""

  async def disconnected() -> None:
    while (await receive())['type'] != 'http.disconnect':
      pass

  gone = asyncio.ensure_future(disconnected())
  try:
    await asyncio.wait([work, gone], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if gone.done() and not work.done():
      raise ClientDisconnect
  finally:
    gone.cancel()


async def _whole(request: Request, style: Style, head: Head, events: Answering) -> Response:
  """Whole response to a request."""
  work = asyncio.ensure_future(_collected(events))
  try:
    await _connected(request.receive, work)
  finally:
    await _close(work, events)
  text, tokens, exchange = work.result()
  return json_response(response_forms.response(style, head, text, tokens, exchange))


async def _collected(events: Answering) -> tuple[str | None, list[Token], Exchange]:
  """Text of an answer, None for an abstention, its tokens, and the exchange."""
  text, tokens = '', list[Token]()
  async for event in events:
    if isinstance(event, Delta):
      text += event.text
      tokens += event.tokens
    elif isinstance(event, Exchange):
      return (None if event.author is None else text), tokens, event
  raise AssertionError('an answer ends with its exchange')


async def _chunks(
  style: Style, head: Head, with_usage: bool, first: asyncio.Future[Event], events: Answering
) -> AsyncGenerator[str, None]:
  """Data of the events of a stream."""
  try:
    for chunk in response_forms.opening(style, head):
      yield _json(chunk)
    offset = 0
    event: Event | None = await first
    while event is not None:
      if isinstance(event, Exchange):
        for chunk in response_forms.closing(style, head, event, with_usage=with_usage):
          yield _json(chunk)
      elif isinstance(event, Replaced):
        offset = 0
        yield _json(response_forms.replaced(style, head))
      elif event.text or (head.logprobs and event.tokens):
        yield _json(response_forms.chunk(style, head, event.text, event.tokens, offset))
        offset += len(event.text)
      event = await anext(events, None)
  except Refusal as refusal:
    yield _json(refusal.body)
  except Exception as error:
    yield _json(_bug(error).body)
  yield '[DONE]'


def _json(content: Any) -> str:
  return msgspec.json.encode(content).decode()


async def _close(work: asyncio.Future[Any], events: Answering) -> None:
  """End an answer that may still be awaited."""
  work.cancel()
  await asyncio.gather(work, return_exceptions=True)
  await events.aclose()


class _EventStream(EventSourceResponse):
  """Response of a stream that ends the answer with the connection, whichever ends first."""

  def __init__(
    self,
    chunks: AsyncGenerator[str, None],
    first: asyncio.Future[Event],
    events: Answering,
    release: contextlib.ExitStack,
  ):
    super().__init__(chunks, headers=HEADERS, ping=PING_SECONDS, sep='\n')
    self._ends = chunks, first, events, release

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    chunks, first, events, release = self._ends
    with release:
      try:
        await super().__call__(scope, receive, send)
      finally:
        await chunks.aclose()
        await _close(first, events)
