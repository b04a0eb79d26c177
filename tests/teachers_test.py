"""The large model as the losses see it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import divergences, losses, masks
from cascades.teachers import Logits, TeacherError, Top1, TopK, as_teachers, only, to_top1, to_top_k
from cascades.training.answer_format import AnswerFormat

SHAPES = [(5,), (2, 3)]


def test_logits_answer_with_their_argmax_and_their_cross_entropy():
  teacher = Logits(jnp.log(jnp.array([[0.2, 0.5, 0.3]])))
  assert teacher.top1() == 1
  small = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  expected = 0.2 * np.log(2) + 0.5 * np.log(4) + 0.3 * np.log(4)
  np.testing.assert_allclose(teacher.cross_entropy(small), [expected], rtol=1e-6)


def test_the_large_model_gets_no_gradient():
  small = jax.nn.log_softmax(jnp.arange(6.0).reshape(2, 3))
  slope = jax.grad(lambda x: Logits(x).cross_entropy(small).sum())(jnp.ones((2, 3)))
  assert not slope.any()


def test_arrays_become_teachers_and_teachers_stay():
  teacher = Logits(jnp.ones((2, 3)))
  assert as_teachers(teacher, 3) == (teacher,)
  assert as_teachers(teacher, 3)[0] is teacher
  assert as_teachers((), 3) == ()
  first, second = as_teachers((np.ones((2, 3)), teacher), 3)
  assert isinstance(first, Logits)
  assert second is teacher
  (alone,) = as_teachers(jnp.ones((2, 3)), 3)
  assert isinstance(alone, Logits)
  with pytest.raises(ValueError, match='one vocabulary'):
    as_teachers(np.ones((2, 4)), 3)


def test_losses_for_one_teacher_say_what_they_are_given_instead():
  teacher = Logits(jnp.ones((2, 3)))
  assert only((teacher,)) is teacher
  with pytest.raises(TeacherError, match='none is given'):
    only(())
  with pytest.raises(TeacherError, match='defined for one large model, and 2 are given'):
    only((teacher, teacher))


def test_distributions_come_from_logits_and_from_nothing_else():
  logits = jnp.asarray(random_logits((4,)), jnp.bfloat16)
  logprobs = Logits(logits).logprobs()
  assert logprobs.dtype == jnp.float32
  np.testing.assert_allclose(jnp.exp(logprobs).sum(-1), 1.0, rtol=1e-6)
  np.testing.assert_array_equal(logprobs, jax.nn.log_softmax(logits.astype(jnp.float32)))
  assert not jax.grad(lambda x: Logits(x).logprobs().sum())(jnp.ones((2, 3))).any()
  with pytest.raises(TeacherError, match=r'holds first choices only \(Top1\): pass the logits'):
    to_top1(logits).logprobs()
  with pytest.raises(TeacherError, match=r'holds the first 3 choices only \(TopK\)'):
    to_top_k(logits, k=3).logprobs()


# -- what a cache keeps ----------------------------------------------------------------------------


def random_logits(shape, *, vocab=7, seed=0, scale=2.0):
  rng = np.random.default_rng(seed)
  return scale * rng.standard_normal((*shape, vocab)).astype(np.float32)


def slow_cross_entropy(large, small, k):
  """One token after the other, in double precision."""
  losses = np.zeros(large.shape[:-1])
  for index in np.ndindex(losses.shape):
    p = np.exp(large[index].astype(float))
    p /= p.sum()
    log_q = small[index].astype(float) - np.log(np.exp(small[index].astype(float)).sum())
    order = sorted(range(len(p)), key=lambda v: (-p[v], v))
    rest = sum(p[v] for v in order[k:])
    for rank, v in enumerate(order):
      losses[index] -= (p[v] if rank < k else rest / (len(p) - k)) * log_q[v]
  return losses


def test_the_tail_is_spread_evenly_over_what_was_not_kept():
  large = jnp.log(jnp.array([0.5, 0.1, 0.3, 0.06, 0.04]))
  reduced = to_top_k(large, k=2)
  assert reduced.ids.tolist() == [0, 2]
  np.testing.assert_allclose(np.exp(reduced.top_logprobs), [0.5, 0.3], rtol=1e-6)
  np.testing.assert_allclose(reduced.tail, 0.2, rtol=1e-6)
  small = jnp.log(jnp.array([0.4, 0.2, 0.2, 0.1, 0.1]))
  weights = np.array([0.5, 0.2 / 3, 0.3, 0.2 / 3, 0.2 / 3])
  np.testing.assert_allclose(reduced.cross_entropy(small), -weights @ np.array(small), rtol=1e-6)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit], ids=['plain', 'jit'])
def test_top_k_equals_a_slow_sum(shape, wrap):
  large, small = random_logits(shape), random_logits(shape, seed=1)

  def loss(large, small):
    return to_top_k(large, k=3).cross_entropy(jax.nn.log_softmax(small))

  expected = slow_cross_entropy(large, small, 3)
  np.testing.assert_allclose(wrap(loss)(large, small), expected, rtol=1e-5)


def test_all_of_the_vocabulary_kept_is_the_large_model_itself():
  large, small = random_logits((4, 5)), jax.nn.log_softmax(random_logits((4, 5), seed=1))
  reduced = to_top_k(jnp.asarray(large), k=7)
  assert not reduced.tail.any()
  expected = Logits(jnp.asarray(large)).cross_entropy(small)
  np.testing.assert_allclose(reduced.cross_entropy(small), expected, rtol=1e-5)


@functools.partial(jax.jit, static_argnames='k')
def moved_by_the_tail(large, small, *, k):
  """Differences of the loss and its gradient from those of all logits, and their bounds."""
  reduced = to_top_k(large, k=k)
  log_q = jax.nn.log_softmax(small)
  others = jnp.put_along_axis(log_q, reduced.ids, jnp.nan, axis=-1, inplace=False)
  spread = jnp.nanmax(others, axis=-1) - jnp.nanmin(others, axis=-1)

  def loss(small, teacher):
    losses = teacher.cross_entropy(jax.nn.log_softmax(small))
    return losses.sum(), losses

  (slope, losses), (expected_slope, expected) = (
    jax.grad(loss, has_aux=True)(small, teacher) for teacher in (reduced, Logits(large))
  )
  rounding = 1e-5 * jnp.abs(log_q).max()
  return (
    jnp.abs(losses - expected) - rounding,
    reduced.tail * spread,
    jnp.abs(slope - expected_slope).sum(-1) - 1e-5,
    2 * reduced.tail,
  )


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 6]), st.floats(0.1, 20.0))
def test_the_loss_and_its_gradient_are_within_the_bounds_of_the_tail(seed, k, scale):
  large, small = (random_logits((5,), seed=seed + i, scale=scale) for i in range(2))
  loss, of_loss, slope, of_slope = moved_by_the_tail(large, small, k=k)
  assert (loss <= of_loss).all()
  assert (slope <= of_slope).all()


@functools.partial(jax.jit, static_argnames='k')
def lost_with_the_tail(large, small, *, k):
  """What each divergence over k + 1 outcomes loses, its bound, and how far the gradient moves."""
  reduced, targets = to_top_k(large, k=k), jnp.zeros(len(small), int)
  out = lambda x, fill: jnp.put_along_axis(x, reduced.ids, fill, axis=-1, inplace=False)
  log_p, log_q = jax.nn.log_softmax(large), jax.nn.log_softmax(small)
  t, s = reduced.tail, jnp.exp(out(log_q, -jnp.inf)).sum(-1)
  most_p, least_p = out(log_p, -jnp.inf).max(-1), out(log_p, jnp.inf).min(-1)
  most_q, least_q = out(log_q, -jnp.inf).max(-1), out(log_q, jnp.inf).min(-1)
  b, a = 0.3, 0.1
  m = b * t + (1 - b) * s
  entropy = lambda x: -x * jnp.log(x) - (1 - x) * jnp.log1p(-x)
  forms = {
    divergences.forward_kl: t * (jnp.log(s / t) + most_p - least_q),
    divergences.reverse_kl: s * (jnp.log(t / s) + most_q - least_p),
    divergences.total_variation: jnp.minimum(s, t),
    functools.partial(divergences.jensen_shannon, beta=b): m * entropy(b * t / m),
    divergences.skew_forward_kl: t * jnp.log1p((1 - a) * s / (a * t)),
    divergences.skew_reverse_kl: s * jnp.log1p((1 - a) * t / (a * s)),
  }
  lost = [form(small, (Logits(large),), targets) - form(small, (reduced,), targets)
          for form in forms]  # fmt: skip
  slopes = [jax.grad(lambda x: divergences.forward_kl(x, (teacher,), targets).sum())(small)  # noqa: B023
            for teacher in (Logits(large), reduced)]  # fmt: skip
  moved = jnp.abs(slopes[0] - slopes[1]).sum(-1)
  return jnp.stack(lost), jnp.stack([*forms.values()]), moved, 2 * t


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 5]), st.floats(0.1, 4.0))
def test_divergences_over_what_was_kept_are_smaller_within_their_bounds(seed, k, scale):
  large, small = (random_logits((5,), seed=seed + i, scale=scale) for i in range(2))
  lost, bounds, moved, of_moved = lost_with_the_tail(large, small, k=k)
  rounding = 1e-5 * (1 + scale)
  assert (lost >= -rounding).all()
  assert (lost <= bounds + rounding).all()
  assert (moved <= of_moved + rounding).all()


def stored(logits, dtype):
  """The first four choices as they come back from the records of a cache."""
  form = AnswerFormat(4, dtype)
  return form.unpack(form.pack(form.reduce(logits)))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'uint8'])
def test_rounded_answers_are_a_distribution_of_which_no_divergence_is_negative(dtype):
  small, targets = jnp.asarray(random_logits((200,), scale=4.0)), jnp.zeros(200, int)
  reduced = stored(small, dtype)  # of the small model itself: 0 but for the rounding
  large, _ = reduced.outcomes(jax.nn.log_softmax(small))
  np.testing.assert_allclose(jnp.exp(large).sum(-1), 1, atol=1e-6)
  values = divergences.forward_kl(small, (reduced,), targets)
  assert (values >= -1e-6).all()
  if dtype in ('bfloat16', 'uint8'):  # as they were stored, they would be
    rounded = reduced.top_logprobs.astype(jnp.float32)
    exact = to_top_k(small, k=4).top_logprobs
    assert (jnp.exp(rounded) * (rounded - exact)).sum(-1).min() < -1e-4


ROUNDED = {  # bounds of a log-probability's error
  'float16': lambda log_p: 2**-11 * log_p,
  'bfloat16': lambda log_p: 2**-8 * log_p,
  'uint8': lambda log_p: np.sqrt(log_p) / 64 + 2**-14,
}


@pytest.mark.parametrize('dtype', ROUNDED)
def test_fewer_bits_move_the_loss_by_no_more_than_they_say(dtype):
  large = jnp.asarray(random_logits((200,), scale=4.0))
  small = jax.nn.log_softmax(random_logits((200,), seed=1))
  exact, reduced = to_top_k(large, k=4), stored(large, dtype)
  assert reduced.top_logprobs.dtype == ('float32' if dtype == 'uint8' else dtype)
  p, log_p = np.exp(exact.top_logprobs), np.abs(exact.top_logprobs)
  moved = np.abs(np.float32(reduced.top_logprobs) - exact.top_logprobs)
  assert (moved <= ROUNDED[dtype](log_p) + 1e-6).all()
  largest = np.abs(np.take_along_axis(np.asarray(small), np.asarray(exact.ids), axis=-1))
  bound = (p * np.expm1(ROUNDED[dtype](log_p)) * largest).sum(-1)
  difference = np.abs(reduced.cross_entropy(small) - exact.cross_entropy(small))
  assert (difference <= bound + 1e-6).all()
  assert difference.max() > 0


def test_a_tail_too_small_for_one_minus_the_rest_is_kept():
  reduced = to_top_k(jnp.array([30.0, 0.0, 0.0]), k=1)
  np.testing.assert_allclose(reduced.tail, 2 * np.exp(-30.0), rtol=1e-5)


def test_first_choices_and_masks_are_those_of_the_logits_ties_included():
  large = jnp.round(jnp.asarray(random_logits((50,), scale=1.0)))  # many ties
  small, targets = jnp.asarray(random_logits((50,), seed=2)), jnp.arange(50) % 7
  for mask in (masks.either_correct, masks.large_correct):
    expected = mask(small, (Logits(large),), targets)
    assert 0 < expected.sum() < 50
    for reduced in (to_top1(large), to_top_k(large, k=3, dtype='bfloat16')):
      np.testing.assert_array_equal(mask(small, (reduced,), targets), expected)


def test_only_the_small_model_gets_a_gradient_from_what_was_kept():
  reduced = to_top_k(jnp.asarray(random_logits((5,))), k=3)
  small = jnp.asarray(random_logits((5,), seed=1))

  def loss(logprobs, tail, small):
    return TopK(reduced.ids, logprobs, tail).cross_entropy(jax.nn.log_softmax(small)).sum()

  of_kept, of_tail, of_small = jax.grad(loss, (0, 1, 2))(reduced.top_logprobs, reduced.tail, small)
  assert not of_kept.any()
  assert not of_tail.any()
  # Of a cross-entropy against weights that add up to 1: softmax minus the weights.
  weights = np.full(small.shape, np.asarray(reduced.tail)[:, None] / 4)
  np.put_along_axis(weights, np.asarray(reduced.ids), np.exp(reduced.top_logprobs), axis=-1)
  np.testing.assert_allclose(of_small, jax.nn.softmax(small) - weights, atol=1e-6)


def test_first_choices_alone_serve_cat_xent_and_cannot_distil():
  small, large = jnp.asarray(random_logits((9,), seed=1)), jnp.asarray(random_logits((9,)))
  targets, weights = jnp.arange(9) % 7, jnp.ones(9)
  total = losses.cat_xent(small, to_top1(large), targets, weights)
  np.testing.assert_array_equal(total, losses.cat_xent(small, large, targets, weights))
  for loss in (losses.dist, functools.partial(losses.cat_dist, w=0.9)):
    with pytest.raises(ValueError, match=r'holds first choices only \(Top1\): pass a TopK'):
      loss(small, Top1(targets), targets, weights)
