"""Routes of the page, of the status that it reads, and of the metrics.

The page loads nothing from elsewhere, and its policy forbids to: a text that a model writes cannot
run there, and no other site can frame it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cascades.serving import metrics
from cascades.serving.refusals import Refusal

FOLDER = pathlib.Path(__file__).parent / 'page'
TYPES = {
  'index.html': 'text/html',
  'app.js': 'text/javascript',
  'charts.js': 'text/javascript',
  'style.css': 'text/css',
  'icon.svg': 'image/svg+xml',
}
HEADERS = {
  'Content-Security-Policy': (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'"
  ),
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cache-Control': 'no-cache',
}

MOST_DIGITS = 16

PageHandler: TypeAlias = Callable[[Request], Awaitable[Response]]


def routes(
  status: Callable[[int], dict[str, Any]],
  exposition: Callable[[], bytes],
  *,
  respond: Callable[..., Response],
  check: Callable[[str | None], object],
) -> list[Route]:
  """Routes `/`, `/page/...`, `/v1/cascade/status` and `/metrics`.

  The page itself is open, and holds nothing about the server. The others ask for a key.

  Args:
    status: Function that gives the status, without the points up to a number.
    exposition: Function that gives the metrics.
    respond: Function that makes a response of a JSON value, a status and headers.
    check: Function of the header `Authorization` that raises Refusal for a client without a key.
  """

  def state(request: Request) -> Response:
    since = request.query_params.get('since', '0')
    if not (since.isascii() and since.isdigit() and len(since) < MOST_DIGITS):
      raise Refusal(400, f'since={since!r:.40}: expected the number of a point.', param='since')
    return respond(status(int(since)))

  def measured(request: Request) -> Response:
    del request
    return Response(exposition(), headers={'Content-Type': metrics.CONTENT_TYPE})

  def private(answer: Callable[[Request], Response]) -> PageHandler:
    async def endpoint(request: Request) -> Response:
      try:
        check(request.headers.get('authorization'))
        return answer(request)
      except Refusal as refusal:
        return respond(refusal.body, refusal.status, refusal.headers)

    return endpoint

  return [
    Route('/', _static('index.html'), methods=['GET']),
    *(Route(f'/page/{name}', _static(name), methods=['GET']) for name in TYPES),
    Route('/v1/cascade/status', private(state), methods=['GET']),
    Route('/metrics', private(measured), methods=['GET']),
  ]


def _static(name: str) -> PageHandler:
  content = (FOLDER / name).read_bytes()

  async def endpoint(request: Request) -> Response:
    del request
    return Response(content, headers=HEADERS, media_type=TYPES[name])

  return endpoint
