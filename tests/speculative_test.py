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
  middles |= {'chow_log': 0.95, 'bild': 1.2, 'token_v1': 0.2, 'token_v2': 0.2}
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
  """Answers of several pi and bonus tables: random numbers do not depend on them."""
  answers = functools.partial(_answers, **options)
  return jax.jit(jax.vmap(answers, (None, 0, 0, None)))


def _sample(q, pis, *, bonus=None, gamma=2, length=3, verify=speculative.verify):
  """Counts of the first tokens of DRAWS answers for each pi."""
  tables = [jnp.asarray(x, jnp.float32) for x in (q, pis, pis if bonus is None else bonus)]
  keys = jax.random.split(jax.random.key(0), DRAWS)
  tokens = np.asarray(_compiled(gamma=gamma, length=length, verify=verify)(*tables, keys))
  cells = np.ravel_multi_index(np.moveaxis(tokens, -1, 0), (V,) * length)
  return [np.bincount(x, minlength=V**length) for x in cells]


def _p_value(counts, law):
  return scipy.stats.chisquare(counts, law * counts.sum() / law.sum()).pvalue


@functools.cache
def _counts():
  pis = np.stack([_pi(name, _alpha(name)) for name in RULES])
  return dict(zip(RULES, _sample(_tables()[0].sampled, pis), strict=True))


@NAMES
def test_draws_follow_the_target(name):
  assert _p_value(_counts()[name], oracles.product_law(_pi(name, _alpha(name)))) > 1e-3


def _constant(*, peaks='untempered', name='token_v3', alpha=0.3):
  """q, p and pi of F1 at temperature 1/2, at every prefix."""
  d = [targets.distribution(np.log(np.float32(x)), temperature=0.5) for x in F1]
  read = [Distribution(x.sampled, getattr(x, peaks)) for x in d]
  pi = targets.target_distribution(*read, rule=RULES[name].target, alpha=alpha)
  return [np.tile(x, (ROWS, 1)).astype(np.float64) for x in (d[0].sampled, d[1].sampled, pi)]


def _residual_of_p(keys, *tables):
  """Mutant: the residual of lossless decoding."""
  p = jnp.float32((16, 81, 49)) / 146
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(speculative, 'residual', lambda q, pi: jnp.maximum(p - q, 0.0))
    return speculative.verify(keys, *tables)


def _reused_uniform(keys, *tables):
  """Mutant: every position of a block tosses the same coin."""
  fold_in = jax.random.fold_in
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.random, 'fold_in', lambda key, x: fold_in(key, jnp.minimum(x, 1)))
    return speculative.verify(keys, *tables)


@functools.cache
def _mutants():
  q, p, pi = _constant()
  tempered = _constant(peaks='sampled')[2]
  alone = {'gamma': 1, 'length': 2}
  tables = _sample(q, np.stack([pi, pi, tempered]), bonus=np.stack([pi, p, tempered]), **alone)
  return {
    **dict(zip(('none', 'bonus from p', 'tempered peaks'), tables, strict=True)),
    'residual of p': _sample(q, pi[None], verify=_residual_of_p, **alone)[0],
    'reused uniform': _sample(q, pi[None], verify=_reused_uniform, length=2)[0],
  }


@pytest.mark.parametrize(
  'mutant', ['none', 'bonus from p', 'residual of p', 'tempered peaks', 'reused uniform']
)
def test_the_chi_square_test_notices_what_implementations_get_wrong(mutant):
  p_value = _p_value(_mutants()[mutant], oracles.product_law(_constant()[2], length=2))
  assert p_value > 1e-3 if mutant == 'none' else p_value < 1e-12


def test_the_enumeration_notices_a_bonus_or_residual_of_the_large_model():
  q, p = (d.sampled for d in _tables())
  pi = _pi('token_v3', _alpha('token_v3'))
  expected = oracles.product_law(pi)
  bonus = oracles.law(q, pi, _residual(q, pi), gamma=2, bonus=p)
  wrong = oracles.law(q, pi, _residual(q, p), gamma=2)
  for law in (bonus, wrong):
    assert law.sum() == pytest.approx(1)
    assert np.abs(law - expected).sum() / 2 > 0.01


def _blocks(seed, *, B=400, gamma=4, V=6):
  rng = np.random.default_rng(seed)
  q, pi = rng.dirichlet(np.full(V, 0.6), size=(2, B, gamma + 1)).astype(np.float32)
  pi[::3] = q[::3] = 0.9 * q[::3] + 0.1 * pi[::3]  # some blocks pass entirely
  drafts = (q[:, :-1].cumsum(-1) < rng.random((B, gamma, 1))).sum(-1).clip(0, V - 1)
  drafted = rng.integers(0, gamma + 1, B)
  keys = jax.random.split(jax.random.key(seed), B)
  return keys, drafts.astype(np.int32), q, pi, drafted.astype(np.int32)


verify = jax.jit(speculative.verify)


def test_verification_equals_a_loop_over_rows_and_positions():
  keys, drafts, q, pi, drafted = _blocks(1)
  accepted, tokens = map(np.asarray, verify(keys, drafts, q, pi, drafted))
  position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, np.arange(5))
  uniforms = np.asarray(jax.vmap(jax.vmap(jax.random.uniform))(position_keys))[:, 1:]
  outcomes, weights = set(), []
  for b in range(len(drafts)):
    n = 0
    while n < drafted[b]:
      v = drafts[b, n]
      if uniforms[b, n] >= min(1.0, pi[b, n, v] / max(q[b, n, v], 1e-10)):
        break
      n += 1
    rejected = n < drafted[b]
    weights.append(np.maximum(0, pi[b, n] - q[b, n]) if rejected else pi[b, n])
    assert accepted[b] == n
    outcomes.add((n, bool(rejected)))
  drawn = speculative.draw(position_keys[:, 0], jnp.stack(weights))
  np.testing.assert_array_equal(tokens, drawn)
  assert len(outcomes) == 9  # 0 to 4 accepted, with and without a rejection but after the last


def test_a_row_depends_neither_on_its_neighbors_nor_on_padding():
  keys, drafts, q, pi, drafted = _blocks(3)
  accepted, tokens = map(np.asarray, verify(keys, drafts, q, pi, drafted))
  for b in (0, 7, 150, 399):
    n = drafted[b]
    alone = verify(
      keys[b : b + 1], drafts[b : b + 1, :n], q[b : b + 1, : n + 1], pi[b : b + 1, : n + 1]
    )
    assert (int(alone[0][0]), int(alone[1][0])) == (accepted[b], tokens[b])
  order = np.random.default_rng(0).permutation(len(drafts))
  shuffled = verify(keys[order], drafts[order], q[order], pi[order], drafted[order])
  np.testing.assert_array_equal(shuffled, (accepted[order], tokens[order]))


def test_verification_computes_in_float32_whatever_the_models_run_in():
  keys, drafts, q, pi, drafted = _blocks(5)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (q, pi)]
  exact = [x.astype(jnp.float32) for x in half]
  expected = verify(keys, drafts, *exact, drafted)
  np.testing.assert_array_equal(verify(keys, drafts, *half, drafted), expected)


def test_the_target_of_the_small_model_accepts_every_draft():
  keys, drafts, q, _, drafted = _blocks(4)
  np.testing.assert_array_equal(verify(keys, drafts, q, q, drafted)[0], drafted)


def test_greedy_verification_needs_no_randomness():
  """Accepts the longest common prefix and adds the large model's next token, whatever the key."""
  rng = np.random.default_rng(5)
  first_q, first_p = rng.integers(0, 2, (2, 300, 5))
  q, p = (np.eye(4, dtype=np.float32)[x] for x in (first_q, first_p))
  agree = np.cumprod(first_q[:, :-1] == first_p[:, :-1], axis=-1).sum(-1)
  for seed in (0, 1):
    keys = jax.random.split(jax.random.key(seed), 300)
    accepted, tokens = verify(keys, first_q[:, :-1].astype(np.int32), q, p)
    np.testing.assert_array_equal(accepted, agree)
    np.testing.assert_array_equal(tokens, first_p[np.arange(300), agree])


def test_a_residual_that_rounding_emptied_is_the_target():
  pi = jnp.array([[0.25, 0.75], [0.5, 0.5]])
  q = jnp.array([[0.25, 0.75], [0.25, 0.75]])
  np.testing.assert_array_equal(speculative.residual(q, pi), [[0.25, 0.75], [0.25, 0.0]])
  keys = jax.random.split(jax.random.key(0), 100)
  rows = [jnp.tile(x[:1], (100, 1)) for x in (q, pi)]
  tokens = jax.jit(speculative.next_token)(keys, *rows, jnp.ones(100, bool))
  assert 50 < tokens.sum() < 95


@pytest.mark.parametrize('name', ['lossy', 'lossy_normalized', 'lossy_square', 'lossy_power'])
def test_lossy_targets_are_verified_as_lenience_defines_it(name):
  """Acceptance min(1, f(p) / q), and for beta = 1 the residual of p: no draft more is rejected."""
  q, p = (d.sampled for d in _tables())
  pi, alpha = _pi(name, 0.3), 0.3
  f = {'lossy_square': p / (1 - alpha) ** 2, 'lossy_power': p ** (1 - alpha)}.get(
    name, p / (1 - alpha)
  )
  np.testing.assert_allclose(np.minimum(1, pi / q), np.minimum(1, f / q), atol=1e-12)
  reject = (f < q).any(-1)
  assert reject.mean() > 0.2
  if name != 'lossy_normalized':
    np.testing.assert_allclose(_residual(q, pi)[reject], _residual(q, p)[reject], atol=1e-9)


@pytest.mark.parametrize(
  ('name', 'alpha', 'acceptance', 'counts'),
  [('lossless', 0.0, 0.6, (0.4, 0.24, 0.36)), ('token_v3', 0.3, 0.52, (0.48, 0.2496, 0.2704))],
)
def test_tokens_per_block_of_equal_prefixes(name, alpha, acceptance, counts):
  """F1 at every prefix: 1.96 tokens a block for lossless decoding, 1.7904 for V3."""
  B = DRAWS
  q, p = (jnp.broadcast_to(jnp.float32(x), (B, 3, 3)) for x in F1)
  pi = targets.target_distribution(q, p, rule=RULES[name].target, alpha=alpha)
  keys, draft_keys = (jax.random.split(jax.random.key(seed), B) for seed in (8, 9))
  drafts = jax.vmap(lambda key: jax.random.categorical(key, jnp.log(q[0, 0]), shape=(2,)))(
    draft_keys
  )
  accepted = np.bincount(verify(keys, drafts, q, pi)[0], minlength=3)
  assert scipy.stats.chisquare(accepted, np.array(counts) * B).pvalue > 1e-3
  tokens = speculative.tokens_per_block(acceptance, 2)
  assert (
    tokens
    == pytest.approx(np.dot(counts, [1, 2, 3]))
    == pytest.approx({'lossless': 1.96, 'token_v3': 1.7904}[name])
  )


def test_the_published_table_of_speed_ups():
  speed = lambda a, gamma, c: 1 / speculative.relative_seconds(a, gamma, c)
  for gamma, value in [(1, 1.7308), (3, 2.6357), (5, 3.0744), (7, 3.2509), (9, 3.2817)]:
    assert speed(0.8, gamma, 0.04) == pytest.approx(value, abs=5e-5)
  for a, c, best, value in [
    (0.8, 0.04, 9, 3.2817), (0.6, 0.05, 4, 1.9213), (0.5, 0.1, 2, 1.4583), (0.05, 0.1, 0, 1.0),
  ]:  # fmt: skip
    assert speculative.best_gamma(a, c, most=20) == best
    assert speed(a, best, c) == pytest.approx(value, abs=5e-5)
  assert speculative.tokens_per_block(0.8, 5) == pytest.approx(3.68928)
  assert speculative.tokens_per_block(0.8, 7) == pytest.approx(4.16114, abs=5e-6)
  assert speculative.tokens_per_block(1.0, 7) == 8
  assert speculative.tokens_per_block(0.0, 7) == 1


def test_speculation_pays_if_and_only_if_acceptance_exceeds_the_cost_of_a_step():
  for a in np.linspace(0, 1, 21):
    for c in np.linspace(0.01, 0.99, 19):
      best = speculative.best_gamma(a, c, most=30)
      assert (best > 0) == (a > c + 1e-12) or abs(a - c) < 1e-9
      times = [speculative.relative_seconds(a, gamma, c) for gamma in range(31)]
      assert times[best] == min(times)


def test_the_planner_knows_that_longer_calls_of_the_large_model_cost_more():
  free = speculative.best_gamma(0.8, 0.05, most=6)
  assert free == 6
  linear = [1 + 0.25 * x for x in range(7)]
  assert speculative.best_gamma(0.8, 0.05, most=6, large=linear) < free
  assert speculative.best_gamma(0.8, 0.05, most=6, large=[1 + x for x in range(7)]) == 0
  assert speculative.best_gamma(0.3, 0.2, most=6) == 1
  assert speculative.best_gamma(0.3, 0.2, most=6, last_draft=1) == 0
  # At least one: (2 * .2 + 1) / 1.3 = 1.08 with one draft, (3 * .2 + 1) / 1.39 = 1.15 with two.
  assert speculative.best_gamma(0.3, 0.2, most=6, last_draft=1, least=1) == 1
  # (.2 + 3) / 1.9 = 1.68 with one, (.4 + 4) / 2.71 = 1.62 with two: both are slower than none.
  dear = [1, 3, 4]
  assert speculative.best_gamma(0.9, 0.2, most=2, large=dear) == 0
  assert speculative.best_gamma(0.9, 0.2, most=2, large=dear, least=1) == 2
  with pytest.raises(ValueError, match='at least least=3'):
    speculative.best_gamma(0.9, 0.2, most=2, least=3)
  saving = 1 - speculative.relative_seconds(0.3, 1, 0.2)  # 1 - 1.2 / 1.3
  assert saving == pytest.approx(1 / 13)
  assert speculative.best_gamma(0.3, 0.2, most=6, least_saving=0.07) == 1
  assert speculative.best_gamma(0.3, 0.2, most=6, least_saving=0.08) == 0
  with pytest.raises(ValueError, match=r'acceptance=1\.5 must lie in'):
    speculative.best_gamma(1.5, 0.1, most=3)
  with pytest.raises(ValueError, match='large has 2 numbers; gammas up to 3 need 4'):
    speculative.best_gamma(0.5, 0.1, most=3, large=[1.0, 1.0])


@pytest.mark.parametrize('name', targets.SEQUENTIAL)
def test_a_token_cascade_has_the_law_of_its_speculative_twin(name):
  q, p = _tables()
  called = speculative.token_cascade(q, _alpha(name), rule=name)
  assert 0.1 < called.mean() < 0.9
  mixed = np.where(np.asarray(called)[:, None], p.sampled, q.sampled)
  np.testing.assert_array_equal(mixed, _pi(name, _alpha(name)))


def test_a_token_cascade_refuses_rules_that_read_the_large_model():
  with pytest.raises(ValueError, match=r"'opt' reads the large model .* takes chow or chow_log"):
    speculative.token_cascade(_tables()[0], 0.1, rule='opt')


@pytest.mark.parametrize('temperature', [0.5, 1.0])
def test_verification_by_position_needs_no_table_beside_the_logits(temperature):
  B, gamma, V = 2, 11, 4096

  def block(q, p, keys, drafts):
    models = [(x, jax.nn.logsumexp(x, -1)) for x in (q, p)]

    def at(row, position):
      d = [
        targets.distribution(x[row, position], temperature=temperature, normalizer=n[row, position])
        for x, n in models
      ]
      return d[0].sampled, targets.target_distribution(*d, rule=RULES['opt'].target, alpha=0.1)

    return speculative.verify_by_position(keys, drafts, at)

  logits = jax.ShapeDtypeStruct((B, gamma + 1, V), jnp.float32)
  keys, drafts = jax.random.split(jax.random.key(0), B), jnp.zeros((B, gamma), jnp.int32)
  memory = jax.jit(block).lower(logits, logits, keys, drafts).compile().memory_analysis()
  assert memory.temp_size_in_bytes < B * (gamma + 1) * V * 4
