"""Chains of three models: who answers, failures, audits, and policies that change."""

import asyncio
import math

import numpy as np
import pytest

from cascades import learned_deferral
from cascades.costs import Prices
from cascades.evaluation import chain_policy, policy
from cascades.evaluation import fitted as fitted_files
from cascades.serving import response_forms, served_policy
from cascades.serving.budgets import Ceilings, Ledger
from cascades.serving.calls import Call, Conduct, Replaced
from cascades.serving.cascade import ServedCascade
from cascades.serving.exchange_rows import of_exchange
from cascades.serving.exchanges import ModelError, Question, Routed
from cascades.serving.keys import ApiKey
from cascades.serving.legs import Member
from cascades.serving.live_policy import LivePolicy
from cascades.serving.refusals import Refusal
from tests import synthetic_tables
from tests.serving import replayed_models
from tests.serving.cascade_test import text_of
from tests.serving.fake_models import END, FakeModel, rule
from tests.serving.replayed_models import NAMES, level

SURE, UNSURE = -0.1, -3.0
QUESTION = Question('a b', max_tokens=8)


class Chain:
  """A cascade of three fakes, each of some log-probability, and what it recorded."""

  def __init__(self, *logprobs, thresholds=(0.5, 0.5), policy=None, **options):
    self.models = {
      name: FakeModel(name, [(name, logprob), (' says', logprob), END])
      for name, logprob in zip(NAMES, logprobs, strict=True)
    }
    self.records = []
    conduct = Conduct(**{'stop_early': False} | options.pop('conduct', {}))
    members = {name: Member(model, Prices(1.0, 10.0)) for name, model in self.models.items()}
    self.cascade = ServedCascade(
      members, policy or rule(thresholds), conduct=conduct, record=self.records.append, **options
    )

  def __getitem__(self, name):
    return self.models[name]

  def ask(self, **call):
    async def run():
      return [event async for event in self.cascade.answer(Call('id', QUESTION, **call))]

    *events, exchange = asyncio.run(run())
    return text_of(events), exchange, events

  @property
  def asked(self):
    return [name for name, model in self.models.items() if model.questions]


def routed(role, thresholds=(0.5, 0.5, None)):
  own = served_policy.from_threshold('average', [t for t in thresholds if t is not None])
  rules = own.rules[:3] if thresholds[-1] is not None else own.rules
  return served_policy.ServedPolicy(
    rules, 'all tasks', NAMES, named=True, router=lambda *_: Routed(role, 0.25, 0.5, 0.125)
  )


@pytest.mark.parametrize('live', [False, True])
@pytest.mark.parametrize(('logprobs', 'author', 'deferred'), [
  ((SURE, SURE, SURE), '1b', [False]), ((UNSURE, SURE, SURE), '8b', [True, False]),
  ((UNSURE, UNSURE, SURE), '70b', [True, True]),
])  # fmt: skip
def test_the_first_sure_answer_is_final(live, logprobs, author, deferred):
  chain = Chain(*logprobs)
  text, exchange, events = chain.ask(live=live)
  assert (text, exchange.author, exchange.flag) == (f'{author} says', author, '')
  asked = NAMES.index(author) + 1
  assert chain.asked == [*NAMES[:asked]]
  assert [decision.role for decision in exchange.decisions] == [*NAMES[: len(deferred)]]
  assert [decision.deferred for decision in exchange.decisions] == deferred
  assert exchange.discarded_tokens == 3 * (asked - 1)
  assert exchange.legs[-1].dollars == 5 + 30
  if live and author == '70b':
    assert len(events) > 1  # the last model is passed on as it writes


def test_the_response_tells_of_each_level_and_model():
  _, exchange, _ = Chain(UNSURE, SURE, SURE).ask()
  told = response_forms.cascade(exchange, ())
  assert [(each['role'], each['deferred']) for each in told['levels']] == [
    ('1b', True), ('8b', False)
  ]  # fmt: skip
  assert [each['threshold'] for each in told['levels']] == [0.5, 0.5]
  assert [each['model'] for each in told['models']] == ['1b', '8b']
  assert (told['router'], told['audit'], told['dollars']) == (None, False, 70.0)


def test_a_last_level_with_a_threshold_abstains():
  policy = served_policy.from_threshold('average', (0.5, 0.5, 0.5))
  abstaining = served_policy.ServedPolicy(policy.rules[:3], 'all tasks', NAMES, named=True)
  chain = Chain(UNSURE, UNSURE, UNSURE, policy=abstaining)
  text, exchange, events = chain.ask(live=True, provisional=True)
  assert (text, exchange.author, exchange.flag) == ('', None, 'abstained')
  assert exchange.discarded_tokens == 9
  assert events[-1] == Replaced()
  assert response_forms.cascade(exchange, ())['author'] is None
  assert Chain(UNSURE, UNSURE, SURE, policy=abstaining).ask()[1].author == '70b'


@pytest.mark.parametrize('role', NAMES)
def test_a_router_chooses_where_a_request_begins(role):
  chain = Chain(UNSURE, UNSURE, SURE, policy=routed(role))
  _, exchange, _ = chain.ask()
  assert chain.asked == [*NAMES[NAMES.index(role) :]]
  assert (exchange.author, exchange.routed.role) == ('70b', role)
  told = response_forms.cascade(exchange, ())['router']
  assert told == {'model': role, 'predicted_loss': 0.25, 'drift': 0.5}
  assert exchange.decision_seconds >= 0.125
  (_, row), *_ = of_exchange(exchange)
  assert row['aux']['router']['model'] == role


def test_a_router_may_leave_a_request_to_nobody():
  chain = Chain(SURE, SURE, SURE, policy=routed(''))
  text, exchange, _ = chain.ask()
  assert (text, exchange.author, exchange.flag, chain.asked) == ('', None, 'abstained', [])


def test_a_provisional_stream_is_replaced_level_by_level():
  chain = Chain(UNSURE, UNSURE, SURE)
  text, _, events = chain.ask(live=True, provisional=True)
  assert text == '70b says'
  assert events.count(Replaced()) == 2
  assert Replaced() not in chain.ask(live=True)[2]


@pytest.mark.parametrize(('down', 'kept'), [(['70b'], '8b'), (['8b'], '1b'), (['8b', '70b'], '1b')])
def test_a_later_model_that_is_down_leaves_the_answer_of_the_last_one_reached(down, kept):
  chain = Chain(UNSURE, UNSURE, SURE)
  for name in down:
    chain[name].errors.append(ModelError('down'))
  text, exchange, _ = chain.ask(live=True)
  assert (text, exchange.author) == (f'{kept} says', kept)
  assert exchange.flag == f'{down[0]} model failed'
  assert len(chain[kept].questions) == 1  # not asked again


def test_a_model_that_the_router_chose_and_is_down_is_replaced_by_the_one_before():
  chain = Chain(UNSURE, UNSURE, SURE, policy=routed('70b'))
  chain['70b'].errors.append(ModelError('down'))
  chain['8b'].errors.append(ModelError('down too'))
  _, exchange, _ = chain.ask()
  assert (exchange.author, exchange.flag) == ('1b', '70b model failed')


def test_refuse_and_wait_hold_for_every_level(monkeypatch):
  async def sleep(seconds, real=asyncio.sleep):
    await real(0)

  monkeypatch.setattr(asyncio, 'sleep', sleep)
  chain = Chain(UNSURE, UNSURE, SURE, conduct={'degrade': 'refuse'})
  chain['8b'].errors.append(ModelError('down'))
  with pytest.raises(Refusal, match='8b model cannot answer now: down'):
    chain.ask()
  assert chain.records[0].flag == '8b model failed'
  chain = Chain(UNSURE, UNSURE, SURE, conduct={'degrade': 'wait'})
  chain['8b'].errors.append(ModelError('down'))
  text, exchange, _ = chain.ask()
  assert (text, exchange.flag, len(exchange.legs)) == ('70b says', '', 4)


def test_each_level_stops_early():
  chain = Chain(UNSURE, UNSURE, SURE, thresholds=(0.7, 0.7), conduct={'stop_early': True})
  _, exchange, _ = chain.ask()
  assert [decision.is_bound for decision in exchange.decisions] == [True, True]
  assert [chain[name].written for name in NAMES] == [2, 2, 3]


def test_an_audited_request_is_answered_by_all_models_and_decided_as_ever():
  draws = iter([0.05, 0.5])
  chain = Chain(
    SURE, SURE, SURE, conduct={'audit_share': 0.1, 'stop_early': True}, draw=lambda: next(draws)
  )
  text, audited, _ = chain.ask(live=True)
  assert (text, audited.author, audited.is_audit) == ('1b says', '1b', True)
  assert audited.answered == NAMES
  assert [leg.is_audit for leg in audited.legs] == [False, True, True]
  assert audited.discarded_tokens == 0
  told = response_forms.cascade(audited, ())
  assert (told['audit'], told['dollars']) == (True, 105.0)
  rows = of_exchange(audited)
  assert [stream for stream, _ in rows] == [*NAMES]
  assert [row['aux']['answered'] for _, row in rows] == ['all'] * 3
  assert all(row['aux']['audit'] for _, row in rows)
  _, other, _ = chain.ask()
  assert (other.is_audit, other.answered) == (False, ('1b',))


def test_audited_requests_are_not_stopped_early_and_outlive_failures():
  chain = Chain(
    UNSURE, SURE, SURE, conduct={'audit_share': 1.0, 'stop_early': True}, draw=lambda: 0.0
  )
  chain['70b'].errors.append(ModelError('down'))
  text, exchange, _ = chain.ask()
  assert (text, exchange.flag, exchange.status) == ('8b says', '', 200)
  assert [leg.error for leg in exchange.legs] == ['', '', 'down']
  assert chain['1b'].written == 3
  assert of_exchange(exchange)[0][1]['aux']['answered'] == 'some'
  assert not chain.ask(role='8b')[1].is_audit


def test_audits_are_charged_to_the_server_and_not_to_the_client():
  ledger = Ledger(Ceilings(tokens_per_day=1000))
  chain = Chain(SURE, SURE, SURE, conduct={'audit_share': 1.0}, draw=lambda: 0.0, ledger=ledger)
  chain.ask(key=ApiKey('alice', b''))
  assert (ledger.spent('alice').tokens, ledger.spent().tokens) == (8, 24)


def test_a_shadow_is_followed_as_far_as_models_have_answered():
  shadow = rule((0.01, 0.01))
  exchange = Chain(SURE, SURE, SURE, shadow=shadow).ask()[1]
  assert exchange.shadow[2:] == (True, None)  # the second model has not answered
  exchange = Chain(UNSURE, UNSURE, SURE, shadow=rule((9.0, 9.0))).ask()[1]
  assert exchange.shadow[2:] == (False, '1b')
  exchange = Chain(UNSURE, SURE, SURE, shadow=routed('8b')).ask()[1]
  assert exchange.shadow[1:] == (0.5, False, '8b')
  exchange = Chain(SURE, SURE, SURE, shadow=routed('')).ask()[1]
  assert exchange.shadow == (None, None, False, '')


def test_thresholds_are_one_for_each_model_but_the_last():
  with pytest.raises(ValueError, match='for 2 models, and the server has 1b, 8b, 70b'):
    Chain(SURE, SURE, SURE, thresholds=0.5)


def test_a_policy_names_the_models_of_the_server_in_any_order(tmp_path):
  read = served_policy.from_file(
    str(replayed_models.write_chain(tmp_path, [level(0.2)] * 2 + [None]))
  )
  assert read.of(['70b', '1b', '8b']).roles == NAMES
  with pytest.raises(ValueError, match='for the models 1b, 8b, 70b, and the server has 1b, 8b: '):
    read.of(['1b', '8b'])
  lines = '\n'.join(read.lines())
  assert '1b: average, after its answer, goes on to 8b from a score of all tasks: 0.2' in lines
  assert '70b: answers what reaches it' in lines


def test_a_policy_of_a_chain_takes_effect_when_it_changes_and_a_damaged_one_does_not(tmp_path):
  path = replayed_models.write_chain(tmp_path, [level(0.5), level(0.5), None])
  chain = Chain(UNSURE, UNSURE, SURE, policy=served_policy.from_file(str(path)))
  notes = {}
  live = LivePolicy(
    str(path), lambda: served_policy.from_file(str(path)).of(NAMES),
    lambda policy: setattr(chain.cascade, 'policy', policy), notes,
  )  # fmt: skip
  replayed_models.write_chain(tmp_path, [level(9.0), level(0.5), None])
  assert asyncio.run(live.look())
  assert chain.ask()[1].author == '1b'
  for levels, reason in (
    ([level(0.5), None], '2 of 3 models'),
    ([None, level(0.5), None], 'never asked'),
    ([level(0.5, 'confidence'), level(0.5), None], 'confidence'),
  ):
    replayed_models.write_chain(tmp_path, levels)
    assert not asyncio.run(live.look())
    assert reason in notes['POLICY']
    assert chain.ask()[1].author == '1b'


def test_a_router_that_has_changed_or_names_other_models_is_refused(tmp_path):
  replayed_models.write_router(tmp_path)
  levels = [level(0.5), level(0.5), None]
  path = replayed_models.write_chain(tmp_path, levels, routed=True)
  assert served_policy.from_file(str(path)).router is not None
  models = {name: {} for name in ('1b', '8b', 'other')}
  other = replayed_models.write_chain(tmp_path, levels, routed=True, models=models)
  with pytest.raises(ValueError, match='the chain has no 70b: fit the router on models'):
    served_policy.from_file(str(other))
  path = replayed_models.write_chain(tmp_path, levels, routed=True)
  replayed_models.write_router(tmp_path, price=0.5)
  with pytest.raises(ValueError, match='has changed since'):
    served_policy.from_file(str(path))
  (tmp_path / 'router.policy.json').unlink()
  with pytest.raises(FileNotFoundError, match='lay it beside'):
    served_policy.from_file(str(path))


def test_a_policy_of_two_still_loads_and_a_longer_one_says_what_it_is(tmp_path):
  path = replayed_models.write_chain(tmp_path, [level(0.5), level(math.pi), None])
  assert isinstance(chain_policy.read_any(path), chain_policy.ChainPolicy)
  with pytest.raises(ValueError, match='version: 2 is the policy of a chain'):
    policy.read(path)


def test_thresholds_by_task_hold_at_each_level(tmp_path):
  by_task = level(0.5) | {'thresholds': {'t': 9.0, 'u': 0.5}}
  data = {'tasks': {'t': {}, 'u': {}}}
  path = replayed_models.write_chain(tmp_path, [by_task, by_task, None], data=data)
  with pytest.raises(ValueError, match='has thresholds of t, u: name the task'):
    served_policy.from_file(str(path))
  chain = Chain(UNSURE, SURE, SURE, policy=served_policy.from_file(str(path), task='t'))
  assert [chain.ask(task=task)[1].author for task in (None, 't', 'u')] == ['1b', '1b', '8b']
  path = replayed_models.write_chain(tmp_path, [by_task, level(0.5), None], data=data)
  assert served_policy.from_file(str(path), task='u').tasks == ('t', 'u')
  path = replayed_models.write_chain(tmp_path, [by_task, level(0.5), None])
  assert served_policy.from_file(str(path), task='u').tasks == ('t', 'u')
  path = replayed_models.write_chain(
    tmp_path, [by_task, level(0.5), None], data={'tasks': {'v': {}}}
  )
  with pytest.raises(ValueError, match='leaves out v'):
    served_policy.from_file(str(path))


def test_a_learned_decider_that_a_server_cannot_feed_is_refused_by_name(tmp_path):
  table = synthetic_tables.table('t', size=60)
  vectors = np.random.default_rng(0).normal(size=(60, 3))
  fitted = learned_deferral.fit(
    'by vectors', learned_deferral.METHODS['post_hoc_embed_1'],
    table._replace(embeddings={'answer': vectors}),
    np.random.default_rng(0).random(60).round(), np.ones(60),
  )  # fmt: skip
  file = str(fitted_files.write(tmp_path, fitted))
  entry = level(0.5)
  entry['decider'] |= {'fitted': file, 'digest': policy.file_digest(file)}
  path = replayed_models.write_chain(tmp_path, [level(0.5), entry, None])
  with pytest.raises(ValueError, match=r'embeddings/.*, which a server does not have'):
    served_policy.from_file(str(path))
