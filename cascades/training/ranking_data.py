"""Training examples of rankers: a query, a relevant document, and others that are not.

Axes: B queries of a batch, C candidates, the relevant one first.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cascades.predictions.judgments import Qrels, Run

log = logging.getLogger(__name__)

NO_TEACHER: Run = {}


class RankingExamples(NamedTuple):
  """A batch.

  Attributes:
    queries: Text of each query.
    documents: Texts of each query's candidates.
    teacher: Their scores by a teacher; None without one.
  """

  queries: Sequence[str]
  documents: Sequence[Sequence[str]]
  teacher: Float[np.ndarray, 'B C'] | None


@dataclasses.dataclass(frozen=True)
class RankingData:
  """Judged queries, from which each step draws its batch.

  Negatives are drawn from a query's candidates and its documents of grade 0, and from all documents
  where those are too few.

  Attributes:
    documents: Texts by id.
    queries: Texts by id.
    qrels: Grades; above 0 is relevant.
    candidates: Documents by query, such as those of BM25; hard negatives.
    teacher: Scores of a teacher; negatives are then those that it has scored.
  """

  documents: Mapping[str, str]
  queries: Mapping[str, str]
  qrels: Qrels
  candidates: Run = dataclasses.field(default_factory=dict)
  teacher: Run = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    for setting, table in (
      ('QRELS', self.qrels), ('CANDIDATES', self.candidates), ('TEACHER', self.teacher)
    ):  # fmt: skip
      for query, own in table.items():
        if query not in self.queries:
          raise ValueError(f'{setting} names the query {query!r:.80}, which QUERIES does not have.')
        if absent := [name for name in own if name not in self.documents]:
          raise ValueError(
            f'{setting} names the document {absent[0]!r:.80} for the query {query!r:.80}, and '
            'DOCUMENTS does not have it.'
          )
    if not self.teacher:
      return
    for query in self._relevant:
      absent = [name for name in self.positives(query) if name not in self.teacher.get(query, {})]
      if absent:
        raise ValueError(
          f'TEACHER has no score of the relevant document {absent[0]!r:.80} of the query '
          f'{query!r:.80}: write its scores with MODE=rank, WITH_JUDGED=True.'
        )
    if self._relevant and not self.trained:
      raise ValueError('TEACHER has no score of an irrelevant document of any query.')
    if left_out := len(self._relevant) - len(self.trained):
      log.warning(
        'TEACHER has no score of an irrelevant document of %d of %d queries: they are left out.',
        left_out, len(self._relevant),
      )  # fmt: skip

  @functools.cached_property
  def _relevant(self) -> list[str]:
    return [query for query in self.qrels if self.positives(query)]

  @functools.cached_property
  def trained(self) -> list[str]:
    """Queries that have a relevant document, and with a teacher one that is not, and is scored."""
    return [query for query in self._relevant if not self.teacher or self.negatives(query)]

  def positives(self, query: str) -> list[str]:
    """Relevant documents of a query."""
    return [name for name, grade in self.qrels[query].items() if grade > 0]

  def negatives(self, query: str) -> list[str]:
    """Candidates of a query, and documents of grade 0, that are not relevant."""
    judged, scores = self.qrels[query], self.teacher.get(query, {})
    pool = dict.fromkeys(self.candidates.get(query, scores))
    pool |= dict.fromkeys(name for name, grade in judged.items() if grade <= 0)
    fits = lambda name: judged.get(name, 0) <= 0 and (not self.teacher or name in scores)
    return [name for name in pool if fits(name)]

  def batch(self, seed: int, step: int, size: int, negatives: int) -> RankingExamples:
    """Examples of a step, a function of seed and step alone, so that a run can be resumed."""
    random = np.random.default_rng([seed, step])
    drawn = [self.trained[i] for i in random.integers(len(self.trained), size=size)]
    chosen = [self._candidates(query, negatives, random) for query in drawn]
    teacher = None
    if self.teacher:
      teacher = np.array(
        [[self.teacher[q][name] for name in own] for q, own in zip(drawn, chosen, strict=True)],
        np.float32,
      )
    texts = [[self.documents[name] for name in own] for own in chosen]
    return RankingExamples([self.queries[query] for query in drawn], texts, teacher)

  def _candidates(self, query: str, count: int, random: np.random.Generator) -> list[str]:
    positive = random.choice(self.positives(query))
    pool = self.negatives(query)
    if len(pool) < count and self.teacher:
      return [positive, *random.choice(pool, size=count)]
    chosen = list(random.permutation(pool)[:count])
    while len(chosen) < count:
      name = self._ids[random.integers(len(self._ids))]
      if self.qrels[query].get(name, 0) <= 0:
        chosen.append(name)
    return [positive, *map(str, chosen)]

  @functools.cached_property
  def _ids(self) -> list[str]:
    return list(self.documents)
