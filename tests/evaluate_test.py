import csv
import json
import math
import re
import subprocess
import sys

import gin
import numpy as np
import pytest

from cascades import cli, deferral, evaluate, metrics
from cascades.evaluation import grouped, quantities
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.evaluation.learned import Learned
from cascades.evaluation.tables import Tables
from cascades.predictions import shards
from cascades.reporting import figures
from cascades.reporting.report import Report
from cascades.runtime import locking
from cascades.settings import reading
from tests import synthetic_tables
from tests.predictions.shards_test import remote  # noqa: F401

RULES = {'average': deferral.average, 'random': deferral.random}
JUDGES = (metrics.accuracy, metrics.token_f1)
MODELS = {'xent': 0.0, 'cat': 0.5, 'large': 1.6}


def infer(root, *, tasks=(('a', 40), ('b', 25))):
  """Writes the tables of three models; returns their directories by name."""
  for seed, (name, skill) in enumerate(MODELS.items()):
    parameters = 8000 if name == 'large' else 1000
    for task, size in tasks:
      rows = synthetic_tables.records(task, size=size, skill=skill, seed=seed, judged_by=JUDGES)
      synthetic_tables.write(
        f'{root}/{name}/test',
        task,
        rows,
        parameters=parameters,
        flops_per_token=2 * parameters,
        metrics=['accuracy', 'token_f1'],
      )
  return {name: f'{root}/{name}' for name in MODELS}


def run(directories, output, *, settings=None, tables=None, standard_rules=RULES, **options):
  """Evaluates every directory but the large model's, with few resamples."""
  small = {name: path for name, path in directories.items() if name != 'large'}
  return evaluate.evaluate(
    Tables(small, directories['large'], **(tables or {})),
    str(output),
    settings=Settings(**{'resamples': 30, 'standard_rules': standard_rules, **(settings or {})}),
    **options,
  )


@pytest.fixture(scope='module')
def directories(tmp_path_factory):
  return infer(tmp_path_factory.mktemp('runs'))


@pytest.fixture
def no_figures(monkeypatch):
  """Drawing takes most of the time, and most tests are about something else."""
  monkeypatch.setattr(figures, 'draw', lambda _: {})


@pytest.fixture(scope='module')
def output(directories, tmp_path_factory):
  directory = tmp_path_factory.mktemp('evaluation')
  run(directories, directory, provenance=lambda: {'config': 'SEED = 0\n', 'commit': 'abc'})
  return directory


def contents(directory):
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in directory.rglob('*')
    if path.is_file()
  }


def test_all_files_are_written_to_the_output_directory(output):
  names = [
    'curves',
    'decomposition',
    'differences',
    'reliability',
    'scores',
    'separation',
    'shares',
  ]
  names += ['chains', 'tasks']
  pictures = {f'figures/{name}.{suffix}' for name in names for suffix in ('png', 'svg')}
  assert set(contents(output)) == pictures | {
    'report.html', 'curves.json', 'summary.csv', 'config.gin',
  }  # fmt: skip
  assert (output / 'config.gin').read_text() == 'SEED = 0\n'
  page = (output / 'report.html').read_text()
  assert page.count('<img src="data:image/svg+xml') == 9
  assert 'abc' in page


def test_evaluating_again_gives_the_same_bytes(directories, output, tmp_path):
  run(directories, tmp_path, provenance=lambda: {'config': 'SEED = 0\n', 'commit': 'abc'})
  assert contents(tmp_path) == contents(output)


def test_a_report_of_other_tables_is_replaced_only_if_told(directories, tmp_path, no_figures):
  run(directories, tmp_path)
  run(directories, tmp_path, settings={'resamples': 20})  # of the same tables
  before = contents(tmp_path)
  fewer = {name: path for name, path in directories.items() if name != 'cat'}
  with pytest.raises(FileExistsError, match=r"Model 'cat' has there .*task a.*, and here no table"):
    run(fewer, tmp_path)
  assert contents(tmp_path) == before
  run(fewer, tmp_path, overwrite=True)
  assert contents(tmp_path) != before


def test_two_comparisons_do_not_write_to_one_folder_at_once(directories, tmp_path, no_figures):
  with locking.held(tmp_path), pytest.raises(BlockingIOError, match='is in use by process'):
    run(directories, tmp_path)
  assert contents(tmp_path) == {}
  run(directories, tmp_path)


def test_files_and_result_agree_on_the_numbers(directories, output, tmp_path, no_figures):
  comparison = run(directories, tmp_path)
  area = comparison.at('cat').estimates[quantities.AREA]
  with (output / 'summary.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  names = {'model': 'cat', 'score': 'average', 'task': 'all tasks', 'quantity': 'area'}
  (row,) = [r for r in rows if names.items() <= r.items() and not r['baseline']]
  assert [float(row[name]) for name in ('value', 'low', 'high')] == list(area)
  data = json.loads((output / 'curves.json').read_text())
  (cascade,) = [
    entry for entry in data['cascades'] if (entry['model'], entry['score'], entry['task']) ==
    ('cat', 'average', 'all tasks')
  ]  # fmt: skip
  assert cascade['curve']['quality'] == comparison.at('cat').curve.quality.tolist()
  assert f'{area.value:.4f}' in (output / 'report.html').read_text()
  assert set(comparison.other_metrics) == {'token_f1'}
  assert set(data['other_metrics']['token_f1']) == {'xent', 'cat', 'large alone'}


def test_thresholds_in_the_files_reproduce_the_curve_on_the_rows(directories, output):
  data = json.loads((output / 'curves.json').read_text())
  (cascade,) = [
    entry for entry in data['cascades'] if (entry['model'], entry['score'], entry['task']) ==
    ('xent', 'average', 'b')
  ]  # fmt: skip
  (small,), (large,) = (
    shards.read(f'{directories[name]}/test', task='b') for name in ('xent', 'large')
  )
  score = deferral.average(small.logprobs, small.mask)
  for threshold, rate, quality in zip(
    *(cascade['curve'][name] for name in ('threshold', 'deferral_rate', 'quality')), strict=True
  ):
    defers = score >= (math.inf if threshold is None else threshold)
    right = np.where(defers, large.statistics['accuracy'][:, 0], small.statistics['accuracy'][:, 0])
    assert (defers.mean(), right.mean()) == (pytest.approx(rate), pytest.approx(quality))


def test_the_terminal_shows_the_main_tables(directories, tmp_path, no_figures, capsys):
  run(directories, tmp_path)
  shown = capsys.readouterr().out
  for words in ('Models', 'xent', 'large alone', 'Comparisons', 'cat − xent', 'report.html'):  # noqa: RUF001
    assert words in shown
  assert max(map(len, shown.splitlines())) <= 140
  assert '\x1b' not in shown


def test_hostile_names_cannot_act_on_the_terminal_or_in_a_spreadsheet(
  directories, tmp_path, no_figures, capsys
):
  hostile = '=1+1\x1b[31m[red]:smile:\u202e<b>'
  comparison = run({hostile: directories['cat'], 'large': directories['large']}, tmp_path)
  shown = capsys.readouterr().out
  assert '\x1b' not in shown
  assert '=1+1\\x1b[31m[red]:smile:\\u202e<b>' in shown
  cells = (tmp_path / 'summary.csv').read_text()
  assert '\x1b' not in cells
  assert "\n'=1+1\\x1b[31m" in cells
  assert '\n=1' not in cells
  assert ':smile:\\u202e<b>' not in (tmp_path / 'report.html').read_text()
  assert comparison.flops == {hostile: 2000.0}


def test_negative_numbers_in_the_csv_stay_numbers(output):
  with (output / 'summary.csv').open(newline='') as file:
    values = [
      row[name] for row in csv.DictReader(file) for name in ('value', 'low', 'p') if row[name]
    ]
  assert any(float(value) < 0 for value in values)


def test_tasks_rules_scores_and_metrics_can_be_chosen(directories, tmp_path, no_figures):
  comparison = run(
    directories,
    tmp_path,
    tables={'tasks': ['b']},
    standard_rules={},
    scores={'length': lambda table: table.mask.sum(axis=1).astype(float)},
    metric='token_f1',
    settings={'costs': [5000.0], 'qualities': [0.6], 'baseline': 'cat'},
  )
  assert comparison.sizes == {'b': 25}
  assert comparison.scores == ('length',)
  assert comparison.metric is metrics.token_f1
  assert comparison.settings.costs == (5000.0,)
  assert [(pair.model, pair.baseline) for pair in comparison.differences] == [('xent', 'cat')]


def test_the_defaults_are_the_rules_of_the_paper_and_many_resamples(
  directories, tmp_path, no_figures
):
  tables = Tables({'xent': directories['xent']}, directories['large'], tasks=['b'])
  comparison = evaluate.evaluate(tables, str(tmp_path))
  assert comparison.scores == tuple(deferral.PAPER)
  assert comparison.settings.resamples == 1000
  assert '<h1>Comparison of cascades</h1>' in (tmp_path / 'report.html').read_text()


def test_options_of_the_report_are_used(directories, tmp_path, no_figures):
  run(directories, tmp_path, report=Report(title='Two cascades', points=2))
  assert '<h1>Two cascades</h1>' in (tmp_path / 'report.html').read_text()
  cascades = json.loads((tmp_path / 'curves.json').read_text())['cascades']
  assert {len(cascade['curve']['cost']) for cascade in cascades} == {2}


def test_every_macro_reaches_the_program():
  macros = {
    'SMALL': {'x': 'small'}, 'LARGE': 'large', 'EVAL_OUTPUT_DIR': 'out', 'SPLITS': 'validation',
    'TASKS': ['b'], 'MODE': 'score', 'METRIC': 'bleu', 'TASK_WEIGHTS': 'uniform', 'COSTS': [2.0],
    'QUALITIES': [0.5], 'BASELINE': 'x', 'RESAMPLES': 20, 'CONFIDENCE': 0.9, 'SEED': 3,
    'DEDUPE_INPUTS': True, 'TITLE': 'A title', 'INTERACTIVE': False,
    'ALLOW_DIFFERENCES': ['weights'],
    'OVERWRITE': True, 'CHAIN': ['x'], 'FIT_SPLIT': 'train', 'COST_AXES': ['flops', 'dollars'],
    'CHAIN_SCORES': ['sum'], 'DOLLARS': {'x': {'prompt': 1, 'generated': 2}}, 'SECONDS': {},
    'CHARGE_DISCARDED': False, 'POLICY': 'policy.json', 'LEARNED': ['logistic'],
    'LEARNED_SPLIT': 'train', 'ABSTENTION': 0.3, 'DECISIONS': {'sum': {'seconds': 0.1}},
  }  # fmt: skip
  gin.clear_config()
  bindings = [f'{name}={value!r}' for name, value in macros.items()]
  cli.configure('cascades.evaluate', ['runs/evaluate.gin'], bindings)
  arguments = gin.get_bindings(evaluate.evaluate)
  gin.clear_config()
  assert arguments == {
    'tables': Tables({'x': 'small'}, 'large', 'validation', ['b'], 'score', ['weights']),
    'output_dir': 'out',
    'overwrite': True,
    'metric': 'bleu',
    'settings': Settings('uniform', [2.0], [0.5], 'x', 20, 0.9, 3, dedupe_inputs=True),
    'chains': Chains(
      ['x'],
      ['flops', 'dollars'],
      ['sum'],
      'train',
      macros['DOLLARS'],
      {},
      charge_discarded=False,
      abstention=0.3,
      decisions=macros['DECISIONS'],
    ),
    'learned': Learned(['logistic'], {}, 'train'),
    'report': Report('A title', interactive=False),
    'policy': 'policy.json',
  }
  text = (reading.search_path()[0] / 'runs' / 'evaluate.gin').read_text()
  assert set(re.findall(r'^([A-Z_]+) =', text, re.M)) == set(macros)


def test_rules_of_ones_own_are_added_to_the_standard_ones(directories, tmp_path, no_figures):
  comparison = run(directories, tmp_path, rules={'least': deferral.minimum})
  assert comparison.scores == (*RULES, 'least')


def test_tables_without_log_probabilities_are_compared_by_their_confidence(tmp_path, no_figures):
  for name, skill in MODELS.items():
    for split in ('train', 'test'):
      rows = synthetic_tables.records(f'{split} a', size=30, skill=skill, judged_by=JUDGES)
      for i, row in enumerate(rows):
        row['aux'] |= {'tokens': [], 'token_logprobs': [], 'length': 0, 'scores': 0.0}
        row['aux'] |= {'confidence': (i % 10) / 10, 'dollars': 1.0 + 9 * (name == 'large')}
      directory = f'{tmp_path}/{name}/{split}'
      synthetic_tables.write(directory, 'a', rows, split=split, metrics=['accuracy', 'token_f1'])
  directories = {name: f'{tmp_path}/{name}' for name in MODELS}
  comparison = run(
    directories, tmp_path / 'report', standard_rules=deferral.PAPER,
    chains=Chains(['xent', 'cat'], ['dollars'], fit_split='train'),
  )  # fmt: skip
  assert comparison.scores == ('confidence', 'random')
  (chain,) = comparison.chains
  assert chain.models == ('xent', 'cat', 'large')
  assert chain.singles['large'].cost == 10
  data = json.loads((tmp_path / 'report' / 'curves.json').read_text())['chains'][0]
  pairs = data['curves']['pairs']
  assert all(len(rule['models']) == len(rule['thresholds']) <= 2 for rule in pairs['rules'])
  lines = [*csv.DictReader((tmp_path / 'report' / 'summary.csv').open())]
  (area,) = [x for x in lines if x['quantity'] == 'pairs, area in dollars per query']
  assert area['model'] == 'xent > cat > large'
  assert float(area['value']) == pytest.approx(
    chain.curves['pairs'].metrics[quantities.Quantity('area')]
  )


def test_tables_that_nothing_can_order_are_refused(tmp_path):
  for name in MODELS:
    rows = synthetic_tables.records('a', size=5, judged_by=JUDGES)
    for row in rows:
      row['aux'] |= {'tokens': [], 'token_logprobs': [], 'length': 0, 'scores': 0.0}
    synthetic_tables.write(f'{tmp_path}/{name}/test', 'a', rows)
  with pytest.raises(
    ValueError, match='no log-probabilities of tokens, alternatives or confidence'
  ):
    run({name: f'{tmp_path}/{name}' for name in MODELS}, tmp_path / 'report')


def test_rules_can_be_bound_by_name():
  gin.clear_config()
  binding = "evaluate.evaluate.rules={'least likely token': @deferral.minimum}"
  cli.configure('cascades.evaluate', [], [binding])
  rule = gin.get_bindings(evaluate.evaluate)['rules']['least likely token']
  gin.clear_config()
  logprobs, mask = np.array([[-1.0, -3.0], [-2.0, 0.0]]), np.array([[1, 1], [1, 0]], bool)
  np.testing.assert_array_equal(rule(logprobs, mask), [3, 2])


@pytest.mark.parametrize('metric', ['bleu', metrics.bleu()], ids=['name', 'metric'])
def test_a_metric_that_inference_did_not_know_judges_the_texts(
  directories, tmp_path, no_figures, metric
):
  comparison = run(directories, tmp_path, metric=metric)
  assert comparison.settings.weights == 'uniform'
  (small,) = shards.read(f'{directories["cat"]}/test', task='a')
  statistics = list(map(metrics.bleu().statistics, small.targets, small.predictions))
  expected = float(metrics.finalize_bleu(sum(statistics)))
  assert expected > 10
  assert comparison.at('cat', task='a').curve.quality[0] == pytest.approx(expected)


def grouped_rows(root, *, repeats=0, mode='predict'):
  """Writes tables of a task with groups of three rows, and of one without groups."""
  for seed, (name, skill) in enumerate(MODELS.items()):
    for task in ('q', 'r'):
      rows = synthetic_tables.records(task, size=45, skill=skill, seed=seed, judged_by=JUDGES)
      for i, row in enumerate(rows):
        if task == 'q':
          row['aux']['group'] = f'question {i // 3}'
          row['inputs']['inputs_pretokenized'] = f'answer {max(i, repeats)}'
        if mode == 'score':
          row['score'] = row.pop('prediction') and -1.0
      parameters = 8000 if name == 'large' else 1000
      synthetic_tables.write(
        f'{root}/{name}/test',
        task,
        rows,
        mode=mode,
        parameters=parameters,
        flops_per_token=2 * parameters,
      )
  return {name: f'{root}/{name}' for name in MODELS}


def group_accuracy(directory):
  """Share of the groups of `q` with all rows correct."""
  (table,) = shards.read(f'{directory}/test', task='q')
  right = {}
  for name, correct in zip(table.groups, table.statistics['accuracy'][:, 0], strict=True):
    right[name] = right.get(name, True) and correct == 1
  return np.mean([*right.values()])


def test_questions_of_several_rows_are_judged_together_too(tmp_path, no_figures):
  directories = grouped_rows(tmp_path)
  comparison = run(directories, tmp_path / 'out')
  assert set(comparison.group_accuracy) == {'q'}
  for name in ('xent', 'cat'):
    accuracy = comparison.group_accuracy['q'][name]
    assert accuracy.groups == 15
    assert accuracy.small.value == pytest.approx(group_accuracy(directories[name]))
    assert accuracy.large.value == pytest.approx(group_accuracy(directories['large']))
    assert accuracy.small.low <= accuracy.small.value <= accuracy.small.high
  assert accuracy.small.value < comparison.at('cat', task='q').estimates[quantities.SMALL].value
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert 'Question-level accuracy' in page
  assert json.loads((tmp_path / 'out' / 'curves.json').read_text())['questions']['q']['cat']


def test_questions_are_judged_by_stored_accuracy_where_answers_are_scored(tmp_path, no_figures):
  comparison = run(grouped_rows(tmp_path, mode='score'), tmp_path / 'out', tables={'mode': 'score'})
  expected = run(grouped_rows(tmp_path), tmp_path / 'other')
  assert comparison.group_accuracy == expected.group_accuracy
  for table in shards.read(f'{tmp_path}/cat/test', mode='score'):
    assert grouped.has_accuracy(table)
    assert not grouped.has_accuracy(table._replace(statistics={}))


def test_rows_whose_inputs_repeat_can_be_excluded(tmp_path, no_figures, capsys):
  directories = grouped_rows(tmp_path, repeats=7)
  repeated = run(directories, tmp_path / 'repeated')
  assert repeated.sizes == {'q': 45, 'r': 45}
  assert not repeated.sizes_with_repeats
  capsys.readouterr()
  comparison = run(directories, tmp_path / 'out', settings={'dedupe_inputs': True})
  assert comparison.sizes == {'q': 38, 'r': 45}
  assert comparison.sizes_with_repeats == {'q': 45, 'r': 45}
  assert 'Task q: 38 of 45 rows have distinct inputs.' in capsys.readouterr().out
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert 'q (38 of 45 rows), r (45 of 45 rows).' in page
  assert 'are excluded' in page
  assert 'are excluded' not in (tmp_path / 'repeated' / 'report.html').read_text()
  data = json.loads((tmp_path / 'out' / 'curves.json').read_text())
  assert data['tasks_with_repeated_inputs'] == {'q': 45, 'r': 45}
  for name in ('xent', 'large'):
    (table,) = shards.read(f'{directories[name]}/test', task='q')
    distinct = np.delete(table.statistics['accuracy'][:, 0], range(1, 8))
    quantity = quantities.LARGE if name == 'large' else quantities.SMALL
    assert comparison.at('xent', task='q').estimates[quantity].value == pytest.approx(
      distinct.mean()
    )
  # The first question lost two of its rows, the second all.
  assert comparison.group_accuracy['q']['cat'].groups == 14


def test_f1s_that_tables_hold_are_reported_beside_the_metric_that_is_compared(tmp_path, no_figures):
  judges = [metrics.accuracy, metrics.by_name('f1[x1|x2]')]
  for name in ('xent', 'large'):
    rows = synthetic_tables.records('a', size=6)
    for i, row in enumerate(rows):
      answer = 'x1' if name == 'large' or i < 2 else 'x2'
      row['prediction'], row['aux']['targets'] = answer, ['x1']
      row['aux']['statistics'] = {
        metric.name: metric.statistics(['x1'], answer).tolist() for metric in judges
      }
    synthetic_tables.write(f'{tmp_path}/{name}/test', 'a', rows)
  comparison = run({name: f'{tmp_path}/{name}' for name in ('xent', 'large')}, tmp_path / 'out')
  f1 = comparison.other_metrics['f1[x1|x2]']
  assert f1['xent'].value == pytest.approx(2 * 2 / (2 * 2 + 4))
  assert f1['large alone'].value == 1


def test_scored_answers_are_not_judged_as_texts(tmp_path, no_figures):
  for name in ('xent', 'large'):
    rows = synthetic_tables.records('a', size=5)
    for row in rows:
      del row['prediction']
      row['score'] = -1.0
    synthetic_tables.write(f'{tmp_path}/{name}/test', 'a', rows, mode='score')
  directories = {name: f'{tmp_path}/{name}' for name in ('xent', 'large')}
  run(directories, tmp_path / 'out', tables={'mode': 'score'})
  with pytest.raises(ValueError, match="'bleu' cannot judge them; the table has accuracy"):
    run(directories, tmp_path / 'out', tables={'mode': 'score'}, metric='bleu')


def test_files_of_something_else_are_not_overwritten(directories, tmp_path, no_figures):
  (tmp_path / 'config.gin').write_text('of a training run')
  with pytest.raises(FileExistsError, match=r'holds the config\.gin of something else'):
    run(directories, tmp_path)
  assert (tmp_path / 'config.gin').read_text() == 'of a training run'


def test_figures_of_a_replaced_report_do_not_stay(directories, tmp_path, no_figures):
  run(directories, tmp_path)
  (tmp_path / 'figures').mkdir()
  (tmp_path / 'figures' / 'differences.png').write_text('of two small models')
  run({name: directories[name] for name in ('cat', 'large')}, tmp_path, overwrite=True)
  assert not (tmp_path / 'figures' / 'differences.png').exists()


def test_runs_may_live_in_an_object_store(remote, no_figures):  # noqa: F811
  directories = infer(remote)
  run(directories, f'{remote}/evaluation')
  assert shards.epath.Path(f'{remote}/evaluation/report.html').exists()


def test_importing_the_program_loads_neither_jax_nor_tensorflow():
  code = 'import sys, cascades.evaluate; print(*sys.modules)'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  slow = {'jax', 'tensorflow', 'sacrebleu', 'rouge_score', 'nltk', 'sklearn'}
  assert not slow & set(out.stdout.split())
