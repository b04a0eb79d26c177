"""The program of two models: one real command, whose tables and times all tests here read."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from cascades import evaluate, speculate
from cascades.data.corpus import Data
from cascades.evaluation import speculation, speculation_costs
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.inference import latency, trained_model
from cascades.predictions import shards
from cascades.reporting import speculation_report
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
GAMMA = 1
ALL_LARGE, MIXED, ALL_SMALL = (f'opt-alpha{a}-gamma1-temperature0' for a in (-100, 0.1, 100))
SEQUENTIAL = 'token_chow-alpha0-temperature0'
NAMES = ['small-temperature0', 'large-temperature0', SEQUENTIAL, ALL_LARGE, MIXED, ALL_SMALL]
RULES = {'opt': [-100.0, 0.1, 100.0]}  # one program, with limits that are known
CASCADES = {'chow': [0.0]}
FAST = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'  # compilation
TASK = """from __gin__ import dynamic_registration
from cascades.tasks import local
TASK = @local.local_jsonl()
TASK_FEATURE_LENGTHS = {lengths}
local.local_jsonl.name = 'backwards'
local.local_jsonl.splits = {splits}
"""


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run whose earlier checkpoint is the small model, and whose last one the large one."""
  directory = tmp_path_factory.mktemp('trained')
  tiny.train(**tiny.settings(directory, train_steps=100, save_every=50))
  return directory


@pytest.fixture(scope='module')
def log_lines(trained):
  task = TASK.format(splits=tiny.write_rows(trained), lengths=tiny.LENGTHS)
  (trained / 'task.gin').write_text(task)
  done = subprocess.run(
    [sys.executable, '-m', 'cascades.speculate', '--gin_file=runs/speculate.gin',
     f'--gin_file={trained}/task.gin', f'--gin.RECORDS_DIR={trained}/records',
     f'--gin.SMALL_CHECKPOINT_PATH={trained}/run', '--gin.SMALL_WHICH=50',
     f'--gin.LARGE_CHECKPOINT_PATH={trained}/run', f'--gin.SPECULATE_OUTPUT_DIR={trained}/out',
     f'--gin.RULES={RULES}', f'--gin.TOKEN_CASCADES={CASCADES}', f'--gin.GAMMAS=({GAMMA},)',
     '--gin.BATCH_SIZE=16', '--gin.SHARD_ROWS=16', '--gin.LATENCY_BATCHES=(16,)',
     '--gin.LATENCY_ROWS=32', '--gin.LATENCY_TURNS=2'],
    cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, 'XLA_FLAGS': FAST},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def arguments(trained, *, rules=RULES, overwrite=False, turns=2, rows=32, **sweep):
  """Arguments of the same command."""
  run = str(trained / 'run')
  return {
    'pair': speculate.ModelPair(run, run, small_which=50),
    'output': speculate.SweepOutput(str(trained / 'out'), 16, overwrite),
    'data': Data(
      task=tiny.task(trained), lengths=tiny.LENGTHS, batch_size=16,
      records_dir=str(trained / 'records'),
    ),
    'sweep': speculate.Sweep(
      **{'rules': rules, 'token_cascades': CASCADES, 'gammas': (GAMMA,)} | sweep
    ),
    'timing': speculate.Latency((16,), rows, turns),
    'devices': partitioning.Devices(mesh=tiny.one_device),
  }  # fmt: skip


def read(trained, name):
  (table,) = shards.read(trained / 'out' / 'points' / name / 'test')
  return table


@pytest.fixture(scope='module')
def tables(trained, log_lines):
  return {name: read(trained, name) for name in NAMES}


def test_every_point_has_a_table_of_all_rows(trained, tables, log_lines):
  assert sorted(path.name for path in (trained / 'out' / 'points').iterdir()) == sorted(NAMES)
  assert all(len(table.ids) == 32 for table in tables.values())
  total = 32 * len(NAMES)
  assert any(re.search(rf'row +{total}/{total} .*ETA 0 s', line) for line in log_lines)
  last = f'table 6/6  {NAMES[-1]}, backwards, split test: 32 rows (0 of 2 shards existed)'
  assert any(line.endswith(last) for line in log_lines)


def test_limits_of_the_rules_are_the_answers_of_either_model(tables):
  large, small = tables['large-temperature0'], tables['small-temperature0']
  all_large, all_small = tables[ALL_LARGE], tables[ALL_SMALL]
  assert sum(a != b for a, b in zip(small.predictions, large.predictions, strict=True)) > 2
  for table in (all_large, tables[SEQUENTIAL]):
    assert list(table.predictions) == list(large.predictions)
    np.testing.assert_allclose(table.token_logprobs, large.token_logprobs, atol=1e-4)
  assert list(all_small.predictions) == list(small.predictions)
  read_by_both = ~np.isnan(all_small.by_token['small_logprobs'])
  np.testing.assert_allclose(
    all_small.by_token['small_logprobs'][read_by_both], small.token_logprobs[read_by_both],
    atol=1e-4,
  )  # fmt: skip
  assert read_by_both.mean() > 0.9
  assert np.abs(all_small.token_logprobs - small.token_logprobs).max() > 0.01  # the large one's


def test_a_point_is_an_ordinary_table_that_evaluate_compares(trained, tables, tmp_path):
  points = trained / 'out' / 'points'
  compared = evaluate.evaluate(
    Tables(small={'opt': str(points / MIXED)}, large=str(points / 'large-temperature0')),
    str(tmp_path / 'report'),
    settings=Settings(resamples=20),
  )
  texts = zip(tables[MIXED].predictions, tables[MIXED].targets, strict=True)
  alone = np.mean([answer in targets for answer, targets in texts])
  assert compared.cascades[0].curve.quality[0] == alone


def test_rows_count_the_calls_that_wrote_them(tables):
  for name, table in tables.items():
    columns = {c: table.column(c) for c in ('small_calls', 'large_calls')}
    if name in NAMES[:2]:
      own, other = (f'{model}_calls' for model in (['small', 'large'], ['large', 'small'])[
        name.startswith('large')
      ])  # fmt: skip
      np.testing.assert_array_equal(columns[own], table.lengths)
      assert not columns[other].any()
      continue
    drafted = np.add.reduceat(table.by_token['drafted'], np.cumsum(table.lengths) - table.lengths)
    np.testing.assert_array_equal(drafted, table.column('accepted'))
    assert (table.lengths - drafted <= columns['large_calls']).all()
    assert (columns['large_calls'].sum() < table.lengths.sum()) == (name != SEQUENTIAL)
  assert not tables[ALL_SMALL].column('rejected').any()
  assert tables[ALL_LARGE].column('rejected').any()


def test_the_manifest_names_the_point_and_both_models(tables):
  manifest = tables[MIXED].manifest
  assert manifest['point'] == {'rule': 'opt', 'temperature': 0.0, 'alpha': 0.1, 'gamma': GAMMA}
  assert (manifest['step'], manifest['small']['step']) == (100, 50)
  assert manifest['decoding'] == tables['large-temperature0'].manifest['decoding']
  assert 'small' not in tables['large-temperature0'].manifest
  assert tables['small-temperature0'].manifest['step'] == 50


def test_times_of_answers_and_steps_are_written(trained, tables):
  times = json.loads((trained / 'out' / 'latency.json').read_text())
  assert list(times['points']) == NAMES
  for name, by_size in times['points'].items():
    for entry in by_size.values():
      assert entry['seconds_per_answer'] == pytest.approx(np.median(entry['turns']))
      assert len(entry['turns']) == 2
    assert by_size['16']['tokens_per_answer'] == pytest.approx(tables[name].lengths.mean())
  assert set(times['steps']['small']) == set(times['steps']['large']) == {'16'}
  assert list(times['steps']['small']['16']) == ['1']
  assert list(times['steps']['large']['16']) == ['1', '2']
  assert times['prompts']['large']['16'] > 0
  assert re.fullmatch(r'.+ x 1; .+ cores', times['machine'])
  assert [times[model]['step'] for model in ('small', 'large')] == [50, 100]


def test_a_report_compares_all_points(trained, tables):
  numbers = json.loads((trained / 'out' / 'frontier.json').read_text())
  points = {point['name']: point for point in numbers['points']}
  assert set(points) == set(NAMES)
  assert points['large-temperature0']['seconds'] == {'16': 1.0}
  assert points[ALL_LARGE]['difference']['value'] == 0
  assert points[ALL_SMALL]['rejection_rate'] == 0
  lengths = [points[MIXED][f'length{end}'] for end in ('_low', '', '_high')]
  assert 0 < lengths[0] <= lengths[1] <= lengths[2]
  assert 'length_low,length_high' in (trained / 'out' / 'frontier.csv').read_text().split('\n')[0]
  assert set(numbers['acceptance_by_position']) == {ALL_LARGE, MIXED, ALL_SMALL}
  assert 'Who wrote each token' in (trained / 'out' / 'report.html').read_text()


def test_examples_are_of_the_point_that_the_page_opens_with(trained, tables, monkeypatch):
  written = []
  first = lambda frontier: next(point for point in frontier.points if point.name == MIXED)
  monkeypatch.setattr(speculation.SpeculationFrontier, 'cheapest', first)
  monkeypatch.setattr(speculation_report, 'write', lambda *given: written.append(given))
  bytes_of = types.SimpleNamespace(decode=str)
  speculate.summarize(trained / 'out', 'test', bytes_of, max_tokens=tiny.LENGTHS['targets'])
  ((_, _, acceptance, examples),) = written
  assert {example.point for example in examples} == {MIXED}
  assert set(acceptance) == {ALL_LARGE, MIXED, ALL_SMALL}


def contents(directory):
  return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


@pytest.mark.slow
def test_a_second_run_keeps_everything_and_a_lost_shard_is_written_again(
  trained, tables, monkeypatch
):
  before = contents(trained / 'out')
  lost = trained / 'out' / 'points' / NAMES[0] / 'test' / 'backwards-predict.jsonl-00001-of-00002'
  lost.unlink()
  monkeypatch.setattr(latency, 'step_seconds', lambda *_, **__: pytest.fail('measured again'))
  speculate.speculate(**arguments(trained))
  after = contents(trained / 'out')
  changed = {path for path in before if before[path] != after[path]}
  assert trained / 'out' / 'latency.json' not in changed
  rewritten = {path for path in changed if trained / 'out' / 'points' in path.parents}
  assert {path for path in rewritten if not path.name.endswith('manifest.json')} <= {
    lost,
    lost.with_name(f'{lost.name}.COMPLETED'),  # another process may round otherwise
  }
  assert list(read(trained, NAMES[0]).predictions) == list(tables[NAMES[0]].predictions)


def test_other_settings_are_refused_before_rows_are_answered(trained, tables):
  before = contents(trained / 'out')
  reason = r'decoding seed is 0 there and 1 here.* Name another SPECULATE_OUTPUT_DIR'
  with pytest.raises(ValueError, match=reason):
    speculate.speculate(**arguments(trained, seed=1))
  with pytest.raises(ValueError, match=r'latency\.json holds times of another origin: rows is 32 '):
    speculate.speculate(**arguments(trained, rows=3))
  assert contents(trained / 'out') == before


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'rules': {'best': None}}, "'best' is no rule: choose among bild, chow"),
    ({'rules': {'chow': [1.5]}}, r"alpha=1.5 of rule 'chow' must lie in \[0, 1\]"),
    ({'rules': {'lossless': [0.1]}}, "RULES gives 'lossless' alphas, and it has none"),
    ({'rules': {'opt': [0.1, 0.1]}}, 'opt-alpha0.1-gamma1-temperature0 is one point given twice'),
    ({'gammas': (0,)}, r'GAMMAS\[0\]=0 must be a whole number at least 1'),
    ({'temperatures': (-1.0,)}, 'TEMPERATURE=-1.0 must be'),
    ({'temperatures': ()}, 'TEMPERATURES is empty'),
    ({'top_k': 3}, 'TOP_K says how tokens are drawn'),
    ({'turns': 0}, 'LATENCY_TURNS=0 must be'),
    ({'shortlist': 0}, 'SHORTLIST=0 must be a whole number at least 1'),
  ],
)
def test_settings_out_of_range_are_refused(tmp_path, changes, reason):
  with pytest.raises(ValueError, match=reason):
    arguments(tmp_path, **changes)


def test_drafts_from_a_shortlist_leave_lossless_answers_as_they_are(trained, tables, tmp_path):
  given = arguments(trained, rules={'lossless': None}, token_cascades={}, shortlist=3)
  given['output'] = speculate.SweepOutput(str(tmp_path), 16)
  speculate.speculate(**given)
  folder = tmp_path / 'points' / 'lossless-gamma1-temperature0' / 'test'
  (table,) = shards.read(folder)
  assert list(table.predictions) == list(tables['large-temperature0'].predictions)
  described = table.manifest['small']
  assert described['shortlist'].startswith('3 tokens, ')
  assert described['flops_per_token'] < tables[MIXED].manifest['small']['flops_per_token']
  (alone,) = shards.read(tmp_path / 'points' / 'small-temperature0' / 'test')
  assert list(alone.predictions) == list(tables['small-temperature0'].predictions)
  times = json.loads((tmp_path / 'latency.json').read_text())
  assert set(times['steps']) == {'small', 'drafter', 'large'}
  numbers = json.loads((tmp_path / 'frontier.json').read_text())
  (point,) = [p for p in numbers['points'] if p['name'].startswith('lossless')]
  seconds = {
    model: (times['prompts'][model]['16'], times['steps'][model]['16'][width])
    for model, width in (('drafter', '1'), ('large', '2'))
  }
  calls = {'drafter': table.column('small_calls'), 'large': table.column('large_calls')}
  modeled = sum(
    seconds[model][0] + (own - 1).mean() * seconds[model][1] for model, own in calls.items()
  )
  (large,) = shards.read(tmp_path / 'points' / 'large-temperature0' / 'test')
  alone_seconds = (
    times['prompts']['large']['16']
    + (large.column('large_calls') - 1).mean() * times['steps']['large']['16']['1']
  )
  assert point['modeled']['16'] == pytest.approx(modeled / alone_seconds)
  for other in (4, None):
    given['sweep'] = dataclasses.replace(given['sweep'], shortlist=other)
    with pytest.raises(ValueError, match="times of another origin: shortlist is '3 tokens"):
      speculate.speculate(**given)
  manifest = dict(table.manifest)
  without = manifest | {'small': {k: v for k, v in manifest['small'].items() if k != 'shortlist'}}
  seconds_with, seconds_without = (
    speculation_costs.modeled_seconds(
      times, own, {model: table.column(f'{model}_calls') for model in ('small', 'large')}
    )['16']
    for own in (manifest, without)
  )
  prompts, steps = times['prompts'], times['steps']
  assert seconds_with - seconds_without == pytest.approx(
    prompts['drafter']['16'] - prompts['small']['16'] + (table.column('small_calls') - 1).mean()
    * (steps['drafter']['16']['1'] - steps['small']['16']['1'])
  )  # fmt: skip


def test_a_shortlist_needs_answers_to_count(trained, tmp_path):
  given = arguments(trained, rules={'lossless': None}, token_cascades={}, shortlist=3)
  given['output'] = speculate.SweepOutput(str(tmp_path / 'out'), 16)
  splits = {'test': tiny.write_rows(tmp_path)['test']}
  task = dataclasses.replace(given['data'].task, splits=splits)
  given['data'] = dataclasses.replace(given['data'], task=task)
  reason = 'SHORTLIST=3 counts the tokens of the answers in the split train of backwards: .* test'
  with pytest.raises(ValueError, match=reason):
    speculate.speculate(**given)
  assert not (tmp_path / 'out').exists()


def test_more_than_two_models_are_refused():
  with pytest.raises(
    ValueError, match=r'LARGE_CHECKPOINT_PATH=.* is no path of a run: give one each'
  ):
    speculate.ModelPair('a', ['b', 'c'])


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    (
      {'vocabulary': vocabularies.symbols(['a'])},
      r'small model has the vocabulary \w{12} of 4 tokens and the large one \w{12} of \d+: models '
      r'that decode together must have the same, so train or convert both with one vocabulary\.$',
    ),
    (
      {'architecture': 'decoder_only'},
      'small model is decoder_only and the large one encoder_decoder: models that decode together',
    ),
  ],
)
def test_models_that_cannot_decode_together_are_refused_and_nothing_is_written(
  trained, tmp_path, monkeypatch, change, reason
):
  load = trained_model.load
  different = lambda checkpoint, **options: load(checkpoint, **options)._replace(
    **(change if checkpoint.which == 50 else {})
  )
  monkeypatch.setattr(trained_model, 'load', different)
  output = speculate.SweepOutput(str(tmp_path / 'out'))
  with pytest.raises(ValueError, match=reason):
    speculate.speculate(**arguments(trained) | {'output': output})
  assert not (tmp_path / 'out').exists()


def test_points_that_differ_in_alpha_share_a_program(monkeypatch):
  programs = []

  class Counted:
    def __init__(self, small, large, rule, *, gamma, max_tokens, options):
      programs.append((rule, gamma, options.temperature))

    def answer(self, prompts, row_ids, alpha):
      return prompts, row_ids, alpha

  monkeypatch.setattr(speculate, 'Speculator', Counted)
  rules = {'opt': [0.1, 0.2, 0.3], 'lossless': None}
  sweep = speculate.Sweep(rules, gammas=(1, 3), temperatures=(0.0, 1.0))
  answerers = speculate._answerers(None, None, None, sweep, max_tokens=3)
  assert sorted(programs) == sorted(set(programs))
  assert len(programs) == 8
  assert answerers['opt-alpha0.2-gamma3-temperature1']('prompts', 'ids') == ('prompts', 'ids', 0.2)
