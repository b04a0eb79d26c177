"""The cache of remote files: what it reads, and that its size is bounded."""

import concurrent.futures
import hashlib
import os
import random

import pytest
from etils import epath
from etils.epath import gpath
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades.runtime.block_cache import BlockCache
from tests import object_store

CONTENT = random.Random(0).randbytes(1000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def remote(tmp_path, monkeypatch):
  """A file of an object store, whose readings are counted."""

  class Counted(object_store.Bucket):
    opened = 0

    def open(self, path, mode):
      type(self).opened += 1
      return open(self._local(path), mode)

  bucket = Counted(tmp_path / 'store')
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', bucket)
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  (tmp_path / 'store' / 'bucket').mkdir(parents=True)
  (tmp_path / 'store' / 'bucket' / 'file').write_bytes(CONTENT)
  return epath.Path('gs://bucket/file'), Counted


def size(folder):
  return sum(path.stat().st_size for path in folder.glob('*/*'))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(30, 300))
def test_any_bytes_are_read_through_blocks_of_any_size(tmp_path_factory, first, last, block):
  folder = tmp_path_factory.mktemp('cache')
  file = folder / 'file'
  file.write_bytes(CONTENT)
  cache = BlockCache(str(folder / 'blocks'), block_bytes=block)
  begin, end = sorted((first, last))
  assert cache.read(file, SHA256, begin, end) == CONTENT[begin:end]


def test_a_block_is_fetched_once(remote, tmp_path):
  path, counted = remote
  cache = BlockCache(str(tmp_path / 'blocks'), block_bytes=100)
  for begin, fetched in ((150, 2), (150, 2), (250, 3), (100, 3)):
    assert cache.read(path, SHA256, begin, begin + 100) == CONTENT[begin : begin + 100]
    assert counted.opened == fetched
  another = BlockCache(str(tmp_path / 'blocks'), block_bytes=100)  # of another program
  assert another.read(path, SHA256, 100, 400) == CONTENT[100:400]
  assert counted.opened == 3


def test_its_size_is_bounded_and_the_blocks_that_were_read_last_stay(remote, tmp_path):
  path, counted = remote
  folder = tmp_path / 'blocks'
  cache = BlockCache(str(folder), most_bytes=320, block_bytes=10)
  cache.read(path, SHA256, 0, 10)
  for begin in range(10, 1000, 10):
    os.utime(folder / SHA256 / '10-0')
    cache.read(path, SHA256, begin, begin + 10)
    assert size(folder) <= 320 + 20
  before = counted.opened
  cache.read(path, SHA256, 0, 10)
  cache.read(path, SHA256, 990, 1000)
  assert counted.opened == before
  cache.read(path, SHA256, 10, 20)
  assert counted.opened == before + 1


def test_threads_share_a_small_cache(remote, tmp_path):
  path, _ = remote
  cache = BlockCache(str(tmp_path / 'blocks'), most_bytes=50, block_bytes=10)

  def read(seed):
    draw = random.Random(seed)
    for _ in range(100):
      begin = draw.randrange(950)
      assert cache.read(path, SHA256, begin, begin + 50) == CONTENT[begin : begin + 50]

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(read, range(4)))


def test_a_copy_has_the_content_that_was_written(remote, tmp_path):
  path, counted = remote
  cache = BlockCache(str(tmp_path / 'blocks'))
  assert [cache.copy(path, SHA256).read_bytes() for _ in range(2)] == [CONTENT] * 2
  assert counted.opened == 1
  with pytest.raises(OSError, match='gs://bucket/file is not what was written: copy it again'):
    cache.copy(path, '0' * 64)
  with pytest.raises(OSError, match='ends before byte 1001'):
    cache.read(path, SHA256, 990, 1001)


def test_its_directory_is_local():
  with pytest.raises(ValueError, match=r'RECORDS_CACHE_DIR.*remote'):
    BlockCache('gs://bucket/blocks')
