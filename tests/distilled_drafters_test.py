"""Tabular drafters that learn by each divergence, and what speculative decoding gains from it.

Answers are of three tokens out of three. A model is a table of next-token probabilities, in the
rows of `speculative_oracles.child`; states and acceptance are summed over all answers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from cascades import losses, speculative
from tests import speculative_oracles as oracles

V = T = 3
ROWS = 1 + V + V**2
SOURCES = {  # shares of fixed, target-generated and on-policy answers
  'fixed': (1, 0, 0), 'target': (0, 1, 0), 'on_policy': (0, 0, 1), 'mixed': (0.3, 0.35, 0.35),
}  # fmt: skip


def reached(table):
  """The probability of reaching each row of tables [..., ROWS, V]."""
  first = table[..., 0, :]
  second = (first[..., None] * table[..., 1 : 1 + V, :]).reshape(*first.shape[:-1], V**2)
  return jnp.concatenate([jnp.ones_like(first[..., :1]), first, second], axis=-1)


def acceptance(p, q):
  """`alpha`: the mean share of the tokens of p's answers that are accepted if q drafts them."""
  return (reached(p) * jnp.minimum(p, q).sum(-1)).sum(-1) / T


def random_tables(seed, count):
  return jnp.float32(np.random.default_rng(seed).dirichlet(np.ones(V), (count, ROWS)))


def table_of(params, _):
  """A drafter that can express any target: its parameters are its logits."""
  return params


def low_rank(params, prompts):
  """A drafter that reads two directions of a prompt's features [N, D]."""
  return jnp.einsum('nd,dk,krv->nrv', prompts, *params)


@functools.partial(jax.jit, static_argnames=('name', 'drafter'))
def distill(params, prompts, fixed, p, shares, *, name, drafter=table_of):
  """Parameters of a drafter after 300 steps on expected losses; `fixed` is the law of the data."""
  optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))

  def objective(params):
    logits = drafter(params, prompts)
    own = jax.lax.stop_gradient(jax.nn.softmax(logits))  # no gradient through samples
    states = sum(share * reached(x) for share, x in zip(shares, (fixed, p, own), strict=True))
    loss = getattr(losses, f'distillspec_{name}')
    return loss(logits, jnp.log(p), jnp.zeros(states.shape, int), states)[0]

  def update(state, _):
    params, opt_state = state
    updates, opt_state = optimizer.update(jax.grad(objective)(params), opt_state)
    return (optax.apply_updates(params, updates), opt_state), None

  return jax.lax.scan(update, (params, optimizer.init(params)), None, 300)[0][0]


@pytest.mark.parametrize('name', ['fkl', 'rkl', 'jsd', 'tvd'])
def test_every_divergence_on_every_source_leads_to_an_acceptance_of_1(name):
  """Twenty pairs of a target and of a drafter; total variation stalls where drafts are certain."""
  p, fixed, start = (random_tables(seed, 20) for seed in range(3))
  learn = lambda logits, source: jax.nn.softmax(
    distill(logits, None, fixed, p, jnp.array(SOURCES[source]), name=name)
  )
  assert acceptance(p, start).max() < 0.75
  for source in SOURCES:
    assert acceptance(p, learn(jnp.log(start), source)).min() > 0.998
  certain = jnp.zeros((20, ROWS, V)).at[..., 0].set(20.0)
  mean = acceptance(p, learn(certain, 'target')).mean()
  assert mean < 0.7 if name == 'tvd' else mean > 0.98


@pytest.mark.parametrize('seed', range(3))
def test_distillation_raises_acceptance_on_new_prompts_and_leaves_answers_their_law(seed):
  """Targets read six features of a prompt, drafters two directions of them."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  prompts, unseen, large = normal(64, 6), normal(200, 6), normal(6, ROWS, V)
  p, p_unseen = (jax.nn.softmax(jnp.einsum('nd,drv->nrv', x, large)) for x in (prompts, unseen))
  start = normal(6, 2) / 2, normal(2, ROWS, V) / 2
  on_policy = jnp.array(SOURCES['on_policy'])
  learned = distill(start, prompts, p, p, on_policy, name='fkl', drafter=low_rank)
  drafters = [jax.nn.softmax(low_rank(params, unseen)) for params in (start, learned)]
  before, after = (acceptance(p_unseen, q) for q in drafters)
  assert after.mean() - before.mean() > 0.1
  assert stats.ttest_rel(after, before).statistic > 5  # paired over prompts
  expected = oracles.product_law(beyond(p_unseen[0]))
  for q in drafters:
    residual = speculative.residual(q[0], p_unseen[0])
    residual /= residual.sum(-1, keepdims=True)
    law = oracles.law(*map(beyond, (q[0], p_unseen[0], residual)), gamma=2)
    np.testing.assert_allclose(law, expected, atol=1e-6)


def beyond(table):
  """A table with rows of the tokens that a block of two drafts may add to an answer."""
  return np.concatenate([np.asarray(table, float), np.full((V**3 + V**4, V), 1 / V)])
