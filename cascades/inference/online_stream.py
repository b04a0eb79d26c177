"""A stream through an online cascade, in blocks that decide exactly as query by query.

Between two trainings a small model's probabilities of later queries are known, so that those of a
block are computed together; after a training they are computed anew for what is left of it. Levels
run only where they are reached.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from cascades import online, online_costs
from cascades.inference.levels import Level
from cascades.online import LevelChoice, OnlineSettings, OnlineState, Waiting
from cascades.tasks import shuffling

BLOCK = 64  # queries that are prepared together

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


class CallBudget(NamedTuple):
  """Calls of the expert in a stream of so many queries."""

  calls: float
  length: int


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
    self, settings: OnlineSettings, levels: Sequence[Level], queries: Sequence[Query]
  ) -> None:
    self.queries, self._levels = queries, levels
    self._texts = [query.text for query in queries]
    self._prepared: list[Any] = [None] * len(levels)
    shape = len(queries), len(levels)
    self.probabilities = np.zeros((*shape, settings.classes))
    self.deferring = np.zeros(shape)
    self._predicted = np.zeros(shape, bool)
    self._gated = np.zeros(shape, bool)

  def forget(self, level: int | None = None) -> None:
    """Forget what a level said, which has learned; of None, the gates."""
    if level is not None:
      self._predicted[:, level] = False
      self._gated[:, level] = False
    else:
      self._gated[:] = False

  def predict(self, row: int, level: int) -> Float[np.ndarray, 'Y']:
    """Probabilities of a level at a row; of later rows that may reach it as well."""
    if not self._predicted[row, level]:
      if self._prepared[level] is None:
        self._prepared[level] = self._levels[level].prepare(self._texts)
      rows = np.flatnonzero(~self._predicted[:, level])
      likely = np.ones(len(rows), bool)
      for before in range(level):  # a guess: what is missing is computed later
        gated = self._gated[rows, before]
        likely &= ~gated | (self.deferring[rows, before] > online.UNCERTAIN)
      rows = rows[(rows == row) | ((rows > row) & likely)]
      self.probabilities[rows, level] = self._levels[level].predict(self._prepared[level], rows)
      self._predicted[rows, level] = True
    return self.probabilities[row, level]

  def defer(self, state: OnlineState, row: int, level: int) -> float:
    """Output of the gate of a level at a row."""
    self.predict(row, level)
    if not self._gated[row, level]:
      values = np.asarray(_gate(state.gates, np.float32(self._padded())))[: len(self.queries)]
      fresh = self._predicted & ~self._gated
      self.deferring[fresh] = values[fresh]
      self._gated |= fresh
    return float(self.deferring[row, level])

  def _padded(self) -> Float[np.ndarray, 'B N Y']:
    missing = BLOCK - len(self.queries)
    return np.pad(self.probabilities, ((0, max(missing, 0)), (0, 0), (0, 0)))


def run(
  settings: OnlineSettings,
  levels: Sequence[Level],
  expert: Expert,
  queries: Iterable[Query],
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
    queries: The stream.
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
  iterator = iter(queries)
  while together := list(itertools.islice(iterator, min(block, BLOCK))):
    view = _Block(settings, levels, together)
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
        share = online_costs.share_left(*budget, spent=state.calls, seen=query.number)
        state = state._replace(share=share)
      answer, state = _answer(settings, view, expert, state, row, seed, decide)
      if learning and answer.choice.level == settings.small and not answer.failed:
        waiting = Waiting(query.number + delay, query.text, answer.probabilities, answer.label)
        state = state._replace(waiting=(*state.waiting, waiting))
        if not delay:
          state, _ = _arrived(settings, state, query.number)
          view.forget()
      if not online.warming_up(settings, state):
        called = answer.choice.level == settings.small and not answer.failed
        state = online.keep_share(settings, state, called=called)
      yield answer, state


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
  settings: OnlineSettings, view: _Block, expert: Expert, state: OnlineState, row: int, seed: int,
  decide: Decide,
) -> tuple[StreamAnswer, OnlineState]:  # fmt: skip
  """Answer one query, and count a call of the expert."""
  query, levels = view.queries[row], range(settings.small)
  uniforms = shuffling.mix(seed, query.number, np.arange(settings.small)) * 2.0**-64
  read: dict[int, float] = {}

  def deferring(level: int) -> float:
    read[level] = view.defer(state, row, level)
    return read[level]

  choice = decide(settings, state, deferring, uniforms.tolist())
  failed, asked = '', choice.level == settings.small
  ran = levels if asked else range(choice.level + 1)
  probabilities = np.array([view.predict(row, level) for level in ran])
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
