"""Memory and MFU, on a chip that this machine does not have."""

import logging

import jax
import jax.numpy as jnp
import pytest

from cascades import losses
from cascades.models import lora
from cascades.performance import chips, flops
from cascades.runtime import partitioning
from cascades.runtime.progress import Rates
from cascades.training import optimizers, setup, utilization
from tests import testing, tiny

CHIP = chips.Chip('v0', flops=1e9, hbm=1 << 30, hbm_bandwidth=1.0, ici_bandwidth=1.0)
CONFIG = testing.TINY_DECODER
STEP = setup.Step(learning_rate=optimizers.constant(1e-2), loss=losses.cat_dist, block_length=4)


def abstract_run(large=None, adapters=None):
  small = setup.SmallModel(CONFIG, adapters=adapters)
  with partitioning.use(tiny.one_device()):
    return setup.abstract_run(small, setup.LargeModel(large), STEP.transform)


def forward(rows, length):
  """Operations of a forward pass: two for each weight and token, and what attention adds."""
  D, F, N, K, H = CONFIG.emb_dim, CONFIG.mlp_dim, 4, 2, CONFIG.head_dim
  weights = CONFIG.num_layers * (2 * D * N * H + 2 * D * K * H + 3 * D * F) + D * testing.VOCAB
  attention = CONFIG.num_layers * 2 * N * H * length
  return 2 * rows * length * (weights + attention)


def needed(abstract, batch):
  """Operations for a batch of which every token counts."""
  needs = utilization.model_flops(abstract, batch)
  return needs.step + batch.targets.size * needs.token


def test_what_the_models_need_is_three_passes_of_the_small_one_and_one_of_the_large():
  batch = testing.batch(CONFIG)
  once = forward(*batch.targets.shape)
  with partitioning.use(tiny.one_device()):
    assert needed(abstract_run(), batch) == 3 * once
    assert needed(abstract_run(large=CONFIG), batch) == 4 * once
    assert (
      utilization.model_flops(abstract_run(), batch).token == 3 * 2 * CONFIG.emb_dim * testing.VOCAB
    )
    adapted = needed(abstract_run(adapters=lora.LoraConfig(rank=1)), batch)
  assert 2 * once < adapted < 2.6 * once


def test_the_step_itself_needs_no_more_products_unless_it_recomputes():
  abstract = abstract_run(large=CONFIG)
  batch = testing.batch(CONFIG)
  with partitioning.use(tiny.one_device()):
    step = setup.compiled_step(abstract, STEP)
    measured = flops.flops_of(step, abstract.state, abstract.frozen, batch)
    least = needed(abstract, batch)
  # The first layer's input has a gradient too, but no product needs it: a table is looked up.
  assert least * 0.95 < measured <= least


def test_a_compiled_step_says_its_memory_and_lines_say_the_share_of_the_peak(monkeypatch, caplog):
  monkeypatch.setattr(chips, 'of', lambda device: CHIP)
  abstract, batch = abstract_run(), testing.batch(CONFIG)
  used = utilization.UtilizationMeter()
  assert used.measure(None).mfu is None
  with partitioning.use(tiny.one_device()), caplog.at_level(logging.INFO, 'cascades'):
    used.compiled(abstract, jax.jit(lambda x: x @ x).lower(jnp.ones((64, 64))).compile(), batch)
    needs = utilization.model_flops(abstract, batch)
  (line,) = caplog.messages
  assert 'takes 32 KiB of the 1 GiB of a v0 on each device: 16 KiB parameters' in line
  measured = used.measure(Rates(steps_per_second=100.0, tokens_per_second=300.0, seconds_left=0.0))
  per_second = 100 * needs.step + 300 * needs.token
  assert measured.mfu == pytest.approx(per_second / (1e9 * jax.device_count()))
  assert measured.notes()[0].startswith('MFU ')
  assert set(measured.numbers()) == {'mfu', 'memory'}


def test_without_a_known_chip_there_is_memory_alone():
  used = utilization.UtilizationMeter()
  measured = used.measure(Rates(1.0, 1.0, 1.0))
  assert measured.mfu is None
  assert measured.memory > 1 << 24
  assert measured.notes()[0].startswith('memory ')
