from functools import partial

import numpy as np
import pytest

from cascades import bootstrap, curve_metrics, frontier, metrics
from cascades.evaluation import chain_differences, chains
from cascades.evaluation.applied import Applied
from cascades.evaluation.chain_comparison import compare_chains
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.evaluation.quantities import Quantity
from cascades.frontier import Outcomes, Rule
from tests.evaluation.chain_comparison_test import AVERAGE, FIT, REPORT


def outcomes_of(rows=12):
  generator = np.random.default_rng(5)
  return Outcomes(
    scores=generator.random((2, rows)),
    quality=generator.integers(0, 2, size=(3, rows)) + 0.0,
    cost=generator.integers(1, 5, size=(3, rows)) * np.array([[1.0], [4], [9]]),
    deciding=np.zeros(2),
  )


def test_resampled_areas_equal_those_of_rows_written_out():
  outcomes = outcomes_of()
  statistics = np.stack([outcomes.quality, np.ones_like(outcomes.quality)], axis=-1)
  rules = [Rule((0,), ()), Rule((0, 1, 2), (0.4, 0.6)), Rule((1, 2), (0.2,)), Rule((2,), ())]
  counts = bootstrap.draw([12], resamples=7, seed=0)
  decisions = [partial(frontier.apply, outcomes, rule) for rule in rules]
  areas = chain_differences.resampled_areas(
    Applied(decisions, statistics, metrics.ratio), counts, limits=(2.0, 30.0)
  )
  for drawn, area in zip(counts, areas, strict=True):
    rows = np.repeat(np.arange(12), drawn)
    fewer = Outcomes(
      outcomes.scores[:, rows], outcomes.quality[:, rows], outcomes.cost[:, rows], np.zeros(2)
    )
    measured = frontier.measure(fewer, statistics[:, rows], metrics.ratio, rules)
    expected = curve_metrics.area(measured.cost, measured.quality, low=2.0, high=30.0)
    assert area == pytest.approx(expected)


@pytest.mark.parametrize('axis', ['flops per token', 'dollars'])
def test_differences_are_those_of_the_reported_areas(axis):
  (result,) = compare_chains(
    REPORT, FIT, deciders=[AVERAGE], chains=Chains(['1b', '3b', '8b'], [axis]),
    settings=Settings(resamples=40),
  )  # fmt: skip
  assert list(result.differences) == list(chain_differences.PAIRS[:4])
  for (name, other), difference in result.differences.items():
    first, second = (result.curves[n].metrics[Quantity('area')] for n in (name, other))
    assert difference.value == pytest.approx(first - second)
    assert difference.low <= difference.value + 0.05
    assert difference.low <= difference.high


def test_thresholds_give_the_rules_back():
  nan, inf = np.nan, np.inf
  thresholds = np.array([[nan, inf, nan], [0.5, nan, inf], [inf, 1, inf]])
  zeros = np.zeros(3)
  curve = chains.ChainCurve(zeros, zeros, np.zeros((3, 3)), thresholds, zeros, zeros, {})
  assert chain_differences.rules_of(curve) == [
    Rule((1,), ()), Rule((0, 2), (0.5,)), Rule((0, 1, 2), (np.inf, 1.0)),
  ]  # fmt: skip
