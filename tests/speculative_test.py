from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cascades import speculative
from cascades import target_distributions as targets
from cascades.target_distributions import RULES, Distribution
from tests import speculative_oracles as oracles

V, DEPTH = 3, 7  # tabular models: a row per prefix of fewer than DEPTH tokens
ROWS = (V**DEPTH - 1) // (V - 1)
DRAWS = 50_000
NAMES = pytest.mark.parametrize('name', RULES)
F1 = ((0.6, 0.3, 0.1), (0.2, 0.45, 0.35))


@functools.cache
def _tables():
  """Next-token probabilities of a small and a large model, at temperature 1/2 and untempered."""
  logits = np.random.default_rng(3).normal(size=(2, ROWS, V)) * 0.7
  with jax.enable_x64(True):
    return [
      Distribution(*map(np.asarray, targets.distribution(jnp.asarray(x), temperature=0.5)))
      for x in logits
    ]


@functools.cache
def _pi(name, alpha):
  with jax.enable_x64(True):
    pi = targets.target_distribution(*_tables(), rule=RULES[name].target, alpha=alpha)
    return np.asarray(pi)


def _alpha(name):
  """An alpha at which some prefixes defer and others do not."""
  middles = {'opt': 0.1, 'opt_log': 0.1, 'diff': 0.02, 'diff_log': 0.05, 'chow': 0.45}
  middles |= {'chow_log': 0.85, 'bild': 1.2, 'token_v1': 0.2, 'token_v2': 0.2}
  return middles.get(name, oracles.alphas(name)[1])


def _residual(q, pi):
  with jax.enable_x64(True):
    weights = np.asarray(speculative.residual(jnp.asarray(q), jnp.asarray(pi)))
  return weights / weights.sum(-1, keepdims=True)


@NAMES
def test_drafting_and_verifying_has_the_law_of_the_target(name):
  """All outcomes enumerated in float64: exact for every number of drafts."""
  q, pi = _tables()[0].sampled, _pi(name, _alpha(name))
  expected = oracles.product_law(pi)
  for gamma in (1, 2, 3, 4):
    law = oracles.law(q, pi, _residual(q, pi), gamma=gamma)
    np.testing.assert_allclose(law, expected, atol=1e-12)


def test_rules_differ_on_the_tables_of_these_tests():
  q, p = (d.sampled for d in _tables())
  for name in RULES.keys() - {'small', 'large', 'lossless'}:
    pi = _pi(name, _alpha(name))
    for model in (q, p):
      assert (np.abs(pi - model)[:40].max(-1) > 0.02).mean() > 0.2, name


def _answers(q, pi, bonus, keys, *, gamma, length, verify):
  """The first tokens of an answer a key, from as many blocks as tokens."""
  B = len(keys)
  rows, node = jnp.arange(B), jnp.zeros(B, jnp.int32)
  tokens, lengths = jnp.zeros((B, length), jnp.int32), jnp.zeros(B, jnp.int32)
  for turn in range(length):
    nodes, drafts = [node], []
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, turn)
    for j in range(gamma):
      draw = jax.vmap(jax.random.fold_in, (0, None))(folded, 100 + j)
      drafts.append(jax.vmap(jax.random.categorical)(draw, jnp.log(q[nodes[-1]])))
      nodes.append(oracles.child(nodes[-1], drafts[-1], V))
    prefixes = jnp.stack(nodes, 1)
    block = pi[prefixes].at[:, -1].set(bonus[nodes[-1]])
    accepted, token = verify(folded, jnp.stack(drafts, 1), q[prefixes], block)
    for j in range(gamma):
      at = jnp.where(j < accepted, lengths + j, length)
      tokens = tokens.at[rows, at].set(drafts[j], mode='drop')
    tokens = tokens.at[rows, lengths + accepted].set(token, mode='drop')
    lengths = lengths + accepted + 1
    last = oracles.child(prefixes[rows, accepted], token, V)
    node = jnp.where(lengths < length, last, 0)  # prefixes of complete answers are in no table
  return tokens


@functools.cache
def _compiled(**options):
  return jax.jit(functools.partial(_answers, **options))


def _sample(q, pi, *, bonus=None, gamma=2, length=2, verify=speculative.verify):
  """Counts of the first tokens of DRAWS answers."""
  tables = [jnp.asarray(x, jnp.float32) for x in (q, pi, pi if bonus is None else bonus)]
  keys = jax.random.split(jax.random.key(0), DRAWS)
  tokens = np.asarray(_compiled(gamma=gamma, length=length, verify=verify)(*tables, keys))
  return np.bincount(np.ravel_multi_index(tokens.T, (V,) * length), minlength=V**length)


def _p_value(counts, law):
  return scipy.stats.chisquare(counts, law * counts.sum() / law.sum()).pvalue


@functools.cache
def _law(name):
  return oracles.product_law(_pi(name, _alpha(name)), length=2)


@NAMES
def test_draws_follow_the_target(name):
  q, pi = _tables()[0].sampled, _pi(name, _alpha(name))
  assert _p_value(_sample(q, pi, gamma=2), _law(name)) > 1e-3
