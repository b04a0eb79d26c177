import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tasks import shards, vocabularies
from cascades.tasks.task import Row, both
from tests.tasks.conftest import spelling

BYTES = both(vocabularies.bytes_vocabulary())


def write(rows, directory, rows_per_shard=100):
  records = (shards.tokenize(row, BYTES) for row in rows)
  return shards.write(records, directory, rows_per_shard=rows_per_shard)


def reader(directory, written):
  return shards.Reader([directory / name for name in written.shards])


def test_a_row_is_tokenised_field_by_field():
  record = shards.tokenize(Row('id', 'ab', ('c', 'd'), ('c', 'dd'), 0), BYTES)
  assert record.inputs.tolist() == [100, 101]
  assert record.targets.tolist() == [102]
  assert [ids.tolist() for ids in record.options] == [[102], [103, 103]]


def test_inputs_and_targets_may_have_vocabularies_of_their_own():
  symbols = vocabularies.symbols(['c'])
  record = shards.tokenize(Row('id', 'c', ('c',), ('c',)), BYTES._replace(targets=symbols))
  assert (record.inputs.tolist(), record.targets.tolist()) == ([102], [3])
  assert record.options[0].tolist() == [3]


@pytest.mark.parametrize('rows_per_shard', [1, 4, 12, 13, 100])
def test_rows_come_back_from_any_number_of_shards(tmp_path, rows_per_shard):
  rows = spelling(13)
  written = write(rows, tmp_path, rows_per_shard)
  assert len(written.shards) == -(-13 // rows_per_shard)
  read = reader(tmp_path, written)
  assert len(read) == 13
  order = np.array([12, 0, 5, 5, 4, 3, 11])
  assert [row for row, _ in read.read(order)] == [rows[i] for i in order]


def test_shards_are_named_in_order(tmp_path):
  written = write(spelling(5), tmp_path, rows_per_shard=2)
  assert written.shards == [f'records-0000{i}.array_record' for i in range(3)]
  assert sorted(path.name for path in tmp_path.iterdir()) == [*written.shards, 'tokens.bin']


def test_lengths_count_the_stored_tokens(tmp_path):
  rows = spelling(9)
  written = write(rows, tmp_path)
  assert written.lengths.dtype == np.int32
  assert written.lengths.tolist() == [[len(row.inputs), len(row.targets)] for row in rows]


def test_the_tokens_file_holds_inputs_then_targets_row_by_row(tmp_path):
  write([Row('1', 'ab', ('c',)), Row('2', '', ('de',))], tmp_path)
  stored = np.fromfile(tmp_path / shards.TOKENS, '<i4')
  assert stored.tolist() == [100, 101, 102, 103, 104]


def test_rows_without_answers_are_counted(tmp_path):
  rows = [Row('1', 'a', ('b',)), Row('2', 'a', ()), Row('3', 'a', ())]
  assert write(rows, tmp_path).unlabelled == 2


def test_no_rows_make_no_shards(tmp_path):
  written = write([], tmp_path)
  assert (written.shards, written.lengths.shape) == ([], (0, 2))


def test_options_come_back_with_their_tokens(tmp_path):
  row = Row('1', 'a', ('yes',), ('no', 'yes'), 1)
  ((found, options),) = reader(tmp_path, write([row], tmp_path)).read(np.array([0]))
  assert found == row
  assert [ids.tolist() for ids in options] == [BYTES.targets.encode(o) for o in row.options]


text = st.text(max_size=30)
row = st.builds(
  Row,
  id=text,
  inputs=text,
  answers=st.lists(text, max_size=2).map(tuple),
  options=st.lists(text, max_size=3).map(tuple),
  label=st.none() | st.integers(-1, 2),
)


@given(st.lists(row, min_size=1, max_size=8), st.integers(1, 4))
def test_any_row_survives_storage(tmp_path_factory, rows, rows_per_shard):
  directory = tmp_path_factory.mktemp('shards')
  read = reader(directory, write(rows, directory, rows_per_shard))
  assert [found for found, _ in read.read(np.arange(len(rows)))] == rows
