import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cascades import bootstrap, curves
from cascades.evaluation import grouped
from cascades.metrics import ratio
from tests import multirc, synthetic_tables


def literal(score, groups, small, large):
  """Rates and shares at every threshold, by asking every group."""
  rates, qualities = [], []
  for threshold in [np.inf, *sorted(set(score.tolist()), reverse=True)]:
    defers = score >= threshold
    right = np.where(defers, large, small)
    of_group = {}
    for name, correct in zip(groups, right, strict=True):
      of_group[name] = of_group.get(name, True) and bool(correct)
    rates.append(defers.mean())
    qualities.append(sum(of_group.values()) / len(of_group))
  return np.array(rates), np.array(qualities)


def curve_of(score, groups, small, large):
  statistics = grouped.statistics(score, groups, small, large)
  return curves.deferral_curve(score, *statistics, ratio, lambda rate: rate)


@st.composite
def answered(draw, *, ties=True):
  n = draw(st.integers(1, 14))
  values = st.integers(0, 3) if ties else st.integers(-99, 99)
  score = draw(st.lists(values, min_size=n, max_size=n, unique=not ties))
  groups = draw(st.lists(st.sampled_from(['a', 'b', 'a\0', 'd e']), min_size=n, max_size=n))
  right = st.lists(st.booleans(), min_size=n, max_size=n)
  return np.array(score, float), groups, np.array(draw(right)), np.array(draw(right))


def test_a_curve_agrees_with_numbers_worked_by_hand():
  # p: small is right on the first alone, large on the second alone. q: large alone on both.
  groups = ['p', 'p', 'q', 'q']
  small, large = np.array([True, False, False, False]), np.array([False, True, True, True])
  curve = curve_of(np.array([1.0, 3, 2, 4]), groups, small, large)
  # Deferring q's second, p's second (p is right now), q's first (so is q), p's first (no more).
  np.testing.assert_array_equal(curve.quality, [0, 0, 0.5, 1, 0.5])
  together = curve_of(np.array([1.0, 3, 3, 4]), groups, small, large)
  np.testing.assert_array_equal(together.quality, [0, 0, 1, 0.5])


@given(answered())
def test_a_curve_equals_asking_every_group_at_every_threshold(case):
  rates, qualities = literal(*case)
  curve = curve_of(*case)
  np.testing.assert_allclose(curve.quality, qualities, atol=1e-12)
  np.testing.assert_allclose(curve.deferral_rate, rates)


@given(answered(ties=False))
def test_without_ties_too_and_the_statistics_are_small_integers(case):
  np.testing.assert_allclose(curve_of(*case).quality, literal(*case)[1], atol=1e-12)
  small, large = grouped.statistics(*case)
  assert set(small.ravel()) <= {0, 1}
  assert set((large - small)[:, 0]) <= {-1, 0, 1}
  assert small[:, 1].sum() == large[:, 1].sum() == len(set(case[1]))


@given(answered())
def test_groups_of_one_row_are_rows(case):
  score, _, small, large = case
  quality = [np.stack([side, np.ones(len(side))], axis=1).astype(float) for side in (small, large)]
  rows = curves.deferral_curve(score, *quality, ratio, lambda rate: rate)
  curve = curve_of(score, [str(i) for i in range(len(score))], small, large)
  np.testing.assert_allclose(curve.quality, rows.quality, atol=1e-12)


@given(answered())
def test_the_order_of_the_rows_does_not_matter(case):
  score, groups, small, large = case
  turned = curve_of(score[::-1], groups[::-1], small[::-1], large[::-1])
  np.testing.assert_allclose(turned.quality, curve_of(*case).quality, atol=1e-12)


def test_a_curve_on_real_questions_equals_asking_every_question():
  targets, groups = multirc.rows()
  generator = np.random.default_rng(1)
  small, large = (
    np.array(
      [a == b for a, b in zip(targets, multirc.guesses(targets, right, generator), strict=True)]
    )
    for right in (0.7, 0.9)
  )
  score = generator.integers(0, 60, size=len(targets)).astype(float)
  curve = curve_of(score, groups, small, large)
  np.testing.assert_allclose(curve.quality, literal(score, groups, small, large)[1])
  assert len(set(groups)) == 953
  assert curve.quality[-1] > curve.quality[0] + 0.2


def test_intervals_are_those_of_questions_drawn_and_written_out():
  generator = np.random.default_rng(2)
  groups = [f'q{i}' for i in generator.integers(0, 9, size=40)]
  score = generator.integers(0, 8, size=40).astype(float)
  small, large = generator.random(40) < 0.7, generator.random(40) < 0.9
  accuracy = grouped.accuracy(score, groups, small, large, resamples=25, confidence=0.8, seed=3)
  names = list(dict.fromkeys(groups))
  counts = bootstrap.draw([len(names)], resamples=25, seed=3)
  ends, areas = [], []
  for row in counts:
    drawn, copies = [], []
    for group, times in zip(names, row, strict=True):
      rows = [i for i, name in enumerate(groups) if name == group]
      drawn += rows * int(times)
      copies += [f'{group}-{copy}' for copy in range(times) for _ in rows]
    rates, qualities = literal(score[drawn], copies, small[drawn], large[drawn])
    ends.append((qualities[0], qualities[-1]))
    areas.append(np.trapezoid(qualities, rates))
  rates, qualities = literal(score, groups, small, large)
  ends, areas = np.array(ends), np.array(areas)
  area = np.trapezoid(qualities, rates)
  for estimate, value, resampled in [
    (accuracy.small, qualities[0], ends[:, 0]),
    (accuracy.large, qualities[-1], ends[:, 1]),
    (accuracy.area, area, areas),
    (accuracy.above_chord, area - qualities[[0, -1]].mean(), areas - ends.mean(axis=1)),
  ]:
    low, high = bootstrap.interval(resampled, confidence=0.8)
    assert estimate == pytest.approx((value, low, high))
  assert accuracy.groups == len(names) == 9


def test_every_task_with_groups_is_judged_under_its_rows_of_the_pooled_score():
  small, large = synthetic_tables.small_and_large()
  groups = {'a': [f'q{i // 2}' for i in range(70)], 'b': [f'q{i // 3}' for i in range(40)]}

  def with_groups(table):
    return table._replace(groups=groups[table.task])

  small = {name: [first, with_groups(second)] for name, (first, second) in small.items()}
  large = [large[0], with_groups(large[1])]
  score = np.random.default_rng(0).normal(size=110)
  settings = {'resamples': 30, 'confidence': 0.6, 'seed': 5}
  by_task = grouped.accuracy_by_task({'xent': score, 'cat': -score}, small, large, **settings)
  assert {task: [*models] for task, models in by_task.items()} == {'b': ['xent', 'cat']}
  correct = {
    name: tables[1].statistics['accuracy'][:, 0] == 1
    for name, tables in {**small, 'large': large}.items()
  }
  expected = grouped.accuracy(
    -score[70:], groups['b'], correct['cat'], correct['large'], **settings
  )
  assert by_task['b']['cat'] == expected
  assert by_task['b']['xent'] != expected
