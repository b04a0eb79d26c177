import numpy as np
import pytest

from benchmarks import coverage, coverage_seeds
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


def test_seeds_are_models_around_the_skill_of_their_recipe(monkeypatch):
  monkeypatch.setattr(coverage, 'POPULATION', 3000)
  own = coverage_seeds.trained(np.random.default_rng(0), 3000, [0.0, 2.0])
  areas = [coverage.curve_of(sample, metrics.ratio)[0] for sample in own]
  assert areas[0] < areas[1]  # a higher skill is a better model
  covered = coverage_seeds.cover(2, 0.0, rows=60, samples=20, resamples=39)
  assert covered.pointwise > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(('seeds', 'least'), [(3, 0.8), (10, 0.9)])
def test_intervals_over_training_seeds_hold_the_recipe_s_number(seeds, least):
  covered = coverage_seeds.cover(seeds, 0.3, rows=300, samples=200, resamples=199)
  assert least < covered.area <= 0.99
