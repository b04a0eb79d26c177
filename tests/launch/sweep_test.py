"""A sweep: what is run again and what is not, what it leaves, and a real one that is killed."""

import csv
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from absl import app

from launch import logs, points, restarting, results, sweep
from tests import processes_test, tiny

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
  """Two losses by two seeds on a tiny task, beside a tiny large model."""
  settings = points.empty()
  settings.output_dir = str(tmp_path / 'sweep')
  settings.large.gin_file = 'recipes/local_train.gin'
  settings.train.gin_file = 'recipes/local_train.gin'
  settings.infer.gin_file = 'runs/infer.gin'
  settings.evaluate.gin_file = 'runs/evaluate.gin'
  settings.grid.LOSS = ('@losses.xent', '@losses.cat_xent')
  settings.seeds = (0, 1)
  settings.alone = ('@losses.xent',)
  return sweep.located(settings)


def run_all(config, running=None):
  running = running or sweep.Running(1)
  return {
    point.name: sweep.run_stages(config, running, '', point.name, points.stages_of(config, point))
    for point in points.all_points(config)
  }


@pytest.fixture
def programs(monkeypatch):
  """Programs that only note that they ran, and fail where told to."""
  ran, failing = [], {}

  def call(self, command, log):
    ran.append((command[2], log.parent.name))
    log.write_text('a line\nstep 1, compiling included: 2.5 s\nthe last line\n')
    return failing.get(ran[-1], 0)

  monkeypatch.setattr(sweep.Running, 'call', call)
  return ran, failing


def test_every_point_is_trained_answered_and_evaluated_once(config, programs):
  ran, _ = programs
  assert set(run_all(config).values()) == {0}
  assert [program for program, _ in ran] == [
    'cascades.train', 'cascades.infer', 'cascades.evaluate'
  ] * 4  # fmt: skip
  run_all(config)
  assert len(ran) == 12
  config.seeds = (0, 1, 2)
  run_all(config)
  assert {name[-6:] for _, name in ran[12:]} == {'SEED=2'}


def test_a_point_that_fails_does_not_stop_the_others_and_goes_on_where_it_failed(
  config, programs, capsys
):
  ran, failing = programs
  bad = 'LOSS=losses.xent,SEED=1'
  failing['cascades.infer', bad] = 3
  codes = run_all(config)
  assert codes[bad] == 3
  assert sorted(codes.values()) == [0, 0, 0, 3]
  sweep._list_failures(config, codes)
  output = capsys.readouterr().out
  assert f'{bad} failed with exit code 3' in output
  assert 'infer.log' in output
  assert output.rstrip().endswith('the last line')
  failing.clear()
  before = len(ran)
  assert run_all(config)[bad] == 0
  assert ran[before:] == [('cascades.infer', bad), ('cascades.evaluate', bad)]


def test_a_changed_sweep_is_a_failure_that_says_so(config, programs):
  run_all(config)
  config.train.bindings = {'TRAIN_STEPS': 7}
  codes = run_all(config)
  assert set(codes.values()) == {1}
  log = pathlib.Path(config.log_dir) / 'LOSS=losses.xent,SEED=0' / 'train.log'
  assert 'finished under another recipe or command' in log.read_text()


def test_a_preempted_stage_is_started_again(config, programs, monkeypatch):
  codes = [75, 0]
  monkeypatch.setattr(restarting.time, 'sleep', lambda _: None)
  monkeypatch.setattr(sweep.Running, 'call', lambda *_: codes.pop(0))
  (point, *_) = points.all_points(config)
  pending = points.stages_of(config, point)[:1]
  assert sweep.run_stages(config, sweep.Running(1), '', point.name, pending) == 0
  history = (pathlib.Path(config.log_dir) / point.name / results.HISTORY).read_text()
  assert [json.loads(line)['code'] for line in history.splitlines()] == [75, 0]


def test_training_goes_through_the_launcher_and_evaluation_does_not(config, monkeypatch):
  commands = []
  monkeypatch.setattr(sweep.Running, 'call', lambda self, command, _: commands.append(command) or 0)
  launcher = "launch.tpu_vm --name={point} --zone='a b'"
  (point, *_) = points.all_points(config)
  pending = points.stages_of(config, point)
  sweep.run_stages(config, sweep.Running(1), launcher, point.name, pending)
  name = sweep.short_name(point.name)
  before = [sys.executable, '-m', 'launch.tpu_vm', f'--name={name}', '--zone=a b', '--']
  assert commands[0] == [*before, *pending[0].words()]
  assert commands[1] == [*before, *pending[1].words()]
  assert commands[2] == [sys.executable, '-m', *pending[2].words()]
  assert len({sweep.short_name(p.name) for p in points.all_points(config)}) == 4


def test_nothing_starts_after_the_end_and_what_runs_is_ended(tmp_path):
  running, log = sweep.Running(1), tmp_path / 'log'
  sleeper = "import time; print('ready', flush=True); time.sleep(60)"
  call = functools.partial(running.call, [sys.executable, '-c', sleeper], log)
  with sweep.concurrent.futures.ThreadPoolExecutor(1) as pool:
    future = pool.submit(call)
    while not (log.exists() and log.read_text()):
      time.sleep(0.05)
    running.end()
    assert future.result(10) == 130
  assert call() == 130
  assert log.read_text().count('ready') == 1


def test_the_tables_hold_every_point_and_what_it_came_to(config, programs, capsys):
  run_all(config)
  run = pathlib.Path(config.output_dir) / 'LOSS=losses.xent,SEED=0'
  (run / 'evaluation').mkdir(parents=True)
  names = ('small alone', 'large alone', 'area', 'area above chord', 'quality at cost')
  estimates = [{'quantity': name, 'at': None, 'value': n / 8} for n, name in enumerate(names)]
  cascades = [{'estimates': estimates}, {'estimates': []}]
  curves = {'metric': {'name': 'accuracy'}, 'cascades': cascades}
  (run / 'evaluation' / 'curves.json').write_text(json.dumps(curves))
  lines = {'step': 2, 'loss': 0.5, 'validation/loss': 1.5}, {'step': 4, 'loss': 0.25}
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  rows = sweep._rows(config, points.all_points(config), {run.name: 0})
  results.write(pathlib.Path(config.log_dir), rows)
  results.show(rows)
  table = pathlib.Path(config.log_dir) / 'results.csv'
  first, second, *_ = csv.DictReader(table.read_text().splitlines())
  assert len(rows) == 4
  assert (first['LOSS'], first['SEED'], first['state']) == ('@losses.xent', '0', 'finished')
  assert [float(first[name]) for name in names[:4]] == [0, 0.125, 0.25, 0.375]
  assert [float(first[n]) for n in ('steps', 'train_loss', 'validation_loss')] == [4, 0.25, 1.5]
  assert (second['state'], second['area']) == ('not reached', '')
  assert json.loads(table.with_suffix('.json').read_text())[0]['metric'] == 'accuracy'
  assert '0.375' in capsys.readouterr().out


def test_means_over_seeds_have_intervals(tmp_path, capsys):
  rows = [
    {'LOSS': 'xent', 'SEED': seed, 'area': area, 'metric': 'accuracy', 'state': 'finished'}
    for seed, area in enumerate([0.5, 0.6, 0.7])
  ] + [{'LOSS': 'cat', 'SEED': 0, 'area': 0.9, 'state': 'finished'}]
  (mean,) = results.over_seeds(rows)
  half = 4.30265 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
  assert (mean['LOSS'], mean['seeds'], mean['area']) == ('xent', 3, pytest.approx(0.6))
  assert mean['area low'] == pytest.approx(0.6 - half, abs=1e-5)
  assert mean['area high'] == pytest.approx(0.6 + half, abs=1e-5)
  results.write(tmp_path, rows)
  (line,) = csv.DictReader((tmp_path / 'means.csv').read_text().splitlines())
  assert float(line['area']) == pytest.approx(0.6)
  results.show(rows)
  assert '0.6 [0.3516, 0.8484]' in capsys.readouterr().out
  assert results.over_seeds(rows[2:]) == []


def test_places_that_cannot_be_are_refused():
  settings = points.empty()
  with pytest.raises(app.UsageError, match='output_dir is empty'):
    sweep.located(settings)
  settings.output_dir = 'gs://bucket/there'
  with pytest.raises(app.UsageError, match='logs must be local'):
    sweep.located(settings)


def test_a_sweep_does_not_rehearse():
  """Its stages would count as finished."""
  sweep.check_launchers('launch.tpu_vm --name={point}', '')
  with pytest.raises(app.UsageError, match='cannot use --dry_run'):
    sweep.check_launchers('', 'launch.tpu_vm --dry_run')


CONFIG = """
from launch import points

def get_config():
  config = points.empty()
  config.output_dir = {directory!r}
  task = ({directory!r} + '/../task.gin',)
  tiny = {{'t5': {{'Config': {{'emb_dim': 16, 'mlp_dim': 16}}}}, 'TRAIN_STEPS': 60,
          'WARMUP_STEPS': 2, 'SAVE_EVERY': 5, 'BATCH_SIZE': 8,
           'VALIDATION_ROWS': 8, 'RECORDS_DIR': {records!r}}}
  config.large.gin_file = ('recipes/local_train.gin', 'models/t5_nano.gin', *task)
  config.train.gin_file = ('recipes/local_train.gin', 'models/t5_nano.gin', *task)
  config.large.bindings = tiny
  config.train.bindings = tiny
  config.infer.gin_file = ('runs/infer.gin', *task)
  config.infer.bindings = {{'BATCH_SIZE': 8, 'RECORDS_DIR': {records!r}}}
  config.evaluate.gin_file = 'runs/evaluate.gin'
  config.evaluate.bindings = {{'RESAMPLES': 20}}
  config.grid.LOSS = ('@losses.xent', '@losses.cat_xent')
  config.seeds = (0, 1)
  config.alone = ('@losses.xent',)
  return config
"""


@pytest.mark.slow
def test_a_real_sweep_that_is_killed_goes_on(tmp_path):
  """Killed while the second point trains: the first is not run again, the second resumes."""
  splits = tiny.write_rows(tmp_path, rows=38)
  (tmp_path / 'task.gin').write_text(processes_test.TASK.format(splits=splits))
  directory = tmp_path / 'sweep'
  file = tmp_path / 'mine.py'
  file.write_text(CONFIG.format(directory=str(directory), records=str(tmp_path / 'records')))
  command = [sys.executable, '-m', 'launch.sweep', f'--config={file}']
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache')}
  environment['JAX_PLATFORMS'], environment['XLA_FLAGS'] = 'cpu', ''
  start = functools.partial(
    subprocess.Popen, cwd=ROOT, env=environment, start_new_session=True, text=True
  )
  names = [f'LOSS=losses.{loss},SEED={seed}' for loss in ('xent', 'cat_xent') for seed in (0, 1)]

  killed = start(command, stdout=(tmp_path / 'killed.log').open('w'), stderr=subprocess.STDOUT)
  second = directory / names[1]
  deadline = time.monotonic() + 500
  # At its third report the first of its checkpoints is whole.
  while not re.search(r'step +15/60', logs.last_lines(second / 'train.log')):
    assert killed.poll() is None, (tmp_path / 'killed.log').read_text()
    assert time.monotonic() < deadline
    time.sleep(0.1)
  os.killpg(killed.pid, signal.SIGKILL)
  killed.wait()
  first_log = (directory / names[0] / 'train.log').read_bytes()

  again = start(command, stdout=subprocess.PIPE)
  output = again.communicate(timeout=900)[0]
  assert again.returncode == 0, output
  assert (directory / names[0] / 'train.log').read_bytes() == first_log
  assert 'resuming from step' in (second / 'train.log').read_text()
  rows = json.loads((directory / 'results.json').read_text())
  assert [f'LOSS={row["LOSS"][1:]},SEED={row["SEED"]}' for row in rows] == names
  assert {row['state'] for row in rows} == {'finished'}
  assert {row['steps'] for row in rows} == {60}
  assert all(0 <= row['area'] <= 1 and row['first_step_seconds'] > 0 for row in rows)
  assert rows[0]['train_loss'] > 0
  assert list((tmp_path / 'cache').iterdir())  # one for all points
