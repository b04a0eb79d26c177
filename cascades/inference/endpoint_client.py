"""Client of an OpenAI-compatible server: paced, retried, and within a budget.

Every response is stored before it is used, so that a run that ends early, for whatever reason, asks
for nothing twice. The key is in a header and nowhere else.
"""

from __future__ import annotations

import dataclasses
import email.utils
import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
import numpy as np
import tenacity

from cascades import costs
from cascades.inference.responses import Response, Responses
from cascades.runtime import progress, ranges

log = logging.getLogger(__name__)

STORED = 'Answers so far are stored: rerun the same command to resume.'
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between tries, of which a random share is waited
LONGEST_PAUSE = 600.0  # that a server may ask for in Retry-After
CONNECT_SECONDS = 10.0
MOST_BYTES = 1 << 26  # of a response
SECRET = 8  # characters of the shortest key that is a secret
TRANSIENT = (408, 409, 425, 429)  # and 500 or more
OF_ONE_ROW = (400, 413, 422)  # statuses by which a server refuses one request, and not the client
MAX_TOKENS = ('max_tokens', 'max_completion_tokens')  # fields that bound an answer


class EndpointError(OSError):
  """An endpoint that cannot be used; what it answered before is stored."""


class BudgetError(EndpointError):
  """The budget of requests or of money is spent."""


class TransientError(EndpointError):
  """A failure after which another try may succeed.

  Attributes:
    pause: Seconds that the server asks to wait.
  """

  def __init__(self, message: str, pause: float = 0.0):
    super().__init__(message)
    self.pause = pause


@dataclasses.dataclass(frozen=True)
class Limits:
  """Pace, tries and budget of the requests of a run.

  Attributes:
    concurrency: Requests at a time.
    per_minute: Most requests a minute; None for no limit.
    seconds: Seconds after which a request without a complete response has failed.
    tries: Times that a request is sent before the run ends with its error.
    requests: Requests that the run sends, all tries counted; None for no limit.
    dollars: Money that the run spends; None for no limit.
    prices: Fields of `costs.Prices`, in dollars per token; without them nothing has a price.
  """

  concurrency: int = 8
  per_minute: float | None = None
  seconds: float = 120.0
  tries: int = 8
  requests: int | None = None
  dollars: float | None = None
  prices: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    ranges.check({'CONCURRENCY': self.concurrency, 'TRIES': self.tries}, least=1, integer=True)
    ranges.check({'REQUESTS_PER_MINUTE': self.per_minute, 'REQUEST_SECONDS': self.seconds}, above=0)
    ranges.check({'MAX_REQUESTS': self.requests}, least=0, integer=True)
    ranges.check({'MAX_DOLLARS': self.dollars}, least=0)
    if self.priced is None and self.dollars is not None:
      raise ValueError(
        f'MAX_DOLLARS={self.dollars:g} needs prices per token: set PRICES, such as '
        '{"prompt": 2.5e-6, "generated": 1e-5}.'
      )

  @property
  def priced(self) -> costs.Prices | None:
    """The prices, if there are any."""
    return costs.prices(self.prices, 'PRICES') if self.prices else None


class Reply(NamedTuple):
  """Reply to a request: a response, or the reason why the server refused this request alone."""

  body: Mapping[str, Any]
  seconds: float
  refusal: str = ''


def paid(prices: costs.Prices, body: Mapping[str, Any]) -> float | None:
  """Price of a response by the tokens that it reports; None if it reports none."""
  usage = body.get('usage')
  counts = usage if isinstance(usage, Mapping) else {}
  details = counts.get('prompt_tokens_details')
  cached = details.get('cached_tokens') if isinstance(details, Mapping) else None
  read, written = counts.get('prompt_tokens'), counts.get('completion_tokens')
  if not isinstance(read, int) or not isinstance(written, int):
    return None
  if isinstance(cached, int):
    prices = dataclasses.replace(prices, cached_tokens=cached)
  return _price(prices, read, written)


def _price(prices: costs.Prices, read: int, written: int) -> float:
  return float(prices.charge(np.array(float(read)), np.array(float(written))))


class Budget:
  """Requests and dollars that a run has spent, and may spend. Threads share it.

  A request is sent only if its highest possible price is left, so that no sum of responses that
  are on their way exceeds the budget.
  """

  def __init__(self, limits: Limits):
    self._limits = limits
    self._changed = threading.Condition()
    self._on_their_way: list[float] = []
    self.requests, self.dollars = 0, 0.0

  def reserve(self, most: float) -> None:
    """Wait until a request of this price may be sent. Raises BudgetError if it never may."""
    requests, dollars = self._limits.requests, self._limits.dollars
    with self._changed:
      while True:
        if requests is not None and self.requests >= requests:
          raise BudgetError(f'MAX_REQUESTS={requests} requests are sent. {STORED}')
        if dollars is None or self.dollars + sum(self._on_their_way) + most <= dollars:
          break
        if not self._on_their_way:
          raise BudgetError(
            f'MAX_DOLLARS={dollars:g} does not cover another request, which may cost ${most:.3g}: '
            f'${self.dollars:.3g} are spent. {STORED}'
          )
        self._changed.wait()
      self.requests += 1
      self._on_their_way.append(most)

  def settle(self, most: float, price: float) -> None:
    """Replace the highest possible price of a request by the price paid."""
    with self._changed:
      self._on_their_way.remove(most)
      self.dollars += price
      self._changed.notify_all()


class Pace:
  """Times at which requests are sent: evenly spaced, and none while the server asks to wait."""

  def __init__(self, per_minute: float | None, ended: threading.Event):
    self._interval = 60.0 / per_minute if per_minute else 0.0
    self._ended = ended
    self._lock = threading.Lock()
    self._next = 0.0

  def wait(self) -> None:
    """Wait for the next time; returns at once when the run ends."""
    with self._lock:
      now = time.monotonic()
      own = max(now, self._next)
      self._next = own + self._interval
    if own > now:
      self._ended.wait(own - now)

  def pause(self, seconds: float) -> None:
    """Send nothing for so many seconds."""
    with self._lock:
      self._next = max(self._next, time.monotonic() + seconds)


class Client:
  """Sends requests to one server. Threads share it; use it as a context manager."""

  def __init__(self, url: str, *, key: str | None, limits: Limits, responses: Responses):
    """Prepares connections; nothing is sent.

    Args:
      url: Address of the API, such as http://localhost:8000/v1.
      key: Secret that the server asks for.
      limits: Pace, tries and budget.
      responses: Responses that are not asked for again, to which new ones are added.
    """
    self.url = url
    self.budget = Budget(limits)
    self.retries = 0
    self._limits, self._responses, self._prices = limits, responses, limits.priced
    self._key = key
    self._ended = threading.Event()
    self._pace = Pace(limits.per_minute, self._ended)
    self._reached = False
    self._reported = -progress.SECONDS_BETWEEN_LINES
    self._http = httpx.Client(
      headers={
        'Content-Type': 'application/json',
        **({'Authorization': f'Bearer {key}'} if key else {}),
      },
      timeout=httpx.Timeout(limits.seconds, connect=min(limits.seconds, CONNECT_SECONDS)),
      limits=httpx.Limits(max_connections=limits.concurrency),
    )

  def __enter__(self) -> Client:
    return self

  def __exit__(self, *exception: object) -> None:
    self.end()
    self._http.close()

  def end(self) -> None:
    """Send nothing more: waiting tries end, and responses on their way are still stored."""
    self._ended.set()

  def ask(self, path: str, request: Mapping[str, Any]) -> Reply:
    """Reply to a request, from the disk if it was sent before.

    Args:
      path: Path below the address, such as 'chat/completions'.
      request: Body of the request.

    Raises:
      BudgetError: The budget does not cover it.
      EndpointError: The server cannot be reached, refuses the key or the model, or failed in every
        try.
    """
    url = f'{self.url}/{path}'
    if stored := self._responses.read(url, request):
      return Reply(stored.response, stored.seconds)
    retrying = tenacity.Retrying(
      retry=tenacity.retry_if_exception_type(TransientError),
      stop=tenacity.stop_after_attempt(self._limits.tries),
      wait=_wait,
      sleep=tenacity.sleep_using_event(self._ended),
      before_sleep=self._report,
      reraise=True,
    )
    try:
      return retrying(self._try, url, dict(request))
    except TransientError as error:
      raise EndpointError(
        f'{self.url} failed in {self._limits.tries} tries of one request; the last time, {error}. '
        f'{STORED}'
      ) from error

  def _try(self, url: str, request: dict[str, Any]) -> Reply:
    self._pace.wait()
    if self._ended.is_set():
      raise EndpointError('the run has ended')
    most = self._most(request)
    self.budget.reserve(most)
    price, began = most, time.monotonic()  # a response that is lost may have been billed
    try:
      try:
        response, content = self._send(url, request)
      except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        price = 0.0
        raise self._unreachable(error) from error
      except httpx.RequestError as error:
        raise TransientError(f'{type(error).__name__}: {self._hidden(str(error))}') from error
      self._reached = True
      if response.status_code != httpx.codes.OK:
        price = 0.0
        return Reply({}, 0.0, self._refusal(response, content))
      body = _completion(content)
      if self._prices and (reported := paid(self._prices, body)) is not None:
        price = reported
    finally:
      self.budget.settle(most, price)
    seconds = time.monotonic() - began
    self._responses.write(Response(url, request, body, seconds))
    return Reply(body, seconds)

  def _send(self, url: str, request: Mapping[str, Any]) -> tuple[httpx.Response, str]:
    """Send a request; the text of its response, without the key if the server repeats it."""
    deadline = time.monotonic() + self._limits.seconds
    payload = json.dumps(request).encode()  # halves of surrogate pairs are escaped
    data = bytearray()
    with self._http.stream('POST', url, content=payload) as response:
      for chunk in response.iter_bytes():
        data += chunk
        if len(data) > MOST_BYTES:
          raise EndpointError(f'{url} sent more than {progress.format_bytes(MOST_BYTES)}.')
        if time.monotonic() > deadline:
          raise httpx.ReadTimeout(f'no complete response in {self._limits.seconds:g} s')
    return response, self._hidden(data.decode(errors='replace'))

  def _refusal(self, response: httpx.Response, content: str) -> str:
    """Reason of the server for refusing one request; raises if it refuses the client."""
    status, stated = response.status_code, reason(content)
    answer = f'{self.url} answered {status}: {stated}'
    if status in OF_ONE_ROW:
      return f'{status}: {stated}'
    if status in (401, 403):
      given = 'the key is not accepted' if self._key else 'a key is expected'
      raise EndpointError(
        f'{answer} ({given}): name the environment variable that holds the key, such as '
        'API_KEY_VARIABLE=OPENAI_API_KEY.'
      )
    if status == 404:
      raise EndpointError(f'{answer}. The URL or the model behind its # is wrong.')
    if 'insufficient_quota' in content or not (status in TRANSIENT or status >= 500):
      raise EndpointError(f'{answer}. {STORED}')
    pause = retry_after(response.headers.get('retry-after', ''))
    if pause > LONGEST_PAUSE:
      raise EndpointError(
        f'{answer}. It asks to wait {progress.format_duration(pause)}: rerun the same command then '
        'to resume.'
      )
    self._pace.pause(pause)
    raise TransientError(f'it answered {status}: {stated}', pause)

  def _unreachable(self, error: httpx.RequestError) -> EndpointError:
    """Error for a server without a connection: at the start it is not running, later it may be."""
    if self._reached:
      return TransientError(f'there was no connection ({error})')
    return EndpointError(
      f'{self.url} cannot be reached ({error}): start the server, or correct the URL.'
    )

  def _most(self, request: Mapping[str, Any]) -> float:
    """Highest possible price of a request: a token has one or more bytes."""
    if self._prices is None:
      return 0.0
    bounds = [request[name] for name in MAX_TOKENS if name in request]
    text = json.dumps(request, ensure_ascii=False).encode(errors='replace')
    uncached = dataclasses.replace(self._prices, cached_tokens=0)
    return _price(uncached, len(text), max(bounds, default=0))

  def _report(self, state: tenacity.RetryCallState) -> None:
    """Count a retry, and log it if none was logged for some seconds."""
    self.retries += 1
    if state.outcome and time.monotonic() - self._reported > progress.SECONDS_BETWEEN_LINES:
      self._reported = time.monotonic()
      log.info('%s: trying again, since %s', self.url, state.outcome.exception())

  def _hidden(self, text: str) -> str:
    """The text without the key; short ones, such as EMPTY, are no secrets."""
    secret = self._key or ''
    return text.replace(secret, '***') if len(secret) >= SECRET else text


def _wait(state: tenacity.RetryCallState) -> float:
  """Seconds to the next try: those asked for, and a random share of twice as many each time."""
  error = state.outcome.exception() if state.outcome else None
  pause = error.pause if isinstance(error, TransientError) else 0.0
  return pause + tenacity.wait_random_exponential(FIRST_WAIT, LONGEST_WAIT)(state)


def _completion(content: str) -> dict[str, Any]:
  """Body of a response with one or more choices, or TransientError."""
  try:
    body = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise TransientError(f'it sent no valid JSON ({error})') from error
  if not isinstance(body, dict) or not isinstance(body.get('choices'), list) or not body['choices']:
    raise TransientError(f'it sent no choices: {reason(content)}')
  return body


def reason(content: str) -> str:
  """The message of an error, in one of the forms that servers give it."""
  try:
    stated = json.loads(content)
  except (ValueError, RecursionError):
    stated = content
  for name in ('error', 'message', 'detail'):
    if isinstance(stated, dict) and stated.get(name):
      stated = stated[name]
  return ' '.join(str(stated).split())[:300].rstrip('.') or 'nothing'


def retry_after(header: str) -> float:
  """Seconds of a Retry-After header, which holds them or a date; 0 for anything else."""
  try:
    seconds = float(header)
  except ValueError:
    date = email.utils.parsedate_tz(header)
    seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
  return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
