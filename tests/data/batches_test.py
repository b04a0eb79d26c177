import collections
import dataclasses
import itertools
import json
import logging
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades.data import converters, materialize, packing
from cascades.data.batches import (
  Process,
  evaluation_batches,
  evenly_spaced,
  train_batches,
  train_ids,
)
from cascades.data.records import MixtureRecords, Records
from cascades.tasks import local, shuffling
from cascades.tasks.task import Row, SpecialTokens, both
from cascades.tokenizers import vocabularies
from tests.real_data import real
from tests.tiny_tasks import spelling, tiny_task

LENGTHS = {'inputs': 16, 'targets': 8}
N = 37  # rows of tiny_records


def train(records, count, **settings):
  settings = {'convert': converters.encoder_decoder, 'lengths': LENGTHS, 'seed': 0, **settings}
  batches = train_batches(records, **{'batch_size': 8, **settings})
  return list(itertools.islice(batches, count))


def evaluation(records, **settings):
  settings = {'convert': converters.encoder_decoder, 'lengths': LENGTHS, **settings}
  return list(evaluation_batches(records, **{'batch_size': 8, **settings}))


def same(first, second):
  if jax.tree.structure(first) != jax.tree.structure(second):
    return False
  pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
  return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def answers(batches):
  """The text of every answer in these batches, in order, packed or not."""
  vocabulary = vocabularies.bytes_vocabulary()
  for batch in batches:
    for targets, weights in zip(batch.targets, batch.weights, strict=True):
      ids = targets[weights == 1].tolist()
      while ids:
        end = ids.index(1) + 1
        yield vocabulary.decode(ids[:end])
        ids = ids[end:]


def epoch_of_answers(count=N):
  return collections.Counter(row.targets for row in spelling(count))


def test_every_row_comes_once_an_epoch_and_epochs_follow_without_a_seam(tiny_records):
  order = list(answers(train(tiny_records, 2 * N, batch_size=1)))
  assert collections.Counter(order[:N]) == epoch_of_answers()
  assert collections.Counter(order[N:]) == epoch_of_answers()
  assert order[:N] != order[N:]


def test_batches_cross_from_one_epoch_into_the_next(tiny_records):
  rows = list(answers(train(tiny_records, 2 * N, batch_size=1)))
  in_eights = list(answers(train(tiny_records, 9, batch_size=8)))
  assert in_eights == rows[:72]


def test_a_batch_larger_than_the_split_repeats_it(tiny_records):
  (batch,) = train(tiny_records, 1, batch_size=2 * N)
  assert collections.Counter(answers([batch])) == epoch_of_answers() + epoch_of_answers()


def test_the_order_is_that_of_the_shuffle(tiny_records):
  order = shuffling.shuffled(np.arange(N), N, shuffling.mix(5, 0))
  rows = spelling(N)
  assert list(answers(train(tiny_records, N, batch_size=1, seed=5))) == [
    rows[i].targets for i in order
  ]


packed = {'convert': converters.decoder_only, 'pack': 32}
ways = pytest.mark.parametrize(
  'way', [{}, {'convert': converters.decoder_only}, packed], ids=['encoder', 'decoder', 'packed']
)


@ways
def test_resuming_at_a_step_gives_the_same_bytes(tiny_records, way):
  expected = train(tiny_records, 12, **way)
  for start in (0, 1, 5, 11):
    resumed = train(tiny_records, 12 - start, start_step=start, **way)
    assert all(map(same, expected[start:], resumed))


@ways
def test_another_run_with_the_same_seed_gives_the_same_bytes(tiny_records, way):
  assert all(map(same, train(tiny_records, 4, **way), train(tiny_records, 4, **way)))
  other = train(tiny_records, 4, seed=1, **way)
  assert not all(map(same, train(tiny_records, 4, **way), other))


@ways
def test_threads_do_not_change_the_batches(tiny_records, way):
  many = train(tiny_records, 10, threads=4, **way)
  assert all(map(same, train(tiny_records, 10, **way), many))


@ways
@pytest.mark.parametrize('together', [1, 8, 20])
def test_drawing_several_batches_together_does_not_change_them(
  tiny_records, way, together, monkeypatch
):
  expected = train(tiny_records, 12, **way)
  monkeypatch.setattr('cascades.data.batches._DRAWN_TOGETHER', together)
  assert all(map(same, expected, train(tiny_records, 12, **way)))


@ways
@pytest.mark.parametrize('processes', [2, 4])
def test_processes_together_see_the_batch_of_one(tiny_records, way, processes):
  alone = train(tiny_records, 6, **way)
  shares = [train(tiny_records, 6, process=Process(i, processes), **way) for i in range(processes)]
  for step, batch in enumerate(alone):
    together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(s[step] for s in shares))
    assert same(batch, together)


@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 10**9))
@settings(max_examples=20)
def test_batches_of_far_steps_have_valid_rows(tiny_records, batch_size, seed, step):
  (batch,) = train(tiny_records, 1, batch_size=batch_size, seed=seed, start_step=step)
  assert set(answers([batch])) <= set(epoch_of_answers())
  assert len(list(answers([batch]))) == batch_size


def test_a_far_step_reads_its_own_rows_and_none_before_it(tiny_records, monkeypatch):
  counts = []
  read = Records.tokens

  def counted(self, indices):
    counts.append(len(indices))
    return read(self, indices)

  monkeypatch.setattr(Records, 'tokens', counted)
  train(tiny_records, 1, start_step=10**9, batch_size=8)
  assert set(counts) == {8}
  assert len(counts) <= 6  # batches: the first, and those that are read ahead


def test_packed_rows_hold_every_example_once_an_epoch(tiny_records):
  converter = converters.feature_converter(tiny_records, converters.decoder_only, LENGTHS)
  count = len(packing.plan(converter.row_lengths(tiny_records.lengths), 32))
  batches = train(tiny_records, 2 * count, batch_size=1, **packed)
  first, second = list(answers(batches[:count])), list(answers(batches[count:]))
  assert collections.Counter(first) == collections.Counter(second) == epoch_of_answers()
  assert first != second


def test_packed_rows_equal_their_examples_alone(tiny_records):
  # Read the segments back out of a packed row: each is a row that was never packed.
  alone = set()
  for batch in evaluation(tiny_records, convert=converters.decoder_only):
    for inputs, targets, weights in zip(batch.inputs, batch.targets, batch.weights, strict=True):
      used = int(np.flatnonzero(weights)[-1]) + 1 if weights.any() else 0
      alone.add((*inputs[:used], -1, *targets[:used], -1, *weights[:used]))
  for batch in train(tiny_records, 5, **packed):
    for row in range(len(batch.inputs)):
      for segment in range(1, batch.segments[row].max() + 1):
        mask = batch.segments[row] == segment
        columns = [field[row][mask] for field in (batch.inputs, batch.targets, batch.weights)]
        assert (*columns[0], -1, *columns[1], -1, *columns[2]) in alone
        assert batch.positions[row][mask].tolist() == list(range(mask.sum()))


def test_packing_reports_how_full_the_rows_are(tiny_records, caplog):
  with caplog.at_level(logging.INFO):
    train(tiny_records, 1, **packed)
  assert 'tiny, split train: 37 rows in ' in caplog.text
  assert '% full' in caplog.text


def test_an_encoder_decoder_reads_no_packed_rows(tiny_records):
  with pytest.raises(ValueError, match='Only decoder-only models read packed rows'):
    train(tiny_records, 1, pack=32)


def test_a_pack_shorter_than_an_example_is_an_error(tiny_records):
  with pytest.raises(ValueError, match='does not fit into a pack of 6'):
    train(tiny_records, 1, convert=converters.decoder_only, pack=6)


def test_trimmed_rows_are_counted_once_and_logged(tiny_records, caplog):
  with caplog.at_level(logging.WARNING):
    train(tiny_records, 20, lengths={'inputs': 5, 'targets': 4})
  longer = sum(len(row.inputs) > 4 for row in spelling(N))
  assert f'{longer} inputs and ' in caplog.text
  assert caplog.text.count('trimmed') == 1


def test_nothing_is_logged_when_everything_fits(tiny_records, caplog):
  with caplog.at_level(logging.WARNING):
    train(tiny_records, 1)
  assert not caplog.records


def test_rows_without_answers_cannot_be_trained_on(tmp_path):
  rows = [Row('1', 'a', ('b',)), Row('2', 'a', ())]
  vocabulary = both(vocabularies.bytes_vocabulary())
  records = materialize.materialize(tiny_task(rows), 'train', vocabulary, tmp_path)
  with pytest.raises(ValueError, match='tiny, split train: 1 rows have no answer to learn'):
    train(records, 1)


@pytest.mark.parametrize(('batch_size', 'processes'), [(8, 3), (0, 1), (2, 4)])
def test_a_batch_that_cannot_be_shared_is_an_error(tiny_records, batch_size, processes):
  with pytest.raises(ValueError, match='cannot be shared equally'):
    train(tiny_records, 1, batch_size=batch_size, process=Process(0, processes))


def test_evaluation_reads_every_row_once_in_order(tiny_records):
  batches = evaluation(tiny_records)
  assert len(batches) == 5
  assert list(answers(batches)) == [row.targets for row in spelling(N)]


def test_the_last_evaluation_batch_is_filled_with_rows_of_no_weight(tiny_records):
  last = evaluation(tiny_records)[-1]
  assert last.inputs.shape == (8, 8)
  assert [bool(weights.any()) for weights in last.weights] == [True] * 5 + [False] * 3


def test_evaluation_may_read_some_rows_from_all_over_the_split(tiny_records):
  # A dictionary is sorted: its first rows are no sample of it.
  indices = evenly_spaced(tiny_records, 10)
  assert list(answers(evaluation(tiny_records, indices=indices))) == [
    spelling(N)[i * N // 10].targets for i in range(10)
  ]
  assert len(evenly_spaced(tiny_records, 1000)) == N


@pytest.mark.parametrize('processes', [2, 4, 8])
def test_processes_take_equally_many_evaluation_steps(tiny_records, processes):
  alone = evaluation(tiny_records)
  shares = [evaluation(tiny_records, process=Process(i, processes)) for i in range(processes)]
  assert {len(share) for share in shares} == {len(alone)}
  for step, batch in enumerate(alone):
    together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(s[step] for s in shares))
    assert same(batch, together)


def test_evaluation_never_packs(tiny_records):
  for batch in evaluation(tiny_records, convert=converters.decoder_only):
    assert batch.segments is None
    assert batch.positions is None


def test_importing_batches_does_not_import_tensorflow():
  code = 'import sys; import cascades.data.batches; print("tensorflow" in sys.modules)'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == 'False'


ROWS, BATCH = 1024, 16
QUESTION_LENGTHS = {'inputs': 160, 'targets': 8}


def materialized(directory, name, lines):
  rows = [
    {'id': f'q{n}', 'inputs': f'{n}: {json.loads(line)["question"]}', 'targets': str(n % 2)}
    for n, line in enumerate(lines)
  ]
  (directory / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  task = local.local_jsonl(name, {'train': str(directory / f'{name}.jsonl')})
  vocabulary = both(vocabularies.bytes_vocabulary())
  return materialize.materialize(task, 'train', vocabulary, directory / 'records')


@pytest.fixture(scope='module')
def questions(tmp_path_factory):
  """Real questions of BoolQ, numbered, so that no two are equal."""
  lines = itertools.islice(real('superglue/BoolQ/val.jsonl').open(), ROWS)
  return materialized(tmp_path_factory.mktemp('questions'), 'boolq', lines)


def numbers(batches):
  """Numbers of the questions in these batches."""
  text = vocabularies.bytes_vocabulary()
  return [
    int(text.decode(row[row > 0]).split(':')[0]) for batch in batches for row in batch.encoder
  ]


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_the_processes_shares_of_an_epoch_are_disjoint_and_complete(questions, processes):
  shares = [
    numbers(
      itertools.islice(
        train_batches(
          questions, convert=converters.encoder_decoder, lengths=QUESTION_LENGTHS,
          batch_size=BATCH, seed=3,
          process=Process(index, processes),
        ),
        ROWS // BATCH,
      )
    )
    for index in range(processes)
  ]  # fmt: skip
  assert [len(share) for share in shares] == [ROWS // processes] * processes
  assert collections.Counter(itertools.chain(*shares)) == dict.fromkeys(range(ROWS), 1)


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_every_row_is_validated_by_one_process(questions, processes):
  counts = collections.Counter()
  for index in range(processes):
    batches = evaluation_batches(
      questions, convert=converters.encoder_decoder, lengths=QUESTION_LENGTHS, batch_size=96,
      process=Process(index, processes),
    )  # fmt: skip
    for batch in batches:
      used = batch.weights.any(axis=1)
      counts.update(numbers([batch._replace(encoder=batch.encoder[used])]))
  assert counts == dict.fromkeys(range(ROWS), 1)


@pytest.mark.parametrize('pack', [None, 400])
def test_the_examples_of_a_step_are_those_of_its_batch(tmp_path, pack):
  """The examples of a bad step can be looked up afterwards, packed or not."""
  lines = [json.dumps({'question': 'why ' * (n % 5 + 1)}) for n in range(40)]
  joined = MixtureRecords(
    [materialized(tmp_path, name, lines[: 20 + i]) for i, name in enumerate('ab')]
  )
  common = {
    'convert': converters.decoder_only,
    'lengths': QUESTION_LENGTHS,
    'batch_size': 4,
    'seed': 1,
  }
  text = vocabularies.bytes_vocabulary()
  batches = train_batches(joined, pack=pack, **common)
  for step, batch in enumerate(itertools.islice(batches, 12)):
    ids = train_ids(joined, step, pack=pack, **common)
    assert {name.split(':')[0] for name in ids} <= {'a', 'b'}
    segments = np.ones_like(batch.inputs) if batch.segments is None else batch.segments
    read = [
      text.decode(row[(of == n) & (row > 1)]).split(':')[0]
      for row, of in zip(batch.inputs, segments, strict=True)
      for n in range(1, of.max() + 1)
    ]
    assert [f'q{n}' for n in read] == [name.split(': ')[1] for name in ids]


@pytest.mark.parametrize('read', [train_batches, evaluation_batches])
def test_a_split_without_a_token_to_predict_is_an_error(tmp_path, read):
  task = dataclasses.replace(
    tiny_task([Row('1', 'a', ('',))]), special_tokens=SpecialTokens(True, True, False)
  )
  written = materialize.materialize(task, 'train', both(vocabularies.bytes_vocabulary()), tmp_path)
  settings = {'seed': 0} if read is train_batches else {}
  with pytest.raises(ValueError, match='tiny, split train: no row has a token to predict'):
    read(written, convert=converters.encoder_decoder, lengths=LENGTHS, batch_size=1, **settings)
