from __future__ import annotations

import math

import einops
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from cascades.interop import axis_layouts


def test_heads_are_split_off_and_moved_behind_the_width():
  array = np.arange(12).reshape(6, 2)  # (n h) d, n = 3 heads of h = 2
  got = axis_layouts.to_parameter('(n h) d -> d n h', array, (2, 3, 2))
  assert got[1].tolist() == [[1, 3], [5, 7], [9, 11]]
  assert axis_layouts.tensor_shape('(n h) d -> d n h', (2, 3, 2)) == (6, 2)


@given(st.data())
def test_back_and_forth_changes_nothing(data):
  axes = data.draw(st.permutations('abcd'))
  target = data.draw(st.permutations(axes))
  split = data.draw(st.integers(0, 3))
  source = [*axes[:split], f'({" ".join(axes[split:])})']
  layout = f'{" ".join(source)} -> {" ".join(target)}'
  shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=4, max_size=4)))
  array = np.arange(math.prod(shape)).reshape(shape)
  stored = axis_layouts.to_tensor(layout, array)
  assert stored.shape == axis_layouts.tensor_shape(layout, shape)
  np.testing.assert_array_equal(axis_layouts.to_parameter(layout, stored, shape), array)
  # einsum moves the axes too, and knows nothing of ours.
  moved = np.einsum(f'{"".join(target)}->{"".join(axes)}', array)
  np.testing.assert_array_equal(stored.ravel(), moved.ravel())


def test_without_a_layout_nothing_moves():
  array = np.arange(6).reshape(2, 3)
  assert axis_layouts.to_parameter('', array, (2, 3)) is array
  assert axis_layouts.to_tensor('', array) is array
  assert axis_layouts.tensor_shape('', [2, 3]) == (2, 3)
  assert axis_layouts.tensor_spec('', ('x', None)) == PartitionSpec('x', None)


@pytest.mark.parametrize(
  ('layout', 'spec', 'expected'),
  [
    ('(n h) d -> d n h', ('fsdp', 'tensor', None), ('tensor', 'fsdp')),
    ('d (n h) -> n h d', ('tensor', None, 'fsdp'), ('fsdp', 'tensor')),
    ('o i -> i o', ('fsdp', 'tensor'), ('tensor', 'fsdp')),
    ('(n h) -> n h', (None, None), (None,)),
  ],
)
def test_a_piece_is_read_where_it_is_needed(layout, spec, expected):
  assert axis_layouts.tensor_spec(layout, spec) == PartitionSpec(*expected)


def test_a_layout_is_compiled_like_any_other_operation():
  array = np.arange(24.0).reshape(6, 4)
  to_parameter = lambda x: axis_layouts.to_parameter('d (n h) -> n h d', x, (2, 2, 6))
  expected = array.reshape(6, 2, 2).transpose(1, 2, 0)
  np.testing.assert_array_equal(jax.jit(to_parameter)(array), expected)
  again = jax.jit(lambda x: axis_layouts.to_tensor('d (n h) -> n h d', x))(expected)
  np.testing.assert_array_equal(again, array)


def test_a_size_that_does_not_fit_is_refused():
  with pytest.raises(einops.EinopsError, match='Shape mismatch'):
    axis_layouts.to_parameter('(n h) d -> d n h', np.zeros((6, 2)), (2, 4, 2))
