"""Rows of tables of predictions for the exchanges of a server, one for each model that was asked.

A row has the keys of `predictions.rows`, no targets, and these under `aux` besides:

    {"time": float, "key": str, "task": str, "status": int, "author": "small" | "large" | null,
     "score": float | null, "threshold": float | null, "deferred": bool, "flag": str,
     "decision_seconds": float, "exchange_seconds": float, "discarded_tokens": int,
     "answered": "small" | "large" | "both" | null, "model": str, "failed": bool,
     "finish": "stop" | "length" | null, "queue_seconds": float, "cached_tokens": int,
     "text": "plain" | "digest", "cut_off": true, "error": str,
     "shadow": {"score": float, "threshold": float | null, "deferred": bool}}

A threshold of null never defers, as in a policy. `finish` is null where an answer did not get to
its end, and `answered` tells whose did. `cut_off` stands only where the answer is, `error` only
where texts are stored, and `shadow` only where another policy is tried out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from cascades.predictions import rows
from cascades.predictions.imported import NO_TOKEN
from cascades.serving import decisions
from cascades.serving.exchanges import Exchange, Leg, Token

LogStream: TypeAlias = Literal['small', 'large', 'unanswered']

MOST_ERROR = 300  # characters


def of_exchange(
  exchange: Exchange, *, digest: Callable[[str], str] | None = None
) -> list[tuple[LogStream, rows.JsonRow]]:
  """Rows of an exchange, with the stream that each belongs to.

  Args:
    exchange: The exchange. If no model was asked, its row has nothing but `aux`.
    digest: Function that replaces the prompt and the answers; tokens then have no ids, and errors
      no text. None stores all texts.
  """
  shared = _shared(exchange) | {'text': 'plain' if digest is None else 'digest'}
  if not exchange.legs:
    return [('unanswered', {'aux': {'id': exchange.id} | shared})]
  return [(leg.role, _row(exchange, leg, shared, digest)) for leg in exchange.legs]


def _shared(exchange: Exchange) -> dict[str, Any]:
  roles = {leg.role for leg in exchange.legs if leg.finish is not None}
  shadow = exchange.shadow
  tried = shadow and {
    'score': _bounded(shadow.score),
    'threshold': _threshold(shadow.threshold),
    'deferred': bool(shadow.deferred),
  }
  return ({'shadow': tried} if tried else {}) | {
    'time': exchange.time,
    'key': exchange.key,
    'task': exchange.task,
    'status': exchange.status,
    'author': exchange.author,
    'score': _bounded(exchange.score),
    'threshold': _threshold(exchange.threshold),
    'deferred': bool(exchange.deferred),
    'flag': exchange.flag,
    'decision_seconds': exchange.decision_seconds,
    'exchange_seconds': exchange.seconds,
    'discarded_tokens': exchange.discarded_tokens,
    'answered': 'both' if len(roles) > 1 else next(iter(roles), None),
  }


def _threshold(value: float | None) -> float | None:
  return None if value == math.inf else _bounded(value)


def _bounded(value: float | None) -> float | None:
  """The nearest finite number, which JSON can hold; None for nan."""
  if value is None or math.isnan(value):
    return None
  return min(max(float(value), -rows.HIGHEST), rows.HIGHEST)


def _row(
  exchange: Exchange, leg: Leg, shared: dict[str, Any], digest: Callable[[str], str] | None
) -> rows.JsonRow:
  shown = digest or str
  tokens = leg.tokens if all(token.logprob is not None for token in leg.tokens) else ()
  numbers = {
    'prompt_tokens': leg.prompt_tokens,
    'generated_tokens': leg.generated_tokens,
    'seconds': leg.seconds,
  }
  row = rows.build(
    id=exchange.id,
    inputs=shown(decisions.prompt_text(exchange.question)),
    targets=[''],
    answer=shown(leg.text),
    tokens=[_id(token) if digest is None else NO_TOKEN for token in tokens],
    logprobs=[token.logprob for token in tokens if token.logprob is not None],
    statistics={},
    details=rows.Details(
      slice=exchange.task or None,
      columns=numbers if leg.dollars is None else numbers | {'dollars': leg.dollars},
      alternatives=_alternatives(tokens),
    ),
  )
  row['aux'] |= shared | {
    'model': leg.model,
    'finish': leg.finish,
    'failed': bool(leg.error),
    'queue_seconds': leg.queue_seconds,
    'cached_tokens': leg.cached_tokens,
  }
  if leg.finish == 'length':
    row['aux']['cut_off'] = True
  if leg.error and digest is None:
    row['aux']['error'] = leg.error[:MOST_ERROR]
  return row


def _id(token: Token) -> int:
  return NO_TOKEN if token.id is None else token.id


def _alternatives(tokens: Sequence[Token]) -> list[list[float]] | None:
  """Log-probabilities of the alternatives of each token; None unless all tokens have them."""
  if not tokens or not all(token.alternatives for token in tokens):
    return None
  return [sorted((logprob for _, logprob in token.alternatives), reverse=True) for token in tokens]
