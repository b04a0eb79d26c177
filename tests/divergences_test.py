"""Divergences against hand-worked numbers, a slow oracle, laws, limits and gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cascades import divergences, losses, masks
from cascades.teachers import Logits, TeacherError, to_top1, to_top_k
from tests import oracles

jsd, skew_fkl, skew_rkl = (
  divergences.jensen_shannon,
  divergences.skew_forward_kl,
  divergences.skew_reverse_kl,
)
FORMS = {
  'fkl': (divergences.forward_kl, None),
  'rkl': (divergences.reverse_kl, None),
  'tvd': (divergences.total_variation, None),
  'jsd(.1)': (functools.partial(jsd, beta=0.1), 0.1),
  'jsd': (jsd, 0.5),
  'jsd(.9)': (functools.partial(jsd, beta=0.9), 0.9),
  'skew_fkl': (skew_fkl, 0.1),
  'skew_rkl': (skew_rkl, 0.1),
  'skew_rkl(.7)': (functools.partial(skew_rkl, alpha=0.7), 0.7),
}
every_form = pytest.mark.parametrize('name', FORMS)
F1 = (0.2, 0.45, 0.35), (0.6, 0.3, 0.1)  # p of the teacher, q of the small model
F2 = (0.1, 0.8, 0.1), (0.4, 0.35, 0.25)


def value(name, p, q):
  small, large = jnp.log(jnp.array([q])), jnp.log(jnp.array([p]))
  return FORMS[name][0](small, (Logits(large),), jnp.zeros(1, int))[0]


def logits(n=12, vocab=7, seed=0, scale=2.0):
  """Logits of the small and of the large model."""
  return scale * np.random.default_rng(seed).normal(size=(2, n, vocab)).astype(np.float32)


def call(name, small, teacher):
  return FORMS[name][0](jnp.asarray(small), (teacher,), jnp.zeros(small.shape[:-1], int))


def expected(name, small, large):
  softmax = lambda row: [math.exp(x) for x in oracles.log_softmax(row.astype(float))]
  return [
    oracles.divergence(name.partition('(')[0], softmax(p), softmax(q), FORMS[name][1])
    for p, q in zip(large, small, strict=True)
  ]


# -- numbers, and the oracle -----------------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'of_f1', 'of_f2'),
  [
    ('fkl', 0.401204, 0.431084),
    ('rkl', 0.412252, 0.494253),
    ('jsd(.1)', 0.035495, 0.038719),
    ('jsd', 0.096650, 0.110010),
    ('jsd(.9)', 0.036300, 0.042955),
    ('tvd', 0.4, 0.45),
  ],
)
def test_the_numbers_of_the_specification(name, of_f1, of_f2):
  np.testing.assert_allclose([value(name, *F1), value(name, *F2)], [of_f1, of_f2], atol=1e-6)


def test_total_variation_is_one_minus_the_acceptance():
  for p, q in (F1, F2):
    np.testing.assert_allclose(1 - value('tvd', p, q), np.minimum(p, q).sum(), rtol=1e-6)


@pytest.mark.parametrize('shape', [(12,), (3, 4)])
@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit], ids=['eager', 'jit'])
@every_form
def test_a_divergence_equals_the_slow_oracle(name, shape, wrap):
  small, large = logits()
  actual = wrap(functools.partial(call, name))(
    small.reshape(*shape, -1), Logits(jnp.asarray(large).reshape(*shape, -1))
  )
  np.testing.assert_allclose(actual.ravel(), expected(name, small, large), rtol=1e-4, atol=1e-6)


# -- gradients -------------------------------------------------------------------------------------


def slope(name, p, q):
  gradient = jax.grad(lambda small: call(name, small, Logits(jnp.log(jnp.array(p)))))
  return gradient(jnp.log(jnp.array(q)))


@pytest.mark.parametrize(
  ('name', 'of_f1'),
  [
    ('fkl', (0.4, -0.15, -0.25)),
    ('rkl', (0.411816, -0.245315, -0.166501)),
    ('tvd', (0.24, -0.18, -0.06)),
    ('jsd', (0.093067, -0.047758, -0.045309)),
  ],
)
def test_the_gradients_of_the_specification(name, of_f1):
  np.testing.assert_allclose(slope(name, *F1), of_f1, atol=1e-6)
  if name == 'fkl':
    np.testing.assert_allclose(slope(name, *F2), (0.3, -0.45, 0.15), atol=1e-6)


@every_form
def test_the_gradient_is_the_slope_of_the_oracle_and_adds_up_to_zero(name):
  small, large = logits(n=1, seed=4)
  gradient = jax.grad(lambda x: call(name, x, Logits(jnp.asarray(large))).sum())(small)
  step = 1e-5 * np.eye(small.shape[-1])
  wide = small.astype(float)
  slopes = [
    (expected(name, wide + e, large)[0] - expected(name, wide - e, large)[0]) / 2e-5 for e in step
  ]
  np.testing.assert_allclose(gradient[0], slopes, atol=2e-6)
  assert abs(gradient.sum()) < 1e-6


@every_form
def test_the_teacher_gets_no_gradient(name):
  small, large = map(jnp.asarray, logits())
  for reduce in (Logits, functools.partial(to_top_k, k=3)):
    assert not jax.grad(lambda x: call(name, small, reduce(x)).sum())(large).any()  # noqa: B023


# -- laws ------------------------------------------------------------------------------------------


@example(seed=3569, scale=17.0, k=6)  # the tail is smaller than any float
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 20.0), k=st.sampled_from([1, 3, 6, 7]))
@settings(deadline=None, max_examples=25)
def test_divergences_are_nonnegative_bounded_and_ordered(seed, scale, k):
  small, large = map(jnp.asarray, logits(seed=seed, scale=scale))
  exact, reduced = _all_of(small, Logits(large)), _all_of(small, to_top_k(large, k=k))
  for values in (exact, reduced):
    assert all((each >= -1e-6).all() for each in values.values())
    entropy = lambda b: -b * math.log(b) - (1 - b) * math.log1p(-b)
    for name in ('jsd(.1)', 'jsd', 'jsd(.9)'):
      assert (values[name] <= entropy(FORMS[name][1]) + 1e-5).all()
    for name in ('skew_fkl', 'skew_rkl', 'skew_rkl(.7)'):
      assert (values[name] <= -math.log(FORMS[name][1]) + 1e-5).all()
    assert (values['tvd'] ** 2 <= values['fkl'] / 2 + 1e-6).all()  # Pinsker
  for name, values in reduced.items():  # of fewer outcomes, a lower bound
    assert (values <= exact[name] * (1 + 1e-4) + 1e-5).all(), name


@jax.jit
def _all_of(small, teacher):
  return {name: call(name, small, teacher) for name in FORMS}


@every_form
def test_equal_models_have_no_divergence_and_no_gradient(name):
  small, _ = map(jnp.asarray, logits())
  for teacher in (Logits(small), to_top_k(small, k=3)):
    of, gradient = jax.value_and_grad(lambda x: call(name, x, teacher).sum())(small)  # noqa: B023
    assert abs(of) < 1e-6
    if name != 'tvd' or isinstance(teacher, Logits):  # it has a kink there, and rounding errors
      np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_beta_exchanges_the_models():
  small, large = map(jnp.asarray, logits())
  np.testing.assert_allclose(
    call('jsd(.1)', small, Logits(large)), call('jsd(.9)', large, Logits(small)), atol=1e-6
  )


def test_the_jensen_shannon_divergence_is_a_mixture_of_skew_divergences():
  small, large = map(jnp.asarray, logits())
  args = (Logits(large),), jnp.zeros(len(small), int)
  mixed = 0.3 * skew_fkl(small, *args, alpha=0.3) + 0.7 * skew_rkl(small, *args, alpha=0.7)
  np.testing.assert_allclose(jsd(small, *args, beta=0.3), mixed, atol=1e-6)


def test_the_jensen_shannon_divergence_tends_to_both_kls():
  class Wide(Logits):
    """Logits in double precision."""

    def outcomes(self, small_logprobs):
      return jax.nn.log_softmax(self.logits), small_logprobs

  with jax.enable_x64(True):
    large, small = jnp.log(jnp.array([F1, F2]).swapaxes(0, 1))
    args = (Wide(large),), jnp.zeros(2, int)
    for beta, limit in ((1e-6, divergences.forward_kl), (1 - 1e-6, divergences.reverse_kl)):
      each = jsd(small, *args, beta=beta) / 1e-6
      np.testing.assert_allclose(each, limit(small, *args), rtol=1e-5)


def test_forward_kl_is_distillation_without_the_entropy_of_the_teacher():
  small, large = map(jnp.asarray, logits())
  args = (Logits(large),), jnp.zeros(len(small), int)
  entropy = -jnp.sum(jax.nn.softmax(large) * jax.nn.log_softmax(large), axis=-1)
  np.testing.assert_allclose(
    losses.distillation(small, *args) - entropy, divergences.forward_kl(small, *args), atol=1e-5
  )


@every_form
def test_several_teachers_are_averaged(name):
  small, large = map(jnp.asarray, logits())
  other = to_top_k(jnp.asarray(logits(seed=5)[1]), k=3)
  both = FORMS[name][0](small, (Logits(large), other), jnp.zeros(len(small), int))
  each = call(name, small, Logits(large)), call(name, small, other)
  np.testing.assert_allclose(both, (each[0] + each[1]) / 2, atol=1e-6)


@every_form
def test_impossible_outcomes_leave_values_and_gradients_finite(name):
  small, large = map(jnp.asarray, logits())
  large, small = large.at[:, 0].set(-jnp.inf), small.at[:, 1].set(-jnp.inf)
  for teacher in (Logits(large), to_top_k(large, k=3), to_top_k(large, k=7)):
    of, gradient = jax.value_and_grad(lambda x: call(name, x, teacher).sum())(small)  # noqa: B023
    assert jnp.isfinite(of)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize('weight', [0, 1, -0.1, math.nan])
def test_a_weight_outside_its_range_is_an_error(weight):
  small, large = map(jnp.asarray, logits())
  for form, option in ((jsd, 'beta'), (skew_fkl, 'alpha'), (skew_rkl, 'alpha')):
    with pytest.raises(ValueError, match=f'{option} of the .* between 0 and 1, both excluded'):
      form(small, (Logits(large),), jnp.zeros(len(small), int), **{option: weight})


# -- cells -----------------------------------------------------------------------------------------

CELLS = ['fkl', 'rkl', 'jsd', 'tvd', 'skew_fkl', 'skew_rkl']


@pytest.mark.parametrize('name', CELLS)
def test_cells_sum_their_divergence_over_tokens_and_take_any_mask(name):
  cell = getattr(losses, f'distillspec_{name}')
  small, large = map(jnp.asarray, logits(n=24))
  targets = jnp.arange(24) % 7
  weights = jnp.asarray(np.arange(24) < 20, jnp.float32)
  each = np.array(expected(name, small, large)) * weights
  total, count = cell(small, large, targets, weights)
  np.testing.assert_allclose(total, each.sum(), rtol=1e-5)
  assert count == 20
  either = np.asarray(masks.either_correct(small, (Logits(large),), targets))
  total, count = cell(small, large, targets, weights, token_mask=masks.either_correct)
  np.testing.assert_allclose(total, each[either].sum(), rtol=1e-5)
  assert count == 20


@pytest.mark.parametrize('name', CELLS)
def test_cells_take_what_a_cache_holds_of_the_distribution(name):
  cell = getattr(losses, f'distillspec_{name}')
  small, large = map(jnp.asarray, logits())
  rest = jnp.zeros(12, int), jnp.ones(12)
  exact = cell(small, large, *rest)[0]
  np.testing.assert_allclose(cell(small, to_top_k(large, k=7), *rest)[0], exact, rtol=1e-5)
  assert cell(small, to_top_k(large, k=3), *rest)[0] < exact
  for teachers, message in ((to_top1(large), 'first choices only'), ((), 'none is given')):
    with pytest.raises(TeacherError, match=message):
      cell(small, teachers, *rest)


# -- theory ----------------------------------------------------------------------------------------


def test_total_variation_on_samples_of_the_small_model_bounds_the_acceptance():
  """Equation 3 by enumeration, and the chain 1 - alpha <= (1/T) sum (T-s+1) d_s <= T eps.

  1,000 random pairs of tabular models over 3 tokens, for answers of 3.
  """
  rng = np.random.default_rng(0)
  V = T = 3
  draw = lambda: [rng.dirichlet(np.full(V, 0.5), (1000, *[V] * t)) for t in range(T)]
  p, q = draw(), draw()
  prefix = {'p': np.ones((1000,)), 'q': np.ones((1000,))}
  acceptance, on_p, on_q = np.zeros(1000), np.zeros((T, 1000)), np.zeros((T, 1000))
  for t in range(T):
    tvd = np.asarray(
      divergences.total_variation(
        jnp.log(q[t] + 1e-30), (Logits(jnp.log(p[t] + 1e-30)),), jnp.zeros(p[t].shape[:-1], int)
      )
    )
    over = tuple(range(1, 1 + t))
    acceptance += (prefix['p'] * np.minimum(p[t], q[t]).sum(-1)).sum(over) / T
    on_p[t], on_q[t] = (prefix['p'] * tvd).sum(over), (prefix['q'] * tvd).sum(over)
    prefix = {'p': prefix['p'][..., None] * p[t], 'q': prefix['q'][..., None] * q[t]}
  np.testing.assert_allclose(acceptance, 1 - on_p.mean(0), atol=1e-5)
  middle = sum((T - s) * on_q[s] for s in range(T)) / T
  assert (1 - acceptance <= middle + 1e-5).all()
  assert (middle <= T * on_q.mean(0) + 1e-5).all()
  assert (1 - acceptance > on_q.mean(0)).any()  # eps alone is no bound
