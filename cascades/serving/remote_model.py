"""A model behind the URL of an OpenAI-compatible server, as a model of a cascade.

Answers are streamed, so that one that ends early costs no more than its beginning. Nothing is
tried twice here: the cascade says what follows a failure.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx
import httpx_sse
import msgspec

from cascades.inference import endpoint_client
from cascades.inference.endpoints import PATHS, Address, Endpoint
from cascades.predictions.importers import answers
from cascades.predictions.rows import ROUNDING
from cascades.serving.exchanges import AnyPrompt, Finish, ModelError, Piece, Question, Token

MOST_BYTES = 1 << 26  # of a response
MOST_EVENT = 1 << 22  # of one event
MOST_CONNECTIONS = 256
END = '[DONE]'


class RemoteModel:
  """A model behind a URL. It is closed by `aclose`."""

  def __init__(
    self,
    address: Address,
    endpoint: Endpoint,
    *,
    name: str | None = None,
    seconds: float = 120.0,
  ) -> None:
    """Prepares a client; nothing is sent.

    Args:
      address: Address and model.
      endpoint: Form of the requests, and the name of the variable that holds the key.
      name: Name in responses; None for that of the model.
      seconds: Longest silence.

    Raises:
      ValueError: The environment does not hold the key.
    """
    self._address, self._endpoint = address, endpoint
    self.name = name or address.model
    self._key = endpoint.key()
    headers = {'Authorization': f'Bearer {self._key}'} if self._key else {}
    connect = min(seconds, endpoint_client.CONNECT_SECONDS)
    self._http = httpx.AsyncClient(
      headers=headers,
      timeout=httpx.Timeout(seconds, connect=connect),
      limits=httpx.Limits(max_connections=MOST_CONNECTIONS, keepalive_expiry=30.0),
    )

  @property
  def url(self) -> str:
    """URL to which questions are sent."""
    return f'{self._address.url}/{PATHS[self._endpoint.api]}'

  async def aclose(self) -> None:
    """End the connections."""
    await self._http.aclose()

  def count(self, _: AnyPrompt) -> float:
    """Always nan: the tokens of a model behind a URL are counted by its response."""
    return math.nan

  async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    """Answer in pieces; closing the generator ends the connection, and so the answer.

    Raises:
      ValueError: The server refuses this question.
      ModelError: The server cannot be reached, is slow, full, or answers nonsense.
    """
    body = body_of(question, self._address.model, self._endpoint)
    try:
      async with self._http.stream('POST', self.url, json=body) as response:
        response.stream = _Bounded(response.stream)  # type: ignore[arg-type]
        if response.status_code != httpx.codes.OK:
          self._refuse(response, (await response.aread()).decode(errors='replace'))
        async with contextlib.aclosing(self._pieces(response)) as pieces:
          async for piece in pieces:
            yield piece
    except httpx.TimeoutException as error:
      raise ModelError(f'{self._address} is silent ({type(error).__name__})') from error
    except (httpx.HTTPError, httpx_sse.SSEError) as error:
      reason = self._hidden(str(error)) or type(error).__name__
      raise ModelError(f'{self._address} failed: {reason:.300}') from error

  async def _pieces(self, response: httpx.Response) -> AsyncGenerator[Piece, None]:
    """Pieces of a response; the last one waits for the counts, which come after the finish."""
    finish: Finish | None = None
    usage = _Usage()
    async with contextlib.aclosing(self._chunks(response)) as chunks:
      async for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
          finish = _finish(choice.finish_reason) or finish
          text, tokens = _text(choice), tuple(_tokens(choice))
          if text or tokens:
            yield Piece(text, tokens, prompt_tokens=usage.prompt_tokens)
    if finish is None:
      raise ModelError(f'{self._address} ended in the middle of an answer')
    details = usage.prompt_tokens_details
    yield Piece(
      '',
      finish=finish,
      prompt_tokens=usage.prompt_tokens,
      cached_tokens=(details.cached_tokens if details else None) or 0,
      generated_tokens=usage.completion_tokens,
    )

  async def _chunks(self, response: httpx.Response) -> AsyncGenerator[_Chunk, None]:
    """Objects of a stream, or of the whole response of a server that does not stream."""
    if 'json' in response.headers.get('content-type', ''):
      yield self._chunk((await response.aread()).decode(errors='replace'))
      return
    async for event in httpx_sse.EventSource(response).aiter_sse():
      if event.data.strip() == END:
        return
      if event.data:
        yield self._chunk(event.data)

  def _chunk(self, data: str) -> _Chunk:
    try:
      chunk = msgspec.json.decode(data, type=_Chunk)
    except (ValueError, RecursionError) as error:
      raise ModelError(
        f'{self._address} sent no valid chunk: {self._hidden(str(error))}'
      ) from error
    if chunk.error is not None:
      reason = endpoint_client.reason(self._hidden(data))
      raise ModelError(f'{self._address} failed: {reason}')
    return chunk

  def _refuse(self, response: httpx.Response, content: str) -> None:
    status, reason = response.status_code, endpoint_client.reason(self._hidden(content))
    if status in endpoint_client.OF_ONE_ROW:
      raise ValueError(f'{self._address} refuses the request ({status}): {reason}')
    pause = endpoint_client.retry_after(response.headers.get('retry-after', ''))
    raise ModelError(f'{self._address} answered {status}: {reason}', pause or None)

  def _hidden(self, text: str) -> str:
    """The text without the key."""
    secret = self._key or ''
    return text.replace(secret, '***') if len(secret) >= endpoint_client.SECRET else text


def body_of(question: Question, model: str, endpoint: Endpoint) -> dict[str, Any]:
  """Body of a request.

  Raises:
    ValueError: The API has no form for the question.
  """
  body: dict[str, Any] = {'model': model, **_prompt(question, endpoint)}
  body |= {'temperature': question.temperature, 'stream': True}
  body['stream_options'] = {'include_usage': True}
  if question.max_tokens is not None:
    body['max_tokens'] = question.max_tokens
  if question.temperature:
    body |= {'top_p': question.top_p, 'seed': question.seed & 0x7FFFFFFF}  # servers take 31 bits
  if question.stop:
    body['stop'] = list(question.stop)
  if endpoint.logprobs:
    tops = question.alternatives
    chat: dict[str, Any] = {'logprobs': True, 'top_logprobs': tops or None}
    body |= chat if endpoint.api == 'chat' else {'logprobs': max(tops, 1)}
  body |= endpoint.fields
  return {name: value for name, value in body.items() if value is not None}


def _prompt(question: Question, endpoint: Endpoint) -> dict[str, Any]:
  prompt, api = question.prompt, endpoint.api
  if api == 'completions':
    if not isinstance(prompt, str):
      if len(prompt) > 1:
        raise ValueError(
          'a chat of several messages cannot be asked of a model behind the API of completions, '
          'which reads a single text.'
        )
      prompt = prompt[0].content
    return {'prompt': prompt}
  system = [] if endpoint.system is None else [{'role': 'system', 'content': endpoint.system}]
  turns = [('user', prompt)] if isinstance(prompt, str) else prompt
  return {'messages': [*system, *({'role': role, 'content': text} for role, text in turns)]}


class _Bounded(httpx.AsyncByteStream):
  """Body of a response that ends with an error once it is too long."""

  def __init__(self, stream: httpx.AsyncByteStream):
    self._stream = stream

  async def __aiter__(self) -> AsyncIterator[bytes]:
    total = event = 0
    async for data in self._stream:
      total += len(data)
      end = max(data.rfind(b'\n'), data.rfind(b'\r'))
      event = event + len(data) if end < 0 else len(data) - end
      if total > MOST_BYTES or event > MOST_EVENT:
        raise httpx.ReadError('the response is too long')
      yield data

  async def aclose(self) -> None:
    await self._stream.aclose()


class _Top(msgspec.Struct):
  token: str
  logprob: float
  values: list[int] | None = msgspec.field(default=None, name='bytes')

  def content(self) -> bytes:
    if self.values is None or not all(0 <= value < 256 for value in self.values):
      return self.token.encode(errors='replace')
    return bytes(self.values)


class _Listed(_Top):
  top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
  content: list[_Listed] | None = None
  tokens: list[str] | None = None
  token_logprobs: list[float | None] | None = None
  top_logprobs: list[dict[str, float] | None] | None = None


class _Message(msgspec.Struct):
  content: str | None = None
  refusal: str | None = None


class _Choice(msgspec.Struct):
  delta: _Message | None = None
  message: _Message | None = None
  text: str | None = None
  logprobs: _Logprobs | None = None
  finish_reason: str | None = None


class _Details(msgspec.Struct):
  cached_tokens: int | None = None


class _Usage(msgspec.Struct):
  prompt_tokens: int = 0
  completion_tokens: int = 0
  prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
  choices: list[_Choice] = []
  usage: _Usage | None = None
  error: Any = None


def _finish(reason: str | None) -> Finish | None:
  if reason is None or reason == '':
    return None
  if reason not in ('stop', 'length'):
    raise ModelError(f'an answer ended with {reason!r:.80}')
  return 'stop' if reason == 'stop' else 'length'


def _text(choice: _Choice) -> str:
  message = choice.delta or choice.message or _Message()
  return choice.text or message.content or message.refusal or ''


def _tokens(choice: _Choice) -> Iterator[Token]:
  """Tokens of a chunk; without log-probabilities its text is one."""
  listed = choice.logprobs or _Logprobs()
  if listed.content is not None:
    for entry in listed.content:
      tops = sorted(entry.top_logprobs or [], key=lambda top: -top.logprob)
      yield _token(entry.content(), entry.logprob, [(top.content(), top.logprob) for top in tops])
  elif listed.tokens and listed.token_logprobs and len(listed.tokens) == len(listed.token_logprobs):
    alternatives = listed.top_logprobs or []
    for number, (text, logprob) in enumerate(
      zip(listed.tokens, listed.token_logprobs, strict=True)
    ):
      by_text: Mapping[str, float] = (alternatives[number : number + 1] or [None])[0] or {}
      pairs = sorted(by_text.items(), key=lambda pair: -pair[1])
      yield _token(text.encode(errors='replace'), logprob, [(t.encode(), p) for t, p in pairs])
  elif text := _text(choice):
    yield Token(text.encode(errors='replace'), None)


def _token(content: bytes, logprob: float | None, tops: Sequence[tuple[bytes, float]]) -> Token:
  """Token with a log-probability that a table could store."""
  given = [(text, p) for text, p in tops if p > answers.LEAST]
  if logprob is None or logprob > ROUNDING:
    return Token(content, None)
  try:
    value = answers.probability(logprob, [p for _, p in given])
  except ValueError:  # below all listed tokens, and none is listed
    return Token(content, None)
  return Token(content, value, tuple(given))
