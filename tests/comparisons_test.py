import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cascades import comparisons

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12).map(np.array)


def literal_holm(p):
  """Steps down through the ordered hypotheses: the adjusted p is the least alpha that rejects."""
  adjusted = []
  for value in p:
    smaller = sorted(other for other in p if other <= value)
    adjusted.append(min(1, max((len(p) - i) * other for i, other in enumerate(smaller))))
  return adjusted


def test_adjusted_p_values_agree_with_numbers_worked_by_hand():
  # 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.04 x 1, of which the last is raised to its predecessor.
  adjusted = comparisons.holm(np.array([0.04, 0.01, 0.03, 0.02]))
  np.testing.assert_allclose(adjusted, [0.06, 0.04, 0.06, 0.06])
  np.testing.assert_allclose(comparisons.holm(np.array([0.3])), [0.3])
  np.testing.assert_allclose(comparisons.holm(np.array([0.6, 0.7])), [1, 1])
  assert comparisons.holm(np.array([])).shape == (0,)


@given(P_VALUES)
def test_adjusted_p_values_equal_the_literal_ones_and_keep_their_order(p):
  adjusted = comparisons.holm(p)
  np.testing.assert_allclose(adjusted, literal_holm(p.tolist()), atol=1e-15)
  assert (adjusted >= p).all()
  assert (adjusted <= np.minimum(1, len(p) * p)).all()  # Bonferroni is never better
  order = np.argsort(p, kind='stable')
  assert (np.diff(adjusted[order]) >= 0).all()


def test_all_true_hypotheses_together_are_rejected_as_rarely_as_one():
  p = np.random.default_rng(0).random((4000, 8))
  rejected = np.mean([comparisons.holm(row).min() <= 0.05 for row in p])
  assert rejected == pytest.approx(1 - (1 - 0.05 / 8) ** 8, abs=0.012)
  assert np.mean(p.min(axis=1) <= 0.05) > 0.3  # without the adjustment


def test_the_exact_test_agrees_with_numbers_worked_by_hand():
  first = np.array([True, True, True, True, False, True])
  second = np.array([False, False, False, True, False, True])
  assert comparisons.mcnemar(first, second) == (3, 0, pytest.approx(2 / 8))
  assert comparisons.mcnemar(second, first) == (0, 3, pytest.approx(2 / 8))
  assert comparisons.mcnemar(first, first) == (0, 0, 1)
  assert comparisons.mcnemar(~second, second) == (4, 2, pytest.approx(2 * (1 + 6 + 15) / 64))


def test_the_exact_test_equals_the_binomial_test():
  for first_only, second_only in itertools.product((0, 1, 2, 7, 30, 400), (1, 3, 30, 380)):
    first = np.repeat([True, False, True], [first_only, second_only, 9])
    second = np.repeat([False, True, True], [first_only, second_only, 9])
    expected = stats.binomtest(first_only, first_only + second_only).pvalue
    assert comparisons.mcnemar(first, second).p == pytest.approx(expected, rel=1e-9)
