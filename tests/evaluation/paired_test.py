import numpy as np
import pytest

from cascades import bootstrap, comparisons, curves, metrics
from cascades.evaluation import compare, paired, quantities
from cascades.evaluation.comparison import Settings
from cascades.evaluation.quantities import Measurement
from tests import synthetic_tables


def by_rate(rate):
  return rate


def test_differences_of_all_pairs_are_one_family_and_those_of_scores_another():
  comparison = synthetic_tables.comparison()
  assert len(comparison.differences) == 3
  assert len(comparison.score_differences) == 4
  for family in (comparison.differences, comparison.score_differences):
    for quantity in family[0].estimates:
      p = np.array([pair.estimates[quantity].p for pair in family])
      expected = comparisons.holm(p)
      assert [pair.holm[quantity] for pair in family] == expected.tolist()
    assert all((pair.simultaneous.low <= pair.low).all() for pair in family)
    assert all((pair.simultaneous.high >= pair.high).all() for pair in family)


def test_scores_of_one_model_are_compared_with_the_first():
  comparison = synthetic_tables.comparison()
  names = [
    (pair.model, pair.score, pair.baseline, pair.baseline_score)
    for pair in comparison.score_differences
  ]
  assert names == [
    (model, score, model, 'average') for model in ('xent', 'cat') for score in ('sum', 'random')
  ]
  pair = comparison.score_differences[0]
  areas = [
    comparison.at('xent', score).estimates[quantities.AREA].value for score in ('sum', 'average')
  ]
  assert pair.estimates[quantities.AREA].value == pytest.approx(areas[0] - areas[1])
  assert pair.estimates[quantities.SMALL] == (0, 0, 0, 1)


def test_bands_of_cascades_are_shown_beside_their_pointwise_ones():
  for cascade in synthetic_tables.comparison().cascades:
    assert (cascade.simultaneous.low <= cascade.low).all()
    assert (cascade.simultaneous.high >= cascade.high).all()
    assert np.sum(cascade.simultaneous.high - cascade.high) > 0


def test_single_points_are_tested_exactly():
  comparison = synthetic_tables.comparison()
  pair = comparison.differences[0]
  assert [*pair.mcnemar] == [*comparison.settings.costs]
  answers = [comparison.answers[name] for name in ('cat', 'xent')]
  for cost, test in pair.mcnemar.items():
    right = []
    for name, own in zip(('cat', 'xent'), answers, strict=True):
      curve = comparison.at(name).curve
      deferred = own.score >= curve.threshold[np.flatnonzero(curve.cost <= cost)[-1]]
      assert 0 < deferred.mean() < 1
      right.append(np.where(deferred, own.large_quality, own.small_quality) == 1)
    assert test == comparisons.mcnemar(*right)


def test_points_below_every_cost_and_graded_answers_are_not_tested():
  score, small, large = np.arange(4.0), np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 1, 1])
  statistics = [np.stack([column, np.ones(4)], axis=1) for column in (small, large)]

  curve = curves.deferral_curve(score, *statistics, metrics.ratio, by_rate)
  right = paired.right_at([-0.1, 0.0, 0.3, 5.0], curve, score, small, large)
  assert {cost: answers.tolist() for cost, answers in right.items()} == {
    0.0: [True, False, True, False],
    0.3: [True, False, True, True],
    5.0: [True] * 4,
  }
  assert paired.right_at([0.3], curve, score, small / 2, large) == {}
  assert not synthetic_tables.comparison('bleu').differences[0].mcnemar


def test_a_family_without_pairs_is_empty():
  values = {quantities.QUALITY: Measurement(np.zeros(2), np.zeros((3, 2)))}
  assert paired.differences({('a', 's'): values}, [], right={}, confidence=0.9) == ()
  small, large = synthetic_tables.small_and_large()
  scores = {'length': lambda table: table.lengths.astype(float)}
  comparison = compare.compare(
    {'cat': small['cat']}, large, scores=scores, settings=Settings(resamples=5)
  )
  assert comparison.differences == comparison.score_differences == ()


def test_adjusted_p_values_are_not_below_the_plain_ones_where_models_differ():
  values = {}
  generator = np.random.default_rng(0)
  for number in range(3):
    resampled = number * 0.01 + generator.normal(size=(99, 2)) * 0.01
    values[f'm{number}', 's'] = {
      quantities.QUALITY: Measurement(resampled.mean(axis=0), resampled),
      quantities.AREA: Measurement(np.array(number * 0.01), resampled[:, 0]),
    }
  names = [('m1', 's'), ('m2', 's')]
  pairs = [(name, ('m0', 's')) for name in names]
  family = paired.differences(values, pairs, right={key: {} for key in values}, confidence=0.9)
  for pair, name in zip(family, names, strict=True):
    resampled = (
      values[name][quantities.AREA].resampled - values['m0', 's'][quantities.AREA].resampled
    )
    expected = bootstrap.difference(
      pair.estimates[quantities.AREA].value, resampled, confidence=0.9
    )
    assert pair.estimates[quantities.AREA] == expected
    assert pair.holm[quantities.AREA] >= expected.p
