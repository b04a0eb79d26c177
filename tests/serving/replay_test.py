"""Cost honesty: tables replayed through a cascade cost and answer as evaluation says."""

import asyncio

import numpy as np
import pytest

from cascades import curves, deferral, learned_deferral, metrics
from cascades.costs import Prices
from cascades.evaluation import chain_policy, policy, policy_outcome
from cascades.evaluation import fitted as fitted_files
from cascades.inference import prompt_routing
from cascades.serving import served_policy
from cascades.serving.calls import Call, Conduct
from cascades.serving.cascade import ServedCascade
from cascades.serving.exchanges import Question
from cascades.serving.legs import Member
from tests import synthetic_tables
from tests.interop import encoders_test
from tests.serving import replayed_models
from tests.serving.fake_models import rule
from tests.serving.replayed_models import NAMES, PROMPT_TOKENS, Replayed, level

SMALL_PRICES, LARGE_PRICES = Prices(1e-7, 2e-7), Prices(3e-6, 9e-6)


def replay(small, large, threshold, name, *, stop_early):
  """Answers to all prompts of the tables, and the exchanges."""
  records = []
  cascade = ServedCascade(
    {
      'small': Member(Replayed('small', small), SMALL_PRICES),
      'large': Member(Replayed('large', large), LARGE_PRICES),
    },
    rule(threshold, name),
    conduct=Conduct(stop_early=stop_early),
    record=records.append,
  )

  async def ask_all():
    texts = []
    for prompt in small.inputs:
      call = Call('id', Question(prompt, max_tokens=int(small.lengths.max())))
      events = [event async for event in cascade.answer(call)]
      texts.append(''.join(event.text for event in events[:-1]))
    return texts

  return asyncio.run(ask_all()), records


@pytest.mark.parametrize('name', ['average', 'quantile 0.4'])
def test_quality_deferrals_and_dollars_are_those_of_evaluation(name):
  small, large = (synthetic_tables.table('t', size=60, skill=s, seed=s) for s in (0, 2))
  score = deferral.DECIDERS[name].score(small)
  prices = [
    prices.charge(np.full(60, float(PROMPT_TOKENS)), table.lengths.astype(float))
    for prices, table in ((SMALL_PRICES, small), (LARGE_PRICES, large))
  ]
  judged = [table.statistics['accuracy'] for table in (small, large)]
  cost = curves.cost_by_rate(score, *prices)
  curve = curves.deferral_curve(score, *judged, metrics.accuracy.finalize, cost)
  for point in (0, len(curve.threshold) // 3, -1):
    texts, records = replay(small, large, curve.threshold[point], name, stop_early=False)
    statistics = [
      metrics.accuracy.statistics(targets, text)
      for targets, text in zip(small.targets, texts, strict=True)
    ]
    quality = metrics.accuracy.finalize(np.sum(statistics, axis=0, keepdims=True))
    assert quality == pytest.approx(curve.quality[point])
    assert np.mean([r.deferred for r in records]) == curve.deferral_rate[point]
    dollars = [sum(leg.dollars for leg in r.legs) for r in records]
    assert np.mean(dollars) == pytest.approx(curve.cost[point], rel=1e-12)
    assert [r.score for r in records] == score.tolist()
    early, cut = replay(small, large, curve.threshold[point], name, stop_early=True)
    assert early == texts
    assert sum(r.legs[0].generated_tokens for r in cut) <= small.lengths.sum()


def offline(path, tables):
  """What evaluation says of a policy on tables."""
  stored = chain_policy.read_any(path)
  form = chain_policy.form(stored, path)
  begins = None
  if form.routing is not None:
    choose = prompt_routing.open_policy(form.routing)
    begins = lambda prompts, counts: [choice.model for choice in choose(prompts, counts)]
  return policy_outcome.outcome(
    form.levels, {name: [table] for name, table in tables.items()}, begins,
    axis='dollars', prices=replayed_models.PRICES, metric=metrics.accuracy,
    unanswered=getattr(stored, 'unanswered_quality', None),
  )  # fmt: skip


def served(path, tables, **conduct):
  """Exchanges of a server that answers all prompts of tables, and the texts of its answers."""
  records = []
  cascade = ServedCascade(
    replayed_models.members(tables),
    served_policy.from_file(str(path)),
    conduct=Conduct(**conduct),
    record=records.append,
  )

  async def ask_all():
    texts = []
    for prompt in tables['1b'].inputs:
      call = Call('id', Question(prompt, max_tokens=16))
      events = [event async for event in cascade.answer(call)]
      texts.append(''.join(event.text for event in events[:-1]))
    return texts

  return asyncio.run(ask_all()), records


def learned_level(folder):
  """Level of a logistic regression that was fitted on the answers to other prompts."""
  table = synthetic_tables.table('other', size=80, skill=0.5, seed=5)
  gains = (table.statistics['accuracy'][:, 0] == 0).astype(float)
  method = learned_deferral.METHODS['logistic']
  fitted = learned_deferral.fit('mine', method, table, gains, np.ones(80))
  file = str(fitted_files.write(folder, fitted))
  own = level(0.0, 'mine')
  own['decider'] |= {'fitted': file, 'digest': policy.file_digest(file)}
  probe = fitted.decider().score(replayed_models.tables()['8b'])
  own['thresholds'] = {'all tasks': float(np.sort(probe)[44:46].mean())}  # between two scores
  return own


def write_encoded(folder):
  """Router by vectors of the folder of a tiny BERT with the words of the topics."""
  encoder = folder / 'minilm'
  encoder.mkdir()
  encoders_test.write(encoder, 'bert')
  words = sorted({word for topic in replayed_models.TOPICS for word in topic.split()})
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]
  (encoder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  return replayed_models.write_router(folder, encoder=str(encoder))


CHAIN = [level(0.25), level(0.3, 'quantile 0.4'), None]
FORMS = {
  'chain': lambda folder: replayed_models.write_chain(folder, CHAIN),
  'never deferred': lambda folder: replayed_models.write_chain(
    folder, [level(0.2, 'sum'), level(None), None]
  ),
  'abstaining chain': lambda folder: replayed_models.write_chain(
    folder, [*CHAIN[:2], level(0.08)], unanswered_quality=0.5
  ),
  'learned chain': lambda folder: replayed_models.write_chain(
    folder, [level(0.25), learned_level(folder), None]
  ),
  'router': replayed_models.write_router,
  'router of a learned map': lambda folder: replayed_models.write_router(
    folder, method='learned map'
  ),
  'router of a hierarchy': lambda folder: replayed_models.write_router(
    folder, method='hierarchical'
  ),
  'router of costs by prompt': lambda folder: replayed_models.write_router(folder, by_prompt=True),
  'router of costs by token': lambda folder: replayed_models.write_router(folder, by_token=True),
  'router of an encoder': write_encoded,
  'abstaining router': lambda folder: replayed_models.write_router(folder, abstention=0.85),
  'router and chain': lambda folder: (
    replayed_models.write_router(folder) and replayed_models.write_chain(folder, CHAIN, routed=True)
  ),
  'router among two, and chain': lambda folder: (
    replayed_models.write_router(folder, NAMES[:2])
    and replayed_models.write_chain(folder, CHAIN, routed=True)
  ),
}


@pytest.mark.parametrize('name', FORMS)
def test_policies_of_three_models_answer_and_cost_as_evaluation_says(tmp_path, name):
  tables = replayed_models.tables()
  path = FORMS[name](tmp_path)
  said = offline(path, tables)
  texts, records = served(path, tables, stop_early=False)
  answered = [r.author is not None for r in records]
  statistics = [
    metrics.accuracy.statistics(targets, text)
    for targets, text, own in zip(tables['1b'].targets, texts, answered, strict=True)
    if own
  ]
  quality = metrics.accuracy.finalize(np.sum(statistics, axis=0))
  if 'abstaining chain' in name:
    quality = np.mean(answered) * quality + np.mean(np.logical_not(answered)) * 0.5
  assert quality == pytest.approx(said.quality, rel=1e-12)
  dollars = [sum(leg.dollars for leg in r.legs) for r in records]
  assert np.mean(dollars) == pytest.approx(said.cost, rel=1e-12)
  assert 1 - np.mean(answered) == pytest.approx(said.unanswered)
  for model in NAMES:
    assert np.mean([r.author == model for r in records]) == pytest.approx(said.answers[model])
    first = [r.routed.role if r.routed else NAMES[0] for r in records]
    assert np.mean([own == model for own in first]) == pytest.approx(said.begins[model])
  if 'abstaining' in name:
    assert said.unanswered > 0
    assert all(r.flag == 'abstained' for r, own in zip(records, answered, strict=True) if not own)
  if 'router' in name:
    assert min(said.begins[model] for model in NAMES[:2]) > 0.1
  if 'token' in name:
    mean = [choice.model for choice in prompt_routing.open_policy(path)(tables['1b'].inputs)]
    assert np.mean([own == told for own, told in zip(first, mean, strict=True)]) < 0.9
  if 'chain' in name:
    assert sum(share > 0 for share in said.answers.values()) == 3


@pytest.mark.parametrize('name', ['chain', 'router and chain'])
def test_stopping_early_changes_no_decision_of_a_chain(tmp_path, name):
  tables = replayed_models.tables()
  path = FORMS[name](tmp_path)
  late, early = (served(path, tables, stop_early=stop) for stop in (False, True))
  assert early[0] == late[0]
  assert [[d.deferred for d in r.decisions] for r in early[1]] == [
    [d.deferred for d in r.decisions] for r in late[1]
  ]
  written = [sum(leg.generated_tokens for r in rs for leg in r.legs) for _, rs in (early, late)]
  assert written[0] < written[1]
