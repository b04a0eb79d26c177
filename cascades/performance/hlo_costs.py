"""Costs of a compiled XLA program on each device, with every iteration of its loops.

FLOPs of matrix products, bytes to and from main memory, bytes of collectives, and buffers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cascades.performance.hlo import Computation, Execution, Instruction, Program, Shape, executions

# Bytes that each of n devices sends around a ring, per byte of operands.
RING_FACTORS: dict[str, Callable[[int], float]] = {
  'all-gather': lambda n: n - 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda _: 1,
  'collective-broadcast': lambda _: 1,
}


class Collective(NamedTuple):
  """Collective operation of a program."""

  op: str  # a key of `RING_FACTORS`
  times: int  # executions
  sent: float  # bytes that a device sends in all executions
  devices: int  # in a group
  shapes: tuple[Shape, ...]  # of its operands
  source: str  # operation of the JAX program

  def __str__(self) -> str:
    shapes = ', '.join(f'{s.dtype}{list(s.dims)}' for s in self.shapes[:3])
    return f'{self.op} of {shapes} over {self.devices} devices, {self.times} times: {self.source}'


def collectives(program: Program) -> list[Collective]:
  """List the collectives of a program, those that send most first.

  An asynchronous pair is one collective, and so is one that a TPU program overlaps with other work,
  which is written in each of its fusions. An `all-reduce-scatter` is a reduce-scatter.
  """
  operations, chains = [], set()
  for execution in executions(program):
    for instruction in execution.computation.instructions.values():
      op = instruction.op.removesuffix('-start')
      chain = re.search(r'channel_id=(\d+).*chain_id="', instruction.attributes)
      if op not in RING_FACTORS or (chain and chain[1] in chains):
        continue
      chains |= {chain[1]} if chain else set()
      if op == 'all-reduce' and execution.name.startswith('all-reduce-scatter'):
        op = 'reduce-scatter'
      operations.append(_collective(op, instruction, execution, program.devices))
  return sorted(operations, key=lambda collective: -collective.sent)


def _collective(
  op: str, instruction: Instruction, execution: Execution, devices: int
) -> Collective:
  operands = _operand_shapes(execution.computation, instruction)
  size = sum(shape.bytes for shape in operands)
  group_size = _group_size(instruction.attributes, devices)
  source = re.search(r'op_name="([^"]*)"', instruction.attributes)
  return Collective(
    op,
    execution.times,
    RING_FACTORS[op](group_size) * size * execution.times,
    group_size,
    operands,
    source[1] if source else instruction.name,
  )


def _group_size(attributes: str, devices: int) -> int:
  """Number of devices in a group, in any notation of `replica_groups`."""
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
    raise ValueError(f'Unknown notation of replica_groups: {attributes[:160]}')
  return devices


def _operand_shapes(computation: Computation, instruction: Instruction) -> tuple[Shape, ...]:
  operands = (computation.instructions[name] for name in instruction.operands)
  return tuple(shape for operand in operands for shape in operand.shapes)


def flops(program: Program) -> float:
  """Count the FLOPs of matrix products and convolutions, without multiplications of padding."""
  return sum(
    execution.times * _product_flops(execution.computation, instruction)
    for execution in executions(program)
    for instruction in execution.computation.instructions.values()
    if instruction.op in ('dot', 'convolution')
  )


def _product_flops(computation: Computation, instruction: Instruction) -> float:
  left, right = _operand_shapes(computation, instruction)
  (out,) = instruction.shapes
  if instruction.op == 'dot':
    listed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
    contracted = re.findall(r'\d+', listed[1]) if listed else []
    return 2.0 * out.size * math.prod(left.dims[int(axis)] for axis in contracted)
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
  if labels is None:
    raise ValueError(f'The convolution {instruction.name} has no dim_labels.')
  inputs, kernel, outputs = labels.groups()
  spatial = [
    _multiplications(left.dims[inputs.index(axis)], right.dims[kernel.index(axis)], size, window)
    for axis, size, window in (
      (axis, out.dims[outputs.index(axis)], _window(instruction.attributes, int(axis)))
      for axis in outputs
      if axis.isdigit()
    )
  ]
  channels = [out.dims[outputs.index(axis)] for axis in 'bf']
  return 2.0 * math.prod([*spatial, *channels, right.dims[kernel.index('i')]])


def _window(attributes: str, axis: int) -> dict[str, int]:
  """Fields of one axis of `window={size=4x1 stride=3x1 pad=0_0x1_1 lhs_dilate=4x1}`."""
  listed = re.search(r'window=\{([^}]*)\}', attributes)
  fields = re.findall(r'(\w+)=([\d_x\-]+)', listed[1]) if listed else []
  return {name: int(values.split('x')[axis].split('_')[0]) for name, values in fields}


def _multiplications(size: int, kernel: int, out: int, window: dict[str, int]) -> int:
  """Count pairs of output and kernel positions that read an input, not padding or a gap.

  Batched matrix products are convolutions too, in which all but one position is a gap.
  """
  stride, pad = window.get('stride', 1), window.get('pad', 0)
  gap, step = window.get('lhs_dilate', 1), window.get('rhs_dilate', 1)
  inputs = (o * stride + k * step - pad for o in range(out) for k in range(kernel))
  return sum(i % gap == 0 and 0 <= i // gap < size for i in inputs)


# Instructions that move no bytes, and the second halves of asynchronous pairs.
NO_TRAFFIC = {
  'parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'call', 'conditional',
  'partition-id', 'replica-id', 'after-all', 'opt-barrier', 'async-start', 'async-update', 'domain',
}  # fmt: skip


def traffic(program: Program) -> float:
  """Count bytes that instructions read from and write to main memory, not on-chip memory.

  If an instruction slices an operand, only the slice counts.
  """
  return sum(
    execution.times * _bytes_moved(program, execution.computation, instruction)
    for execution in executions(program)
    if not execution.fused
    for instruction in execution.computation.instructions.values()
    if instruction.op not in NO_TRAFFIC
    and not instruction.op.endswith('-done')
    and 'AllocateBuffer' not in instruction.attributes
  )


def _bytes_moved(program: Program, computation: Computation, instruction: Instruction) -> float:
  operands = [computation.instructions[name] for name in instruction.operands]
  op, shapes = instruction.op, instruction.shapes
  if op in ('copy-start', 'slice-start'):  # (from, to, context), in either order
    ends = operands[0].shapes[:1] + tuple(
      shape for shape in shapes if shape.dims and shape.space != operands[0].shapes[0].space
    )
    size = min((shape.bytes for shape in ends), default=0)
    return float(size * sum(shape.space == 0 for shape in ends[:2]))
  inner = program.computations.get(instruction.called('calls') or '') if op == 'fusion' else None
  read = sum(
    _bytes_read(inner, i, operand) if inner else float(_in_memory(operand.shapes))
    for i, operand in enumerate(operands)
  )
  if op in ('dynamic-slice', 'slice', 'gather'):
    read = float(_in_memory(shapes))
  return read + _bytes_written(inner, computation, instruction)


def _in_memory(shapes: Sequence[Shape]) -> int:
  return sum(shape.bytes for shape in shapes if not shape.space)


def _bytes_written(
  inner: Computation | None, outer: Computation, instruction: Instruction
) -> float:
  root, computation = (inner.root, inner) if inner else (instruction, outer)
  while root.op == 'bitcast':
    root = computation.instructions[root.operands[0]]
  if root.op == 'dynamic-update-slice':
    return float(_in_memory(computation.instructions[root.operands[1]].shapes))
  shapes = instruction.shapes
  return float(_in_memory(shapes[len(shapes) // 2 :] if 'start' in instruction.op else shapes))


def _bytes_read(inner: Computation, number: int, operand: Instruction) -> float:
  """Count the bytes of an operand that a fusion reads; `number` is that of its parameter."""
  if not _in_memory(operand.shapes):
    return 0.0
  users = list(_users(inner, number))
  if users and all(user.op in ('dynamic-slice', 'slice', 'gather') for user, _ in users):
    return float(sum(shape.bytes for user, _ in users for shape in user.shapes))
  if users and all(user.op == 'dynamic-update-slice' and first for user, first in users):
    return 0.0  # written in place
  return float(_in_memory(operand.shapes))


def _users(inner: Computation, number: int) -> Iterator[tuple[Instruction, bool]]:
  """Yield the instructions that read a parameter; True for those with it as first operand."""
  instructions = inner.instructions.values()
  names = {i.name for i in instructions if i.op == 'parameter' and i.number == number}
  for instruction in instructions:
    if names & {*instruction.operands}:
      if instruction.op == 'bitcast':
        names.add(instruction.name)
      else:
        yield instruction, instruction.operands[0] in names


def buffers(program: Program) -> dict[Shape, str]:
  """Shapes of all results outside of fusions, each with the name of one instruction."""
  return {
    shape: f'{instruction.name} of {execution.name}'
    for execution in executions(program)
    if not execution.fused
    for instruction in execution.computation.instructions.values()
    for shape in instruction.shapes
  }
