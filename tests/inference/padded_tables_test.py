"""Models whose tables are padded to different sizes: entries that only one has are never read."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades.inference import speculation, token_cascade
from cascades.inference.answers import DecodingOptions
from cascades.target_distributions import RULES
from cascades.types import Prompt
from tests.inference.speculation_test import Bigrams

VOCAB, PADDED, NEVER, MAX_LEN = 24, 32, -1, 12
SAMPLED = DecodingOptions(temperature=0.9)
ALPHAS = {'lossless': 0.0, 'token_v3': 0.5, 'chow': 0.72}
PROMPT = Prompt(np.arange(6, dtype=np.int32)[:, None], np.ones(6, np.int32))


def model(index, *, padded):
  """Bigrams of one of two tables; entries from VOCAB on would win everywhere."""
  tables = np.random.RandomState(5).dirichlet(np.full(VOCAB, 0.3), (2, VOCAB))
  bigrams = Bigrams(tables[index] + tables[0])  # logits need not be of probabilities
  if padded:
    sides = (0, PADDED - VOCAB), (0, PADDED - VOCAB)
    bigrams.table = jnp.pad(bigrams.table, sides, constant_values=50.0)
  return bigrams


@functools.cache
def answers(method, padded):
  """Answers of two tables, of which one is padded: 0 or 1."""
  small, large = (model(index, padded=padded == index) for index in (0, 1))
  rule = 'chow' if method == 'token cascade' else method
  alpha, shared = ALPHAS[rule], {'max_len': MAX_LEN, 'eos_id': NEVER}

  @jax.jit
  def generate():
    if method == 'token cascade':
      return token_cascade.generate(
        small, large, PROMPT, rule=rule, alpha=alpha, options=SAMPLED, **shared
      )
    pair = speculation.SpeculativePair(small, large, RULES[rule].target, alpha, SAMPLED)
    stopping = speculation.DraftPlan(np.array([0, 0, 3]), *np.float32([3.0, 1.0]))
    return speculation.generate(
      pair, PROMPT, gamma=3, plan=stopping if pair.lossless else None, **shared
    )

  return jax.tree.map(np.asarray, generate())


@pytest.mark.parametrize('method', ['lossless', 'token_v3', 'token cascade'])
def test_it_does_not_matter_which_table_is_padded(method):
  """Under a lossless rule too, some of whose rows the large model ends alone."""
  actual, expected = (answers(method, padded) for padded in (0, 1))
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
  tokens, drafted = expected.answer.tokens, expected.drafted.mean()
  assert 10 < len(np.unique(tokens)) < tokens.max() + 1 <= VOCAB
  assert 0.1 < drafted < 0.9
  if method == 'lossless':
    assert np.isnan(expected.small_logprobs).sum(1).max() > 3  # by the large model alone
