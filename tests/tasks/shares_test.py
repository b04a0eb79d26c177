"""What each process reads of real rows, and which examples a step holds."""

import collections
import itertools
import json

import numpy as np
import pytest

from cascades.data import batches as feeding
from cascades.data import converters, materialize
from cascades.data.records import Joined
from cascades.tasks import local
from cascades.tasks.task import both
from cascades.tokenizers import vocabularies
from tests.real_data import real

ROWS, BATCH = 1024, 16
LENGTHS = {'inputs': 160, 'targets': 8}


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
  """Of BoolQ, each behind its number, so that no two are alike."""
  lines = itertools.islice(real('superglue/BoolQ/val.jsonl').open(), ROWS)
  return materialized(tmp_path_factory.mktemp('questions'), 'boolq', lines)


def numbers(batches):
  """Of the questions in these batches."""
  text = vocabularies.bytes_vocabulary()
  return [
    int(text.decode(row[row > 0]).split(':')[0]) for batch in batches for row in batch.encoder
  ]


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_the_processes_shares_of_an_epoch_are_disjoint_and_complete(questions, processes):
  shares = [
    numbers(
      itertools.islice(
        feeding.train_batches(
          questions, convert=converters.encoder_decoder, lengths=LENGTHS, batch_size=BATCH, seed=3,
          process_index=index, process_count=processes,
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
  found = collections.Counter()
  for index in range(processes):
    batches = feeding.evaluation_batches(
      questions, convert=converters.encoder_decoder, lengths=LENGTHS, batch_size=96,
      process_index=index, process_count=processes,
    )  # fmt: skip
    for batch in batches:
      used = batch.weights.any(axis=1)
      found.update(numbers([batch._replace(encoder=batch.encoder[used])]))
  assert found == dict.fromkeys(range(ROWS), 1)


@pytest.mark.parametrize('pack', [None, 400])
def test_the_examples_of_a_step_are_those_of_its_batch(tmp_path, pack):
  """Of two tasks, packed or not; so a bad step's can be looked up afterwards."""
  lines = [json.dumps({'question': 'why ' * (n % 5 + 1)}) for n in range(40)]
  parts = [materialized(tmp_path, name, lines[: 20 + i]) for i, name in enumerate('ab')]
  joined = Joined(parts)
  common = {'convert': converters.decoder_only, 'lengths': LENGTHS, 'batch_size': 4, 'seed': 1}
  text = vocabularies.bytes_vocabulary()
  batches = feeding.train_batches(joined, pack=pack, **common)
  for step, batch in enumerate(itertools.islice(batches, 12)):
    ids = feeding.train_ids(joined, step, pack=pack, **common)
    assert {name.split(':')[0] for name in ids} <= {'a', 'b'}
    segments = np.ones_like(batch.inputs) if batch.segments is None else batch.segments
    read = [
      text.decode(row[(of == n) & (row > 1)]).split(':')[0]
      for row, of in zip(batch.inputs, segments, strict=True)
      for n in range(1, of.max() + 1)
    ]
    assert [f'q{n}' for n in read] == [name.split(': ')[1] for name in ids]
