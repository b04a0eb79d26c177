"""Compile-only benchmarks can fail: tiny models on the CPU."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from benchmarks import buffers, collectives, compiling, step_flops
from cascades import divergences, losses
from cascades.performance import hlo
from cascades.performance.hlo import Shape
from cascades.performance.hlo_costs import Collective
from cascades.runtime import partitioning
from tests import testing

VOCAB = 4096  # so wide that logits are larger than anything else of these models
ROWS, LENGTH, BLOCK = 16, 24, 2


def tiny_cell():
  small = dataclasses.replace(testing.TINY_DECODER, vocab_size=VOCAB)
  return compiling.cell(
    losses.cat_dist, rows=ROWS, length=LENGTH, small=small, large=small, block_length=BLOCK
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


@pytest.fixture
def one_device():
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    yield


@functools.cache
def steps():
  """Of the sizes that the benchmark has by default: nothing is compiled."""
  return step_flops.Steps(rows=4, length=512, vocab_size=262_144)


@pytest.mark.usefixtures('one_device')
@pytest.mark.parametrize('name', step_flops.CASES)
def test_a_step_does_no_more_than_the_xent_step_and_the_large_model_s_forward_pass(name):
  products, total = steps().ratios(step_flops.CASES[name])
  assert products == 1
  assert 1 < total < 1.01


@pytest.mark.usefixtures('one_device')
def test_a_loss_of_many_divergences_misses_the_bar():
  def many(small, teachers, targets):
    betas = np.linspace(0.1, 0.9, 20)
    return sum(divergences.jensen_shannon(small, teachers, targets, beta=beta) for beta in betas)

  loss = functools.partial(losses.distillspec_jsd, token_loss=many)
  assert steps().ratios(step_flops.Case(loss))[1] > step_flops.BAR_OF_DIVERGENCES


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
