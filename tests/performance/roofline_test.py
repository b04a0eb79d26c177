"""Rooflines, verdicts and compiler errors of plans, by hand."""

import json

import jax
import pytest

from cascades.performance import chips, roofline, topologies
from cascades.performance.roofline import CollectiveTotals, CompiledStep, Memory, Plan, Seconds
from cascades.runtime import partitioning

CHIP = chips.Chip('toy', flops=1e12, hbm=1000, hbm_bandwidth=1e9, ici_bandwidth=1e8)
TOPOLOGY = topologies.Topology('toy:2x2', CHIP, [None] * 4, True)
COMPILED = CompiledStep(
  Memory(arguments=600, outputs=500, aliased=450, temporaries=200, program=50),
  flops=2e12,
  traffic=3e9,
  collectives={'all-gather': CollectiveTotals(3, 4e8), 'all-reduce': CollectiveTotals(1, 1e8)},
  largest=['all-gather'],
)
PLAN = Plan(TOPOLOGY, {'small': 7, 'large': 9}, {'batch': 8}, 8e12, 4e12, 64, COMPILED)


def test_aliased_memory_counts_once():
  assert COMPILED.memory.total == 600 + (500 - 450) + 200 + 50


def test_the_roofline_is_the_slowest_resource():
  assert PLAN.seconds == Seconds(compute=2.0, memory=3.0, network=5.0)
  assert PLAN.seconds.at_least == 5.0
  assert PLAN.seconds.without_overlap == 10.0
  assert PLAN.mfu_bound == pytest.approx(4e12 / (4 * 1e12 * 5.0))  # of what the models need
  assert PLAN._replace(flops=40e12).seconds.compute == 10.0  # kernels hide products from the text


@pytest.mark.parametrize(
  ('temporaries', 'fits', 'verdict'),
  [(200, True, 'fits: 900 B of 1,000 B, 90 %'), (301, False, 'DOES NOT FIT: 1,001 B')],
)
def test_a_step_fits_if_its_memory_does(temporaries, fits, verdict):
  memory = COMPILED.memory._replace(temporaries=temporaries)
  plan = PLAN._replace(compiled=COMPILED._replace(memory=memory))
  assert plan.fits is fits
  assert verdict in roofline.format_table(plan)
  assert roofline.to_json(plan)['fits'] is fits


def test_figures_of_small_models_are_in_units_that_fit():
  small = PLAN._replace(
    flops=8e6,
    model_flops=4.5e3,
    compiled=COMPILED._replace(flops=3.2e9, traffic=20, collectives={}),
  )
  text = roofline.format_table(small)
  assert '8.00 M on all devices' in text
  assert '4.50 k, without recomputation' in text
  assert '3.20 G\n' in text
  assert '20.00 ns, 0.00 ns\n' in text
  assert '0.00 T' not in text
  assert '0.00 ms' not in text


def test_a_plan_as_table_and_as_json():
  text = roofline.format_table(PLAN)
  assert 'all-gather' in text
  assert '3 times' in text
  assert '2,000.00 ms, 3,000.00 ms, 5,000.00 ms\n' in text
  assert '5,000.00 ms; without overlap 10,000.00 ms' in text
  assert '8.00 T on all devices' in text
  assert '4.00 T, without recomputation' in text
  assert 'at most 13\n' in text  # 64 positions in 5 seconds
  record = json.loads(json.dumps(roofline.to_json(PLAN)))
  assert record['compiled']['memory']['total'] == 900
  assert record['compiled']['collectives']['all-gather'] == {'times': 3, 'bytes': 4e8}
  assert record['seconds']['at_least'] == 5.0


def test_without_a_compiler_a_plan_has_abstract_figures_and_says_how_to_install_one():
  plan = PLAN._replace(compiled=None)
  assert plan.fits is plan.seconds is plan.mfu_bound is None
  text = roofline.format_table(plan)
  assert "pip install 'lm-cascades[plan]'" in text
  assert '7 parameters' in text
  assert json.loads(json.dumps(roofline.to_json(plan)))['compiled'] is None


REFUSAL = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. \
Ran out of memory in memory space hbm. Used 45.20G of 15.75G hbm. Exceeded hbm capacity by 29.45G.

Total hbm usage >= 45.45G:
    reserved        258.00M
    program          45.20G
    arguments            0B

  Largest program allocations in hbm:

  1. Size: 31.25G
     Operator: op_name="jit(f)/dot_general"
     Shape: f32[64,512,256000]{2,1,0:T(8,128)}
     Unpadded size: 31.25G
     XLA label: fusion.1 = fusion(a)
     Allocation type: HLO temp
     ==========================

  2. Size: 9.77G
     Shape: bf16[4608,36864]{1,0:T(8,128)(2,1)}
     Unpadded size: 9.77G
     XLA label: copy.2
     ==========================
"""


def test_running_out_of_memory_is_a_verdict_that_names_the_largest_buffers():
  verdict = roofline.out_of_memory(RuntimeError(REFUSAL))
  assert verdict.splitlines()[0] == 'needs 45.20G of 15.75G'
  assert '31.25G  f32[64,512,256000]' in verdict
  assert '9.77G  bf16[4608,36864]' in verdict
  plan = PLAN._replace(compiled=None, compile_error=verdict)
  assert plan.fits is False
  assert 'DOES NOT FIT: needs 45.20G of 15.75G' in roofline.format_table(plan)


def test_a_compiled_step_has_the_totals_of_its_collectives():
  with partitioning.use(partitioning.make_mesh(fsdp=8, devices=jax.devices()[:8])):
    mesh = jax.sharding.get_mesh()
    sharding = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    x, y = (
      jax.ShapeDtypeStruct((rows, 16), 'float32', sharding=sharding('fsdp')) for rows in (64, 32)
    )

    def function(x, y):  # two gathers, and a sum over the devices
      gathered = (jax.lax.with_sharding_constraint(array, sharding()) for array in (x, y))
      return (*gathered, x.sum(0))

    step = roofline.analyze(jax.jit(function).lower(x, y).compile())
  gathered, reduced = (64 + 32) * 16 * 4, 16 * 4  # bytes
  assert step.collectives['all-gather'].bytes == pytest.approx(7 / 8 * gathered)
  assert step.collectives['all-reduce'] == CollectiveTotals(1, 2 * 7 / 8 * reduced)
  assert step.memory.arguments == gathered // 8
  assert step.flops == 0


def test_other_compiler_errors_are_not_about_memory():
  assert roofline.out_of_memory(RuntimeError('INTERNAL: mosaic failed')) is None


def test_a_device_has_the_bytes_of_its_shards():
  with partitioning.use(partitioning.make_mesh(2, 4, 1, devices=jax.devices()[:8])):
    mesh = jax.sharding.get_mesh()
    sharding = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    tree = {
      'sharded': jax.ShapeDtypeStruct((16, 4), 'bfloat16', sharding=sharding('fsdp')),
      'replicated': jax.ShapeDtypeStruct((3,), 'float32', sharding=sharding()),
    }
    assert roofline.device_bytes(tree) == 16 * 4 * 2 // 4 + 3 * 4
