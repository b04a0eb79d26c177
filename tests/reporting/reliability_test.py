import numpy as np
import pytest

from cascades import metrics
from cascades.evaluation.comparison import PairedAnswers
from cascades.reporting.reliability import reliability
from tests import synthetic_tables


def answers(score, small, large=None):
  table = synthetic_tables.table('a', size=len(score))
  large = small if large is None else large
  return PairedAnswers(table, table, *(np.array(x, float) for x in (small, large, score)))


def test_the_calibration_error_of_four_answers_worked_by_hand():
  confidence = np.array([0.95, 0.91, 0.35, 0.31])
  bins = reliability(
    answers(-np.log(confidence), [1, 0, 0, 0], [1, 1, 0, 1]), 'average', metrics.accuracy
  )
  assert bins.examples.tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 0, 2]
  np.testing.assert_allclose(bins.center[[3, 9]], [0.33, 0.93])
  assert bins.small[[3, 9]].tolist() == [0, 0.5]
  assert bins.large[[3, 9]].tolist() == [0.5, 1]
  assert np.isclose(bins.error, (0.33 * 2 + 0.43 * 2) / 4)


def test_a_given_confidence_is_read_as_it_is():
  bins = reliability(answers([-0.95, -0.35], [1, 0]), 'confidence', metrics.accuracy)
  assert bins.examples[[3, 9]].tolist() == [1, 1]
  assert np.isclose(bins.error, (0.05 + 0.35) / 2)


@pytest.mark.parametrize('score', [[-3.0, 0.5, 2.0, 7.0], [1.0] * 4])
def test_scores_on_another_scale_have_bins_and_no_calibration_error(score):
  bins = reliability(answers(score, [1, 0, 1, 0]), 'of my own', metrics.accuracy, bins=2)
  assert bins.examples.sum() == 4
  assert np.isnan(bins.error)
  assert np.isclose(np.nansum(bins.small * bins.examples), 2)


def test_calibration_on_average_has_no_error():
  rng = np.random.default_rng(0)
  confidence = rng.random(20_000)
  right = rng.random(20_000) < confidence
  table = synthetic_tables.table('a', size=4)
  paired = PairedAnswers(
    table, table, right.astype(float), right.astype(float), -np.log(confidence)
  )
  assert reliability(paired, 'sum', metrics.accuracy).error < 0.02
