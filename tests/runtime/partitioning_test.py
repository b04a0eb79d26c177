"""Rules, meshes and placing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cascades.models.abstract import abstract_model, init_params
from cascades.runtime import partitioning
from cascades.types import Batch
from tests import testing

SHAPE = {'data': 2, 'fsdp': 2, 'tensor': 2}


@pytest.mark.parametrize(
  ('shape', 'names', 'expected'),
  [
    ((32, 16), ('vocab', 'embed'), ('tensor', 'fsdp')),
    ((16, 4, 8), ('embed', 'heads', 'head_dim'), ('fsdp', 'tensor', None)),
    ((16, 32), ('embed', 'mlp'), ('fsdp', 'tensor')),
    ((16,), ('norm',), (None,)),
    ((16, 1, 8), ('embed', 'kv_heads', 'head_dim'), ('fsdp', None, None)),  # one does not split
    ((31, 16), ('vocab', 'embed'), (None, 'fsdp')),
    ((4, 4), ('heads', 'mlp'), ('tensor', None)),  # an axis splits one dimension only
  ],
)
def test_the_first_rule_that_fits_places_a_dimension(shape, names, expected):
  assert partitioning.partition_spec(shape, names, SHAPE, partitioning.RULES) == PartitionSpec(
    *expected
  )


def test_a_later_rule_of_the_same_name_is_the_second_choice():
  rules = [('mlp', 'tensor'), ('mlp', 'fsdp'), ('heads', 'tensor')]
  spec = partitioning.partition_spec((4, 4), ('heads', 'mlp'), SHAPE, rules)
  assert spec == PartitionSpec('tensor', 'fsdp')


def test_a_mesh_without_an_axis_leaves_its_dimensions_whole():
  spec = partitioning.partition_spec((32, 16), ('vocab', 'embed'), {'fsdp': 2}, partitioning.RULES)
  assert spec == PartitionSpec(None, 'fsdp')


def test_what_is_split_by_hand_is_not_split_again():
  found = []

  def within(x):
    found.append(partitioning.active_spec((8, 16), ('batch', 'activation_heads')))
    return x

  assert partitioning.active_spec((8, 16), ('batch', 'activation_heads')) is None
  mesh = partitioning.make_mesh(data=2, fsdp=2, tensor=2)
  with partitioning.use(mesh):
    rows = PartitionSpec(('data', 'fsdp'))
    by_hand = jax.shard_map(within, in_specs=rows, out_specs=rows, axis_names={'data', 'fsdp'})
    jax.eval_shape(jax.jit(by_hand), jax.ShapeDtypeStruct((8, 16), 'float32'))
    assert partitioning.active_spec((8, 16), ('batch', None)) == PartitionSpec(
      ('data', 'fsdp'), None
    )
  assert found == [PartitionSpec(None, 'tensor')]


def test_data_takes_the_devices_that_are_left():
  assert dict(partitioning.make_mesh(tensor=2).shape) == {'data': 4, 'fsdp': 1, 'tensor': 2}


def test_a_mesh_that_cannot_be_had_is_an_error():
  for sizes in ({'data': 3}, {'fsdp': 16}, {'tensor': 3}):
    with pytest.raises(ValueError, match='there are 8: choose sizes'):
      partitioning.make_mesh(**sizes)


def test_initial_parameters_are_the_same_on_every_mesh_and_lie_by_the_rules():
  config = testing.TINY_DECODER
  everywhere = []
  for devices, sizes in ((1, {}), (8, SHAPE)):
    mesh = partitioning.make_mesh(**sizes, devices=jax.devices()[:devices])
    with partitioning.use(mesh):
      _, abstract = abstract_model(config)
      params = init_params(config, 3, abstract)
    as_told = jax.tree.map(
      lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim), params, abstract
    )
    assert all(jax.tree.leaves(as_told))
    everywhere.append(jax.device_get(params))
  jax.tree.map(np.testing.assert_array_equal, *everywhere)


def test_a_factored_moment_lies_like_what_is_left_of_its_parameter():
  mesh = partitioning.make_mesh(**SHAPE)
  place = NamedSharding(mesh, PartitionSpec(None, 'fsdp', 'tensor'))
  params = {'a': {'w': jax.ShapeDtypeStruct((3, 8, 4), jnp.float32, sharding=place)}}
  state = {
    'count': jax.ShapeDtypeStruct((), jnp.int32),
    'row': {'a': {'w': jax.ShapeDtypeStruct((3, 8), jnp.float32)}},
    'column': {'a': {'w': jax.ShapeDtypeStruct((3, 4), jnp.float32)}},
    'whole': {'a': {'w': jax.ShapeDtypeStruct((3, 8, 4), jnp.float32)}},
    'unused': {'a': {'w': jax.ShapeDtypeStruct((1,), jnp.float32)}},
  }
  with partitioning.use(mesh):
    placed = partitioning.like_parameters(state, params)
  specs = jax.tree.map(lambda leaf: leaf.sharding.spec, placed)
  assert specs['count'] == PartitionSpec()
  assert specs['row']['a']['w'] == PartitionSpec(None, 'fsdp')
  assert specs['column']['a']['w'] == PartitionSpec(None, 'tensor')
  assert specs['whole']['a']['w'] == PartitionSpec(None, 'fsdp', 'tensor')
  assert specs['unused']['a']['w'] == PartitionSpec()


def test_batches_split_over_data_and_fsdp_and_come_back_whole():
  rows = np.arange(48).reshape(8, 6)
  batch = Batch(rows, rows, rows.astype(np.float32))
  with partitioning.use(partitioning.make_mesh(**SHAPE)):
    for place in (partitioning.place_batch, partitioning.place_whole):
      placed = place(batch)
      assert placed.inputs.addressable_shards[0].data.shape == (2, 6)
      assert placed.encoder is None
      np.testing.assert_array_equal(partitioning.fetch(placed).weights, rows)


def test_a_program_of_one_device_takes_and_gives_numpy_arrays():
  rows = np.arange(6, dtype=np.int32).reshape(2, 3)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    placed = partitioning.place_whole({'rows': rows, 'none': None})
    assert placed['rows'] is rows
    fetched = partitioning.fetch(jax.jit(lambda tree: {'twice': 2 * tree['rows']})(placed))
    assert isinstance(fetched['twice'], np.ndarray)
    np.testing.assert_array_equal(fetched['twice'], 2 * rows)


def test_a_batch_that_does_not_split_is_an_error_that_says_what_does():
  with (
    partitioning.use(partitioning.make_mesh(**SHAPE)),
    pytest.raises(ValueError, match='a batch of 6 does not split over 4 devices'),
  ):
    partitioning.place_batch(np.zeros((6, 2)))


def test_placing_without_a_mesh_is_an_error():
  with pytest.raises(ValueError, match='no mesh is in use'):
    partitioning.place_batch(np.zeros((8, 2)))
