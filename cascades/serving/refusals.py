"""Refusals of requests, in OpenAI's form of errors."""

from __future__ import annotations

import http
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cascades.serving.exchanges import ModelError

LONGEST_RETRY = 3600.0  # seconds that Retry-After may ask for
CLIENT_CLOSED = 499  # status in logs of a request whose client went away

# Types of errors by status; clients choose their exception by the status, and show these.
_TYPES: Mapping[int, str] = MappingProxyType({
  401: 'authentication_error',
  403: 'permission_error',
  429: 'rate_limit_error',
})  # fmt: skip


class Refusal(Exception):  # noqa: N818 (an answer to a client, not a fault)
  """A request that gets an error in the place of an answer.

  Attributes:
    status: HTTP status.
    code: Short name of the reason.
    param: Field of the request that is to blame.
    retry_after: Seconds after which another try may succeed.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    retry_after: float | None = None,
  ):
    super().__init__(message)
    self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

  @property
  def body(self) -> dict[str, Any]:
    """Body of the response."""
    fallback = 'invalid_request_error' if self.status < 500 else 'server_error'
    type_name = _TYPES.get(self.status, fallback)
    return {
      'error': {
        'message': str(self),
        'type': type_name,
        'param': self.param,
        'code': self.code or http.HTTPStatus(self.status).phrase.lower().replace(' ', '_'),
      }
    }

  @property
  def headers(self) -> dict[str, str]:
    """Headers of the response."""
    headers = {'WWW-Authenticate': 'Bearer'} if self.status == 401 else {}
    if self.retry_after is not None:
      headers['Retry-After'] = str(max(1, math.ceil(min(self.retry_after, LONGEST_RETRY))))
    return headers


def of_error(error: Exception, role: str, *, is_first: bool) -> Refusal:
  """Refusal for an error of a model.

  Args:
    error: The error: 400 for a question that the model cannot answer, 429 or 503 else.
    role: The model.
    is_first: True for the model that was asked first, whose full queue is the server's.
  """
  if isinstance(error, Refusal):
    return error
  if isinstance(error, ValueError):
    return Refusal(400, str(error), code='unanswerable')
  if not isinstance(error, ModelError):
    raise error
  full = error.retry_after is not None
  return Refusal(
    429 if full and is_first else 503,
    f'The {role} model cannot answer now: {error}',
    code=f'{role}_model_unavailable',
    retry_after=error.retry_after,
  )
