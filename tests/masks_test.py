"""Masks and agreement counts against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import masks
from cascades.teachers import Logits, to_top1, to_top_k
from tests.losses_test import example


def bits(args):
  small, large, targets, _ = map(np.asarray, args)
  return small.argmax(-1) == targets, large.argmax(-1) == targets


def test_masks_are_the_bits_that_their_names_say():
  args = example(n=64)
  small, large, targets, _ = args
  by_small, by_large = bits(args)
  call = lambda mask: np.asarray(mask(small, (Logits(large),), targets))
  assert call(masks.all_tokens).all()
  np.testing.assert_array_equal(call(masks.small_correct), by_small)
  np.testing.assert_array_equal(call(masks.large_correct), by_large)
  np.testing.assert_array_equal(call(masks.either_correct), by_small | by_large)
  for bit in (by_small & by_large, by_small & ~by_large, ~by_small & by_large):
    assert bit.any()


def test_ties_go_to_the_lowest_id():
  tie = jnp.array([[1.0, 3.0, 3.0]])
  for target, right in ((1, True), (2, False)):
    targets = jnp.array([target])
    assert masks.small_correct(tie, (), targets) == right
    assert masks.large_correct(tie, (Logits(tie),), targets) == right


def test_counts_partition_the_valid_tokens():
  args = example(n=64)
  small, large, targets, weights = args
  counts = masks.count_agreement(small, (Logits(large),), targets, weights)
  assert sum(counts.values()) == weights.sum()
  by_small, by_large = bits(args)
  valid = np.asarray(weights)
  # The kept fraction of the paper's mask is acc_S + acc_L - acc_both.
  either = counts['both'] + counts['only_small'] + counts['only_large']
  expected = (by_small * valid).sum() + (by_large * valid).sum() - (by_small & by_large) @ valid
  assert either == expected


def test_counts_without_a_large_model_are_the_small_models_right_tokens():
  args = example()
  counts = masks.count_agreement(args[0], (), *args[2:])
  assert counts == {'correct': (bits(args)[0] * np.asarray(args[3])).sum()}


def test_masks_have_no_gradient():
  small, large, targets, _ = example()
  slope = jax.grad(lambda x: masks.either_correct(x, (Logits(large),), targets).sum().astype(float))
  assert not slope(small).any()


def test_a_mask_of_the_large_model_needs_one():
  small, _, targets, _ = example()
  with pytest.raises(ValueError, match='none is given'):
    masks.either_correct(small, (), targets)


def test_masks_of_deferral_and_their_complements():
  small, large, targets, _ = args = example(n=64)
  by_small, by_large = bits(args)
  call = lambda mask: np.asarray(mask(small, (Logits(large),), targets))
  np.testing.assert_array_equal(call(masks.small_wrong), ~by_small)
  np.testing.assert_array_equal(call(masks.only_large_correct), by_large & ~by_small)


@pytest.mark.parametrize('k', [1, 2, 7])
def test_targets_among_the_likeliest_of_the_large_model_ties_included(k):
  small, large, targets, _ = example(n=64)
  large = jnp.round(large) + 0.0  # many ties, and no negative zeros
  expected = [
    target in sorted(range(7), key=lambda v: (-row[v], v))[:k]
    for row, target in zip(np.asarray(large), np.asarray(targets), strict=True)
  ]
  for teacher in (Logits(large), to_top_k(large, k=7)):
    actual = masks.large_in_top(small, (teacher,), targets, k=k)
    np.testing.assert_array_equal(actual, expected)
  if k == 1:
    np.testing.assert_array_equal(expected, masks.large_correct(small, (to_top1(large),), targets))
    np.testing.assert_array_equal(
      expected, masks.large_in_top(small, (to_top1(large),), targets, k=1)
    )
  else:
    with pytest.raises(ValueError, match=f'first {k} choices .* the teacher holds 1'):
      masks.large_in_top(small, (to_top1(large),), targets, k=k)


def test_the_largest_scores_of_the_tokens_that_count():
  scores = jnp.array([[3.0, 1.0, 9.0], [1.0, 1.0, 2.0]])
  counted = jnp.array([[True, True, False], [True, True, True]])
  for share, expected in (
    (0.4, [0, 5]),
    (0.6, [0, 1, 5]),
    (0.8, [0, 1, 3, 5]),
    (1.0, [0, 1, 3, 4, 5]),
  ):
    taken = masks.largest(scores, counted, share)
    assert np.flatnonzero(taken).tolist() == expected
  assert not masks.largest(scores, jnp.zeros((2, 3), bool), 0.4).any()
