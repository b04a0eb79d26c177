"""Gatekeeper and AdaSPEC: numbers worked by hand, a slow oracle, the specification's laws."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import divergences, losses, masks
from cascades.teachers import Logits, TeacherError, to_top1, to_top_k
from tests import oracles
from tests.losses_test import example

# -- Gatekeeper ------------------------------------------------------------------------------------


def test_an_unsure_token_worked_by_hand():
  small, args = jnp.log(jnp.array([[0.5, 0.25, 0.25]])), ((), jnp.array([1]), jnp.ones(1))
  of = lambda small: losses.gatekeeper(small, *args, a=0.0)[0]
  value, gradient = jax.value_and_grad(of)(small)
  np.testing.assert_allclose(value, 0.0588915178, atol=1e-6)
  np.testing.assert_allclose(gradient[0], (0.1732868, -0.0866434, -0.0866434), atol=1e-6)


def slow_two_sided(small, large, targets, weights, *, a, cat):
  total = 0.0
  for i, target in enumerate(targets):
    logp = oracles.log_softmax(small[i].astype(float))
    by_small, by_large = (oracles.argmax(x[i]) == target for x in (small, large))
    if by_small or (cat and by_large):
      total -= weights[i] * a * logp[target]
    if not by_small and (by_large or not cat):
      total += weights[i] * (1 - a) * (math.log(len(logp)) + sum(math.exp(x) * x for x in logp))
  return total, weights.sum()


@pytest.mark.parametrize('cat', [False, True], ids=['gatekeeper', 'cat_gatekeeper'])
@pytest.mark.parametrize('a', [0.0, 0.3, 1.0])
def test_two_sided_losses_equal_the_slow_oracle(cat, a):
  args = example()
  cell = losses.cat_gatekeeper if cat else losses.gatekeeper
  expected = slow_two_sided(*map(np.asarray, args), a=a, cat=cat)
  np.testing.assert_allclose(jax.jit(lambda *args: cell(*args, a=a))(*args), expected, rtol=1e-5)


def test_the_ends_of_gatekeeper():
  small, large, targets, weights = args = example()
  np.testing.assert_allclose(losses.gatekeeper(*args, a=1.0), losses.cat_xent_s(*args), rtol=1e-6)
  of = lambda small, targets: losses.gatekeeper(small, (), targets, weights, a=0.0)[0]
  value, gradient = jax.value_and_grad(of)(small, small.argmax(-1))  # always right
  assert value == 0
  assert not gradient.any()
  assert losses.gatekeeper(small, (), targets, weights) == losses.gatekeeper(*args)
  del large


def test_the_divergence_from_uniform_is_flat_at_both_ends():
  one_hot = jnp.array([[80.0, 0.0, 0.0]])
  for small, expected in ((jnp.zeros((1, 3)), 0.0), (one_hot, math.log(3))):
    of = lambda x: divergences.kl_to_uniform(x, (), jnp.array([1])).sum()
    value, gradient = jax.value_and_grad(of)(small)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_the_large_model_says_what_to_be_unsure_about():
  small, large, targets, weights = example()
  right = large.at[jnp.arange(len(targets)), targets].set(99.0)
  wrong = large.at[jnp.arange(len(targets)), targets].set(-99.0)
  cat = lambda large: losses.cat_gatekeeper(small, large, targets, weights, a=0.3)[0]
  sure = losses.cat_xent_s(small, (), targets, weights)[0]
  np.testing.assert_allclose(cat(wrong), 0.3 * sure, rtol=1e-6)
  plain = losses.gatekeeper(small, (), targets, weights, a=0.3)[0]
  on_wrong = losses.xent(small, (), targets, weights)[0] - sure
  np.testing.assert_allclose(cat(right), plain + 0.3 * on_wrong, rtol=1e-5)


def test_what_large_models_are_needed_for_and_settings_out_of_range_are_said():
  small, large, targets, weights = args = example()
  with pytest.raises(TeacherError, match='none is given'):
    losses.cat_gatekeeper(small, (), targets, weights)
  losses.cat_gatekeeper(small, to_top1(large), targets, weights)
  with pytest.raises(ValueError, match=r'weight a .* \[0, 1\]; it is 1.5'):
    losses.gatekeeper(*args, a=1.5)
  for share in (0, 1.5, math.nan):
    with pytest.raises(ValueError, match=r'share of the tokens must lie in \(0, 1\]'):
      losses.adaspec(*args, share=share)
  with pytest.raises(ValueError, match='the sign is 0'):
    losses.adaspec(*args, sign=0)
  for teacher in (large, to_top1(large), to_top_k(large, k=3)):
    with pytest.raises(TeacherError, match=r'first choices only|no divergence of one: pass'):
      losses.adaspec(small, teacher, targets, weights)


# -- AdaSPEC ---------------------------------------------------------------------------------------


def with_reference(large, reference, k=3):
  """Contents of a cache: the first choices, and the divergence of the reference over them."""
  answers = to_top_k(large, k=k)
  unused = jnp.zeros(answers.tail.shape, int)
  return answers._replace(reference=divergences.forward_kl(reference, (answers,), unused))


def test_a_share_of_the_tokens_is_chosen_by_their_excess_loss():
  small, large, targets, weights = example(n=40)
  reference = 0.5 * large + 0.5 * example(n=40, seed=7)[0]
  teacher = with_reference(large, reference)
  each = np.asarray(divergences.forward_kl(small, (teacher,), targets), float)
  excess = each - np.asarray(teacher.reference)
  valid = np.flatnonzero(np.asarray(weights))
  for sign in (1, -1):
    chosen = sorted(valid, key=lambda i: -sign * excess[i])[: round(0.4 * len(valid))]
    total, count = losses.adaspec(small, teacher, targets, weights, sign=sign)
    np.testing.assert_allclose(total, each[chosen].sum(), rtol=1e-5)
    assert count == len(valid)
  everything = losses.adaspec(small, teacher, targets, weights, share=1.0)
  np.testing.assert_allclose(
    everything, losses.distillspec_fkl(small, teacher, targets, weights), rtol=1e-6
  )


def test_a_reference_that_is_the_draft_leaves_ties_which_the_index_decides():
  small, large, targets, weights = example(n=40)
  teacher = with_reference(large, small)
  np.testing.assert_array_equal(divergences.excess(small, (teacher,), targets), 0)
  first = np.flatnonzero(np.asarray(weights))[: round(0.4 * int(weights.sum()))]
  each = divergences.forward_kl(small, (teacher,), targets)
  total, _ = losses.adaspec(small, teacher, targets, weights)
  np.testing.assert_allclose(total, each[first].sum(), rtol=1e-6)


def test_only_chosen_tokens_get_a_gradient_and_the_choice_has_none():
  small, large, targets, weights = example(n=40)
  teacher = with_reference(large, 0.9 * large)
  gradient = jax.grad(lambda x: losses.adaspec(x, teacher, targets, weights)[0])(small)
  scores = divergences.excess(small, (teacher,), targets)
  taken = masks.largest(scores, weights > 0, 0.4)
  assert taken.sum() == round(0.4 * float(weights.sum()))
  expected = jax.grad(
    lambda x: jnp.sum(divergences.forward_kl(x, (teacher,), targets), where=taken)
  )(small)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_an_excess_needs_one_teacher():
  small, large, targets, _ = example()
  with pytest.raises(TeacherError, match='defined for one large model, and 2 are given'):
    divergences.excess(small, (Logits(large), Logits(large)), targets)
