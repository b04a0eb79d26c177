"""Baselines of a stream from the rows of its answers."""

import itertools

import numpy as np
import pytest

from cascades import online_baselines
from cascades.inference import stream_hindsight


def row(level, correct, small, confidence, expert=None):
  """A row of an answer with a gold label, of classes whose first is as sure as `confidence`."""
  own = {
    'level': level, 'correct': correct, 'small_correct': small,
    'probabilities': [[sure, 1 - sure] for sure in confidence],
  }  # fmt: skip
  return own if expert is None else {**own, 'expert_correct': expert}


def test_baselines_of_four_queries_are_counted_by_hand():
  """Level 1 is right in 2 of 4 and the expert in 3; one call, of the least sure query, gives 3."""
  rows = [
    row(1, 1, [1], [0.9], 1), row(2, 1, [0], [0.8], 1),
    row(1, 0, [0], [0.6], 1), row(1, 1, [1], [0.7], 0), {'level': 1, 'probabilities': [[0.5, 0.5]]},
  ]  # fmt: skip
  own = stream_hindsight.baselines(rows, levels=2)
  assert own.numbers['levels'] == {
    'level 1': {'accuracy': 0.5, 'known': 1.0}, 'expert': {'accuracy': 0.75, 'known': 1.0}
  }  # fmt: skip
  assert own.numbers['best single level'] == {'level': 1, 'accuracy': 0.5}
  assert own.numbers['ensemble']['accuracy'] == pytest.approx(0.75 * 0.5 + 0.25 * 1.0)
  assert own.numbers['best static'] == {
    'accuracy': 0.75, 'small models': 1, 'calls': 1, 'thresholds': [0.7], 'regret': 0.0
  }  # fmt: skip
  assert {name: right.tolist() for name, right in own.curves.items()} == {
    'expert alone': [1, 1, 1, 0], 'best single level': [1, 0, 0, 1],
    'best static thresholds': [1, 0, 1, 1],
  }  # fmt: skip


def test_what_is_not_known_of_each_query_gives_no_baseline_of_all():
  first = [row(1, 1, [1], [0.9]), row(3, 1, [0, 1], [0.6, 0.8], 1)]
  own = stream_hindsight.baselines(first, levels=3)
  assert own.numbers == {
    'levels': {
      'level 1': {'accuracy': 0.5, 'known': 1.0}, 'level 2': {'accuracy': 1.0, 'known': 0.5},
      'expert': {'accuracy': 1.0, 'known': 0.5},
    },
    'best single level': {'level': 1, 'accuracy': 0.5},
  }  # fmt: skip
  recorded = [{**first[0], 'expert_correct': 0}, first[1]]
  own = stream_hindsight.baselines(recorded, levels=3)
  assert own.numbers['best static']['small models'] == 1
  assert 'ensemble' not in own.numbers
  assert stream_hindsight.baselines([{'level': 1}], levels=3) == ({}, {})


@pytest.mark.parametrize('seed', range(3))
def test_the_regret_is_that_against_the_best_of_all_pairs_of_thresholds(seed):
  rng = np.random.default_rng(seed)
  T = 12
  sure, right = rng.choice([0.5, 0.6, 0.8, 0.9], (T, 2)), rng.integers(0, 2, (T, 3))
  level = rng.integers(0, 3, T)
  rows = [
    row(level[t] + 1, int(right[t, level[t]]), right[t, :2].tolist(), sure[t].tolist(),
        int(right[t, 2]))
    for t in range(T)
  ]  # fmt: skip
  totals = []
  for thresholds in itertools.product([0.5, 0.6, 0.8, 0.9, np.inf], repeat=2):
    chosen = online_baselines.static_levels(sure, thresholds)
    if (chosen == 2).sum() <= (level == 2).sum():
      totals.append(right[np.arange(T), chosen].sum())
  own = stream_hindsight.baselines(rows, levels=3).numbers['best static']
  assert own['regret'] == max(totals) - sum(right[np.arange(T), level])
