"""Laws of target distributions that no single number shows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cascades import speculative
from cascades import target_distributions as targets
from cascades.target_distributions import RULES, Distribution
from tests import speculative_oracles as oracles

F1 = np.array([[0.6, 0.3, 0.1], [0.2, 0.45, 0.35]])
ROWS = 50_000


def _pairs(n, V=5, seed=0):
  return np.random.default_rng(seed).dirichlet(np.full(V, 0.7), size=(2, n))


def test_any_deferral_of_tokens_gives_a_distribution():
  """pi = q (1 - r) + p eta adds up to 1 whatever r is, and rejects at most what r defers."""
  rng = np.random.default_rng(1)
  q, p = _pairs(1000)
  r = rng.random(q.shape) < rng.random((len(q), 1))
  r[0], r[1] = False, True
  rule = functools.partial(targets.defer, defers=lambda q, p, alpha: jnp.asarray(r))
  with jax.enable_x64(True):
    pi = np.asarray(targets.target_distribution(q, p, rule=rule, alpha=0.0))
  eta = (r * q).sum(-1, keepdims=True)
  np.testing.assert_allclose(pi, q * ~r + p * eta, atol=1e-12)
  np.testing.assert_allclose(pi.sum(-1), 1, atol=1e-12)
  np.testing.assert_allclose(pi[:2], [q[0], p[1]], atol=1e-12)
  # To draw deferred tokens afresh from p has the same law and rejects eta.
  rejected = np.maximum(0, q - pi).sum(-1)
  assert (rejected <= eta[:, 0] + 1e-12).all()
  assert (rejected < eta[:, 0] - 0.01).any()


@pytest.mark.parametrize('name', ['token_v2', 'token_v3'])
def test_no_tolerance_is_lossless_when_greedy_only(name):
  """At alpha = 0 the large model's first choice is kept: F1 defers the others, eta = .7."""
  pi = targets.target_distribution(*np.float32(F1), rule=RULES[name].target, alpha=0.0)
  np.testing.assert_allclose(pi, (0.14, 0.615, 0.245), atol=1e-6)
  greedy = np.eye(3, dtype=np.float32)[F1.argmax(-1)]
  models = (Distribution(now, peaks) for now, peaks in zip(greedy, np.float32(F1), strict=True))
  pi = targets.target_distribution(*models, rule=RULES[name].target, alpha=0.0)
  np.testing.assert_array_equal(pi, greedy[1])


def test_token_rules_read_untempered_probabilities_of_every_token():
  """F1 at T = 1/2 is (36, 9, 1) / 46 and (16, 81, 49) / 146, by which V2 would defer two tokens."""
  q, p = (targets.distribution(np.log(np.float32(x)), temperature=0.5) for x in F1)
  pi = targets.target_distribution(q, p, rule=RULES['token_v2'].target, alpha=0.12)
  eta = 36 / 46
  expected = (16 / 146 * eta, 9 / 46 + 81 / 146 * eta, 1 / 46 + 49 / 146 * eta)
  np.testing.assert_allclose(pi, expected, atol=1e-6)


def test_the_closed_form_of_lenience_needs_the_normalized_residual():
  """max(min(q, p / l), p / beta) is the law of no other beta than the one that adds up to 1."""
  q, p = _pairs(300)
  lenience = 0.75
  taken = np.minimum(q, p / lenience)
  with jax.enable_x64(True):
    out = {
      name: np.asarray(targets.target_distribution(q, p, rule=RULES[name].target, alpha=0.25))
      for name in ('lossy', 'lossy_normalized')
    }
  best = 1 / np.array([[oracles.scale(*row, 0.25)] for row in zip(q, p, strict=True)])
  closed = lambda beta: np.maximum(taken, p / beta)
  np.testing.assert_allclose(out['lossy_normalized'], closed(best), atol=1e-12)
  partly = (taken.sum(-1) < 1 - 1e-6) & (best[:, 0] > 1 + 1e-6)
  assert partly.mean() > 0.9
  assert np.abs(out['lossy'] - closed(1.0)).max(-1)[partly].min() > 1e-8
  for factor in (0.9, 1.1):
    assert np.abs(closed(factor * best).sum(-1) - 1)[partly].min() > 1e-8


def test_a_residual_of_the_large_model_itself_draws_another_law():
  """F1, lossless: .6 of the drafts pass, and p in place of the residual gives (.28, .48, .24)."""
  q, p = (jnp.broadcast_to(jnp.float32(x), (ROWS, 2, 3)) for x in F1)
  drafted = jax.random.categorical(jax.random.key(0), jnp.log(q[:, :1]))
  keys = jax.random.split(jax.random.key(1), ROWS)

  def frequencies(verify):
    accepted, token = jax.jit(verify)(keys, drafted, q, p)
    first = np.where(accepted > 0, drafted[:, 0], token)
    return np.bincount(first, minlength=3) / ROWS

  def mutant(*arguments):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(speculative, 'residual', lambda q, pi: pi)
      return speculative.verify(*arguments)

  wrong = frequencies(mutant)
  np.testing.assert_allclose(wrong, (0.28, 0.48, 0.24), atol=0.01)
  statistic = lambda found: ((found - F1[1]) ** 2 / F1[1]).sum()
  assert statistic(wrong) == pytest.approx(0.0686, abs=0.005)
  assert stats.chi2.sf(ROWS * statistic(frequencies(speculative.verify)), 2) > 1e-3


def test_tokens_of_a_block_add_up_when_positions_differ():
  """1 + a1 + a1 a2 + a1 a2 a3: the chances that the first drafts pass, each at its own rate."""
  q, p = (x[:4].astype(np.float32) for x in _pairs(4, V=3, seed=4))
  rates = np.minimum(q, p).sum(-1)[:3]
  assert np.ptp(rates) > 0.1
  tables = [jnp.broadcast_to(x, (ROWS, 4, 3)) for x in (q, p)]
  drafts = jax.random.categorical(jax.random.key(2), jnp.log(tables[0][:, :3]))
  keys = jax.random.split(jax.random.key(3), ROWS)
  accepted = np.asarray(jax.jit(speculative.verify)(keys, drafts, *tables)[0])
  passes = np.cumprod(rates)
  expected = -np.diff(np.concatenate([[1], passes, [0]]))
  assert stats.chisquare(np.bincount(accepted, minlength=4), ROWS * expected).pvalue > 1e-3
  error = accepted.std() / np.sqrt(ROWS)
  assert 1 + accepted.mean() == pytest.approx(1 + passes.sum(), abs=4 * error)
