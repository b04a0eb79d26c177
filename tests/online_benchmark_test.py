"""Benchmarks of online cascades: their experts, and what a measurement of speed holds."""

import numpy as np
import pytest

from benchmarks import online, online_speed
from benchmarks.online_speed import Case
from cascades.inference import stream_files


def test_an_expert_of_flipped_labels_errs_in_its_share_and_is_the_same_each_time():
  gold = np.arange(1000) % 2
  for accuracy in (0.5, 0.7998, 1.0):
    labels = online.noised(gold, accuracy, 'gpt35')
    assert np.mean(labels == gold) == pytest.approx(accuracy, abs=5e-4)
    np.testing.assert_array_equal(online.noised(gold, accuracy, 'gpt35'), labels)
  assert (online.noised(gold, 0.8, 'gpt35') != online.noised(gold, 0.8, 'llama2_70b')).any()


def test_a_measurement_counts_queries_checkpoints_and_memory(monkeypatch):
  monkeypatch.setattr(stream_files.StreamFolder, 'save', stream_files.StreamFolder.save)
  case = Case('ISEAR', 600)
  if not (online.DATA / online.SETTINGS[case.data].file).exists():
    pytest.skip(f'no real data at {online.DATA}')
  result = online_speed.measure(case)
  assert result['queries'] == 600
  assert 80 <= result['calls'] <= 80 + 0.2 * 520 + 7
  assert 0 < sum(result['saves']) < result['seconds']
  assert [done for _, done, _ in result['progress']] == [500, 600]
  compared = online_speed.compare(case._replace(queries=150))
  assert compared['different'] == 0
  assert len(compared['seconds']) == 2
