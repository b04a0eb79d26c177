"""A stream through an online cascade, in blocks that decide exactly as query by query.

Between two trainings a small model's probabilities of later queries are known, so that those of a
block are computed together; after a training they are computed anew for what is left of it. Levels
run only where they are reached.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from cascades import online
from cascades.inference.levels import Level
from cascades.online import OnlineSettings, OnlineState
from cascades.online_step import (
  CallBudget,
  Decide,
  ExpertAnswer,
  Query,
  StreamAnswer,
  StreamExample,
  one_call,
  online_step,
)
from cascades.tasks import shuffling

BLOCK = 128  # queries that are prepared together

_gate = jax.jit(online.gate)


class ExpertError(OSError):
  """The expert cannot answer this query; the last small model does."""


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
    self._gates: Any = None  # with which `deferring` was computed
    self._updates = np.zeros(len(levels), int)  # after which `probabilities` were
    self._portions: list[list[Any]] = [[] for _ in levels]  # features of rows, as they are reached
    self._portion = np.full(shape, -1)
    self._at = np.zeros(shape, int)

  def example(self, row: int) -> StreamExample:
    """The query of a row."""
    return StreamExample(
      self.queries[row],
      lambda state, level: self._predict(state, row, level),
      lambda state, level: self._defer(state, row, level),
    )

  def _forget(self, state: OnlineState) -> None:
    """Forget what levels said that have learned since, and gates that have."""
    if state.gates is not self._gates:
      self._gates = state.gates
      self._gated[:] = False
    for level, count in enumerate(state.updates):
      if count != self._updates[level]:
        self._updates[level] = count
        self._predicted[:, level] = self._gated[:, level] = False

  def _predict(self, state: OnlineState, row: int, level: int) -> Float[np.ndarray, 'Y']:
    """Probabilities of a level at a row; of later rows that may reach it as well."""
    self._forget(state)
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

  def _defer(self, state: OnlineState, row: int, level: int) -> float:
    """Output of the gate of a level at a row."""
    self._predict(state, row, level)
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
  every_level: bool = False,
) -> Iterator[tuple[StreamAnswer, OnlineState]]:
  """Answer queries in order by `online_step`, and train the small models between them.

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
    delay: Queries that are answered before an answer of the expert is learned from; it is given
      and paid for at once.
    every_level: Runs each level on each query, for its row alone.

  Yields:
    Each answer, and the state after it.
  """
  for together in _blocks(queries, min(block, BLOCK)):
    view = _Block(settings, levels, together, seed)
    for row, query in enumerate(together):
      for level in online.due(settings, state) if learning else ():
        texts, labels = zip(*state.caches[level], strict=True)
        levels[level].partial_fit(texts, labels)
        state = online.trained(state, level)
      state, answer = online_step(
        settings, state, view.example(row), functools.partial(_ask, expert, query, budget),
        view.uniforms[row].tolist(), decide=decide, budget=budget, delay=delay, learning=learning,
        every_level=every_level,
      )  # fmt: skip
      yield answer, state


def _ask(expert: Expert, query: Query, budget: CallBudget | None) -> ExpertAnswer:
  """Answer of the expert with its price, or why there is none."""
  try:
    label = expert(query)
  except ExpertError as error:
    return ExpertAnswer(None, failed=str(error) or type(error).__name__)
  return ExpertAnswer(label, budget.price(query) if budget else one_call(query))


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
