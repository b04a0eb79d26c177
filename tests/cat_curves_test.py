"""Deferral curves of finished points, of each task of a mixture."""

import json

import numpy as np
import pytest

from benchmarks import cat_curves, cat_runs, cat_tasks
from benchmarks.cat_curves import EQUAL, POOLED
from benchmarks.cat_grid import BASE, Cell


@pytest.fixture
def bench(tmp_path):
  """Two seeds of four rows, two of each task: CAT answers one row more of the second task."""
  bench = cat_runs.Bench(cat_tasks.Folders(tmp_path, tmp_path / 'work'))
  bench.points.mkdir(parents=True)
  right = lambda *bits: np.array([[bit, 1.0] for bit in bits])
  for seed in (0, 1):
    for loss in BASE:
      path = bench.path(Cell('classification', '4+4', loss, seed=seed))
      np.savez(
        path.with_suffix('.npz'), average=np.array([4.0, 1, 3, 2]),
        small=right(0, 1, 0, loss.startswith('cat')), large=right(1, 1, 1, 1),
        task=np.array(['sst2', 'sst2', 'trec', 'trec']),
      )  # fmt: skip
      path.write_text(json.dumps({'metric': 'accuracy'}))
  return bench


def test_each_task_has_the_curve_of_its_own_rows(bench):
  by_subset = cat_curves.read(bench, 'classification', '4+4')
  assert list(by_subset) == [POOLED, 'sst2', 'trec', EQUAL]
  at = lambda name, loss, rate: by_subset[name][loss][0][round(rate * 50)]
  assert by_subset['sst2']['xent'].shape == (2, 51)
  # sst2: the wrong row is deferred first. trec: so it is, and Xent has a second one.
  assert [at('sst2', 'xent', rate) for rate in (0, 0.5, 1)] == pytest.approx([0.5, 1, 1])
  assert [at('trec', 'xent', rate) for rate in (0, 0.5, 1)] == pytest.approx([0, 0.5, 1])
  assert [at('trec', 'cat_xent', rate) for rate in (0, 0.5, 1)] == pytest.approx([0.5, 1, 1])
  assert at(POOLED, 'xent', 0) == pytest.approx(0.25)
  assert at(EQUAL, 'cat_xent', 0.5) == pytest.approx(1)
  assert at(EQUAL, 'xent', 0.5) == pytest.approx((1 + 0.5) / 2)


def test_areas_and_gains_are_reported_by_task(bench, tmp_path):
  by_subset = cat_curves.read(bench, 'classification', '4+4')
  rows = {row.what: row for row in cat_curves.measure(by_subset)}
  assert rows['sst2: xent'].value == pytest.approx((0.75 + 1) / 2)
  assert rows['trec: cat_xent - xent'].value == pytest.approx((0.75 + 1) / 2 - 0.5)
  assert rows['sst2: cat_dist - dist'].value == 0
  cat_curves.draw(by_subset, tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').read_bytes()[:4] == b'\x89PNG'


def test_shares_of_deferred_rows_are_reported_by_task(bench):
  scores = np.array([4.0, 3, 2, 1])  # one threshold defers all of sst2 and nothing of trec
  path = bench.path(Cell('classification', '4+4', 'dist', seed=1)).with_suffix('.npz')
  with np.load(path) as stored:
    np.savez(path, **{**stored, 'average': scores})
  shares = {row.what: row.value for row in cat_curves.deferred(bench, 'classification', '4+4')}
  assert shares['sst2: xent, deferred'] == shares['trec: xent, deferred'] == 0.5
  assert [shares[f'{name}: dist, deferred'] for name in ('sst2', 'trec')] == [0.75, 0.25]
