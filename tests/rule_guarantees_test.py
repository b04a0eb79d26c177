"""Rules in an order: a number by hand, agreement with thresholds, and the promise."""

import numpy as np
import pytest

from cascades import guarantees, risk_tests, rule_guarantees
from cascades.guarantees import Risk
from cascades.rule_guarantees import RuleRisk


def test_the_binomial_limit_by_hand():
  # P(Bin(10, 1/2) <= 2) = 56/1024 < 0.1 < P(Bin(10, 1/2) <= 3) = 176/1024
  wrong = np.array([[1.0] * count + [0.0] * (10 - count) for count in (3, 2, 1)])
  assert rule_guarantees.certified(RuleRisk('errors', wrong, 0.5, 0.1)).tolist() == [
    False, True, True
  ]  # fmt: skip


def test_the_walk_ends_at_the_first_rule_that_fails():
  wrong = np.array([[0.0] * 10, [1.0] * 10, [0.0] * 10])
  walked = rule_guarantees.certified(RuleRisk('errors', wrong, 0.5, 0.1))
  assert walked.tolist() == [False, False, True]
  other = rule_guarantees.certified(RuleRisk('errors', wrong, 0.5, 0.1, falls=False))
  assert other.tolist() == [True, False, False]


@pytest.mark.parametrize('losses', ['errors', 'differences', 'graded', 'graded differences'])
def test_thresholds_of_one_score_are_certified_as_guarantees_does(losses):
  rng = np.random.default_rng(0)
  score = rng.permutation(200).astype(float)
  small = (rng.random(200) < 0.3).astype(float)
  large = (rng.random(200) < 0.1).astype(float)
  if 'graded' in losses:
    small, large = small * rng.random(200), large * rng.random(200)
  if 'differences' in losses:
    small, large = small - large, np.zeros(200)
  walk = guarantees.path(score)
  per_rule = np.where(score >= walk.threshold[:, None], large, small)
  expected = guarantees.certified(walk, Risk('x', small, large, 0.2, 0.1))
  actual = RuleRisk('x', per_rule, 0.2, 0.1)
  assert rule_guarantees.certified(actual).tolist() == expected.tolist()
  assert rule_guarantees.test_of(actual) == guarantees.test_of(Risk('x', small, large, 0.2, 0.1))
  assert expected.any()
  assert not expected.all() or 'graded' in losses


@pytest.mark.parametrize('graded', [False, True])
def test_a_rule_at_the_level_is_certified_with_delta_at_most(graded):
  rng = np.random.default_rng(1)
  broken = 0
  for _ in range(400):
    losses = (rng.random((3, 60)) < 0.3).astype(float)
    losses = losses * 0.8 + 0.06 if graded else losses
    broken += rule_guarantees.certified(RuleRisk('x', losses, 0.3, 0.1)).any()
  assert broken <= 400 * 0.1 + 2.5 * np.sqrt(400 * 0.09)  # 0.3 is the mean, so that all break it
  assert risk_tests.binomial_limit(60, 0.3, 0.1) > 0
