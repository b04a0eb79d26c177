"""Curves of ranking cascades from runs: quality against milliseconds and bytes of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cascades import ranking
from cascades.evaluation import ranked
from cascades.predictions.judgments import Qrels, Run
from cascades.ranking import RankingLevel
from cascades.types import Curve


class RankingCosts(NamedTuple):
  """Measured costs of a scorer.

  Attributes:
    query_milliseconds: Time before any document is scored, such as encoding the query.
    document_milliseconds: Time of scoring a document.
    document_bytes: Stored bytes that scoring a document reads: vectors, or text.
    documents: Documents that were scored.
  """

  query_milliseconds: float = 0.0
  document_milliseconds: float = 0.0
  document_bytes: float = 0.0
  documents: int = 0

  def describe(self) -> str:
    """The costs as a phrase."""
    return (
      f'{self.documents} documents scored, {self.query_milliseconds:.3g} ms for a query and '
      f'{self.document_milliseconds:.3g} ms, {self.document_bytes:.0f} bytes for a document'
    )


class ScoredLevel(NamedTuple):
  """Scorer of a cascade: its name, its scores and what they cost."""

  name: str
  run: Run
  costs: RankingCosts


def curves(
  levels: Sequence[ScoredLevel], qrels: Qrels, measure: str, *, depths: Sequence[int],
  middle: Sequence[int],
) -> dict[str, dict[str, Curve]]:  # fmt: skip
  """Curves by unit of cost and name, over the depth of the last scorer.

  Two scorers have one curve; three have one for each depth of the second.

  Args:
    levels: The scorers, the cheapest first, whose run has all candidates.
    qrels: Grades.
    measure: Name of ir-measures.
    depths: Ascending depths of the last scorer.
    middle: Depths of the second of three.

  Raises:
    ValueError: A scorer lacks the score of a document that it is to read.
  """
  judged = [q for q, own in qrels.items() if max(own.values()) > 0 and levels[0].run.get(q)]
  if not judged:
    raise ValueError(f'no judged query is in the run {levels[0].name!r}: the ids do not agree.')
  ids = [list(levels[0].run[query]) for query in judged]
  scores = [
    [np.array([level.run.get(q, {}).get(name, np.nan) for name in own], float)
     for q, own in zip(judged, ids, strict=True)]
    for level in levels
  ]  # fmt: skip

  def quality(orders: Sequence[np.ndarray]) -> float:
    documents = {
      query: [own[i] for i in order] for query, own, order in zip(judged, ids, orders, strict=True)
    }
    return ranked.mean(ranked.per_query(qrels, documents, [measure])[measure])

  panels: dict[str, dict[str, Curve]] = {'milliseconds': {}, 'bytes read': {}}
  for before in [()] if len(levels) == 2 else [(depth,) for depth in middle]:
    name = ' > '.join(level.name for level in levels) + ''.join(f', {m} of them' for m in before)
    reachable = [depth for depth in depths if not before or depth <= before[0]]
    timed, sized = (
      [
        RankingLevel(own, per_query, per_document)
        for own, (per_query, per_document) in zip(scores, map(costs, levels), strict=True)
      ]
      for costs in (_milliseconds, _bytes)
    )
    try:
      curve = ranking.cascade_curve(timed, ids, quality, depths=reachable, before=before)
    except ValueError as error:
      raise ValueError(
        f'{name}: {error} A run of RUNS lacks documents that an earlier one ranks high: lower '
        'DEPTHS or MIDDLE, or rank with a greater DEPTH.'
      ) from error
    counts = [len(own) for own in ids]
    read = [ranking.cascade_cost(sized, [*before, depth], counts) for depth in reachable]
    panels['milliseconds'][name] = curve
    panels['bytes read'][name] = curve._replace(cost=np.array(read))
  return panels


def _milliseconds(level: ScoredLevel) -> tuple[float, float]:
  return level.costs.query_milliseconds, level.costs.document_milliseconds


def _bytes(level: ScoredLevel) -> tuple[float, float]:
  return 0.0, level.costs.document_bytes


def points(curve: Curve) -> list[str]:
  """Lines of a log, one for each point."""
  return [
    f'depth {-threshold if np.isfinite(threshold) else 0:.0f}: quality {quality:.4f}, {cost:.4g} ms'
    for threshold, _, quality, cost in zip(*curve, strict=True)
  ]


def as_json(panels: Mapping[str, Mapping[str, Curve]]) -> dict[str, Any]:
  """Curves as JSON: depth, share of the candidates, quality and cost."""
  return {
    unit: {
      name: {
        'depth': [-t if np.isfinite(t) else 0 for t in curve.threshold.tolist()],
        **{f: getattr(curve, f).tolist() for f in ('deferral_rate', 'quality', 'cost')},
      }
      for name, curve in own.items()
    }
    for unit, own in panels.items()
  }
