import numpy as np
import pytest

from cascades import bootstrap, curves, metrics
from tests.curve_oracles import literal_resamples

RATES = np.array([0, 0.05, 0.3, 1 / 3, 0.5, 0.99, 1])


def by_rate(rate):
  return rate


def examples(n, *, width=2, ties=None, seed=0):
  generator = np.random.default_rng(seed)
  score = generator.integers(0, ties, size=n).astype(float) if ties else generator.normal(size=n)
  small, large = generator.integers(0, 7, size=(2, n, width)).astype(float)
  small[:, 1] = large[:, 1] = 1
  return score, small, large


@pytest.mark.parametrize('ties', [None, 1, 3, 8])
@pytest.mark.parametrize(
  ('finalize', 'width'), [(metrics.ratio, 2), (metrics.finalize_bleu, 10)], ids=['mean', 'bleu']
)
def test_resampled_curves_equal_curves_of_the_written_out_resamples(finalize, width, ties):
  score, small, large = examples(23, width=width, ties=ties)
  counts = bootstrap.draw([23], resamples=9, seed=1)
  resampled = bootstrap.resample(counts, score, small, large, finalize, rates=RATES)
  quality, area = literal_resamples(counts, score, small, large, finalize, RATES)
  np.testing.assert_allclose(resampled.quality, quality, atol=1e-9)
  np.testing.assert_allclose(resampled.area, area, atol=1e-9)
  np.testing.assert_allclose(
    resampled.above_chord, area - (quality[:, 0] + quality[:, -1]) / 2, atol=1e-9
  )


def test_a_resample_that_holds_each_example_once_is_the_curve_itself():
  score, small, large = examples(40, ties=6)
  resampled = bootstrap.resample(
    np.ones((1, 40), int), score, small, large, metrics.ratio, rates=RATES
  )
  curve = curves.deferral_curve(score, small, large, metrics.ratio, by_rate)
  np.testing.assert_allclose(resampled.area, [curves.area(curve)])
  np.testing.assert_allclose(resampled.above_chord, [curves.area_above_chord(curve)])
  expected = np.interp(RATES, curve.deferral_rate, curve.quality)
  np.testing.assert_allclose(resampled.quality, [expected])


def test_blocks_of_resamples_change_nothing(monkeypatch):
  score, small, large = examples(50, ties=20)
  counts = bootstrap.draw([50], resamples=11, seed=0)
  at_once = bootstrap.resample(counts, score, small, large, metrics.ratio, rates=RATES)
  monkeypatch.setattr(bootstrap, 'BLOCK', 150)
  monkeypatch.setattr(bootstrap, 'LEAST', 1)
  in_blocks = bootstrap.resample(counts, score, small, large, metrics.ratio, rates=RATES)
  for column, in_block in zip(at_once, in_blocks, strict=True):
    np.testing.assert_allclose(in_block, column, rtol=1e-12)


def test_totals_are_the_sums_over_the_written_out_resamples():
  _, small, _ = examples(23, width=3)
  counts = bootstrap.draw([23], resamples=7, seed=0)
  expected = [np.repeat(small, row, axis=0).sum(axis=0) for row in counts]
  np.testing.assert_allclose(bootstrap.totals(counts, small), expected)


def test_draws_keep_the_size_of_every_task_and_repeat_with_the_seed():
  counts = bootstrap.draw([30, 1, 70], resamples=200, seed=5)
  for task_counts, size in zip(np.split(counts, [30, 31], axis=1), (30, 1, 70), strict=True):
    np.testing.assert_array_equal(task_counts.sum(axis=1), size)
  np.testing.assert_array_equal(counts, bootstrap.draw([30, 1, 70], resamples=200, seed=5))
  assert (counts != bootstrap.draw([30, 1, 70], resamples=200, seed=6)).any()


def test_every_example_is_drawn_equally_often_and_as_a_multinomial():
  counts = bootstrap.draw([50], resamples=4000, seed=0)
  np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.07)
  assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.02)


def test_the_spread_of_a_mean_is_its_standard_error():
  score, small, _ = examples(400)
  counts = bootstrap.draw([400], resamples=2000, seed=0)
  resampled = bootstrap.resample(counts, score, small, small, metrics.ratio, rates=RATES)
  expected = small[:, 0].std() / np.sqrt(400)
  assert resampled.area.std() == pytest.approx(expected, rel=0.07)


def test_the_interval_leaves_out_equal_shares_and_minds_what_is_out_of_reach():
  values = np.random.default_rng(0).permutation(np.arange(1, 1001))
  assert bootstrap.interval(values, confidence=0.95) == (26, 975)
  assert bootstrap.interval(values, confidence=0.9) == (51, 950)  # 1 - 0.9 is less than 0.1
  assert bootstrap.interval(values, confidence=0.5) == (251, 750)
  out_of_reach = np.where(values > 970, np.inf, values)
  low, high = bootstrap.interval(out_of_reach)
  assert (low, high) == (26, np.inf)
  np.testing.assert_array_equal(bootstrap.interval(-values), [-975, -26])
  bands = bootstrap.interval(np.stack([values, 2 * values], axis=1))
  np.testing.assert_array_equal(bands, [[26, 52], [975, 1950]])


def test_the_p_value_agrees_with_numbers_worked_by_hand():
  def p(resampled):
    return bootstrap.difference(0.1, np.array(resampled)).p

  assert p([1] * 999) == pytest.approx(2 / 1000)
  assert p([1] * 90 + [-1] * 9) == pytest.approx(2 * 10 / 100)
  assert p([1, -1] * 10) == 1
  assert p([0.0] * 50) == 1
  assert p([1] * 9 + [-1] * 90) == p([-1] * 9 + [1] * 90)


def test_equal_models_do_not_differ_and_paired_bands_are_narrower_than_single_ones():
  score, small, large = examples(300, seed=3)
  better = small.copy()
  better[:30, 0] += 1
  counts = bootstrap.draw([300], resamples=500, seed=0)
  first, second = (
    bootstrap.resample(counts, score, side, large, metrics.ratio, rates=RATES)
    for side in (better, small)
  )
  assert bootstrap.difference(0, first.area - first.area).p == 1
  apart = bootstrap.difference(0.05, first.area - second.area)
  assert apart.low > 0
  assert apart.p < 0.01
  single = bootstrap.estimate(0, first.area)
  assert apart.high - apart.low < 0.5 * (single.high - single.low)


def test_the_test_is_calibrated_where_nothing_differs():
  generator = np.random.default_rng(0)
  counts = bootstrap.draw([80], resamples=200, seed=0)
  values = []
  for _ in range(150):
    score, large = generator.normal(size=80), generator.random((80, 2)).round()
    large[:, 1] = 1
    areas = []
    for _ in range(2):
      small = np.stack([generator.random(80) < 0.5, np.ones(80)], axis=1).astype(float)
      areas.append(bootstrap.resample(counts, score, small, large, metrics.ratio, rates=RATES).area)
    values.append(bootstrap.difference(0, areas[0] - areas[1]).p)
  rejected = np.mean(np.array(values) < 0.05)
  assert rejected < 0.12  # 0.05 is expected, with a standard error of 0.018
  assert np.mean(values) == pytest.approx(0.5, abs=0.1)


def test_leaving_out_points_changes_areas_by_little_of_their_spread(monkeypatch):
  score, small, large = examples(3000)
  counts = bootstrap.draw([3000], resamples=40, seed=0)
  areas = []
  for most in (3000, 1000):
    monkeypatch.setattr(bootstrap, 'MOST_POINTS', most)
    resampled = bootstrap.resample(counts, score, small, large, metrics.ratio, rates=RATES)
    areas.append(resampled.area)
  apart, spread = np.std(areas[1] - areas[0]), np.std(large[:, 0] - small[:, 0])
  assert 0 < apart < 2 * spread / (1000 * np.sqrt(12 * 3000))
  assert apart < 2e-3 * np.std(areas[0])


def test_a_simultaneous_band_agrees_with_numbers_worked_by_hand():
  # Two points with spreads 1 and 2: the largest |t| of the five curves are 1, 1, 1, 1 and 2.
  resampled = np.array([[1, 2], [-1, 2], [1, -2], [-1, -2], [0, 0]], float)
  resampled[4] = [0, 2 * resampled[:, 1].std()]
  value = np.zeros(2)
  spread = resampled.std(axis=0)
  largest = np.sort((np.abs(resampled) / spread).max(axis=1))
  widest = bootstrap.simultaneous(value, resampled, confidence=0.95)
  np.testing.assert_allclose(widest.high, largest[-1] * spread)
  np.testing.assert_allclose(widest.low, -largest[-1] * spread)
  narrow = bootstrap.simultaneous(value, resampled, confidence=0.6)
  np.testing.assert_allclose(narrow.high, np.maximum(largest[2] * spread, [1, 2]))


def test_a_simultaneous_band_holds_the_pointwise_one_and_most_resamples_from_end_to_end():
  score, small, large = examples(200)
  counts = bootstrap.draw([200], resamples=400, seed=0)
  rates = np.linspace(0, 1, 41)
  curve = curves.deferral_curve(score, small, large, metrics.ratio, by_rate)
  value = np.interp(rates, curve.deferral_rate, curve.quality)
  resampled = bootstrap.resample(counts, score, small, large, metrics.ratio, rates=rates).quality
  for confidence in (0.5, 0.8, 0.95):
    low, high = bootstrap.interval(resampled, confidence=confidence)
    band = bootstrap.simultaneous(value, resampled, confidence=confidence)
    assert (band.low <= low).all()
    assert (band.high >= high).all()
    inside = ((resampled >= band.low - 1e-12) & (resampled <= band.high + 1e-12)).all(axis=1)
    assert confidence <= inside.mean() < confidence + 0.05
    pointwise = ((resampled >= low) & (resampled <= high)).all(axis=1)
    assert pointwise.mean() < confidence - 0.1


def test_a_curve_that_never_varies_has_a_band_of_no_width():
  band = bootstrap.simultaneous(np.ones(3), np.ones((20, 3)) + 1e-17)
  np.testing.assert_array_equal(band, np.ones((2, 3)))


def seed_samples(count, *, rows=200, resamples=300):
  score, _, large = examples(rows)
  counts = bootstrap.draw([rows], resamples=resamples, seed=0)
  smalls = [examples(rows, seed=seed)[1] for seed in range(1, 1 + count)]
  return [
    bootstrap.resample(counts, score, small, large, metrics.ratio, rates=RATES) for small in smalls
  ]


def test_one_training_seed_is_resampled_as_before_and_equal_ones_are_as_one():
  (single,) = seed_samples(1)
  assert bootstrap.over_seeds([single], seed=[0]) is single
  for column, averaged in zip(single, bootstrap.over_seeds([single] * 4, seed=[0]), strict=True):
    np.testing.assert_allclose(averaged, column, rtol=1e-12)


def test_resampled_seeds_are_the_means_of_the_written_out_draws():
  samples = seed_samples(3)
  drawn = np.random.default_rng([5, 1]).integers(3, size=(300, 3))
  averaged = bootstrap.over_seeds(samples, seed=[5, 1])
  for number in (0, 7, 299):
    areas = np.array([sample.area[number] for sample in samples])
    expected = areas.mean() + np.sqrt(3 / 2) * (areas[drawn[number]].mean() - areas.mean())
    assert averaged.area[number] == pytest.approx(expected)
    qualities = np.array([sample.quality[number] for sample in samples])
    centre = qualities.mean(axis=0)
    expected = centre + np.sqrt(3 / 2) * (qualities[drawn[number]].mean(axis=0) - centre)
    np.testing.assert_allclose(averaged.quality[number], expected)


def test_the_variance_over_seeds_is_unbiased_and_adds_to_that_of_examples():
  generator = np.random.default_rng(0)
  shared = generator.normal(size=20_000) * 0.5
  values = np.array([-1.0, 0.2, 2.0])
  empty = np.zeros((20_000, 0))
  samples = [bootstrap.Resamples(empty, value + shared, value + shared) for value in values]
  averaged = bootstrap.over_seeds(samples, seed=[0])
  assert averaged.area.var() == pytest.approx(values.var(ddof=1) / 3 + 0.25, rel=0.04)
  assert averaged.area.mean() == pytest.approx(values.mean(), abs=0.02)
