"""What a training step will cost on given machines, and how to say it.

The roofline: no step is faster than its products at the chip's peak, its memory traffic at the
memory's bandwidth, or its collectives at that of all links. It takes the longest of the three if
they overlap fully, and their sum if not at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from cascades.performance import hlo, hlo_costs
from cascades.performance.chips import Chip
from cascades.performance.topologies import INSTALL, Machines

GIB = 1 << 30


class Memory(NamedTuple):
  """Bytes on a device, as XLA lays them out. What is aliased is an argument's and an output's."""

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  program: int

  @property
  def total(self) -> int:
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


class Moved(NamedTuple):
  """Collectives of a kind: how often a step runs one, and the bytes that a device sends."""

  times: int
  bytes: float


class Compiled(NamedTuple):
  """What the program of one device does in a step."""

  memory: Memory
  flops: float
  traffic: float  # bytes to and from main memory
  collectives: Mapping[str, Moved]
  largest: list[str]  # the collectives that send most


class Seconds(NamedTuple):
  compute: float
  memory: float
  network: float

  @property
  def at_least(self) -> float:
    return max(self)

  @property
  def without_overlap(self) -> float:
    return sum(self)


class Plan(NamedTuple):
  """Everything that is known without running. Without libtpu `compiled` is None."""

  machines: Machines
  models: Mapping[str, int]  # parameters
  held: Mapping[str, int]  # bytes on a device, by the sharding rules
  flops: float  # of a step on all devices, recomputed products included
  needed: float  # of them by the models: what is recomputed is not
  tokens: int  # target positions of a step
  compiled: Compiled | None = None
  refused: str | None = None  # what the compiler says if the step does not fit

  @property
  def fits(self) -> bool | None:
    """None if nothing was compiled."""
    if self.compiled is None:
      return False if self.refused else None
    return self.compiled.memory.total <= self.machines.chip.hbm

  @property
  def seconds(self) -> Seconds | None:
    if self.compiled is None:
      return None
    # The program's text does not say what kernels, such as attention's, do within.
    share = self.flops / len(self.machines.devices)
    whole = self.compiled._replace(flops=max(self.compiled.flops, share))
    return roofline(whole, self.machines.chip)

  @property
  def mfu_bound(self) -> float | None:
    """The share of the peak that a step at the roofline reaches."""
    if self.seconds is None:
      return None
    peak = self.machines.chip.flops * len(self.machines.devices)
    return self.needed / (peak * self.seconds.at_least)


def roofline(compiled: Compiled, chip: Chip) -> Seconds:
  """How long each resource is needed. Products count as bfloat16, as TPUs compute them."""
  sent = sum(moved.bytes for moved in compiled.collectives.values())
  return Seconds(
    compiled.flops / chip.flops, compiled.traffic / chip.hbm_bandwidth, sent / chip.ici_bandwidth
  )


def read(compiled: Any) -> Compiled:
  """Reads a `jax.stages.Compiled`."""
  stats = compiled.memory_analysis()
  program = hlo.parse(compiled.as_text())
  found = hlo_costs.collectives(program)
  kinds = dict.fromkeys(one.kind for one in found)
  return Compiled(
    Memory(
      stats.argument_size_in_bytes,
      stats.output_size_in_bytes,
      stats.alias_size_in_bytes,
      stats.temp_size_in_bytes,
      stats.generated_code_size_in_bytes,
    ),
    hlo_costs.flops(program),
    hlo_costs.traffic(program),
    {
      kind: Moved(
        sum(one.times for one in found if one.kind == kind),
        sum(one.sent for one in found if one.kind == kind),
      )
      for kind in kinds
    },
    [f'{_size(one.sent)}  {one}' for one in found[:5]],
  )


def held(tree: Any) -> int:
  """Bytes of a device's shards of arrays, or of their descriptions."""
  return sum(
    jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype).size
    * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def out_of_memory(error: Exception) -> str | None:
  """What a refusal to compile says of memory: how much, and the biggest buffers. Else None."""
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text:
    return None
  used = re.search(r'Used ([\d.]+\w) of ([\d.]+\w) hbm', text)
  lines = [f'needs {used[1]} of {used[2]}' if used else text.partition('\n')[0]]
  blocks = re.findall(
    r'Size: ([\d.]+\w)\n(?:.*\n)*?\s*(?:XLA label|Shape): (.*)', text.partition('Largest')[2]
  )
  return '\n'.join([*lines, *(f'    {size:>8}  {what[:100]}' for size, what in blocks[:8])])


def table(plan: Plan) -> str:
  """For people."""
  chip, compiled, seconds = plan.machines.chip, plan.compiled, plan.seconds
  rows = [
    ('machines', f'{plan.machines.topology}: {len(plan.machines.devices)} chips {chip.name}, '
     f'{_size(chip.hbm)}, {chip.flops / 1e12:.0f} TFLOP/s, {chip.hbm_bandwidth / 1e9:.0f} GB/s, '
     f'links {chip.ici_bandwidth / 1e9:.0f} GB/s'),
    *((f'{name} model', f'{count:,} parameters') for name, count in plan.models.items()),
    *((f'{name}, a device', _size(size)) for name, size in plan.held.items()),
    ('FLOPs, a step', f'{plan.flops / 1e12:,.2f} T on all devices'),
    ('FLOPs, needed', f'{plan.needed / 1e12:,.2f} T, without what is recomputed'),
  ]  # fmt: skip
  if compiled is None or seconds is None:
    rows.append(('verdict', _verdict(plan)))
    return '\n'.join(f'{name:30}{value}' for name, value in rows)
  memory = compiled.memory
  rows += [
    *((f'{name}, compiled', _size(size)) for name, size in memory._asdict().items()),
    ('FLOPs, a device', f'{compiled.flops / 1e12:,.3f} T'),
    ('memory traffic, a device', _size(compiled.traffic)),
    *(
      (kind, f'{moved.times:,} times, {_size(moved.bytes)} sent by a device')
      for kind, moved in compiled.collectives.items()
    ),
    *(('  largest', line) for line in compiled.largest[:3]),
    ('compute, memory, network', ', '.join(f'{1e3 * s:,.2f} ms' for s in seconds)),
    (
      'a step takes at least',
      f'{1e3 * seconds.at_least:,.2f} ms; without overlap {1e3 * seconds.without_overlap:,.2f} ms',
    ),
    ('target positions a second', f'at most {plan.tokens / seconds.at_least:,.0f}'),
    ('MFU', f'at most {100 * (plan.mfu_bound or 0):.1f} %'),
    ('verdict', _verdict(plan)),
  ]
  return '\n'.join(f'{name:30}{value}' for name, value in rows)


def _verdict(plan: Plan) -> str:
  hbm = plan.machines.chip.hbm
  if plan.refused:
    return f'DOES NOT FIT: {plan.refused}'
  if plan.compiled is None:
    return f'not compiled, libtpu is not installed: {INSTALL}'
  total = plan.compiled.memory.total
  share = f'{_size(total)} of {_size(hbm)}, {100 * total / hbm:.0f} %'
  return f'fits: {share}' if plan.fits else f'DOES NOT FIT: {share}'


def record(plan: Plan) -> dict[str, Any]:
  """For programs; JSON takes it."""
  machines, compiled, seconds = plan.machines, plan.compiled, plan.seconds
  return {
    'topology': machines.topology,
    'chips': len(machines.devices),
    'chip': machines.chip._asdict(),
    'models': dict(plan.models),
    'held': dict(plan.held),
    'flops': plan.flops,
    'needed_flops': plan.needed,
    'tokens': plan.tokens,
    'fits': plan.fits,
    'verdict': _verdict(plan),
    'compiled': compiled
    and {
      **compiled._asdict(),
      'memory': {**compiled.memory._asdict(), 'total': compiled.memory.total},
      'collectives': {kind: moved._asdict() for kind, moved in compiled.collectives.items()},
    },
    'seconds': seconds
    and {**seconds._asdict(), 'at_least': seconds.at_least, 'sum': seconds.without_overlap},
    'mfu_bound': plan.mfu_bound,
  }


def _size(count: float) -> str:
  for unit, size in (('GiB', GIB), ('MiB', 1 << 20), ('KiB', 1 << 10)):
    if count >= size:
      return f'{count / size:,.2f} {unit}'
  return f'{count:,.0f} B'
