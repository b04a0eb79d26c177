"""The one rule that places dimensions."""

import jax
import pytest
from jax.sharding import PartitionSpec

from cascades import axes, partitioning

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
  assert axes.partition_spec(shape, names, SHAPE, partitioning.RULES) == PartitionSpec(*expected)


def test_a_later_rule_of_the_same_name_is_the_second_choice():
  rules = [('mlp', 'tensor'), ('mlp', 'fsdp'), ('heads', 'tensor')]
  spec = axes.partition_spec((4, 4), ('heads', 'mlp'), SHAPE, rules)
  assert spec == PartitionSpec('tensor', 'fsdp')


def test_a_mesh_without_an_axis_leaves_its_dimensions_whole():
  spec = axes.partition_spec((32, 16), ('vocab', 'embed'), {'fsdp': 2}, partitioning.RULES)
  assert spec == PartitionSpec(None, 'fsdp')


def test_what_is_split_by_hand_is_not_split_again():
  found = []

  def within(x):
    found.append(axes.active_spec((8, 16), ('batch', 'activation_heads')))
    return x

  assert axes.active_spec((8, 16), ('batch', 'activation_heads')) is None
  mesh = partitioning.make_mesh(data=2, fsdp=2, tensor=2)
  with partitioning.use(mesh):
    rows = PartitionSpec(('data', 'fsdp'))
    by_hand = jax.shard_map(within, in_specs=rows, out_specs=rows, axis_names={'data', 'fsdp'})
    jax.eval_shape(jax.jit(by_hand), jax.ShapeDtypeStruct((8, 16), 'float32'))
    assert axes.active_spec((8, 16), ('batch', None)) == PartitionSpec(('data', 'fsdp'), None)
  assert found == [PartitionSpec(None, 'tensor')]
