"""Topologies to compile for without their hardware."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cascades.performance import flops, hlo, hlo_costs, topologies
from cascades.runtime import partitioning

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed'
)


@pytest.mark.parametrize('name', ['', 'v5e', 'v5e:', 'v9:2x2', 'v5e:2x', 'v5e:axb', '2x4'])
def test_an_unknown_topology_is_refused_with_examples(name):
  with pytest.raises(ValueError, match=r'Unknown topology .* such as v4:2x2x4'):
    topologies.of(name)


@needs_libtpu
@pytest.mark.parametrize(
  ('name', 'num_chips', 'chip'),
  [
    ('v5e:2x4', 8, 'v5e'), ('v4:2x2x4', 16, 'v4'), ('v5p:2x2x2', 8, 'v5p'),
    ('v6e:4x4', 16, 'v6e'), ('v5e:1x1', 1, 'v5e'),
  ],
)  # fmt: skip
def test_a_topology_has_one_device_per_chip(name, num_chips, chip):
  topology = topologies.of(name)
  assert (len(topology.devices), topology.chip.name) == (num_chips, chip)
  assert topology.can_compile
  assert {device.platform for device in topology.devices} == {'tpu'}


@needs_libtpu
def test_a_topology_that_libtpu_rejects_is_refused():
  with pytest.raises(ValueError, match=r'libtpu rejects the topology .v5e:3x5'):
    topologies.of('v5e:3x5')


def test_without_libtpu_there_are_as_many_virtual_devices(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  counts = []
  monkeypatch.setattr(topologies, '_virtual_devices', lambda count: counts.append(count) or [])
  assert not topologies.of('v4:2x2x4').can_compile
  assert counts == [16]


@needs_libtpu
def test_a_tpu_program_has_the_flops_of_its_jaxpr():
  """Weights are gathered layer by layer, in the text of the real compiler."""
  mesh = partitioning.make_mesh(fsdp=8, devices=topologies.of('v5e:2x4').devices)
  replicated, rows = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), ('fsdp',)))
  weights = jax.ShapeDtypeStruct(
    (3, 256, 256), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(None, 'fsdp'))
  )
  x = jax.ShapeDtypeStruct((64, 256), jnp.bfloat16, sharding=rows)

  def layer(x, w):
    w = jax.lax.with_sharding_constraint(w, replicated)
    return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

  run = jax.jit(lambda w, x: jax.lax.scan(layer, x, w)[0])
  program = hlo.parse(run.lower(weights, x).compile().as_text())
  assert program.devices == 8
  assert hlo_costs.flops(program) == flops.flops_of(run, weights, x) / 8
  sent = sum(collective.sent for collective in hlo_costs.collectives(program))
  assert sent == pytest.approx(3 * 256 * 256 * 2 * 7 / 8, rel=0.15)  # a ring may pass 8 of 7 shards
