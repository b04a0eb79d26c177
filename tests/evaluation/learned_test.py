"""Learned deciders in a comparison: fitted on one split, reported on another, never on the same."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cascades import deferral, evaluate
from cascades.evaluation import fitted
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.evaluation.learned import Learned
from cascades.evaluation.tables import Tables
from cascades.learned_deferral import LeakError, Recipe
from cascades.predictions import shards, sidecars
from cascades.predictors import Options
from cascades.reporting import figures
from tests import synthetic_tables

MODELS = {'xent': 0.0, 'cat': 0.5, 'large': 1.6}
QUICK = Recipe(('quantiles',), 'trees', options=Options(trees=5), seeds=1)


def write(root, split, *, repeated=0):
  """Tables of three models; `repeated` questions of the split are those of the test split."""
  for seed, (name, skill) in enumerate(MODELS.items()):
    for task, size in (('a', 60), ('b', 30)):
      records = synthetic_tables.records(
        task + (split if split != 'test' else ''), size=size, skill=skill, seed=seed
      )
      for number, row in enumerate(records):
        row['aux'] |= {'id': f'{split}-{number}', 'prompt_tokens': 10.0, 'generated_tokens': 5.0}
        own = 'test' if number < repeated else split
        row['inputs']['inputs_pretokenized'] = f'{task} {own} question {number}'
      parameters = 8000 if name == 'large' else 1000
      synthetic_tables.write(
        f'{root}/{name}/{split}', task, records,
        split=split, parameters=parameters, flops_per_token=2 * parameters,
      )  # fmt: skip


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  write(folder, 'test')
  write(folder, 'validation', repeated=3)
  return folder


def run(root, output, learned, **options):
  small = {name: f'{root}/{name}' for name in ('xent', 'cat')}
  return evaluate.evaluate(
    Tables(small, f'{root}/large'), str(output), learned=learned,
    settings=Settings(resamples=20), **options,
  )  # fmt: skip


@pytest.fixture
def no_figures(monkeypatch):
  monkeypatch.setattr(figures, 'draw', lambda _: {})


def test_what_is_learned_becomes_a_score_of_every_model(root, tmp_path, no_figures, caplog):
  caplog.set_level('INFO')
  learned = Learned(['logistic'], {'quick': QUICK})
  comparison = run(root, tmp_path, learned)
  assert {'logistic', 'quick'} <= set(comparison.scores)
  assert '6 of 90 rows of split validation are also in the report' in caplog.text
  with (tmp_path / 'summary.csv').open(newline='') as file:
    scores = {row['score'] for row in csv.DictReader(file)}
  assert {'logistic', 'quick'} <= scores
  for model in ('xent', 'cat'):
    decider = fitted.read(tmp_path / 'learned' / model / 'quick.json')
    assert decider.rows == 84
    table = comparison.answers[model].small
    expected = decider.decider().score(table)
    curve = comparison.at(model, 'quick').curve
    np.testing.assert_array_equal(np.unique(expected)[::-1], curve.threshold[1:])
  own = [comparison.at(model, 'quick').curve.threshold for model in ('xent', 'cat')]
  assert own[0].tolist() != own[1].tolist()


def test_a_raw_score_and_its_logistic_regression_defer_alike(root, tmp_path, no_figures):
  comparison = run(root, tmp_path, Learned(['logistic', 'temperature']))
  for name in ('logistic', 'temperature'):
    np.testing.assert_allclose(
      comparison.at('cat', name).curve.quality, comparison.at('cat', 'average').curve.quality
    )


def test_fitting_and_reporting_on_the_same_rows_is_refused(root, tmp_path, no_figures):
  with pytest.raises(LeakError, match="LEARNED_SPLIT and SPLITS are both 'test'"):
    run(root, tmp_path / 'report', Learned(['logistic'], split='test'))
  assert not (tmp_path / 'report' / 'report.html').exists()


def test_shuffled_labels_of_the_report_change_nothing_that_is_learned(root, tmp_path, no_figures):
  """The arrays depend on the fit split alone."""
  learned = Learned(recipes={'quick': QUICK})
  run(root, tmp_path / '0', learned)
  tables = Tables({'xent': f'{root}/xent'}, f'{root}/large')
  small, _ = tables.read()
  shuffled = {
    'xent': [
      t._replace(statistics={'accuracy': t.statistics['accuracy'][::-1]}) for t in small['xent']
    ]
  }
  arrays = learned.fit(tables, [shuffled])['quick']['xent'].arrays
  stored = fitted.read(tmp_path / '0' / 'learned' / 'xent' / 'quick.json').arrays
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, stored[name])


def embed(root, *, flops=500.0):
  """Arrays beside the tables, in which the answer's tells whether it is wrong."""
  for name in MODELS:
    for split in ('test', 'validation'):
      for table in shards.read(f'{root}/{name}/{split}'):
        wrong = 1 - table.statistics['accuracy'][:, :1]
        for array in ('answer', 'first_layer'):
          origin = {'flops_per_query': flops}
          sidecars.write(f'{root}/{name}/{split}', array, table, wrong, count=2, origin=origin)


def test_embeddings_are_read_from_beside_the_tables_and_their_flops_are_charged(
  tmp_path, no_figures
):
  for split in ('test', 'validation'):
    write(tmp_path, split)
  recipe = Recipe(
    ('embeddings/answer', 'embeddings/next_first_layer'), 'linear', options=Options(penalty=100.0)
  )
  learned = Learned(recipes={'seen': recipe})
  with pytest.raises(
    FileNotFoundError, match=r"infer` writes .first_layer., with EMBEDDINGS=\['first_layer'\]"
  ):
    run(tmp_path, tmp_path / 'report', learned)
  embed(tmp_path)
  comparison = run(tmp_path, tmp_path / 'report', learned)
  seen = comparison.at('cat', 'seen').curve.quality.max()
  assert seen > comparison.at('cat', 'average').curve.quality.max() - 1e-9
  decider = fitted.read(tmp_path / 'report' / 'learned' / 'cat' / 'seen.json').decider()
  assert decider.flops == 500.0 + 2 * 2


def test_the_flops_of_a_decision_reach_the_cost_of_chains(root, tmp_path, no_figures):
  chains = Chains(scores=['average', 'logistic'], axes=['flops'])
  comparison = run(root, tmp_path, Learned(['logistic']), chains=chains)
  costs = {
    result.score: result.curves['chain'].cost
    for result in comparison.chains
    if result.models[0] == 'xent'
  }
  np.testing.assert_allclose(costs['logistic'], costs['average'] + 2.0)  # one product and one sum


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'methods': ['post_hoc']}, "LEARNED names 'post_hoc'; the methods are post_hoc_quantile, "),
    ({'methods': ['logistic_confidence']}, "'logistic_confidence' learns from confidence"),
    ({'methods': ['logistic'], 'split': 'train'}, 'train does not exist'),
  ],
)
def test_what_cannot_be_learned_is_said(root, tmp_path, settings, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    run(root, tmp_path, Learned(**settings))


@pytest.mark.slow
def test_the_command_learns_and_reports_beside_scores_of_ones_own(root, tmp_path):
  (tmp_path / 'own_scores.py').write_text('def size(table):\n  return table.lengths + 0.0\n')
  command = [
    sys.executable, '-m', 'cascades.evaluate', '--gin_file=runs/evaluate.gin',
    f'--gin.SMALL={{"xent": "{root}/xent"}}', f'--gin.LARGE={root}/large',
    f'--gin.EVAL_OUTPUT_DIR={tmp_path}/report', '--gin.RESAMPLES=10',
    "--gin.LEARNED=['logistic', 'boosted_trees']",
    '--import=own_scores', "--gin.evaluate.scores={'size': @own_scores.size}",
  ]  # fmt: skip
  environment = os.environ | {'PYTHONPATH': f'{tmp_path}'}
  finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
  assert finished.returncode == 0, finished.stderr
  data = json.loads((tmp_path / 'report' / 'curves.json').read_text())
  assert {'average', 'size', 'logistic', 'boosted_trees'} <= {
    entry['score'] for entry in data['cascades']
  }
  assert 'boosted_trees' in (tmp_path / 'report' / 'report.html').read_text()
  assert (tmp_path / 'report' / 'learned' / 'xent' / 'boosted_trees.npz').exists()
  refused = subprocess.run(
    [*command, '--gin.LEARNED_SPLIT=test'],
    capture_output=True,
    text=True,
    check=False,
    env=environment,
  )
  assert refused.returncode
  assert "LEARNED_SPLIT and SPLITS are both 'test'" in refused.stderr


def test_standard_scores_stay_as_they_are(root, tmp_path, no_figures):
  plain, learned = (
    run(root, tmp_path / name, Learned(methods))
    for name, methods in (('0', []), ('1', ['logistic']))
  )
  assert set(learned.scores) - set(plain.scores) == {'logistic'}
  for name in deferral.PAPER:
    for key, value in plain.at('cat', name).estimates.items():
      assert learned.at('cat', name).estimates[key] == value or np.isnan(value.value)


def test_a_learned_router_is_a_control_of_chains_that_pays_for_one_answer(
  root, tmp_path, no_figures
):
  comparison = run(
    root, tmp_path, Learned(['guarded_knn_words', 'linear_router_words']),
    chains=Chains(axes=['flops']),
  )  # fmt: skip
  assert 'guarded_knn_words' not in comparison.scores  # it is no score of answers
  stored = fitted.read(tmp_path / 'learned' / 'cat' / 'guarded_knn_words.json')
  for result in comparison.chains:
    router = result.curves['router guarded_knn_words']
    # The small model costs 15 * 2,000 and the large one 15 * 16,000, and the decision its search.
    searching = stored.decider().flops
    assert router.cost[0] == pytest.approx(15 * 2000 + searching)
    assert router.cost[-1] == pytest.approx(15 * 16000 + searching)
    assert 'router linear_router_words' in result.curves
