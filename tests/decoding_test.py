from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from cascades import decoding
from cascades.types import Batch, Generation, Prompt
from tests import testing

EOS, NEVER, MAX_LEN = 1, -1, 6
CONFIGS = {'t5': testing.TINY_T5, 'decoder': testing.TINY_EVERYTHING}
both = pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
draw = functools.partial(decoding.sample, temperature=2.0)


@functools.cache
def _compiled(config, sampler):
  """`generate` as programs compile it: over a plain dict of parameters."""
  graphdef, params = testing.split(testing.build(config))

  def generate(params, prompt, eos_id, key, row_ids):
    options = {'max_len': MAX_LEN, 'eos_id': eos_id, 'sampler': sampler, 'row_ids': row_ids}
    return decoding.generate(nnx.merge(graphdef, params), prompt, key=key, **options)

  return functools.partial(jax.jit(generate), params)


def _generate(config, prompt, *, sampler=decoding.greedy, eos_id=NEVER, seed=0, row_ids=None):
  row_ids = np.arange(len(prompt.length)) if row_ids is None else row_ids
  answer = _compiled(config, sampler)(prompt, eos_id, jax.random.key(seed), row_ids)
  return jax.tree.map(np.asarray, answer)


@functools.cache
def _score(config, block_length=None):
  graphdef, params = testing.split(testing.build(config))
  score = lambda params, batch: decoding.score(
    nnx.merge(graphdef, params), batch, block_length=block_length
  )
  return functools.partial(jax.jit(score), params)


def _prompt() -> Prompt:
  """Six rows of different lengths."""
  length = np.array([7, 4, 6, 2, 5, 7])
  tokens = np.asarray(testing.tokens((6, 7), seed=9)) * (np.arange(7) < length[:, None])
  return Prompt(tokens.astype(np.int32), length.astype(np.int32))


def _frequent_token(config) -> int:
  """A token that ends some greedy answers early and others not at all, to stand for EOS."""
  tokens = _generate(config, _prompt()).tokens
  inside = [t for t in range(3, testing.VOCAB) if 0 < (tokens == t).any(1).sum() < 6]
  return max(inside, key=lambda t: (tokens == t).any(1).sum())


def _teacher_forced(config, prompt: Prompt, answer: Generation) -> Batch:
  """The batch whose targets are the answers."""
  tokens, mask = answer.tokens, answer.mask
  if config.architecture == 'encoder_decoder':
    inputs = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    return Batch(inputs, tokens, mask.astype(np.float32), prompt.tokens)
  B, width = len(tokens), prompt.tokens.shape[1] + tokens.shape[1]
  text, weights = np.zeros((B, width), np.int32), np.zeros((B, width), np.float32)
  for b, length in enumerate(prompt.length):
    end = length + tokens.shape[1]
    text[b, :length], text[b, length:end] = prompt.tokens[b, :length], tokens[b]
    weights[b, length:end] = mask[b]
  return Batch(text[:, :-1], text[:, 1:], weights[:, 1:])


@both
def test_scoring_greedy_answers_finds_their_logprobs_again(config):
  eos_id = _frequent_token(config)
  prompt = _prompt()
  answer = _generate(config, prompt, eos_id=eos_id)
  batch = _teacher_forced(config, prompt, answer)
  logprobs, correct = map(np.asarray, _score(config)(batch)[:2])
  counts = batch.weights > 0
  assert 6 < counts.sum() < 6 * MAX_LEN  # some rows ended early
  np.testing.assert_allclose(logprobs[counts], answer.logprobs[answer.mask], atol=1e-5)
  assert correct[counts].all()  # greedy is the first choice
  assert (logprobs[~counts] == 0).all()
  assert not correct[~counts].any()


@both
def test_sampled_logprobs_are_untempered(config):
  prompt = _prompt()
  answer = _generate(config, prompt, sampler=draw)
  batch = _teacher_forced(config, prompt, answer)
  logprobs, correct = map(np.asarray, _score(config)(batch)[:2])
  counts = batch.weights > 0
  np.testing.assert_allclose(logprobs[counts], answer.logprobs[answer.mask], atol=1e-5)
  assert 0 < correct[counts].mean() < 1


@both
def test_an_answer_ends_with_its_first_end_of_sequence(config):
  eos_id = _frequent_token(config)
  free, ended = (_generate(config, _prompt(), eos_id=eos) for eos in (NEVER, eos_id))
  assert free.mask.all()
  for b in range(6):
    hits = np.flatnonzero(free.tokens[b] == eos_id)
    length = hits[0] + 1 if len(hits) else MAX_LEN
    np.testing.assert_array_equal(ended.mask[b], np.arange(MAX_LEN) < length)
    np.testing.assert_array_equal(ended.tokens[b, :length], free.tokens[b, :length])
    assert (ended.tokens[b, length:] == 0).all()
    assert (ended.logprobs[b, length:] == 0).all()
    assert (ended.logprobs[b, :length] < 0).all()


@both
def test_padding_order_and_other_rows_change_no_answer(config):
  prompt, order = _prompt(), np.array([3, 0, 5, 2])
  wider = Prompt(np.pad(prompt.tokens, ((0, 0), (0, 4)))[order], prompt.length[order])
  expected = _generate(config, prompt, sampler=draw)
  answer = _generate(config, wider, sampler=draw, row_ids=order)
  np.testing.assert_array_equal(answer.tokens, expected.tokens[order])
  np.testing.assert_allclose(answer.logprobs, expected.logprobs[order], atol=2e-5)


def test_rows_draw_apart_and_again_the_same():
  run = functools.partial(_generate, CONFIGS['t5'], sampler=draw)
  same = Prompt(np.tile(testing.tokens((1, 7)), (6, 1)), np.full(6, 7, np.int32))
  first = run(same)
  assert len({tuple(row) for row in first.tokens}) > 3
  np.testing.assert_array_equal(first.tokens, run(same).tokens)
  assert (first.tokens != run(same, seed=1).tokens).any()
  twins = run(same, row_ids=np.zeros(6, int))
  assert (twins.tokens == twins.tokens[:1]).all()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_first_choice_is_the_lowest_of_equal_tokens(dtype):
  logits = jnp.round(jax.random.normal(jax.random.key(0), (4, 9, 30))).astype(dtype)
  np.testing.assert_array_equal(decoding.argmax(logits), jnp.argmax(logits, -1))
  rows = jnp.array([[-jnp.inf, -jnp.inf], [0.0, jnp.inf], [jnp.nan, 1.0], [1.0, jnp.nan]])
  assert decoding.argmax(rows).tolist() == [0, 1, 0, 0]


def test_a_row_without_prompt_gets_no_answer():
  prompt, others = _prompt(), np.arange(6) != 2
  answer, expected = (
    _generate(CONFIGS['decoder'], p)
    for p in (prompt._replace(length=prompt.length * others), prompt)
  )
  assert not answer.mask[2].any()
  assert (answer.tokens[2] == 0).all()
  np.testing.assert_array_equal(answer.tokens[others], expected.tokens[others])


class _Countdown(NamedTuple):
  length: Array


class Countdown:
  """Model whose row b generates `prompt[b, 0]` tokens, the last EOS; it counts its steps."""

  def __init__(self) -> None:
    self.steps = 0

  def _count(self) -> None:
    self.steps += 1

  def _logits(self, left: Array) -> Array:
    return jax.nn.one_hot(jnp.where(left > 1, 2, EOS), 4) * 5.0

  def prefill(self, prompt: Prompt, max_len: int) -> tuple[Array, _Countdown]:
    return self._logits(prompt.tokens[:, 0]), _Countdown(prompt.tokens[:, 0])

  def extend(self, tokens: Array, cache: _Countdown) -> tuple[Array, _Countdown]:
    jax.debug.callback(self._count)
    left = cache.length - 1
    return self._logits(left)[:, None], _Countdown(left)


@pytest.mark.parametrize(
  ('lengths', 'max_len', 'steps'),
  [([1, 1], 50, 0), ([3, 1], 50, 2), ([4, 60], 7, 6), ([2, 2], 1, 0)],
)
def test_decoding_stops_when_all_rows_have_ended(lengths, max_len, steps):
  model = Countdown()
  prompt = Prompt(jnp.asarray(lengths)[:, None], jnp.ones(2, int))
  answer = jax.jit(lambda p: decoding.generate(model, p, max_len=max_len, eos_id=EOS))(prompt)
  jax.effects_barrier()
  assert model.steps == steps
  np.testing.assert_array_equal(answer.mask.sum(1), np.minimum(lengths, max_len))
  logprob = 5 - np.log(np.exp(5) + 3)
  np.testing.assert_allclose(np.asarray(answer.logprobs)[answer.mask], logprob, rtol=1e-5)


def _support(logits, temperature, top_k, top_p):
  """Tokens that may be drawn, by the definition."""
  scaled = np.float64(logits) / temperature
  order = sorted(range(len(logits)), key=lambda v: (-scaled[v], v))[: top_k or len(logits)]
  weights = np.exp(scaled[order] - scaled.max())
  support, total = [], 0.0
  for token, weight in zip(order, weights / weights.sum(), strict=True):
    support.append(token)
    total += weight
    if top_p is not None and total >= top_p:
      break
  return support


@settings(deadline=None, max_examples=60)
@given(
  logits=st.lists(st.integers(-4, 4), min_size=7, max_size=7),
  top_k=st.sampled_from([None, 1, 3, 20]),
  top_p=st.sampled_from([None, 0.11, 0.53, 0.97]),
)
def test_the_nucleus_against_its_oracle(logits, top_k, top_p):
  # Odd steps keep cumulative probabilities away from top_p, where rounding would decide.
  logits = np.float32(logits) * np.float32(0.7321)
  truncated, tokens = (
    np.asarray(x)[0] for x in _nucleus(logits[None], top_k=top_k, top_p=top_p)
  )  # fmt: skip
  inside, support = np.isfinite(truncated), _support(logits, 1.0, top_k, top_p)
  np.testing.assert_array_equal(tokens[inside], support)
  np.testing.assert_array_equal(truncated[inside], logits[support])


def test_the_nucleus_of_the_worked_example():
  logits = np.log(np.float32([[0.1, 0.5, 0.1, 0.3]]))
  truncated, tokens = decoding.nucleus(logits, top_p=0.7)
  np.testing.assert_array_equal(tokens, [[1, 3, 0, 2]])
  np.testing.assert_allclose(np.exp(truncated), [[0.5, 0.3, 0.0, 0.0]], rtol=1e-6)


_nucleus = jax.jit(decoding.nucleus, static_argnames=('top_k', 'top_p'))


@pytest.mark.parametrize('top_k', [None, 3, 20])
@pytest.mark.parametrize('top_p', [None, 0.53, 0.97])
def test_probabilities_are_those_of_the_sampler(top_k, top_p):
  logits = np.float32([[[0.3, -1.0, 1.4, 0.9, -0.2]], [[2.0, 0.1, 0.4, 1.9, -3.0]]])
  value = decoding.probabilities(logits, temperature=2.0, top_k=top_k, top_p=top_p)
  for row, probs in zip(logits[:, 0], np.asarray(value)[:, 0], strict=True):
    support = _support(row, 2.0, top_k, top_p)
    expected = np.zeros(5)
    expected[support] = np.exp(row[support] / 2) / np.exp(row[support] / 2).sum()
    np.testing.assert_allclose(probs, expected, rtol=1e-5)


def test_probabilities_at_temperature_0_are_the_greedy_choice():
  logits = jnp.asarray([[1.0, 3.0, 3.0], [0.0, -1.0, -2.0]], jnp.bfloat16)
  value = decoding.probabilities(logits, temperature=0.0)
  np.testing.assert_array_equal(value, np.eye(3)[decoding.greedy(logits)])
  assert value.dtype == jnp.float32
  with pytest.raises(ValueError, match='temperature=-1 must not be negative; 0 is greedy'):
    decoding.probabilities(logits, temperature=-1)


@pytest.mark.parametrize(
  ('temperature', 'top_k', 'top_p'), [(1.0, None, None), (0.5, 3, None), (2.0, 4, 0.8)]
)
def test_samples_follow_the_distribution(temperature, top_k, top_p):
  logits, n = np.float32([0.3, -1.0, 1.4, 0.9, -0.2]), 20_000
  support = _support(logits, temperature, top_k, top_p)
  weights = np.exp(logits[support] / temperature)
  expected = np.zeros(5)
  expected[support] = weights / weights.sum()
  sampler = jax.jit(
    functools.partial(decoding.sample, temperature=temperature, top_k=top_k, top_p=top_p)
  )
  drawn = sampler(jnp.tile(logits, (n, 1)), jax.random.split(jax.random.key(0), n))
  counts = np.bincount(drawn, minlength=5)
  assert (counts[expected == 0] == 0).all()
  seen = expected > 0
  chi2 = ((counts - n * expected)[seen] ** 2 / (n * expected[seen])).sum()
  assert chi2 < 20  # 4 degrees of freedom: p < 0.0005


def test_greedy_takes_the_lowest_of_equal_tokens():
  logits = jnp.asarray([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
  np.testing.assert_array_equal(decoding.greedy(logits), [1, 0])
  keys = jax.random.split(jax.random.key(0), 2)
  np.testing.assert_array_equal(decoding.sample(logits, keys, top_k=1), [1, 0])
  cold = decoding.sample(logits + jnp.asarray([0.0, 0.1, 0.0]), keys, temperature=1e-4)
  np.testing.assert_array_equal(cold, [1, 1])


def test_every_row_chooses_by_its_own_options():
  rows = [(0.0, None), (0.7, None), (1.3, 0.6), (0.0, 0.5), (1.3, None), (0.7, 1.0)]
  logits = jnp.asarray(np.random.RandomState(0).randn(len(rows), 40) * 2, jnp.float32)
  temperature, top_p = (np.float32([np.inf if x is None else x for x in c]) for c in zip(*rows))  # noqa: B905
  choose = jax.jit(decoding.choose)
  for seed in range(20):
    keys = jax.random.split(jax.random.key(seed), len(rows))
    tokens = choose(logits, keys, temperature=temperature, top_p=top_p)
    for row, (heat, mass) in enumerate(rows):
      alone = (logits[row : row + 1], keys[row : row + 1])
      expected = (
        decoding.sample(*alone, temperature=heat, top_p=mass) if heat else decoding.greedy(*alone)
      )
      assert tokens[row] == expected[0]
    greedy = choose(logits, keys, temperature=0 * temperature, top_p=top_p)
    np.testing.assert_array_equal(greedy, decoding.greedy(logits))


def test_wrong_settings_are_refused_in_a_sentence():
  logits, keys = jnp.zeros((1, 3)), jax.random.split(jax.random.key(0), 1)
  with pytest.raises(ValueError, match='needs a random key'):
    decoding.sample(logits)
  for message, options in (
    ('temperature=0 must be positive', {'temperature': 0}),
    ('top_k=0 must be at least 1', {'top_k': 0}),
    (r'top_p=1.5 must lie in \(0, 1\]', {'top_p': 1.5}),
  ):
    with pytest.raises(ValueError, match=message):
      decoding.sample(logits, keys, **options)
  with pytest.raises(ValueError, match='max_len=0 must be at least 1'):
    decoding.generate(Countdown(), testing.prompt(), max_len=0, eos_id=EOS)


@pytest.mark.parametrize('block_length', [1, 2, 10_000])
def test_scores_do_not_depend_on_the_block(block_length):
  config = CONFIGS['t5']
  batch = testing.batch(config)
  weights = batch.weights.at[1, 3:].set(0.0)
  model = testing.build(config)
  logits = jax.jit(lambda batch: model.readout(model.hidden(batch)))(batch)
  expected = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits)), np.asarray(batch.targets)[..., None], -1
  )[..., 0]
  logprobs, correct, _ = _score(config, block_length)(batch._replace(weights=weights))
  np.testing.assert_allclose(logprobs, np.where(weights > 0, expected, 0), atol=1e-5)
  right = (np.argmax(logits, -1) == batch.targets) & (weights > 0)
  np.testing.assert_array_equal(correct, right)


def test_scoring_never_holds_the_logits_of_a_batch():
  config = CONFIGS['t5']
  batch = testing.batch(config, rows=4, target=8)
  jaxpr = str(
    jax.make_jaxpr(lambda b: decoding.score(testing.build(config), b, block_length=2))(batch)
  )
  assert f'f32[8,{testing.VOCAB}]' in jaxpr  # two positions of four rows
  assert f'f32[4,8,{testing.VOCAB}]' not in jaxpr
  assert f'f32[32,{testing.VOCAB}]' not in jaxpr
