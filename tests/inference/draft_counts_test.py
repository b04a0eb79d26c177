"""Greedy lossless answers at every number of drafts from 1 to 8, by one program of each model."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from cascades import decoding
from cascades.inference import speculation
from cascades.target_distributions import RULES
from cascades.types import Prompt
from tests import testing

MOST, MAX_LEN, EOS = 8, 24, 1
CONFIGS = {'t5': testing.TINY_T5, 'decoder': testing.TINY_EVERYTHING}


def drafter(params, scale):
  """A drafter of the same shapes: the large model's parameters and noise."""
  random = np.random.RandomState(0)
  return jax.tree.map(lambda x: x + np.float32(scale * random.standard_normal(x.shape)), params)


@functools.cache
def programs(name):
  """Answers of the large model alone, and of any drafter with it at up to MOST drafts."""
  graph, params = testing.split(testing.build(CONFIGS[name]))
  length = np.array([7, 4, 0, 2, 6], np.int32)
  prompt = Prompt(np.asarray(testing.tokens((5, 7), seed=9)), length)
  shared = {'max_len': MAX_LEN, 'eos_id': EOS}

  @jax.jit
  def both(small, large, plan):
    models = (nnx.merge(graph, params) for params in (small, large))
    pair = speculation.SpeculativePair(*models, RULES['lossless'].target)
    return speculation.generate(pair, prompt, gamma=MOST, plan=plan, **shared)

  alone = jax.jit(lambda params: decoding.generate(nnx.merge(graph, params), prompt, **shared))(
    params
  )
  return params, jax.tree.map(np.asarray, alone), both


@pytest.mark.parametrize('name', ['t5', pytest.param('decoder', marks=pytest.mark.slow)])
def test_lossless_greedy_answers_are_the_large_models_at_every_number_of_drafts(name):
  params, alone, both = programs(name)
  calls = []
  for gamma in range(1, MOST + 1):
    actual = both(drafter(params, 0.015), params, speculation.always(gamma))
    np.testing.assert_array_equal(actual.answer.tokens, alone.tokens)
    np.testing.assert_array_equal(actual.answer.mask, alone.mask)
    np.testing.assert_allclose(actual.answer.logprobs, alone.logprobs, atol=2e-5)
    assert 0 < actual.counts.rejected.sum() < actual.counts.accepted.sum()
    calls.append(actual.counts.large_calls)
    same = both(params, params, speculation.always(gamma))  # every draft passes
    np.testing.assert_array_equal(same.answer.tokens, alone.tokens)
    full = alone.mask.all(1)
    assert full.any()
    np.testing.assert_array_equal(
      same.counts.large_calls[full], 1 + -(-(MAX_LEN - 1) // (gamma + 1))
    )
  assert both._cache_size() == 1
  assert (np.diff(calls, axis=0) <= 0).all()  # greedy drafts: more of them never take more calls
  assert len(np.unique(calls, axis=0)) > 4
