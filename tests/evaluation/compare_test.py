import numpy as np
import pytest

from cascades import bootstrap, curves, deferral, metrics
from cascades.evaluation import compare, pooling, quantities
from cascades.evaluation.comparison import Settings
from cascades.evaluation.quantities import RATES
from cascades.predictions import alignment
from tests import synthetic_tables

AVERAGE = {'average': deferral.as_score(deferral.average)}


def compared(small, large, **settings):
  """A comparison by one score."""
  settings = Settings(**{'resamples': 40, **settings})
  return compare.compare(small, large, scores=AVERAGE, settings=settings)


def test_every_model_is_drawn_under_every_score_over_all_tasks_and_each():
  comparison = synthetic_tables.comparison()
  names = {(cascade.model, cascade.score, cascade.task) for cascade in comparison.cascades}
  assert names == {
    (model, score, task)
    for model in ('xent', 'cat')
    for score in ('average', 'sum', 'random')
    for task in (pooling.POOLED, 'a', 'b')
  }
  assert comparison.at('cat').score == 'average'
  assert comparison.at('cat', 'sum', 'b').task == 'b'


@pytest.mark.parametrize('metric', ['accuracy', 'bleu'])
def test_estimates_are_those_of_the_curve_between_the_ends_of_their_intervals(metric):
  comparison = synthetic_tables.comparison(metric)
  for cascade in comparison.cascades:
    values = {quantity: estimate.value for quantity, estimate in cascade.estimates.items()}
    curve = cascade.curve
    assert values[quantities.SMALL] == curve.quality[0]
    assert values[quantities.LARGE] == curve.quality[-1]
    assert values[quantities.AREA] == curves.area(curve)
    assert values[quantities.ABOVE_CHORD] == curves.area_above_chord(curve)
    for cost in comparison.settings.costs:
      assert values[quantities.QUALITY_AT(cost)] == curves.quality_at_cost(curve, cost)
    for level in comparison.settings.qualities:
      cost = curves.cost_at_quality(curve, level)
      assert values[quantities.COST_AT(level)] == pytest.approx(np.inf if np.isnan(cost) else cost)
    for quantity in (quantities.SMALL, quantities.AREA):
      estimate = cascade.estimates[quantity]
      assert estimate.low <= estimate.value <= estimate.high
    assert (cascade.low <= cascade.high).all()


def test_tasks_and_the_pool_share_scores_and_resamples():
  comparison = synthetic_tables.comparison()
  pooled, *each = (comparison.at('xent', task=task) for task in (pooling.POOLED, 'a', 'b'))
  sizes = [70, 40]
  for quantity in (quantities.SMALL, quantities.LARGE):
    values = [cascade.estimates[quantity].value for cascade in each]
    assert pooled.estimates[quantity].value == pytest.approx(np.average(values, weights=sizes))
  thresholds = set(pooled.curve.threshold)
  for cascade in each:
    assert set(cascade.curve.threshold) <= thresholds


def test_the_contributions_add_up_to_the_mean_quality_of_examples():
  for cascade in synthetic_tables.comparison().cascades:
    both = cascade.small_contribution + cascade.large_contribution
    np.testing.assert_allclose(both, cascade.curve.quality)
  answers = synthetic_tables.comparison('bleu').answers['cat']
  cascade = synthetic_tables.comparison('bleu').at('cat')
  both = cascade.small_contribution + cascade.large_contribution
  assert both[0] == pytest.approx(answers.small_quality.mean())
  assert both[-1] == pytest.approx(answers.large_quality.mean())


def test_costs_and_qualities_are_chosen_on_the_way_from_the_first_model_to_the_large():
  settings = synthetic_tables.comparison().settings
  np.testing.assert_allclose(settings.costs, [3600, 5200, 6800, 10000])
  first = synthetic_tables.comparison().at('xent').curve.quality
  expected = first[0] + np.array([0.25, 0.5, 0.75]) * (first[-1] - first[0])
  np.testing.assert_allclose(settings.qualities, expected, rtol=0.01)
  assert settings.weights == 'size'
  asked = synthetic_tables.comparison(costs=(4000.0,), qualities=(0.5, 2.0))
  assert (asked.settings.costs, asked.settings.qualities) == ((4000.0,), (0.5, 2.0))


def test_what_is_out_of_reach_is_infinite_or_missing_but_never_a_number():
  comparison = synthetic_tables.comparison(costs=(1.0,), qualities=(0.5, 2.0))
  estimates = comparison.at('xent').estimates
  assert estimates[quantities.COST_AT(2.0)] == (np.inf,) * 3
  assert estimates[quantities.RATE_AT(2.0)] == (np.inf,) * 3
  assert np.isnan(estimates[quantities.QUALITY_AT(1.0)]).all()
  saved = comparison.differences[0].estimates[quantities.DEFERRALS_SAVED(2.0)]
  assert np.isnan(saved.value)
  assert saved.p == 1


def test_differences_are_paired_and_those_of_the_estimates():
  comparison = synthetic_tables.comparison()
  assert [(pair.model, pair.baseline) for pair in comparison.differences] == [('cat', 'xent')] * 3
  pair = comparison.differences[0]
  cat, xent = (comparison.at(name).estimates for name in ('cat', 'xent'))
  for quantity in (quantities.SMALL, quantities.AREA, quantities.ABOVE_CHORD):
    expected = cat[quantity].value - xent[quantity].value
    assert pair.estimates[quantity].value == pytest.approx(expected)
  for level in comparison.settings.qualities:
    rates = [estimates[quantities.RATE_AT(level)].value for estimates in (xent, cat)]
    costs = [estimates[quantities.COST_AT(level)].value for estimates in (cat, xent)]
    saved = pair.estimates[quantities.DEFERRALS_SAVED(level)].value
    assert saved == pytest.approx(rates[0] - rates[1])
    saved = pair.estimates[quantities.FLOPS_SAVED(level)].value
    assert saved == pytest.approx(1 - costs[0] / costs[1])
  curves_ = [comparison.at(name).curve for name in ('cat', 'xent')]
  read = [np.interp(RATES, curve.deferral_rate, curve.quality) for curve in curves_]
  np.testing.assert_allclose(pair.quality, read[0] - read[1])
  assert (pair.low <= pair.quality + 1e-9).mean() > 0.9


def test_a_model_does_not_differ_from_itself():
  small, large = synthetic_tables.small_and_large()
  comparison = compared({'one': small['cat'], 'two': small['cat']}, large)
  for difference in comparison.differences[0].estimates.values():
    assert difference == (0, 0, 0, 1)


def test_a_baseline_is_compared_with_all_others_and_none_with_every_pair():
  small, large = synthetic_tables.small_and_large()
  three = {**small, 'third': small['xent']}

  def pairs(**settings):
    differences = compared(three, large, **settings).differences
    return [(pair.model, pair.baseline) for pair in differences]

  assert pairs() == [('cat', 'xent'), ('third', 'xent'), ('third', 'cat')]
  assert pairs(baseline='cat') == [('xent', 'cat'), ('third', 'cat')]
  with pytest.raises(
    ValueError, match="baseline 'dist' is none of the small models: xent, cat, thi"
  ):
    pairs(baseline='dist')


def test_errors_are_better_the_lower_they_are():
  comparison = synthetic_tables.comparison('phoneme_error_rate')
  level = comparison.settings.qualities[1]
  first, cascade = comparison.at('xent'), comparison.at('cat')
  assert cascade.curve.quality[-1] < level < first.curve.quality[0]
  for model in (first, cascade):
    cost = model.estimates[quantities.COST_AT(level)]
    expected = curves.cost_at_quality(model.curve, level, higher_is_better=False)
    assert cost.value == pytest.approx(expected)
    assert first.curve.cost[0] <= cost.low <= cost.value <= cost.high < np.inf
  assert first.estimates[quantities.COST_AT(level)].low > first.curve.cost[0]


def test_repeated_inputs_leave_every_table_and_the_rest_aligned():
  small, large = synthetic_tables.small_and_large()
  repeats = [5, 9, 11]

  def repeating(table):
    inputs = [table.inputs[0] if i in repeats else text for i, text in enumerate(table.inputs)]
    return table._replace(inputs=inputs)

  small = {name: [repeating(first), second] for name, (first, second) in small.items()}
  large = [repeating(large[0]), large[1]]
  comparison = compared(small, large, dedupe_inputs=True)
  assert comparison.sizes == {'a': 67, 'b': 40}
  assert comparison.sizes_with_repeats == {'a': 70, 'b': 40}
  ids = [f'{table.task}/{name}' for table in large for name in table.ids]
  expected = [name for name in ids if name not in {f'a/a-{i}' for i in repeats}]
  for answers in comparison.answers.values():
    assert answers.small.ids == answers.large.ids == expected
  assert compared(small, large).sizes == {'a': 70, 'b': 40}


def test_other_metrics_that_all_tables_hold_are_given_for_each_model_alone():
  judges = (metrics.accuracy, metrics.token_f1)
  small, large = synthetic_tables.small_and_large(judged_by=judges)
  comparison = compare.compare(
    small, large, scores=AVERAGE, settings=Settings(resamples=20), metric='accuracy'
  )
  assert set(comparison.other_metrics) == {'token_f1'}
  by_f1 = compare.compare(
    small, large, scores=AVERAGE, settings=Settings(resamples=20), metric='token_f1'
  )
  assert set(by_f1.other_metrics) == {'accuracy'}
  expected = {name: by_f1.at(name).estimates[quantities.SMALL] for name in ('xent', 'cat')} | {
    'large alone': by_f1.at('cat').estimates[quantities.LARGE]
  }
  assert set(comparison.other_metrics['token_f1']) == set(expected)
  for name, estimate in expected.items():
    assert comparison.other_metrics['token_f1'][name] == pytest.approx(estimate)


def test_manifests_are_those_of_every_table():
  small, large = synthetic_tables.small_and_large()
  manifests = compared(small, large).manifests
  assert [*manifests] == ['xent', 'cat', 'large alone']
  for name, tables in {**small, 'large alone': large}.items():
    assert manifests[name] == [table.manifest for table in tables]


def test_single_answers_have_the_quality_of_their_model():
  small, large = synthetic_tables.small_and_large()
  answers = compared(small, large).answers['cat']
  for quality, tables in ((answers.small_quality, small['cat']), (answers.large_quality, large)):
    correct = np.concatenate([table.statistics['accuracy'][:, 0] for table in tables])
    np.testing.assert_array_equal(quality, correct)


def test_models_alone_have_the_intervals_that_they_have_in_a_cascade():
  small, large = synthetic_tables.small_and_large()
  settings = synthetic_tables.comparison().settings
  alone = compare.alone({**small, 'large': large}, [metrics.accuracy] * 2, settings)
  comparison = synthetic_tables.comparison()
  assert alone['cat'] == pytest.approx(comparison.at('cat').estimates[quantities.SMALL])
  assert alone['large'] == pytest.approx(comparison.at('cat').estimates[quantities.LARGE])


def test_a_metric_that_the_tables_do_not_know_is_computed_from_their_texts():
  small, large = synthetic_tables.small_and_large()
  comparison = compare.compare(
    small,
    large,
    scores=AVERAGE,
    metric=metrics.token_f1,
    settings=Settings(resamples=20),
  )
  assert comparison.metric is metrics.token_f1
  table = alignment.judge(small['cat'][0], metrics.token_f1)
  expected = table.statistics['token_f1'][:, 0].mean()
  assert comparison.at('cat', task='a').curve.quality[0] == pytest.approx(expected)


def test_a_score_may_read_the_whole_table_and_must_give_a_number_a_row():
  small, large = synthetic_tables.small_and_large()

  def by_length(table):
    return np.array([float(len(text)) for text in table.inputs])

  settings = {'settings': Settings(resamples=10)}
  comparison = compare.compare(small, large, scores={'length': by_length}, **settings)
  expected = by_length(pooling.pool(small['cat']))
  np.testing.assert_array_equal(comparison.answers['cat'].score, expected)
  with pytest.raises(
    ValueError, match=r"score 'two' .* each of 110 rows; its result has shape \(2,\)"
  ):
    compare.compare(small, large, scores={'two': lambda _: np.zeros(2)}, **settings)


@pytest.mark.parametrize(
  ('settings', 'reason'),
  [
    ({'seed': -1}, 'seed of the resamples is -1'),
    ({'costs': [2000.0, -1.0]}, 'costs are FLOPs per token and must be above 0, found -1'),
    ({'costs': [float('nan')]}, 'costs must be finite numbers, found nan'),
    ({'qualities': [0.5, float('inf')]}, 'qualities must be finite numbers, found inf'),
  ],
)
def test_settings_that_have_no_meaning_are_refused(settings, reason):
  with pytest.raises(ValueError, match=reason):
    Settings(**settings)


def test_resamples_that_would_not_fit_into_memory_are_refused(monkeypatch):
  monkeypatch.setattr(compare, 'MOST_COUNTS', 1 << 20)
  with pytest.raises(ValueError, match=r'100000 resamples of 110 rows .* at most 9532 resamples'):
    compared(*synthetic_tables.small_and_large(), resamples=100_000)


@pytest.mark.parametrize(
  'settings', [{'resamples': 0}, {'confidence': 1.0}, {'confidence': 95}], ids=str
)
def test_settings_that_give_no_interval_are_refused(settings):
  small, large = synthetic_tables.small_and_large()
  with pytest.raises(ValueError, match='one or more resamples and a confidence between 0 and 1'):
    compared(small, large, **settings)


def test_deferring_by_nothing_is_refused():
  small, large = synthetic_tables.small_and_large()
  with pytest.raises(ValueError, match='no score to defer by'):
    compare.compare(small, large, scores={}, settings=Settings())


def test_one_model_has_one_cost():
  small, large = synthetic_tables.small_and_large()
  other = large[1]._replace(manifest={**large[1].manifest, 'flops_per_token': 3.0})
  with pytest.raises(ValueError, match=r'\[3.0, 16000.0\] FLOPs per token'):
    compared(small, [large[0], other])


def test_the_same_comparison_twice_is_the_same():
  small, large = synthetic_tables.small_and_large()
  first, again = (compared(small, large, seed=4) for _ in range(2))
  assert first.cascades[0].estimates == again.cascades[0].estimates
  assert first.cascades[0].estimates != compared(small, large, seed=5).cascades[0].estimates


def test_bands_are_those_of_the_bootstrap():
  small, large = synthetic_tables.small_and_large()
  comparison = compared(small, large)
  counts = bootstrap.draw([70, 40], resamples=40, seed=0)
  pooled = pooling.pool(small['cat'])
  statistics = [
    np.vstack([table.statistics['accuracy'] for table in tables])
    for tables in (small['cat'], large)
  ]
  resamples = bootstrap.resample(
    counts, AVERAGE['average'](pooled), *statistics, metrics.ratio, rates=RATES
  )
  low, high = bootstrap.interval(resamples.quality)
  np.testing.assert_allclose(comparison.at('cat').low, low)
  np.testing.assert_allclose(comparison.at('cat').high, high)


@pytest.mark.parametrize(
  ('settings', 'reason'),
  [
    ({'resamples': 'many'}, "RESAMPLES='many'"),
    ({'resamples': 10**9}, 'RESAMPLES=1000000000 is above 100000'),
    ({'resamples': 10.5}, r'RESAMPLES=10\.5'),
    ({'confidence': '95 %'}, "CONFIDENCE='95 %'"),
    ({'costs': 5.0}, r'COSTS=5\.0 is no list of numbers'),
    ({'qualities': 'all'}, "QUALITIES='all' is no list of numbers"),
  ],
  ids=str,
)
def test_settings_of_another_type_are_refused_by_name(settings, reason):
  with pytest.raises(ValueError, match=reason):
    Settings(**settings)
