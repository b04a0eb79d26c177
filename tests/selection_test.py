"""Scores that choose rows: numbers by hand, brute force, laws; numbered as in the specification."""

import statistics

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import selection

ALL = 1 << 30


def example(rows=4, length=9, vocab=12, seed=0):
  """Logits [n T V], targets, and valid tokens, at least one a row."""
  rng = np.random.default_rng(seed)
  logits = 2 * rng.normal(size=(rows, length, vocab)).astype(np.float32)
  valid = rng.random((rows, length)) < 0.8
  valid[:, 0] = True
  return logits, rng.integers(vocab, size=(rows, length)), valid


def score(logits, targets, valid, *, k, of=selection.zeroed_median):
  logits, targets = jnp.asarray(logits), jnp.asarray(targets)
  losses = selection.token_losses(logits, targets)
  return np.asarray(of(losses, selection.learnable(logits, targets, k=k), jnp.asarray(valid)))


def by_hand(losses, learnable):
  """Scores A and B of one row whose tokens are all valid."""
  given = jnp.asarray([losses]), jnp.asarray([learnable]), jnp.ones((1, len(losses)), bool)
  return [float(of(*given)[0]) for of in (selection.zeroed_median, selection.filtered_median)]


def test_rows_worked_by_hand():
  assert by_hand([1.0, 3.0, 2.0], [True, True, True]) == [2.0, 2.0]
  assert by_hand([1.0, 3.0, 2.0], [True, False, True]) == [1.0, 1.5]  # A: of 0, 1, 2
  assert by_hand([1.0, 3.0, 2.0, 5.0], [True, True, False, True]) == [2.0, 3.0]  # A: of 0, 1, 3, 5
  assert by_hand([4.0, 3.0, 2.0], [False, False, True]) == [0.0, 2.0]
  assert by_hand([4.0, 3.0], [False, False]) == [0.0, -np.inf]


def test_rows_without_a_valid_token_come_last():
  logits, targets, valid = example()
  valid[1] = False
  for of in (selection.zeroed_median, selection.filtered_median):
    assert score(logits, targets, valid, k=3, of=of)[1] == -np.inf


@given(seed=st.integers(0, 999), k=st.sampled_from([1, 2, 4, 12, ALL]))
@settings(deadline=None, max_examples=15)
def test_both_readings_are_the_medians_of_sorted_losses(seed, k):
  """Oracle 9."""
  logits, targets, valid = example(seed=seed)
  of_a, of_b = [], []
  for row, ids, counted in zip(logits, targets, valid, strict=True):
    losses, left = [], []
    for at, target in enumerate(ids):
      if not counted[at]:
        continue
      loss = np.logaddexp.reduce(row[at].astype(float)) - row[at, target]
      rank = sum(value > row[at, target] for value in row[at])
      losses.append(loss if rank < k else 0.0)
      left += [loss] if rank < k else []
    of_a.append(statistics.median(losses))
    of_b.append(statistics.median(left) if left else -np.inf)
  np.testing.assert_allclose(score(logits, targets, valid, k=k), of_a, rtol=1e-4, atol=1e-5)
  actual = score(logits, targets, valid, k=k, of=selection.filtered_median)
  np.testing.assert_allclose(actual, of_b, rtol=1e-4, atol=1e-5)


def test_only_first_choices_are_learnable_at_one_and_all_tokens_at_the_vocabulary():
  logits, targets, _ = example()
  first = np.asarray(selection.learnable(jnp.asarray(logits), jnp.asarray(targets), k=1))
  np.testing.assert_array_equal(first, logits.argmax(-1) == targets)
  assert selection.learnable(jnp.asarray(logits), jnp.asarray(targets), k=12).all()
  tied = jnp.zeros((1, 12))
  assert selection.learnable(tied, jnp.array([7]), k=1).all()  # ties count for the target


def test_reading_a_rises_with_k_to_the_plain_median():
  """Oracle 10."""
  logits, targets, valid = example(rows=60)
  rising = np.array([score(logits, targets, valid, k=k) for k in range(1, 13)])
  assert (np.diff(rising, axis=0) >= 0).all()
  losses = np.asarray(selection.token_losses(jnp.asarray(logits), jnp.asarray(targets)))
  learnable = np.asarray(selection.learnable(jnp.asarray(logits), jnp.asarray(targets), k=2))
  mostly_noise = (learnable & valid).sum(1) < valid.sum(1) / 2
  assert mostly_noise.any()
  assert not rising[1][mostly_noise].any()
  plain = [np.median(row[counted]) for row, counted in zip(losses, valid, strict=True)]
  np.testing.assert_allclose(rising[-1], plain)
  at_all = score(logits, targets, valid, k=12, of=selection.filtered_median)
  np.testing.assert_allclose(at_all, plain)


@pytest.mark.parametrize(
  ('first', 'second', 'grows'),
  [
    # Probabilities of the token of rank 1 and of rank 2, which is the target of its row.
    ([0.34, 0.33, 0.33], [0.9, 0.06, 0.04], True),
    ([0.34, 0.33, 0.33], [0.51, 0.48, 0.01], False),
  ],
)
def test_reading_b_rises_or_falls_with_k(first, second, grows):
  """Oracle 10: the second token becomes learnable, with a loss above or below the first one's."""
  logits = np.log(np.float32([[first, second]]))
  of_a, of_b = (
    [score(logits, [[0, 1]], np.ones((1, 2), bool), k=k, of=of)[0] for k in (1, 2)]
    for of in (selection.zeroed_median, selection.filtered_median)
  )
  loss, other = -np.log(first[0]), -np.log(second[1])
  np.testing.assert_allclose(of_b, [loss, (loss + other) / 2], rtol=1e-5)
  np.testing.assert_allclose(of_a, [loss / 2, (loss + other) / 2], rtol=1e-5)
  assert (of_b[1] > of_b[0]) == grows
  assert of_a[1] > of_a[0]


@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=10)
def test_the_loss_of_a_token_of_rank_r_is_at_least_log_r(seed):
  """Oracle 11."""
  logits, targets, _ = example(seed=seed)
  losses = np.asarray(selection.token_losses(jnp.asarray(logits), jnp.asarray(targets)))
  rank = 1 + (logits > np.take_along_axis(logits, targets[..., None], -1)).sum(-1)
  assert (losses >= np.log(rank) - 1e-5).all()
  for k in (1, 3, 6):
    learnable = np.asarray(selection.learnable(jnp.asarray(logits), jnp.asarray(targets), k=k))
    np.testing.assert_array_equal(learnable, rank <= k)
    assert (losses[~learnable] >= np.log(k + 1) - 1e-5).all()


def test_rows_of_noise_are_left_out_though_their_plain_median_would_choose_them():
  """Oracle 12: the reason for the filter."""
  rng = np.random.default_rng(0)
  vocab, length = 500, 50
  logits = 2 * rng.normal(size=(1, length, vocab)).astype(np.float32)
  targets = np.argsort(-logits, axis=-1)[..., 3]  # learnable, and no first choices
  noisy = targets.copy()
  noisy[:, : 6 * length // 10] = rng.integers(vocab, size=6 * length // 10)
  valid = np.ones(targets.shape, bool)
  assert score(logits, noisy, valid, k=10) == 0 < score(logits, targets, valid, k=10)
  assert score(logits, noisy, valid, k=vocab) > score(logits, targets, valid, k=vocab)


@given(st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=40), st.data())
@settings(deadline=None, max_examples=40)
def test_the_best_rows_are_as_many_as_asked_and_no_worse_than_the_rest(scores, data):
  """Oracle 13."""
  scores = np.array(scores)
  count = data.draw(st.integers(1, len(scores)))
  rows = selection.best(scores, count)
  assert len(set(rows.tolist())) == count
  rest = np.setdiff1d(np.arange(len(scores)), rows)
  if len(rest):
    assert scores[rows].min() >= scores[rest].max()
  order = data.draw(st.permutations(range(len(scores))))
  moved = selection.best(scores[order], count)
  np.testing.assert_array_equal(np.sort(scores[order][moved]), np.sort(scores[rows]))


def test_equal_scores_go_to_the_first_rows_and_fractions_are_of_all_rows():
  np.testing.assert_array_equal(selection.best(np.array([1.0, 2.0, 1.0, 1.0]), 3), [0, 1, 2])
  np.testing.assert_array_equal(selection.best(np.arange(10.0), 0.2), [8, 9])
  np.testing.assert_array_equal(selection.best(np.arange(3.0), 0.01), [2])
  for rows in (4, 1.5):
    with pytest.raises(ValueError, match='of 3 rows cannot be selected'):
      selection.best(np.arange(3.0), rows)
  with pytest.raises(ValueError, match='score of row 1 is not a number'):
    selection.best(np.array([1.0, np.nan]), 1)
