"""Small model aided training: tempered teachers, the weight omega and its schedules.

Numbers by hand, a slow oracle, laws, gradients; numbered as in the specification of the method.
"""

from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import losses
from cascades.teachers import Logits, TeacherError, Top1, TopK, to_top1, to_top_k
from tests import oracles

LN2 = np.log(2)


def example(n=12, vocab=7, seed=0):
  """Logits of the trained model and of the teacher, targets, and weights, some of them 0."""
  rng = np.random.default_rng(seed)
  model, teacher = 2 * rng.normal(size=(2, n, vocab)).astype(np.float32)
  weights = (rng.random(n) < 0.8).astype(np.float32)
  return tuple(map(jnp.asarray, (model, teacher, rng.integers(vocab, size=n), weights)))


def soft_targets(teacher, targets, omega, rho):
  """`q = (1 - omega) onehot(y) + omega p^rho / sum p^rho`, token by token."""
  rows = []
  for row, target in zip(np.asarray(teacher), np.asarray(targets), strict=True):
    powers = np.exp(oracles.log_softmax(row)) ** rho
    rows.append((1 - omega) * np.eye(len(row))[target] + omega * powers / powers.sum())
  return np.array(rows)


def test_a_token_worked_by_hand():
  model = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  teacher = jnp.log(jnp.array([[0.16, 0.64, 0.2]]))  # of rho = 1/2: (.4, .8, sqrt(.2)) / sum
  powers = np.sqrt([0.16, 0.64, 0.2])
  powers /= powers.sum()
  soft = powers[0] * LN2 + (powers[1] + powers[2]) * 2 * LN2
  target, weight = jnp.array([1]), jnp.ones(1)
  for omega, expected in ((0.0, 2 * LN2), (1.0, soft), (0.25, 0.75 * 2 * LN2 + 0.25 * soft)):
    total, count = losses.salt(model, teacher, target, weight, omega=omega, rho=0.5)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert count == 1


@given(seed=st.integers(0, 999), omega=st.floats(0, 1), rho=st.floats(0.05, 4))
@settings(deadline=None, max_examples=25)
def test_two_terms_are_the_cross_entropy_to_one_target_and_so_is_the_gradient(seed, omega, rho):
  """Oracle 2: the loss is -sum q log p, and its gradient p - q."""
  model, teacher, targets, weights = example(seed=seed)
  loss = lambda model: losses.salt(model, teacher, targets, weights, omega=omega, rho=rho)[0]
  value, gradient = jax.value_and_grad(loss)(model)
  q = soft_targets(teacher, targets, omega, rho)
  logprobs = np.array([oracles.log_softmax(row) for row in np.asarray(model)])
  np.testing.assert_allclose(value, -(q * logprobs).sum(-1) @ np.asarray(weights), rtol=1e-4)
  expected = np.asarray(weights)[:, None] * (np.exp(logprobs) - q)
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_the_gradient_is_the_slope():
  model, *rest = example(n=4, seed=3)
  loss = lambda x: losses.salt(x, *rest, omega=0.6, rho=0.25)[0]
  jax.test_util.check_grads(loss, (model,), order=1, modes=('rev',), atol=1e-2, rtol=1e-2, eps=1e-2)
  assert not jax.grad(lambda x: losses.salt(model, x, *rest[1:], omega=0.6)[0])(rest[0]).any()


def test_the_loss_is_linear_in_omega_and_its_ends_are_the_two_losses():
  args = example()
  at = lambda omega: losses.salt(*args, omega=omega, rho=0.5)[0]
  np.testing.assert_allclose(at(0.3), 0.7 * at(0.0) + 0.3 * at(1.0), rtol=1e-6)
  assert at(0.0) == losses.xent(*args)[0]
  assert at(1.0) == losses.dist(*args, w=0.0, rho=0.5)[0]


def test_constant_weights_are_the_operations_of_the_losses_that_they_name():
  """Oracle 1: no weight is BASELINE's loss, any other one is RKD's, `dist` with `w = 1 - omega`."""
  args = example()
  operations = lambda loss, **options: str(jax.make_jaxpr(partial(loss, **options))(*args))
  assert operations(losses.salt, omega=0.0, rho=0.5) == operations(losses.xent)
  aided = operations(losses.salt, omega=0.7, rho=0.5)
  assert aided == operations(losses.dist, w=1 - 0.7, rho=0.5)
  assert aided not in (operations(losses.dist, w=0.7, rho=0.5), operations(losses.xent))


def test_rho_flattens_or_sharpens_the_teacher():
  """Oracle 3: 1 leaves it, 0 is uniform, and infinity is its first choice."""
  args = model, teacher, _, weights = example()
  soft = lambda rho: losses.salt(*args, omega=1.0, rho=rho)[0]
  assert soft(1.0) == losses.dist(*args, w=0.0)[0]
  logprobs = jax.nn.log_softmax(model)
  np.testing.assert_allclose(soft(1e-6), -jnp.mean(logprobs, -1) @ weights, rtol=1e-4)
  first = losses.xent(model, (), teacher.argmax(-1), weights)[0]
  np.testing.assert_allclose(soft(1e4), first, rtol=1e-5)
  powers = np.exp(np.float64(jax.nn.log_softmax(teacher))) ** 0.25
  np.testing.assert_allclose(
    jnp.exp(Logits(teacher).tempered(0.25, 7).logprobs()),
    powers / powers.sum(-1, keepdims=True),
    rtol=1e-5,
  )


def test_a_model_that_equals_its_teacher_loses_its_entropy_and_moves_nowhere():
  """Oracle 4."""
  model, _, targets, weights = example()
  loss = lambda x: losses.salt(x, model, targets, weights, omega=1.0)[0]
  value, gradient = jax.value_and_grad(loss)(model)
  entropy = -jnp.sum(jax.nn.softmax(model) * jax.nn.log_softmax(model), -1)
  np.testing.assert_allclose(value, entropy @ weights, rtol=1e-5)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_a_teacher_that_is_the_source_gives_the_mean_gradient_without_its_variance():
  """Oracle 5, on a Markov source of four symbols: the Rao-Blackwell inequality."""
  rng = np.random.default_rng(0)
  source = rng.dirichlet(np.ones(4), size=4)
  contexts = rng.integers(4, size=20_000)
  symbols = (rng.random(20_000)[:, None] > source[contexts].cumsum(-1)).sum(-1)
  model = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)[contexts]
  teacher = jnp.asarray(np.log(source), jnp.float32)[contexts]
  args = model, teacher, jnp.asarray(symbols), jnp.ones(len(symbols))
  slopes = lambda omega: np.asarray(
    jax.grad(lambda x: losses.salt(x, *args[1:], omega=omega)[0])(model)
  )
  hard, soft = slopes(0.0), slopes(1.0)
  for context in range(4):
    rows = contexts == context
    standard_error = hard[rows].std(0) / np.sqrt(rows.sum())
    assert (abs(hard[rows].mean(0) - soft[rows].mean(0)) < 5 * standard_error).all()
    assert soft[rows].std(0).max() < 1e-4 < hard[rows].std(0).min()
  # The minimizer of the distillation is the source itself, that of no other loss of a batch.
  at_source = jax.grad(lambda x: losses.salt(x, *args[1:], omega=1.0)[0])(teacher)
  np.testing.assert_allclose(at_source, 0.0, atol=1e-6)
  assert abs(soft).max() > 0.1


def example_of_a_biased_teacher():
  """Six symbols: their probabilities in the data, logits of a biased teacher and of a model."""
  rng = np.random.default_rng(1)
  data, biased = rng.dirichlet(np.ones(6), size=2).astype(np.float32)
  return jnp.asarray(data), jnp.log(biased), jnp.asarray(rng.normal(size=6), jnp.float32)


def risk(loss, model, teacher, data, **options):
  """A loss in the mean over the data: each symbol is a token, its probability the weight."""
  rows = lambda logits: jnp.broadcast_to(logits, (6, 6))
  return loss(rows(model), rows(teacher), jnp.arange(6), data, **options)[0]


def distance(p, q):
  """Total variation."""
  return jnp.abs(p - q).sum() / 2


@pytest.mark.parametrize('rho', [0.25, 1.0])
def test_a_biased_teacher_moves_the_minimizer_to_a_mixture(rho):
  """Oracle 6: the minimizer, its excess cross-entropy, and its distance to the data."""
  data, teacher, model = example_of_a_biased_teacher()
  tempered = jnp.exp(rho * teacher) / jnp.exp(rho * teacher).sum()
  excess = []
  for omega in (0.0, 0.3, 0.7, 1.0):
    slope = jax.grad(lambda x, o=omega: risk(losses.salt, x, teacher, data, omega=o, rho=rho))
    # The gradient is the model minus its targets, wherever the model is.
    minimizer = jax.nn.softmax(model) - slope(model)
    np.testing.assert_allclose(minimizer, (1 - omega) * data + omega * tempered, rtol=1e-4)
    np.testing.assert_allclose(slope(jnp.log(minimizer)), 0.0, atol=1e-6)
    plain = partial(risk, losses.xent, teacher=teacher, data=data)
    excess.append(plain(jnp.log(minimizer)) - plain(jnp.log(data)))
    divergence = oracles.kl(np.float64(data), np.float64(minimizer))
    np.testing.assert_allclose(excess[-1], divergence, rtol=1e-4, atol=1e-6)
    expected = omega * distance(tempered, data)
    np.testing.assert_allclose(distance(minimizer, data), expected, rtol=1e-4, atol=1e-6)
  assert (np.diff(excess) > 0.01).all()


@pytest.mark.parametrize('omega', [0.3, 1.0])
def test_the_distillation_differs_from_the_plain_risk_by_at_most_the_teachers_distance(omega):
  """Oracle 7: the range of the model's losses times the total variation, and it is reached."""
  data, teacher, model = example_of_a_biased_teacher()

  def gap_and_bound(model):
    plain = risk(losses.xent, model, teacher, data)
    aided = risk(losses.salt, model, teacher, data, omega=omega)
    tokens = losses.cross_entropy(jnp.broadcast_to(model, (6, 6)), (), jnp.arange(6))
    return abs(plain - aided), jnp.ptp(tokens) * omega * distance(jax.nn.softmax(teacher), data)

  gap, bound = gap_and_bound(model)
  assert 0 < gap < bound
  # Two losses only, the larger one where the data have more than the teacher.
  gap, bound = gap_and_bound(jnp.where(data > jax.nn.softmax(teacher), -2.0, 0.0))
  np.testing.assert_allclose(gap, bound, rtol=1e-4)


# -- schedules -------------------------------------------------------------------------------------


def test_a_hard_switch_distils_for_exactly_its_steps():
  """Oracle 8."""
  args = example()
  omega = losses.hard_switch(0.6, steps=3)
  cell = jax.jit(partial(losses.salt, omega=omega, rho=0.5))
  values = [float(cell(*args, step=jnp.asarray(step))[0]) for step in range(6)]
  early, late = losses.salt(*args, omega=0.6, rho=0.5)[0], losses.xent(*args)[0]
  np.testing.assert_allclose(values, [early] * 3 + [late] * 3, rtol=1e-6)
  assert abs(early - late) > 0.1
  assert sum(float(omega(step)) > 0 for step in range(100)) == 3
  assert not any(float(losses.hard_switch(0.6, steps=0)(step)) for step in range(9))


def test_a_linear_decay_keeps_its_weight_and_then_falls_to_nothing():
  omega = losses.linear_decay(0.8, steps=30, decay_steps=20)
  values = np.array([float(omega(step)) for step in range(40)])
  np.testing.assert_allclose(values[:11], 0.8)
  np.testing.assert_allclose(values[30:], 0.0, atol=1e-7)
  np.testing.assert_allclose(np.diff(values[10:31]), -0.04, rtol=1e-4)
  np.testing.assert_allclose(np.trapezoid(values[10:31]), 0.8 * 20 / 2, rtol=1e-5)
  args = example()
  at = partial(losses.salt, omega=omega, step=jnp.asarray(20))
  np.testing.assert_allclose(at(*args)[0], losses.salt(*args, omega=0.4)[0], rtol=1e-6)


def test_steps_without_a_teacher_are_plain_cross_entropy():
  model, _, targets, weights = example()
  plain = losses.xent(model, (), targets, weights)
  for omega in (0.6, losses.hard_switch(0.6, steps=3)):
    assert losses.salt(model, (), targets, weights, omega=omega, step=9) == plain


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: losses.salt(*example(), omega=1.5), r'\[0, 1\]; it is -0.5'),
    (lambda: losses.salt(*example(), omega=0.5, rho=0.0), 'rho of the teacher must be above 0'),
    (lambda: losses.salt(*example(), omega=losses.hard_switch(0.5, steps=3)), 'pass the `step`'),
    (lambda: losses.hard_switch(1.5, steps=3), r'\[0, 1\]; it is 1.5'),
    (lambda: losses.linear_decay(0.5, steps=3, decay_steps=4), 'let it fall for 1 to 3'),
  ],
)
def test_settings_out_of_range_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


# -- teachers from a cache -------------------------------------------------------------------------


@pytest.mark.parametrize('rho', [0.25, 1.0, 3.0])
def test_a_cache_of_all_choices_gives_the_loss_of_the_teacher_itself(rho):
  """Oracle 14."""
  model, teacher, *rest = example()
  online = losses.salt(model, teacher, *rest, omega=0.7, rho=rho)[0]
  cached = losses.salt(model, to_top_k(teacher, k=7), *rest, omega=0.7, rho=rho)[0]
  np.testing.assert_allclose(cached, online, rtol=1e-5)


@pytest.mark.parametrize('rho', [0.25, 3.0])
def test_a_tempered_cache_is_the_tempered_distribution_with_an_even_tail(rho):
  teacher = example(seed=2)[1]
  cached = to_top_k(teacher, k=3)
  spread = np.repeat(np.asarray(cached.tail)[:, None] / 4, 7, axis=1)
  np.put_along_axis(spread, np.asarray(cached.ids), np.exp(cached.top_logprobs), axis=1)
  expected = spread**rho / (spread**rho).sum(-1, keepdims=True)
  tempered = cached.tempered(rho, 7)
  top = np.take_along_axis(expected, np.asarray(cached.ids), 1)
  np.testing.assert_allclose(jnp.exp(tempered.top_logprobs), top, rtol=1e-5)
  np.testing.assert_allclose(top.sum(-1) + np.asarray(tempered.tail), 1.0, rtol=1e-5)
  assert isinstance(tempered, TopK)


def test_first_choices_stay_first_and_cannot_be_distilled():
  model, teacher, *rest = example()
  first = to_top1(teacher)
  assert isinstance(first.tempered(0.5, 7), Top1)
  np.testing.assert_array_equal(first.tempered(0.5, 7).top1(), teacher.argmax(-1))
  with pytest.raises(TeacherError, match='first choices only'):
    losses.salt(model, first, *rest, omega=0.5, rho=0.5)
