from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax import Array
from scipy import stats

from cascades import decoding, losses, target_distributions
from cascades.inference import speculation
from cascades.inference.answers import DecodingOptions
from cascades.target_distributions import RULES, target_distribution
from cascades.types import Batch, Prompt
from tests import speculative_oracles as oracles
from tests import testing

EOS, NEVER, MAX_LEN = 1, -1, 9
GREEDY = tuple(rule for rule in RULES if rule != 'ensemble')  # whose greedy target is two tokens
LONG = 21
LAWS = ('opt', 'token_v3', 'token_v1', 'ensemble')  # rules that share a program
LAW_LENGTH, ROWS = 5, 16_000
LARGE = {'t5': testing.TINY_T5, 'decoder': testing.TINY_EVERYTHING}
SMALL = {
  't5': dataclasses.replace(testing.TINY_T5, num_decoder_layers=1),
  'decoder': dataclasses.replace(testing.TINY_EVERYTHING, num_layers=2),
}
SAMPLED = DecodingOptions(temperature=0.7, top_k=20, top_p=0.95)


class Read(NamedTuple):
  """Cache of a table: it needs no more than its length and the last token."""

  length: Array

  def insert(self, row, other, other_row=0):
    raise NotImplementedError


class Bigrams:
  """Language model whose next token depends on the last one alone, so that laws can be summed."""

  def __init__(self, probabilities: np.ndarray):
    self.table = jnp.log(jnp.asarray(probabilities, jnp.float32))

  def prefill(self, prompt: Prompt, max_len: int):
    del max_len
    last = jnp.take_along_axis(prompt.tokens, prompt.length[:, None] - 1, 1)[:, 0]
    return self.table[last], Read(prompt.length)

  def extend(self, tokens, cache):
    return self.table[tokens], Read(cache.length + tokens.shape[1])


@functools.cache
def _compiled(name, gamma, rule, options=DecodingOptions()):
  """`generate` as programs compile it: over plain dicts of parameters, for any alpha and plan."""
  graphs, params = zip(
    *(testing.split(testing.build(c[name])) for c in (SMALL, LARGE)), strict=True
  )

  @jax.jit
  def generate(params, prompt, eos_id, alpha, row_ids, plan):
    models = map(nnx.merge, graphs, params)
    return speculation.generate(
      speculation.SpeculativePair(*models, RULES[rule].target, alpha, options), prompt,
      max_len=MAX_LEN, eos_id=eos_id, gamma=gamma, row_ids=row_ids, plan=plan,
    )  # fmt: skip

  return generate, params


def _speculate(
  name, prompt, *, gamma=3, rule='lossless', alpha=0.0, eos_id=NEVER, options=DecodingOptions(),
  row_ids=None, plan=None, drafter=None,
):  # fmt: skip
  generate, (small, large) = _compiled(name, gamma, rule, options)
  params = (small if drafter is None else drafter, large)
  row_ids = np.arange(len(prompt.length)) if row_ids is None else row_ids
  plan = plan or speculation.always(gamma)
  answers = generate(params, prompt, eos_id, jnp.float32(alpha), row_ids, plan)
  return jax.tree.map(np.asarray, answers)


@functools.cache
def _alone(name):
  graphdef, params = testing.split(testing.build(name))

  @jax.jit
  def generate(params, prompt, eos_id):
    return decoding.generate(nnx.merge(graphdef, params), prompt, max_len=MAX_LEN, eos_id=eos_id)

  return lambda prompt, eos_id=NEVER: jax.tree.map(np.asarray, generate(params, prompt, eos_id))


def _prompt() -> Prompt:
  """Five rows of different lengths, one of them padding of the batch."""
  length = np.array([7, 4, 0, 2, 6])
  tokens = np.asarray(testing.tokens((5, 7), seed=9)) * (np.arange(7) < length[:, None])
  return Prompt(tokens.astype(np.int32), length.astype(np.int32))


def _frequent_token(answer) -> int:
  """A token that ends some answers early, to stand for EOS."""
  inside = answer.tokens[answer.mask]
  return int(np.bincount(inside).argmax())


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
  ('name', 'gamma'),
  [
    ('t5', 3),
    ('decoder', 0),
    slow('decoder', 3),
    *(slow(n, g) for n in LARGE for g in (1, 2, 5, 8)),
  ],
)
def test_lossless_greedy_answers_are_those_of_the_large_model(name, gamma):
  alone = _alone(LARGE[name])
  for eos_id in (NEVER, _frequent_token(alone(_prompt()))):
    expected = alone(_prompt(), eos_id)
    actual = _speculate(name, _prompt(), gamma=gamma, eos_id=eos_id).answer
    np.testing.assert_array_equal(actual.tokens, expected.tokens)
    np.testing.assert_array_equal(actual.mask, expected.mask)
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=2e-5)


def _distilled(graph, params, batch, large_logits):
  """Parameters after 60 steps on the answers of a large model."""
  optimizer = optax.adam(1e-2)

  @jax.jit
  def learn(params):
    def loss(params):
      logits = testing.logits(graph, params, batch)
      return losses.distillspec_fkl(logits, large_logits, batch.targets, batch.weights)[0]

    def update(state, _):
      params, opt_state = state
      updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
      return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(update, (params, optimizer.init(params)), None, 60)[0][0]

  return learn(params)


def test_a_distilled_drafter_is_accepted_more_often_and_leaves_greedy_answers_as_they_were():
  """The acceptance at temperature 0 is the share of the answer that a drafter's argmax predicts."""
  expected = _alone(LARGE['t5'])(_prompt())
  batch = _teacher_forced(LARGE['t5'], _prompt(), expected)
  counted = np.asarray(batch.weights) > 0
  graph, start = testing.split(testing.build(SMALL['t5']))
  large_logits = testing.logits(*testing.split(testing.build(LARGE['t5'])), batch)
  one_hot = lambda x: target_distributions.distribution(x[counted], temperature=0.0).sampled
  acceptances, accepted, large_calls = [], [], []
  for drafter in (start, _distilled(graph, start, batch, large_logits)):
    logits = testing.logits(graph, drafter, batch)
    acceptances.append(np.minimum(one_hot(logits), one_hot(large_logits)).sum(-1).mean())
    agreed = (np.argmax(logits, -1) == batch.targets)[counted]
    assert acceptances[-1] == pytest.approx(agreed.mean())
    actual = _speculate('t5', _prompt(), drafter=drafter)
    np.testing.assert_array_equal(actual.answer.tokens, expected.tokens)
    accepted.append(actual.counts.accepted.sum())
    large_calls.append(actual.counts.large_calls.sum())
  assert acceptances[0] + 0.3 < acceptances[1]
  assert 1.5 * accepted[0] < accepted[1]
  assert large_calls[0] > 1.5 * large_calls[1]


@pytest.mark.parametrize('name', ['decoder', slow('t5')])
def test_limits_of_a_rule_are_either_model_alone(name):
  for alpha, config in ((-1e9, LARGE[name]), (1e9, SMALL[name])):
    expected = _alone(config)(_prompt())
    actual = _speculate(name, _prompt(), rule='opt', alpha=alpha)
    np.testing.assert_array_equal(actual.answer.tokens, expected.tokens)
  rows = _prompt().length > 0
  np.testing.assert_array_equal(actual.counts.rejected, 0)
  np.testing.assert_array_equal(actual.counts.large_calls[rows], 1 + -(-(MAX_LEN - 1) // 4))


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('t5', {}),
    ('t5', {'rule': 'token_v3', 'alpha': 0.4, 'options': SAMPLED}),
    ('decoder', {}),
    ('decoder', {'rule': 'opt'}),
  ],
)
def test_log_probabilities_are_those_of_scoring_the_answer(name, options):
  """Under a rule that needs the small model everywhere, and a lossless one, which does not."""
  actual = _speculate(name, _prompt(), **options)
  batch = _teacher_forced(LARGE[name], _prompt(), actual.answer)
  counted = np.asarray(batch.weights) > 0
  for config, logprobs in ((SMALL, actual.small_logprobs), (LARGE, actual.answer.logprobs)):
    logits = testing.logits(*testing.split(testing.build(config[name])), batch)
    expected = np.asarray(jax.nn.log_softmax(logits))[counted, batch.targets[counted]]
    values = logprobs[actual.answer.mask]
    read = ~np.isnan(values)
    assert read.mean() > (0.999 if options else 0.9)
    np.testing.assert_allclose(values[read], expected[read], atol=2e-5)


def _teacher_forced(config, prompt, answer) -> Batch:
  if config.architecture == 'encoder_decoder':
    inputs = np.pad(answer.tokens, ((0, 0), (1, 0)))[:, :-1]
    return Batch(inputs, answer.tokens, answer.mask.astype(np.float32), prompt.tokens)
  T = answer.tokens.shape[1]
  text = np.zeros((len(prompt.length), prompt.tokens.shape[1] + T), np.int32)
  weights = np.zeros(text.shape, np.float32)
  for b, length in enumerate(prompt.length):
    text[b, :length], text[b, length : length + T] = prompt.tokens[b, :length], answer.tokens[b]
    weights[b, length : length + T] = answer.mask[b]
  return Batch(text[:, :-1], text[:, 1:], weights[:, 1:])


@pytest.mark.parametrize(('name', 'rule'), [('t5', 'token_v3'), slow('decoder', 'lossless')])
def test_a_sampled_row_depends_neither_on_its_neighbors_nor_on_padding(name, rule):
  options = {'rule': rule, 'alpha': 0.4, 'options': SAMPLED}
  prompt, rows = _prompt(), np.array([4, 0, 3, 2, 1])
  together = _speculate(name, prompt, **options)
  padding = np.arange(7) >= prompt.length[rows, None]
  tokens = np.where(padding, 11, prompt.tokens[rows])
  length = np.where(rows == 0, 0, prompt.length[rows])  # another row is absent
  apart = _speculate(name, Prompt(tokens, length), row_ids=rows, **options)
  for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
    np.testing.assert_allclose(a[rows][rows != 0], b[rows != 0], atol=2e-5)
  assert len(np.unique(together.answer.tokens[[0, 1, 3, 4]], axis=0)) == 4


def test_work_is_counted_as_a_simulation_counts_it():
  """Greedy lossless blocks follow from where the small model agrees with the answer."""
  prompt, gamma = _prompt(), 3
  eos_id = _frequent_token(_alone(LARGE['decoder'])(prompt))
  actual = _speculate('decoder', prompt, gamma=gamma, eos_id=eos_id)
  assert actual.counts.accepted.sum() > 0 < actual.counts.rejected.sum()
  batch = _teacher_forced(LARGE['decoder'], prompt, actual.answer)
  logits = testing.logits(*testing.split(testing.build(SMALL['decoder'])), batch)
  agrees = np.asarray(jnp.argmax(logits, -1)) == batch.targets
  for row in np.flatnonzero(prompt.length):
    agreed = agrees[row][np.asarray(batch.weights[row]) > 0]
    accepted, rejected, small_calls, large_calls, written = 0, 0, 1, 1, 1
    while written < len(agreed):
      count = min(gamma, MAX_LEN - written - 1)
      prefix = int(np.cumprod(agreed[written : written + count]).sum())
      ended = written + prefix == len(agreed)
      accepted, rejected = accepted + prefix, rejected + (prefix < count and not ended)
      small_calls, large_calls = small_calls + max(count, 1), large_calls + 1
      written += prefix + 1
    counts = [int(values[row]) for values in actual.counts]
    assert counts == [accepted, rejected, small_calls, large_calls]


class Written(NamedTuple):
  """Cache of all tokens that were read, those beyond `length` included."""

  length: Array
  tokens: Array


class Sums:
  """Language model whose next token depends on the sum of all tokens before it."""

  def __init__(self, probabilities: np.ndarray):
    self.table = jnp.log(jnp.asarray(probabilities, jnp.float32))

  def prefill(self, prompt: Prompt, max_len: int):
    length = prompt.length
    tokens = jnp.pad(prompt.tokens, ((0, 0), (0, max_len)), constant_values=3)
    logits, _ = self.extend(tokens[:, :0], Written(length, tokens))
    return logits[:, -1], Written(length, tokens)

  def extend(self, tokens, cache):
    (B, L), start = tokens.shape, cache.length[:, None]
    written = cache.tokens.at[jnp.arange(B)[:, None], start + jnp.arange(L)].set(tokens)
    before = jnp.pad(jnp.cumsum(written, 1), ((0, 0), (1, 0)))
    sums = jnp.take_along_axis(before, start + jnp.arange(min(L, 1), L + 1), 1)
    return self.table[sums % len(self.table)], Written(cache.length + L, written)


@functools.cache
def _rows_of_sums(options, *, lossless, eos_id=NEVER):
  """Sampled rows of two tables, by the lossless rule, or by any of LAWS and alpha."""
  targets = [RULES[rule].target for rule in LAWS]
  switched = lambda q, p, alpha, number: jax.lax.switch(number, targets, q, p, alpha)

  @jax.jit
  def generate(q, p, number, alpha, plan):
    target = RULES['lossless'].target if lossless else functools.partial(switched, number=number)
    pair = speculation.SpeculativePair(Sums(q), Sums(p), target, alpha, options)
    prompt = Prompt(jnp.ones((ROWS, 1), jnp.int32), jnp.ones(ROWS, jnp.int32))
    return speculation.generate(pair, prompt, max_len=LAW_LENGTH, eos_id=eos_id, gamma=2, plan=plan)

  return generate


def _law_of_sums(pi):
  """Probabilities of all answers to a prompt of sum 1, by their tokens as digits."""
  law = np.ones(())
  for answer in range(LAW_LENGTH):
    sums = 1 + sum(np.indices((len(pi),) * answer))
    law = law[..., None] * pi[sums % len(pi)]
  return law.ravel()


def _p_value(counts, law):
  """Of the chi-square test over answers, those that are expected less than five times together."""
  seldom = ROWS * law < 5
  expected = np.append(ROWS * law[~seldom], max(ROWS * law[seldom].sum(), 1e-9))
  return stats.chisquare(np.append(counts[~seldom], counts[seldom].sum()), expected).pvalue


PLAIN, CUT = DecodingOptions(temperature=1.0), DecodingOptions(temperature=0.8, top_p=0.8)
TOP = DecodingOptions(temperature=1.3, top_k=2)
ADAPTIVE = speculation.DraftPlan(np.array([0, 1, 2], np.int32), np.float32(1), np.float32(1))


@pytest.mark.parametrize(
  ('rule', 'alpha', 'options', 'plan', 'shortlist'),
  [
    ('opt', 0.0, PLAIN, None, 3),
    ('token_v3', 0.3, PLAIN, None, 3),
    ('token_v1', 0.1, PLAIN, None, 3),
    ('ensemble', 0.4, PLAIN, None, 3),
    ('opt', 0.0, CUT, None, 3),
    ('lossless', 0, PLAIN, None, 3),
    ('lossless', 0, PLAIN, ADAPTIVE, 3),
    ('lossless', 0, PLAIN, None, 2),  # the third token is never drafted
    ('lossless', 0, TOP, ADAPTIVE, 3),
  ],
)
def test_sampled_answers_have_the_law_of_the_target_distribution(
  rule, alpha, options, plan, shortlist
):
  """Chi-square over whole answers, of several blocks; drawing from another model is refused."""
  q, p = np.float32(np.random.RandomState(3).dirichlet(np.ones(3), (2, 3)))
  q = np.where(np.arange(3) < shortlist, q, 0)
  generate = _rows_of_sums(options, lossless=rule == 'lossless')
  number = LAWS.index(rule) if rule in LAWS else 0
  answers = generate(q, p, number, jnp.float32(alpha), plan or speculation.always(2))
  tokens = np.asarray(answers.answer.tokens)
  counts = np.bincount(np.ravel_multi_index(tuple(tokens.T), (3,) * LAW_LENGTH), minlength=243)

  def p_value(pi):
    return _p_value(counts, _law_of_sums(np.float64(pi) / np.float64(pi).sum(-1, keepdims=True)))

  cuts = {'temperature': options.temperature, 'top_k': options.top_k, 'top_p': options.top_p}
  q, p = (target_distributions.distribution(jnp.log(table), **cuts) for table in (q, p))
  assert p_value(target_distribution(q, p, rule=RULES[rule].target, alpha=alpha)) > 1e-3
  assert p_value((q if rule == 'lossless' else p).sampled) < 1e-9
  assert answers.counts.accepted.sum() > ROWS / 8 < answers.counts.rejected.sum()
  if plan:
    alone = np.isnan(answers.small_logprobs).any(1)
    assert 0 < alone.mean() < 1  # some rows were ended by the large model


def _untempered_by_mistake(q, p, alpha):
  """`token_v3` that reads its peaks from the distributions that are drawn from."""
  return RULES['token_v3'].target(*(d._replace(untempered=d.sampled) for d in (q, p)), alpha)


def _with_bonus_of_the_large_model(monkeypatch):
  """`token_v3` in a loop whose token after accepted drafts has the large model's law."""
  rule, original = ['token_v3'], speculation.speculative.verify_by_position

  def verify(keys, drafts, distributions, drafted):
    def at(row, position):
      rule[:] = ['lossless']
      _, p = distributions(row, position)
      rule[:] = ['token_v3']
      q, pi = distributions(row, position)
      return q, jnp.where(position == drafted[row], p, pi)

    return original(keys, drafts, at, drafted)

  monkeypatch.setattr(speculation.speculative, 'verify_by_position', verify)
  return lambda q, p, alpha: RULES[rule[0]].target(q, p, alpha)


@pytest.mark.slow
@pytest.mark.parametrize('mutant', ['none', 'tempered peaks', 'bonus from p'])
def test_the_law_of_the_loop_is_missed_by_what_implementations_get_wrong(mutant, monkeypatch):
  options = DecodingOptions(temperature=0.5)
  target = {
    'none': lambda: RULES['token_v3'].target,
    'tempered peaks': lambda: _untempered_by_mistake,
    'bonus from p': lambda: _with_bonus_of_the_large_model(monkeypatch),
  }[mutant]()
  q, p = np.float32(np.random.RandomState(3).dirichlet(np.ones(3), (2, 3)))

  @jax.jit
  def generate():
    pair = speculation.SpeculativePair(Sums(q), Sums(p), target, jnp.float32(0.8), options)
    prompt = Prompt(jnp.ones((ROWS, 1), jnp.int32), jnp.ones(ROWS, jnp.int32))
    return speculation.generate(
      pair, prompt, max_len=LAW_LENGTH, eos_id=NEVER, gamma=2, plan=speculation.always(2)
    )

  tokens = np.asarray(generate().answer.tokens)
  counts = np.bincount(np.ravel_multi_index(tuple(tokens.T), (3,) * LAW_LENGTH), minlength=243)
  models = (target_distributions.distribution(jnp.log(x), temperature=0.5) for x in (q, p))
  pi = np.float64(target_distribution(*models, rule=RULES['token_v3'].target, alpha=0.8))
  p_value = _p_value(counts, _law_of_sums(pi / pi.sum(-1, keepdims=True)))
  assert p_value > 1e-3 if mutant == 'none' else p_value < 1e-12


@functools.cache
def _sums(rules, options=DecodingOptions()):
  """Decoding with two given tables, by any of the rules and up to 5 drafts a block."""
  targets = [RULES[rule].target for rule in rules]

  @jax.jit
  def generate(q, p, prompt, number, alpha, eos_ids, plan, row_ids):
    pair = speculation.SpeculativePair(
      Sums(q), Sums(p), lambda q, p, alpha: jax.lax.switch(number, targets, q, p, alpha), alpha,
      options,
    )  # fmt: skip
    lossless = dataclasses.replace(pair, target=RULES['lossless'].target)
    return jax.lax.cond(
      number == rules.index('lossless'),
      *(
        lambda pair=pair: speculation.generate(
          pair, prompt, max_len=LONG, eos_id=eos_ids, gamma=5, plan=plan, row_ids=row_ids
        )
        for pair in (lossless, pair)
      ),
    )

  def run(
    rule, q, p, prompt, alpha, *, eos_ids=(NEVER, NEVER), gamma=3, row_ids=(0, 1, 2, 3), plan=None
  ):
    arguments = q, p, prompt, rules.index(rule), np.float32(alpha), np.array(eos_ids)
    plan = plan or speculation.always(gamma)
    return jax.tree.map(np.asarray, generate(*arguments, plan, np.array(row_ids)))

  return run


def _simulated(q, pi, prompt, eos_ids, gamma):
  """Answer of one row and its counts, token by token: slow, and without caches or batches."""

  def best(table, *answer):
    return int(np.argmax(table[(sum(prompt) + sum(answer)) % len(table)]))

  if not prompt:
    return [], [0, 0, 0]
  answer, accepted, rejected, large_calls = [best(pi)], 0, 0, 1
  while len(answer) < LONG and answer[-1] not in eos_ids:
    large_calls += 1
    drafts = []
    for _ in range(min(gamma, LONG - len(answer) - 1)):
      drafts.append(best(q, *answer, *drafts))
    for drafted in [*drafts, None]:
      token = best(pi, *answer)
      answer.append(token)
      accepted += token == drafted
      rejected += drafted not in (token, None)
      if token != drafted or token in eos_ids:
        break
  return answer, [accepted, rejected, large_calls]


def _greedy_target(rule, q, p, alpha):
  """Oracle of the target at temperature 0 for each row of two tables."""
  one_hot = np.eye(q.shape[-1])
  rows = zip(q.astype(float), p.astype(float), strict=True)
  return np.stack([
    oracles.RULES[rule](one_hot[a.argmax()], one_hot[b.argmax()], a, b, alpha) for a, b in rows
  ])  # fmt: skip


@pytest.mark.parametrize(('rule', 'alpha'), [('token_v3', 0.3), ('ensemble', 0.4)])
def test_sampled_answers_end_by_the_law_of_the_target_distribution(rule, alpha):
  """Ends are drafted and accepted, and drawn in place of a draft."""
  end = 2
  q, p = np.float32(np.random.RandomState(3).dirichlet(np.ones(3), (2, 3)))
  generate = _rows_of_sums(PLAIN, lossless=False, eos_id=end)
  answers = generate(q, p, LAWS.index(rule), jnp.float32(alpha), speculation.always(2))
  mask, drafted = np.asarray(answers.answer.mask), np.asarray(answers.drafted)
  tokens = np.where(mask, answers.answer.tokens, end)
  ends = (tokens == end) & mask
  assert min((ends & drafted).sum(), (ends & ~drafted).sum()) > ROWS / 20
  assert not drafted[~mask].any()
  counts = np.bincount(np.ravel_multi_index(tuple(tokens.T), (3,) * LAW_LENGTH), minlength=243)
  pi = np.float64(target_distribution(q, p, rule=RULES[rule].target, alpha=alpha))
  law = np.zeros((3,) * LAW_LENGTH)
  for answer in np.ndindex(law.shape):
    length = answer.index(end) + 1 if end in answer else LAW_LENGTH
    if set(answer[length:]) <= {end}:  # which answers that have ended are padded with
      law[answer] = np.prod([pi[(1 + sum(answer[:i])) % 3][answer[i]] for i in range(length)])
  assert law.sum() == pytest.approx(1, abs=1e-5)
  assert _p_value(counts, law.ravel() / law.sum()) > 1e-3


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(data=st.data())
def test_the_loop_is_the_simulation_for_any_tables(data):
  """Every rule: blocks, roll-back, ends and budgets, for rows that advance differently."""
  random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label='seed'))
  q, other = np.float32(random.dirichlet(np.full(6, 0.5), (2, 6)))
  p = np.where(random.random((6, 1)) < 0.7, q, other)
  rule = data.draw(st.sampled_from(GREEDY), label='rule')
  low, high = oracles.span(rule)
  alpha = np.float32(low + data.draw(st.integers(1, 99), label='level') / 100 * (high - low))
  gamma = data.draw(st.integers(1, 5), label='gamma')
  eos_ids = data.draw(st.tuples(*[st.sampled_from([NEVER, 0])] * 2), label='ends')
  prompt = Prompt(random.integers(0, 6, (4, 3), np.int32), random.integers(0, 4, 4, np.int32))
  actual = _sums(GREEDY)(rule, q, p, prompt, alpha, eos_ids=eos_ids, gamma=gamma)
  pi = _greedy_target(rule, q, p, float(alpha))
  for row in range(4):
    read = prompt.tokens[row, : prompt.length[row]].tolist()
    answer, counts = _simulated(q, pi, read, eos_ids, gamma)
    assert actual.answer.tokens[row][actual.answer.mask[row]].tolist() == answer
    names = ('accepted', 'rejected', 'large_calls')
    assert [int(getattr(actual.counts, name)[row]) for name in names] == counts


@pytest.mark.parametrize('drafts', [(3, 3), (1, 5)], ids=['constant', 'by acceptance'])
@pytest.mark.parametrize('rule', RULES)
def test_sampled_rows_of_any_rule_depend_neither_on_their_neighbors_nor_on_padding(rule, drafts):
  random = np.random.default_rng(4)
  q, p = np.float32(random.dirichlet(np.full(6, 0.5), (2, 6)))
  prompt = Prompt(random.integers(0, 6, (4, 3), np.int32), np.array([3, 1, 2, 3], np.int32))
  rows, alpha = np.array([2, 0, 3, 1]), oracles.alphas(rule)[1]
  decode = _sums(tuple(RULES), DecodingOptions(temperature=0.8))
  plan = speculation.always(5)
  plan = plan._replace(lengths=plan.lengths.at[jnp.arange(2)].set(jnp.array(drafts)))
  together = decode(rule, q, p, prompt, alpha, plan=plan)
  padding = np.arange(3) >= prompt.length[rows, None]
  tokens = np.where(padding, 5, prompt.tokens[rows])
  absent = Prompt(tokens, np.where(rows == 3, 0, prompt.length[rows]))
  apart = decode(rule, q, p, absent, alpha, row_ids=rows, plan=plan)
  for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
    np.testing.assert_allclose(a[rows][rows != 3], b[rows != 3], atol=1e-5)
  assert len(np.unique(together.answer.tokens, axis=0)) == 4


def test_a_sampler_that_leaves_one_token_hides_no_peak():
  """top_k=1 at temperature 1 gives the greedy answers of every rule, which read the logits."""
  random = np.random.default_rng(6)
  q, p = np.float32(random.dirichlet(np.full(6, 0.5), (2, 6)))
  prompt = Prompt(random.integers(0, 6, (4, 3), np.int32), np.array([3, 1, 2, 3], np.int32))
  cut = _sums(tuple(RULES), DecodingOptions(temperature=1.0, top_k=1))
  greedy = _sums(GREEDY)
  answers = set()
  for rule in GREEDY:
    for alpha in oracles.alphas(rule)[1:]:
      actual, expected = (decode(rule, q, p, prompt, alpha) for decode in (cut, greedy))
      jax.tree.map(np.testing.assert_array_equal, actual, expected)
      answers.add(actual.answer.tokens.tobytes())
  assert len(answers) > 4  # more than those of either model
  for alpha, rule in ((0.0, 'small'), (1.0, 'large')):
    tokens = cut('ensemble', q, p, prompt, alpha).answer.tokens
    np.testing.assert_array_equal(tokens, greedy(rule, q, p, prompt, 0.0).answer.tokens)


def test_a_row_stops_drafting_when_its_drafts_are_rejected():
  always = speculation.always(3)
  plan = always._replace(
    lengths=always.lengths.at[0].set(0),  # below an estimate of 1/2
    accepted=3.0 * always.accepted,
    rejected=2.5 * always.rejected,
  )
  adaptive = _speculate('t5', _prompt(), plan=plan)
  constant = _speculate('t5', _prompt())
  np.testing.assert_array_equal(adaptive.answer.tokens, constant.answer.tokens)
  stopped = np.isnan(np.where(adaptive.answer.mask, adaptive.small_logprobs, 0)).sum(1) > 1
  assert stopped.any()
  assert (adaptive.counts.small_calls < constant.counts.small_calls)[stopped].all()
  assert (adaptive.counts.rejected < constant.counts.rejected)[stopped].all()


def test_a_run_compiles_one_program_for_all_alphas():
  generate, _ = _compiled('decoder', 3, 'opt')
  _speculate('decoder', _prompt(), rule='opt', alpha=0.1)
  size = generate._cache_size()
  for alpha in (0.2, -0.3):
    _speculate('decoder', _prompt(), rule='opt', alpha=alpha)
  assert generate._cache_size() == size


@pytest.mark.parametrize('numbers', [{'max_len': 0, 'gamma': 1}, {'max_len': 1, 'gamma': -1}])
def test_numbers_out_of_range_are_refused(numbers):
  pair = speculation.SpeculativePair(
    Bigrams(np.eye(3)), Bigrams(np.eye(3)), RULES['lossless'].target
  )
  prompt = Prompt(jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32))
  with pytest.raises(ValueError, match='max_len'):
    speculation.generate(pair, prompt, eos_id=EOS, **numbers)
