from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import speculative
from cascades import target_distributions as targets
from cascades.target_distributions import RULES, Distribution
from tests import speculative_oracles as oracles

F1 = ((0.6, 0.3, 0.1), (0.2, 0.45, 0.35))
F2 = ((0.4, 0.35, 0.25), (0.1, 0.8, 0.1))
NAMES = pytest.mark.parametrize('name', RULES)


N, V = 60, 5  # of every call: one compilation a rule


@functools.cache
def _compiled(name):
  """The rule as loops run it: alpha is traced."""
  return jax.jit(
    lambda q, p, alpha: targets.target_distribution(q, p, rule=RULES[name].target, alpha=alpha)
  )


def _pi(name, q, p, alpha):
  """Target distributions of at most N rows of at most V tokens."""
  q, p = (d if isinstance(d, Distribution) else Distribution(d, d) for d in (q, p))
  shape = np.shape(q.sampled)
  rows = lambda x: np.atleast_2d(np.asarray(x, np.float32))
  pad = lambda x: np.pad(rows(x), [(0, n - m) for n, m in zip((N, V), rows(x).shape, strict=True)])
  q, p = (Distribution(*map(pad, d)) for d in (q, p))
  pi = np.asarray(_compiled(name)(q, p, jnp.float32(alpha)), np.float64)
  return pi[: shape[0] if len(shape) > 1 else 1, : shape[-1]].reshape(shape)


def _rejection(q, pi):
  return np.maximum(0, np.asarray(q) - pi).sum(-1)


@pytest.mark.parametrize(
  ('name', 'alpha', 'pair', 'pi', 'rejection'),
  [
    ('token_v1', 0.2, F1, (0.62, 0.345, 0.035), 0.065),
    ('token_v2', 0.05, F1, (0.14, 0.615, 0.245), 0.46),
    ('token_v3', 0.3, F1, (0.12, 0.57, 0.31), 0.48),
    ('token_v2', 0.15, F1, (0.12, 0.57, 0.31), 0.48),
    ('token_v3', 0.3, F2, (0.065, 0.87, 0.065), 0.52),
    ('token_v3', 0.9, F1, F1[0], 0.0),
    ('token_v3', 0.9, F2, F2[0], 0.0),
    ('lossless', 0.0, F1, F1[1], 0.4),
    ('lossless', 0.0, F2, F2[1], 0.45),
    ('lossy', 0.25, F1, (0.266667, 0.425, 0.308333), 1 / 3),
    ('lossy_normalized', 0.25, F1, (0.266667, 0.4125, 0.320833), 1 / 3),
    ('lossy', 0.5, F1, (0.4, 0.375, 0.225), 0.2),
    ('lossy_normalized', 0.5, F1, (0.4, 0.3375, 0.2625), 0.2),
    ('lossy_square', 0.5, F1, (0.6, 0.3, 0.1), 0.0),  # 0.2 / 0.25 exceeds 0.6
    ('lossy_power', 0.5, F1, (0.447214, 0.357295, 0.195492), 0.152786),  # sqrt 0.2
    ('ensemble', 0.25, F1, (0.5, 0.3375, 0.1625), 0.1),
    ('typical', 0.16, F1, (0.6, 0.3, 0.1), 0.0),  # .4 exp(-1.048654) = .140, below all p
    ('typical', 0.49, F1, (0.12, 0.57, 0.31), 0.48),  # .7 exp(-1.048654) = .245, above .2
  ],
)
def test_target_distributions_equal_numbers_worked_by_hand(name, alpha, pair, pi, rejection):
  value = _pi(name, *pair, alpha)
  np.testing.assert_allclose(value, pi, atol=2e-6)
  assert _rejection(pair[0], value) == pytest.approx(rejection, abs=2e-6)


@pytest.mark.parametrize(
  ('name', 'alpha', 'pair', 'deferred', 'acceptance', 'residual'),
  [
    ('lossless', 0.0, F1, None, (1 / 3, 1, 1), (0, 0.375, 0.625)),
    ('lossless', 0.0, F2, None, (0.25, 1, 0.4), (0, 1, 0)),
    ('token_v1', 0.2, F1, (0, 0, 1), (1, 1, 0.35), (0.307692, 0.692308, 0)),
    ('token_v2', 0.05, F1, (1, 0, 1), (0.14 / 0.6, 1, 1), (0, 0.315 / 0.46, 0.145 / 0.46)),
    ('token_v3', 0.3, F1, (1, 0, 0), (0.2, 1, 1), (0, 0.5625, 0.4375)),
    ('token_v2', 0.15, F1, (1, 0, 0), (0.2, 1, 1), (0, 0.5625, 0.4375)),
    ('token_v3', 0.3, F2, (1, 0, 1), (0.1625, 1, 0.26), (0, 1, 0)),
    ('token_v3', 0.9, F1, (0, 0, 0), (1, 1, 1), F1[0]),  # nothing is rejected
    ('token_v3', 0.9, F2, (0, 0, 0), (1, 1, 1), F2[0]),
    ('lossy', 0.25, F1, None, (4 / 9, 1, 1), (0, 0.375, 0.625)),  # 2/3 of all drafts
    ('lossy', 0.5, F1, None, (2 / 3, 1, 1), (0, 0.375, 0.625)),  # .8 of them
    ('lossy_normalized', 0.25, F1, None, (4 / 9, 1, 1), (0, 0.3375, 0.6625)),  # p 11/12 - q
    ('lossy_normalized', 0.5, F1, None, (2 / 3, 1, 1), (0, 0.1875, 0.8125)),  # p 3/4 - q
  ],
)
def test_acceptances_and_residuals_equal_numbers_worked_by_hand(
  name, alpha, pair, deferred, acceptance, residual
):
  q, pi = np.float32(pair[0]), np.float32(_pi(name, *pair, alpha))
  np.testing.assert_allclose(np.minimum(1, pi / q), acceptance, atol=2e-6)
  weights = np.asarray(speculative.residual(q, pi))
  np.testing.assert_allclose(weights / weights.sum(), residual, atol=1e-5)
  if deferred:
    d = [Distribution(x, x) for x in np.float32(pair)]
    defers = RULES[name].target.keywords['defers']
    np.testing.assert_array_equal(defers(*d, alpha), np.bool_(deferred))


H_Q1, H_P1, H_Q2, H_P2 = 0.897946, 1.048654, 1.080528, 0.639032


@pytest.mark.parametrize(
  ('name', 'pair', 'boundary'),
  [
    ('chow', F1, 0.4), ('diff', F1, -0.15), ('opt', F1, -0.375),
    ('chow', F2, 0.6), ('diff', F2, 0.4), ('opt', F2, 0.888889),
    ('chow_log', F1, H_Q1), ('diff_log', F1, H_Q1 - H_P1), ('opt_log', F1, (H_Q1 - H_P1) / 0.4),
    ('chow_log', F2, H_Q2), ('diff_log', F2, H_Q2 - H_P2), ('opt_log', F2, (H_Q2 - H_P2) / 0.45),
    ('bild', F1, -np.log(0.2)), ('bild', F2, -np.log(0.1)),
  ],
)  # fmt: skip
def test_the_large_model_decides_below_the_boundary_alone(name, pair, boundary):
  np.testing.assert_array_equal(_pi(name, *pair, boundary - 1e-5), np.float32(pair[1]))
  np.testing.assert_array_equal(_pi(name, *pair, boundary + 1e-5), np.float32(pair[0]))


@pytest.mark.parametrize(
  ('name', 'alpha'),
  [
    ('chow', 0.5), ('diff', 0.25), ('opt', 0.5), ('bild', np.log(4)), ('token_v3', 0.5),
    ('chow_log', np.log(4)), ('diff_log', 0.0), ('opt_log', 0.0), ('token_v1', 0.5),
    ('token_v2', 0.25), ('typical', 0.25),
  ],
)  # fmt: skip
def test_ties_keep_the_small_model(name, alpha):
  pair = {
    'chow': ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25)),
    'diff': ((0.25, 0.5, 0.25), (0.75, 0.125, 0.125)),
    'opt': ((0.25, 0.5, 0.25), (0.75, 0.25, 0.0)),  # D_TV = .5 = (.75 - .5) / alpha
    'bild': ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25)),
    'token_v3': ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25)),
    'chow_log': ((0.25, 0.25, 0.25, 0.25), (0.125, 0.125, 0.25, 0.5)),
    'diff_log': ((0.5, 0.5, 0.0), (0.0, 0.5, 0.5)),
    'opt_log': ((0.5, 0.5, 0.0), (0.0, 0.5, 0.5)),
    'token_v1': ((0.25, 0.5, 0.25), (0.75, 0.125, 0.125)),
    'token_v2': ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25)),
    'typical': ((0.5, 0.5, 0.0), (0.75, 0.25, 0.0)),  # exp(-H) = .57
  }[name]
  np.testing.assert_array_equal(_pi(name, *pair, alpha), pair[0])


def _models(seed, *, n=N, V=V):
  """Logits of two models; pairs of similar and of different distributions."""
  rng = np.random.default_rng(seed)
  q, p = 2 * rng.normal(size=(2, n, V))
  q[: n // 3] = p[: n // 3] + 0.3 * q[: n // 3]
  return q, p


SAMPLERS = [{}, {'temperature': 0.5}, {'top_k': 3}, {'temperature': 2.0, 'top_p': 0.7}]


@pytest.mark.parametrize('options', SAMPLERS, ids=str)
def test_rules_equal_a_loop_over_tokens(options):
  """Float64: no comparison depends on rounding."""
  logits = _models(1, n=30)
  with jax.enable_x64(True):
    q, p = (targets.distribution(jnp.asarray(x), **options) for x in logits)
    for name, rule in RULES.items():
      for alpha in oracles.alphas(name):
        pi = targets.target_distribution(q, p, rule=rule.target, alpha=alpha)
        assert pi.dtype == jnp.float64
        expected = [
          oracles.RULES[name](*map(np.asarray, row), alpha)
          for row in zip(q.sampled, p.sampled, q.untempered, p.untempered, strict=True)
        ]
        np.testing.assert_allclose(pi, expected, atol=1e-12, err_msg=f'{name} {alpha}')


@pytest.mark.parametrize('options', [*SAMPLERS, {'temperature': 0.0}], ids=str)
def test_a_known_normalizer_gives_the_same_distribution(options):
  x = _models(4, n=30)[0]
  with jax.enable_x64(True):
    x = jnp.asarray(x) + 800.0  # whose exponentials no float holds
    known = targets.distribution(x, **options, normalizer=jax.nn.logsumexp(x, -1))
    for own, expected in zip(known, targets.distribution(x, **options), strict=True):
      np.testing.assert_allclose(own, expected, atol=1e-12)


logits = st.lists(st.floats(-8, 8, width=32), min_size=V, max_size=V)


@NAMES
@settings(max_examples=25)
@given(q=logits, p=logits, level=st.floats(0, 1), temperature=st.sampled_from([0.0, 0.5, 1.0]))
def test_every_target_is_a_distribution(name, q, p, level, temperature):
  q, p = (targets.distribution(np.asarray(x, np.float32), temperature=temperature) for x in (q, p))
  low, high = oracles.span(name)
  pi = _pi(name, q, p, low + level * (high - low))
  assert (pi >= 0).all()
  assert pi.sum() == pytest.approx(1, abs=1e-5)


MONOTONE = [
  'chow', 'chow_log', 'diff', 'diff_log', 'opt', 'opt_log', 'bild', 'lossy', 'lossy_normalized',
  'lossy_square', 'lossy_power',
]  # fmt: skip


@pytest.mark.parametrize('name', MONOTONE)
@settings(max_examples=25)
@given(q=logits, p=logits, levels=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_rejections_fall_with_alpha(name, q, p, levels):
  q, p = (np.asarray(jax.nn.softmax(np.asarray(x, np.float32))) for x in (q, p))
  low, high = oracles.span(name)
  rejections = [_rejection(q, _pi(name, q, p, low + x * (high - low))) for x in sorted(levels)]
  assert rejections[1] <= rejections[0] + 1e-5


def test_rejections_of_token_rules_may_rise_with_alpha_while_kept_sets_grow():
  """Counterexamples to `test_rejections_fall_with_alpha`."""
  q, p = (np.asarray(jax.nn.softmax(x)) for x in _models(2))
  for name in ('token_v1', 'token_v2', 'token_v3'):
    low, high = oracles.span(name)
    grid = np.linspace(low, high, 21)
    rejections = np.array([_rejection(q, _pi(name, q, p, alpha)) for alpha in grid])
    assert (np.diff(rejections, axis=0) > 1e-3).any()
    defers = getattr(targets, name)
    keeps = [~np.asarray(defers(Distribution(q, q), Distribution(p, p), alpha)) for alpha in grid]
    for narrow, wide in itertools.pairwise(keeps):
      assert (wide | ~narrow).all()


def test_rejection_identities():
  """1 - sum min(pi, q) = D_TV(pi, q) = r D_TV(p, q), or the sum over deferred tokens."""
  q, p = (np.asarray(jax.nn.softmax(x)) for x in _models(3))
  models = Distribution(q, q), Distribution(p, p)
  variation = np.asarray(targets.total_variation(q, p))[:, 0]
  for name, rule in RULES.items():
    for alpha in oracles.alphas(name):
      pi = _pi(name, q, p, alpha)
      rejection = _rejection(q, pi)
      np.testing.assert_allclose(1 - np.minimum(pi, q).sum(-1), rejection, atol=1e-6)
      if 'defers' not in getattr(rule.target, 'keywords', {}):
        continue
      r = np.asarray(rule.target.keywords['defers'](*models, alpha))
      if r.shape[-1] == 1:
        np.testing.assert_allclose(r[:, 0] * variation, rejection, atol=1e-6)
      else:
        eta = (r * q).sum(-1, keepdims=True)
        np.testing.assert_allclose(
          np.where(r, np.maximum(0, q - eta * p), 0).sum(-1), rejection, atol=1e-6
        )
        assert (pi >= q)[~r].all()  # accepted for certain, so by exact comparison


@NAMES
def test_equal_models_reject_nothing_but_what_token_rules_truncate(name):
  q = np.asarray(jax.nn.softmax(_models(4)[0]), np.float32)
  d = Distribution(q, q)
  for alpha in oracles.alphas(name):
    rejection = _rejection(q, _pi(name, q, q, alpha))
    eta = 0.0
    if name.startswith('token') or name == 'typical':
      r = RULES[name].target.keywords['defers'](d, d, alpha)
      eta = np.asarray(jnp.where(r, q, 0.0).sum(-1))
    np.testing.assert_allclose(rejection, eta * (1 - eta), atol=1e-6)


@pytest.mark.parametrize(
  ('name', 'alpha', 'model'),
  [
    ('small', 0, 0), ('large', 0, 1), ('lossless', 0, 1), ('ensemble', 0, 0), ('ensemble', 1, 1),
    ('chow', 1, 0), ('chow', -1e-6, 1), ('chow_log', 9, 0), ('chow_log', 0, 1),
    ('diff', 1, 0), ('diff', -1, 1), ('diff_log', 9, 0), ('diff_log', -9, 1),
    ('opt', 1e9, 0), ('opt', -1e9, 1), ('opt_log', 1e9, 0), ('opt_log', -1e9, 1),
    ('bild', 1e9, 0), ('bild', 0, 1), ('token_v1', 1, 0), ('token_v1', -1, 1),
    ('token_v2', 1, 0), ('token_v2', -1, 1), ('token_v3', 1, 0), ('token_v3', -1, 1),
    ('typical', 0, 0), ('lossy', 0, 1), ('lossy', 1, 0), ('lossy_square', 0, 1),
    ('lossy_square', 1, 0), ('lossy_power', 0, 1), ('lossy_power', 1, 0),
    ('lossy_normalized', 0, 1), ('lossy_normalized', 1, 0),
  ],
)  # fmt: skip
@pytest.mark.parametrize('options', SAMPLERS[:2], ids=str)
def test_limits_are_the_models_themselves(name, alpha, model, options):
  d = [targets.distribution(np.asarray(x, np.float32), **options) for x in _models(5)]
  np.testing.assert_array_equal(_pi(name, *d, alpha), d[model].sampled)


@pytest.mark.parametrize('name', ['lossy', 'lossy_normalized', 'lossy_square', 'lossy_power'])
def test_limits_of_lenience(name):
  q, p = (np.asarray(jax.nn.softmax(x), np.float32) for x in _models(6))
  np.testing.assert_allclose(_pi(name, q, p, 1e-7), p, atol=1e-6)  # continuous at 0
  q, p = np.float32([[0.5, 0.5, 0.0]]), np.float32([[0.0, 0.5, 0.5]])
  for alpha in (0.0, 0.5, 1.0):
    np.testing.assert_allclose(_pi(name, q, p, alpha)[0, 0], 0)  # p = 0 is never accepted


def test_bounds_of_lossy_decoding():
  """min(p, q) <= out <= p / (1 - alpha), and f_sq is f_lin of the square."""
  rng = np.random.default_rng(7)
  q, p = rng.dirichlet(np.full(4, 0.5), size=(2, 100_000)).astype(np.float32)
  alpha = rng.random((100_000, 1), np.float32) * 0.95
  compute = lambda name, alpha: targets.target_distribution(
    q, p, rule=RULES[name].target, alpha=alpha
  )
  for name in ('lossy', 'lossy_normalized'):
    out = np.asarray(compute(name, alpha))
    assert (np.minimum(p, q) <= out + 1e-6).all()
    assert (out <= p / (1 - alpha) + 1e-6).all()
  square = compute('lossy_square', alpha)
  np.testing.assert_allclose(square, compute('lossy', 1 - (1 - alpha) ** 2), atol=1e-5)


def test_the_normalized_residual_solves_its_equation():
  """pi adds up to 1, with the beta >= 1 that bisection gives."""
  q, p = (scipy.special.softmax(x, -1) for x in _models(8, V=40))
  with jax.enable_x64(True):
    for alpha in (0.0, 0.2, 0.7, 0.99):
      rule = RULES['lossy_normalized'].target
      pi = np.asarray(targets.target_distribution(q, p, rule=rule, alpha=alpha))
      s = np.array([oracles.scale(*row, alpha) for row in zip(q, p, strict=True)])[:, None]
      np.testing.assert_allclose(pi.sum(-1), 1, atol=1e-12)
      np.testing.assert_allclose(pi, np.maximum(np.minimum(q, p / (1 - alpha)), s * p), atol=1e-12)


def test_invalid_probabilities_end_newtons_method():
  q = np.full((N, V), np.nan)
  assert np.isnan(_pi('lossy_normalized', q, q, 0.3)).all()


def test_greedy_rules_coincide_as_the_papers_say():
  """OPT is Diff and V1 at temperature 0; V3 is the greedy lenience, V3(0) the large model."""
  logits = _models(9)
  q, p = (targets.distribution(np.asarray(x, np.float32), temperature=0.0) for x in logits)
  first_q, first_p = (np.argmax(d.untempered, -1) for d in (q, p))
  peak = np.max(p.untempered, -1)
  drafted = np.take_along_axis(np.asarray(p.untempered), first_q[:, None], -1)[:, 0]
  different = set()
  for alpha in (-1.0, -0.3, 0.0, 0.2, 0.6, 1.0):
    diff = _pi('diff', q, p, alpha)
    np.testing.assert_array_equal(_pi('opt', q, p, alpha), diff)
    np.testing.assert_array_equal(_pi('token_v1', q, p, alpha), diff)
    different.add(diff.tobytes())
    lenience = abs(alpha)
    greedy = np.where(drafted >= np.float32(lenience) * peak, first_q, first_p)
    np.testing.assert_array_equal(_pi('token_v3', q, p, 1 - lenience).argmax(-1), greedy)
    np.testing.assert_array_equal(_pi('lossy', q, p, 0.9 * lenience).argmax(-1), first_p)
  assert len(different) > 3
  np.testing.assert_array_equal(_pi('token_v3', q, p, 0).argmax(-1), first_p)


def test_rules_read_untempered_peaks_and_tempered_variation():
  """Worked by hand: at T = 1/2, F1 is tempered to (36, 9, 1)/46 and (16, 81, 49)/146."""
  q, p = (targets.distribution(np.log(np.float32(x)), temperature=0.5) for x in F1)
  variation = 36 / 46 - 16 / 146
  boundary = -0.15 / variation  # untempered peaks .6 and .45
  np.testing.assert_array_equal(_pi('opt', q, p, boundary - 1e-4), p.sampled)
  np.testing.assert_array_equal(_pi('opt', q, p, boundary + 1e-4), q.sampled)
  for name, alpha in [('chow', 0.399), ('diff', -0.151)]:
    np.testing.assert_array_equal(_pi(name, q, p, alpha), p.sampled)
  np.testing.assert_array_equal(_pi('chow', q, p, 0.401), q.sampled)


def test_the_regret_of_opt_is_bounded():
  """Lemma 5: L(opt) - L(optimal) <= max |P - q| + max |P - p| at every prefix, 0-1 loss."""
  rng = np.random.default_rng(11)
  truth, q, p = rng.dirichlet(np.full(4, 0.7), size=(3, 100_000))
  alpha = rng.normal(size=(100_000, 1))
  variation = np.maximum(0, p - q).sum(-1)
  r = np.asarray(targets.opt(Distribution(q, q), Distribution(p, p), alpha))[:, 0]
  rows = np.arange(len(truth))
  losses = [1 - truth[rows, d.argmax(-1)] for d in (q, p)]
  deferred = losses[1] + alpha[:, 0] * variation
  regret = np.where(r, deferred, losses[0]) - np.minimum(deferred, losses[0])
  bound = np.abs(truth - q).max(-1) + np.abs(truth - p).max(-1)
  assert (regret <= bound + 1e-5).all()
  assert (regret > 0.5 * bound).any()


def test_half_precision_is_computed_in_float32():
  def all_rules(q, p):
    return {
      name: targets.target_distribution(q, p, rule=rule.target, alpha=oracles.alphas(name)[1])
      for name, rule in RULES.items()
    }

  half = [jnp.asarray(jax.nn.softmax(x), jnp.bfloat16) for x in _models(12)]
  for name, pi in jax.jit(all_rules)(*half).items():
    assert pi.dtype == jnp.float32
    expected = _pi(name, *half, oracles.alphas(name)[1])
    np.testing.assert_allclose(pi, expected, atol=1e-6, err_msg=name)


def test_alphas_share_a_program():
  for name in RULES:
    for alpha in oracles.alphas(name):
      _pi(name, *F1, alpha)
    assert _compiled(name)._cache_size() == 1


def test_the_gradient_of_an_ensembles_rejections_is_the_total_variation():
  q, p = map(jnp.array, F1)
  rejection = lambda alpha: targets.total_variation(
    targets.target_distribution(q, p, rule=targets.ensemble, alpha=alpha), q
  )[0]
  assert jax.grad(rejection)(0.3) == pytest.approx(0.4)


def test_alphas_out_of_range_and_unknown_rules_are_refused():
  assert targets.named('opt', -3.0) is RULES['opt']
  with pytest.raises(ValueError, match=r"alpha=1.5 of rule 'chow' must lie in \[0, 1\]"):
    targets.named('chow', 1.5)
  with pytest.raises(ValueError, match=r"'bild' must be at least 0"):
    targets.named('bild', -1.0)
  for alpha in (np.inf, np.nan):
    with pytest.raises(ValueError, match="'opt' must be a finite number"):
      targets.named('opt', alpha)
  with pytest.raises(ValueError, match="'chew' is no rule: choose among bild, chow"):
    targets.named('chew', 0.5)
