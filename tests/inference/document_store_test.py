"""Encoded documents on disk: what is read is what was written, or an error says why not."""

import json

import numpy as np
import pytest

from cascades.inference import document_store
from cascades.inference.document_store import StoreError
from cascades.models.rankers import Encoded

DOCUMENTS = {f'd{i}': 'x' * i for i in range(1, 8)}
LENGTH, WIDTH = 7, 4


def _encode(texts):
  """Vectors that tell the text's length and the token's position."""
  lengths = np.array([len(text) for text in texts])
  random = np.random.default_rng(0).standard_normal((LENGTH, WIDTH)).astype(np.float32)
  vectors = np.stack([random * n for n in lengths])
  mask = np.arange(LENGTH) < lengths[:, None]
  return Encoded((vectors * mask[..., None]).astype(np.float32), mask)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  monkeypatch.setattr(document_store, 'PIECE', 3)


def _write(folder, encode=_encode, documents=DOCUMENTS, **options):
  document_store.write(folder, documents, encode, **{'ranker': 'mine', **options})


@pytest.mark.parametrize(('dtype', 'error'), [('float32', 0), ('float16', 1e-3), ('int8', 5e-3)])
def test_vectors_are_read_as_they_were_encoded(dtype, error, tmp_path):
  _write(tmp_path, dtype=dtype)
  store = document_store.open_store(tmp_path, ranker='mine')
  assert store.ids == tuple(DOCUMENTS)
  rows = [6, 0, 3, 3]
  expected = _encode([[*DOCUMENTS.values()][i] for i in rows])
  actual = store.take(rows)
  np.testing.assert_array_equal(actual.mask, expected.mask)
  bound = error * np.abs(expected.vectors).max(-1, keepdims=True)
  assert (np.abs(actual.vectors - expected.vectors) <= bound).all()
  assert isinstance(store.vectors[0], np.memmap)


@pytest.mark.parametrize(('dtype', 'token'), [('float32', 4 * 4), ('float16', 8), ('int8', 4 + 2)])
def test_bytes_of_a_document_are_those_on_disk(dtype, token, tmp_path):
  _write(tmp_path, dtype=dtype)
  store = document_store.open_store(tmp_path)
  assert store.bytes_per_document == pytest.approx(np.mean(range(1, 8)) * token + 2)
  files = [path for path in tmp_path.glob('*.npy') if 'ids' not in path.name]
  headers = 128 * len(files)
  assert sum(path.stat().st_size for path in files) - headers == store.bytes_per_document * 7


def test_int8_is_off_by_half_a_step():
  vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
  vectors[0] = 0
  values, scales = document_store.quantize(vectors)
  assert values.dtype == np.int8
  error = np.abs(values * scales[:, None].astype(np.float32) - vectors)
  assert (error <= 0.51 * scales[:, None].astype(np.float32) + 127 * 2**-11 * 0.02).all()
  assert not values[0].any()


def test_a_killed_run_keeps_its_pieces(tmp_path):
  encoded = []

  def encode(texts):
    if len(encoded) == 2:
      raise KeyboardInterrupt
    encoded.append(len(texts))
    return _encode(texts)

  with pytest.raises(KeyboardInterrupt):
    _write(tmp_path, encode)
  with pytest.raises(StoreError, match=r'is unfinished: 6 of 7 documents'):
    document_store.open_store(tmp_path)
  again = []
  _write(tmp_path, lambda texts: again.append(len(texts)) or _encode(texts))
  assert again == [1]
  rows, expected = document_store.open_store(tmp_path).take(range(7)), _encode(DOCUMENTS.values())
  np.testing.assert_allclose(rows.vectors, expected.vectors, rtol=1e-3, atol=5e-3)
  _write(tmp_path, lambda texts: pytest.fail('encoded already'))


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda p: p.write_bytes(p.read_bytes()[:-5]), r'vectors-00001\.npy has \d+ of \d+ bytes'),
    (lambda p: p.write_bytes(p.read_bytes()[:-1] + b'\x55'), 'has other content than was written'),
    (lambda p: p.unlink(), r'vectors-00001\.npy is missing'),
  ],
)
def test_a_damaged_file_is_named_and_can_be_repaired(change, words, tmp_path):
  _write(tmp_path)
  change(tmp_path / 'vectors-00001.npy')
  with pytest.raises(StoreError, match=words):
    document_store.open_store(tmp_path)
  _write(tmp_path)
  assert len(document_store.open_store(tmp_path).ids) == 7


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'ranker': 'other'}, r'a store of another ranker \(mine, and not other\)'),
    ({'dtype': 'int8'}, r'a store of another dtype \(float16, and not int8\)'),
    ({'documents': {**DOCUMENTS, 'd1': 'new'}}, 'a store of another documents'),
  ],
)
def test_another_store_is_replaced_only_if_told(options, words, tmp_path):
  _write(tmp_path)
  with pytest.raises(StoreError, match=words):
    _write(tmp_path, **options)
  _write(tmp_path, **options, overwrite=True)
  document_store.open_store(tmp_path, ranker=options.get('ranker', 'mine'))


def test_another_ranker_does_not_read_it(tmp_path):
  _write(tmp_path)
  with pytest.raises(StoreError, match=r'that another ranker encoded \(mine, and MODEL_DIR is yo'):
    document_store.open_store(tmp_path, ranker='yours')


def test_an_absent_store_a_damaged_manifest_and_an_unknown_type_are_sentences(tmp_path):
  with pytest.raises(StoreError, match=r'holds no manifest.json: make it with MODE=encode first'):
    document_store.open_store(tmp_path)
  with pytest.raises(ValueError, match="DTYPE='int4' is none of float32, float16, int8"):
    _write(tmp_path, dtype='int4')
  _write(tmp_path)
  manifest = tmp_path / 'manifest.json'
  content = json.loads(manifest.read_text())
  content['pieces'][0]['files']['../x.npy'] = [1, 'ab']
  manifest.write_text(json.dumps(content))
  with pytest.raises(ValueError, match='cannot name a file of a store'):
    document_store.open_store(tmp_path)
  manifest.write_text('{')
  with pytest.raises(StoreError, match='is damaged or of another version'):
    document_store.open_store(tmp_path)
