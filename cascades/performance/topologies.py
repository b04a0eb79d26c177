"""Machines that are not there: TPU devices to compile for, from a topology's name.

`libtpu` compiles TPU programs on any Linux machine. Without it there are as many virtual CPU
devices, which place arrays the same way but say nothing of a TPU program.
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

# libtpu asks no metadata server which machine this is, nor complains that it does not know; several
# plans, and a plan beside a training run, load it at the same time.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
INSTALL = "pip install 'cascades[plan]'"


class Machines(NamedTuple):
  """`compiles` tells whether programs for the chip can be compiled here."""

  topology: str
  chip: Chip
  devices: list[jax.Device]
  compiles: bool


def of(name: str) -> Machines:
  """`v5e:4x4` is a kind of chip and how many of them stand along each axis of the torus.

  Call before JAX has used a device: this process is kept off accelerators that are there.
  Raises ValueError for a name that is no topology.
  """
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  known = {chip.name: chip for chip in chips.CHIPS}
  if not found or found[1] not in known:
    raise ValueError(
      f'{name!r} is no topology that is known here: say a chip ({", ".join(known)}) and its counts '
      'along the axes, such as --topology=v4:2x2x4 or v5e:4x4.'
    )
  jax.config.update('jax_platforms', 'cpu')
  counts = [int(count) for count in found[2].split('x')]
  if importlib.util.find_spec('libtpu') is None:
    return Machines(name, known[found[1]], _virtual(math.prod(counts)), False)
  for variable, value in ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  # A v4 chip has two cores, which programs use as one; libtpu lists them apart unless told.
  cores = {'chip_config_name': 'megacore'} if found[1] == 'v4' else {}
  # It takes hosts to have four chips, which one chip or two are part of.
  part = {'chips_per_host_bounds': [*counts, 1, 1][:3]} if math.prod(counts) < 4 else {}
  try:
    made = topologies.get_topology_desc(name, 'tpu', **cores, **part)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition('\n')[0]
    raise ValueError(f'libtpu knows no topology {name!r}: {reason}') from error
  return Machines(name, known[found[1]], made.devices, True)


def _virtual(count: int) -> list[jax.Device]:
  jax.config.update('jax_num_cpu_devices', count)
  return jax.devices()
