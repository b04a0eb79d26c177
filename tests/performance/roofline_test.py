"""Rooflines, verdicts and refusals of plans, by hand."""

import json

import jax
import pytest

from cascades.performance import chips, roofline, topologies
from cascades.performance.roofline import Compiled, Memory, Moved, Plan, Seconds
from cascades.runtime import partitioning

CHIP = chips.Chip('toy', flops=1e12, hbm=1000, hbm_bandwidth=1e9, ici_bandwidth=1e8)
MACHINES = topologies.Machines('toy:2x2', CHIP, [None] * 4, True)
COMPILED = Compiled(
  Memory(arguments=600, outputs=500, aliased=450, temporaries=200, program=50),
  flops=2e12,
  traffic=3e9,
  collectives={'all-gather': Moved(3, 4e8), 'all-reduce': Moved(1, 1e8)},
  largest=['some'],
)
PLAN = Plan(MACHINES, {'small': 7, 'large': 9}, {'batch': 8}, 8e12, 4e12, 64, COMPILED)


def test_memory_counts_what_is_given_away_once():
  assert COMPILED.memory.total == 600 + (500 - 450) + 200 + 50


def test_the_roofline_is_the_slowest_resource():
  assert PLAN.seconds == Seconds(compute=2.0, memory=3.0, network=5.0)
  assert PLAN.seconds.at_least == 5.0
  assert PLAN.seconds.without_overlap == 10.0
  assert PLAN.mfu_bound == pytest.approx(4e12 / (4 * 1e12 * 5.0))  # of what the models need
  assert PLAN._replace(flops=40e12).seconds.compute == 10.0  # kernels hide products from the text


@pytest.mark.parametrize(
  ('temporaries', 'fits', 'said'),
  [(200, True, 'fits: 900 B of 1,000 B, 90 %'), (301, False, 'DOES NOT FIT: 1,001 B')],
)
def test_a_step_fits_if_its_memory_does(temporaries, fits, said):
  memory = COMPILED.memory._replace(temporaries=temporaries)
  plan = PLAN._replace(compiled=COMPILED._replace(memory=memory))
  assert plan.fits is fits
  assert said in roofline.table(plan)
  assert roofline.record(plan)['fits'] is fits


def test_a_plan_is_a_table_for_people_and_json_for_programs():
  text = roofline.table(PLAN)
  assert 'all-gather' in text
  assert '3 times' in text
  assert '5,000.00 ms; without overlap 10,000.00 ms' in text
  assert 'at most 13\n' in text  # 64 positions in 5 seconds
  record = json.loads(json.dumps(roofline.record(PLAN)))
  assert record['compiled']['memory']['total'] == 900
  assert record['compiled']['collectives']['all-gather'] == {'times': 3, 'bytes': 4e8}
  assert record['seconds']['at_least'] == 5.0


def test_without_a_compiler_the_abstract_figures_stay_and_the_way_to_get_one_is_said():
  plan = PLAN._replace(compiled=None)
  assert plan.fits is plan.seconds is plan.mfu_bound is None
  text = roofline.table(plan)
  assert "pip install 'cascades[plan]'" in text
  assert '7 parameters' in text
  assert json.loads(json.dumps(roofline.record(plan)))['compiled'] is None


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


def test_a_compiler_s_refusal_becomes_a_verdict_that_names_the_biggest_buffers():
  said = roofline.out_of_memory(RuntimeError(REFUSAL))
  assert said.splitlines()[0] == 'needs 45.20G of 15.75G'
  assert '31.25G  f32[64,512,256000]' in said
  assert '9.77G  bf16[4608,36864]' in said
  plan = PLAN._replace(compiled=None, refused=said)
  assert plan.fits is False
  assert 'DOES NOT FIT: needs 45.20G of 15.75G' in roofline.table(plan)


def test_other_errors_of_the_compiler_are_no_verdict():
  assert roofline.out_of_memory(RuntimeError('INTERNAL: mosaic failed')) is None


def test_what_a_device_holds_is_its_shards():
  with partitioning.use(partitioning.make_mesh(2, 4, 1, devices=jax.devices()[:8])) as _:
    mesh = jax.sharding.get_mesh()
    place = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    tree = {
      'split': jax.ShapeDtypeStruct((16, 4), 'bfloat16', sharding=place('fsdp')),
      'whole': jax.ShapeDtypeStruct((3,), 'float32', sharding=place()),
    }
    assert roofline.held(tree) == 16 * 4 * 2 // 4 + 3 * 4
