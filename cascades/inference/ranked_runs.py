"""Scores of queries' documents by a ranker, and their measured costs.

Times are medians over the queries of a run, of which few compile a shape.
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


def _milliseconds(seconds: Sequence[float]) -> float:
  """Median, which few calls that compile do not move; 0 of none."""
  return 1000 * float(np.median(seconds)) if len(seconds) else 0.0


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
  result: dict[str, list[tuple[str, float]]] = {}
  encoding: list[float] = []
  scoring: list[float] = []
  total = 0
  counting = progress.Counted[tuple[str, str]]('query', len(queries), lambda _: (1, 0))
  for query, text in counting(iter(queries.items())):
    began = time.perf_counter()
    encoded = model.encode_queries([text])
    encoding.append(time.perf_counter() - began)
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
      scoring.append((time.perf_counter() - began) / len(piece))
    best = ranking.order(scores, names)[: None if candidates else depth]
    result[query] = [(names[i], float(scores[i])) for i in best]
    total += len(names)
  return RankedRun(
    result,
    RankingCosts(_milliseconds(encoding), _milliseconds(scoring), store.bytes_per_document, total),
  )


def by_pairs(
  model: Ranker, queries: Mapping[str, str], documents: Mapping[str, str],
  candidates: Mapping[str, Sequence[str]],
) -> RankedRun:  # fmt: skip
  """Ranks candidates by a cross-encoder, which reads their texts.

  Raises:
    ValueError: A candidate has no text.
  """
  result: dict[str, list[tuple[str, float]]] = {}
  scoring: list[float] = []
  sizes: list[int] = []
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
    scoring.append((time.perf_counter() - began) / len(names))
    best = ranking.order(scores, names)
    result[query] = [(names[i], float(scores[i])) for i in best]
  bytes_read = float(np.mean(sizes))
  return RankedRun(result, RankingCosts(0.0, _milliseconds(scoring), bytes_read, len(sizes)))


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
