"""Scores of queries' documents by a ranker, and their measured costs.

Times are means over the queries of a run, without those in which a shape was compiled.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from cascades import ranking
from cascades.evaluation.ranking_cascade import RankingCosts
from cascades.inference.document_store import DocumentStore
from cascades.inference.ranker import Ranker
from cascades.models.rankers import Encoded
from cascades.runtime import files, progress

log = logging.getLogger(__name__)

SWEEP = 1024  # documents of a store that are scored at a time, where a query has no candidates


class RankedRun(NamedTuple):
  """Documents and scores of each query, the best first, and what they cost."""

  ranked: dict[str, list[tuple[str, float]]]
  costs: RankingCosts


class _Clock:
  """Seconds by name and shape, of which the first call of a shape compiles it."""

  def __init__(self) -> None:
    self._spent: dict[str, dict[int, list[tuple[float, int]]]] = {}

  def add(self, name: str, seconds: float, shape: int, count: int) -> None:
    """Take note of a call."""
    self._spent.setdefault(name, {}).setdefault(shape, []).append((seconds, count))

  def milliseconds(self, name: str) -> float:
    """Mean of a unit, of warm calls where there are any."""
    shapes = [*self._spent.get(name, {}).values()]
    warm = [call for calls in shapes for call in calls[1:]]
    calls = warm or [call for calls in shapes for call in calls]
    return 1000 * sum(s for s, _ in calls) / max(sum(n for _, n in calls), 1)


def by_vectors(
  model: Ranker, queries: Mapping[str, str], store: DocumentStore,
  candidates: Mapping[str, Sequence[str]] | None, *, depth: int | None = None,
) -> RankedRun:  # fmt: skip
  """Ranks documents of a store.

  Args:
    model: The ranker whose vectors the store has.
    queries: Texts by id.
    store: The documents' vectors.
    candidates: Documents of each query; None for all of the store.
    depth: Documents that are returned of all; None for all.

  Raises:
    ValueError: The store lacks a candidate.
  """
  position = {name: i for i, name in enumerate(store.ids)}
  clock, result, total = _Clock(), {}, 0
  counting = progress.Counted[tuple[str, str]]('query', len(queries), lambda _: (1, 0))
  for query, text in counting(iter(queries.items())):
    began = time.perf_counter()
    encoded = model.encode_queries([text])
    clock.add('query', time.perf_counter() - began, 0, 1)
    own = Encoded(encoded.vectors[0], encoded.mask[0])
    names = list(store.ids) if candidates is None else list(candidates[query])
    if absent := [name for name in names if name not in position]:
      raise ValueError(f'STORE has no document {absent[0]!r:.80}, a candidate of {query!r:.80}.')
    rows = [position[name] for name in names]
    scores = np.zeros(len(rows), np.float32)
    for begin in range(0, len(rows), SWEEP):
      began = time.perf_counter()
      piece = rows[begin : begin + SWEEP]
      scores[begin : begin + SWEEP] = model.score(own, store.take(piece))
      clock.add('document', time.perf_counter() - began, len(piece), len(piece))
    best = ranking.order(scores, names)[: None if candidates else depth]
    result[query] = [(names[i], float(scores[i])) for i in best]
    total += len(names)
  return RankedRun(
    result,
    RankingCosts(
      clock.milliseconds('query'), clock.milliseconds('document'), store.bytes_per_document, total
    ),
  )


def by_pairs(
  model: Ranker, queries: Mapping[str, str], documents: Mapping[str, str],
  candidates: Mapping[str, Sequence[str]],
) -> RankedRun:  # fmt: skip
  """Ranks candidates by a cross-encoder, which reads their texts.

  Raises:
    ValueError: A candidate has no text.
  """
  clock, result, sizes = _Clock(), {}, []
  counting = progress.Counted[tuple[str, str]]('query', len(queries), lambda _: (1, 0))
  for query, text in counting(iter(queries.items())):
    names = list(candidates[query])
    if absent := [name for name in names if name not in documents]:
      raise ValueError(
        f'DOCUMENTS has no document {absent[0]!r:.80}, a candidate of {query!r:.80}.'
      )
    read = [documents[name] for name in names]
    sizes += [len(own.encode()) for own in read]
    began = time.perf_counter()
    scores = model.score_pairs(text, read)
    clock.add('document', time.perf_counter() - began, len(names), len(names))
    best = ranking.order(scores, names)
    result[query] = [(names[i], float(scores[i])) for i in best]
  bytes_read = float(np.mean(sizes))
  return RankedRun(
    result, RankingCosts(0.0, clock.milliseconds('document'), bytes_read, len(sizes))
  )


def costs_path(run: epath.PathLike) -> epath.Path:
  """File of a run's costs, beside it."""
  path = epath.Path(run)
  return path.parent / f'{path.name}.json'


def read_costs(run: epath.PathLike) -> RankingCosts:
  """Costs of a run; none, with a warning, where another system has made it.

  Raises:
    ValueError: The file is damaged.
  """
  path = costs_path(files.absolute(run))
  if not path.exists():
    log.warning('%s is absent: the run %s costs nothing in the curves', path.name, run)
    return RankingCosts()
  try:
    costs = RankingCosts(**json.loads(path.read_text()))
    if any(isinstance(cost, bool) or not 0 <= cost < float('inf') for cost in costs):
      raise ValueError(f'costs are numbers of 0 or more, found {tuple(costs)}')
    return costs
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path} holds no costs of a run: {error}. Rank again.') from error
