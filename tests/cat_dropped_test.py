"""Tokens that cascade-aware training drops: shares by hand, and of a trained point."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import cat_dropped, cat_runs, cat_tasks
from benchmarks.cat_dropped import Tokens
from benchmarks.cat_grid import Cell
from cascades.teachers import TopK
from tests import tiny

PLAIN = Cell('g2p', 'nano', 'xent')


def test_the_entropy_spreads_the_tail_evenly():
  teacher = TopK(np.array([[3, 1]]), np.log([[0.5, 0.25]]), np.array([0.25]))
  # 1/2, 1/4, and 1/8 twice
  expected = 0.5 * math.log(2) + 0.25 * math.log(4) + 0.25 * math.log(8)
  assert cat_dropped.entropy(teacher, 4) == pytest.approx([expected])
  sure = TopK(np.array([[3]]), np.array([[0.0]]), np.array([0.0]))
  assert cat_dropped.entropy(sure, 4) == pytest.approx([0.0])


def test_kinds_share_the_decile_of_their_middle_token():
  # Of ten tokens one is a 7, three are a 5 and six are an 8: the middles are at .05, .25 and .7.
  targets = np.array([8, 5, 8, 5, 7, 8, 8, 5, 8, 8])
  expected = {7: 0, 5: 2, 8: 7}
  deciles = cat_dropped.frequency_decile(targets)
  assert deciles.tolist() == [expected[target] for target in targets.tolist()]


def test_deciles_of_a_hundred_values_hold_ten_each():
  values = np.random.default_rng(0).permutation(100).astype(float)
  assert np.bincount(cat_dropped.decile(values)).tolist() == [10] * 10
  assert len(set(cat_dropped.decile(np.zeros(7)))) == 1


def test_shares_of_two_answers_by_hand():
  # a b END, with b dropped, and b a END, with b and the end dropped
  tokens = Tokens(
    position=np.array([0, 1, 2, 0, 1, 2]),
    target=np.array([4, 5, 1, 5, 4, 1]),
    entropy=np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.4]),
    dropped=np.array([0, 1, 0, 1, 0, 1], bool),
  )
  dropped = cat_dropped.count(tokens)
  assert dropped.share == pytest.approx(1 / 2)
  assert dropped.of_ends == pytest.approx(1 / 2)
  assert dropped.end_among_dropped == pytest.approx(1 / 3)
  assert dropped.by['position'] == pytest.approx([1 / 2, 1 / 2, 1 / 2])
  # Each kind is a third of the tokens: ids 1, 4 and 5 have their middles at 1/6, 1/2 and 5/6.
  assert dropped.counts['frequency'][[1, 5, 8]].tolist() == [2, 2, 2]
  assert dropped.by['frequency'][[1, 5, 8]] == pytest.approx([1 / 2, 0, 1])
  by_entropy = dropped.by['entropy']
  assert by_entropy[np.isfinite(by_entropy)] == pytest.approx([0, 0, 0, 1, 1, 1])


def test_positions_count_target_tokens_only():
  weights = np.array([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]])
  counted = cat_dropped.positions(weights)[weights > 0]
  assert counted.tolist() == [0, 1, 2, 0, 1]


@pytest.fixture
def bench(tmp_path):
  return cat_runs.Bench(cat_tasks.Folders(tmp_path, tmp_path / 'work'))


def test_contributions_of_four_rows_by_hand(bench):
  bench.points.mkdir(parents=True)
  right = lambda *bits: np.array([[bit, 1.0] for bit in bits])
  np.savez(
    bench.path(PLAIN).with_suffix('.npz'),
    average=np.array([4.0, 3, 2, 1]), small=right(0, 1, 0, 1), large=right(1, 1, 0, 1),
  )  # fmt: skip
  # After 0, 1 and 2 of 4 deferrals: (2/4, 0), (2/4, 1/4), (1/4, 2/4)
  expected = [[0.5, 0.0], [0.5, 0.2], [0.25, 0.5]]
  assert cat_dropped.RATES == (0.0, 0.2, 0.5)
  assert cat_dropped.contributions(bench, PLAIN) == pytest.approx(np.array(expected))


def test_rows_compare_cat_with_its_plain_loss_over_common_seeds():
  tokens = Tokens(np.array([0, 1]), np.array([4, 1]), np.array([0.1, 0.2]), np.array([True, False]))
  cat = PLAIN._replace(loss='cat_xent')
  dropped = {
    cell._replace(seed=s): cat_dropped.count(tokens) for s in (0, 1) for cell in (PLAIN, cat)
  }
  parts = {cell: np.full((3, 2), 0.5 + 0.1 * (cell.loss == 'cat_xent')) for cell in dropped}
  rows = {row.what: row for row in cat_dropped.measure(dropped, parts)}
  assert rows['g2p nano xent: dropped'].value == 0.5
  assert rows['g2p nano xent: dropped, first bin of position'].value == 1.0
  assert rows['g2p nano xent: ends of sequence dropped'].value == 0.0
  assert rows['g2p nano cat_xent - xent: A1 at 20%'].value == pytest.approx(0.1)
  assert '2 seeds' in rows['g2p nano cat_xent - xent: A2 at 50%'].note


@pytest.mark.slow
def test_dropped_tokens_of_a_trained_point_are_those_that_training_counted(tmp_path):
  run = cat_tasks.Training(steps=4, rate=1e-2, warmup=1)
  task = dataclasses.replace(
    tiny.task(tmp_path, metrics=('accuracy',)), vocabulary=lambda: tiny.VOCABULARY
  )
  setting = cat_tasks.Setting(
    task=lambda folders, noise: task, lengths=tiny.LENGTHS, sizes={'nano': tiny.SMALL},
    large=tiny.LARGE, training=run, large_training=run, batch=64, top_k=4,
  )  # fmt: skip
  bench = cat_runs.Bench(cat_tasks.Folders(tmp_path, tmp_path / 'work'), {'g2p': setting})
  cell = PLAIN._replace(loss='cat_xent', factor=1.0)
  bench.execute(cell)
  tokens = cat_dropped.read(bench, cell, rows=64)
  dropped = cat_dropped.count(tokens)
  cat_dropped.draw({cell: dropped}, tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').read_bytes()[:4] == b'\x89PNG'
  # A batch is the whole split, and 64 rows end once each.
  assert (tokens.target == 1).sum() == 64
  neither = bench.summary(cell)['agreement'][-1]['neither']
  assert dropped.share == pytest.approx(neither, abs=0.15)
