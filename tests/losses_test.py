"""The eight cells against hand-worked numbers, a slow oracle, the spec's laws and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import losses
from cascades.teachers import Logits
from tests import oracles

CELLS = {
  'xent': (losses.xent, 1.0, 'all'),
  'dist': (losses.dist, 0.5, 'all'),
  'cat_xent': (losses.cat_xent, 1.0, 'either'),
  'cat_dist': (losses.cat_dist, 0.5, 'either'),
  'cat_xent_l': (losses.cat_xent_l, 1.0, 'large'),
  'cat_xent_s': (losses.cat_xent_s, 1.0, 'small'),
  'cat_dist_l': (losses.cat_dist_l, 0.5, 'large'),
  'cat_dist_s': (losses.cat_dist_s, 0.5, 'small'),
}
every_cell = pytest.mark.parametrize('name', CELLS)


def example(n=24, vocab=7, seed=0):
  """Logits, targets and weights; every other target is a model's own argmax, some weights are 0."""
  rng = np.random.default_rng(seed)
  small, large = rng.normal(size=(2, n, vocab)).astype(np.float32) * 2
  targets = rng.integers(vocab, size=n)
  targets[::4] = small[::4].argmax(-1)
  targets[1::4] = large[1::4].argmax(-1)
  weights = (rng.random(n) < 0.8).astype(np.float32)
  return tuple(map(jnp.asarray, (small, large, targets, weights)))


# -- numbers ---------------------------------------------------------------------------------------


def test_a_cell_worked_by_hand():
  # Small says (1/2, 1/4, 1/4), large says (1/4, 1/2, 1/4).
  small = jnp.log(jnp.array([[0.5, 0.25, 0.25]] * 3))
  large = jnp.log(jnp.array([[0.25, 0.5, 0.25]] * 3))
  targets = jnp.array([0, 1, 2])  # right for the small model only, the large one only, neither
  weights = jnp.ones(3)
  ln2 = np.log(2)
  soft = 0.25 * ln2 + 0.5 * 2 * ln2 + 0.25 * 2 * ln2  # 1.75 ln 2 at every token
  expected = {
    'xent': (1 + 2 + 2) * ln2,
    'cat_xent': (1 + 2) * ln2,
    'cat_xent_s': 1 * ln2,
    'cat_xent_l': 2 * ln2,
    'dist': 0.5 * (1 + 2 + 2) * ln2 + 0.5 * 3 * soft,
    'cat_dist': 0.5 * (1 + 2) * ln2 + 0.5 * 2 * soft,
    'cat_dist_s': 0.5 * ln2 + 0.5 * soft,
    'cat_dist_l': 0.5 * 2 * ln2 + 0.5 * soft,
  }
  for name, value in expected.items():
    total, count = CELLS[name][0](small, large, targets, weights)
    np.testing.assert_allclose(total, value, rtol=1e-6, err_msg=name)
    assert count == 3


def test_a_uniform_small_model_loses_log_v_a_token():
  total, count = losses.xent(jnp.zeros((5, 11)), (), jnp.arange(5), jnp.ones(5))
  np.testing.assert_allclose(total / count, np.log(11), rtol=1e-6)


# -- oracle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('transform', [lambda cell: cell, jax.jit], ids=['eager', 'jit'])
@pytest.mark.parametrize(('n', 'vocab'), [(24, 7), (1, 2), (9, 33)])
@every_cell
def test_a_cell_equals_the_slow_oracle(name, n, vocab, transform):
  cell, w, mask = CELLS[name]
  args = example(n, vocab, seed=n)
  expected = oracles.cascade_loss(*map(np.asarray, args), w=w, mask=mask)
  np.testing.assert_allclose(transform(cell)(*args), expected, rtol=1e-5)


@every_cell
def test_the_gradient_is_the_closed_form(name):
  cell, w, mask = CELLS[name]
  args = example()
  gradient = jax.grad(lambda small: cell(small, *args[1:])[0])(args[0])
  expected = oracles.cascade_loss_gradient(*map(np.asarray, args), w=w, mask=mask)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


@every_cell
def test_the_gradient_is_the_slope(name):
  cell = CELLS[name][0]
  small, *rest = example(n=6, seed=3)
  # The targets are unambiguous at this seed: no argmax flips within the step.
  jax.test_util.check_grads(
    lambda x: cell(x, *rest)[0], (small,), order=1, modes=('rev',), atol=1e-2, rtol=1e-2, eps=1e-2
  )


# -- laws ------------------------------------------------------------------------------------------


def test_all_tokens_and_cross_entropy_is_the_library_cross_entropy():
  small, _, targets, weights = example()
  total, count = losses.xent(small, (), targets, weights)
  each = optax.softmax_cross_entropy_with_integer_labels(small, targets)
  np.testing.assert_allclose(total, jnp.sum(each * weights), rtol=1e-6)
  assert count == weights.sum()


def test_cat_xent_sees_only_the_argmax_of_the_large_model():
  small, large, targets, weights = example()
  only_argmax = jax.nn.one_hot(large.argmax(-1), large.shape[-1])
  assert losses.cat_xent(small, large, targets, weights) == losses.cat_xent(
    small, only_argmax, targets, weights
  )


@pytest.mark.parametrize(
  ('masked', 'unmasked'),
  [('cat_xent', 'xent'), ('cat_xent_l', 'xent'), ('cat_dist', 'dist'), ('cat_dist_l', 'dist')],
)
def test_a_teacher_that_is_always_right_masks_nothing(masked, unmasked):
  small, large, targets, weights = example()
  right = large.at[jnp.arange(len(targets)), targets].set(99.0)
  args = (small, right, targets, weights)
  np.testing.assert_allclose(CELLS[masked][0](*args), CELLS[unmasked][0](*args), rtol=1e-6)


def test_a_teacher_that_is_never_right_leaves_the_small_models_tokens():
  small, large, targets, weights = example()
  wrong = large.at[jnp.arange(len(targets)), targets].set(-99.0)
  args = (small, wrong, targets, weights)
  for loss_name in ('xent', 'dist'):
    either, by_small, by_large = (CELLS[f'cat_{loss_name}{end}'][0] for end in ('', '_s', '_l'))
    assert either(*args) == by_small(*args)
    assert by_large(*args)[0] == 0
    assert not jax.grad(lambda x: by_large(x, *args[1:])[0])(small).any()  # noqa: B023


def test_equal_models_have_one_mask():
  small, _, targets, weights = example()
  args = (small, small, targets, weights)
  assert losses.cat_xent(*args) == losses.cat_xent_s(*args) == losses.cat_xent_l(*args)


@given(seed=st.integers(0, 10_000), n=st.sampled_from([1, 12]), w=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_inclusion_exclusion_and_order(seed, n, w):
  args = example(n, 5, seed)

  def cell(mask):
    return oracles.cascade_loss(*map(np.asarray, args), w=w, mask=mask)[0]

  values = {
    'all': losses.dist(*args, w=w)[0],
    'either': losses.cat_dist(*args, w=w)[0],
    'large': losses.cat_dist_l(*args, w=w)[0],
    'small': losses.cat_dist_s(*args, w=w)[0],
  }
  for mask, value in values.items():
    np.testing.assert_allclose(value, cell(mask), rtol=1e-4, atol=1e-5)
  both = values['small'] + values['large'] - values['either']
  assert -1e-4 <= both <= min(values['small'], values['large']) + 1e-4
  assert values['either'] <= values['all'] + 1e-4


def test_the_mixture_is_linear_in_its_weight():
  args = example()
  ends = [losses.cat_dist(*args, w=w)[0] for w in (1.0, 0.0)]
  np.testing.assert_allclose(losses.cat_dist(*args, w=0.3)[0], 0.3 * ends[0] + 0.7 * ends[1], 1e-5)
  np.testing.assert_allclose(ends[0], losses.cat_xent(*args)[0], rtol=1e-6)


def test_the_soft_term_minus_the_teachers_entropy_is_the_divergence():
  small, large, targets, weights = example()
  entropy = -jnp.sum(jax.nn.softmax(large) * jax.nn.log_softmax(large), -1)
  divergence = optax.kl_divergence(jax.nn.log_softmax(small), jax.nn.softmax(large))
  soft = losses.dist(small, large, targets, weights, w=0.0)[0]
  np.testing.assert_allclose(
    soft - jnp.sum(entropy * weights), jnp.sum(divergence * weights), rtol=1e-5
  )
  itself = losses.dist(large, large, targets, weights, w=0.0)[0]
  np.testing.assert_allclose(itself, jnp.sum(entropy * weights), rtol=1e-5)


@every_cell
def test_padding_changes_nothing(name):
  cell = CELLS[name][0]
  small, large, targets, weights = example()
  pad = partial(jnp.pad, pad_width=((0, 5), (0, 0)), constant_values=3.0)
  args = (pad(large), jnp.pad(targets, (0, 5)), jnp.pad(weights, (0, 5)))
  plain = jax.value_and_grad(lambda x: cell(x, large, targets, weights)[0])(small)
  padded = jax.value_and_grad(lambda x: cell(x, *args)[0])(pad(small))
  np.testing.assert_allclose(plain[0], padded[0], rtol=1e-6)
  np.testing.assert_allclose(plain[1], padded[1][:-5], atol=1e-7)
  assert not padded[1][-5:].any()


@every_cell
def test_nothing_flows_to_the_large_model_or_to_masked_tokens(name):
  cell, w, mask = CELLS[name]
  small, large, targets, weights = example()
  assert not jax.grad(lambda x: cell(small, x, targets, weights)[0])(large).any()
  gradient = jax.grad(lambda x: cell(x, large, targets, weights)[0])(small)
  counted = oracles.cascade_loss_gradient(
    *map(np.asarray, (small, large, targets, weights)), w=w, mask=mask
  ).any(-1)
  assert not gradient[~counted].any()
  assert gradient[counted].any(-1).all()


@every_cell
def test_any_number_of_leading_axes_will_do(name):
  cell = CELLS[name][0]
  flat = example()
  folded = [x.reshape(4, 6, *x.shape[1:]) for x in flat]
  np.testing.assert_allclose(cell(*flat), cell(*folded), rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
  args = example()
  low = [x.astype(jnp.bfloat16) for x in args[:2]]
  total, count = losses.cat_dist(*low, *args[2:])
  assert total.dtype == count.dtype == jnp.float32
  as_float = [x.astype(jnp.float32) for x in low]
  assert total == losses.cat_dist(*as_float, *args[2:])[0]


@every_cell
def test_impossible_logits_of_masked_tokens_spoil_neither_the_sum_nor_the_gradient(name):
  """The loss of such a token is infinite: a `where` hides its value, its slope must be finite."""
  small, large, targets, weights = example(n=8)
  targets = targets.at[0].set(0)
  impossible = small.at[0, 0].set(-jnp.inf)
  without = weights.at[0].set(0.0)
  cell = jax.value_and_grad(lambda small, *rest: CELLS[name][0](small, *rest)[0])
  value, gradient = cell(impossible, large, targets, without)
  expected, expected_gradient = cell(small, large, targets, without)
  assert value == expected
  np.testing.assert_array_equal(gradient, expected_gradient)
  assert not gradient[0].any()
  if name in ('xent', 'dist'):  # of a token that counts it would show
    assert not jnp.isfinite(cell(impossible, large, targets, without.at[0].set(1.0))[0])


def test_xent_needs_no_large_model_and_the_others_say_that_they_do():
  small, _, targets, weights = example()
  losses.xent(small, (), targets, weights)
  for name in set(CELLS) - {'xent', 'cat_xent_s'}:
    with pytest.raises(ValueError, match=r'none is given .* or use a loss that asks for none'):
      CELLS[name][0](small, (), targets, weights)


def test_another_vocabulary_is_an_error_that_names_both_sizes():
  small, large, targets, weights = example()
  for name in set(CELLS):
    with pytest.raises(ValueError, match='7 vocabulary entries and the large one 6'):
      CELLS[name][0](small, large[:, :-1], targets, weights)


def test_a_weight_outside_its_range_is_an_error():
  with pytest.raises(ValueError, match=r'\[0, 1\]; it is 1.5'):
    losses.dist(*example(), w=1.5)


# -- several teachers, and schedules ---------------------------------------------------------------


def second_teacher():
  """A teacher that is right about tokens which neither model of `example` predicts."""
  targets = example()[2]
  logits = example(seed=5)[1]
  return logits.at[jnp.arange(2, 24, 4), targets[2::4]].set(9.0)


@every_cell
def test_one_teacher_is_the_same_alone_wrapped_or_in_a_tuple(name):
  small, large, targets, weights = example()
  cell = CELLS[name][0]
  alone = cell(small, large, targets, weights)
  for teachers in ((large,), [Logits(large)], Logits(large)):
    assert cell(small, teachers, targets, weights) == alone


def test_several_teachers_distill_the_mean_of_their_distributions():
  small, large, targets, weights = example()
  other = second_teacher()
  total, count = losses.dist(small, (large, other), targets, weights, w=0.0)
  each = [losses.dist(small, teacher, targets, weights, w=0.0)[0] for teacher in (large, other)]
  np.testing.assert_allclose(total, np.mean(each), rtol=1e-6)
  mean = jnp.log((jax.nn.softmax(large) + jax.nn.softmax(other)) / 2)
  np.testing.assert_allclose(total, losses.dist(small, mean, targets, weights, w=0.0)[0], rtol=1e-5)
  assert count == weights.sum()


def test_tokens_that_any_of_several_teachers_predicts_count():
  small, large, targets, weights = example()
  other = second_teacher()
  correct = [np.asarray(logits.argmax(-1) == targets) for logits in (small, large, other)]
  assert (correct[2] & ~correct[0] & ~correct[1]).any()
  each = np.asarray(optax.softmax_cross_entropy_with_integer_labels(small, targets) * weights)
  for name, mask in (('cat_xent', np.any(correct, 0)), ('cat_xent_l', np.any(correct[1:], 0))):
    total, _ = CELLS[name][0](small, (large, other), targets, weights)
    np.testing.assert_allclose(total, each[mask].sum(), rtol=1e-6)


@pytest.mark.parametrize('name', ['dist', 'cat_dist', 'cat_dist_l', 'cat_dist_s'])
def test_a_weight_follows_its_schedule(name):
  args = example()
  cell = CELLS[name][0]
  schedule = optax.linear_schedule(1.0, 0.2, transition_steps=8)
  for step, w in ((0, 1.0), (4, 0.6), (8, 0.2), (99, 0.2)):
    expected = cell(*args, w=w, step=jnp.asarray(step))
    scheduled = jax.jit(partial(cell, w=schedule))(*args, step=jnp.asarray(step))
    np.testing.assert_allclose(scheduled, expected, rtol=1e-6)
  assert cell(*args, step=jnp.asarray(3)) == cell(*args)  # a constant does not see the step


def test_a_schedule_without_a_step_is_an_error():
  with pytest.raises(ValueError, match='is a schedule: pass the `step`'):
    losses.dist(*example(), w=optax.constant_schedule(0.5))


# -- what the mask is for --------------------------------------------------------------------------


def _fit(cell, logits_of_large, targets, steps=400):
  """Gradient descent on one table of logits, a row a context, as the smallest small model."""
  contexts = jnp.arange(len(targets)) % 8

  def loss(table):
    total, count = cell(table[contexts], logits_of_large, targets, jnp.ones(len(targets)))
    return total / count

  step = jax.jit(lambda table: table - 2.0 * jax.grad(loss)(table))
  table = 0.01 * jax.random.normal(jax.random.key(0), (8, 8))
  for _ in range(steps):
    table = step(table)
  return table, contexts


def test_the_mask_removes_label_noise_that_neither_model_predicts():
  """Targets follow a rule (context -> token) except for a noisy fifth; the teacher knows the rule.

  CAT keeps the clean tokens and about the share 1/V of the noisy ones, and ends below plain
  cross-entropy on the tokens that it keeps (oracle 12 of the specification).
  """
  rng = np.random.default_rng(0)
  n, vocab, q = 4000, 8, 0.2
  rule = np.arange(n) % 8
  noisy = rng.random(n) < q
  targets = jnp.asarray(np.where(noisy, rng.integers(vocab, size=n), rule))
  large = jax.nn.one_hot(rule, vocab) * 9.0
  aware, contexts = _fit(losses.cat_xent, large, targets)
  plain, _ = _fit(losses.xent, large, targets)
  counted = np.asarray(aware[contexts].argmax(-1) == targets) | (rule == np.asarray(targets))
  assert abs((1 - counted.mean()) - q * (1 - 1 / vocab)) < 0.02

  def nll(table):
    each = optax.softmax_cross_entropy_with_integer_labels(table[contexts], targets)
    return float(each[counted].mean())

  assert nll(aware) < 0.1 * nll(plain)
