"""Blocks of tokens: every token once, and at its position; on a mesh, no row leaves its device."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import NamedSharding, PartitionSpec

from cascades import blocks
from cascades.blocks import MeshAxes
from cascades.runtime import partitioning


@settings(max_examples=20)
@given(width=st.integers(1, 9), length=st.integers(1, 10), bits=st.integers(0, 2**18 - 1))
def test_no_length_of_rows_or_blocks_loses_or_repeats_a_token(width, length, bits):
  numbers = np.arange(2.0 * width).reshape(2, width) + 1
  counted = (bits >> np.arange(2 * width).reshape(2, width)) % 2 == 1
  numbers = jnp.where(counted, numbers, 0)
  sums, outputs = blocks.fold_blocks(lambda x: (jnp.sum(x), 3 * x), numbers, counted, length=length)
  assert sums == jnp.sum(numbers)
  np.testing.assert_array_equal(outputs, 3 * numbers)


def test_blocks_of_tokens_that_do_not_count_are_skipped():
  counted = jnp.arange(12).reshape(2, 6) % 3 == 0  # four tokens: one of three blocks
  calls = []

  def function(x):
    jax.debug.callback(lambda _: calls.append(1), x)
    return jnp.sum(x), x

  sums, outputs = blocks.fold_blocks(function, jnp.where(counted, 1.0, 0.0), counted, length=2)
  jax.effects_barrier()
  assert (sums, outputs.sum(), len(calls)) == (4, 4, 1)


@pytest.mark.parametrize('length', [1, 4, 100])
def test_each_token_is_computed_from_the_shared_arrays_and_itself(length):
  rng = np.random.default_rng(0)
  table, hidden, shift = (
    rng.normal(size=(7, 3)),
    rng.normal(size=(4, 10, 3)),
    rng.normal(size=(4, 10)),
  )
  counted = jnp.asarray(rng.random((4, 10)) < 0.7)

  def read(table, tokens):
    hidden, shift = tokens
    logits = hidden @ table.T
    return logits.argmax(-1), logits.max(-1) + shift

  best, value = blocks.map_blocks(read, table, (hidden, shift), counted, length=length)
  expected = hidden @ table.T
  np.testing.assert_array_equal(best[counted], expected.argmax(-1)[counted])
  np.testing.assert_allclose(value[counted], (expected.max(-1) + shift)[counted], rtol=1e-5)


def test_the_default_length_fills_the_budget_of_each_device():
  assert blocks.default_length(16, 1 << 10) == blocks.LOGITS_ON_CPU >> 14
  assert blocks.default_length(1 << 20, 1 << 20) == 1
  with partitioning.use(partitioning.make_mesh(data=2, fsdp=2, tensor=2)):
    axes = partitioning.block_axes(16, (1 << 10, 8))
    assert axes == MeshAxes(rows=('data', 'fsdp'), vocab=('tensor',))
    assert blocks.default_length(16, 1 << 10, axes) == blocks.LOGITS_ON_CPU >> 11
    assert partitioning.block_axes(3, (5, 8)) == MeshAxes()  # neither divides


def test_rows_on_several_devices_are_computed_where_they_are():
  mesh = partitioning.make_mesh(data=2, fsdp=2, tensor=2)
  rng = np.random.default_rng(0)
  table, hidden = np.float32(rng.normal(size=(32, 16))), np.float32(rng.normal(size=(8, 6, 16)))
  counted = rng.random((8, 6)) < np.arange(8)[:, None] / 8  # unevenly many in the rows
  put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
  with partitioning.use(mesh):
    axes = partitioning.block_axes(8, table.shape)
    run = jax.jit(
      lambda table, hidden, counted: blocks.map_blocks(
        lambda table, x: jnp.max(x @ table.T, -1), table, hidden, counted, length=2, axes=axes
      )
    )
    arrays = (
      put(table, 'tensor', 'fsdp'),
      *(put(x, ('data', 'fsdp')) for x in (hidden, counted)),
    )
    outputs = run(*arrays)
    text = run.lower(*arrays).compile().as_text()
  expected = (hidden @ table.T).max(-1)
  np.testing.assert_allclose(np.asarray(outputs)[counted], expected[counted], rtol=1e-5)
  assert outputs.sharding.spec[0] == ('data', 'fsdp')
  assert f'f32[{8 * 6},16]' not in text  # the hidden states of all rows on one device
  assert 'f32[8,6,16]' not in text
