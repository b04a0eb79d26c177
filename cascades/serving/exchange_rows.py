"""Rows of tables of predictions for the exchanges of a server, one for each model that was asked.

A row has the keys of `predictions.rows`, no targets, and these under `aux` besides:

    {"time": float, "key": str, "task": str, "status": int, "author": role | null,
     "score": float | null, "threshold": float | null, "deferred": bool, "flag": str,
     "levels": [{"role": role, "score": float, "threshold": float | null, "deferred": bool,
                 "bound": bool}],
     "router": {"model": role | "", "predicted_loss": float, "drift": float},
     "decision_seconds": float, "exchange_seconds": float, "discarded_tokens": int,
     "answered": role | "both" | "all" | "some" | null, "audit": bool, "model": str,
     "failed": bool, "finish": "stop" | "length" | null, "queue_seconds": float,
     "cached_tokens": int, "text": "plain" | "digest", "cut_off": true, "error": str,
     "shadow": {"score": float | null, "threshold": float | null, "deferred": bool,
                "author": role | "" | null}}

A threshold of null never defers, as in a policy. `score` and `threshold` are of the first of the
`levels` that decided; `bound` marks a score that is only the least that the answer could have got.
`finish` is null where an answer did not get to its end; `answered` tells whose did: one model's, of
two models `both`, of a longer chain `all` or `some`. `audit` marks requests that were drawn to be
answered by all models. `cut_off` stands only where the answer is, `error` only where texts are
stored, `router` only where one chooses, and `shadow` only where another policy is tried out; its
`author` is null where a model that it would have asked has not answered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from cascades.predictions import rows
from cascades.predictions.imported import NO_TOKEN
from cascades.serving import decisions
from cascades.serving.exchanges import PAIR, Exchange, Leg, Token

UNANSWERED = 'unanswered'  # stream of exchanges in which no model was asked
MOST_ERROR = 300  # characters


def of_exchange(
  exchange: Exchange, *, digest: Callable[[str], str] | None = None
) -> list[tuple[str, rows.JsonRow]]:
  """Rows of an exchange, with the stream that each belongs to.

  Args:
    exchange: The exchange. If no model was asked, its row has nothing but `aux`.
    digest: Function that replaces the prompt and the answers; tokens then have no ids, and errors
      no text. None stores all texts.
  """
  shared = _shared(exchange) | {'text': 'plain' if digest is None else 'digest'}
  if not exchange.legs:
    return [(UNANSWERED, {'aux': {'id': exchange.id} | shared})]
  return [(leg.role, _row(exchange, leg, shared, digest)) for leg in exchange.legs]


def _shared(exchange: Exchange) -> dict[str, Any]:
  shadow, routed = exchange.shadow, exchange.routed
  tried = shadow and {
    'score': _bounded(shadow.score),
    'threshold': _threshold(shadow.threshold),
    'deferred': bool(shadow.deferred),
    'author': shadow.author,
  }
  choice = routed and {
    'model': routed.role,
    'predicted_loss': _bounded(routed.predicted_loss),
    'drift': _bounded(routed.drift),
  }
  return (
    ({'shadow': tried} if tried else {})
    | ({'router': choice} if choice else {})
    | {
      'time': exchange.time,
      'key': exchange.key,
      'task': exchange.task,
      'status': exchange.status,
      'author': exchange.author,
      'score': _bounded(exchange.score),
      'threshold': _threshold(exchange.threshold),
      'deferred': bool(exchange.deferred),
      'flag': exchange.flag,
      'levels': [
        {
          'role': decision.role,
          'score': _bounded(decision.score),
          'threshold': _threshold(decision.threshold),
          'deferred': bool(decision.deferred),
          'bound': decision.is_bound,
        }
        for decision in exchange.decisions
      ],
      'decision_seconds': exchange.decision_seconds,
      'exchange_seconds': exchange.seconds,
      'discarded_tokens': exchange.discarded_tokens,
      'answered': _answered(exchange),
      'audit': exchange.is_audit,
    }
  )


def _answered(exchange: Exchange) -> str | None:
  """Whose answers got to their end."""
  roles = exchange.answered
  if len(roles) > 1:
    if roles == exchange.roles:
      return 'both' if len(roles) == len(PAIR) else 'all'
    return 'some'
  return roles[0] if roles else None


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
