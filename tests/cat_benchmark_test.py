"""The reproduction of cascade-aware training: its tests of effects, its points, and its runs."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import (
  cat_claims,
  cat_grid,
  cat_report,
  cat_runs,
  cat_statistics,
  cat_tasks,
  drafters,
)
from benchmarks.cat_grid import BASE, TUNING_SEED, Cell
from benchmarks.cat_statistics import Effect, Rows, mixed, verdict
from benchmarks.reproduce_cat import tuning_of, work
from cascades import metrics
from cascades.runtime import claims
from cascades.tasks.task import Row
from tests import tiny

PLAIN = Cell('g2p', 'nano', 'xent')


def test_a_mixed_test_by_hand():
  # s^2 = 4e-4 over four seeds is 1e-4; with v = 1e-4 the error is the root of 2e-4
  effect = mixed([0.01, 0.05, 0.01, 0.05], 1e-4, rows=101)
  assert effect.mean == pytest.approx(0.03)
  assert effect.deviation**2 == pytest.approx(16e-4 / 3)
  assert effect.error**2 == pytest.approx(4e-4 / 3 + 1e-4)
  freedom = (7 / 3e4) ** 2 / ((4e-4 / 3) ** 2 / 3 + 1e-8 / 100)
  assert effect.freedom == pytest.approx(freedom)
  half = stats.t.ppf(0.975, freedom) * effect.error
  assert (effect.low, effect.high) == pytest.approx((0.03 - half, 0.03 + half))
  assert effect.p == pytest.approx(2 * stats.t.sf(0.03 / effect.error, freedom))


def test_without_variance_of_rows_it_is_the_paired_t_test():
  first, second = np.array([0.3, 0.5, 0.4, 0.45]), np.array([0.28, 0.44, 0.41, 0.40])
  effect = mixed(first - second, 0.0, rows=1000)
  assert effect.p == pytest.approx(stats.ttest_rel(first, second).pvalue)
  assert effect.freedom == pytest.approx(3)


def test_one_seed_decides_nothing():
  effect = mixed([0.5], 1e-9, rows=1000)
  assert (effect.low, effect.high, effect.p) == (-math.inf, math.inf, 1.0)
  assert verdict(effect, 1.0, 0.01, complete=True) == 'undecided'


def test_quantities_of_four_rows_by_hand():
  right = lambda *bits: np.array([[bit, 1.0] for bit in bits])
  rows = Rows(np.array([4.0, 3, 2, 1]), right(0, 0, 0, 1), right(1, 1, 0, 1))
  values = cat_statistics.quantities(rows, np.ones((1, 4), np.uint16), metrics.ratio)
  # quality at 0, 1, 2, 3 and 4 deferrals: 1/4, 2/4, 3/4, 3/4, 3/4
  assert values['area'][0] == pytest.approx((0.125 + 0.5 + 0.75 + 0.75 + 0.375) / 4)
  assert values['quality at 20 %'][0] == pytest.approx(0.25 + 0.8 * 0.25)
  assert values['alone'][0] == pytest.approx(0.25)
  assert values['ordering'][0] == pytest.approx(0.625 - 0.5)


def effect(mean, error, freedom=9.0):
  return Effect(mean, mean - 2 * error, mean + 2 * error, 0.5, error, freedom, 0.01, 0.0)


@pytest.mark.parametrize(
  ('of', 'adjusted', 'expected'),
  [
    (effect(0.02, 0.005), 0.01, 'confirmed'),
    (effect(-0.02, 0.005), 0.01, 'refuted'),
    (effect(0.0, 0.001), 1.0, 'refuted'),  # its limit is 0.0018, below 0.005
    (effect(0.0, 0.004), 1.0, 'undecided'),  # its limit is 0.0073
    (effect(0.002, 0.0005), 0.02, 'undecided'),  # above 0, and too small to matter
  ],
)
def test_a_verdict_needs_significance_or_a_limit_below_what_matters(of, adjusted, expected):
  assert verdict(of, adjusted, 0.005, complete=True) == expected
  assert verdict(of, adjusted, 0.005, complete=False) == 'undecided'


def test_power_is_the_share_of_rejections_in_simulations():
  generator = np.random.default_rng(0)
  samples = generator.normal(0.01, 0.0083, (20_000, 10))
  rejected = stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05
  assert cat_statistics.power(0.01, 0.0083, 10) == pytest.approx(rejected.mean(), abs=0.01)
  least = cat_statistics.detectable(0.0083, 10)
  assert cat_statistics.power(least, 0.0083, 10) == pytest.approx(0.8)
  assert cat_statistics.power(0.0, 0.0083, 10) == pytest.approx(0.05)


def test_the_mixed_test_keeps_its_level_when_seeds_and_rows_vary():
  generator = np.random.default_rng(1)
  rejected = []
  for _ in range(2000):
    by_row = generator.normal(0, 0.02)  # shared by all seeds
    differences = by_row + generator.normal(0, 0.03, 5)
    rejected.append(mixed(differences, 0.02**2, rows=500).p <= 0.05)
  assert np.mean(rejected) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
  ('verdicts', 'expected'),
  [
    (['confirmed', 'confirmed', 'undecided'], 'confirmed'),
    (['confirmed', 'confirmed', 'refuted'], 'undecided'),
    (['refuted'], 'refuted'),
    (['confirmed', 'not run'], 'undecided'),
    (['not run', 'not run'], 'not run'),
    (['confirmed', 'no cascade', 'no cascade'], 'confirmed'),
  ],
)
def test_the_verdict_over_tasks(verdicts, expected):
  assert cat_report.overall(verdicts) == expected


def test_a_point_is_named_by_what_differs_from_the_defaults():
  assert PLAIN.name == 'loss=xent,size=nano,task=g2p,SEED=0'
  assert PLAIN._replace(loss='cat_dist', w=0.25, seed=3).name == (
    'loss=cat_dist,size=nano,task=g2p,w=0.25,SEED=3'
  )
  cells = [cell for _, cell in cat_grid.cells()]
  assert len({cell.name for cell in cells}) == len(cells)


def test_parts_follow_the_protocol_seed_by_seed():
  parts = cat_grid.parts()
  assert list(parts)[:3] == ['g2p: base', 'classification: base', 'tanaka: base']
  base = parts['g2p: base']
  assert [cell.seed for cell in base[:80]] == [TUNING_SEED + n for n in range(5) for _ in range(16)]
  assert [(cell.seed, cell.loss) for cell in base[80:88]] == [
    *((0, loss) for loss in BASE), *((1, loss) for loss in BASE),
  ]  # fmt: skip
  assert len(base) == 5 * 16 + 20 * 4


def test_every_loss_is_tuned_with_the_same_budget_before_its_seeds():
  position = {cell: number for number, (_, cell) in enumerate(cat_grid.cells())}
  for cell, number in position.items():
    factors = cat_grid.FEW_FACTORS.get(cell.task, cat_grid.FACTORS)
    budget = len(factors) * cat_grid.TUNING_SEEDS.get(cell.task, 1)
    assert len(cell.tuning) == (0 if cell.seed >= TUNING_SEED else budget)
    for needed in cell.needs:
      assert position[needed] < number, (needed.name, cell.name)


def test_every_claim_is_of_points_that_are_run():
  planned = {cell for _, cell in cat_grid.cells()}
  for claim in cat_claims.claims():
    for seed in range(claim.seeds):
      assert {term.cell._replace(seed=seed) for term in claim.terms} <= planned, claim.name
  names = [(claim.task, claim.name) for claim in cat_claims.claims()]
  assert len(set(names)) == len(names)
  primary = [c for c in cat_claims.claims() if c.family == 'primary' and c.task == 'g2p']
  assert len(primary) == cat_report.PRIMARY


def test_noise_replaces_its_share_of_symbols_and_is_the_same_each_time():
  symbols = [f'P{number}' for number in range(40)]
  rows = [Row(f'w{number}', 'a', (' '.join(['A'] * 10),)) for number in range(300)]
  noisy = [cat_tasks.with_noise(row, 0.3, symbols) for row in rows]
  answers = [row.answers[0].split() for row in noisy]
  assert {len(answer) for answer in answers} == {10}
  assert np.mean([s != 'A' for a in answers for s in a]) == pytest.approx(0.3, abs=0.03)
  assert noisy == [cat_tasks.with_noise(row, 0.3, symbols) for row in rows]


def test_options_that_are_sentences_are_answered_by_letters():
  row = {'input': 'Why?', 'options': ['it is', 'it was'], 'target': 'it was'}
  assert cat_tasks.question(row, letters=True) == {
    'input': 'Why?\nOptions: (A) it is; (B) it was\nAnswer:', 'target': 'B',
  }  # fmt: skip
  assert cat_tasks.question(row, letters=False)['target'] == 'it was'


def test_splits_share_no_row_and_keep_those_that_files_have():
  rows = numbered(range(3000))
  single = cat_tasks.split_rows([rows])
  assert sorted((row for own in single.values() for row in own), key=str) == sorted(rows, key=str)
  assert {split: len(own) for split, own in single.items()} == {
    'train': 2000, 'validation': 500, 'test': 500,
  }  # fmt: skip
  both = cat_tasks.split_rows([rows, numbered(range(3000, 5000))])
  assert {int(row['input']) for row in both['test']} <= set(range(3000, 5000))
  assert len(both['test']) == 1000


def numbered(numbers):
  return [{'input': str(number), 'target': f'{number} in words'} for number in numbers]


def test_an_input_of_several_splits_stays_in_the_last_one():
  """Sentences of a corpus recur: 60 of Tanaka's 500 test inputs are in its training file."""
  parts = [numbered(range(10)), numbered(range(8, 14)), numbered(range(12, 20))]
  splits = cat_tasks.split_rows(parts)
  assert {split: sorted(int(row['input']) for row in own) for split, own in splits.items()} == {
    'train': [*range(8)], 'validation': [*range(8, 12)], 'test': [*range(12, 20)],
  }  # fmt: skip
  few = cat_tasks.split_rows(parts, validation_rows=3, test_rows=5)
  assert (len(few['validation']), len(few['test'])) == (3, 5)
  inputs = [row['input'] for own in few.values() for row in own]
  assert len(set(inputs)) == len(inputs)


def test_rows_that_an_earlier_version_wrote_are_not_taken_for_these(tmp_path):
  cat_tasks.write_rows(tmp_path, {'test': numbered(range(3))})
  cat_tasks.write_rows(tmp_path, {'test': numbered(range(3))})
  with pytest.raises(ValueError, match=r'test\.jsonl has other rows .* use a new --work'):
    cat_tasks.write_rows(tmp_path, {'test': numbered(range(4))})


def test_a_task_without_its_data_is_skipped_by_name(tmp_path):
  bench = cat_runs.Bench(cat_tasks.Folders(tmp_path, tmp_path / 'work'))
  cell = Cell('tanaka', 'nano', 'xent', factor=1.0, seed=TUNING_SEED)
  assert bench.waits_for(cell)[0] == 'mt_tanaka_en_ja/train.tsv'
  outcome = dict(work(bench, [('tanaka: base', cell)], minutes=1))
  assert outcome['missing: mt_tanaka_en_ja/train.tsv'] == 'for 1 points'


def planted(bench, gain, seeds, *, spread=0.02, rows=400):
  """Points of the base part whose cascade-aware models answer more rows rightly, or as many."""
  bench.points.mkdir(parents=True)
  shared = np.random.default_rng(0)
  hard, large = shared.normal(size=rows), shared.random(rows) < 0.9
  for seed in range(seeds):
    for number, loss in enumerate(BASE):
      generator = np.random.default_rng((seed, number))
      skill = gain * loss.startswith('cat') + generator.normal(0, spread)
      small = generator.random(rows) < 1 / (1 + np.exp(hard - skill))
      cell = Cell('g2p', 'nano', loss, seed=seed)
      columns = {'small': small, 'large': large}
      statistics = {name: np.stack([v, np.ones(rows)], 1) for name, v in columns.items()}
      score = hard + generator.normal(0, 0.3, rows)
      np.savez(bench.path(cell).with_suffix('.npz'), average=score, **statistics)
      summary = {
        'metric': 'accuracy', 'rows': rows, 'commit': 'abc', 'agreement': [], 'point': cell.name,
        'alone': small.mean(), 'large alone': large.mean(),
      }  # fmt: skip
      bench.path(cell).write_text(json.dumps(summary))


@pytest.mark.parametrize(
  ('gain', 'spread', 'expected'), [(1.0, 0.02, 'confirmed'), (0.0, 0.6, 'undecided')]
)
def test_a_planted_effect_is_recovered_and_none_is_not(tmp_path, gain, spread, expected):
  bench = cat_runs.Bench(cat_tasks.Folders(tmp_path, tmp_path / 'work'))
  planted(bench, gain, seeds=20, spread=spread)
  listed = [c for c in cat_claims.claims() if c.task == 'g2p' and c.family == 'primary']
  records = cat_report.tested(bench, listed, cat_report.NOTHING)
  assert {record['verdict'] for record in records} == {expected}
  for record in records:
    assert record['adjusted p'] >= record['p']
    assert len(record['values']) == 20


def test_a_partial_grid_is_reported_as_partial(tmp_path):
  bench = cat_runs.Bench(cat_tasks.Folders(tmp_path, tmp_path / 'work'))
  planted(bench, 2.0, seeds=3)
  measured, details = cat_report.report(bench)
  assert all('3 of 20 seeds: undecided' in row.note for row in measured if ': P ' in row.what)
  assert set(details['verdicts'].values()) == {'undecided', 'not run'}
  assert details['complete points'].startswith('12 of ')
  assert details['large model better than xent by']['g2p'] > 0.1
  assert details['large model better than xent by']['tanaka'] is None
  assert np.isfinite([row.value for row in measured]).all()
  cat_report.draw(details, tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').read_bytes()[:4] == b'\x89PNG'


def test_a_report_keeps_what_an_earlier_one_found_of_more_seeds(tmp_path):
  benches = [cat_runs.Bench(cat_tasks.Folders(tmp_path, tmp_path / name)) for name in 'abc']
  for bench, gain, seeds in zip(benches, (2.0, 0.0, 0.0), (4, 3, 5), strict=True):
    planted(bench, gain, seeds)
  first = cat_report.report(benches[0])
  earlier = json.loads(json.dumps(first[1]))
  fewer, more = (cat_report.report(bench, earlier) for bench in benches[1:])
  assert fewer[0] == first[0]
  assert fewer[1]['verdicts'] == earlier['verdicts']
  assert [own['values'] for own in fewer[1]['claims'] if own['seeds']] == [
    own['values'] for own in earlier['claims'] if own['seeds']
  ]
  assert fewer[1]['complete points'] == earlier['complete points']
  assert more == cat_report.report(benches[2])


def test_where_the_large_model_is_no_better_there_is_no_verdict(tmp_path):
  folders = cat_tasks.Folders(tmp_path, tmp_path / 'work')
  weak = dataclasses.replace(cat_tasks.SETTINGS['g2p'], least_gap=0.9)
  bench = cat_runs.Bench(folders, {'g2p': weak})
  planted(bench, 1.0, seeds=3)
  listed = [c for c in cat_claims.claims() if c.task == 'g2p' and c.family == 'primary']
  records = cat_report.tested(bench, listed, cat_report.NOTHING)
  assert {record['verdict'] for record in records} == {'no cascade'}


@pytest.fixture
def bench(tmp_path):
  """A reproduction of one task of a few rows and tiny models."""
  run = cat_tasks.Training(steps=4, rate=1e-2, warmup=1)

  def task(folders, noise):
    del folders, noise
    return dataclasses.replace(
      tiny.task(tmp_path, metrics=('accuracy',)), vocabulary=lambda: tiny.VOCABULARY
    )

  setting = cat_tasks.Setting(
    task=task, lengths=tiny.LENGTHS, sizes={'nano': tiny.SMALL}, large=tiny.LARGE, training=run,
    large_training=run, batch=16, top_k=4,
  )  # fmt: skip
  folders = cat_tasks.Folders(tmp_path, tmp_path / 'work')
  return cat_runs.Bench(folders, {'g2p': setting})


def stub(bench, monkeypatch, best):
  """Points that are not trained: the factor `best` answers the most validation rows."""
  trained = []

  def execute(cell):
    trained.append(cell)
    quality = float(cell.factor == best)
    summary = {'validation alone': quality, 'alone': 0.5, 'area': 0.6, 'seconds': {'training': 1}}
    bench.path(cell).write_text(json.dumps(summary))
    return summary

  monkeypatch.setattr(bench, 'execute', execute)
  return trained


def test_the_learning_rate_is_the_best_on_average_over_the_tuning_seeds(bench):
  bench.points.mkdir(parents=True)
  quality = {0.25: [0.2] * 5, 0.5: [0.6] * 5, 1.0: [0.1, 0.9, 0.9, 0.3, 0.3], 2.0: [1, 0, 0, 0, 0]}
  for cell in PLAIN.tuning:
    alone = quality[cell.factor][cell.seed - TUNING_SEED]
    bench.path(cell).write_text(json.dumps({'validation alone': alone}))
  assert bench.chosen_factor(PLAIN) == 0.5
  assert bench.chosen_factor(PLAIN._replace(factor=cat_grid.SECOND)) == 1.0


def test_rates_of_an_earlier_report_need_no_runs(bench, tmp_path, monkeypatch):
  tuning = PLAIN._replace(loss='adaspec').tuning  # beside points of `dist`, which it starts from
  points = [
    {**cell.recorded, 'point': cell.name, 'validation alone': float(cell.factor == 0.25)}
    for cell in (*PLAIN.tuning, *tuning, *PLAIN._replace(loss='dist').tuning)
  ]
  report = tmp_path / 'report.json'
  report.write_text(json.dumps({'details': {'points': [*points, points[0] | {'seed': 0}]}}))
  tuned = cat_runs.Bench(bench.folders, bench.settings, tuning_of(report))
  assert len(tuned.tuned) == len(points)
  assert bench.waits_for(PLAIN) == [cell.name for cell in PLAIN.tuning]
  assert not tuned.waits_for(PLAIN)
  assert tuned.training(PLAIN).rate == 1e-2 * 0.25
  # A model that another starts from must be at hand, though the report has its summary.
  started = tuning[0]
  assert tuned.waits_for(started) == [started.origin.name]
  trained = stub(tuned, monkeypatch, best=1.0)
  outcome = dict(work(tuned, [('', cell) for cell in (*PLAIN.tuning, PLAIN)], minutes=5))
  assert trained == [PLAIN]
  assert outcome.keys() == {PLAIN.name}


def test_points_run_once_and_wait_for_their_tuning(bench, monkeypatch):
  monkeypatch.setattr(cat_grid, 'TUNING_SEEDS', {})
  trained = stub(bench, monkeypatch, best=2.0)
  tuning = [PLAIN._replace(loss='cat_xent', factor=f, seed=TUNING_SEED) for f in cat_grid.FACTORS]
  last = PLAIN._replace(loss='cat_xent', seed=0)
  listed = [('g2p: base', cell) for cell in (last, *tuning)]
  outcome = dict(work(bench, listed, minutes=0))
  assert not trained
  assert outcome[f'missing: {tuning[0].name}'] == 'for 1 points'
  list(work(bench, listed[1:3], minutes=5))
  assert bench.waits_for(last) == [cell.name for cell in tuning[2:]]
  outcome = [name for name, _ in work(bench, listed, minutes=5)]
  assert outcome == [tuning[2].name, tuning[3].name, last.name]
  assert trained == [*tuning, last]
  assert bench.training(last).rate == 1e-2 * 2.0
  assert not list(work(bench, listed, minutes=5))


def test_points_that_another_process_holds_are_left_to_it(bench, monkeypatch):
  trained = stub(bench, monkeypatch, best=1.0)
  tuning = [PLAIN._replace(factor=factor, seed=TUNING_SEED) for factor in cat_grid.FACTORS]
  bench.points.mkdir(parents=True)
  with claims.Claims(bench.points) as other:
    assert other.take(tuning[0].name)
    outcome = dict(work(bench, [('', cell) for cell in tuning], minutes=5))
  assert trained == tuning[1:]
  assert outcome['missing: time'] == 'for 1 points'


def test_points_whose_large_model_another_process_makes_come_last(bench, monkeypatch):
  monkeypatch.setattr(cat_grid, 'TUNING_SEEDS', {})
  trained = stub(bench, monkeypatch, best=1.0)
  cells = [PLAIN._replace(factor=1.0, seed=seed, loss=loss) for seed in (0, 1) for loss in BASE[:2]]
  large = bench.large_run(cells[0])
  large.parent.mkdir(parents=True)
  with claims.Claims(large.parent) as other:
    assert other.take(large.name)
    list(work(bench, [('', cell) for cell in cells], minutes=5))
  assert trained == [*cells[2:], *cells[:2]]


def test_second_stages_and_equal_flops_have_their_lengths(bench, monkeypatch):
  stub(bench, monkeypatch, best=1.0)
  bench.points.mkdir(parents=True)
  for cell in (PLAIN, *PLAIN.tuning, *PLAIN._replace(start='xent').tuning):
    bench.execute(cell)
  sizes = {'parameters': {'small': 100, 'large': 600}}
  bench.path(PLAIN).write_text(json.dumps(sizes))
  # a step costs 6 x 100, with the large model 2 x 600 more: three times as much, of four steps
  assert bench.training(PLAIN._replace(length=cat_grid.EQUAL_FLOPS)).steps == 12
  assert bench.training(PLAIN._replace(length=4.0)).steps == 16
  assert bench.training(PLAIN._replace(start='xent')).steps == 1


def test_drafts_are_compared_over_the_seeds_that_have_every_loss(bench, monkeypatch):
  stub(bench, monkeypatch, best=1.0)
  bench.points.mkdir(parents=True)
  for loss, seed in [(loss, seed) for loss in BASE for seed in (0, 2)] + [('xent', 1)]:
    bench.execute(PLAIN._replace(loss=loss, seed=seed))
  seeds = list(drafters.of_points(bench, 'g2p'))
  assert [seed.name for seed in seeds] == ['seed 0', 'seed 2']
  assert seeds[1].small['dist'].name == 'loss=dist,size=nano,task=g2p,SEED=2'
  assert seeds[1].large == bench.large_run(PLAIN._replace(seed=2))


def test_drafts_of_three_seeds_by_hand():
  gains = {'xent': [0, 0, 0], 'cat_xent': [1, 2, 3], 'dist': [1, -1, 0], 'cat_dist': [3, 3.5, 2.5]}
  by_seed = [
    {loss: dict.fromkeys(drafters.QUANTITIES, 5 + own[seed]) for loss, own in gains.items()}
    for seed in range(3)
  ]
  rows = {row.what: row for row in drafters.compared(by_seed)}
  assert rows['acceptance, cat_xent'].value == 7
  gained = rows['acceptance, cat_xent - xent']
  # Of 2 degrees of freedom p is 1 - t / sqrt(t^2 + 2): t = 2 sqrt(3) gives .0742, 6 sqrt(3)
  # .00913. The two least of six count six times, the next two four times.
  assert gained.value == 2
  assert gained.note == '95 % over seeds: -0.4841 to +4.4841, Holm 0.297'
  assert rows['acceptance, cat_dist - xent'].note.endswith('Holm 0.0548')
  assert rows['acceptance, dist - xent'].note.endswith('Holm 1')


@pytest.mark.slow
def test_a_tiny_point_is_really_trained_and_answers_every_row(bench):
  cell = PLAIN._replace(loss='cat_dist', factor=0.5, seed=TUNING_SEED)
  ((name, _),) = work(bench, [('', cell)], minutes=5)
  assert name == cell.name
  summary = bench.summary(cell)
  assert summary['learning rate'] == 1e-2 * 0.5
  assert 0 <= summary['alone'] <= 1
  shares = summary['agreement'][-1]
  assert sum(shares[n] for n in ('both', 'only_small', 'only_large', 'neither')) == pytest.approx(1)
  rows = bench.rows(cell)
  assert rows.small.shape == rows.large.shape == (32, 2)
  assert bench.rows(cell, 'average without the end').score.shape == (32,)
  assert summary['alone'] == rows.small[:, 0].mean()


@pytest.mark.slow
def test_a_lagged_mask_is_of_the_model_at_the_end_of_the_previous_stage(bench, monkeypatch):
  cell = PLAIN._replace(loss='cat_xent_lagged', factor=1.0)
  seen, train = [], bench._train

  def noted(*args, caches=(), until=None, **options):
    seen.append((until, [cache.name for cache in caches]))
    train(*args, caches=caches, until=until, **options)

  monkeypatch.setattr(bench, '_train', noted)
  bench.large(cell)
  bench.points.mkdir(parents=True)
  seen.clear()
  bench.execute(cell)
  large = 'g2p-noise0-0-cache'
  assert seen == [
    (1, [large]), *((step, [large, f'{cell.name}-{step - 1}']) for step in (2, 3, 4))
  ]  # fmt: skip
  lines = (bench.run(cell) / 'settings.json').read_text()
  assert json.loads(lines)[-1]['first_step'] == 4  # the fourth stage, with its own teachers
  (manifest,) = (bench.folders.work / 'lagged').glob('*-3/*/train/manifest.json')
  assert json.loads(manifest.read_text())['step'] == 3
  assert bench.summary(cell)['steps'] == 4


def test_labeled_texts_are_asked_by_their_last_words(tmp_path):
  texts = [('well<br />bad film', 0), (' '.join(map(str, range(100))), 1), ('no response', 1)]
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps({'text': t, 'label': label}) + '\n' for t, label in texts))
  first, last = cat_tasks.labeled(path, ('negative', 'positive'))
  assert first == {
    'input': 'well bad film\nOptions: negative; positive\nAnswer:', 'target': 'negative',
  }  # fmt: skip
  assert last['input'].startswith('40 41 ')
  assert last['target'] == 'positive'
