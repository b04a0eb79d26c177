import numpy as np
import pytest

from cascades import metrics
from cascades.predictions import alignment
from tests import synthetic_tables


def small():
  return synthetic_tables.table('a', size=9, skill=0, seed=1)


def large():
  return synthetic_tables.table('a', size=9, skill=2, seed=2)


def test_joined_tables_have_the_large_ones_order():
  shuffled = alignment.select(large(), [3, 1, 4, 0, 5, 8, 2, 6, 7])
  aligned_small, aligned_large = alignment.join(small(), shuffled)
  assert aligned_large is shuffled
  assert list(aligned_small.ids) == list(shuffled.ids)
  for name in ('inputs', 'targets'):
    assert list(getattr(aligned_small, name)) == list(getattr(shuffled, name))
  back = [small().ids.index(name) for name in shuffled.ids]
  assert list(aligned_small.predictions) == [small().predictions[i] for i in back]
  np.testing.assert_array_equal(aligned_small.logprobs, small().logprobs[back])
  np.testing.assert_array_equal(aligned_small.mask, small().mask[back])
  np.testing.assert_array_equal(
    aligned_small.statistics['accuracy'], small().statistics['accuracy'][back]
  )


def test_vocabularies_may_differ():
  alignment.join(small(), large()._replace(manifest={'vocabulary': 'another'}))


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'task': 'b'}, "small model answered task 'b', split 'test', the large one task 'a'"),
    ({'split': 'validation'}, "small model answered task 'a', split 'validation'"),
    ({'statistics': {'bleu': np.ones((9, 10))}}, r"small \['bleu'\], large \['accuracy'\]"),
    ({'targets': [['other']] * 9}, "targets of 'a-0' differ"),
  ],
)
def test_tables_that_do_not_fit_are_refused_by_name(change, reason):
  with pytest.raises(ValueError, match=reason):
    alignment.join(small()._replace(**change), large())


def test_the_order_of_accepted_targets_does_not_matter():
  small_table = small()._replace(targets=[['x', 'y']] * 9)
  alignment.join(small_table, large()._replace(targets=[['y', 'x']] * 9))


def test_missing_examples_are_counted_and_named():
  few = alignment.select(small(), [0, 2, 4])
  with pytest.raises(ValueError, match=r"6 of 9 examples .* by the small model, such as 'a-1'"):
    alignment.join(few, large())
  with pytest.raises(ValueError, match='by the large model'):
    alignment.join(large(), few)


def test_groups_follow_their_rows_and_must_agree():
  names = list('ppqqqrrss')
  small_table, large_table = small()._replace(groups=names), large()._replace(groups=names)
  shuffled = alignment.select(large_table, [8, 3, 0])
  assert shuffled.groups == ['s', 'q', 'p']
  aligned, _ = alignment.join(alignment.select(small_table, [0, 3, 8]), shuffled)
  assert aligned.groups == ['s', 'q', 'p']
  assert not alignment.select(small(), [1, 2]).groups
  alignment.join(small(), large_table)  # one of the tables may be without groups
  with pytest.raises(ValueError, match=r"task 'a', .* groups of rows differ between small"):
    alignment.join(small_table, large_table._replace(groups=names[::-1]))


def test_of_rows_with_the_same_input_the_first_is_kept():
  texts = ['x', 'y', 'x', 'x ', 'z', 'y', 'w', 'z', 'x']
  distinct = alignment.distinct_inputs(small()._replace(inputs=texts))
  assert distinct == [0, 1, 3, 4, 6]
  assert alignment.distinct_inputs(small()) == list(range(9))


def test_a_table_without_statistics_of_a_metric_is_judged_from_its_texts():
  judged = alignment.judge(large(), metrics.token_f1)
  expected = [
    metrics.token_f1.statistics(*row)
    for row in zip(large().targets, large().predictions, strict=True)
  ]
  np.testing.assert_array_equal(judged.statistics['token_f1'], expected)
  assert 'accuracy' in judged.statistics
  stored = large()
  assert alignment.judge(stored, metrics.accuracy) is stored
