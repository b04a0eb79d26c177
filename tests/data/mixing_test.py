import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.data import converters, materialize, mixing, records
from cascades.data.batches import Process, evaluation_batches, train_batches
from cascades.tasks.task import Row, both
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import tiny_task

rates = st.lists(st.integers(1, 50), min_size=1, max_size=6)


@given(rates, st.integers(0, 3), st.integers(0, 2**40))
def test_every_block_has_each_task_at_its_rate(counts, number, seed):
  counts = np.array(counts)
  rows = number * counts.sum() + np.arange(counts.sum())
  drawn = mixing.draw(rows, counts, seed)
  assert np.array_equal(np.bincount(drawn.task, minlength=len(counts)), counts)


@given(rates, st.integers(0, 2**40))
def test_within_a_task_rows_are_numbered_without_gap_or_repetition(counts, seed):
  counts = np.array(counts)
  drawn = mixing.draw(np.arange(3 * counts.sum()), counts, seed)
  for task, count in enumerate(counts):
    assert sorted(drawn.number[drawn.task == task].tolist()) == list(range(3 * count))


@given(rates, st.integers(0, 1000))
def test_a_row_is_drawn_alike_whatever_is_drawn_with_it(counts, start):
  counts = np.array(counts)
  together = mixing.draw(start + np.arange(20), counts, 7)
  for i in range(20):
    alone = mixing.draw(np.array([start + i]), counts, 7)
    assert (alone.task[0], alone.number[0]) == (together.task[i], together.number[i])


def test_the_order_changes_from_block_to_block_and_with_the_seed():
  counts = np.array([30, 70])
  drawn = [mixing.draw(np.arange(200), counts, seed).task for seed in (0, 1)]
  assert not np.array_equal(drawn[0][:100], drawn[0][100:])
  assert not np.array_equal(drawn[0], drawn[1])


def test_counts_are_taken_as_they_are():
  assert mixing.block([3000, 350, 2051]).tolist() == [3000, 350, 2051]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=70))
def test_other_rates_are_rounded_to_shares_of_a_block(given_rates):
  counts = mixing.block([*given_rates, 0.5])
  assert (counts >= 1).all()
  exact = np.array([*given_rates, 0.5]) / (sum(given_rates) + 0.5) * 2**20
  assert (np.abs(counts - exact) <= 1 + (exact < 1)).all()


@pytest.mark.parametrize('bad', [[], [1, 0], [1, -2], [float('nan')], [float('inf'), 1]])
def test_rates_that_are_no_rates_are_named(bad):
  with pytest.raises(ValueError, match='Mixing rates must be positive numbers, found'):
    mixing.block(bad)


@pytest.fixture(scope='module')
def joined(tmp_path_factory):
  """Tasks a, b, c of 5, 11 and 40 rows, whose answers tell task and row."""
  folder = tmp_path_factory.mktemp('mixture')
  vocabulary = both(vocabularies.bytes_vocabulary())
  per_task = []
  for name, count in (('a', 5), ('b', 11), ('c', 40)):
    rows = [Row(str(i), 'x' * (i % 7), (f'{name}{i}',)) for i in range(count)]
    task = tiny_task(rows, name=name)
    per_task.append(materialize.materialize(task, 'train', vocabulary, folder))
  return records.MixtureRecords(per_task)


def answers(joined, steps, **settings):
  settings = {
    'convert': converters.decoder_only, 'lengths': {'inputs': 8, 'targets': 6}, 'batch_size': 8,
    'seed': 0,
  } | settings  # fmt: skip
  batches = train_batches(joined, **settings)
  decode = vocabularies.bytes_vocabulary().decode
  texts = []
  for _ in range(steps):
    batch = next(batches)
    for targets, weights in zip(batch.targets, batch.weights, strict=True):
      ids = targets[weights == 1].tolist()
      while ids:
        end = ids.index(1) + 1
        texts.append(decode(ids[:end]))
        ids = ids[end:]
  return texts


def test_a_mixture_has_every_task_at_its_rate(joined):
  texts = answers(joined, 30, rates=[30, 20, 10], batch_size=2)
  assert collections.Counter(answer[0] for answer in texts) == {'a': 30, 'b': 20, 'c': 10}


def test_without_rates_every_row_comes_equally_often(joined):
  texts = answers(joined, 7)
  assert len(texts) == 56 == len(set(texts))


def test_after_every_block_a_tasks_rows_have_come_equally_often(joined):
  """Up to the row that the block ends in: an epoch is gone through before the next begins."""
  for blocks in (1, 2, 3):
    texts = collections.Counter(answers(joined, 25 * blocks, rates=[100, 50, 50]))
    for name, count in (('a', 5), ('b', 11), ('c', 40)):
      times = [texts[f'{name}{i}'] for i in range(count)]
      assert max(times) - min(times) <= 1


def test_a_mixture_resumes_at_any_step_with_the_same_rows(joined):
  expected = answers(joined, 9, rates=[3, 2, 1])
  assert answers(joined, 4, rates=[3, 2, 1], start_step=5) == expected[40:]


def test_processes_share_a_mixtures_batches(joined):
  expected = answers(joined, 2, rates=[3, 2, 1])
  halves = [answers(joined, 2, rates=[3, 2, 1], process=Process(i, 2)) for i in range(2)]
  assert [*halves[0][:4], *halves[1][:4], *halves[0][4:], *halves[1][4:]] == expected


def test_rates_count_rows_before_packing(joined):
  """Packs hold rows of one task each; over many packs the rows keep their rates."""
  texts = collections.Counter(
    answer[0] for answer in answers(joined, 300, rates=[1.0, 1.0, 2.0], pack=24)
  )
  share = np.array([texts[name] for name in 'abc']) / texts.total()
  assert np.allclose(share, [0.25, 0.25, 0.5], atol=0.02)


def test_evaluation_goes_over_all_tasks_once(joined):
  batches = evaluation_batches(
    joined, convert=converters.encoder_decoder, lengths={'inputs': 8, 'targets': 6}, batch_size=8
  )
  assert sum(int((batch.weights.sum(axis=1) > 0).sum()) for batch in batches) == 56
