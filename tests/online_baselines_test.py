import functools
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cascades import online, online_baselines
from cascades.inference import online_stream
from cascades.online_baselines import linucb, thompson
from tests.inference import online_stream_test


def test_an_ensemble_is_the_sum_of_shares_times_accuracies():
  accuracy = online_baselines.ensemble_accuracy(
    np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.8, 0.9])
  )
  assert accuracy == pytest.approx(0.30 + 0.24 + 0.18)


def test_an_ensemble_of_equals_is_equal_whatever_the_shares():
  shares = np.random.default_rng(0).dirichlet([1, 1, 1])
  assert online_baselines.ensemble_accuracy(shares, np.full(3, 0.7)) == pytest.approx(0.7)


def warm(settings, **changes):
  return online.start(settings, seed=0)._replace(updates=(10,) * settings.small, **changes)


def test_levels_drawn_without_regard_to_what_is_right_reach_the_ensembles_accuracy():
  """The identity behind the authors' number: usage that is independent of correctness."""
  rng, shares = np.random.default_rng(0), (0.5, 0.3, 0.2)
  right = rng.random((20_000, 3)) < [0.6, 0.8, 0.9]
  state = warm(online_stream_test.TWO)
  choose = lambda u: online_baselines.ensemble_choice(
    online_stream_test.TWO, state, None, [u, 0.0], shares=shares
  )
  levels = [choose(u).level for u in rng.random(len(right))]
  accuracy = right[np.arange(len(right)), levels].mean()
  expected = online_baselines.ensemble_accuracy(np.array(shares), right.mean(0))
  assert accuracy == pytest.approx(expected, abs=4 * (0.25 / len(right)) ** 0.5)


def chosen(uniform, shares, **changes):
  return online_baselines.ensemble_choice(
    online_stream_test.TWO, warm(online_stream_test.TWO, **changes), None, [uniform, 0.0],
    shares=shares,
  )  # fmt: skip


def test_an_ensemble_chooses_by_its_shares():
  shares = (0.2, 0.5, 0.3)
  assert [chosen(u, shares).level for u in (0.0, 0.19, 0.21, 0.69, 0.71, 0.999)] == [
    0, 0, 1, 1, 2, 2,
  ]  # fmt: skip
  # A budget of .5 leaves .5 for the small models, in the ratio 2 : 5.
  assert [chosen(u, shares, share=0.5).level for u in (0.14, 0.15, 0.49, 0.51)] == [0, 1, 1, 2]
  cold = online.start(online_stream_test.TWO, seed=0)
  choice = online_baselines.ensemble_choice(
    online_stream_test.TWO, cold, None, [0.0, 0.0], shares=shares
  )
  assert choice == (2, 'warm-up')


def test_an_ensemble_runs_as_a_stream_and_asks_about_as_often_as_its_share():
  points, _, said = online_stream_test.synthetic(1160)
  small = [online_stream_test.Seen(points, 4), online_stream_test.Seen(points, 10)]
  decide = functools.partial(online_baselines.ensemble_choice, shares=(0.4, 0.4, 0.2))
  got = online_stream_test.answers(online_stream_test.TWO, small, said, 1160, decide=decide)
  levels = np.array([answer.choice.level for answer, _ in got[160:]])
  assert np.bincount(levels) / 1000 == pytest.approx([0.4, 0.4, 0.2], abs=0.05)
  assert got[-1][1].updates[0] > 30  # the small models go on learning


CONFIDENCE = np.array([[0.9], [0.6], [0.7], [0.8]])
RIGHT = np.array([[1, 1], [0, 1], [0, 1], [1, 0]], bool)


def test_the_best_threshold_is_the_one_found_by_hand():
  """Deferring the two least sure queries, .6 and .7, makes all four right."""
  policy = online_baselines.best_static(CONFIDENCE, RIGHT, 2)
  assert policy.levels.tolist() == [0, 1, 1, 0]
  assert policy.thresholds == (0.8,)
  assert online_baselines.best_static(CONFIDENCE, RIGHT, 1).levels.tolist() == [0, 1, 0, 0]
  assert online_baselines.best_static(CONFIDENCE, RIGHT, 0).levels.tolist() == [0, 0, 0, 0]
  assert online_baselines.best_static(CONFIDENCE, RIGHT, 4).levels.tolist() == [0, 1, 1, 0]


def slow_best(confidence, right, calls):
  """Correct answers of the best thresholds, each of which is tried."""
  thresholds = [[*np.unique(column), np.inf] for column in confidence.T]
  totals = []
  for taus in itertools.product(*thresholds):
    total = asked = 0
    for sure, good in zip(confidence, right, strict=True):
      level = next((i for i, tau in enumerate(taus) if sure[i] >= tau), len(taus))
      total += good[level]
      asked += level == len(taus)
    if asked <= calls:
      totals.append(total)
  return max(totals)


@hypothesis.given(st.integers(0, 1000), st.integers(0, 12), st.integers(1, 2))
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_best_thresholds_are_those_of_trying_all(seed, calls, small):
  rng = np.random.default_rng(seed)
  confidence = rng.integers(1, 8, (12, small)) / 8  # ties
  right = rng.random((12, small + 1)) < 0.6
  policy = online_baselines.best_static(confidence, right, calls)
  assert (policy.levels == small).sum() <= calls
  got = right[np.arange(12), policy.levels].sum()
  assert got <= slow_best(confidence, right, calls)
  if small == 1:
    assert got == slow_best(confidence, right, calls)


def test_regret_is_the_running_difference():
  right, policy = np.array([1, 0, 0, 1], bool), np.array([1, 1, 0, 0], bool)
  assert online_baselines.regret(right, policy).tolist() == [0, 1, 1, 0]
  assert not online_baselines.regret(right, right).any()


def test_a_bandits_estimates_are_ridge_regressions():
  """One reward 1 at x = (1, 2): A = I + xx' and A^-1 x = x / 6, so that x' A^-1 b = 5 / 6."""
  x = np.array([1.0, 2.0])
  state = online_baselines.bandit_learn(online_baselines.bandit_start(2, 2), 1, x, 1.0)
  mean, width = online_baselines.bandit_estimates(state, x)
  assert mean == pytest.approx([0, 5 / 6])
  assert width == pytest.approx([5**0.5, (5 / 6) ** 0.5])
  scores = linucb(mean, width, np.random.default_rng(0), alpha=2)
  assert scores == pytest.approx([2 * 5**0.5, 5 / 6 + 2 * (5 / 6) ** 0.5])


def test_thompsons_scores_have_the_mean_and_the_width_of_the_estimate():
  rng = np.random.default_rng(0)
  draws = thompson(np.full(20000, 0.3), np.full(20000, 2.0), rng, scale=0.5)
  assert draws.mean() == pytest.approx(0.3, abs=0.03)
  assert draws.std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize('score', [linucb, thompson])
def test_a_bandit_learns_where_the_small_model_is_right_and_keeps_the_share(score):
  rng = np.random.default_rng(1)
  easy = rng.random(2000) < 0.6
  right = np.stack([easy, np.ones(2000, bool)], 1)
  contexts = np.stack([np.ones(2000), easy], 1)
  levels = online_baselines.bandit_levels(contexts, right, 0.4, score=score, seed=2)
  assert (levels == 1).mean() == pytest.approx(0.4, abs=0.02)
  accuracy = right[np.arange(2000), levels][500:].mean()
  assert accuracy > 0.9  # 0.76 at random


def test_contexts_are_computed_by_hand():
  got = online_baselines.bandit_contexts(np.array([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]]))
  expected = [1, 0.5, 0.5, 1, 0, np.log(2) / np.log(3), 0]
  np.testing.assert_allclose(got, [expected], atol=1e-5)


def test_the_block_of_a_stream_does_not_matter_to_an_ensemble():
  points, _, said = online_stream_test.synthetic(400)
  runs = []
  for block in (1, online_stream.BLOCK):
    small = [online_stream_test.Seen(points, 4), online_stream_test.Seen(points, 10)]
    decide = functools.partial(online_baselines.ensemble_choice, shares=(0.4, 0.4, 0.2))
    got = online_stream_test.answers(
      online_stream_test.TWO, small, said, 400, decide=decide, block=block
    )
    runs.append([(answer.choice, answer.label) for answer, _ in got])
  assert runs[0] == runs[1]
