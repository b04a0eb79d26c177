"""Decisions: the scores of evaluation, policies, and bounds of answers that are not complete."""

import asyncio
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cascades import deferral, learned_deferral
from cascades.evaluation import fitted as fitted_files
from cascades.evaluation import policy, pooling
from cascades.serving import decisions, early_deferral, served_policy
from cascades.serving.calls import Call, Conduct
from cascades.serving.cascade import ServedCascade
from cascades.serving.decisions import Evidence
from cascades.serving.early_deferral import LEAST
from cascades.serving.exchanges import Message, Question, Token
from cascades.serving.legs import Member
from tests import synthetic_tables
from tests.serving.fake_models import FakeModel, rule

QUESTION = Question('a b', max_tokens=8)
LOGPROBS = st.lists(
  st.floats(-30, 0.0, width=32) | st.sampled_from([0.0, -0.5, -1.0]), min_size=1, max_size=12
)


def evidence(logprobs, tops=(), **numbers):
  alternatives = [tuple((b'', p) for p in each) for each in tops] or [()] * len(logprobs)
  tokens = [Token(b'x', p, each) for p, each in zip(logprobs, alternatives, strict=True)]
  return Evidence('x' * len(logprobs), tokens, numbers)


def with_alternatives(table):
  tops = np.stack([table.token_logprobs, table.token_logprobs - 1, table.token_logprobs - 2], -1)
  return table._replace(alternatives=early_deferral.as_stored(tops - 0.2))


@pytest.mark.parametrize('name', sorted(set(deferral.DECIDERS) - {'random', 'confidence'}))
def test_scores_are_those_of_evaluation_to_the_bit(name):
  table = with_alternatives(synthetic_tables.table('t', size=40))
  expected = deferral.DECIDERS[name].score(table)
  served = rule(0.5, name, alternatives=3).rules[0]
  for row, start in enumerate(np.cumsum(table.lengths) - table.lengths):
    own = slice(start, start + table.lengths[row])
    said = evidence(table.token_logprobs[own], table.alternatives[own])
    assert served.decide('small', QUESTION, pooling.POOLED, said).score == expected[row]


@pytest.mark.parametrize('name', LEAST)
@hypothesis.given(LOGPROBS, st.integers(0, 6), st.floats(0.01, 40))
@hypothesis.settings(max_examples=80, deadline=None)
def test_an_early_deferral_agrees_with_the_full_rule(name, logprobs, room, threshold):
  most = len(logprobs) + room
  served = rule(threshold, name).rules[0]
  full = served.decide('small', QUESTION, pooling.POOLED, evidence(logprobs))
  bound = served.least_score(most)
  for logprob in logprobs:
    least = bound.add(Token(b'x', logprob))
    assert least <= full.score  # no continuation, so not this one, scores less
    if least >= threshold:
      assert full.deferred


@hypothesis.given(LOGPROBS, st.integers(0, 6))
@hypothesis.settings(max_examples=50, deadline=None)
def test_the_bound_of_the_average_is_reached_by_the_best_continuation(logprobs, room):
  most = len(logprobs) + room
  bound = rule(1.0).rules[0].least_score(most)
  *_, least = [bound.add(Token(b'x', p)) for p in logprobs]
  best = (
    rule(1.0)
    .rules[0]
    .decide('small', QUESTION, pooling.POOLED, evidence([*logprobs, *[0.0] * room]))
  )
  assert least == best.score


@hypothesis.given(LOGPROBS, st.integers(1, 12), st.floats(0.01, 10), st.sampled_from(sorted(LEAST)))
@hypothesis.settings(max_examples=40, deadline=None)
def test_a_cascade_that_stops_early_answers_as_one_that_does_not(logprobs, most, threshold, name):
  def answered(stop_early):
    small = FakeModel('small', [('s', p) for p in logprobs])
    large = FakeModel('large', [('l', -0.1)])
    cascade = ServedCascade(
      {'small': Member(small), 'large': Member(large)},
      rule(threshold, name),
      conduct=Conduct(stop_early=stop_early),
    )

    async def ask():
      call = Call('id', Question('a', max_tokens=most))
      return [event async for event in cascade.answer(call)]

    text, exchange = asyncio.run(ask())
    return text.text, exchange.deferred, small.written

  *whole, all_tokens = answered(False)
  *early, tokens = answered(True)
  assert early == whole
  assert tokens <= all_tokens


def test_a_token_without_a_log_probability_ends_the_bound():
  bound = rule(1.0, 'minimum').rules[0].least_score(4)
  assert bound.add(Token(b'x', -3.0)) == 3.0
  assert bound.add(Token(b'x', None)) == -np.inf
  assert bound.add(Token(b'x', -9.0)) == -np.inf


@pytest.mark.parametrize(('decider', 'alternatives', 'message'), [
  ('random', 0, "DECIDER='random' scores rows by their number"),
  ('confidence', 0, 'reads confidence, which a server does not have'),
  ('margin', 1, 'set ALTERNATIVES to the number .* 2 or more'),
  ('entropy', 0, 'set ALTERNATIVES'),
  ('nope', 0, 'There is no decider'),
])  # fmt: skip
def test_deciders_that_a_server_cannot_run_are_refused(decider, alternatives, message):
  with pytest.raises(ValueError, match=message):
    rule(0.5, decider, alternatives=alternatives)


def test_prompts_of_chats_are_read_as_one_text():
  chat = (Message('system', 'be brief'), Message('user', 'a b'))
  assert decisions.prompt_text(Question(chat)) == 'be brief\n\na b'
  assert decisions.prompt_text(Question((Message('user', 'a b'),))) == 'a b'


def stored(tmp_path, *, thresholds=None, tasks=('t',), **changes):
  """A policy on disk."""
  entries = [
    {
      'task': task, 'threshold': value, 'rows': 2, 'promises': [],
      'deferral_rate': {'value': 0.5, 'low': 0.1, 'high': 0.9},
      'quality': {'value': 0.5, 'low': 0.1, 'high': 0.9}, 'cost': 1.0,
      'edges': [0.1, 0.2], 'ties': [0.0, 0.0], 'gaps': [1, 1, 1],
    }
    for task, value in (thresholds or {pooling.POOLED: 0.5}).items()
  ]  # fmt: skip
  content = {
    'version': 1, 'models': {'small': {'name': 's'}, 'large': {'name': 'l'}},
    'decider': {'name': 'average', 'reads': ['token_logprobs'], 'flops': 0.0},
    'metric': {'name': 'accuracy', 'surrogate': False, 'higher_is_better': True},
    'cost_axis': 'flops', 'thresholds': entries,
    'data': {'tasks': {task: {} for task in tasks}}, 'method': '', 'provenance': {},
  } | changes  # fmt: skip
  path = tmp_path / 'policy.json'
  path.write_text(json.dumps(content))
  return path


def test_a_policy_of_all_tasks_is_that_of_each(tmp_path):
  read = served_policy.from_file(str(stored(tmp_path, tasks=('t', 'u'))))
  assert read.task == pooling.POOLED
  assert read.rules[0].thresholds == {pooling.POOLED: 0.5, 't': 0.5, 'u': 0.5}
  assert read.digest == policy.file_digest(str(tmp_path / 'policy.json'))


def test_a_policy_by_task_asks_which_task_requests_have(tmp_path):
  path = str(stored(tmp_path, thresholds={'t': None, 'u': 0.25}, tasks=('t', 'u')))
  with pytest.raises(ValueError, match='thresholds of t, u: name the task'):
    served_policy.from_file(path)
  read = served_policy.from_file(path, task='u')
  assert (read.task, read.rules[0].thresholds) == ('u', {'t': np.inf, 'u': 0.25})
  with pytest.raises(ValueError, match="POLICY_TASK='v' has no threshold"):
    served_policy.from_file(path, task='v')


def test_a_learned_decider_scores_prompts_that_it_was_fitted_on(tmp_path):
  table = synthetic_tables.table('t', size=60)
  gains = np.random.default_rng(0).random(60).round()
  learned = learned_deferral.fit(
    'mine', learned_deferral.METHODS['logistic'], table, gains, np.ones(60)
  )
  path = fitted_files.write(tmp_path, learned)
  entry = {
    'name': 'mine', 'reads': ['token_logprobs'], 'flops': 0.0, 'fitted': str(path),
    'digest': policy.file_digest(str(path)),
  }  # fmt: skip
  read = served_policy.from_file(str(stored(tmp_path, decider=entry)))
  question = Question(table.inputs[0], max_tokens=4)
  with pytest.raises(learned_deferral.LeakError):
    learned.decider().score(table)
  made = read.rules[0].decide('small', question, pooling.POOLED, evidence([-0.1, -2.0]))
  assert np.isfinite(made.score)
  assert made.flag == ''
  path.write_text(path.read_text().replace('"rows"', ' "rows"'))
  with pytest.raises(ValueError, match='not the decider of the policy, but another'):
    served_policy.from_file(str(tmp_path / 'policy.json'))


def test_a_learned_router_decides_before_any_answer(tmp_path):
  table = synthetic_tables.table('t', size=60)
  gains = np.random.default_rng(0).random(60).round()
  learned = learned_deferral.fit(
    'router', learned_deferral.METHODS['linear_router_words'], table, gains, np.ones(60)
  )
  path = str(fitted_files.write(tmp_path, learned))
  entry = {
    'name': 'router', 'reads': ['inputs'], 'flops': 0.0, 'fitted': path,
    'digest': policy.file_digest(path),
  }  # fmt: skip
  scores = learned._replace(
    arrays={**learned.arrays, 'fit_ids': table.lengths[:0], 'fit_inputs': table.lengths[:0]}
  )._score(table)
  distinct = np.unique(scores.round(9))
  middle = len(distinct) // 2
  threshold = float(distinct[middle - 1 : middle + 1].mean())  # between two scores
  rule = served_policy.from_file(
    str(stored(tmp_path, decider=entry, thresholds={pooling.POOLED: threshold}))
  )
  small, large = FakeModel('small', [('s', -0.1)]), FakeModel('large', [('l', -0.1)])
  cascade = ServedCascade({'small': Member(small), 'large': Member(large)}, rule)

  async def ask(prompt):
    call = Call('id', Question(prompt, max_tokens=4))
    *_, exchange = [event async for event in cascade.answer(call)]
    return exchange

  for prompt, score in zip(table.inputs, scores, strict=True):
    exchange = asyncio.run(ask(prompt))
    assert exchange.score == pytest.approx(score, rel=1e-12)  # matrices round by their size
    assert (exchange.author == 'large') == (score >= threshold)
    assert len(exchange.legs) == 1
