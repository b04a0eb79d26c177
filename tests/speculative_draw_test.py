from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cascades import speculative


@pytest.mark.parametrize('V', [1, 3, 20, 64])
def test_draws_follow_their_weights_and_never_take_a_token_of_none(V):
  weights = np.where(np.arange(V) % 3 == 1, 0.0, 1.0 + np.arange(V) % 5)
  B = 20_000
  tokens = speculative.draw(jax.random.split(jax.random.key(V), B), jnp.tile(weights, (B, 1)))
  counts = np.bincount(np.asarray(tokens), minlength=V)
  assert len(counts) == V
  assert not counts[weights == 0].any()
  if V > 1:
    likely = weights > 0
    law = B * weights[likely] / weights.sum()
    assert scipy.stats.chisquare(counts[likely], law).pvalue > 1e-3
