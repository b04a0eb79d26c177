import numpy as np
import pytest

from benchmarks import coverage
from cascades import metrics


def test_the_population_of_independent_answers_has_the_area_of_its_formula():
  # A row of score u is deferred at rates above 1 - u: E[u (0.85 - 0.2 u) + (1 - u) (0.9 - 0.6 u)].
  expected = (0.85 / 2 - 0.2 / 3) + (0.9 - 1.5 / 2 + 0.6 / 3)
  sample = coverage.independent(np.random.default_rng(0), 200_000)
  area, _ = coverage.curve_of(sample, metrics.ratio)
  assert area == pytest.approx(expected, abs=4e-3)


@pytest.mark.slow
@pytest.mark.parametrize('kind', coverage.KINDS)
def test_intervals_of_the_area_hold_the_population_s_as_often_as_they_promise(kind):
  covered = coverage.cover(kind, rows=300, samples=600, resamples=199)
  error = 3 * np.sqrt(0.95 * 0.05 / 600)
  assert coverage.LOW - error < covered.area < coverage.HIGH + error
  assert covered.simultaneous > coverage.LOW - error
