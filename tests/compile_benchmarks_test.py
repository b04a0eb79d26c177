"""Compile-only benchmarks can fail: tiny models on the CPU."""

import dataclasses

import jax
import pytest

from benchmarks import buffers, collectives, compiling, step_flops
from cascades import losses
from cascades.performance import flops, hlo
from cascades.performance.hlo import Shape
from cascades.performance.hlo_costs import Collective
from cascades.runtime import partitioning
from tests import testing

VOCAB = 4096  # so wide that logits are larger than anything else of these models
ROWS, LENGTH, BLOCK = 16, 24, 2


def tiny_cell(loss=losses.cat_dist, large=True):
  small = dataclasses.replace(testing.TINY_DECODER, vocab_size=VOCAB)
  return compiling.cell(
    loss, rows=ROWS, length=LENGTH, small=small, large=small if large else None, block_length=BLOCK
  )


@pytest.fixture(scope='module')
def programs():
  """Blockwise and naive, over eight devices."""
  with partitioning.use(partitioning.make_mesh(data=2, fsdp=4, devices=jax.devices()[:8])):
    cell = tiny_cell()
    compiled = [
      hlo.parse(step.compile().as_text()) for step in (cell, buffers.naive(cell, losses.cat_dist))
    ]
  return cell, *compiled


def test_no_buffer_of_the_step_holds_a_batch_s_logits_and_the_naive_step_s_do(programs):
  cell, blockwise, naive = programs
  assert not buffers.logits(cell, blockwise, VOCAB)
  assert buffers.logits(cell, naive, VOCAB)


def test_no_buffer_is_over_two_blocks_but_parameters_and_the_naive_step_s_are(programs):
  cell, blockwise, naive = programs
  block = ROWS // 8 * BLOCK * VOCAB
  assert not buffers.oversized(cell, blockwise, block)
  assert buffers.oversized(cell, naive, block)


def test_cascade_aware_training_adds_no_products():
  """The Xent step and the large model's forward pass are all there is to do."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    plain, cat = tiny_cell(losses.xent, large=False), tiny_cell(losses.cat_dist)
    least = flops.work_of(plain.step, *plain.arguments) + step_flops.forward(cat)
    assert flops.work_of(cat.step, *cat.arguments).flops <= 1.03 * least.flops


def test_the_least_that_is_sent_is_each_parameter_s_missing_part():
  with partitioning.use(partitioning.make_mesh(data=2, fsdp=4, devices=jax.devices()[:8])):
    cell = tiny_cell()
  config = testing.TINY_DECODER
  width, heads = config.emb_dim, config.num_heads * config.head_dim
  kv = config.num_kv_heads * config.head_dim
  matrices = VOCAB * width + config.num_layers * width * (2 * heads + 2 * kv + 3 * config.mlp_dim)
  norms = config.num_layers * 2 * width + width  # on every device already
  bytes_sent = collectives.least(cell, width=2)
  # Gathered twice and scattered once, gathered once, and summed over the two halves.
  assert bytes_sent == 2 * (3 * matrices * 3 / 4 + matrices * 3 / 4 + (matrices / 4 + norms))


def test_collectives_of_hidden_states_are_told_from_those_of_parameters():
  make = lambda *dims: Collective('all-reduce', 1, 10.0, 2, (Shape('f32', dims),), '')
  collective_ops = [make(64, 32), make(4, 48, 64), make(192, 64)]
  assert collectives.split(collective_ops, rows=4, length=48) == (10.0, 20.0)
