import numpy as np
import pytest

from cascades import metrics
from cascades.evaluation import pooling
from tests import synthetic_tables

JUDGES = (metrics.accuracy, metrics.bleu(), metrics.phoneme_error_rate)


def model(skill, sizes=(('a', 30), ('b', 12))):
  return [synthetic_tables.table(t, size=n, skill=skill, judged_by=JUDGES) for t, n in sizes]


def over_all_tasks(layout, own):
  return float(layout.subsets[0].finalize(layout.stack(own).sum(axis=0)))


def test_means_over_examples_count_by_size_and_share_their_columns():
  models, by = [model(0), model(2)], [metrics.accuracy] * 2
  layout = pooling.layout(models, by, None)
  own = pooling.statistics(models[0], by)
  assert layout.weights == 'size'
  assert layout.stack(own).shape == (42, 2)
  correct = np.concatenate([statistics[:, 0] for statistics in own])
  assert over_all_tasks(layout, own) == pytest.approx(correct.mean())


def test_equal_weights_average_the_tasks_and_sizes_in_columns_agree_with_the_pool():
  models, by = [model(0), model(2)], [metrics.accuracy] * 2
  own = pooling.statistics(models[0], by)
  each = [statistics[:, 0].mean() for statistics in own]
  uniform = pooling.layout(models, by, 'uniform')
  assert uniform.stack(own).shape == (42, 4)
  assert over_all_tasks(uniform, own) == pytest.approx(np.mean(each))
  # Another function of the same values keeps the tasks in columns of their own.
  twin = metrics.accuracy._replace(finalize=lambda sums: metrics.ratio(sums))
  apart = pooling.layout(models, [metrics.accuracy, twin], 'size')
  assert apart.stack(own).shape == (42, 4)
  assert over_all_tasks(apart, own) == pytest.approx(np.average(each, weights=[30, 12]))


def test_corpus_metrics_are_averaged_over_tasks():
  models, by = [model(0), model(2)], [metrics.bleu()] * 2
  layout = pooling.layout(models, by, None)
  own = pooling.statistics(models[1], by)
  assert layout.weights == 'uniform'
  assert layout.stack(own).shape == (42, 20)
  each = [float(metrics.finalize_bleu(statistics.sum(axis=0))) for statistics in own]
  assert over_all_tasks(layout, own) == pytest.approx(np.mean(each))


@pytest.mark.parametrize('metric', JUDGES, ids=lambda metric: metric.name)
@pytest.mark.parametrize('weights', [None, 'size', 'uniform'])
def test_subsets_cut_each_tasks_statistics_out_of_the_matrix(metric, weights):
  models, by = [model(0), model(2)], [metric] * 2
  layout = pooling.layout(models, by, weights)
  own = pooling.statistics(models[0], by)
  matrix = layout.stack(own)
  assert [subset.task for subset in layout.subsets] == [pooling.POOLED, 'a', 'b']
  for subset, alone in zip(layout.subsets[1:], own, strict=True):
    np.testing.assert_array_equal(matrix[subset.rows, subset.columns], alone)
    expected = metric.finalize(alone.sum(axis=0))
    assert subset.finalize(matrix[subset.rows, subset.columns].sum(axis=0)) == pytest.approx(
      expected
    )


def test_a_single_task_is_only_drawn_once():
  layout = pooling.layout([model(0, (('a', 5),))], [metrics.bleu()], None)
  assert [subset.task for subset in layout.subsets] == [pooling.POOLED]


def test_unknown_weights_are_refused():
  with pytest.raises(
    ValueError, match="Unknown task weights 'equal'; expected size, uniform or None"
  ):
    pooling.layout([model(0)], [metrics.accuracy] * 2, 'equal')


def test_metrics_of_different_scale_or_direction_are_not_averaged():
  models = [model(0)]
  with pytest.raises(ValueError, match='accuracy, bleu have different scales'):
    pooling.layout(models, [metrics.accuracy, metrics.bleu()], None)
  with pytest.raises(ValueError, match='accuracy, phoneme_error_rate have different'):
    pooling.layout(models, [metrics.accuracy, metrics.phoneme_error_rate], None)


def test_pooled_groups_stay_those_of_their_task():
  first, other = synthetic_tables.table('a', size=3), synthetic_tables.table('b', size=2)
  grouped = first._replace(groups=['p', 'q', 'p'])
  twice = pooling.pool([grouped, other._replace(groups=['p', 'p'])])
  assert twice.groups == ['a/p', 'a/q', 'a/p', 'b/p', 'b/p']
  assert pooling.pool([grouped, other]).groups == ['a/p', 'a/q', 'a/p', 'b/b-0', 'b/b-1']
  assert not pooling.pool([first, other]).groups


def test_pooled_tables_follow_each_other_with_padding_and_unique_ids():
  first = synthetic_tables.table('a', size=9)
  other = synthetic_tables.table('b', size=4)._replace(ids=list(first.ids[:4]))
  longer = np.append(other.token_logprobs, [-1.0] * 5)
  wider = other._replace(token_logprobs=longer, lengths=np.add(other.lengths, [0, 0, 0, 5]))
  pooled = pooling.pool([first, wider])
  assert pooled.task == pooling.POOLED
  assert len(set(pooled.ids)) == 13
  assert pooled.ids[-4:] == [f'b/{name}' for name in first.ids[:4]]
  assert pooled.predictions == [*first.predictions, *wider.predictions]
  width = first.logprobs.shape[1]
  np.testing.assert_array_equal(pooled.logprobs[:9, :width], first.logprobs)
  assert not pooled.mask[:9, width:].any()
  np.testing.assert_array_equal(pooled.mask[9:].sum(1), wider.mask.sum(1))
