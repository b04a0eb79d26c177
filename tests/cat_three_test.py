"""Cascades of three models of the reproduction: areas by hand, and points that are trained."""

import dataclasses

import numpy as np
import pytest

from benchmarks import cat_grid, cat_runs, cat_tasks, cat_three
from benchmarks.cat_grid import Cell
from cascades import metrics
from cascades.frontier import Outcomes
from tests import tiny

THREE = Cell('g2p', 'nano', 'cat_xent', middle='cat_xent')


def test_the_middle_model_is_named_only_where_there_is_one():
  assert THREE.name == 'loss=cat_xent,middle=cat_xent,size=nano,task=g2p,SEED=0'
  plain = THREE._replace(middle='')
  assert 'middle' not in plain.recorded
  assert list(plain.recorded) == [name for name in Cell._fields if name != 'middle']
  assert THREE.recorded['middle'] == 'cat_xent'
  assert THREE.later == Cell('g2p', 'shallow', 'cat_xent')
  assert THREE.later in THREE.needs
  assert THREE.tuning == plain.tuning


def test_the_part_has_every_system_of_every_seed():
  planned = {cell for _, cell in cat_grid.cells()}
  for seed in range(cat_grid.SEEDS['g2p']):
    for cells in cat_three.systems('g2p', seed).values():
      assert set(cells) <= planned
  own = [cell for part, cell in cat_grid.cells() if part == 'g2p: three models']
  assert sum(bool(cell.middle) for cell in own) == cat_grid.SEEDS['g2p']
  assert {cell.size for cell in own if not cell.middle} == {'shallow'}


def rows(scores, right):
  statistics = np.array([[[bit, 1.0] for bit in own] for own in right])
  cost = np.repeat([[1.0], [2.0], [4.0]], statistics.shape[1], axis=1)
  outcomes = Outcomes(np.array(scores, float), statistics[..., 0], cost, np.zeros(2))
  return cat_three.Rows(outcomes, statistics)


def test_areas_of_two_rows_by_hand():
  # The small model is right on row 1 and unsure of row 0, on which the middle one is right.
  own = rows([[2, 1], [1, 2]], [[0, 1], [1, 1], [1, 1]])
  by_curve = cat_three.areas(own, own, metrics.ratio, resamples=3)
  assert {len(values) for values in by_curve.values()} == {4}
  area = {name: values[0] for name, values in by_curve.items()}
  # (cost, quality): the small model (1, 1/2); row 0 deferred to the middle (1 + 2/2, 1), and to the
  # large (1 + 4/2, 1). From 1 to 4 quality rises to 1 at cost 2, or 3, and stays.
  assert area['small and middle'] == pytest.approx((0.75 + 2) / 3)
  assert area['small and large'] == pytest.approx((2 * 0.75 + 1) / 3)
  assert area['middle and large'] == pytest.approx(1)  # already right at cost 2
  assert area['three models'] == pytest.approx((0.75 + 2) / 3)
  assert area['best chains'] >= area['pairs'] - 1e-12 >= area['small and middle'] - 2e-12


def test_the_differences_of_planted_areas_are_tested():
  generator = np.random.default_rng(0)
  by_curve = {
    (system, curve): 0.5 + 0.1 * (system == 'cat') + generator.normal(0, 0.001, (10, 21))
    for system in cat_three.systems('g2p', 0)
    for curve in cat_three.CURVES
  }
  notes = {row.what: row for row in cat_three.report(by_curve, 1000, complete=True)}
  gain = notes['CAT above Xent']
  assert gain.value == pytest.approx(0.1, abs=0.002)
  assert gain.note.endswith('confirmed')
  assert notes['three above pairs, CAT'].note.endswith('refuted')  # below what matters
  partial = {row.what: row for row in cat_three.report(by_curve, 1000, complete=False)}
  assert partial['CAT above Xent'].note.endswith('undecided')


@pytest.mark.slow
def test_a_cascade_of_three_is_trained_and_measured(tmp_path):
  run = cat_tasks.Training(steps=4, rate=1e-2, warmup=1)
  task = dataclasses.replace(
    tiny.task(tmp_path, metrics=('accuracy',)), vocabulary=lambda: tiny.VOCABULARY
  )
  sizes = {'nano': tiny.SMALL, 'shallow': dataclasses.replace(tiny.SMALL, emb_dim=24)}
  setting = cat_tasks.Setting(
    task=lambda folders, noise: task, lengths=tiny.LENGTHS, sizes=sizes,
    large=tiny.LARGE, training=run, large_training=run, batch=64, top_k=4,
  )  # fmt: skip
  bench = cat_runs.Bench(cat_tasks.Folders(tmp_path, tmp_path / 'work'), {'g2p': setting})
  bench.points.mkdir(parents=True)
  trained = sorted(
    {cell for cells in cat_three.systems('g2p', 0).values() for cell in cells},
    key=lambda cell: (bool(cell.middle), cell.name),
  )
  bench.chosen_factor = lambda cell: 1.0
  for cell in trained:
    bench.execute(cell)
  assert len(bench.caches(THREE)) == 2
  assert cat_three.complete_seeds(bench, 'g2p') == [0]
  by_curve = cat_three.measured_areas(bench, 'g2p', [0])
  assert np.isfinite(list(by_curve.values())).all()
  assert list(cat_three.report(by_curve, 32, complete=False))
  both = bench.summary(THREE)['agreement'][-1]
  alone = bench.summary(THREE._replace(middle=''))['agreement'][-1]
  # any of two later models is right at least as often
  assert both['both'] + both['only_large'] >= alone['both'] + alone['only_large']
