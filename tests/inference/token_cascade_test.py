from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from cascades import decoding
from cascades.inference import speculation, token_cascade
from cascades.inference.answers import DecodingOptions
from cascades.target_distributions import RULES
from cascades.types import Prompt
from tests import testing
from tests.inference.speculation_test import LARGE, SMALL, Bigrams, _teacher_forced

NEVER, MAX_LEN = -1, 14
SAMPLED = DecodingOptions(temperature=0.8, top_k=9)


@functools.cache
def _program(name, method, options):
  """A method of decoding with a tiny pair, compiled for any alpha and end of sequence."""
  if name == 'tables':
    merges = (Bigrams, Bigrams)
    params = tuple(np.random.RandomState(5).dirichlet(np.full(24, 0.3), (2, 24)))
  else:
    graphs, params = zip(
      *(testing.split(testing.build(configs[name])) for configs in (SMALL, LARGE)), strict=True
    )
    merges = tuple(functools.partial(nnx.merge, graph) for graph in graphs)

  @jax.jit
  def generate(params, prompt, eos_id, alpha, row_ids):
    small, large = (merge(params) for merge, params in zip(merges, params, strict=True))
    shared = {'max_len': MAX_LEN, 'eos_id': eos_id, 'row_ids': row_ids}
    if method == 'sequential':
      return token_cascade.generate(
        small, large, prompt, rule='chow', alpha=alpha, options=options, **shared
      )
    pair = speculation.SpeculativePair(small, large, RULES['chow'].target, alpha, options)
    return speculation.generate(pair, prompt, gamma=2, **shared)

  return generate, params


def _generate(
  name, prompt, alpha, *, method='sequential', eos_id=NEVER, options=DecodingOptions(), row_ids=None
):
  generate, params = _program(name, method, options)
  row_ids = np.arange(len(prompt.length)) if row_ids is None else row_ids
  answers = generate(params, prompt, eos_id, jnp.float32(alpha), row_ids)
  return jax.tree.map(np.asarray, answers)


def _prompt() -> Prompt:
  """Five rows of different lengths, one of them padding of the batch."""
  length = np.array([7, 4, 0, 2, 6], np.int32)
  tokens = np.asarray(testing.tokens((5, 7), seed=9)) * (np.arange(7) < length[:, None])
  return Prompt(tokens.astype(np.int32), length)


@pytest.mark.parametrize(
  'name', ['tables', *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_greedy_answers_are_those_of_the_speculative_cascade(name):
  """Catching up, by however many tokens, leaves the large model where it would be."""
  first = _generate(name, _prompt(), 0.5)
  eos_id = int(np.bincount(first.answer.tokens[first.answer.mask]).argmax())
  written = []
  for alpha, eos in [(a, e) for a in (0.4, 0.6, 0.75, 0.9, 1.0) for e in (NEVER, eos_id)]:
    actual = _generate(name, _prompt(), alpha, eos_id=eos)
    expected = _generate(name, _prompt(), alpha, eos_id=eos, method='speculative')
    mask = actual.answer.mask
    np.testing.assert_array_equal(actual.answer.tokens, expected.answer.tokens)
    np.testing.assert_array_equal(mask, expected.answer.mask)
    small_logprobs = np.where(mask, expected.small_logprobs, 0)
    logprobs = np.where(actual.drafted, small_logprobs, expected.answer.logprobs)
    np.testing.assert_allclose(actual.small_logprobs, small_logprobs, atol=2e-5)
    np.testing.assert_allclose(actual.answer.logprobs, logprobs, atol=2e-5)
    written.append(actual.drafted[mask].mean())
  assert min(written) < 0.4
  assert max(written[:-2]) > 0.6
  np.testing.assert_array_equal(actual.counts.large_calls, 0)


def test_a_sampled_row_depends_neither_on_its_neighbors_nor_on_padding():
  prompt, rows = _prompt(), np.array([4, 0, 3, 2, 1])
  together = _generate('t5', prompt, 0.85, options=SAMPLED)
  padding = np.arange(7) >= prompt.length[rows, None]
  tokens = np.where(padding, 11, prompt.tokens[rows])
  length = np.where(rows == 0, 0, prompt.length[rows])  # another row is absent
  apart = _generate('t5', Prompt(tokens, length), 0.85, options=SAMPLED, row_ids=rows)
  for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
    np.testing.assert_allclose(a[rows][rows != 0], b[rows != 0], atol=2e-5)
  assert len(np.unique(together.answer.tokens[[0, 1, 3, 4]], axis=0)) == 4


def test_log_probabilities_are_those_of_scoring_the_answer():
  for alpha in (0.82, 0.85):
    actual = _generate('t5', _prompt(), alpha, options=SAMPLED)
    mask, drafted = actual.answer.mask, actual.drafted
    batch = _teacher_forced(LARGE['t5'], _prompt(), actual.answer)
    q, p = (
      np.asarray(jax.nn.log_softmax(testing.logits(*testing.split(testing.build(c['t5'])), batch)))
      for c in (SMALL, LARGE)
    )
    np.testing.assert_array_equal(drafted[mask], (np.exp(q).max(-1) >= 1 - alpha)[mask])
    q, p = (np.take_along_axis(x, batch.targets[..., None], -1)[..., 0] for x in (q, p))
    np.testing.assert_allclose(actual.small_logprobs[mask], q[mask], atol=2e-5)
    np.testing.assert_allclose(
      actual.answer.logprobs[mask], np.where(drafted, q, p)[mask], atol=2e-5
    )
    assert 0.2 < drafted[mask].mean() < 0.9


def test_one_program_decodes_at_all_alphas():
  for alpha in (0.1, 0.9):
    _generate('t5', _prompt(), alpha, options=SAMPLED)
  generate, _ = _program('t5', 'sequential', SAMPLED)
  assert generate._cache_size() == 1


TABLES = np.array(
  [
    [[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.35, 0.55]],
    [[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.3, 0.3, 0.4]],
  ]
)
ENTROPIES = -(TABLES[0] * np.log(TABLES[0])).sum(1)


@functools.partial(jax.jit, static_argnames=('rule', 'max_len', 'rows'))
def _bigrams(alpha, eos_id=NEVER, *, rule='chow_log', max_len=30, rows=40):
  """Sampled answers of a pair of tables to prompts of one token, 0, 1 or 2."""
  prompt = Prompt(jnp.arange(rows)[:, None] % 3, jnp.ones(rows, jnp.int32))
  return token_cascade.generate(
    *map(Bigrams, TABLES), prompt, rule=rule, alpha=alpha, max_len=max_len, eos_id=eos_id,
    options=DecodingOptions(temperature=1.0),
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames='index')
def _alone(eos_id, *, index):
  prompt = Prompt(jnp.arange(40)[:, None] % 3, jnp.ones(40, jnp.int32))
  return decoding.generate(
    Bigrams(TABLES[index]), prompt, max_len=30, eos_id=eos_id, sampler=decoding.sample,
    key=jax.random.key(0),
  )  # fmt: skip


@pytest.mark.parametrize(('alpha', 'index'), [(1.1, 0), (-0.1, 1)])
def test_limits_are_either_model_alone_with_the_same_seed(alpha, index):
  for eos_id in (NEVER, 1):
    actual, expected = _bigrams(alpha, eos_id), _alone(eos_id, index=index)
    np.testing.assert_array_equal(actual.answer.tokens, expected.tokens)
    np.testing.assert_array_equal(actual.answer.mask, expected.mask)
    np.testing.assert_allclose(actual.answer.logprobs, expected.logprobs, atol=1e-6)
    length = np.sum(expected.mask, 1)
    np.testing.assert_array_equal(actual.counts.small_calls, length)
    np.testing.assert_array_equal(actual.counts.large_calls, length * index)
    np.testing.assert_array_equal(actual.counts.accepted, length * (1 - index))


def test_the_large_model_reads_the_prompts_only_if_an_answer_defers():
  prompts = []

  class Large(Bigrams):
    def prefill(self, prompt, max_len):
      jax.debug.callback(lambda length: prompts.append(len(length)), prompt.length)
      return super().prefill(prompt, max_len)

  @jax.jit
  def generate(alpha):
    prompt = Prompt(jnp.zeros((2, 1), jnp.int32), jnp.ones(2, jnp.int32))
    models = Bigrams(TABLES[0]), Large(TABLES[1])
    return token_cascade.generate(
      *models, prompt, rule='chow', alpha=alpha, max_len=2, eos_id=NEVER
    )  # fmt: skip

  for alpha, expected in ((1.0, []), (0.0, [2])):
    jax.block_until_ready(generate(alpha))
    jax.effects_barrier()
    assert prompts == expected


def test_calls_are_counted_as_a_simulation_counts_them():
  """A deferred token costs the prompt once, then a call for every started WIDTH of tokens."""
  for alpha, eos_id in ((1.0, NEVER), (0.85, 1)):
    actual = jax.tree.map(np.asarray, _bigrams(alpha, eos_id))
    longest = 0
    for row in range(40):
      last, read, calls, writers = row % 3, None, 0, []
      for t, token in enumerate(actual.answer.tokens[row, : int(actual.answer.mask[row].sum())]):
        writers.append(ENTROPIES[last] <= alpha)
        if not writers[-1]:
          calls += 1 if read is None else 0
          lag = t - (read or 0)
          calls, read, longest = calls + -(-lag // token_cascade.WIDTH), t, max(longest, lag)
        last = int(token)
      np.testing.assert_array_equal(actual.drafted[row, : len(writers)], writers)
      counts = [int(values[row]) for values in actual.counts]
      assert counts == [sum(writers), 0, len(writers), calls]
    assert longest > token_cascade.WIDTH or eos_id != NEVER


def test_sampled_tokens_have_the_law_of_the_cascade():
  """Chi-square over sequences of three tokens; the large model alone is refused."""
  rows, (q, p) = 30_000, TABLES
  tokens = np.asarray(_bigrams(0.4, rule='chow', max_len=3, rows=rows).answer.tokens)
  pi = np.where(q.max(1, keepdims=True) < 1 - 0.4, p, q)
  counts = np.bincount(tokens @ [9, 3, 1], minlength=27)
  law = lambda pi: np.einsum('xa,ab,bc->abc', pi, pi, pi).ravel() / 3
  assert stats.chisquare(counts, rows * law(pi)).pvalue > 1e-3
  assert stats.chisquare(counts, rows * law(p)).pvalue < 1e-9


def test_a_rule_that_reads_the_large_model_is_refused():
  with pytest.raises(ValueError, match='speculatively'):
    _bigrams(0.1, rule='diff')
  with pytest.raises(ValueError, match='max_len=0'):
    _bigrams(0.1, max_len=0)
