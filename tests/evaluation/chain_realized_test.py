"""Chains by task, their checks on draws, and what holds of their promises on other rows."""

import json
import math

import numpy as np
import pytest

from cascades import calibrate, evaluate
from cascades.evaluation import (
  calibration,
  chain_calibration,
  chain_judgements,
  chain_policy,
  chain_realized,
  policy,
)  # fmt: skip
from cascades.evaluation.calibration import Demands
from cascades.evaluation.chain_calibration import ChainOptions
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.serving import served_policy
from tests import synthetic_tables

SKILLS = {'1b': -0.5, '8b': 0.5, '70b': 2.4}
CHAIN = ChainOptions(('1b', '8b'), large='70b')
SPLITS = {'validation': {}, 'test': {}, 'drifted': {'8b': -3.0}, 'unlabelled': {'8b': -3.0}}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  directory = tmp_path_factory.mktemp('chain')
  for number, (split, changes) in enumerate(SPLITS.items()):
    for seed, (name, skill) in enumerate((SKILLS | changes).items()):
      for task in 'ab':
        own = synthetic_tables.records(task, size=300, skill=skill, seed=10 * number + seed)
        synthetic_tables.write(
          directory / name / split, task, own, split=split, parameters=10**seed,
          flops_per_token=2.0 * 10**seed, **({'unlabelled': 300} if split == 'unlabelled' else {}),
        )  # fmt: skip
  return directory


def tables(root, split='validation'):
  small = {name: str(root / name) for name in ('1b', '8b')}
  return Tables(small, str(root / '70b'), split=split, require_targets=split != 'unlabelled')


@pytest.fixture(scope='module')
def stored(root):
  path = root / 'policy.json'
  demands = Demands(quality=0.55, deferral_rate=0.97)
  calibrate.calibrate(tables(root), str(path), demands, chain=CHAIN)
  return path


def outcomes(root, path, split, **options):
  by_name, large = tables(root, split).read()
  return chain_realized.outcomes(
    chain_policy.read(path), {**by_name, '70b': large}, None, **options
  )


def alarms(outcome):
  return {alarm.monitor for alarm in outcome.alarms if alarm.rows is not None}


def test_entries_are_the_rows_of_the_tested_half_that_reach_a_level(root, stored):
  stored_policy = chain_policy.read(stored)
  first, second, last = stored_policy.levels
  by_name, _ = tables(root).read()
  score = np.concatenate([policy.stored_decider(first).score(t) for t in by_name['1b']])
  half = np.array_split(np.random.default_rng(0).permutation(600), 2)[1]
  reach = sum(score[row] >= first.threshold_of('a') for row in half)
  assert last is None
  ((entry,), (later,)) = first.entries, second.entries
  assert (entry.rows, entry.rules, later.rows) == (300, 1, reach)
  assert [promise.name for promise in entry.promises] == ['quality', 'deferral rate']
  assert later.promises == []
  assert 1 < later.rules <= chain_calibration.MOST_RULES
  assert entry.deferral_rate.value == pytest.approx(reach / 300)
  assert entry.quality.value == pytest.approx(stored_policy.expected[0].quality)
  # A chain from the later level on is worth what its rows say, of all rows.
  assert sum(later.gaps) == reach + 1
  assert policy.monitor(later, alpha=0.05).alphas.sum() < 0.05 / later.rules
  served = served_policy.from_file(str(stored)).of(['1b', '8b', '70b'])
  assert {role for role, _ in served.entries} == {'1b', '8b'}


def test_on_rows_of_the_same_population_the_chain_holds(root, stored):
  (outcome,) = outcomes(root, stored, 'test')
  assert outcome.holds
  assert not outcome.calibrated
  assert [promise.name for promise in outcome.promises] == ['quality', 'deferral rate']
  assert {alarm.monitor for alarm in outcome.alarms} == {
    '1b: scores', '1b: deferrals above', '1b: deferrals below', '1b: quality',
    '8b: scores', '8b: deferrals above', '8b: deferrals below',
  }  # fmt: skip
  assert outcomes(root, stored, 'validation')[0].calibrated


@pytest.mark.slow
def test_drift_of_a_later_level_is_noticed_without_labels(root, stored, tmp_path):
  drifted = alarms(outcomes(root, stored, 'drifted')[0])
  assert '8b: scores' in drifted
  assert {name for name in drifted if name.startswith('1b')} <= {'1b: quality'}
  (outcome,) = outcomes(root, stored, 'unlabelled', labels=False)
  assert outcome.quality is None
  assert [promise.name for promise in outcome.promises] == ['deferral rate']
  assert '8b: scores' in alarms(outcome)
  for split, has_quality in (('unlabelled', False), ('drifted', True)):
    directory = tmp_path / split
    evaluate.evaluate(
      tables(root, split), str(directory), policy=str(stored), settings=Settings(resamples=10)
    )
    (written,) = json.loads((directory / 'promises.json').read_text())
    assert not written['holds']
    assert (written['quality'] is not None) == has_quality
    assert (directory / 'policy_outcome.json').exists() == has_quality


def test_a_broken_promise_of_a_chain_is_refuted(root, stored, tmp_path):
  content = json.loads(stored.read_text())
  for promise in content['expected'][0]['promises']:
    if promise['name'] == 'quality':
      promise |= {'demanded': 0.99, 'level': 0.01}
  path = tmp_path / 'policy.json'
  path.write_text(json.dumps(content))
  quality, rate = outcomes(root, path, 'test')[0].promises
  assert (quality.refuted, rate.refuted) == (True, False)
  content['levels'][1]['entries'][0]['threshold'] = 7.0
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="entry of 'all tasks' has another threshold"):
    chain_policy.read(path)


def test_each_task_has_thresholds_and_promises_of_its_own(root, tmp_path):
  path = tmp_path / 'policy.json'
  result = calibrate.calibrate(
    tables(root), str(path), Demands(quality=0.6), chain=CHAIN, by_task=True
  )
  assert [expected.task for expected in result.expected] == ['a', 'b']
  assert [*result.levels[0].thresholds] == ['a', 'b']
  by_name, large = tables(root).read()
  one = {name: [own[1]] for name, own in {**by_name, '70b': large}.items()}
  deciders = [policy.stored_decider(level) if level else None for level in result.levels]
  (rows,) = chain_judgements.judged(
    one, deciders, None, calibrate.metric_library.accuracy, cost_axis='flops per token'
  )
  alone = chain_calibration.calibrate(rows, Demands(quality=0.6))
  assert [level.threshold_of('b') for level in result.levels[:2]] == [*alone.thresholds[:2]]
  both = outcomes(root, path, 'test')
  assert [outcome.task for outcome in both] == ['a', 'b']
  assert all(outcome.rows == 300 for outcome in both)
  served = served_policy.from_file(str(path), task='a').of(['1b', '8b', '70b'])
  assert {*served.entries} == {(role, task) for role in ('1b', '8b') for task in 'ab'}
  with pytest.raises(ValueError, match=r"thresholds of a, b, and none of task 'c'"):
    result.levels[0].threshold_of('c')


def judged_rows(root):
  by_name, large = tables(root).read()
  deciders = [calibrate.policies.decider('average')] * 2 + [None]
  return chain_judgements.judged(
    {**by_name, '70b': large}, deciders, None, calibrate.metric_library.accuracy,
    cost_axis='flops per token',
  )[0]  # fmt: skip


DRAWS = 200


@pytest.mark.slow
def test_promises_of_chains_are_kept_on_draws_and_by_the_plug_in_far_less_often(root, monkeypatch):
  monkeypatch.setattr(chain_calibration, 'MOST_TUPLES', 150)
  risks, methods = chain_calibration.check(
    judged_rows(root), Demands(quality=0.6), draws=DRAWS, seed=0
  )
  certified, plug_in = (methods[name].fulfilled.mean() for name in ('certified', 'plug-in'))
  assert [risk.name for risk in risks] == ['quality']
  assert certified >= 0.9 - 3 * math.sqrt(0.09 / DRAWS)
  assert plug_in < 0.8
  assert methods['certified'].rate.max() <= 1


def test_the_check_of_a_chain_draws_a_figure(root, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(chain_calibration, 'MOST_TUPLES', 40)
  calibrate.calibrate(
    tables(root), str(tmp_path / 'policy.json'), Demands(quality=0.6), chain=CHAIN, check=True,
    draws=5, by_task=True,
  )  # fmt: skip
  assert 'Check: 5 draws' in capsys.readouterr().out
  assert {path.name for path in tmp_path.glob('*.png')} == {
    'policy.a.check.png', 'policy.b.check.png'
  }  # fmt: skip


@pytest.mark.slow
def test_monitors_of_a_later_level_raise_few_false_alarms(root, monkeypatch):
  """Streams of the population that a chain was calibrated on, both drawn from one table."""
  monkeypatch.setattr(chain_calibration, 'MOST_TUPLES', 150)
  everything, generator = judged_rows(root), np.random.default_rng(0)
  raised = 0
  for _ in range(40):
    drawn = everything.select(generator.integers(600, size=600))
    try:
      chain = chain_calibration.calibrate(drawn, Demands(quality=0.55))
    except calibration.NotCertifiedError:
      continue
    entry = chain.entries[1]
    stream = everything.select(generator.integers(600, size=600))
    loss, _, answers = stream.measure(chain.thresholds)
    reached = answers >= 1
    score = stream.rows.scores[1][reached]
    alarms_of_stream = chain_realized.realized.watched(
      entry, score, score >= chain.thresholds[1], loss[reached], alpha=0.05
    )
    raised += any(alarm.rows for alarm in alarms_of_stream)
  assert raised <= 5  # 40 draws of 0.05 exceed it with a probability of 0.03
