"""What a compiled XLA program does on each device, loops counted with their trips.

FLOPs of matrix products, bytes that cross main memory, bytes of collectives, and every buffer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cascades.performance.hlo import Computation, Execution, Instruction, Program, Shape, executions

# The bytes that each device of n sends, by a ring, for operands of one byte.
SENT: dict[str, Callable[[int], float]] = {
  'all-gather': lambda n: n - 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda _: 1,
  'collective-broadcast': lambda _: 1,
}


class Collective(NamedTuple):
  kind: str
  times: int
  sent: float  # bytes that a device sends, all times together
  devices: int  # that take part with each other
  shapes: tuple[Shape, ...]  # of its operands
  source: str  # the operation of the JAX program that it comes from

  def __str__(self) -> str:
    shapes = ', '.join(f'{s.dtype}{list(s.dims)}' for s in self.shapes[:3])
    return f'{self.kind} of {shapes} over {self.devices} devices, {self.times} times: {self.source}'


def collectives(program: Program) -> list[Collective]:
  """Every collective once, with its total, the largest first.

  An asynchronous pair counts once. So does one that TPU programs overlap with other work, which is
  written in each of the fusions that carry it. An `all-reduce-scatter` is a reduce-scatter.
  """
  found, carried = [], set()
  for execution in executions(program):
    for one in execution.computation.instructions.values():
      kind = one.op.removesuffix('-start')
      chain = re.search(r'channel_id=(\d+).*chain_id="', one.attributes)
      if kind not in SENT or (chain and chain[1] in carried):
        continue
      carried |= {chain[1]} if chain else set()
      if kind == 'all-reduce' and execution.name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
      found.append(_collective(kind, one, execution, program.devices))
  return sorted(found, key=lambda one: -one.sent)


def _collective(kind: str, one: Instruction, execution: Execution, devices: int) -> Collective:
  operands = _operands(execution.computation, one)
  size = sum(shape.bytes for shape in operands)
  count = _group(one.attributes, devices)
  source = re.search(r'op_name="([^"]*)"', one.attributes)
  return Collective(
    kind,
    execution.times,
    SENT[kind](count) * size * execution.times,
    count,
    operands,
    source[1] if source else one.name,
  )


def _group(attributes: str, devices: int) -> int:
  """How many devices take part together, however the text puts it."""
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', attributes)
  if listed:
    return len(listed[1].split(','))
  tiled = re.search(r'replica_groups=\[\d+,(\d+)\]', attributes)
  if tiled:
    return int(tiled[1])
  axes = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", attributes)
  if axes:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
  if re.search(r'replica_groups=(?!\{\})', attributes):
    raise ValueError(f'these groups of devices are written in an unknown way: {attributes[:160]}')
  return devices


def _operands(computation: Computation, one: Instruction) -> tuple[Shape, ...]:
  return tuple(s for name in one.operands for s in computation.instructions[name].shapes)


def flops(program: Program) -> float:
  """Of matrix products and convolutions, without those with padding."""
  return sum(
    execution.times * _products(execution.computation, one)
    for execution in executions(program)
    for one in execution.computation.instructions.values()
    if one.op in ('dot', 'convolution')
  )


def _products(computation: Computation, one: Instruction) -> float:
  left, right = _operands(computation, one)
  (out,) = one.shapes
  if one.op == 'dot':
    listed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', one.attributes)
    contracted = re.findall(r'\d+', listed[1]) if listed else []
    return 2.0 * out.size * math.prod(left.dims[int(axis)] for axis in contracted)
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', one.attributes)
  if labels is None:
    raise ValueError(f'the convolution {one.name} has no dim_labels.')
  inputs, kernel, outputs = labels.groups()
  spatial = [
    _meetings(left.dims[inputs.index(axis)], right.dims[kernel.index(axis)], size, window)
    for axis, size, window in (
      (axis, out.dims[outputs.index(axis)], _window(one.attributes, int(axis)))
      for axis in outputs
      if axis.isdigit()
    )
  ]
  channels = [out.dims[outputs.index(axis)] for axis in 'bf']
  return 2.0 * math.prod([*spatial, *channels, right.dims[kernel.index('i')]])


def _window(attributes: str, axis: int) -> dict[str, int]:
  """One axis of `window={size=4x1 stride=3x1 pad=0_0x1_1 lhs_dilate=4x1}`."""
  listed = re.search(r'window=\{([^}]*)\}', attributes)
  fields = re.findall(r'(\w+)=([\d_x\-]+)', listed[1]) if listed else []
  return {name: int(values.split('x')[axis].split('_')[0]) for name, values in fields}


def _meetings(size: int, kernel: int, out: int, window: dict[str, int]) -> int:
  """Pairs of an output and a kernel place that meet an input, neither padding nor a gap.

  The products of a batch are convolutions too, in which all but one place is a gap.
  """
  stride, pad = window.get('stride', 1), window.get('pad', 0)
  gap, step = window.get('lhs_dilate', 1), window.get('rhs_dilate', 1)
  places = (o * stride + k * step - pad for o in range(out) for k in range(kernel))
  return sum(place % gap == 0 and 0 <= place // gap < size for place in places)


# Names for what lies elsewhere, and the second halves of pairs.
SILENT = {
  'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'call', 'conditional',
  'partition-id', 'replica-id', 'after-all', 'opt-barrier', 'async-start', 'async-update', 'domain',
}  # fmt: skip


def traffic(program: Program) -> float:
  """Bytes that instructions read from and write to main memory; what they keep on chip is free.

  Of an operand that an instruction only slices, the slice counts.
  """
  return sum(
    execution.times * _moved(program, execution.computation, one)
    for execution in executions(program)
    if not execution.fused
    for one in execution.computation.instructions.values()
    if one.op not in SILENT
    and not one.op.endswith('-done')
    and 'AllocateBuffer' not in one.attributes
  )


def _moved(program: Program, computation: Computation, one: Instruction) -> float:
  operands = [computation.instructions[name] for name in one.operands]
  if one.op in ('copy-start', 'slice-start'):  # (from, to, context), in either order
    ends = operands[0].shapes[:1] + tuple(
      s for s in one.shapes if s.dims and s.space != operands[0].shapes[0].space
    )
    size = min((s.bytes for s in ends), default=0)
    return float(size * sum(s.space == 0 for s in ends[:2]))
  inner = program.computations.get(one.called('calls') or '') if one.op == 'fusion' else None
  read = sum(
    _sliced(inner, place, operand) if inner else float(_in_memory(operand.shapes))
    for place, operand in enumerate(operands)
  )
  if one.op in ('dynamic-slice', 'slice', 'gather'):
    read = float(_in_memory(one.shapes))
  return read + _written(inner, computation, one)


def _in_memory(shapes: Sequence[Shape]) -> int:
  return sum(shape.bytes for shape in shapes if not shape.space)


def _written(inner: Computation | None, around: Computation, one: Instruction) -> float:
  root, computation = (inner.root, inner) if inner else (one, around)
  while root.op == 'bitcast':
    root = computation.instructions[root.operands[0]]
  if root.op == 'dynamic-update-slice':
    return float(_in_memory(computation.instructions[root.operands[1]].shapes))
  return float(_in_memory(one.shapes[len(one.shapes) // 2 :] if 'start' in one.op else one.shapes))


def _sliced(inner: Computation, place: int, operand: Instruction) -> float:
  """What a fusion reads of an operand."""
  if not _in_memory(operand.shapes):
    return 0.0
  users = list(_users(inner, place))
  if users and all(user.op in ('dynamic-slice', 'slice', 'gather') for user, _ in users):
    return float(sum(shape.bytes for user, _ in users for shape in user.shapes))
  if users and all(user.op == 'dynamic-update-slice' and first for user, first in users):
    return 0.0  # written in place
  return float(_in_memory(operand.shapes))


def _users(inner: Computation, place: int) -> Iterator[tuple[Instruction, bool]]:
  """The instructions that read a parameter, and whether as their first operand."""
  names = {
    one.name for one in inner.instructions.values() if one.op == 'parameter' and one.number == place
  }
  for one in inner.instructions.values():
    if names & {*one.operands}:
      if one.op == 'bitcast':
        names.add(one.name)
      else:
        yield one, one.operands[0] in names


def buffers(program: Program) -> dict[Shape, str]:
  """The shapes of all results that instructions hand to others, each with an instruction."""
  return {
    shape: f'{one.name} of {execution.name}'
    for execution in executions(program)
    if not execution.fused
    for one in execution.computation.instructions.values()
    for shape in one.shapes
  }
