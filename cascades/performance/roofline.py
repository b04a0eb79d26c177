"""Resource use of a compiled training step, and the roofline of its time.

A step is not faster than its matrix products at the chip's peak, its memory traffic at the memory
bandwidth, or its collectives at the bandwidth of all links. It takes the longest of the three times
if they overlap fully, and their sum if they do not overlap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from cascades.performance import hlo, hlo_costs
from cascades.performance.chips import Chip
from cascades.performance.topologies import INSTALL, Topology

GIB = 1 << 30


class Memory(NamedTuple):
  """Bytes on a device, by XLA's buffer assignment."""

  arguments: int
  outputs: int
  aliased: int  # counted in arguments and in outputs
  temporaries: int
  program: int

  @property
  def total(self) -> int:
    """Bytes in use, aliased buffers counted once."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


class CollectiveTotals(NamedTuple):
  """Executions per step of a type of collective, and bytes that a device sends."""

  times: int
  bytes: float


class CompiledStep(NamedTuple):
  """Resource use of a training step on one device."""

  memory: Memory
  flops: float
  traffic: float  # bytes to and from main memory
  collectives: Mapping[str, CollectiveTotals]  # by operation
  largest: list[str]  # descriptions of the collectives that send most


class Seconds(NamedTuple):
  """Time of a step on each resource at its peak rate."""

  compute: float
  memory: float
  network: float

  @property
  def at_least(self) -> float:
    """Lower bound of the step's time: full overlap."""
    return max(self)

  @property
  def without_overlap(self) -> float:
    """Time of the step if nothing overlaps."""
    return sum(self)


class Plan(NamedTuple):
  """Resources of a training run, as far as they are known without running it.

  Attributes:
    topology: Chips to train on.
    models: Number of parameters by model.
    device_bytes: Bytes on a device by purpose, from the sharding rules.
    flops: FLOPs of a step on all devices, recomputed ones included.
    model_flops: FLOPs of a step that the models need, without recomputation.
    tokens: Target positions of a step.
    compiled: Resource use of the compiled step; None without libtpu, or if it was rejected.
    compile_error: Message of the compiler if the step does not fit into memory.
  """

  topology: Topology
  models: Mapping[str, int]
  device_bytes: Mapping[str, int]
  flops: float
  model_flops: float
  tokens: int
  compiled: CompiledStep | None = None
  compile_error: str | None = None

  @property
  def fits(self) -> bool | None:
    """True if the step fits into memory; None if it was not compiled."""
    if self.compiled is None:
      return False if self.compile_error else None
    return self.compiled.memory.total <= self.topology.chip.hbm

  @property
  def seconds(self) -> Seconds | None:
    """Roofline of the step; None if it was not compiled."""
    if self.compiled is None:
      return None
    # The text of a program does not contain the FLOPs of kernels such as attention's.
    flops = max(self.compiled.flops, self.flops / len(self.topology.devices))
    return roofline(self.compiled._replace(flops=flops), self.topology.chip)

  @property
  def mfu_bound(self) -> float | None:
    """Upper bound of the model FLOPs utilization; None if the step was not compiled."""
    if self.seconds is None:
      return None
    peak = self.topology.chip.flops * len(self.topology.devices)
    return self.model_flops / (peak * self.seconds.at_least)


def roofline(step: CompiledStep, chip: Chip) -> Seconds:
  """Divide the resource use of a step by the chip's rates; products count as bfloat16."""
  sent = sum(totals.bytes for totals in step.collectives.values())
  return Seconds(
    step.flops / chip.flops, step.traffic / chip.hbm_bandwidth, sent / chip.ici_bandwidth
  )


def analyze(compiled: Any) -> CompiledStep:
  """Read the resource use of a `jax.stages.Compiled` from its text."""
  stats = compiled.memory_analysis()
  program = hlo.parse(compiled.as_text())
  collectives = hlo_costs.collectives(program)
  return CompiledStep(
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
      op: CollectiveTotals(
        sum(collective.times for collective in collectives if collective.op == op),
        sum(collective.sent for collective in collectives if collective.op == op),
      )
      for op in dict.fromkeys(collective.op for collective in collectives)
    },
    [f'{_size(collective.sent)}  {collective}' for collective in collectives[:5]],
  )


def device_bytes(tree: Any) -> int:
  """Count the bytes of one device's shards of arrays or `jax.ShapeDtypeStruct`s."""
  return sum(
    jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype).size
    * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def out_of_memory(error: Exception) -> str | None:
  """Extract memory use and largest buffers from a compiler error; None if memory sufficed."""
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text:
    return None
  used = re.search(r'Used ([\d.]+\w) of ([\d.]+\w) hbm', text)
  lines = [f'needs {used[1]} of {used[2]}' if used else text.partition('\n')[0]]
  blocks = re.findall(
    r'Size: ([\d.]+\w)\n(?:.*\n)*?\s*(?:XLA label|Shape): (.*)', text.partition('Largest')[2]
  )
  return '\n'.join([*lines, *(f'    {size:>8}  {label[:100]}' for size, label in blocks[:8])])


def format_table(plan: Plan) -> str:
  """Format a plan as a table of two columns."""
  chip, compiled, seconds = plan.topology.chip, plan.compiled, plan.seconds
  rows = [
    ('topology', f'{plan.topology.name}: {len(plan.topology.devices)} chips {chip.name}, '
     f'{_size(chip.hbm)}, {chip.flops / 1e12:.0f} TFLOP/s, {chip.hbm_bandwidth / 1e9:.0f} GB/s, '
     f'links {chip.ici_bandwidth / 1e9:.0f} GB/s'),
    *((f'{name} model', f'{count:,} parameters') for name, count in plan.models.items()),
    *((f'{name} per device', _size(size)) for name, size in plan.device_bytes.items()),
    ('FLOPs per step', f'{_flops(plan.flops)} on all devices'),
    ('model FLOPs per step', f'{_flops(plan.model_flops)}, without recomputation'),
  ]  # fmt: skip
  if compiled is None or seconds is None:
    rows.append(('verdict', _verdict(plan)))
    return '\n'.join(f'{name:30}{value}' for name, value in rows)
  memory = compiled.memory
  rows += [
    *((f'{name}, compiled', _size(size)) for name, size in memory._asdict().items()),
    ('FLOPs per device', _flops(compiled.flops)),
    ('memory traffic per device', _size(compiled.traffic)),
    *(
      (op, f'{totals.times:,} times, {_size(totals.bytes)} sent per device')
      for op, totals in compiled.collectives.items()
    ),
    *(('  largest', line) for line in compiled.largest[:3]),
    ('compute, memory, network', ', '.join(map(_time, seconds))),
    (
      'lower bound of the step time',
      f'{_time(seconds.at_least)}; without overlap {_time(seconds.without_overlap)}',
    ),
    ('target positions per second', f'at most {plan.tokens / seconds.at_least:,.0f}'),
    ('MFU', f'at most {100 * (plan.mfu_bound or 0):.1f} %'),
    ('verdict', _verdict(plan)),
  ]
  return '\n'.join(f'{name:30}{value}' for name, value in rows)


def _verdict(plan: Plan) -> str:
  hbm = plan.topology.chip.hbm
  if plan.compile_error:
    return f'DOES NOT FIT: {plan.compile_error}'
  if plan.compiled is None:
    return f'not compiled, libtpu is not installed: {INSTALL}'
  total = plan.compiled.memory.total
  share = f'{_size(total)} of {_size(hbm)}, {100 * total / hbm:.0f} %'
  return f'fits: {share}' if plan.fits else f'DOES NOT FIT: {share}'


def to_json(plan: Plan) -> dict[str, Any]:
  """Convert a plan to a JSON object."""
  topology, compiled, seconds = plan.topology, plan.compiled, plan.seconds
  return {
    'topology': topology.name,
    'chips': len(topology.devices),
    'chip': topology.chip._asdict(),
    'models': dict(plan.models),
    'held': dict(plan.device_bytes),
    'flops': plan.flops,
    'needed_flops': plan.model_flops,
    'tokens': plan.tokens,
    'fits': plan.fits,
    'verdict': _verdict(plan),
    'compiled': compiled
    and {
      **compiled._asdict(),
      'memory': {**compiled.memory._asdict(), 'total': compiled.memory.total},
      'collectives': {op: totals._asdict() for op, totals in compiled.collectives.items()},
    },
    'seconds': seconds
    and {**seconds._asdict(), 'at_least': seconds.at_least, 'sum': seconds.without_overlap},
    'mfu_bound': plan.mfu_bound,
  }


def _flops(count: float) -> str:
  return _scaled(count, (('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3)))


def _time(seconds: float) -> str:
  return _scaled(seconds, (('ms', 1e-3), ('µs', 1e-6), ('ns', 1e-9)))


def _scaled(value: float, units: Sequence[tuple[str, float]]) -> str:
  """The value in the largest unit that it has one or more of, else in the smallest."""
  unit, size = next((unit for unit in units if value >= unit[1]), units[-1])
  return f'{value / size:,.2f} {unit}'


def _size(count: float) -> str:
  for unit, size in (('GiB', GIB), ('MiB', 1 << 20), ('KiB', 1 << 10)):
    if count >= size:
      return f'{count / size:,.2f} {unit}'
  return f'{count:,.0f} B'
