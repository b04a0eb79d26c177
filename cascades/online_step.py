"""One query of an online cascade, as a pure function of the state before it.

    (state, example, expert, random numbers) -> (state, row)

The driver owns what is not in the state: it trains the small models that are `online.due` before a
query, and a `StreamExample` computes what they and their gates say where the step reads it. The
expert is a function without arguments, which is called if it has to answer, and then once. See
`online`.

Axes: N levels, Y classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from cascades import online, online_costs
from cascades.online import LevelChoice, OnlineSettings, OnlineState, Waiting


class Query(NamedTuple):
  """A query of the stream; `number` counts from 0, and seeds its jumps."""

  number: int
  id: str
  text: str


class StreamExample(NamedTuple):
  """A query, and what small models say of it; functions of the state before it and a level.

  Attributes:
    query: The query.
    predict: Probabilities of the classes.
    defer: Output of the gate.
  """

  query: Query
  predict: Callable[[OnlineState, int], Float[np.ndarray, 'Y']]
  defer: Callable[[OnlineState, int], float]


class ExpertAnswer(NamedTuple):
  """Answer of the expert.

  Attributes:
    label: Class; None for an answer that names none.
    price: Price of the call.
    failed: Why it did not answer, so that nothing was paid; '' if it did.
  """

  label: int | None
  price: float = 1.0
  failed: str = ''


class StreamAnswer(NamedTuple):
  """Answer to a query.

  Attributes:
    query: The query.
    choice: Level and reason.
    label: Class; None if the expert was asked and gave none.
    probabilities: Those of the levels that ran, in order.
    deferring: Outputs of the gates that were read.
    threshold: Threshold of the gates at this query.
    failed: Why the expert did not answer, so that the last small model did; '' if it did.
  """

  query: Query
  choice: LevelChoice
  label: int | None
  probabilities: tuple[tuple[float, ...], ...]
  deferring: tuple[float, ...]
  threshold: float
  failed: str = ''


def one_call(query: Query) -> float:
  """Price of a call where calls are counted."""
  del query
  return 1.0


class CallBudget(NamedTuple):
  """Calls of the expert in a stream of so many queries, or their price.

  Attributes:
    calls: Number of calls; their price altogether where calls have one.
    length: Queries of the stream.
    price: Price of the call that has just been made for a query, for the driver's `ExpertAnswer`.
  """

  calls: float
  length: int
  price: Callable[[Query], float] = one_call


# Chooses the level of a query, as `online.decide` does.
Decide: TypeAlias = Callable[
  [OnlineSettings, OnlineState, Callable[[int], float], Sequence[float]], LevelChoice
]


def online_step(
  settings: OnlineSettings,
  state: OnlineState,
  example: StreamExample,
  expert_label: Callable[[], ExpertAnswer],
  uniforms: Sequence[float],
  *,
  decide: Decide = online.decide,
  budget: CallBudget | None = None,
  delay: int = 0,
  learning: bool = True,
  every_level: bool = False,
) -> tuple[OnlineState, StreamAnswer]:
  """Answer a query, and learn from the expert's answers that have arrived by then.

  Args:
    settings: Settings of the cascade.
    state: State before the query, with no small model `due`.
    example: The query.
    expert_label: Asks the expert.
    uniforms: Random number in [0, 1) for each small model, which decides on its jump.
    decide: Chooses the level that answers.
    budget: Calls that the whole stream may take, the warm-up included; None for no budget, or for
      the share of the state.
    delay: Queries behind this one that are answered before the expert's answer is learned from; it
      is given and paid for at once.
    learning: False leaves gates and caches as they are.
    every_level: Reads levels that the query does not reach, too, for their row alone.

  Returns:
    The state after the query, and its row.
  """
  number = example.query.number
  state = _with_share(settings, state, budget, seen=number)
  read: dict[int, float] = {}

  def deferring(level: int) -> float:
    read[level] = example.defer(state, level)
    return read[level]

  choice = decide(settings, state, deferring, uniforms)
  asked = choice.level == settings.small
  ran = settings.small if asked or every_level else choice.level + 1
  probabilities = tuple(tuple(example.predict(state, i).tolist()) for i in range(ran))
  answer = expert_label() if asked else None
  paid = answer is not None and not answer.failed
  own = int(np.argmax(probabilities[min(choice.level, settings.small - 1)]))
  row = StreamAnswer(
    example.query, choice, answer.label if answer and paid else own, probabilities,
    tuple(read.values()), state.threshold, answer.failed if answer else '',
  )  # fmt: skip
  price = answer.price if answer and paid else 0.0
  state = state._replace(calls=state.calls + paid, spent=state.spent + price)
  if learning:
    if paid:
      waiting = Waiting(number + delay, example.query.text, probabilities, row.label)
      state = state._replace(waiting=(*state.waiting, waiting))
    state = _arrived(settings, state, number)
  if not online.warming_up(settings, state):
    state = online.keep_share(settings, state, paid=price)
  return state, row


def _with_share(
  settings: OnlineSettings, state: OnlineState, budget: CallBudget | None, *, seen: int
) -> OnlineState:
  """State with the share of calls that a budget leaves, once the warm-up has ended."""
  if budget is None or state.share is not None or online.warming_up(settings, state):
    return state
  unit = state.spent / max(state.calls, 1) or 1.0
  share = online_costs.share_left(budget.calls / unit, budget.length, spent=state.calls, seen=seen)
  return state._replace(share=share, unit=unit)


def _arrived(settings: OnlineSettings, state: OnlineState, number: int) -> OnlineState:
  """State after learning from the expert's answers that are due at a query."""
  arrived: list[Any] = [waiting for waiting in state.waiting if waiting.due <= number]
  state = state._replace(waiting=state.waiting[len(arrived) :])
  for waiting in arrived:
    state = online.learn(
      settings, state, waiting.query, np.array(waiting.probabilities), waiting.label
    )
  return state
