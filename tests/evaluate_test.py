import contextlib
import csv
import io
import json
import math
import re
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from cascades import deferral, evaluate, metrics
from cascades.evaluation import comparison
from cascades.predictions import shards
from cascades.reporting import escaping, figures, summary
from tests import synthetic_tables
from tests.predictions.shards_test import remote  # noqa: F401

RULES = {'average': deferral.average, 'random': deferral.random}
JUDGES = (metrics.accuracy, metrics.token_f1)
MODELS = {'xent': 0.0, 'cat': 0.5, 'large': 1.6}


def infer(root, *, tasks=(('a', 40), ('b', 25))):
  """What inference of three models leaves behind; their directories by name."""
  for seed, (name, skill) in enumerate(MODELS.items()):
    parameters = 8000 if name == 'large' else 1000
    for task, size in tasks:
      made = synthetic_tables.records(task, size=size, skill=skill, seed=seed, judged_by=JUDGES)
      synthetic_tables.write(
        f'{root}/{name}/test',
        task,
        made,
        parameters=parameters,
        flops_per_token=2 * parameters,
        metrics=['accuracy', 'token_f1'],
      )
  return {name: f'{root}/{name}' for name in MODELS}


def run(places, output, **settings):
  small = {name: place for name, place in places.items() if name != 'large'}
  defaults = {'rules': RULES, 'resamples': 30}
  return evaluate.evaluate(small, places['large'], str(output), **{**defaults, **settings})


@pytest.fixture(scope='module')
def places(tmp_path_factory):
  return infer(tmp_path_factory.mktemp('runs'))


@pytest.fixture
def no_figures(monkeypatch):
  """Drawing takes most of the time, and most tests are about something else."""
  monkeypatch.setattr(figures, 'draw', lambda _: {})


@pytest.fixture(scope='module')
def output(places, tmp_path_factory):
  directory = tmp_path_factory.mktemp('evaluation')
  run(places, directory, provenance=lambda: {'config': 'SEED = 0\n', 'commit': 'abc'})
  return directory


def test_answers_that_nothing_judges_are_refused(tmp_path):
  made = synthetic_tables.records('a', judged_by=JUDGES)
  for name in MODELS:
    synthetic_tables.write(tmp_path / name / 'test', 'a', made, unlabelled=3)
  with pytest.raises(ValueError, match=r"3 of 60 rows of task 'a' in .* have no target"):
    run({name: str(tmp_path / name) for name in MODELS}, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def contents(directory):
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in directory.rglob('*')
    if path.is_file()
  }


def test_everything_is_left_in_the_output_directory(output):
  names = ['curves', 'decomposition', 'differences', 'scores', 'separation', 'tasks']
  pictures = {f'figures/{name}.{kind}' for name in names for kind in ('png', 'svg')}
  assert set(contents(output)) == pictures | {
    'report.html', 'curves.json', 'summary.csv', 'config.gin',
  }  # fmt: skip
  assert (output / 'config.gin').read_text() == 'SEED = 0\n'
  page = (output / 'report.html').read_text()
  assert page.count('data:image/svg+xml') == 6
  assert 'abc' in page


def test_evaluating_again_gives_the_same_bytes(places, output, tmp_path):
  run(places, tmp_path, provenance=lambda: {'config': 'SEED = 0\n', 'commit': 'abc'})
  assert contents(tmp_path) == contents(output)


def test_files_and_result_agree_on_the_numbers(places, output, tmp_path, no_figures):
  compared = run(places, tmp_path)
  area = compared.at('cat').estimates[comparison.AREA]
  with (output / 'summary.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  wanted = {'model': 'cat', 'score': 'average', 'task': 'all tasks', 'quantity': 'area'}
  (row,) = [r for r in rows if wanted.items() <= r.items() and not r['baseline']]
  assert [float(row[name]) for name in ('value', 'low', 'high')] == list(area)
  data = json.loads((output / 'curves.json').read_text())
  (curve,) = [
    one for one in data['cascades'] if (one['model'], one['score'], one['task']) ==
    ('cat', 'average', 'all tasks')
  ]  # fmt: skip
  assert curve['curve']['quality'] == compared.at('cat').curve.quality.tolist()
  assert f'{area.value:.4f}' in (output / 'report.html').read_text()
  assert set(compared.others) == {'token_f1'}
  assert set(data['other_metrics']['token_f1']) == {'xent', 'cat', 'large alone'}


def test_thresholds_in_the_files_reproduce_the_curve_on_the_rows(places, output):
  data = json.loads((output / 'curves.json').read_text())
  (one,) = [
    one for one in data['cascades'] if (one['model'], one['score'], one['task']) ==
    ('xent', 'average', 'b')
  ]  # fmt: skip
  (small,), (large,) = (shards.read(f'{places[name]}/test', task='b') for name in ('xent', 'large'))
  score = deferral.average(small.logprobs, small.mask)
  for threshold, rate, quality in zip(
    *(one['curve'][name] for name in ('threshold', 'deferral_rate', 'quality')), strict=True
  ):
    defers = score >= (math.inf if threshold is None else threshold)
    right = np.where(defers, large.statistics['accuracy'][:, 0], small.statistics['accuracy'][:, 0])
    assert (defers.mean(), right.mean()) == (pytest.approx(rate), pytest.approx(quality))


def test_the_terminal_shows_the_main_tables(places, tmp_path, no_figures, capsys):
  run(places, tmp_path)
  shown = capsys.readouterr().out
  for words in ('Models', 'xent', 'large alone', 'Paired differences', 'cat − xent', 'report.html'):  # noqa: RUF001
    assert words in shown
  assert max(map(len, shown.splitlines())) <= 140
  assert '\x1b' not in shown


def test_hostile_names_cannot_act_on_the_terminal_or_in_a_spreadsheet(
  places, tmp_path, no_figures, capsys
):
  hostile = '=1+1\x1b[31m[red]:smile:\u202e<b>'
  compared = run({hostile: places['cat'], 'large': places['large']}, tmp_path)
  shown = capsys.readouterr().out
  assert '\x1b' not in shown
  assert '=1+1\\x1b[31m[red]:smile:\\u202e<b>' in shown
  cells = (tmp_path / 'summary.csv').read_text()
  assert '\x1b' not in cells
  assert "\n'=1+1\\x1b[31m" in cells
  assert '\n=1' not in cells
  assert '<b>' not in (tmp_path / 'report.html').read_text()
  assert compared.flops == {hostile: 2000.0}


@given(st.text())
def test_any_text_is_one_harmless_cell_of_the_csv_and_numbers_stay_numbers(text):
  data = evaluate._csv([{'model': text, 'value': -1.5, 'p': None}]).decode()
  header, row = csv.reader(io.StringIO(data))
  assert header == ['model', 'value', 'p']
  assert row == [escaping.cell(text), '-1.5', '']


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_text_acts_on_the_terminal(text):
  cell = summary.Cell(text, text)
  shown = io.StringIO()
  with contextlib.redirect_stdout(shown):
    evaluate._print([summary.Table(text, '', (text,), ((cell,),))])
  assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]', shown.getvalue())


def test_negative_numbers_in_the_csv_stay_numbers(output):
  with (output / 'summary.csv').open(newline='') as file:
    values = [
      row[name] for row in csv.DictReader(file) for name in ('value', 'low', 'p') if row[name]
    ]
  assert any(float(value) < 0 for value in values)


def test_tasks_rules_scores_and_metrics_can_be_chosen(places, tmp_path, no_figures):
  compared = run(
    places,
    tmp_path,
    tasks=['b'],
    rules={},
    scores={'length': lambda table: table.mask.sum(axis=1).astype(float)},
    metric='token_f1',
    costs=[5000.0],
    qualities=[0.6],
    baseline='cat',
  )
  assert compared.sizes == {'b': 25}
  assert compared.scores == ('length',)
  assert compared.metric is metrics.token_f1
  assert compared.settings.costs == (5000.0,)
  assert [(pair.model, pair.baseline) for pair in compared.versus] == [('xent', 'cat')]


@pytest.mark.parametrize('metric', ['bleu', metrics.bleu()], ids=['name', 'metric'])
def test_a_metric_that_inference_did_not_know_judges_the_texts(
  places, tmp_path, no_figures, metric
):
  compared = run(places, tmp_path, metric=metric)
  assert compared.settings.weights == 'uniform'
  (small,) = shards.read(f'{places["cat"]}/test', task='a')
  statistics = list(map(metrics.bleu().statistics, small.targets, small.predictions))
  expected = float(metrics.finalize_bleu(sum(statistics)))
  assert expected > 10
  assert compared.at('cat', task='a').curve.quality[0] == pytest.approx(expected)


def grouped_rows(root, *, repeats=0, mode='predict'):
  """What inference leaves of a task with groups of three rows and one without groups."""
  for seed, (name, skill) in enumerate(MODELS.items()):
    for task in ('q', 'r'):
      made = synthetic_tables.records(task, size=45, skill=skill, seed=seed, judged_by=JUDGES)
      for i, row in enumerate(made):
        if task == 'q':
          row['aux']['group'] = f'question {i // 3}'
          row['inputs']['inputs_pretokenized'] = f'answer {max(i, repeats)}'
        if mode == 'score':
          row['score'] = row.pop('prediction') and -1.0
      parameters = 8000 if name == 'large' else 1000
      synthetic_tables.write(
        f'{root}/{name}/test',
        task,
        made,
        mode=mode,
        parameters=parameters,
        flops_per_token=2 * parameters,
      )
  return {name: f'{root}/{name}' for name in MODELS}


def wholly_right(place):
  """The share of the groups of `q` of which every row is right."""
  (table,) = shards.read(f'{place}/test', task='q')
  right = {}
  for name, one in zip(table.groups, table.statistics['accuracy'][:, 0], strict=True):
    right[name] = right.get(name, True) and one == 1
  return np.mean([*right.values()])


def test_questions_of_several_rows_are_judged_as_a_whole_too(tmp_path, no_figures):
  places = grouped_rows(tmp_path)
  compared = run(places, tmp_path / 'out')
  assert set(compared.questions) == {'q'}
  for name in ('xent', 'cat'):
    shares = compared.questions['q'][name]
    assert shares.groups == 15
    assert shares.small.value == pytest.approx(wholly_right(places[name]))
    assert shares.large.value == pytest.approx(wholly_right(places['large']))
    assert shares.small.low <= shares.small.value <= shares.small.high
  assert shares.small.value < compared.at('cat', task='q').estimates[comparison.SMALL].value
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert 'Questions answered wholly right' in page
  assert json.loads((tmp_path / 'out' / 'curves.json').read_text())['questions']['q']['cat']


def test_questions_are_judged_by_stored_accuracy_where_answers_are_scored(tmp_path, no_figures):
  compared = run(grouped_rows(tmp_path, mode='score'), tmp_path / 'out', mode='score')
  expected = run(grouped_rows(tmp_path), tmp_path / 'other')
  assert compared.questions == expected.questions
  for table in shards.read(f'{tmp_path}/cat/test', mode='score'):
    assert evaluate._has_accuracy(table)
    assert not evaluate._has_accuracy(table._replace(statistics={}))


def test_rows_whose_inputs_repeat_may_be_left_out(tmp_path, no_figures, capsys):
  places = grouped_rows(tmp_path, repeats=7)
  whole = run(places, tmp_path / 'whole')
  assert whole.sizes == {'q': 45, 'r': 45}
  assert not whole.sizes_with_repeats
  capsys.readouterr()
  compared = run(places, tmp_path / 'out', dedupe_inputs=True)
  assert compared.sizes == {'q': 38, 'r': 45}
  assert compared.sizes_with_repeats == {'q': 45, 'r': 45}
  assert 'Task q: 38 of 45 rows have distinct inputs.' in capsys.readouterr().out
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert 'q (38 of 45 rows), r (45 of 45 rows).' in page
  assert 'are left out' in page
  assert 'are left out' not in (tmp_path / 'whole' / 'report.html').read_text()
  data = json.loads((tmp_path / 'out' / 'curves.json').read_text())
  assert data['tasks_with_repeated_inputs'] == {'q': 45, 'r': 45}
  for name in ('xent', 'large'):
    (table,) = shards.read(f'{places[name]}/test', task='q')
    kept = np.delete(table.statistics['accuracy'][:, 0], range(1, 8))
    quantity = comparison.LARGE if name == 'large' else comparison.SMALL
    assert compared.at('xent', task='q').estimates[quantity].value == pytest.approx(kept.mean())
  # The first question lost two of its rows, the second all.
  assert compared.questions['q']['cat'].groups == 14


def test_f1s_that_tables_hold_are_reported_beside_the_metric_that_is_compared(tmp_path, no_figures):
  judges = [metrics.accuracy, metrics.by_name('f1[x1|x2]')]
  for name in ('xent', 'large'):
    made = synthetic_tables.records('a', size=6)
    for i, row in enumerate(made):
      answer = 'x1' if name == 'large' or i < 2 else 'x2'
      row['prediction'], row['aux']['targets'] = answer, ['x1']
      row['aux']['statistics'] = {
        one.name: one.statistics(['x1'], answer).tolist() for one in judges
      }
    synthetic_tables.write(f'{tmp_path}/{name}/test', 'a', made)
  compared = run({name: f'{tmp_path}/{name}' for name in ('xent', 'large')}, tmp_path / 'out')
  found = compared.others['f1[x1|x2]']
  assert found['xent'].value == pytest.approx(2 * 2 / (2 * 2 + 4))
  assert found['large alone'].value == 1


def test_scored_answers_are_not_judged_as_texts(tmp_path, no_figures):
  for name in ('xent', 'large'):
    made = synthetic_tables.records('a', size=5)
    for row in made:
      del row['prediction']
      row['score'] = -1.0
    synthetic_tables.write(f'{tmp_path}/{name}/test', 'a', made, mode='score')
  places = {name: f'{tmp_path}/{name}' for name in ('xent', 'large')}
  run(places, tmp_path / 'out', mode='score')
  with pytest.raises(ValueError, match="'bleu' cannot judge them; the table has accuracy"):
    run(places, tmp_path / 'out', mode='score', metric='bleu')


def test_models_are_named_by_their_directories_if_not_otherwise(places, tmp_path, no_figures):
  large = places['large']
  compared = evaluate.evaluate(
    [places['cat'], places['xent']], large, str(tmp_path), rules=RULES, resamples=5
  )
  assert list(compared.flops) == ['cat', 'xent']
  with pytest.raises(ValueError, match='2 small models have only the names cat: name them'):
    evaluate.evaluate([places['cat'], '/elsewhere/cat'], large, str(tmp_path))
  for named in ({}, {'large alone': places['cat']}):
    with pytest.raises(ValueError, match=r"none of them called 'large alone'; found (none|large)"):
      evaluate.evaluate(named, large, str(tmp_path))


def test_tables_of_other_tasks_are_refused_by_name(places, tmp_path):
  few = infer(tmp_path, tasks=(('a', 40),))
  with pytest.raises(
    ValueError, match=r"answers the tasks \['a'\] and the large model \['a', 'b'\]"
  ):
    run({'xent': few['xent'], 'large': places['large']}, tmp_path / 'out')
  with pytest.raises(FileNotFoundError, match='validation does not exist'):
    run(places, tmp_path / 'out', split='validation')
  assert not (tmp_path / 'out').exists()


def test_runs_may_live_in_an_object_store(remote, no_figures):  # noqa: F811
  places = infer(remote)
  run(places, f'{remote}/evaluation')
  assert shards.epath.Path(f'{remote}/evaluation/report.html').exists()


def test_importing_the_program_loads_neither_jax_nor_tensorflow():
  code = 'import sys, cascades.evaluate; print(*sys.modules)'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  slow = {'jax', 'tensorflow', 'sacrebleu', 'rouge_score', 'nltk', 'sklearn'}
  assert not slow & set(out.stdout.split())
