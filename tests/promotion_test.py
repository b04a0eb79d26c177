"""Decisions about policies, by numbers worked by hand."""

import numpy as np
import pytest

from cascades import promotion
from cascades.promotion import PromiseLosses

ONES, ZEROS = np.ones(3), np.zeros(3)


def promise(current=ZEROS, other=ZEROS, *, level=0.5, delta=0.13):
  return PromiseLosses('quality', current, other, level, delta)


def decided(gains, *promises, alpha, **options):
  options = {'least_gain': 0.5} | options
  return promotion.decide(gains, promises or [promise()], alpha=alpha, **options)


def test_looks_spend_the_level_and_never_more():
  # 1/2 + 1/6 + 1/12 = 3/4 of it after three looks
  assert [promotion.level(0.12, look) for look in (1, 2, 3)] == pytest.approx([0.06, 0.02, 0.01])
  assert sum(promotion.level(1.0, look) for look in range(1, 100_000)) < 1


def test_three_gains_of_three_are_a_gain_above_one_half_with_a_p_value_of_one_eighth():
  # half of alpha is for the gain: (1/2)^3 = 1/8
  assert decided(ONES, alpha=0.26).choice == 'better'
  assert decided(ONES, alpha=0.24).choice == 'no gain'
  assert decided(ONES, alpha=0.26, least_gain=0.6).choice == 'no gain'  # 0.6^3 = 0.216


def test_three_errors_of_three_refute_a_promise_of_one_half_with_a_p_value_of_one_eighth():
  assert decided(ZEROS, promise(ONES), alpha=0.26).choice == 'repairs'
  assert decided(ZEROS, promise(ONES), alpha=0.24).choice == 'no gain'
  assert decided(ZEROS, promise(ONES, ONES), alpha=0.26).choice == 'both break'
  # two promises share the half: 0.26 / 4 < 1/8 < 0.52 / 4
  two = promise(ONES), promise()._replace(name='cost')
  assert decided(ZEROS, *two, alpha=0.26).choice == 'no gain'
  verdict = decided(ZEROS, *two, alpha=0.52)
  assert (verdict.choice, verdict.names, verdict.replaces) == ('repairs', ('quality',), True)


def test_a_gain_is_nothing_where_the_promise_is_missed_or_is_not_certified_though_asked():
  missed = promise(ZEROS, np.array([1.0, 1.0, 0.0]))
  assert decided(ONES, missed, alpha=0.26).choice == 'promise at risk'
  # no error in three rows certifies one half at (1/2)^3 = 1/8
  assert decided(ONES, promise(delta=0.13), alpha=0.26, certify=True).choice == 'better'
  verdict = decided(ONES, promise(delta=0.12), alpha=0.26, certify=True)
  assert (verdict.choice, verdict.replaces) == ('promise at risk', False)


def test_a_policy_that_is_the_same_is_never_better():
  rows = np.zeros(5000)
  errors = promise(rows, rows, level=0.1)
  assert decided(rows, errors, alpha=0.9, least_gain=0.001).choice == 'no gain'


def test_intervals_of_gains_miss_the_mean_as_rarely_as_they_promise():
  generator, missed = np.random.default_rng(0), 0
  for _ in range(200):
    gains = generator.choice([-1.0, 0.0, 1.0], p=(0.1, 0.6, 0.3), size=150)
    low, high = promotion.interval(gains, 0.1)
    assert low <= gains.mean() <= high
    missed += not low <= 0.2 <= high
  assert missed <= 30  # binomial, 10 % of 200: above with a probability of 0.01
  wide = promotion.interval(gains, 0.01)
  assert wide[0] < low
  assert high < wide[1]
