"""Exchanges of imaginary models, for tests of what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cascades.predictions import rows
from cascades.serving.exchanges import Exchange, Leg, LevelDecision, Question, Token

NOON = 1_796_040_000.0  # 2026-11-30, 12:00 UTC


def leg(role: Any = 'small', text: str = 'K AE1 T', **changes: Any) -> Leg:
  tokens = [Token(b'x', logprob, id=7) for logprob in (-0.1, -0.4)]
  return Leg(
    role=role, model=f'the {role} model', text=text, tokens=tokens, prompt_tokens=5,
    cached_tokens=2, generated_tokens=2, queue_seconds=0.01, seconds=0.2, dollars=0.001,
    finish='stop',
  )._replace(**changes)  # fmt: skip


def exchange(
  *legs: Leg, score: float | None = None, threshold: float = 0.5, **changes: Any
) -> Exchange:
  """An exchange; its score is below the threshold unless two models were asked, or as given."""
  legs = legs or (leg(),)
  default = 0.75 if len(legs) > 1 else 0.25
  decision = LevelDecision(
    'small', default if score is None else score, threshold, 0.0001, is_bound=legs[0].finish is None
  )
  return Exchange(
    id='x-1', time=NOON, key='alice', task='words', question=Question('c a t'), legs=legs,
    author=legs[-1].role, flag='', seconds=0.3, status=200, decisions=(decision,),
  )._replace(**changes)  # fmt: skip


def replayed(
  small: Sequence[rows.JsonRow],
  large: Sequence[rows.JsonRow],
  scores: Sequence[float],
  threshold: float,
  prices: tuple[float, float],
) -> list[Exchange]:
  """Exchanges of a server that asks both models of each row, and decides at a threshold."""

  def of_row(role: Any, row: rows.JsonRow, price: float) -> Leg:
    logprobs = row['aux']['token_logprobs']
    return leg(
      role, row['prediction'], tokens=[Token(b'', logprob) for logprob in logprobs],
      prompt_tokens=9, generated_tokens=len(logprobs), dollars=price * len(logprobs),
    )  # fmt: skip

  return [
    exchange(
      of_row('small', cheap, prices[0]), of_row('large', dear, prices[1]),
      id=cheap['aux']['id'], question=Question(cheap['inputs']['inputs_pretokenized']),
      score=score, threshold=threshold,
      author='large' if score >= threshold else 'small',
    )
    for cheap, dear, score in zip(small, large, scores, strict=True)
  ]  # fmt: skip
