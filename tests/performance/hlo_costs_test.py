"""Costs of compiled programs, against closed forms and the counts of their jaxprs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cascades.performance import flops, hlo, hlo_costs
from cascades.runtime import partitioning
from tests import hlo_programs


def compiled(function, *arguments):
  return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


def test_a_ring_of_permutes_counts_every_iteration():
  (permute,) = hlo_costs.collectives(hlo.parse(hlo_programs.WINDOWED))
  assert permute.op == 'collective-permute'
  assert permute.times == 4
  assert permute.sent == 4 * 80 * 64 * 2
  assert permute.source == 'jit(f)/dot_general'


def test_collectives_are_distinguished_and_counted_once():
  collectives = hlo_costs.collectives(hlo.parse(hlo_programs.COLLECTIVES))
  assert [(collective.op, collective.devices, collective.sent) for collective in collectives] == [
    ('reduce-scatter', 8, 7 / 8 * 64 * 100 * 4),
    ('all-gather', 8, 7 * 100 * 8 * 2),
    ('all-gather', 4, 3 * 8 * 100 * 4),
    ('all-reduce', 8, 2 * 7 / 8 * 4),
  ]
  assert 'readout' in str(collectives[1])


@pytest.mark.parametrize(
  ('groups', 'devices'),
  [('{{0,2},{1,3},{4,6},{5,7}}', 2), ('[2,4]<=[8]', 4), ('[4,2]<=[2,4]T(1,0)', 2), ('{}', 8)],
)
def test_groups_of_devices_are_read_in_every_notation(groups, devices):
  text = hlo_programs.COLLECTIVES.replace('replica_groups={}', f'replica_groups={groups}')
  *_, smallest = hlo_costs.collectives(hlo.parse(text))
  assert smallest.devices == devices


def test_groups_in_a_new_notation_are_refused():
  text = hlo_programs.COLLECTIVES.replace('replica_groups={}', 'replica_groups=<all>')
  with pytest.raises(ValueError, match='Unknown notation'):
    hlo_costs.collectives(hlo.parse(text))


def test_a_batch_of_products_counts_no_gaps():
  assert hlo_costs.flops(hlo.parse(hlo_programs.BATCHED)) == 2 * 4 * 5 * 6 * 16


def test_a_convolution_counts_as_its_jaxpr_does():
  convolve = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (2,), 'VALID', rhs_dilation=(2,), dimension_numbers=('NWC', 'WIO', 'NWC')
  )
  arguments = jnp.ones((2, 15, 8)), jnp.ones((3, 8, 4))
  assert hlo_costs.flops(compiled(convolve, *arguments)) == flops.flops_of(convolve, *arguments)


def test_padding_is_not_counted():
  text = hlo_programs.BATCHED.replace(
    'window={size=4 stride=3 lhs_dilate=4}', 'window={size=4 pad=2_1}'
  )
  pairs = 2 + 3 + 4 + 3  # of outputs 0 to 3 and kernel positions that read one of the four inputs
  assert hlo_costs.flops(hlo.parse(text)) == 2 * pairs * 5 * 6 * 16


@pytest.fixture(scope='module')
def sharded():
  """The gradient of three scanned layers, rows over `data`, weights over `fsdp`."""
  mesh = partitioning.make_mesh(data=2, fsdp=4, devices=jax.devices()[:8])
  struct = lambda shape, *spec: jax.ShapeDtypeStruct(
    shape, 'float32', sharding=NamedSharding(mesh, PartitionSpec(*spec))
  )

  rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))

  def layer(x, w):
    w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
    return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

  def loss(weights, x):
    return jnp.sum(jax.lax.scan(layer, x, weights)[0])

  weights = struct((3, 32, 32), None, 'fsdp')
  arguments = weights, struct((16, 32), ('data', 'fsdp'))
  step = jax.jit(jax.grad(loss), out_shardings=weights.sharding)
  return flops.flops_of(step, *arguments), hlo.parse(step.lower(*arguments).compile().as_text())


def test_the_program_of_a_device_does_its_share_of_the_jaxpr_s_work(sharded):
  jaxpr_flops, program = sharded
  assert program.devices == 8
  assert hlo_costs.flops(program) == jaxpr_flops / 8


def test_the_collectives_of_a_sharded_loop_count_its_iterations(sharded):
  collectives = hlo_costs.collectives(sharded[1])
  layer = 32 * 32 * 4
  gathers = [c for c in collectives if c.op == 'all-gather']
  reductions = [c for c in collectives if c.op in ('all-reduce', 'reduce-scatter')]
  assert {c.times for c in collectives} == {3}
  assert {c.devices for c in gathers} == {4}
  assert sum(c.sent for c in gathers) == 3 * layer * 3 / 4
  assert sum(c.sent for c in reductions) == 3 * 2 * layer * 7 / 8


def test_traffic_counts_inputs_and_outputs_once():
  program = compiled(lambda x: jnp.tanh(x) * 2 + x, jnp.ones((64, 128)))
  assert hlo_costs.traffic(program) == 2 * 64 * 128 * 4


def test_a_scan_reads_a_slice_at_a_time():
  xs = jnp.ones((50, 1000))
  program = compiled(lambda xs: jax.lax.scan(lambda c, x: (jnp.sin(c + x), None), xs[0], xs)[0], xs)
  once = xs.size * 4
  assert 2.9 * once < hlo_costs.traffic(program) < 4.5 * once  # reads x and c, writes c


def test_stacked_outputs_are_written_in_place():
  xs = jnp.ones((50, 1000))
  program = compiled(lambda xs: jax.lax.scan(lambda c, x: (jnp.sin(c + x), c), xs[0], xs), xs)
  assert hlo_costs.traffic(program) < 12 * xs.size * 4


def test_on_chip_memory_is_no_traffic():
  text = hlo_programs.BATCHED
  all_bytes = 4 * (4 * 5 * 16 + 4 * 6 * 16 + 4 * 5 * 6)
  assert hlo_costs.traffic(hlo.parse(text)) == all_bytes
  on_chip = text.replace('%q.1 = f32[4,5,16]{2,1,0}', '%q.1 = f32[4,5,16]{2,1,0:T(8,128)S(1)}')
  assert hlo_costs.traffic(hlo.parse(on_chip)) == all_bytes - 4 * 4 * 5 * 16


COPY = """HloModule copy

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %near = (f32[4,8]{1,0:S(1)}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[4,8]{1,0:S(1)} copy-done(%near)
  %far = (f32[2,8]{1,0}, f32[4,8]{1,0:S(1)}, u32[]{:S(2)}) slice-start(%done)
  ROOT %out = f32[2,8]{1,0} slice-done(%far)
}
"""


def test_a_copy_between_memories_moves_its_bytes_once_and_a_slice_only_its_own():
  assert hlo_costs.traffic(hlo.parse(COPY)) == 4 * 4 * 8 + 4 * 2 * 8


def test_buffers_are_the_results_outside_of_fusions():
  x = jnp.ones((8, 100))
  fused = compiled(lambda x: jnp.sum(jnp.tanh(x[:, :, None] * x[:, None, :])), x)
  assert max(np.prod(s.dims) for s in hlo_costs.buffers(fused)) < 8 * 100 * 100
  product = compiled(lambda x: jnp.linalg.norm(x.T @ x, ord=1), x)
  assert any(s.dims == (100, 100) for s in hlo_costs.buffers(product))
