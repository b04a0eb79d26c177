"""Responses in the form of OpenAI's API, with an object `cascade` about who answered, and why.

{"author": "small", "task": "all tasks", "score": 0.2, "threshold": 0.5, "deferred": false,
 "flag": "", "discarded_tokens": 0, "dollars": 1e-6, "decision_seconds": 1e-4, "audit": false,
 "levels": [{"role": "small", "score": 0.2, "threshold": 0.5, "deferred": false, "bound": false}],
 "router": null, "models": [{"role": "small", "model": "mine", "prompt_tokens": 5, ...}],
 "ignored": ["user"]}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cascades.serving.exchanges import Exchange, Finish, Token

LOWEST = -9999.0  # OpenAI's number for a log-probability that JSON cannot hold
ABSTAINED = 'The cascade does not answer: it is not sure enough of any answer that it has.'

Json = dict[str, Any]


class Head(NamedTuple):
  """Fields that all objects of a response have.

  Attributes:
    id: Id of the response.
    created: Seconds since the epoch.
    model: Name that the request asked for.
    logprobs: The response has log-probabilities.
    alternatives: Number of most likely tokens at each position that the request asked for.
    ignored: Fields of the request that have no effect.
  """

  id: str
  created: int
  model: str
  logprobs: bool
  alternatives: int
  ignored: Sequence[str]


class Style(NamedTuple):
  """One of OpenAI's two APIs for text.

  Attributes:
    prefix: Beginning of ids.
    response: Name of the object of a whole response.
    chunk: Name of the object of a piece of a stream.
    choice: Choice of a response, from text or None, log-probabilities and finish.
    delta: Choice of a chunk, from the same.
    logprobs: Log-probabilities of tokens, of which so many alternatives are listed; the texts of
      the answer before them have so many characters.
    opening: Choices of the first chunk, which has no text; None for no such chunk.
  """

  prefix: str
  response: str
  chunk: str
  choice: Callable[[str | None, Json | None, Finish | None], Json]
  delta: Callable[[str | None, Json | None, Finish | None], Json]
  logprobs: Callable[[Sequence[Token], int, int], Json]
  opening: Json | None


def response(
  style: Style, head: Head, text: str | None, tokens: Sequence[Token], exchange: Exchange
) -> Json:
  """Whole response.

  Args:
    style: API.
    head: Fields of all objects.
    text: The answer; None if the cascade abstained.
    tokens: Tokens of the answer.
    exchange: The request, done.
  """
  leg = exchange.answer
  finish: Finish = leg.finish if leg and leg.finish else 'stop'
  choice = style.choice(text, _listed(style, head, tokens, 0), finish)
  return {
    **_common(style.response, head),
    'choices': [choice],
    'usage': usage(exchange),
    'cascade': cascade(exchange, head.ignored),
  }


def opening(style: Style, head: Head) -> list[Json]:
  """First chunks of a stream."""
  if style.opening is None:
    return []
  return [{**_common(style.chunk, head), 'choices': [style.opening]}]


def chunk(style: Style, head: Head, text: str, tokens: Sequence[Token], offset: int) -> Json:
  """Piece of a stream, behind `offset` characters."""
  choice = style.delta(text, _listed(style, head, tokens, offset), None)
  return {**_common(style.chunk, head), 'choices': [choice]}


def replaced(style: Style, head: Head) -> Json:
  """Chunk by which all text before it becomes void."""
  empty = chunk(style, head, '', (), 0)
  return {**empty, 'cascade': {'replaced': True}}


def closing(style: Style, head: Head, exchange: Exchange, *, with_usage: bool) -> list[Json]:
  """Last chunks of a stream: the finish, with the object `cascade`, and the usage if asked for."""
  leg = exchange.answer
  text = None if exchange.author is None else ''
  choice = style.delta(text, None, leg.finish if leg and leg.finish else 'stop')
  common = _common(style.chunk, head)
  last = {**common, 'choices': [choice], 'cascade': cascade(exchange, head.ignored)}
  return [last, *([{**common, 'choices': [], 'usage': usage(exchange)}] if with_usage else [])]


def usage(exchange: Exchange) -> Json:
  """Tokens of the model that answered, as a client of that model alone would see them."""
  leg = exchange.answer
  read, written, cached = (
    (leg.prompt_tokens, leg.generated_tokens, leg.cached_tokens) if leg else (0, 0, 0)
  )
  return {
    'prompt_tokens': read,
    'completion_tokens': written,
    'total_tokens': read + written,
    'prompt_tokens_details': {'cached_tokens': cached},
  }


def cascade(exchange: Exchange, ignored: Sequence[str]) -> Json:
  """The object `cascade`: who answered, why, and what it cost."""
  paid = [leg.dollars for leg in exchange.legs]
  routed = exchange.routed
  return {
    'author': exchange.author,
    'task': exchange.task,
    'score': exchange.score,
    'threshold': _finite(exchange.threshold),
    'deferred': exchange.deferred,
    'flag': exchange.flag,
    'discarded_tokens': exchange.discarded_tokens,
    'dollars': None if None in paid else sum(each or 0.0 for each in paid),
    'decision_seconds': exchange.decision_seconds,
    'audit': exchange.is_audit,
    'levels': [
      {
        'role': decision.role,
        'score': decision.score,
        'threshold': _finite(decision.threshold),
        'deferred': decision.deferred,
        'bound': decision.is_bound,
      }
      for decision in exchange.decisions
    ],
    'router': routed
    and {
      'model': routed.role or None,
      'predicted_loss': routed.predicted_loss,
      'drift': routed.drift,
    },
    'models': [
      {
        'role': leg.role,
        'model': leg.model,
        'prompt_tokens': leg.prompt_tokens,
        'cached_tokens': leg.cached_tokens,
        'generated_tokens': leg.generated_tokens,
        'finish': leg.finish,
        'queue_seconds': leg.queue_seconds,
        'seconds': leg.seconds,
        'dollars': leg.dollars,
        'error': leg.error,
        'audit': leg.is_audit,
      }
      for leg in exchange.legs
    ],
    'ignored': list(ignored),
  }


def _finite(threshold: float | None) -> float | None:
  return threshold if threshold is None or math.isfinite(threshold) else None


def _common(name: str, head: Head) -> Json:
  return {'id': head.id, 'object': name, 'created': head.created, 'model': head.model}


def _listed(style: Style, head: Head, tokens: Sequence[Token], offset: int) -> Json | None:
  """Log-probabilities, if the request asked for them and the model gives them."""
  shown = [token for token in tokens if token.content]  # the end of sequence has no text
  if not head.logprobs or any(token.logprob is None for token in shown):
    return None
  return style.logprobs(shown, head.alternatives, offset)


def _number(logprob: float | None) -> float:
  return max(LOWEST, min(logprob or 0.0, 0.0))


def _name(content: bytes) -> str:
  return content.decode(errors='replace')


def _chat_logprobs(tokens: Sequence[Token], alternatives: int, offset: int) -> Json:
  del offset

  def entry(content: bytes, logprob: float | None) -> Json:
    return {'token': _name(content), 'logprob': _number(logprob), 'bytes': list(content)}

  return {
    'content': [
      {
        **entry(token.content, token.logprob),
        'top_logprobs': [entry(*top) for top in token.alternatives[:alternatives]],
      }
      for token in tokens
    ],
    'refusal': None,
  }


def _completion_logprobs(tokens: Sequence[Token], alternatives: int, offset: int) -> Json:
  names = [_name(token.content) for token in tokens]
  offsets = [offset + sum(map(len, names[:number])) for number in range(len(names))]
  tops: list[Mapping[str, float]] = [
    {_name(content): _number(p) for content, p in token.alternatives[:alternatives]}
    for token in tokens
  ]
  return {
    'tokens': names,
    'token_logprobs': [_number(token.logprob) for token in tokens],
    'top_logprobs': tops if alternatives else None,
    'text_offset': offsets,
  }


def _chat_choice(text: str | None, logprobs: Json | None, finish: Finish | None) -> Json:
  message = {
    'role': 'assistant',
    'content': text,
    'refusal': ABSTAINED if text is None else None,
  }
  return {'index': 0, 'message': message, 'logprobs': logprobs, 'finish_reason': finish}


def _chat_delta(text: str | None, logprobs: Json | None, finish: Finish | None) -> Json:
  delta = {'refusal': ABSTAINED} if text is None else {'content': text} if text else {}
  return {'index': 0, 'delta': delta, 'logprobs': logprobs, 'finish_reason': finish}


def _completion_choice(text: str | None, logprobs: Json | None, finish: Finish | None) -> Json:
  return {'index': 0, 'text': text or '', 'logprobs': logprobs, 'finish_reason': finish}


CHAT = Style(
  prefix='chatcmpl-',
  response='chat.completion',
  chunk='chat.completion.chunk',
  choice=_chat_choice,
  delta=_chat_delta,
  logprobs=_chat_logprobs,
  opening={
    'index': 0,
    'delta': {'role': 'assistant', 'content': ''},
    'logprobs': None,
    'finish_reason': None,
  },
)
COMPLETIONS = Style(
  prefix='cmpl-',
  response='text_completion',
  chunk='text_completion',
  choice=_completion_choice,
  delta=_completion_choice,
  logprobs=_completion_logprobs,
  opening=None,
)
