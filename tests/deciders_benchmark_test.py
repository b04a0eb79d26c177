"""The benchmark of deciders on planted tables: what it finds there is known."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from benchmarks import deciders, deciding_rules, outcome_tables, routers
from benchmarks.outcome_tables import Table
from tests import real_data


def table(rows, split, *, informative, seed=0):
  """Two models, the small one right at random; its confidence says when, or nothing."""
  generator = np.random.default_rng((seed, split == 'report'))
  small = generator.random(rows) < 0.6
  large = generator.random(rows) < 0.8
  evidence = -1.0 * small if informative else np.zeros(rows)
  log_odds = (4 * evidence + generator.normal(size=rows))[None, :, None].repeat(2, axis=0)
  tokens = np.ones((2, rows, 2))
  cost = np.repeat([[0.1], [1.0]], rows, axis=1)
  return Table(
    [f'{split}-{i}' for i in range(rows)],
    [f'question {split} {" ".join(map(str, generator.integers(50, size=5)))}' for _ in range(rows)],
    np.array([small, large], float),
    cost,
    np.zeros_like(cost),
    {'confidence': log_odds, 'answer': np.concatenate([log_odds, tokens], axis=2)},
  )


def planted(*, informative=True, rows=300):
  fit, report = (table(rows, split, informative=informative) for split in ('fit', 'report'))
  return outcome_tables.data_set('planted', ['small', 'large'], 'dollars', fit, report)


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
  data = {name: planted(informative=name == 'informative') for name in ('informative', 'random')}
  folder = tmp_path_factory.mktemp('deciders')
  return {name: deciders.evaluate(data[name], folder / name, 1000) for name in data}


@pytest.mark.slow
def test_a_planted_decider_wins_and_one_without_information_does_not(compared):
  informative, random = (compared[name]['deciders'] for name in ('informative', 'random'))
  for name in ('confidence', 'logistic confidence', 'linear gap', 'router and cascade'):
    assert informative[name]['wins'], name
    assert not random[name]['wins'], name
  for name in ('singles', 'random', 'kNN', 'guarded kNN', 'linear router'):
    assert not informative[name]['wins'], name


@pytest.mark.slow
def test_a_policy_that_ends_at_the_best_single_model_gains_exactly_nothing(compared):
  for result in compared.values():
    singles = result['deciders']['singles']
    assert singles['gain'] == {'value': 0, 'low': 0, 'high': 0, 'p': 1}
    assert singles['quality_neutral_cost'] == pytest.approx(1, abs=1e-9)


def test_no_decider_exceeds_the_oracle(compared):
  for result in compared.values():
    oracle = result['deciders']['oracle']
    for name, decider in result['deciders'].items():
      assert decider['area'] <= oracle['area'] + 1e-12, name
      assert decider['gain']['value'] <= oracle['gain']['value'] + 1e-12, name


def test_a_chain_of_two_models_equals_their_pair(compared):
  difference = compared['informative']['chains over pairs']
  assert (difference['value'], difference['low'], difference['high']) == (0, 0, 0)


def test_a_cascade_pays_for_the_answer_that_it_throws_away():
  data = planted(rows=50)
  (choices,) = deciding_rules.pairs(data, deciding_rules.own_signal('confidence'))
  everything = deciding_rules.Policy(*choices.apply(np.array([len(choices.cost) - 1])))
  np.testing.assert_allclose(everything.cost, 1.1)
  assert choices.cost[-1] == pytest.approx(1.1)
  np.testing.assert_array_equal(everything.quality[0], data.report.quality[1])


@pytest.mark.slow
def test_results_survive_a_kill_and_are_not_computed_again(tmp_path, monkeypatch):
  data = planted(rows=60)
  policy, computed = deciding_rules.policy, []

  def killed_after_three(choices):
    if len(computed) == 3:
      raise KeyboardInterrupt
    computed.append(None)
    return policy(choices)

  with monkeypatch.context() as patch:
    patch.setattr(deciding_rules, 'policy', killed_after_three)
    with pytest.raises(KeyboardInterrupt):
      deciders.results(data, tmp_path, 20)
  files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.json')}
  assert len(files) == 3
  resumed = deciders.results(data, tmp_path, 20)
  assert {path: path.stat().st_mtime_ns for path in files} == files
  assert resumed == deciders.results(data, tmp_path / 'at once', 20)
  deciders.results(data, tmp_path, 21)  # other settings: nothing of before is taken for it
  assert all(path.stat().st_mtime_ns != time for path, time in files.items())


def test_prompts_that_are_reported_are_not_fitted_on():
  fit, report = table(30, 'fit', informative=True), table(30, 'report', informative=True)
  fit = fit._replace(prompts=[*report.prompts[:7], *fit.prompts[7:]])
  data = outcome_tables.data_set('planted', ['small', 'large'], 'dollars', fit, report)
  assert data.fit.ids == fit.ids[7:]
  assert not set(data.fit.prompts) & set(data.report.prompts)
  np.testing.assert_array_equal(data.fit.quality, fit.quality[:, 7:])


def test_scores_of_fit_rows_are_out_of_fold():
  data = planted(rows=40)
  seen = []

  def fit(rows):
    seen.append(rows)
    return lambda table: np.array([name in {data.fit.ids[i] for i in rows} for name in table.ids])

  on_fit, _ = deciding_rules.crossed(fit, data)
  assert not on_fit.any()
  assert len(seen[-1]) == 40


@pytest.mark.parametrize(('task', 'fit', 'report'), [('truthfulqa', 300, 517), ('gsm8k', 150, 150)])
def test_real_chains_have_disjoint_splits_and_finite_numbers(task, fit, report):
  data = outcome_tables.llm_chain(real_data.real('llm_chains').parent, task, 'llama')
  assert (len(data.fit.ids), len(data.report.ids)) == (fit, report)
  assert not set(data.fit.ids) & set(data.report.ids)
  for split in (data.fit, data.report):
    assert np.isfinite(split.signals['answer']).all()
    assert (split.deciding > 0).all()  # the second call, which asks for the confidence
  assert (np.diff(data.fit.cost.mean(axis=1)) >= 0).all()


def test_absent_tables_are_skipped_with_the_reason(tmp_path):
  reasons = dict(outcome_tables.every(tmp_path, tmp_path / 'demo'))
  assert len(reasons) == 15
  assert all('is absent' in reason for reason in reasons.values())
  assert 'make demo' in reasons['demo xent']


def test_a_recorded_confidence_of_zero_stays_finite(tmp_path):
  answer = {'correct': 1, 'p': 0.0, 'cost_usd': 3e-5, 'answer_cost_usd': 1e-5,
            'input_tokens': 5, 'output_tokens': 1}  # fmt: skip
  lines = [
    json.dumps({'id': str(i), 'prompt': f'q {i}', 'models': {'a': answer, 'b': answer}})
    for i in range(4)
  ]
  path = pathlib.Path(tmp_path, 'llm_chains', 'gsm8k.train.llama.jsonl.gz')
  path.parent.mkdir()
  path.write_bytes(gzip.compress('\n'.join(lines).encode()))
  data = outcome_tables.llm_chain(tmp_path, 'gsm8k', 'llama')
  assert data.fit.signals['confidence'].max() == pytest.approx(np.log(1e9), abs=1e-3)
  np.testing.assert_allclose(data.report.deciding, 2e-5)


def test_a_union_charges_what_it_calls_and_is_never_below_its_cascade_on_fit_rows():
  data = planted(rows=120)
  data.fit.deciding[0], data.report.deciding[0] = 0.05, 0.05
  word = lambda small, large: 'hard' if large > small else 'easy'
  tables = [
    each._replace(prompts=list(map(word, *each.quality))) for each in (data.fit, data.report)
  ]
  data = data._replace(fit=tables[0], report=tables[1])
  (rules,) = routers.union(data, 'confidence', deciding_rules.words)
  (cascade,) = deciding_rules.pairs(data, deciding_rules.own_signal('confidence'))
  assert (np.interp(cascade.cost, rules.cost, rules.quality) >= cascade.quality - 1e-9).all()
  policy = rules.apply(np.arange(len(rules.cost)))
  assert policy.cost.shape == (len(rules.cost), 120)
  small, looked, large = 0.1, 0.15, 1.0
  paid = policy.cost.round(9)
  assert {small, large} <= set(paid.ravel()) <= {small, looked, large, looked + large}
  expected = np.where(paid >= large, data.report.quality[1], data.report.quality[0])
  np.testing.assert_array_equal(policy.quality, expected)


def test_routers_are_compared_on_planted_prompts(tmp_path):
  embeds = {'words': deciding_rules.words, 'same': deciding_rules.words}
  differences = routers.evaluate(planted(rows=80), embeds, tmp_path, 50)['differences']
  assert differences['guarded kNN, same over words']['value'] == 0
  assert differences['union, words, over linear router']['value'] > 0
  assert len(differences) == 12
  assert len(list((tmp_path / 'planted').glob('*.json'))) == 8
