import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from cascades.data import shards
from cascades.tasks.task import Record, Row, both
from cascades.tasks.tokenize import blocks, row_by_row
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import spelling

BYTES = both(vocabularies.bytes_vocabulary())


def write(rows, directory, rows_per_shard=100):
  row_blocks = blocks(rows, rows_per_shard)
  return [shards.write(block, BYTES, directory, i) for i, block in enumerate(row_blocks)]


def tokenize(row, vocabularies):
  encode = lambda vocabulary, text: np.array(vocabulary.encode(text), '<i4')
  return Record(
    row,
    encode(vocabularies.inputs, row.inputs),
    encode(vocabularies.targets, row.targets),
    tuple(encode(vocabularies.targets, option) for option in row.options),
  )


def reader(directory, written):
  return shards.Reader(epath.Path(directory), written)


def test_a_row_is_tokenized_field_by_field():
  (record,) = row_by_row([Row('id', 'ab', ('c', 'd'), ('c', 'dd'), 0)], BYTES, 0)
  assert record.inputs.tolist() == [100, 101]
  assert record.targets.tolist() == [102]
  assert [ids.tolist() for ids in record.options] == [[102], [103, 103]]


def test_inputs_and_targets_may_have_vocabularies_of_their_own():
  symbols = vocabularies.symbols(['c'])
  both = BYTES._replace(targets=symbols)
  (record,) = row_by_row([Row('id', 'c', ('c',), ('c',))], both, 0)
  assert (record.inputs.tolist(), record.targets.tolist()) == ([102], [3])
  assert record.options[0].tolist() == [3]


@pytest.mark.parametrize('rows_per_shard', [1, 4, 12, 13, 100])
def test_rows_come_back_from_any_number_of_shards(tmp_path, rows_per_shard):
  rows = spelling(13)
  written = write(rows, tmp_path, rows_per_shard)
  assert len(written) == -(-13 // rows_per_shard)
  read = reader(tmp_path, written)
  order = np.array([12, 0, 5, 5, 4, 3, 11])
  assert [row for row, _ in read.read(order)] == [rows[i] for i in order]


def test_a_shard_has_four_files_and_its_description_is_the_last(tmp_path, monkeypatch):
  present = []
  write_file = shards.files.write

  def observed(path, content):
    present.extend(sorted(file.name for file in tmp_path.iterdir()))
    write_file(path, content)

  monkeypatch.setattr(shards.files, 'write', observed)
  shard = shards.write(spelling(5), BYTES, tmp_path, 3)
  assert shard.name == '00003'
  names = ['00003.array_record', '00003.json', '00003.lengths.npy', '00003.tokens']
  assert sorted(path.name for path in tmp_path.iterdir()) == names
  assert sorted(shard.files) == present == [name for name in names if not name.endswith('json')]


def test_what_an_interrupted_shard_leaves_does_not_count_as_finished(tmp_path):
  def interrupted():
    yield from spelling(3)
    raise KeyboardInterrupt

  shards.write(spelling(5), BYTES, tmp_path, 0)
  with pytest.raises(KeyboardInterrupt):
    shards.write(interrupted(), BYTES, tmp_path, 1)
  assert list(shards.finished(tmp_path)) == [0]
  (tmp_path / '00000.tokens').write_bytes(b'')
  assert not shards.finished(tmp_path)


def test_a_finished_shard_is_described_as_it_was_written(tmp_path):
  shard = shards.write(spelling(5), BYTES, tmp_path, 2)
  assert shards.finished(tmp_path) == {2: shard}


def test_lengths_count_the_stored_tokens(tmp_path):
  rows = spelling(9)
  (shard,) = write(rows, tmp_path)
  lengths = shards.lengths(tmp_path, shard)
  assert lengths.dtype == np.int32
  assert lengths.tolist() == [[len(row.inputs), len(row.targets)] for row in rows]
  assert list(shard.tokens) == lengths.sum(axis=0).tolist()


def test_the_tokens_file_holds_inputs_then_targets_row_by_row(tmp_path):
  (shard,) = write([Row('1', 'ab', ('c',)), Row('2', '', ('de',))], tmp_path)
  assert shards.map_tokens(tmp_path, shard).tolist() == [100, 101, 102, 103, 104]


def test_rows_without_answers_are_counted(tmp_path):
  rows = [Row('1', 'a', ('b',)), Row('2', 'a', ()), Row('3', 'a', ())]
  assert write(rows, tmp_path)[0].unlabeled == 2


def test_another_tokenization_gets_the_shards_number_and_makes_its_own_records(tmp_path):
  def twice(rows, vocabularies, shard):
    for row in rows:
      yield from [tokenize(row._replace(id=f'{row.id}-{shard}'), vocabularies)] * 2

  shard = shards.write(spelling(3), BYTES, tmp_path, 7, twice)
  assert shard.rows == 6
  ((row, _),) = reader(tmp_path, [shard]).read(np.array([5]))
  assert row.id == 'row-2-7'


def test_rows_tokenized_together_equal_rows_tokenized_one_by_one():
  rows = [Row(str(i), 'ab' * i, (str(i),), ('x', 'yz')[: i % 3]) for i in range(600)]
  for record, row in zip(row_by_row(rows, BYTES, 0), rows, strict=True):
    expected = tokenize(row, BYTES)
    assert record.row == row
    for together, alone in zip(
      [*record[1:3], *record.options], [*expected[1:3], *expected.options], strict=True
    ):
      assert np.array_equal(together, alone)


def test_options_come_back_with_their_tokens(tmp_path):
  row = Row('1', 'a', ('yes',), ('no', 'yes'), 1)
  ((stored, options),) = reader(tmp_path, write([row], tmp_path)).read(np.array([0]))
  assert stored == row
  assert [ids.tolist() for ids in options] == [BYTES.targets.encode(o) for o in row.options]


text = st.text(max_size=30)
row = st.builds(
  Row,
  id=text,
  inputs=text,
  answers=st.lists(text, max_size=2).map(tuple),
  options=st.lists(text, max_size=3).map(tuple),
  label=st.none() | st.integers(-1, 2),
  group=st.none() | text,
  template=st.none() | st.integers(0, 9),
)


@given(st.lists(row, min_size=1, max_size=8), st.integers(1, 4))
def test_any_row_survives_storage(tmp_path_factory, rows, rows_per_shard):
  directory = tmp_path_factory.mktemp('shards')
  read = reader(directory, write(rows, directory, rows_per_shard))
  assert [stored for stored, _ in read.read(np.arange(len(rows)))] == rows
