"""Damaged and hostile safetensors headers, with the library as the oracle."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cascades.checkpoints import safetensors_files, store

TENSORS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.ones(4, np.float16)}


def _parts(content):
  (size,) = struct.unpack_from('<Q', content)
  return json.loads(content[8 : 8 + size]), content[8 + size :]


def _joined(header, data):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def _changed(name, **fields):
  header, data = _parts(save(TENSORS))
  header[name] |= fields
  return _joined(header, data)


def _swapped():
  header, data = _parts(save(TENSORS))
  a, b = header['a']['data_offsets'], header['b']['data_offsets']
  header['a']['data_offsets'], header['b']['data_offsets'] = b, a
  return _joined(header, data)


def _overlapping():
  header, data = _parts(save({'a': TENSORS['a'], 'c': TENSORS['a'] + 1}))
  header['c']['data_offsets'] = header['a']['data_offsets']
  return _joined(header, data)


def _with_gap():
  header, data = _parts(save(TENSORS))
  last = max(header, key=lambda name: header[name]['data_offsets'])
  header[last]['data_offsets'] = [offset + 8 for offset in header[last]['data_offsets']]
  return _joined(header, data + bytes(8))


HEADER, DATA = _parts(save(TENSORS))
DAMAGED = {
  'empty': b'',
  'three bytes': b'abc',
  'a header of 2^63 bytes': struct.pack('<Q', 2**63) + b'{}',
  'a header larger than the file': struct.pack('<Q', 10**6) + b'{}',
  'no JSON': _joined(b'{"a": ', b''),
  'a list': _joined([], b''),
  'null': _joined(None, b''),
  'reversed offsets': _changed('b', data_offsets=[32, 24]),
  'negative offsets': _changed('a', data_offsets=[-24, 0]),
  'swapped tensors': _swapped(),
  'overlapping tensors': _overlapping(),
  'a gap': _with_gap(),
  'a larger shape': _changed('a', shape=[3, 3]),
  'a shape of 10^30 rows': _changed('a', shape=[10**30, 3]),
  'a negative shape': _changed('a', shape=[-2, -3]),
  'an unknown type': _changed('a', dtype='F31'),
  'another type': _changed('a', dtype='F64'),
  'a type that is a list': _changed('a', dtype=['F32']),
  'no offsets': _joined({'a': {'dtype': 'F32', 'shape': [1]}}, bytes(4)),
  'three offsets': _changed('a', data_offsets=[0, 12, 24]),
  'a number for a tensor': _joined({'a': 3}, b''),
  'truncated data': save(TENSORS)[:-1],
  'more data': save(TENSORS) + b'x',
  'deep nesting': _joined(b'[' * 100_000, b''),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_what_the_library_refuses_is_refused(name, tmp_path):
  file = epath.Path(tmp_path / 'model.safetensors')
  file.write_bytes(DAMAGED[name])
  with pytest.raises((SafetensorError, ValueError)):
    load(DAMAGED[name])
  with pytest.raises(store.CheckpointError, match=r'model\.safetensors cannot be read'):
    safetensors_files.read_shapes(file)


def test_a_name_given_twice_is_refused(tmp_path):
  field = json.dumps(HEADER['a'])
  (tmp_path / 'x.safetensors').write_bytes(
    _joined(f'{{"a": {field}, "a": {field}}}'.encode(), DATA[:24])
  )
  with pytest.raises(store.CheckpointError, match='names a tensor twice'):
    safetensors_files.read_shapes(epath.Path(tmp_path / 'x.safetensors'))


def test_an_intact_file_is_read(tmp_path):
  file = epath.Path(tmp_path / 'x.safetensors')
  file.write_bytes(save(TENSORS | {'nothing': np.zeros((0, 3), np.float32)}, {'format': 'pt'}))
  shapes = safetensors_files.read_shapes(file)
  assert {name: (x.shape, x.dtype.name) for name, x in shapes.items()} == {
    'a': ((2, 3), 'float32'),
    'b': ((4,), 'float16'),
    'nothing': ((0, 3), 'float32'),
  }
