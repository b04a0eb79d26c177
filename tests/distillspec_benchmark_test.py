"""The comparison of distilled drafters: its numbers on hand-made columns, and its readings."""

import numpy as np
import pytest

from benchmarks import distillspec, distillspec_table
from cascades import metrics


def columns(right, alpha):
  """Four words, of which the large model answers three rightly, and two in lossless decoding."""
  counts = {'accepted': [3, 1], 'rejected': [1, 0], 'calls': [2, 1], 'tokens': [5, 2]}
  return {
    'score': np.array([4.0, 3, 2, 1]),
    'small right': np.array([[value, 1.0] for value in right]),
    'large right': np.array([[value, 1.0] for value in (1, 1, 0, 1)]),
    'commit': np.array('abc'),
    **{f'alpha {t}': np.full(4, alpha) for t in (0, 1)},
    **{f'{name} {t}': np.array(values) for name, values in counts.items() for t in (0, 1)},
  }


def test_numbers_of_four_words_by_hand():
  of = distillspec_table.numbers(
    columns([0, 0, 0, 1], 0.8), np.arange(4), np.arange(2), metrics.ratio
  )
  assert of['expected acceptance, T=1'] == pytest.approx(0.8)
  assert of['observed acceptance, T=1'] == pytest.approx(4 / 5)
  assert of['block efficiency, T=0'] == pytest.approx(7 / 3)
  assert of['small alone'] == pytest.approx(1 / 4)
  # quality at 0, 1, 2, 3 and 4 deferrals: 1/4, 2/4, 3/4, 3/4, 3/4
  assert of['area'] == pytest.approx((0.25 / 2 + 0.5 + 0.75 + 0.75 + 0.75 / 2) / 4)
  assert of['area above chord'] == pytest.approx(0.625 - 0.5)


def test_an_arm_is_better_only_if_both_intervals_exclude_zero():
  control = [columns([0, 0, 0, 1], a) for a in (0.80, 0.81, 0.79)]
  arms = {
    'control': control,
    'steady': [columns([0, 0, 0, 1], a) for a in (0.85, 0.86, 0.84)],
    'of one seed': [columns([0, 0, 0, 1], a) for a in (0.95, 0.81, 0.79)],
  }
  summary = distillspec_table.summarize(arms, 'control', metrics.ratio, samples=20)
  verdicts = {
    name: distillspec_table.verdict(own['expected acceptance, T=1'])
    for name, own in summary.items()
  }
  assert verdicts == {'control': 0, 'steady': 1, 'of one seed': 0}
  assert summary['steady']['expected acceptance, T=1']['difference']['mean'] == pytest.approx(0.05)


def test_crossed_arms_keep_the_divergence_and_name_their_reference():
  arms = list(distillspec.crossed_arms('jsd'))
  assert [arm.name for arm in arms] == [
    'jsd cat, fixed', 'jsd adaspec, fixed', 'jsd adaspec smallest, fixed',
  ]  # fmt: skip
  loss = distillspec.DIVERGENCES['jsd'].keywords['token_loss']
  assert all(_token_loss(arm.loss) is loss for arm in arms)
  assert [arm.reference for arm in arms] == [None, 'jsd, fixed', 'jsd, fixed']


def _token_loss(loss):
  """Bound token loss; a partial that gin has marked stays inside of the one that binds more."""
  return loss.keywords['token_loss'] if 'token_loss' in loss.keywords else _token_loss(loss.func)
