"""A stream through an online cascade, in blocks that decide exactly as query by query.

Between two trainings a small model's probabilities of later queries are known, so that those of a
block are computed together; after a training they are computed anew for what is left of it. Levels
run only where they are reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from cascades import online, online_costs
from cascades.inference.levels import Level
from cascades.online import LevelChoice, OnlineSettings, OnlineState, Waiting
from cascades.tasks import shuffling

BLOCK = 128  # queries that are prepared together

_gate = jax.jit(online.gate)


class Query(NamedTuple):
  """A query of the stream; `number` counts from 0, and seeds its jumps."""

  number: int
  id: str
  text: str


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
    price: Price of the call that has just been made for a query.
  """

  calls: float
  length: int
  price: Callable[[Query], float] = one_call


class ExpertError(OSError):
  """The expert cannot answer this query; the last small model does."""


# Chooses the level of a query, as `online.decide` does.
Decide = Callable[
  [OnlineSettings, OnlineState, Callable[[int], float], Sequence[float]], LevelChoice
]
# Class of a query; None for an answer that names none. It is called only where it is asked.
Expert = Callable[[Query], int | None]


class _Block:
  """Queries with what the small models say of them, computed where and when it is needed."""

  def __init__(
    self, settings: OnlineSettings, levels: Sequence[Level], queries: Sequence[Query], seed: int
  ) -> None:
    self.queries, self._settings, self._levels = queries, settings, levels
    shape = len(queries), len(levels)
    numbers = np.array([[query.number] for query in queries])
    self.uniforms = shuffling.mix(seed, numbers, np.arange(len(levels))) * 2.0**-64
    self.probabilities = np.zeros((BLOCK, len(levels), settings.classes))  # one shape for gates
    self.deferring = np.zeros(shape)
    self._predicted = np.zeros(shape, bool)
    self._gated = np.zeros(shape, bool)
    self._portions: list[list[Any]] = [[] for _ in levels]  # features of rows, as they are reached
    self._portion = np.full(shape, -1)
    self._at = np.zeros(shape, int)

  def forget(self, level: int | None = None) -> None:
    """Forget what a level said, which has learned; of None, the gates."""
    if level is not None:
      self._predicted[:, level] = False
      self._gated[:, level] = False
    else:
      self._gated[:] = False

  def predict(self, state: OnlineState, row: int, level: int) -> Float[np.ndarray, 'Y']:
    """Probabilities of a level at a row; of later rows that may reach it as well."""
    if not self._predicted[row, level]:
      rows = self._likely(state, row, level)
      self._prepare(rows, level)
      for number, features in enumerate(self._portions[level]):
        own = rows[self._portion[rows, level] == number]
        if len(own):
          at = self._at[own, level]
          self.probabilities[own, level] = self._levels[level].predict(features, at)
      self._predicted[rows, level] = True
    return self.probabilities[row, level]

  def _likely(self, state: OnlineState, row: int, level: int) -> Int[np.ndarray, 'n']:
    """A row, and later ones that may reach a level; as many as pass between two trainings.

    A guess: what is missing is computed later, and what is not needed was computed in vain.
    """
    cache = self._settings.caches[level]
    passing = math.ceil(cache * max(self.queries[row].number, 1) / max(state.calls, 1))
    rows = row + np.flatnonzero(~self._predicted[row : row + passing, level])
    likely = np.ones(len(rows), bool)
    for before in range(level):
      jump = online.jump_probability(self._settings.decays[before], state.updates[before])
      passes = self.deferring[rows, before] > state.threshold
      passes |= self.uniforms[rows, before] < jump
      likely &= passes | ~self._gated[rows, before]
    return rows[likely | (rows == row)]

  def _prepare(self, rows: Int[np.ndarray, 'n'], level: int) -> None:
    """Compute the features of rows that have none."""
    fresh = rows[self._portion[rows, level] < 0]
    if len(fresh):
      texts = [self.queries[row].text for row in fresh]
      self._portion[fresh, level] = len(self._portions[level])
      self._at[fresh, level] = np.arange(len(fresh))
      self._portions[level].append(self._levels[level].prepare(texts))

  def defer(self, state: OnlineState, row: int, level: int) -> float:
    """Output of the gate of a level at a row."""
    self.predict(state, row, level)
    if not self._gated[row, level]:
      values = np.asarray(_gate(state.gates, np.float32(self.probabilities)))
      fresh = self._predicted & ~self._gated
      self.deferring[fresh] = values[: len(self.queries)][fresh]
      self._gated |= fresh
    return float(self.deferring[row, level])


def run(
  settings: OnlineSettings,
  levels: Sequence[Level],
  expert: Expert,
  queries: Iterable[Query | None],
  state: OnlineState,
  *,
  seed: int,
  budget: CallBudget | None = None,
  learning: bool = True,
  block: int = BLOCK,
  decide: Decide = online.decide,
  delay: int = 0,
) -> Iterator[tuple[StreamAnswer, OnlineState]]:
  """Answer queries in order, and learn from the expert's answers.

  Args:
    settings: Settings of the cascade.
    levels: Small models, the cheapest first, which are trained in place.
    expert: Asked only for the queries that it has to answer.
    queries: The stream; None where its next query is waited for, so that those before it are
      answered.
    state: State before the first query.
    seed: Seed of the jumps, which depend on it and the number of a query alone.
    budget: Calls that the whole stream may take, the warm-up included; None for no budget, or for
      the share of the state.
    learning: False freezes models and gates.
    block: Number of queries that are prepared together, which changes no answer.
    decide: Chooses the level that answers; `online.decide` by default.
    delay: Queries after which an answer of the expert is learned from; it is given and paid for
      at once.

  Yields:
    Each answer, and the state after it.
  """
  for together in _blocks(queries, min(block, BLOCK)):
    view = _Block(settings, levels, together, seed)
    for row, query in enumerate(together):
      if learning:
        state, arrived = _arrived(settings, state, query.number)
        if arrived:
          view.forget()
        for level in online.due(settings, state):
          texts, labels = zip(*state.caches[level], strict=True)
          levels[level].partial_fit(texts, labels)
          state = online.trained(state, level)
          view.forget(level)
      if budget and state.share is None and not online.warming_up(settings, state):
        unit = state.spent / max(state.calls, 1) or 1.0
        share = online_costs.share_left(
          budget.calls / unit, budget.length, spent=state.calls, seen=query.number
        )
        state = state._replace(share=share, unit=unit)
      answer, state = _answer(settings, view, expert, state, row, decide)
      if learning and answer.choice.level == settings.small and not answer.failed:
        waiting = Waiting(query.number + delay, query.text, answer.probabilities, answer.label)
        state = state._replace(waiting=(*state.waiting, waiting))
        if not delay:
          state, _ = _arrived(settings, state, query.number)
          view.forget()
      paid = 0.0
      if answer.choice.level == settings.small and not answer.failed:
        paid = budget.price(query) if budget else one_call(query)
        state = state._replace(spent=state.spent + paid)
      if not online.warming_up(settings, state):
        state = online.keep_share(settings, state, paid=paid)
      yield answer, state


def _blocks(queries: Iterable[Query | None], size: int) -> Iterator[list[Query]]:
  """Groups of `size` queries at most; None ends one."""
  together: list[Query] = []
  for query in queries:
    if query is not None:
      together.append(query)
    if together and (query is None or len(together) == size):
      yield together
      together = []
  if together:
    yield together


def _arrived(settings: OnlineSettings, state: OnlineState, number: int) -> tuple[OnlineState, bool]:
  """Learn from the answers of the expert that have arrived at a query; also if there are any."""
  arrived = [waiting for waiting in state.waiting if waiting.due <= number]
  state = state._replace(waiting=state.waiting[len(arrived) :])
  for waiting in arrived:
    state = online.learn(
      settings, state, waiting.query, np.array(waiting.probabilities), waiting.label
    )
  return state, bool(arrived)


def _answer(
  settings: OnlineSettings, view: _Block, expert: Expert, state: OnlineState, row: int,
  decide: Decide,
) -> tuple[StreamAnswer, OnlineState]:  # fmt: skip
  """Answer one query, and count a call of the expert."""
  query, levels = view.queries[row], range(settings.small)
  read: dict[int, float] = {}

  def deferring(level: int) -> float:
    read[level] = view.defer(state, row, level)
    return read[level]

  choice = decide(settings, state, deferring, view.uniforms[row].tolist())
  failed, asked = '', choice.level == settings.small
  ran = levels if asked else range(choice.level + 1)
  probabilities = np.array([view.predict(state, row, level) for level in ran])
  label: int | None = int(np.argmax(probabilities[-1]))
  if asked:
    try:
      label = expert(query)
    except ExpertError as error:
      failed = str(error)
  answer = StreamAnswer(
    query, choice, label, tuple(map(tuple, probabilities.tolist())), tuple(read.values()),
    state.threshold, failed,
  )  # fmt: skip
  return answer, state._replace(calls=state.calls + (asked and not failed))
