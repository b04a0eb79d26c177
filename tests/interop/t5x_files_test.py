from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
import tensorstore
from flax import serialization

from cascades.checkpoints.store import CheckpointError
from cascades.interop import t5x, t5x_files
from cascades.models import configs
from tests.interop.t5x_arrays import TINY, load, random_arrays, write_native, write_orbax


def test_large_arrays_are_written_in_pieces_that_divide_them(monkeypatch):
  assert t5x_files._chunks((32128, 512), 4) == [32128, 512]  # 62.75 MiB
  assert t5x_files._chunks((32128, 4096), 4) == [4016, 4096]  # 62.75 MiB of 502
  assert t5x_files._chunks((48, 96), 4) == [48, 96]
  monkeypatch.setattr(t5x_files, 'CHUNK_BYTES', 40)
  assert t5x_files._chunks((6, 15), 2) == [3, 5]
  assert t5x_files._chunks((13, 7), 4) == [1, 7]  # thirteen has no half


def test_a_run_directory_is_answered_with_its_checkpoints(tmp_path):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  with pytest.raises(CheckpointError, match=r'Give a checkpoint_N: checkpoint_5\.'):
    t5x.open_checkpoint(tmp_path)
  with pytest.raises(CheckpointError, match=r'Give a checkpoint_N\.'):
    t5x.open_checkpoint(tmp_path / 'nowhere')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'model_checkpoint_path: "model.ckpt-1000"\n', 'is a TensorFlow checkpoint'),
    (b'\x80\x04\x95\x1a\x00\x00', 'is damaged'),  # a pickle
    (b'', 'is damaged'),
    (serialization.msgpack_serialize({'params': {}}), 'KeyError..version'),
    (serialization.msgpack_serialize({'version': 2, 'optimizer': {}}), 'version 2, expected 3'),
  ],
)
def test_a_file_of_another_kind_is_named(content, message, tmp_path):
  (tmp_path / 'checkpoint_5').mkdir()
  (tmp_path / 'checkpoint_5' / 'checkpoint').write_bytes(content)
  with pytest.raises(CheckpointError, match=message):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  folder = tmp_path_factory.mktemp('original')
  write_native(folder / 'inline' / 'checkpoint_5', random_arrays(TINY))
  params = load(folder / 'inline' / 'checkpoint_5').params
  return t5x.write(folder, configs.describe(TINY), params, step=5)


@pytest.fixture
def written(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'checkpoint_5')


def test_a_folder_that_was_not_copied_is_named(written):
  shutil.rmtree(written / 'target.decoder.layers_1.mlp.wo.kernel')
  message = 'incomplete. Missing or damaged: target/decoder/layers_1/mlp/wo/kernel'
  with pytest.raises(CheckpointError, match=message):
    t5x.open_checkpoint(written)


@pytest.mark.parametrize('content', [None, b'not gzip'])
def test_a_lost_or_damaged_piece_is_an_error_and_not_zeros(content, written):
  piece = written / 'target.decoder.logits_dense.kernel' / '0.0'
  piece.unlink() if content is None else piece.write_bytes(content)
  with pytest.raises(CheckpointError, match='decoder/logits_dense/kernel is damaged'):
    load(written)


def test_a_damaged_orbax_store_is_an_error(tmp_path):
  write_orbax(tmp_path / 'checkpoint_5', random_arrays(TINY))
  (tmp_path / 'checkpoint_5' / 'state' / 'manifest.ocdbt').write_bytes(b'cut off')
  with pytest.raises(CheckpointError, match='state is damaged'):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


@pytest.mark.parametrize('path', ['../../elsewhere', '/etc/passwd', '..', ''])
def test_arrays_outside_the_checkpoint_are_not_touched(path, tmp_path):
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': path}, 'metadata': {}}
  tree = {'target': {'token_embedder': {'embedding': spec}}}
  content = serialization.msgpack_serialize({'version': 3, 'optimizer': tree})
  (tmp_path / 'checkpoint_5').mkdir()
  (tmp_path / 'checkpoint_5' / 'checkpoint').write_bytes(content)
  with pytest.raises(CheckpointError, match='target/token_embedder/embedding is in'):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


def test_a_checkpoint_is_found_wherever_it_was_written(written, tmp_path):
  index = written / 'checkpoint'
  tree = serialization.msgpack_restore(index.read_bytes())
  spec = tree['optimizer']['target']['token_embedder']['embedding']
  # On Google's storage, by an old TensorStore.
  spec['path'] = spec['kvstore'].pop('path')
  spec['kvstore'] |= {'driver': 'gcs', 'bucket': 't5x-dummy-bucket'}
  index.write_bytes(serialization.msgpack_serialize(tree))
  shutil.move(written, tmp_path / 'moved')
  assert t5x.open_checkpoint(tmp_path / 'moved').description['vocab_size'] == 24


def test_orbax_without_ocdbt_is_read(tmp_path):
  exported = random_arrays(TINY)
  for name, array in exported.items():
    folder = tmp_path / 'checkpoint_5' / 'state' / f'target.{name.replace("/", ".")}'
    kvstore = {'driver': 'file', 'path': f'{folder}/'}
    spec = {'driver': 'zarr', 'kvstore': kvstore, 'metadata': {'shape': [*array.shape]}}
    store = tensorstore.open(spec, dtype=array.dtype, create=True).result()
    store.write(array).result()
  description = t5x.open_checkpoint(tmp_path / 'checkpoint_5').description
  assert configs.from_description(description) == TINY


def test_nothing_is_overwritten_and_half_a_checkpoint_is_none(written, tmp_path):
  params = load(written).params
  with pytest.raises(CheckpointError, match='exists: remove it'):
    t5x.write(tmp_path, configs.describe(TINY), params, step=5)
  (written / 'checkpoint').unlink()
  with pytest.raises(CheckpointError, match='is not a checkpoint of T5X'):
    t5x.open_checkpoint(written)
  t5x.write(tmp_path, configs.describe(TINY), params, step=5)
  jax.tree.map(np.testing.assert_array_equal, load(written).params, params)
