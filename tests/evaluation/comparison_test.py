import numpy as np
import pytest

from cascades import bootstrap, curves, deferral, metrics
from cascades.evaluation import comparison, pooling
from cascades.evaluation.comparison import RATES, Settings
from cascades.predictions import alignment
from tests import synthetic_tables


def compare(small, large, **settings):
  return comparison.compare(
    small,
    large,
    scores={'average': deferral.as_score(deferral.average)},
    metrics=[metrics.accuracy] * len(large),
    settings=Settings(**{'resamples': 40, **settings}),
  )


def test_every_model_is_drawn_under_every_score_over_all_tasks_and_each():
  compared = synthetic_tables.compared()
  names = {(cascade.model, cascade.score, cascade.task) for cascade in compared.cascades}
  assert names == {
    (model, score, task)
    for model in ('xent', 'cat')
    for score in ('average', 'sum', 'random')
    for task in (pooling.POOLED, 'a', 'b')
  }
  assert compared.at('cat').score == 'average'
  assert compared.at('cat', 'sum', 'b').task == 'b'


@pytest.mark.parametrize('metric', ['accuracy', 'bleu'])
def test_estimates_are_those_of_the_curve_between_the_ends_of_their_intervals(metric):
  compared = synthetic_tables.compared(metric)
  for cascade in compared.cascades:
    values = {quantity: one.value for quantity, one in cascade.estimates.items()}
    curve = cascade.curve
    assert values[comparison.SMALL] == curve.quality[0]
    assert values[comparison.LARGE] == curve.quality[-1]
    assert values[comparison.AREA] == curves.area(curve)
    assert values[comparison.ABOVE_CHORD] == curves.area_above_chord(curve)
    for cost in compared.settings.costs:
      assert values[comparison.QUALITY_AT(cost)] == curves.quality_at_cost(curve, cost)
    for level in compared.settings.qualities:
      cost = curves.cost_at_quality(curve, level)
      assert values[comparison.COST_AT(level)] == pytest.approx(np.inf if np.isnan(cost) else cost)
    for quantity in (comparison.SMALL, comparison.AREA):
      one = cascade.estimates[quantity]
      assert one.low <= one.value <= one.high
    assert (cascade.low <= cascade.high).all()


def test_tasks_and_the_pool_share_scores_and_resamples():
  compared = synthetic_tables.compared()
  pooled, *each = (compared.at('xent', task=task) for task in (pooling.POOLED, 'a', 'b'))
  sizes = [70, 40]
  for quantity in (comparison.SMALL, comparison.LARGE):
    values = [cascade.estimates[quantity].value for cascade in each]
    assert pooled.estimates[quantity].value == pytest.approx(np.average(values, weights=sizes))
  thresholds = set(pooled.curve.threshold)
  for cascade in each:
    assert set(cascade.curve.threshold) <= thresholds


def test_the_two_parts_add_up_to_the_mean_quality_of_examples():
  for cascade in synthetic_tables.compared().cascades:
    np.testing.assert_allclose(cascade.kept + cascade.deferred, cascade.curve.quality)
  answers = synthetic_tables.compared('bleu').answers['cat']
  cascade = synthetic_tables.compared('bleu').at('cat')
  both = cascade.kept + cascade.deferred
  assert both[0] == pytest.approx(answers.small_quality.mean())
  assert both[-1] == pytest.approx(answers.large_quality.mean())


def test_costs_and_qualities_are_chosen_on_the_way_from_the_first_model_to_the_large():
  settings = synthetic_tables.compared().settings
  np.testing.assert_allclose(settings.costs, [3600, 5200, 6800, 10000])
  first = synthetic_tables.compared().at('xent').curve.quality
  expected = first[0] + np.array([0.25, 0.5, 0.75]) * (first[-1] - first[0])
  np.testing.assert_allclose(settings.qualities, expected, rtol=0.01)
  assert settings.weights == 'size'
  asked = synthetic_tables.compared(costs=(4000.0,), qualities=(0.5, 2.0))
  assert (asked.settings.costs, asked.settings.qualities) == ((4000.0,), (0.5, 2.0))


def test_what_is_out_of_reach_is_infinite_or_missing_but_never_a_number():
  compared = synthetic_tables.compared(costs=(1.0,), qualities=(0.5, 2.0))
  estimates = compared.at('xent').estimates
  assert estimates[comparison.COST_AT(2.0)] == (np.inf,) * 3
  assert estimates[comparison.RATE_AT(2.0)] == (np.inf,) * 3
  assert np.isnan(estimates[comparison.QUALITY_AT(1.0)]).all()
  apart = compared.versus[0].differences[comparison.DEFERRALS_SAVED(2.0)]
  assert np.isnan(apart.value)
  assert apart.p == 1


def test_differences_are_paired_and_those_of_the_estimates():
  compared = synthetic_tables.compared()
  assert [(pair.model, pair.baseline) for pair in compared.versus] == [('cat', 'xent')] * 3
  pair = compared.versus[0]
  ours, theirs = (compared.at(name).estimates for name in ('cat', 'xent'))
  for quantity in (comparison.SMALL, comparison.AREA, comparison.ABOVE_CHORD):
    apart = ours[quantity].value - theirs[quantity].value
    assert pair.differences[quantity].value == pytest.approx(apart)
  for level in compared.settings.qualities:
    rates = [one[comparison.RATE_AT(level)].value for one in (theirs, ours)]
    costs = [one[comparison.COST_AT(level)].value for one in (ours, theirs)]
    saved = pair.differences[comparison.DEFERRALS_SAVED(level)].value
    assert saved == pytest.approx(rates[0] - rates[1])
    saved = pair.differences[comparison.FLOPS_SAVED(level)].value
    assert saved == pytest.approx(1 - costs[0] / costs[1])
  curves_ = [compared.at(name).curve for name in ('cat', 'xent')]
  read = [np.interp(RATES, curve.deferral_rate, curve.quality) for curve in curves_]
  np.testing.assert_allclose(pair.quality, read[0] - read[1])
  assert (pair.low <= pair.quality + 1e-9).mean() > 0.9


def test_a_model_does_not_differ_from_itself():
  small, large = synthetic_tables.small_and_large()
  compared = compare({'one': small['cat'], 'two': small['cat']}, large)
  for difference in compared.versus[0].differences.values():
    assert difference == (0, 0, 0, 1)


def test_reaching_what_the_other_never_reaches_saves_without_bound():
  ours, never = np.array([10.0, 20.0]), np.full(2, np.inf)
  np.testing.assert_array_equal(comparison._share_saved(ours, never), np.inf)
  np.testing.assert_array_equal(comparison._share_saved(never, ours), -np.inf)
  np.testing.assert_allclose(comparison._share_saved(ours, 2 * ours), 0.5)


def test_a_baseline_is_compared_with_all_others_and_none_with_every_pair():
  small, large = synthetic_tables.small_and_large()
  three = {**small, 'third': small['xent']}

  def pairs(**settings):
    found = compare(three, large, **settings).versus
    return [(pair.model, pair.baseline) for pair in found]

  assert pairs() == [('cat', 'xent'), ('third', 'xent'), ('third', 'cat')]
  assert pairs(baseline='cat') == [('xent', 'cat'), ('third', 'cat')]
  with pytest.raises(
    ValueError, match="baseline 'dist' is none of the small models: xent, cat, thi"
  ):
    pairs(baseline='dist')


def test_errors_are_better_the_lower_they_are():
  compared = synthetic_tables.compared('phoneme_error_rate')
  level = compared.settings.qualities[1]
  first, cascade = compared.at('xent'), compared.at('cat')
  assert cascade.curve.quality[-1] < level < first.curve.quality[0]
  for one in (first, cascade):
    found = one.estimates[comparison.COST_AT(level)]
    expected = curves.cost_at_quality(one.curve, level, higher_is_better=False)
    assert found.value == pytest.approx(expected)
    assert first.curve.cost[0] <= found.low <= found.value <= found.high < np.inf
  assert first.estimates[comparison.COST_AT(level)].low > first.curve.cost[0]


def test_models_alone_have_the_intervals_that_they_have_in_a_cascade():
  small, large = synthetic_tables.small_and_large()
  settings = synthetic_tables.compared().settings
  alone = comparison.alone({**small, 'large': large}, [metrics.accuracy] * 2, settings=settings)
  compared = synthetic_tables.compared()
  assert alone['cat'] == pytest.approx(compared.at('cat').estimates[comparison.SMALL])
  assert alone['large'] == pytest.approx(compared.at('cat').estimates[comparison.LARGE])


def test_a_metric_that_the_tables_do_not_know_is_computed_from_their_texts():
  small, large = synthetic_tables.small_and_large()
  compared = comparison.compare(
    small,
    large,
    scores={'average': deferral.as_score(deferral.average)},
    metrics=[metrics.token_f1] * 2,
    settings=Settings(resamples=20),
  )
  assert compared.metric is metrics.token_f1
  table = alignment.judge(small['cat'][0], metrics.token_f1)
  expected = table.statistics['token_f1'][:, 0].mean()
  assert compared.at('cat', task='a').curve.quality[0] == pytest.approx(expected)


def test_a_score_may_read_the_whole_table_and_must_give_a_number_a_row():
  small, large = synthetic_tables.small_and_large()

  def by_length(table):
    return np.array([float(len(text)) for text in table.inputs])

  settings = {'metrics': [metrics.accuracy] * 2, 'settings': Settings(resamples=10)}
  compared = comparison.compare(small, large, scores={'length': by_length}, **settings)
  expected = by_length(pooling.pool(small['cat']))
  np.testing.assert_array_equal(compared.answers['cat'].score, expected)
  with pytest.raises(
    ValueError, match=r"score 'two' .* each of 110 rows; its result has shape \(2,\)"
  ):
    comparison.compare(small, large, scores={'two': lambda _: np.zeros(2)}, **settings)


@pytest.mark.parametrize(
  'settings', [{'resamples': 0}, {'confidence': 1.0}, {'confidence': 95}], ids=str
)
def test_settings_that_give_no_interval_are_refused(settings):
  small, large = synthetic_tables.small_and_large()
  with pytest.raises(ValueError, match='one or more resamples and a confidence between 0 and 1'):
    compare(small, large, **settings)


def test_deferring_by_nothing_is_refused():
  small, large = synthetic_tables.small_and_large()
  with pytest.raises(ValueError, match='nothing to defer by'):
    comparison.compare(small, large, scores={}, metrics=[metrics.accuracy] * 2, settings=Settings())


def test_one_model_has_one_cost():
  small, large = synthetic_tables.small_and_large()
  other = large[1]._replace(manifest={**large[1].manifest, 'flops_per_token': 3.0})
  with pytest.raises(ValueError, match=r'\[3.0, 16000.0\] FLOPs per token'):
    compare(small, [large[0], other])


def test_the_same_comparison_twice_is_the_same():
  small, large = synthetic_tables.small_and_large()
  one, other = (compare(small, large, seed=4) for _ in range(2))
  assert one.cascades[0].estimates == other.cascades[0].estimates
  assert one.cascades[0].estimates != compare(small, large, seed=5).cascades[0].estimates


def test_bands_are_those_of_the_bootstrap():
  small, large = synthetic_tables.small_and_large()
  compared = compare(small, large)
  counts = bootstrap.draw([70, 40], resamples=40, seed=0)
  pooled = pooling.pool(small['cat'])
  ours, theirs = (
    np.vstack([table.statistics['accuracy'] for table in side]) for side in (small['cat'], large)
  )
  found = bootstrap.resample(
    counts, deferral.as_score(deferral.average)(pooled), ours, theirs, metrics.ratio, rates=RATES
  )
  low, high = bootstrap.interval(found.quality)
  np.testing.assert_allclose(compared.at('cat').low, low)
  np.testing.assert_allclose(compared.at('cat').high, high)
