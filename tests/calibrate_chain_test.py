"""Policies of chains from tables on disk: calibrated, evaluated, and refused."""

import json

import numpy as np
import pytest

from cascades import calibrate, evaluate, metrics
from cascades.evaluation import chain_calibration, chain_policy, chain_rows, policy_outcome
from cascades.evaluation.calibration import Demands, NotCertifiedError
from cascades.evaluation.chain_calibration import ChainOptions
from cascades.evaluation.chain_judgements import JudgedRows
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.inference import prompt_routing
from cascades.serving import served_policy
from tests import synthetic_tables
from tests.serving import replayed_models
from tests.serving.replayed_models import NAMES

MODELS = dict(zip(NAMES, ((-0.5, 1000), (0.5, 4000), (2.4, 20_000)), strict=True))
CHAIN = ChainOptions(NAMES[:2], large='70b')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  directory = tmp_path_factory.mktemp('chain')
  for split, size, shift in (('validation', 300, 0), ('test', 200, 7)):
    for name, (skill, parameters) in MODELS.items():
      records = synthetic_tables.records('a', size=size, skill=skill, seed=parameters + shift)
      for i, row in enumerate(records):
        topic = replayed_models.TOPICS[i % 3]
        row['inputs']['inputs_pretokenized'] = f'{topic} {row["inputs"]["inputs_pretokenized"]}'
      synthetic_tables.write(
        directory / name / split, 'a', records, split=split, parameters=parameters,
        flops_per_token=2.0 * parameters,
      )  # fmt: skip
  return directory


def tables(root, split='validation'):
  small = {name: str(root / name) for name in NAMES[:2]}
  return Tables(small, str(root / '70b'), split=split)


def certified(root, path, chain=CHAIN, demands=None, **options):
  demands = demands or Demands(quality=0.6)
  return calibrate.calibrate(tables(root), str(path), demands, chain=chain, **options)


def outcome(root, path, split='test'):
  small, large = tables(root, split).read()
  return policy_outcome.of_file(
    path, {**small, 'large': large}, prompt_routing.open_choice, axis='flops per token',
    prices=lambda axis, model: None, metric=None,
  )._asdict()  # fmt: skip


def test_a_chain_is_calibrated_and_its_policy_evaluated_and_served(root, tmp_path, capsys):
  path = tmp_path / 'policy.json'
  policy = certified(root, path, chain=ChainOptions(NAMES[:2], {'8b': 'sum'}, large='70b'))
  assert chain_policy.read(path) == policy
  assert [*policy.models] == [*NAMES]
  assert policy.models['8b']['parameters'] == 4000
  first, second, last = policy.levels
  assert (first.decider.name, second.decider.name, last) == ('average', 'sum', None)
  (expected,) = policy.expected
  (promise,) = expected.promises
  assert (promise.name, promise.demanded, promise.test) == ('quality', 0.6, 'binomial')
  assert expected.quality == pytest.approx(promise.observed)
  assert expected.rows == 150
  assert sum(expected.shares.values()) == pytest.approx(1)
  assert 'quality >= 0.6' in capsys.readouterr().out
  evaluate.evaluate(
    tables(root, 'test'), str(tmp_path / 'report'), policy=str(path),
    settings=Settings(resamples=10),
  )  # fmt: skip
  realized = json.loads((tmp_path / 'report' / 'policy_outcome.json').read_text())
  assert realized == outcome(root, path)
  shown = capsys.readouterr().out
  assert 'Policy policy.json on these' in shown
  assert realized['rows'] == 200
  assert realized['quality'] > 0.5
  assert realized['begins'] == {'1b': 1.0, '8b': 0.0, '70b': 0.0}
  served = served_policy.from_file(str(path))
  assert served.rules[0].thresholds['all tasks'] == first.thresholds['all tasks']


def test_the_rules_are_those_that_no_other_of_the_grid_beats(root):
  by_name, large = tables(root).read()
  models = {**by_name, '70b': large}
  deciders = [evaluate.deferral.DECIDERS['average'], evaluate.deferral.DECIDERS['sum'], None]
  rows = policy_outcome.passage_rows(deciders, models, None, 'flops per token')
  quality = chain_rows.pooled(models, Settings(), None, None).quality
  losses = np.stack([*(1 - own for own in quality.values()), np.ones(300)])
  judged = JudgedRows('a', NAMES, [True, True, False], False, metrics.accuracy, rows, losses)
  rules = chain_calibration.chosen_rules(judged)
  points = np.array([[m.mean() for m in judged.measure(rule)[:2]] for rule in rules])
  assert (np.diff(points[:, 1]) > 0).all()  # cost rises
  assert (np.diff(points[:, 0]) < 0).all()  # and the loss falls
  rng = np.random.default_rng(0)
  for _ in range(50):
    a, b = rng.choice(rows.scores[0]), rng.choice(rows.scores[1])
    loss, cost, _ = judged.measure((a, b, np.inf))
    beaten = (points[:, 0] < loss.mean() - 0.02) & (points[:, 1] < cost.mean() * 0.9)
    assert not (loss.mean() < points[:, 0].min() - 0.02) or beaten.any()


def test_a_router_and_a_chain_are_one_policy(root, tmp_path):
  replayed_models.write_router(tmp_path)
  router = str(tmp_path / 'router.policy.json')
  path = tmp_path / 'policy.json'
  policy = certified(root, path, ChainOptions(NAMES[:2], large='70b', router=router))
  assert policy.router.file == 'router.policy.json'
  realized = outcome(root, path)
  assert all(share > 0.2 for share in realized['begins'].values())
  alone = outcome(root, router)
  assert alone['answers'] == alone['begins']
  with pytest.raises(ValueError, match='must lie beside POLICY'):
    certified(root, tmp_path / 'other' / 'policy.json', ChainOptions(NAMES[:2], router=router))
  with pytest.raises(ValueError, match='chooses 70b, and the chain has 1b, 8b, big: fit it'):
    certified(root, path, ChainOptions(NAMES[:2], large='big', router=router), overwrite=True)


def test_a_chain_may_abstain_where_that_is_worth_it(root, tmp_path):
  chain = ChainOptions(NAMES[:2], large='70b', abstention=0.9)
  policy = certified(root, tmp_path / 'policy.json', chain, Demands(quality=0.85))
  assert policy.levels[-1] is not None
  assert policy.unanswered_quality == 0.9
  assert policy.expected[0].unanswered > 0
  realized = outcome(root, tmp_path / 'policy.json')
  assert realized['unanswered'] > 0
  assert realized['quality'] > 0.8


def test_several_demands_hold_together_and_costs_need_a_bound(root, tmp_path):
  demands = Demands(margin=0.35, deferral_rate=0.99, cost=48_000, most_cost=50_001)
  policy = certified(root, tmp_path / 'policy.json', demands=demands)
  assert {promise.name: promise.test for promise in policy.expected[0].promises} == {
    'margin': 'trinomial', 'deferral rate': 'binomial', 'cost': 'betting'
  }  # fmt: skip
  with pytest.raises(ValueError, match='give MOST_COST'):
    certified(root, tmp_path / 'other.json', demands=Demands(cost=48_000))


@pytest.mark.parametrize(('chain', 'options', 'error', 'message'), [
  (CHAIN, {'demands': Demands(quality=0.999)}, NotCertifiedError, 'on the 150 rows'),
  (ChainOptions(['1b', 'huge']), {}, ValueError, 'different models of SMALL, 1b, 8b'),
  (ChainOptions(['1b', '1b']), {}, ValueError, 'different models'),
  (CHAIN, {'demands': Demands(quality=7.0)}, ValueError, r'QUALITY \(accuracy\)=7.0 must be'),
])  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(root, tmp_path, chain, options, error, message):
  with pytest.raises(error, match=message):
    certified(root, tmp_path / 'policy.json', chain, **options)
  assert not (tmp_path / 'policy.json').exists()


def test_options_of_a_chain_need_one():
  with pytest.raises(ValueError, match='are of a CHAIN'):
    ChainOptions(router='router.policy.json')
  with pytest.raises(ValueError, match='ABSTENTION=2'):
    ChainOptions(['1b'], abstention=2)


def test_a_policy_of_other_models_is_not_evaluated(root, tmp_path):
  path = tmp_path / 'policy.json'
  certified(root, path)
  content = json.loads(path.read_text())
  content['models']['8b']['parameters'] = 7
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match='for a 8b model with parameters 7'):
    outcome(root, path)
  with pytest.raises(FileExistsError, match='models differ'):
    certified(root, path)
