"""Measures of ranked documents, by the library ir-measures, under this house's rule for ties."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cascades import ranking
from cascades.predictions.judgments import Qrels, Run

MEASURES = ('RR@10', 'nDCG@10', 'R@100')


def ranked(run: Run) -> dict[str, list[str]]:
  """Documents of each query, the best first, equal scores by id; see `ranking.order`."""
  return {
    query: [names[i] for i in ranking.order(np.array([*scores.values()], float), names)]
    for query, scores in run.items()
    for names in [[*scores]]
  }


def per_query(
  qrels: Qrels, documents: Mapping[str, Sequence[str]], measures: Sequence[str] = MEASURES
) -> dict[str, dict[str, float]]:
  """Values by measure and query, of the judged queries that have a relevant document.

  A query without ranked documents has the value 0. Ranks and no scores are handed to the library:
  it would break ties in another order.

  Args:
    qrels: Grades; above 0 is relevant.
    documents: Documents of each query, the best first.
    measures: Names of ir-measures, such as 'RR@10', 'nDCG@10', 'R@100' and 'AP'.

  Raises:
    ImportError: ir-measures is not installed.
    ValueError: A measure is unknown, or no query has a relevant document.
  """
  library = _library()
  parsed = [_parse(library, name) for name in measures]
  judged = {query: own for query, own in qrels.items() if any(g > 0 for g in own.values())}
  if not judged:
    raise ValueError('no query has a relevant document: nothing can be measured.')
  values = {name: dict.fromkeys(judged, 0.0) for name in measures}
  names = dict(zip(map(str, parsed), measures, strict=True))
  for metric in library.iter_calc(parsed, _grades(library, judged), _scored(library, documents)):
    if metric.query_id in judged:
      values[names[str(metric.measure)]][metric.query_id] = metric.value
  return values


def mean(values: Mapping[str, float]) -> float:
  """Mean over queries."""
  return float(np.mean([*values.values()]))


def _library() -> Any:
  try:
    return importlib.import_module('ir_measures')
  except ImportError as error:
    raise ImportError(
      'ir-measures measures ranked documents, and is not installed: pip install '
      "'lm-cascades[rank]', or pip install ir-measures."
    ) from error


def _parse(library: Any, name: str) -> Any:
  try:
    return library.parse_measure(name)
  except (ValueError, NameError, SyntaxError) as error:
    raise ValueError(
      f'{name!r:.80} is no measure of ir-measures: take such as {", ".join(MEASURES)}.'
    ) from error


def _grades(library: Any, qrels: Qrels) -> Iterable[Any]:
  return [library.Qrel(q, d, grade) for q, own in qrels.items() for d, grade in own.items()]


def _scored(library: Any, documents: Mapping[str, Sequence[str]]) -> Iterable[Any]:
  return [
    library.ScoredDoc(query, name, -rank)
    for query, own in documents.items()
    for rank, name in enumerate(own)
  ]
