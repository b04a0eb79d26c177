import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given

from cascades import correlation, curves, metrics

integers = st.integers(0, 5).map(str)
decimal = st.floats(0, 5).map(lambda value: f'{value:.1f}')
texts = st.one_of(integers, st.sampled_from(['x', '', '9', '-3', 'nan', 'inf', '4 5']))


def finished(metric, rows):
  return float(metric.finalize(sum(metric.statistics([target], text) for target, text in rows)))


def expected(function, rows):
  """Value of scipy; 0 where it finds no spread."""
  columns = [list(map(correlation.similarity, column)) for column in zip(*rows, strict=True)]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return np.nan_to_num(function(*columns).statistic)


def pairs(values):
  return st.lists(st.tuples(values, values), min_size=2, max_size=15)


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('3', 3), (' 2.5\n', 2.5), ('0', 0), ('5.0', 5),
    ('5.1', -1), ('-0.2', -1), ('nan', -1), ('inf', -1), ('', -1), ('three', -1), ('1e400', -1),
  ],
)  # fmt: skip
def test_a_text_is_a_number_from_0_to_5_or_else_minus_1(text, value):
  assert correlation.similarity(text) == value


@given(st.text())
def test_any_text_has_a_number(text):
  assert correlation.similarity(text) == -1 or 0 <= correlation.similarity(text) <= 5


def test_both_agree_with_numbers_worked_by_hand():
  rows = [('1', '1'), ('2', '3'), ('3', '2'), ('4', '5')]
  # Deviations -1.5, -.5, .5, 1.5 and -1.75, .25, -.75, 2.25: 5.5 / sqrt(5 * 8.75).
  assert finished(correlation.pearson, rows) == pytest.approx(5.5 / np.sqrt(43.75))
  # Ranks 1, 2, 3, 4 and 1, 3, 2, 4: 1 - 6 * 2 / (4 * 15).
  assert finished(correlation.spearman, rows) == pytest.approx(0.8)


@given(pairs(texts))
def test_pearson_equals_scipy(rows):
  assert finished(correlation.pearson, rows) == pytest.approx(
    expected(scipy.stats.pearsonr, rows), abs=1e-7
  )


@given(pairs(decimal))
def test_pearson_equals_scipy_on_decimals(rows):
  assume(all(np.ptp([float(text) for text in column]) > 0.05 for column in zip(*rows, strict=True)))
  assert finished(correlation.pearson, rows) == pytest.approx(
    expected(scipy.stats.pearsonr, rows), abs=1e-7
  )


@given(pairs(texts))
def test_spearman_equals_scipy_on_integers(rows):
  assert finished(correlation.spearman, rows) == pytest.approx(
    expected(scipy.stats.spearmanr, rows), abs=1e-9
  )


@given(pairs(decimal))
def test_spearman_of_decimals_is_that_of_the_rounded(rows):
  rounded = [tuple(str(round(float(text))) for text in row) for row in rows]
  assert finished(correlation.spearman, rows) == finished(correlation.spearman, rounded)


@pytest.mark.parametrize('metric', [correlation.pearson, correlation.spearman])
@pytest.mark.parametrize('answer', ['2.2', '0.1', '3.7', 'x'])
def test_answers_that_are_all_equal_do_not_correlate(metric, answer):
  generator = np.random.default_rng(0)
  rows = [(f'{target:.1f}', answer) for target in generator.uniform(0, 5, size=1500)]
  assert finished(metric, rows) == 0
  assert finished(metric, rows[:1]) == 0
  assert finished(metric, [*rows, ('5', '5'), ('5', '5')]) > 0.001  # but the least spread counts


@pytest.mark.parametrize('metric', [correlation.pearson, correlation.spearman])
def test_curves_equal_scipy_at_each_threshold(metric):
  function = {'pearson': scipy.stats.pearsonr, 'spearman': scipy.stats.spearmanr}[metric.name]
  generator = np.random.default_rng(0)
  truth = generator.integers(0, 6, size=400)
  small, large = (
    np.clip(truth + generator.normal(0, spread, size=400).round(), -1, 5) for spread in (3, 1)
  )
  score = generator.integers(0, 40, size=400).astype(float)
  small_statistics, large_statistics = (
    np.stack([metric.statistics([str(a)], str(b)) for a, b in zip(truth, side, strict=True)])
    for side in (small, large)
  )
  curve = curves.deferral_curve(
    score, small_statistics, large_statistics, metric.finalize, lambda rate: rate
  )
  assert len(curve.quality) == 41
  for threshold, quality in zip(curve.threshold, curve.quality, strict=True):
    mixed = np.where(score >= threshold, large, small)
    assert quality == pytest.approx(function(truth, mixed).statistic)
  assert curve.quality[-1] > curve.quality[0] + 0.2


def test_both_are_found_by_name():
  assert metrics.by_name('pearson') is correlation.pearson
  assert metrics.by_name('spearman') is correlation.spearman
