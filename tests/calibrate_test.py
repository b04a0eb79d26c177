import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from cascades import calibrate, evaluate, learned_deferral
from cascades.evaluation import fitted, pooling, realized
from cascades.evaluation import policy as policies
from cascades.evaluation.calibration import Demands, NotCertifiedError
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.predictions import shards
from cascades.reporting import figures, promises
from tests import synthetic_tables

TASKS = ('a', 'b')


def write(root, split, *, skill=0.0, size=200, tasks=TASKS, seed=0, **changes):
  """Tables of a small model of some skill, and of a large one."""
  for model, own, parameters in (('small', skill, 1000), ('large', 2.4, 8000)):
    for task in tasks:
      synthetic_tables.write(
        root / model / split,
        task,
        synthetic_tables.records(task, size=size, skill=own, seed=seed + parameters),
        parameters=parameters,
        flops_per_token=2 * parameters,
        split=split,
        **changes,
      )
  return Tables([str(root / 'small')], str(root / 'large'), split=split)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  directory = tmp_path_factory.mktemp('runs')
  write(directory, 'validation')
  write(directory, 'test', seed=7)
  write(directory, 'drifted', skill=-2.5)
  write(directory, 'unlabelled', unlabelled=200)
  return directory


@pytest.fixture(scope='module')
def stored(root):
  path = root / 'policy.json'
  calibrate.calibrate(
    Tables([str(root / 'small')], str(root / 'large'), split='validation'),
    str(path),
    Demands(quality=0.7, deferral_rate=0.95),
  )
  return path


def tables(root, split):
  return Tables([str(root / 'small')], str(root / 'large'), split=split, require_targets=False)


def outcome(root, stored, split, **options):
  small, large = tables(root, split).read()
  return realized.outcomes(policies.read(stored), small['small'], large, **options)[0]


def test_the_policy_names_models_data_decider_and_promises(root, stored):
  policy = json.loads(stored.read_bytes())
  assert policy['version'] == 1
  assert policy['models']['small']['name'] == 'small'
  assert policy['models']['large']['parameters'] == 8000
  assert policy['decider'] == {
    'name': 'average', 'reads': ['token_logprobs'], 'flops': 0.0, 'fitted': None,
    'digest': None,
  }  # fmt: skip
  table = shards.read(root / 'small' / 'validation', task='a')[0]
  assert policy['data']['tasks']['a'] == policy['data']['tasks']['a'] | {
    'rows': 200, 'small': policies.fingerprint(table),
  }  # fmt: skip
  (entry,) = policy['thresholds']
  assert [promise['name'] for promise in entry['promises']] == ['quality', 'deferral rate']
  assert 'fixed-sequence testing' in policy['method']
  assert {'numpy', 'scipy', 'lm-cascades'} <= set(policy['provenance'])


def test_a_policy_is_read_as_it_was_written(stored, tmp_path):
  policy = policies.read(stored)
  policies.write(tmp_path / 'again.json', policy, overwrite=False)
  assert (tmp_path / 'again.json').read_bytes() == stored.read_bytes()


def test_calibrating_again_gives_the_same_file_and_another_policy_is_not_replaced(
  root, stored, tmp_path
):
  path, split = tmp_path / 'policy.json', tables(root, 'validation')
  calibrate.calibrate(split, str(path), Demands(quality=0.7, deferral_rate=0.95))
  assert path.read_bytes() == stored.read_bytes()
  calibrate.calibrate(split, str(path), Demands(quality=0.7, deferral_rate=0.95))
  with pytest.raises(FileExistsError, match=r'holds another policy: thresholds differ.*OVERWRITE'):
    calibrate.calibrate(split, str(path), Demands(quality=0.65))
  assert path.read_bytes() == stored.read_bytes()
  calibrate.calibrate(split, str(path), Demands(quality=0.65), overwrite=True)
  assert path.read_bytes() != stored.read_bytes()
  (tmp_path / 'notes.json').write_text('mine')
  with pytest.raises(FileExistsError, match='exists and is no policy'):
    calibrate.calibrate(split, str(tmp_path / 'notes.json'), Demands(quality=0.65))
  assert (tmp_path / 'notes.json').read_text() == 'mine'


def test_a_refusal_writes_nothing(root, tmp_path):
  with pytest.raises(NotCertifiedError, match='No threshold'):
    calibrate.calibrate(tables(root, 'validation'), str(tmp_path / 'p.json'), Demands(quality=0.99))
  assert not (tmp_path / 'p.json').exists()


def test_bad_names_are_refused_with_the_choice(root, tmp_path):
  with pytest.raises(ValueError, match=r"no decider 'avrage'; DECIDER can be average"):
    calibrate.calibrate(
      tables(root, 'validation'), str(tmp_path / 'p'), Demands(quality=0.5), decider='avrage'
    )
  two = Tables(
    {'x': str(root / 'small'), 'y': str(root / 'large')}, str(root / 'large'), split='test'
  )
  with pytest.raises(ValueError, match='for one small model, and SMALL names 2: x, y'):
    calibrate.calibrate(two, str(tmp_path / 'p'), Demands(quality=0.5))
  with pytest.raises(ValueError, match="'confidence' reads confidence"):
    calibrate.calibrate(
      tables(root, 'validation'), str(tmp_path / 'p'), Demands(quality=0.5), decider='confidence'
    )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda p: p.update(version=3), 'version: expected 1 of a policy, found 3'),
    (lambda p: p.pop('decider'), 'missing required field `decider`'),
    (lambda p: p['thresholds'].clear(), 'thresholds'),
    (lambda p: p['thresholds'][0].update(threshold='high'), r'thresholds\[0\].threshold'),
    (lambda p: p['thresholds'][0]['promises'][0].update(delta=2), 'delta'),
    (lambda p: p['thresholds'][0]['gaps'].append(1), 'as many edges as ties'),
    (lambda p: p['thresholds'][0].update(rows=7), 'are not of its rows'),
    (lambda p: p['models'].pop('large'), 'models: no entry for large'),
    (lambda p: p['data'].pop('tasks'), 'data: expected "tasks"'),
  ],
)
def test_damaged_policies_are_refused_by_field(stored, tmp_path, change, message):
  content = json.loads(stored.read_bytes())
  change(content)
  (tmp_path / 'p.json').write_text(json.dumps(content))
  with pytest.raises(ValueError, match=f'p.json is not a policy that can be read: .*{message}'):
    policies.read(tmp_path / 'p.json')


@pytest.mark.parametrize('text', ['', '[]', '{"version": 1', 'NaN', '\x00'])
def test_files_that_are_no_json_object_are_refused(tmp_path, text):
  (tmp_path / 'p.json').write_text(text)
  with pytest.raises(ValueError, match='is not a policy that can be read'):
    policies.read(tmp_path / 'p.json')
  with pytest.raises(FileNotFoundError, match='POLICY is a file that'):
    policies.read(tmp_path / 'absent.json')


def test_on_rows_of_the_same_population_the_policy_holds(root, stored):
  result = outcome(root, stored, 'test')
  assert result.holds
  assert not result.calibrated
  assert outcome(root, stored, 'validation').calibrated
  policy = policies.read(stored)
  small, large = tables(root, 'test').read()
  quality = [
    table.statistics['accuracy'][:, 0]
    for pair in zip(small['small'], large, strict=True)
    for table in pair
  ]
  deferred = np.concatenate(policies.scores(policy, small['small'])) >= policy.thresholds[0].value
  expected = np.where(deferred, np.append(*quality[1::2]), np.append(*quality[::2])).mean()
  assert result.quality.value == pytest.approx(expected)
  assert {promise.name: promise.value for promise in result.promises} == {
    'quality': pytest.approx(expected), 'deferral rate': pytest.approx(deferred.mean()),
  }  # fmt: skip


def test_drift_is_noticed_without_labels_and_broken_promises_with(root, stored):
  blind = outcome(root, stored, 'drifted', labels=False)
  alarms = {alarm.monitor: alarm.rows for alarm in blind.alarms}
  assert alarms['scores'] is not None
  assert alarms['deferrals above'] is None  # as promised, below 95 %
  assert alarms['deferrals below'] is None
  assert 'quality' not in alarms
  assert blind.quality is None
  assert [promise.name for promise in blind.promises] == ['deferral rate']
  assert not blind.holds
  policy = policies.read(stored)
  entry = msgspec.structs.replace(policy.thresholds[0], threshold=None)  # never defers
  small, large = tables(root, 'drifted').read()
  unpromised = msgspec.structs.replace(policy.thresholds[0], promises=[])
  free = msgspec.structs.replace(policy, thresholds=[unpromised])
  (result,) = realized.outcomes(free, small['small'], large, labels=False)
  assert {alarm.monitor for alarm in result.alarms if alarm.rows} == {'scores', 'deferrals above'}
  never = msgspec.structs.replace(policy, thresholds=[entry])
  (result,) = realized.outcomes(never, small['small'], large)
  (quality, rate) = result.promises
  assert (quality.fulfilled, quality.refuted) == (False, True)
  assert (rate.fulfilled, rate.refuted) == (True, False)


def test_tables_of_other_models_or_tasks_are_refused(root, stored, tmp_path):
  write(tmp_path, 'test', tasks=('c',))
  small, large = tables(tmp_path, 'test').read()
  policy = policies.read(stored)
  with pytest.raises(ValueError, match="calibrated on a, b, and promises nothing about task 'c'"):
    realized.outcomes(policy, small['small'], large)
  with pytest.raises(ValueError, match='is for a small model with parameters 1000'):
    realized.outcomes(policy, large, large)


def test_evaluate_reports_a_policy_on_another_table(root, stored, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(figures, 'draw', lambda _: {})
  options = {'policy': str(stored), 'settings': Settings(resamples=20)}
  comparison = evaluate.evaluate(tables(root, 'test'), str(tmp_path / 'test'), **options)
  assert comparison is not None
  (report,) = json.loads((tmp_path / 'test' / 'promises.json').read_text())
  assert report['holds'] is True
  assert report['rows'] == 400
  assert 'Promised against realized' in capsys.readouterr().out
  assert 'A policy promises' in (tmp_path / 'test' / 'report.html').read_text()
  blind = evaluate.evaluate(tables(root, 'unlabelled'), str(tmp_path / 'blind'), **options)
  assert blind is None
  (report,) = json.loads((tmp_path / 'blind' / 'promises.json').read_text())
  assert report['quality'] is None
  with pytest.raises(ValueError, match='have no target'):
    evaluate.evaluate(
      Tables([str(root / 'small')], str(root / 'large'), split='unlabelled'), str(tmp_path / 'x')
    )


def test_the_check_draws_one_figure(root, tmp_path, capsys):
  calibrate.calibrate(
    tables(root, 'validation'), str(tmp_path / 'p.json'), Demands(quality=0.7), check=True, draws=20
  )
  output = capsys.readouterr().out
  assert 'Check: 20 draws' in output
  assert 'plug-in' in output
  assert (tmp_path / 'p.check.png').read_bytes().startswith(b'\x89PNG')
  assert b'<svg' in (tmp_path / 'p.check.svg').read_bytes()
  with pytest.raises(ValueError, match='CHECK_DRAWS=0'):
    calibrate.calibrate(
      tables(root, 'validation'), str(tmp_path / 'q.json'), Demands(quality=0.7), draws=0
    )


def test_thresholds_of_each_task_are_applied_to_their_task(root, tmp_path):
  policy = calibrate.calibrate(
    tables(root, 'validation'), str(tmp_path / 'p.json'), Demands(margin=0.2), by_task=True
  )
  assert [entry.task for entry in policy.thresholds] == ['a', 'b']
  small, large = tables(root, 'test').read()
  outcomes = realized.outcomes(policy, small['small'], large)
  assert [result.task for result in outcomes] == ['a', 'b']
  assert promises.as_json(outcomes)[0]['promises'][0]['name'] == 'margin'


@pytest.mark.slow
def test_the_commands_calibrate_and_evaluate_in_a_process(root, tmp_path):
  def run(program, *arguments):
    return subprocess.run(
      [sys.executable, '-m', f'cascades.{program}', f'--gin_file=runs/{program}.gin',
       f'--gin.SMALL={root}/small', f'--gin.LARGE={root}/large', *arguments],
      cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

  result = run(
    'calibrate', '--gin.QUALITY=0.7', '--gin.POLICY=policy.json', '--check', '--gin.CHECK_DRAWS=20'
  )
  assert result.returncode == 0, result.stderr
  assert 'Check: 20 draws' in result.stdout
  assert 'quality >= 0.7' in result.stdout
  result = run(
    'evaluate', '--gin.POLICY=policy.json', '--gin.EVAL_OUTPUT_DIR=report',
    '--gin.SPLITS=unlabelled',
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  assert 'Do the assumptions still hold?' in result.stdout
  assert json.loads((tmp_path / 'report' / 'promises.json').read_text())[0]['rows'] == 400
  result = run('calibrate', '--gin.QUALITY=0.999', '--gin.POLICY=other.json')
  assert result.returncode == 3
  assert 'No threshold' in result.stderr
  assert not (tmp_path / 'other.json').exists()


def test_a_decider_is_fitted_on_half_of_the_rows_and_calibrated_on_the_other(root, tmp_path):
  arguments = tables(root, 'validation'), str(tmp_path / 'p.json'), Demands(quality=0.6)
  policy = calibrate.calibrate(*arguments, decider='logistic')
  assert policy.thresholds[0].rows == 200  # of 400
  assert [task['rows'] for task in policy.data['tasks'].values()] == [100, 100]
  learned = fitted.read(policy.decider.fitted)
  assert learned.name == 'logistic'
  assert 0 < learned.rows < 200  # the tasks share inputs, and no shared one is fitted on
  with pytest.raises(learned_deferral.LeakError):
    outcome(root, tmp_path / 'p.json', 'test')  # of the same questions
  assert calibrate.calibrate(*arguments, decider='logistic') == policy
  before = sorted(tmp_path.iterdir())
  with pytest.raises(NotCertifiedError):
    calibrate.calibrate(
      tables(root, 'validation'),
      str(tmp_path / 'q.json'),
      Demands(quality=0.99),
      decider='logistic',
    )
  assert sorted(tmp_path.iterdir()) == before


def test_a_learned_decider_belongs_to_its_policy(root, stored, tmp_path):
  split = write(tmp_path / 'fit', 'validation', seed=3)
  small, large = split.read()
  for table in small['small']:
    table.ids[:] = [f'fit-{name}' for name in table.ids]
    table.inputs[:] = [f'fit {text}' for text in table.inputs]
  right = [
    np.concatenate([table.statistics['accuracy'][:, 0] for table in own])
    for own in (small['small'], large)
  ]
  recipe = learned_deferral.METHODS['logistic']
  learned = learned_deferral.fit('mine', recipe, pooling.pool(small['small']), *right)
  path = fitted.write(tmp_path / 'deciders', learned)
  policy = calibrate.calibrate(
    tables(root, 'validation'), str(tmp_path / 'p.json'), Demands(quality=0.7), decider=str(path)
  )
  assert policy.decider.name == 'mine'
  assert policy.decider.fitted == str(path)
  assert outcome(root, tmp_path / 'p.json', 'test').holds
  fitted.write(tmp_path / 'deciders', learned._replace(flops=1.0))
  with pytest.raises(ValueError, match='is not the decider of the policy, but another'):
    outcome(root, tmp_path / 'p.json', 'test')
  with pytest.raises(FileNotFoundError, match=r'absent.json does not exist'):
    policies.decider(str(tmp_path / 'absent.json'))
