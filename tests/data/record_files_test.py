"""The files of token records: mapped positions, two-byte tokens, older formats, object stores."""

import concurrent.futures
import json
import shutil

import numpy as np
import pytest
from etils import epath
from etils.epath import gpath

from cascades.data import materialize, records, shards
from cascades.runtime.block_cache import BlockCache
from cascades.tasks.task import Row, both
from cascades.tokenizers import vocabularies
from tests import object_store
from tests.tiny_tasks import spelling, tiny_task

BYTES = both(vocabularies.bytes_vocabulary())
WIDE = both(vocabularies.symbols([f'w{n}' for n in range(70_000)]))


class Inline:
  """Workers without processes."""

  def submit(self, function, *arguments):
    future = concurrent.futures.Future()
    future.set_result(function(*arguments))
    return future


def write(folder, rows=37, *, name='tiny', vocabulary=BYTES, rows_per_shard=5, **how):
  task = tiny_task(rows if isinstance(rows, list) else spelling(rows), name=name)
  return materialize.materialize(
    task, 'train', vocabulary, folder, rows_per_shard=rows_per_shard, workers=Inline(), **how
  )


def check(opened, rows=37):
  order = np.random.default_rng(0).permutation(rows)
  expected = [spelling(rows)[index] for index in order]
  for row, (inputs, targets) in zip(expected, opened.tokens(order), strict=True):
    assert inputs.tolist() == BYTES.inputs.encode(row.inputs)
    assert targets.tolist() == BYTES.targets.encode(row.targets)
    assert inputs.dtype == targets.dtype == np.int32
  assert [record.row for record in opened.read(order)] == expected


def is_mapped(array):
  while array is not None and not isinstance(array, np.memmap):
    array = array.base
  return array is not None


def test_positions_of_the_rows_of_several_shards_are_mapped(tmp_path):
  opened = write(tmp_path)
  assert is_mapped(opened.lengths)
  assert is_mapped(opened.token_store.starts)
  assert sorted(opened.manifest.index) == ['lengths.npy', 'starts.npy']
  alone = write(tmp_path / 'one', rows_per_shard=100)
  assert not alone.manifest.index
  np.testing.assert_array_equal(opened.lengths, alone.lengths)
  check(opened)
  check(alone)
  joined = records.MixtureRecords([opened, alone])
  assert [record.row for record in joined.read([36, 37])] == [spelling(37)[36], spelling(37)[0]]
  assert joined.tokens([40])[0][0].tolist() == alone.tokens([3])[0][0].tolist()


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, '_MOST_MAPS', 2)
  opened = records.Records(write(tmp_path).directory)
  check(opened)
  assert opened.token_store.arrays._open.cache_info().currsize == 2


@pytest.mark.parametrize('name', shards.INDEX)
def test_a_damaged_index_is_noticed_and_written_again(tmp_path, name):
  opened = write(tmp_path)
  file = opened.directory / name
  content = file.read_bytes()
  file.write_bytes(content[:-4] + b'abcd')
  with pytest.raises(ValueError, match=f'{name} has .* was written'):
    records.check_content(opened.directory)
  check(write(tmp_path))
  file.write_bytes(content + b'more')
  with pytest.raises(ValueError, match=f'{name} has .* bytes'):
    records.Records(opened.directory)


def test_tokens_take_two_bytes_where_both_vocabularies_fit(tmp_path):
  narrow = write(tmp_path, name='narrow')
  rows = [Row(str(n), f'w{n * 7919 % 70_000}', ('w69999',)) for n in range(20)]
  wide = write(tmp_path, rows, name='wide', vocabulary=WIDE)
  for opened, size in ((narrow, 2), (wide, 4)):
    assert {shard.token_bytes for shard in opened.manifest.shards} == {size}
    tokens = sum(sum(shard.tokens) for shard in opened.manifest.shards)
    stored = sum(file.bytes for name, file in opened.manifest.files.items() if '.tokens' in name)
    assert stored == size * tokens
  for row, (inputs, targets) in zip(rows, wide.tokens(range(20)), strict=True):
    assert inputs.tolist() == WIDE.inputs.encode(row.inputs)
    assert targets.tolist() == WIDE.targets.encode(row.targets)


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path):
  def wrong(rows, vocabularies, shard):
    for record in shards.row_by_row(rows, vocabularies, shard):
      yield record._replace(inputs=np.array([1 << 16], np.int32))

  with pytest.raises(ValueError, match='token 65536 is none of the vocabularies'):
    shards.write(spelling(3), BYTES, tmp_path, 0, wrong)


def older(folder):
  """Records of the format before: four bytes a token, and no index."""
  opened = write(folder)
  place = materialize._located(tiny_task(spelling(37)), 'train', BYTES, folder, 2)
  opened.directory.rename(place)
  manifest = json.loads((place / 'manifest.json').read_text())
  del manifest['index']
  manifest['identity']['format'] = '2'
  for name in shards.INDEX:
    (place / name).unlink()
  for shard in manifest['shards']:
    del shard['token_bytes']
    file = place / f'{shard["name"]}.tokens'
    file.write_bytes(np.frombuffer(file.read_bytes(), '<u2').astype('<i4').tobytes())
    digest = shards.textfiles.sha256(file)
    shard['files'][file.name] = [file.stat().length, digest]
  (place / 'manifest.json').write_text(json.dumps(manifest))
  return place


def test_records_of_the_format_before_are_read_and_not_written_again(tmp_path):
  place = older(tmp_path)
  opened = write(tmp_path)
  assert opened.directory == place
  check(opened)
  (place / '00003.tokens').unlink()
  again = write(tmp_path)  # damaged: in the format of today
  assert again.directory != place
  assert again.manifest.identity['format'] == str(shards.FORMAT)
  check(again)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', object_store.Bucket(tmp_path / 'store'))
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  return tmp_path / 'store' / 'bucket'


def test_records_in_an_object_store_are_read_through_a_small_cache(tmp_path, bucket):
  shutil.copytree(write(tmp_path / 'here').directory.parent, bucket / 'records' / 'tiny')
  cache = BlockCache(str(tmp_path / 'blocks'), most_bytes=2000, block_bytes=16)
  opened = write('gs://bucket/records', cache=cache)
  assert is_mapped(opened.lengths)
  order = np.arange(37)
  for _ in range(2):
    for row, (inputs, targets) in zip(spelling(37), opened.tokens(order), strict=True):
      assert inputs.tolist() == BYTES.inputs.encode(row.inputs)
      assert targets.tolist() == BYTES.targets.encode(row.targets)
  size = sum(path.stat().st_size for path in (tmp_path / 'blocks').glob('*/*'))
  assert size <= 2000 * 17 / 16 + 16
  with pytest.raises(OSError, match=r'array_record has .* bytes.* raise RECORDS_CACHE_BYTES'):
    opened.read([0])
  larger = BlockCache(str(tmp_path / 'blocks'), most_bytes=200_000)  # than the text of a shard
  check(write('gs://bucket/records', cache=larger))


def test_records_are_not_written_to_an_object_store(bucket):
  with pytest.raises(FileNotFoundError, match=r'materialize them in a local directory .* tiny/tra'):
    write(epath.Path('gs://bucket/records'))
