"""TPU topologies by name, to compile for without the hardware.

`libtpu` compiles TPU programs on any Linux machine. Without it, a topology has as many virtual CPU
devices: arrays are sharded alike, but no TPU program can be compiled.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from cascades.performance import chips
from cascades.performance.chips import Chip

# With these, libtpu does not query a metadata server for the machine or warn about its absence, and
# several processes, such as a plan beside a training run, can load it at the same time.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
INSTALL = "pip install 'lm-cascades[plan]'"


class Topology(NamedTuple):
  """Chips of one type, with devices to shard and compile for."""

  name: str  # v5e:4x4
  chip: Chip
  devices: list[jax.Device]
  can_compile: bool  # programs for the chip, on this machine


def of(name: str) -> Topology:
  """Look up a topology such as v5e:4x4.

  Call it before JAX has used a device: it keeps this process off local accelerators.

  Args:
    name: Name of the chip, and number of chips along each axis of the torus.

  Raises:
    ValueError: The chip is not in `chips.CHIPS`, or libtpu rejects the topology.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  chip_by_name = {chip.name: chip for chip in chips.CHIPS}
  if not match or match[1] not in chip_by_name:
    raise ValueError(
      f'Unknown topology {name!r}: give a chip ({", ".join(chip_by_name)}) and the number of chips '
      'along each axis, such as v4:2x2x4 or v5e:4x4.'
    )
  chip = chip_by_name[match[1]]
  jax.config.update('jax_platforms', 'cpu')
  counts = [int(count) for count in match[2].split('x')]
  if importlib.util.find_spec('libtpu') is None:
    return Topology(name, chip, _virtual_devices(math.prod(counts)), False)
  for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  # A v4 chip has two cores that programs use as one; libtpu lists them separately by default.
  cores = {'chip_config_name': 'megacore'} if chip.name == 'v4' else {}
  # libtpu assumes four chips per host, which rejects topologies of one or two.
  bounds = {'chips_per_host_bounds': [*counts, 1, 1][:3]} if math.prod(counts) < 4 else {}
  try:
    description = topologies.get_topology_desc(name, 'tpu', **cores, **bounds)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition('\n')[0]
    raise ValueError(f'libtpu rejects the topology {name!r}: {reason}') from error
  return Topology(name, chip, description.devices, True)


def _virtual_devices(count: int) -> list[jax.Device]:
  jax.config.update('jax_num_cpu_devices', count)
  return jax.devices()
