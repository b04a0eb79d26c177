"""Examples of rankers, with a teacher that has not scored everything."""

import numpy as np
import pytest

from cascades.training.ranking_data import RankingData

DOCUMENTS = {name: f'text {name}' for name in 'abcd'}
QUERIES = {'q0': 'first', 'q1': 'second'}
QRELS = {'q0': {'a': 1, 'b': 0}, 'q1': {'c': 1}}


def test_a_query_without_a_scored_irrelevant_document_is_left_out(caplog):
  teacher = {'q0': {'a': 2.0, 'b': 1.0}, 'q1': {'c': 3.0}}
  data = RankingData(DOCUMENTS, QUERIES, QRELS, teacher=teacher)
  assert data.trained == ['q0']
  assert 'of 1 of 2 queries' in caplog.text
  examples = data.batch(seed=0, step=1, size=3, negatives=2)
  assert examples.queries == ['first'] * 3
  np.testing.assert_array_equal(examples.teacher, [[2.0, 1.0, 1.0]] * 3)
  assert RankingData(DOCUMENTS, QUERIES, QRELS).trained == ['q0', 'q1']


def test_a_teacher_that_scored_only_relevant_documents_is_refused():
  with pytest.raises(ValueError, match='no score of an irrelevant document of any query'):
    RankingData(DOCUMENTS, QUERIES, QRELS, teacher={'q0': {'a': 2.0}, 'q1': {'c': 3.0}})
