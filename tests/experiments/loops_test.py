"""Loops and repeated n-grams by hand, against an oracle, and AUROC against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import loops


def test_occurrences_by_hand():
  assert loops.occurrences([1, 2, 1, 2, 1, 2], n=2).tolist() == [0, 0, 0, 1, 1, 2]
  assert loops.occurrences([7, 7, 7, 7], n=1).tolist() == [0, 1, 2, 3]
  assert loops.occurrences([1], n=4).tolist() == [0]


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 4))
def test_occurrences_count_earlier_equal_n_grams(tokens, n):
  slow = [
    sum(tokens[j - n + 1 : j + 1] == tokens[i - n + 1 : i + 1] for j in range(n - 1, i))
    if i >= n - 1
    else 0
    for i in range(len(tokens))
  ]
  assert loops.occurrences(tokens, n=n).tolist() == slow
  grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
  share = 1 - len(set(grams)) / len(grams) if grams else 0
  assert loops.repeated_share(tokens, n=n) == pytest.approx(share)


@pytest.mark.parametrize(
  ('tokens', 'expected'),
  [
    ([5] * 16, True),
    ([5] * 15, False),  # shorter than any loop
    ([*range(100), *[1, 2, 3, 4, 5, 6] * 3, 99], True),  # also in the middle
    ([*range(100), *[1, 2, 3, 4, 5, 6] * 2, 1, 2, 3], False),  # two repeats and a half
    ([*range(40)] * 3, False),  # a longer period than loops have
    ([*range(32)] * 3, True),
    (list(range(200)), False),
    ([], False),
    ([1], False),
  ],
)
def test_a_loop_is_three_repeats_over_sixteen_tokens(tokens, expected):
  assert loops.loops(tokens) is expected


def test_auroc_is_that_of_scikit_learn_within_a_stratum():
  metrics = pytest.importorskip('sklearn.metrics')
  random = np.random.default_rng(0)
  score, positive = random.integers(0, 5, size=50), random.random(50) < 0.3
  expected = metrics.roc_auc_score(positive, score)
  assert loops.auroc(score, positive, np.zeros(50, int)) == pytest.approx(expected)


def test_auroc_compares_only_within_strata():
  score, positive = np.array([1.0, 2.0, 11.0, 10.0]), np.array([False, True, False, True])
  assert loops.auroc(score, positive, np.array([0, 0, 1, 1])) == 0.5  # one right, one wrong
  assert np.isnan(loops.auroc(score, positive, np.arange(4)))


def test_an_interval_covers_a_mean():
  values = np.random.default_rng(0).normal(1, 1, size=400)
  interval = loops.interval(lambda rows: values[rows].mean(), np.zeros(400, int))
  assert interval.value == pytest.approx(values.mean())
  assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
