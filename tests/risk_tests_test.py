import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cascades import risk_tests


def test_the_example_of_the_module_is_right():
  assert doctest.testmod(risk_tests, extraglobs={'np': np}).failed == 0


def test_the_binomial_p_value_is_the_sum_of_a_hand_worked_tail():
  # Two of three wrong at most, where each is wrong with probability 1/2: 7 of 8 outcomes.
  assert risk_tests.binomial(np.array(2), 3, 0.5) == pytest.approx(7 / 8)
  assert risk_tests.binomial_limit(3, 0.5, 0.125) == 0
  assert risk_tests.binomial_limit(3, 0.5, 0.12) == -1


@given(st.integers(1, 200), st.floats(0.01, 0.99), st.floats(0.001, 0.5), st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_binomial_p_values_are_those_of_scipy_and_limits_their_inverse(rows, level, delta, k):
  k = min(k, rows)
  p = float(risk_tests.binomial(np.array(k), rows, level))
  assert p == pytest.approx(stats.binomtest(k, rows, level, alternative='less').pvalue, abs=1e-12)
  assert (k <= risk_tests.binomial_limit(rows, level, delta)) == (p <= delta)


def brute_force(worse, better, rows, margin):
  """P-value of the paired test: all outcomes of at most its score, over a fine grid of shares."""
  score = lambda w, b: float(risk_tests._score(np.array(w), np.array(w + b), rows, margin))
  z = score(worse, better)
  cells = [
    (w, b)
    for w, b in itertools.product(range(rows + 1), repeat=2)
    if w + b <= rows and score(w, b) <= z + 1e-9
  ]
  probabilities = []
  for share in np.linspace(margin, 1, 400):
    p_worse, p_better = (share + margin) / 2, (share - margin) / 2
    probabilities.append(
      sum(
        math.comb(rows, w) * math.comb(rows - w, b)
        * p_worse**w * p_better**b * max(1 - share, 0.0) ** (rows - w - b)
        for w, b in cells
      )
    )  # fmt: skip
  return max(probabilities)


@pytest.mark.parametrize('counts', [(0, 0), (1, 2), (2, 5), (0, 6)])
def test_the_paired_p_value_is_the_largest_over_all_shares_of_ties(counts):
  assert risk_tests.paired(*counts, 12, 0.1) == pytest.approx(
    brute_force(*counts, 12, 0.1), abs=2e-3
  )


@pytest.mark.parametrize(('rows', 'margin', 'delta'), [(40, 0.1, 0.1), (150, 0.03, 0.05)])
def test_paired_limits_reject_wrongly_with_at_most_delta_and_not_much_less(rows, margin, delta):
  limits = risk_tests.paired_limits(rows, margin, delta)
  level = 0.0
  for share in np.linspace(margin, 1, 300):
    m = np.arange(rows + 1)
    tail = stats.binom.cdf(limits, m, (share + margin) / (2 * share))
    level = max(level, float((stats.binom.pmf(m, rows, share) * tail).sum()))
  assert delta / 2 < level <= delta + 1e-9
  steps = np.diff(limits)
  assert ((steps >= 0) & (steps <= 1)).all()  # as the bound over intervals presumes


def test_a_rejection_survives_better_rows():
  limits = risk_tests.paired_limits(100, 0.05, 0.1)
  rejected = lambda worse, better: worse <= limits[worse + better]
  for worse, better in itertools.product(range(20), range(20)):
    if rejected(worse, better):
      assert rejected(worse, better + 1)
      assert not worse or rejected(worse - 1, better)


def test_hoeffding_bentkus_is_the_formula_of_the_paper():
  # n = 20, mean 0.1, level 0.3: exp(-20 KL(0.1, 0.3)) and e P(Bin(20, 0.3) <= 2).
  divergence = 0.1 * math.log(0.1 / 0.3) + 0.9 * math.log(0.9 / 0.7)
  expected = min(math.exp(-20 * divergence), math.e * stats.binom.cdf(2, 20, 0.3))
  assert risk_tests.hoeffding_bentkus(0.1, 20, 0.3) == pytest.approx(expected)
  assert risk_tests.hoeffding_bentkus(0.5, 20, 0.3) == 1


@given(st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_the_exact_test_is_never_weaker_than_hoeffding_bentkus(failures):
  exact = risk_tests.binomial(np.array(failures), 60, 0.3)
  assert exact <= risk_tests.hoeffding_bentkus(failures / 60, 60, 0.3) + 1e-12


def test_betting_is_the_slow_loop():
  generator = np.random.default_rng(0)
  losses, level, delta = generator.beta(1, 5, size=80), 0.25, 0.1
  wealth, best, mean_sum, variance_sum = 1.0, 1.0, 0.5, 0.25
  for t, loss in enumerate(losses, start=1):
    variance = 0.25 if t == 1 else variance_sum / t
    bet = min(math.sqrt(2 * math.log(1 / delta) / (80 * variance)), 0.75 / (1 - level))
    wealth *= 1 + bet * (level - loss)
    best = max(best, wealth)
    mean_sum += loss
    variance_sum += (loss - mean_sum / (t + 1)) ** 2
  assert risk_tests.betting(losses[None], level, delta)[0] == pytest.approx(1 / best)


def graded_rejections(p_value):
  """Share of wrong rejections at 0.1 where the mean loss is exactly the level."""
  losses = np.random.default_rng(1).beta(0.5, 2.0, size=(2000, 150))  # mean 0.2
  return float(np.mean(p_value(losses) <= 0.1))


def test_tests_of_graded_losses_are_valid_and_the_control_is_caught():
  most = 0.1 + 3 * math.sqrt(0.09 / 2000)
  assert graded_rejections(lambda losses: risk_tests.betting(losses, 0.2, 0.1)) <= most
  assert graded_rejections(lambda x: risk_tests.hoeffding_bentkus(x.mean(axis=1), 150, 0.2)) <= most
  # A bettor who may look at the loss before he bets is no test.
  cheat = lambda losses: risk_tests.betting(np.sort(losses, axis=1), 0.2, 0.1)
  assert graded_rejections(cheat) > most


def test_intervals_hold_their_value_and_shrink_with_the_rows():
  low, high = risk_tests.binomial_interval(8, 10, 0.05)
  assert (low, high) == pytest.approx((0.4439, 0.9748), abs=1e-4)  # Clopper and Pearson
  widths = []
  for rows in (20, 200, 2000):
    low, high = risk_tests.mean_interval(0.3, rows, 0.05)
    assert 0 <= low < 0.3 < high <= 1
    widths.append(high - low)
  assert widths == sorted(widths, reverse=True)
  assert risk_tests.mean_interval(0.0, 50, 0.1)[0] == 0
