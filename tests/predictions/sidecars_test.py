"""Arrays beside tables: written whole, mapped from the disk, and refused beside another table."""

import json
import pathlib

import hypothesis.strategies as st
import numpy as np
import pytest
from etils.epath import gpath
from hypothesis import given, settings

from cascades.predictions import alignment, shards, sidecars
from cascades.runtime import files
from tests import object_store, synthetic_tables

ROWS, WIDTH = 7, 3
FIRST = 'a-predict.embedding.npy-00000-of-00002'


def write_table(folder, *, size=ROWS, **changes):
  synthetic_tables.write(folder, 'a', synthetic_tables.records('a', size=size, **changes))
  (table,) = shards.read(folder)
  return table


@pytest.fixture
def table(tmp_path):
  return write_table(tmp_path)


@pytest.fixture
def embedding():
  return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)


def read(folder, table, **options):
  return sidecars.read(folder, 'embedding', table, **options)


@pytest.mark.parametrize('count', [1, 2, ROWS + 2])
@pytest.mark.parametrize('dtype', ['float32', 'float16', '>f8', 'int64', 'bool'])
def test_an_array_is_read_as_it_was_written(tmp_path, table, embedding, dtype, count):
  array = (4 * embedding).astype(dtype)
  sidecars.write(tmp_path, 'embedding', table, array, count=count, origin={'model': 'bert'})
  sidecar = read(tmp_path, table)
  assert len(sidecar) == ROWS
  assert sidecar.array().dtype == array.dtype.newbyteorder('<')
  np.testing.assert_array_equal(sidecar.array(), array)
  manifest = json.loads((tmp_path / 'a-predict.embedding.sidecar.json').read_text())
  assert manifest == sidecar.manifest
  assert manifest['name'] == 'embedding'
  assert manifest['dtype'] == array.dtype.newbyteorder('<').str
  assert (manifest['rows'], manifest['shape'], manifest['shards']) == (ROWS, [WIDTH], count)
  assert manifest['origin'] == {'model': 'bert'}


@settings(deadline=None)
@given(st.lists(st.integers(0, ROWS - 1), max_size=9), st.integers(1, 4))
def test_rows_are_taken_in_any_order_from_any_shards(tmp_path_factory, indices, count):
  folder = tmp_path_factory.mktemp('table')
  table, array = write_table(folder), np.arange(ROWS * 2).reshape(ROWS, 2)
  sidecars.write(folder, 'embedding', table, array, count=count)
  np.testing.assert_array_equal(read(folder, table).take(indices), array[indices])


@pytest.mark.parametrize('indices', [[0, ROWS], [-1]])
def test_rows_that_the_table_does_not_have_are_refused(tmp_path, table, embedding, indices):
  sidecars.write(tmp_path, 'embedding', table, embedding)
  with pytest.raises(IndexError, match="sidecar 'embedding', which has rows 0 to 6"):
    read(tmp_path, table).take(indices)


def test_rows_follow_a_joined_table_by_their_ids(tmp_path, table, embedding):
  sidecars.write(tmp_path, 'embedding', table, embedding, count=2)
  large = alignment.select(table, [5, 2, 6, 0, 1, 4, 3])
  joined, _ = alignment.join(table, large)
  taken = read(tmp_path, table).take(alignment.positions(table, joined.ids))
  np.testing.assert_array_equal(taken, embedding[[5, 2, 6, 0, 1, 4, 3]])


def test_local_arrays_are_mapped_and_cannot_be_changed(tmp_path, table, embedding):
  sidecars.write(tmp_path, 'embedding', table, embedding, count=2)
  for shard in read(tmp_path, table).shards:
    assert isinstance(shard, np.memmap)
    with pytest.raises(ValueError, match='read-only'):
      shard[0] = 0
  sidecars.merge(tmp_path, 'embedding', table)
  assert isinstance(read(tmp_path, table).array(), np.memmap)


def test_tables_and_several_sidecars_do_not_disturb_each_other(tmp_path, table, embedding):
  sidecars.write(tmp_path, 'embedding', table, embedding)
  sidecars.write(tmp_path, 'hidden_state-2', table, np.zeros((ROWS, 2, 2)))
  (again,) = shards.read(tmp_path)
  assert again.ids == table.ids
  assert read(tmp_path, table).array().shape == (ROWS, WIDTH)
  assert sidecars.read(tmp_path, 'hidden_state-2', table).array().shape == (ROWS, 2, 2)


def test_shards_are_merged_into_one(tmp_path, table, embedding):
  sidecars.write(tmp_path, 'embedding', table, embedding, count=3, origin={'step': 4})
  sidecars.merge(tmp_path, 'embedding', table)
  assert sorted(path.name for path in tmp_path.glob('*embedding*')) == [
    'a-predict.embedding.npy-00000-of-00001',
    'a-predict.embedding.npy-00000-of-00001.COMPLETED',
    'a-predict.embedding.sidecar.json',
  ]
  sidecar = read(tmp_path, table, digest=True)
  np.testing.assert_array_equal(sidecar.array(), embedding)
  assert sidecar.manifest['origin'] == {'step': 4}
  sidecars.merge(tmp_path, 'embedding', table)
  np.testing.assert_array_equal(read(tmp_path, table).array(), embedding)


def interrupt(monkeypatch, writes):
  """The next writes of files succeed, then one fails."""
  write, written = files.write, []

  def failing(path, content):
    if len(written) == writes:
      raise OSError('disk full')
    written.append(path)
    write(path, content)

  monkeypatch.setattr(files, 'write', failing)


@pytest.mark.parametrize('writes', range(3))
def test_an_interrupted_merge_loses_nothing(tmp_path, table, embedding, monkeypatch, writes):
  sidecars.write(tmp_path, 'embedding', table, embedding, count=3)
  with monkeypatch.context() as patch:
    interrupt(patch, writes)
    with pytest.raises(OSError, match='disk full'):
      sidecars.merge(tmp_path, 'embedding', table)
  np.testing.assert_array_equal(read(tmp_path, table, digest=True).array(), embedding)
  sidecars.merge(tmp_path, 'embedding', table)
  np.testing.assert_array_equal(read(tmp_path, table, digest=True).array(), embedding)


@pytest.mark.parametrize('writes', range(5))
def test_a_partly_written_array_is_not_read_and_can_be_resumed(
  tmp_path, table, embedding, monkeypatch, writes
):
  sidecars.write(tmp_path, 'embedding', table, embedding + 1, count=2)  # of an earlier model
  with monkeypatch.context() as patch:
    interrupt(patch, writes)
    with pytest.raises(OSError, match='disk full'):
      sidecars.write(tmp_path, 'embedding', table, embedding, count=2)
  with pytest.raises(FileNotFoundError, match="no complete sidecar 'embedding' of task 'a'"):
    read(tmp_path, table)
  done = sidecars.completed_shards(tmp_path, 'a', 'predict', 'embedding', 2, total=ROWS)
  assert done >= set(range(writes // 2))
  sidecars.write(tmp_path, 'embedding', table, embedding, count=2)
  np.testing.assert_array_equal(read(tmp_path, table, digest=True).array(), embedding)


def test_only_complete_shards_of_the_same_origin_are_kept(tmp_path, embedding):
  def completed(**options):
    settings = {'total': ROWS, 'fingerprint': 'model 7', **options}
    return sidecars.completed_shards(tmp_path, 'a', 'predict', 'embedding', 2, **settings)

  for index in range(2):
    span = shards.shard_rows(ROWS, index, 2)
    part_of = embedding[span.start : span.stop]
    sidecars.write_shard(
      tmp_path, 'a', 'predict', 'embedding', index, 2, part_of, fingerprint='model 7'
    )
  assert completed() == {0, 1}
  assert completed(fingerprint='model 8') == set()
  assert completed(total=ROWS + 3) == set()
  path = tmp_path / FIRST
  path.write_bytes(path.read_bytes()[:-4] + b'1234')  # of equal size
  assert completed() == {1}


def truncate(path):
  path.write_bytes(path.read_bytes()[:-5])


def replace(path):
  """Another array of the same size, with a marker of its own."""
  other = pathlib.Path(str(path).replace('00000-of', '00001-of'))
  path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
  ('damage', 'reason'),
  [
    (lambda path: path.unlink(), f'{FIRST} is missing'),
    (truncate, f'{FIRST} has bytes 159, but its marker has 164'),
    (replace, f'{FIRST} has bytes 176, but its marker has 164'),
    (lambda path: path.with_name(f'{FIRST}.COMPLETED').unlink(), 'has no .COMPLETED marker'),
  ],
)
def test_a_damaged_file_is_named(tmp_path, table, embedding, damage, reason):
  sidecars.write(tmp_path, 'embedding', table, embedding, count=2)
  damage(tmp_path / FIRST)
  with pytest.raises(ValueError, match=f"{reason}.* Write sidecar 'embedding' again"):
    read(tmp_path, table)


def test_a_changed_file_of_equal_size_is_found_by_its_digest(tmp_path, table, embedding):
  sidecars.write(tmp_path, 'embedding', table, embedding, count=2)
  path = tmp_path / FIRST
  path.write_bytes(path.read_bytes()[:-4] + b'1234')
  read(tmp_path, table)
  with pytest.raises(ValueError, match=f'{FIRST} has sha256'):
    read(tmp_path, table, digest=True)


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'ids': [f'b-{i}' for i in range(ROWS)]}, 'its ids is '),
    ({'manifest': {'mode': 'predict', 'fingerprint': 'f'}}, "its fingerprint is '', not 'f'"),
  ],
)
def test_an_array_of_another_table_is_refused(tmp_path, table, embedding, change, reason):
  sidecars.write(tmp_path, 'embedding', table, embedding)
  with pytest.raises(
    ValueError, match=f'embedding.sidecar.json belongs to another table: {reason}'
  ):
    read(tmp_path, table._replace(**change))


def test_selected_and_reordered_tables_are_other_tables(tmp_path, table, embedding):
  sidecars.write(tmp_path, 'embedding', table, embedding)
  with pytest.raises(ValueError, match=r'its rows is 7, not 2.* before rows are joined'):
    read(tmp_path, alignment.select(table, [0, 1]))
  with pytest.raises(ValueError, match='another table: its ids is'):
    read(tmp_path, alignment.select(table, range(ROWS)[::-1]))


def test_a_table_that_was_answered_again_has_no_array(tmp_path, table, embedding):
  sidecars.write(tmp_path, 'embedding', table, embedding)
  longer = write_table(tmp_path, size=ROWS + 1)
  with pytest.raises(ValueError, match='another table: its rows is 7, not 8'):
    read(tmp_path, longer)


@pytest.mark.parametrize('rows', [ROWS - 1, ROWS + 1])
def test_an_array_of_another_number_of_rows_is_not_written(tmp_path, table, rows):
  with pytest.raises(ValueError, match=rf"'embedding' has shape \({rows}, 2\), .* has 7 rows"):
    sidecars.write(tmp_path, 'embedding', table, np.zeros((rows, 2)))
  assert not list(tmp_path.glob('*embedding*'))


@pytest.mark.parametrize(
  'array', [np.array(['x'] * ROWS), np.array([{}] * ROWS), np.array([b'x'] * ROWS)]
)
def test_arrays_that_need_pickles_or_are_no_numbers_are_not_written(tmp_path, table, array):
  with pytest.raises(ValueError, match='one entry per row of floats, integers or booleans'):
    sidecars.write(tmp_path, 'embedding', table, array)
  assert not list(tmp_path.glob('*embedding*'))


@pytest.mark.parametrize('remote', [False, True])
def test_a_pickle_in_the_place_of_an_array_is_not_loaded(
  tmp_path, monkeypatch, table, embedding, remote
):
  folder = tmp_path
  if remote:
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', object_store.Bucket(tmp_path.parent))
    monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
    folder = f'gs://{tmp_path.name}'
  sidecars.write(folder, 'embedding', table, embedding)
  path = tmp_path / 'a-predict.embedding.npy-00000-of-00001'
  with path.open('wb') as file:
    np.save(file, np.array([{}] * ROWS), allow_pickle=True)
  marker = path.with_name(f'{path.name}.COMPLETED')
  size = {'bytes': path.stat().st_size}
  marker.write_text(json.dumps(json.loads(marker.read_text()) | size))
  with pytest.raises(ValueError, match=r'is not an array in the format of NumPy: .*bject'):
    read(folder, table)


def test_shards_of_different_shape_are_not_completed(tmp_path, table):
  for index, width in enumerate((2, 3)):
    span = shards.shard_rows(ROWS, index, 2)
    array = np.zeros((len(span), width))
    sidecars.write_shard(tmp_path, 'a', 'predict', 'embedding', index, 2, array)
  with pytest.raises(ValueError, match=r"'embedding' differ: .* shape \(2,\), shard 1 .*\(3,\)"):
    sidecars.write_manifest(tmp_path, 'embedding', table, count=2)


@pytest.mark.parametrize(
  ('key', 'value', 'reason'),
  [
    ('version', 2, 'version: expected 1 of the format, found 2'),
    ('shape', 'x', 'shape: Expected `array`, got `str`'),
    ('shape', [4], r'entries of shape \[4\], but shard 0 has <f4 and \[3\]'),
    ('dtype', '<f8', 'has dtype <f8'),
  ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, table, embedding, key, value, reason):
  sidecars.write(tmp_path, 'embedding', table, embedding)
  path = tmp_path / 'a-predict.embedding.sidecar.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(ValueError, match=f'embedding.sidecar.json.*{reason}'):
    read(tmp_path, table)


@pytest.mark.parametrize('name', ['', '../x', 'a b', 'a.b'])
def test_names_that_are_no_part_of_a_file_name_are_refused(tmp_path, table, embedding, name):
  with pytest.raises(ValueError, match="letters, digits, '_' and '-'"):
    sidecars.write(tmp_path, name, table, embedding)


def test_sidecars_live_in_object_stores_too(tmp_path, monkeypatch, embedding):
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', object_store.Bucket(tmp_path / 'bucket'))
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  table = write_table('gs://runs/small')
  sidecars.write('gs://runs/small', 'embedding', table, embedding, count=2)
  np.testing.assert_array_equal(read('gs://runs/small', table).array(), embedding)
  sidecars.merge('gs://runs/small', 'embedding', table)
  np.testing.assert_array_equal(read('gs://runs/small', table).array(), embedding)
