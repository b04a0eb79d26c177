"""Measures of ranked documents, and curves of ranking cascades from runs."""

import builtins
import sys

import numpy as np
import pytest

from cascades.evaluation import ranked, ranking_cascade
from cascades.evaluation.ranking_cascade import RankingCosts, ScoredLevel
from cascades.predictions import judgments
from tests.real_data import real


def _reciprocal_rank(grades, documents):
  ranks = [rank for rank, name in enumerate(documents[:10], 1) if grades.get(name, 0) > 0]
  return 1 / ranks[0] if ranks else 0.0


@pytest.mark.parametrize('rank', [1, 2, 10, 11])
def test_a_relevant_document_counts_the_inverse_of_its_rank_up_to_10(rank):
  documents = [f'd{i}' for i in range(1, 21)]
  values = ranked.per_query({'q': {f'd{rank}': 1}}, {'q': documents}, ['RR@10'])
  assert values == {'RR@10': {'q': 1 / rank if rank <= 10 else 0}}


def test_ndcg_and_recall_of_a_worked_list():
  qrels = {'q': {'a': 1, 'c': 1, 'x': 1}}
  values = ranked.per_query(qrels, {'q': ['a', 'b', 'c']}, ['nDCG@10', 'R@2'])
  ideal = 1 + 1 / np.log2(3) + 1 / 2
  assert values['nDCG@10']['q'] == pytest.approx((1 + 1 / 2) / ideal)
  assert values['R@2']['q'] == pytest.approx(1 / 3)


def test_reciprocal_ranks_equal_loops_under_ties_and_constants():
  random = np.random.default_rng(0)
  names = [f'd{i}' for i in range(15)]
  qrels = {f'q{i}': {n: int(random.random() < 0.2) for n in names} for i in range(20)}
  qrels = {q: own for q, own in qrels.items() if max(own.values())}
  run = {q: dict(zip(names, random.integers(4, size=15).tolist(), strict=True)) for q in qrels}
  documents = ranked.ranked(run)
  for query, own in documents.items():
    assert own == sorted(names, key=lambda n, q=query: (-run[q][n], n))
  actual = ranked.per_query(qrels, documents, ['RR@10'])['RR@10']
  assert actual == pytest.approx({q: _reciprocal_rank(qrels[q], documents[q]) for q in qrels})
  shifted = {q: {n: score + 100 for n, score in own.items()} for q, own in run.items()}
  assert ranked.ranked(shifted) == documents


def test_a_query_without_documents_counts_0_and_one_without_relevant_ones_not_at_all():
  qrels = {'a': {'x': 1}, 'b': {'y': 1}, 'c': {'z': 0}}
  values = ranked.per_query(qrels, {'a': ['x'], 'c': ['z']}, ['RR@10'])['RR@10']
  assert values == {'a': 1, 'b': 0}
  assert ranked.mean(values) == 0.5
  with pytest.raises(ValueError, match='no query has a relevant document'):
    ranked.per_query({'c': {'z': 0}}, {'c': ['z']})


def test_an_unknown_measure_and_an_absent_library_are_sentences(monkeypatch):
  with pytest.raises(ValueError, match="'MRR@ten' is no measure of ir-measures"):
    ranked.per_query({'a': {'x': 1}}, {'a': ['x']}, ['MRR@ten'])
  importing = builtins.__import__
  absent = lambda name, *rest: (
    (_ for _ in ()).throw(ImportError) if name == 'ir_measures' else importing(name, *rest)
  )
  monkeypatch.setattr(builtins, '__import__', absent)
  monkeypatch.setitem(sys.modules, 'ir_measures', None)
  with pytest.raises(ImportError, match=r"pip install 'lm-cascades\[rank\]'"):
    ranked.per_query({'a': {'x': 1}}, {'a': ['x']})


def test_bm25_on_scifact_has_the_documented_numbers():
  folder = real('ranking_scifact')
  run = judgments.read_run(folder / 'bm25_top100_test.tsv.gz')
  values = ranked.per_query(judgments.read_qrels(folder / 'qrels_test.tsv'), ranked.ranked(run))
  assert {name: round(ranked.mean(own), 3) for name, own in values.items()} == {
    'RR@10': 0.638, 'nDCG@10': 0.669, 'R@100': 0.899,
  }  # fmt: skip


QRELS = {'q': {'c': 1}, 'r': {'a': 1}}
LEVELS = [
  ScoredLevel('cheap', {q: {'a': 3, 'b': 2, 'c': 1} for q in QRELS}, RankingCosts(1, 0.5, 10, 6)),
  ScoredLevel(
    'dear', {'q': {'a': 1, 'b': 2, 'c': 3}, 'r': {'a': 3, 'b': 2}}, RankingCosts(0, 4, 100, 5)
  ),
]  # fmt: skip


def test_curves_have_quality_milliseconds_and_bytes_at_each_depth():
  panels = ranking_cascade.curves(LEVELS, QRELS, 'RR@10', depths=[0, 2], middle=[])
  timed, read = panels['milliseconds']['cheap > dear'], panels['bytes read']['cheap > dear']
  np.testing.assert_allclose(timed.quality, [(1 / 3 + 1) / 2] * 2)
  assert timed.threshold.tolist() == [np.inf, -2]
  assert timed.cost.tolist() == [1 + 3 * 0.5, 1 + 3 * 0.5 + 2 * 4]
  assert read.cost.tolist() == [30, 30 + 200]
  np.testing.assert_allclose(read.deferral_rate, [0, 2 / 3])
  assert ranking_cascade.as_json(panels)['milliseconds']['cheap > dear']['depth'] == [0, 2]


def test_three_scorers_have_a_curve_for_each_depth_of_the_second():
  levels = [LEVELS[0], LEVELS[0]._replace(name='same'), LEVELS[1]]
  panels = ranking_cascade.curves(levels, QRELS, 'RR@10', depths=[0, 1, 2], middle=[1, 2])
  names = [f'cheap > same > dear, {m} of them' for m in (1, 2)]
  assert [*panels['milliseconds']] == names
  assert [len(panels['bytes read'][name].cost) for name in names] == [2, 3]


def test_a_run_that_lacks_what_it_must_read_is_named():
  with pytest.raises(ValueError, match=r"cheap > dear: the score of document 'c'.* lower DEPTHS"):
    ranking_cascade.curves(LEVELS, QRELS, 'RR@10', depths=[0, 3], middle=[])
  with pytest.raises(ValueError, match="no judged query is in the run 'cheap'"):
    ranking_cascade.curves(LEVELS, {'other': {'c': 1}}, 'RR@10', depths=[0], middle=[])
