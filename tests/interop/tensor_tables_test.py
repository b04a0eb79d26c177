"""The table engine, on tables and tensors of its own."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cascades.checkpoints import store
from cascades.interop import tensor_tables
from cascades.interop.tensor_tables import TensorRule, TensorTable
from cascades.runtime import partitioning

TABLE = TensorTable(
  (
    TensorRule('embed', 'table', copies=('head',)),
    TensorRule('layers.{}.proj', 'blocks/kernel', 'o i -> i o'),
    TensorRule('norm', 'scale'),
  ),
  ignored=('layers.*.cache',),
)
LAYERS = 3


def _tensors() -> dict[str, np.ndarray]:
  random = np.random.RandomState(0)
  layers = {f'layers.{i}.proj': random.randn(2, 4).astype('float32') for i in range(LAYERS)}
  embed = random.randn(8, 4).astype('float32')
  return {'embed': embed, **layers, 'norm': np.ones(4, np.float32)}


def _like(dtype: str = 'float32') -> dict:
  mesh = partitioning.make_mesh(1, 2, 4)
  leaf = lambda shape, *spec: jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
  )
  return {
    'blocks': {'kernel': leaf((LAYERS, 4, 2), None, 'tensor', 'fsdp')},
    'scale': leaf((4,)),
    'table': leaf((8, 4), 'tensor'),
  }


def _load(tensors, like=None, table=TABLE, **options):
  return tensor_tables.load(
    table, tensor_tables.from_arrays('there', tensors), like or _like(), **options
  )


def _refused(words: str, tensors, **options):
  with pytest.raises(store.CheckpointError, match=re.escape(words)):
    _load(tensors, **options)


@pytest.mark.parametrize('batch_bytes', [1, tensor_tables.BATCH_BYTES])
def test_layers_are_stacked_and_placed(batch_bytes):
  tensors = _tensors()
  params = _load(tensors, batch_bytes=batch_bytes)
  expected = np.stack([tensors[f'layers.{i}.proj'].T for i in range(LAYERS)])
  np.testing.assert_array_equal(params['blocks']['kernel'], expected)
  assert params['blocks']['kernel'].sharding == _like()['blocks']['kernel'].sharding
  np.testing.assert_array_equal(params['table'], tensors['embed'])


def test_numbers_are_rounded_once_when_they_are_read():
  params = _load(_tensors(), _like('bfloat16'))
  assert params['table'].dtype == 'bfloat16'
  expected = _tensors()['embed'].astype('bfloat16')
  np.testing.assert_array_equal(np.asarray(params['table']), expected)


def test_unloading_gives_back_the_tensors():
  created = tensor_tables.unload(TABLE, _load(_tensors()))
  assert created.keys() == _tensors().keys()
  for name, expected in _tensors().items():
    assert created[name].shape == expected.shape
    got = created[name].compute()
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected)


def test_all_problems_are_named_at_once_and_grouped():
  tensors = _tensors()
  for name in ('layers.0.proj', 'layers.2.proj', 'norm'):
    del tensors[name]
  for name in ('layers.3.proj', 'layers.4.proj', 'bias'):
    tensors[name] = np.ones(3, np.float32)
  tensors['layers.1.proj'] = np.ones((4, 2), np.float32)
  tensors['embed'] = tensors['embed'].astype(np.int8)
  _refused(
    'there does not fit the model; missing: layers.{0,2}.proj, norm; not known to this model: '
    'layers.{3-4}.proj, bias; of another shape: layers.1.proj is (4, 2), expected (2, 4); of a '
    'type other than float32, bfloat16, float16: embed (int8).',
    tensors,
  )


def test_nothing_is_read_if_something_is_wrong():
  def read(specs):
    raise AssertionError('read')

  weights = tensor_tables.from_arrays('there', {'embed': np.ones(3)})._replace(read=read)
  with pytest.raises(store.CheckpointError, match='missing'):
    tensor_tables.load(TABLE, weights, _like())


def test_parameters_without_a_row_are_named():
  like = _like() | {'extra': {'a': _like()['scale'], 'b': _like()['scale']}}
  _refused('parameters that no tensor fills: extra/a, extra/b', _tensors(), like=like)
  with pytest.raises(store.CheckpointError, match='cannot be written; not in the table: extra'):
    tensor_tables.unload(TABLE, {'extra': np.ones(2)})


def test_ignored_tensors_may_be_there():
  _load(_tensors() | {'layers.0.cache': np.ones(7, np.int32)})


def test_a_copy_must_be_one_and_may_stand_alone():
  embed = _tensors()['embed']
  _load(_tensors() | {'head': embed})
  _refused('head should repeat embed and differs', _tensors() | {'head': embed + 1})
  alone = {('head' if name == 'embed' else name): x for name, x in _tensors().items()}
  np.testing.assert_array_equal(_load(alone)['table'], embed)


def test_lazy_arrays_are_made_when_they_are_read():
  created = []

  class Lazy:
    shape, dtype = (4,), np.dtype('float32')

    def __array__(self, dtype=None, copy=None):
      created.append(1)
      return np.full(4, 7, np.float32)

  weights = tensor_tables.from_arrays('there', _tensors() | {'norm': Lazy()})
  assert not created
  np.testing.assert_array_equal(tensor_tables.load(TABLE, weights, _like())['scale'], [7, 7, 7, 7])
  assert len(created) == 1  # whatever the number of devices


@pytest.mark.parametrize(
  ('names', 'expected'),
  [
    (['a', 'b.1.c'], 'a, b.1.c'),
    ([f'b.{i}.c.0' for i in (0, 1, 2, 5, 7, 8)], 'b.{0-2,5,7-8}.c.0'),
    (['b.10.c', 'b.9.c', 'b.9.d'], 'b.{9-10}.c, b.9.d'),
  ],
)
def test_names_are_summarized_without_losing_one(names, expected):
  assert tensor_tables.summarize(names) == expected
