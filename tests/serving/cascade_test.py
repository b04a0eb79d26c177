"""The cascade: who answers, what is passed on when, what is discarded, and what is recorded."""

import asyncio
import contextlib
import math

import pytest

from cascades.costs import Prices
from cascades.deferral import NO_TOKENS
from cascades.serving.budgets import Ceilings, Ledger
from cascades.serving.calls import Call, Conduct, Replaced
from cascades.serving.cascade import ServedCascade
from cascades.serving.decisions import DecisionRule
from cascades.serving.exchanges import Exchange, ModelError, Question
from cascades.serving.keys import ApiKey, KeyLimits
from cascades.serving.legs import Delta, Member
from cascades.serving.refusals import Refusal
from cascades.serving.served_policy import ServedPolicy
from tests.serving.fake_models import END, FakeModel, rule

SURE = [('sm', -0.1), ('all', -0.1), END]
UNSURE = [('sm', -0.1), ('al', -3.0), ('l', -0.1), END]
LARGE = [('la', -0.1), ('rge', -0.2), END]
QUESTION = Question('a b', max_tokens=8)


class Served:
  """A cascade of fakes, and what it recorded."""

  def __init__(self, small, large=LARGE, threshold=0.5, decider='average', **options):
    conduct = Conduct(**options.pop('conduct', {}))
    self.small = FakeModel('small', small)
    self.large = FakeModel('large', large) if large is not None else None
    self.records = []
    members = {'small': Member(self.small, Prices(1.0, 10.0), options.pop('seconds', 5.0))}
    if self.large:
      members['large'] = Member(self.large, Prices(100.0, 1000.0), 5.0)
    self.cascade = ServedCascade(
      members,
      rule(threshold, decider, alternatives=options.pop('alternatives', 0)),
      conduct=conduct,
      record=self.records.append,
      shadow=options.pop('shadow', None),
      ledger=options.pop('ledger', None),
    )
    assert not options

  def ask(self, question=QUESTION, **call):
    async def run():
      return [event async for event in self.cascade.answer(Call('id', question, **call))]

    *events, exchange = asyncio.run(run())
    assert isinstance(exchange, Exchange)
    assert len(self.records) == 1
    assert self.small.running == 0
    return text_of(events), exchange, events


def text_of(events):
  text = ''
  for event in events:
    text = '' if isinstance(event, Replaced) else text + event.text
  return text


@pytest.mark.parametrize('live', [False, True])
def test_a_sure_small_answer_is_passed_on_whole(live):
  served = Served(SURE)
  text, exchange, events = served.ask(live=live)
  assert (text, exchange.author, exchange.deferred, exchange.flag) == ('small', 'small', False, '')
  assert len(events) == 1
  assert exchange.score == pytest.approx(0.07)
  assert [leg.role for leg in exchange.legs] == ['small']
  assert exchange.legs[0].dollars == 5 * 1.0 + 3 * 10.0
  assert exchange.discarded_tokens == 0
  assert served.records[0]._replace(seconds=0) == exchange._replace(seconds=0)
  assert not served.large.questions


@pytest.mark.parametrize('live', [False, True])
def test_an_unsure_answer_is_discarded_and_the_large_model_answers(live):
  served = Served(UNSURE)
  text, exchange, events = served.ask(live=live)
  assert (text, exchange.author, exchange.deferred, exchange.status) == (
    'large',
    'large',
    True,
    200,
  )
  assert len(events) == (3 if live else 1)  # a stream of the large model is passed on at once
  assert exchange.discarded_tokens == 4
  assert exchange.legs[1].dollars == 5 * 100.0 + 3 * 1000.0


def test_the_small_answer_is_kept_back_until_it_is_accepted():
  served = Served(UNSURE)
  _, _, events = served.ask(live=True)
  assert 'sm' not in ''.join(event.text for event in events)


def test_a_provisional_answer_is_streamed_and_replaced():
  served = Served(UNSURE, conduct={'provisional': True})
  text, _, events = served.ask(live=True)
  assert text == 'large'
  assert [event.text for event in events[:4]] == ['sm', 'al', 'l', '']
  assert events[4] == Replaced()
  assert Replaced() not in Served(UNSURE).ask(live=True, provisional=False)[2]
  assert Replaced() in Served(UNSURE).ask(live=True, provisional=True)[2]
  accepted = Served(SURE).ask(live=True, provisional=True)
  assert accepted[0] == 'small'
  assert Replaced() not in accepted[2]


@pytest.mark.parametrize(('decider', 'threshold', 'written'), [
  ('minimum', 2.0, 2),  # the second token is below e^-2
  ('sum', 3.05, 2),  # 3.1 after two
  ('average', 0.45, 4),  # 3.2/8 < 0.45 after three: the rest might be sure
  ('average', 0.38, 2),  # 3.1/8 = 0.3875: it cannot
  ('maximum', 0.005, 4),  # no bound
])  # fmt: skip
def test_the_small_model_stops_as_soon_as_no_continuation_can_be_accepted(
  decider, threshold, written
):
  served = Served(UNSURE, threshold=threshold, decider=decider)
  text, exchange, _ = served.ask()
  assert (text, exchange.deferred, served.small.written) == ('large', True, written)
  assert exchange.score >= threshold
  assert exchange.discarded_tokens == written
  assert exchange.legs[0].dollars == 5 + written * 10
  assert (exchange.legs[0].finish is None) == (written < 4)
  late = Served(UNSURE, threshold=threshold, decider=decider, conduct={'stop_early': False})
  assert late.ask()[1].deferred
  assert late.small.written == 4


def test_a_decider_of_prompts_decides_before_any_answer(monkeypatch):
  served = Served(SURE)
  decider = served.cascade.policy.rules[0].decider._replace(
    reads=('inputs',), score=lambda table: [float(len(table.inputs[0]))]
  )
  by_prompt = ServedPolicy((DecisionRule(decider, {'t': 4.0}, 't'), None), 't')
  monkeypatch.setattr(served.cascade, 'policy', by_prompt)
  text, exchange, events = served.ask(live=True)
  assert (text, exchange.score, len(events)) == ('small', 3.0, 3)  # nothing to wait for
  served.records.clear()
  text, exchange, _ = served.ask(QUESTION._replace(prompt='a b c'))
  assert (text, exchange.deferred, len(exchange.legs)) == ('large', True, 1)


def test_nothing_is_kept_back_where_nothing_can_be_deferred():
  _, exchange, events = Served(UNSURE, threshold=math.inf).ask(live=True)
  assert (exchange.author, exchange.deferred, len(events)) == ('small', False, 4)
  assert exchange.score == pytest.approx(3.21 / 4)


def test_a_model_asked_for_by_name_answers_whatever_the_policy_says():
  text, exchange, _ = Served(UNSURE).ask(role='small')
  assert (text, exchange.author, exchange.score, exchange.deferred) == (
    'small',
    'small',
    None,
    False,
  )
  assert Served(SURE).ask(role='large')[0] == 'large'


@pytest.mark.parametrize('early', [False, True])
@pytest.mark.parametrize('provisional', [False, True])
def test_degrade_keep_answers_with_the_small_text_and_a_flag(early, provisional):
  served = Served(UNSURE, threshold=0.3, conduct={'degrade': 'keep', 'stop_early': early})
  served.large.errors.append(ModelError('down'))
  text, exchange, _ = served.ask(live=True, provisional=provisional)
  assert (text, exchange.author, exchange.deferred) == ('small', 'small', True)
  assert exchange.flag == 'large model failed'
  assert [leg.error for leg in exchange.legs if leg.role == 'large'] == ['down']
  assert exchange.discarded_tokens == (2 if early else 0)  # the cut one is asked for again
  assert served.small.written == (6 if early else 4)


def test_degrade_refuse_refuses():
  served = Served(UNSURE, conduct={'degrade': 'refuse'})
  served.large.errors.append(ModelError('down', 7.0))
  with pytest.raises(Refusal, match='large model cannot answer now: down') as refusal:
    served.ask()
  assert (refusal.value.status, refusal.value.headers) == (503, {'Retry-After': '7'})
  (exchange,) = served.records
  assert (exchange.status, exchange.author, exchange.flag) == (503, None, 'large model failed')
  assert exchange.discarded_tokens == 4


def test_degrade_wait_tries_again_until_it_is_too_late(monkeypatch):
  async def sleep(seconds, real=asyncio.sleep):
    await real(0)

  monkeypatch.setattr(asyncio, 'sleep', sleep)
  served = Served(UNSURE, conduct={'degrade': 'wait', 'wait_seconds': 30.0})
  served.large.errors.extend([ModelError('down'), ModelError('down')])
  text, exchange, _ = served.ask()
  assert (text, exchange.flag, len(exchange.legs)) == ('large', '', 4)
  served = Served(UNSURE, conduct={'degrade': 'wait', 'wait_seconds': 3.0})
  served.large.errors.append(ModelError('down', 5.0))
  with pytest.raises(Refusal):
    served.ask()


def test_a_large_model_that_fails_in_the_middle_is_replaced_unless_its_text_is_out():
  served = Served(UNSURE)
  served.large.errors.append(ModelError('cut'))
  served.large.breaks_after = 1
  assert served.ask()[0] == 'small'
  served = Served(UNSURE)
  served.large.errors.append(ModelError('cut'))
  served.large.breaks_after = 1
  with pytest.raises(Refusal, match='cut'):
    served.ask(live=True)


def test_a_slow_model_has_failed():
  served = Served(UNSURE)
  served.large.seconds = 10.0
  members = served.cascade.members
  members['large'] = members['large']._replace(seconds=0.05)
  text, exchange, _ = served.ask()
  assert (text, exchange.flag) == ('small', 'large model failed')
  assert exchange.legs[-1].error == 'no complete answer in 0.05 s'
  assert served.large.running == 0


@pytest.mark.parametrize(('error', 'status'), [
  (ModelError('full', 2.0), 429), (ModelError('down'), 503), (ValueError('too long'), 400),
])  # fmt: skip
def test_a_small_model_that_cannot_answer_is_a_refusal(error, status):
  served = Served(SURE)
  served.small.errors.append(error)
  with pytest.raises(Refusal) as refusal:
    served.ask()
  assert refusal.value.status == served.records[0].status == status
  assert not served.large.questions


def test_without_a_large_model_the_cascade_abstains():
  served = Served(UNSURE, large=None)
  text, exchange, events = served.ask()
  assert (text, events, exchange.author, exchange.flag) == ('', [], None, 'abstained')
  assert (exchange.status, exchange.discarded_tokens) == (200, 4)
  assert Served(SURE, large=None).ask()[0] == 'small'


def test_an_answer_without_log_probabilities_is_deferred_with_a_flag():
  served = Served([('sm', None), ('all', None)])
  text, exchange, _ = served.ask()
  assert (text, exchange.score, exchange.flag) == ('large', NO_TOKENS, 'no score')


def test_a_shadow_decides_nothing_and_is_recorded():
  text, exchange, _ = Served(UNSURE, threshold=5.0, shadow=rule(2.0, 'minimum')).ask()
  assert text == 'small'
  assert exchange.shadow == (3.0, 2.0, True, 'large')
  # The old rule stops the small model early only where no shadow reads the rest.
  served = Served(UNSURE, threshold=0.1, shadow=rule(9.0, 'sum'))
  assert served.ask()[1].shadow == (pytest.approx(3.21), 9.0, False, 'small')
  assert served.small.written == 4


def test_alternatives_are_those_of_the_rule_and_of_the_request():
  served = Served(SURE, decider='margin', threshold=0.9, alternatives=2)
  served.ask(QUESTION._replace(alternatives=1))
  assert served.small.questions[0].alternatives == 2
  served = Served(UNSURE)
  served.ask(QUESTION._replace(alternatives=3))
  assert served.large.questions[0].alternatives == 3


@pytest.mark.parametrize('threshold', [0.01, 9.0, math.inf])
def test_a_client_that_leaves_cancels_what_runs(threshold):
  served = Served([('x', -1.0)] * 50, [('y', -1.0)] * 50, threshold=threshold)
  served.small.seconds = served.large.seconds = 0.01

  async def leave():
    async def listen():
      async with contextlib.aclosing(
        served.cascade.answer(Call('id', Question('a', max_tokens=50), live=True))
      ) as events:
        async for _ in events:
          pass

    task = asyncio.create_task(listen())
    await asyncio.sleep(0.05)
    running = served.small.running + served.large.running
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
      await task
    return running

  assert asyncio.run(leave()) == 1
  assert served.small.running == served.large.running == 0
  (exchange,) = served.records
  assert exchange.status == 499
  assert 0 < sum(leg.generated_tokens for leg in exchange.legs) < 50


def test_a_stream_that_is_closed_in_the_middle_is_recorded_at_once():
  served = Served(UNSURE, [('y', -1.0)] * 50, threshold=0.01)

  async def leave():
    events = served.cascade.answer(Call('id', Question('a', max_tokens=50), live=True))
    assert isinstance(await anext(events), Delta)
    assert served.large.running == 1
    await events.aclose()
    return served.large.running, len(served.records)

  assert asyncio.run(leave()) == (0, 1)


def test_conduct_is_checked():
  with pytest.raises(ValueError, match="DEGRADE='panic' is none of keep, refuse, wait"):
    Conduct(degrade='panic')
  with pytest.raises(ValueError, match='WAIT_SECONDS'):
    Conduct(wait_seconds=0)


def test_answers_are_charged_to_budgets_and_only_what_they_cost():
  ledger = Ledger(Ceilings(tokens_per_day=100, dollars_per_day=1e6))
  Served(UNSURE, ledger=ledger).ask()
  assert ledger.spent() == (5 + 4 + 5 + 3, 5 + 40 + 500 + 3000)
  Served(UNSURE, threshold=0.38, ledger=ledger).ask()  # stopped after two tokens
  assert ledger.spent().tokens == 17 + 5 + 2 + 5 + 3
  key = ApiKey('alice', b'', KeyLimits(tokens_per_day=25))
  Served(UNSURE, ledger=ledger).ask(key=key)
  assert ledger.spent('alice').tokens == 17


def test_a_budget_that_does_not_cover_the_large_model_keeps_the_small_answer():
  ledger = Ledger(Ceilings(dollars_per_day=1000.0))
  text, exchange, _ = Served(UNSURE, ledger=ledger).ask()
  assert (text, exchange.flag) == ('small', 'large model failed')
  assert '1000 dollars a day' in exchange.legs[-1].error
  assert ledger.spent().dollars == 45.0


@pytest.mark.parametrize(('ceilings', 'status'), [
  (Ceilings(tokens_per_day=5), 429), (Ceilings(tokens_per_request=5), 400),
])  # fmt: skip
def test_a_budget_that_covers_nothing_refuses(ceilings, status):
  served = Served(SURE, ledger=Ledger(ceilings))
  with pytest.raises(Refusal, match='5 tokens') as refusal:
    served.ask()
  assert refusal.value.status == status
  assert served.records[0].legs[0].dollars == 0.0
  assert not served.small.questions


def test_an_answer_that_cannot_be_counted_costs_what_was_reserved():
  ledger = Ledger(Ceilings(tokens_per_day=1000))
  served = Served(SURE, seconds=0.05, ledger=ledger)
  served.small.seconds = 1.0
  with pytest.raises(Refusal, match=r'no complete answer in 0\.05 s'):
    served.ask()
  assert ledger.spent().tokens == len('a b') + 1 + 8
  assert served.records[0].legs[0].dollars is None
