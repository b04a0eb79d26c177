"""Parser of compiled XLA programs: computations, and the number of times that each one runs.

It reads `compiled.as_text()` of CPU and TPU programs; `hlo_costs` counts operations and bytes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {'pred': 8, 'c64': 64, 'c128': 128}  # of types whose names do not contain their size


class Shape(NamedTuple):
  """Shape of an array."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0  # 0 is a TPU's main memory, 1 its on-chip memory

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Bytes of all elements."""
    bits = BITS.get(self.dtype) or int((re.search(r'\d+', self.dtype) or '0')[0])
    return math.ceil(self.size * bits / 8)


class Instruction(NamedTuple):
  """Instruction `name = shapes op(arguments), attributes`; shapes of nested tuples are flat."""

  name: str
  op: str
  shapes: tuple[Shape, ...]
  arguments: str
  attributes: str

  @property
  def operands(self) -> list[str]:
    """Names of the instructions that it reads."""
    return re.findall(r'%([\w.\-]+)', self.arguments)

  @property
  def number(self) -> int:
    """Index of a get-tuple-element or a parameter."""
    match = re.search(r'index=(\d+)', self.attributes) or re.search(r'(\d+)', self.arguments)
    return int(match[1]) if match else 0

  def called(self, role: str) -> str | None:
    """Name of the computation in an attribute such as `body` or `calls`."""
    match = re.search(rf'\b{role}=%([\w.\-]+)', self.attributes)
    return match[1] if match else None


class Computation(NamedTuple):
  """Instructions by name, and the one that is the result."""

  instructions: Mapping[str, Instruction]
  root: Instruction


class Program(NamedTuple):
  """Computations by name, and the number of devices that run the program together."""

  computations: Mapping[str, Computation]
  entry: str
  devices: int


class Execution(NamedTuple):
  """Computation with the number of times that a program runs it."""

  name: str
  computation: Computation
  times: int
  fused: bool  # inside a fusion, so that only the result reaches memory


def parse(text: str) -> Program:
  """Parse the text of a compiled module.

  Raises:
    ValueError: The text is not a compiled module.
  """
  computations, entry, lines = {}, '', iter(text.splitlines())
  for line in lines:
    head = re.match(r'(ENTRY )?%([\w.\-]+) \(.*\{$', line)
    if head:
      computations[head[2]] = _computation(lines)
      entry = head[2] if head[1] else entry
  if not entry:
    raise ValueError('The text has no ENTRY computation: pass `compiled.as_text()`.')
  shards = {
    int(n) for n in re.findall(r'(?:num_partitions|replica_count)=(\d+)', text.partition('\n')[0])
  }
  return Program(computations, entry, max(shards, default=1))


def _computation(lines: Iterator[str]) -> Computation:
  instructions, root = {}, None
  for line in lines:
    if re.match(r'\}(,|$)', line):  # '})' and '}}' end constants of several lines
      break
    match = re.match(r'\s*(ROOT )?%([\w.\-]+) = (.*)', line)
    if match:
      instruction = _instruction(match[2], re.sub(r'/\*.*?\*/', '', match[3]))
      instructions[instruction.name] = instruction
      root = instruction if match[1] else root
  if root is None:
    raise ValueError(f'A computation of the text has no ROOT: it ends in {line[:160]!r}.')
  return Computation(instructions, root)


def _instruction(name: str, text: str) -> Instruction:
  result, rest = _split_parentheses(text) if text.startswith('(') else text.split(' ', 1)
  op, _, rest = rest.strip().partition('(')
  arguments, attributes = _split_parentheses(f'({rest}')
  return Instruction(name, op, shapes(result), arguments, attributes)


def _split_parentheses(text: str) -> tuple[str, str]:
  """Split after the parenthesis that closes the first one."""
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return text[: i + 1], text[i + 1 :]
  return text, ''


def shapes(text: str) -> tuple[Shape, ...]:
  """Parse all shapes in a text such as `(bf16[8,128]{1,0:T(8,128)S(1)}, u32[])`, in order."""
  matches = re.finditer(r'\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?', text)
  return tuple(
    Shape(
      match[1],
      tuple(int(n) for n in re.findall(r'\d+', match[2])),
      int((re.search(r'S\((\d+)\)', match[3] or '') or '00')[1]),
    )
    for match in matches
  )


def executions(program: Program) -> list[Execution]:
  """List every computation that runs with its total count; conditions count all branches."""
  counts: Counter[tuple[str, bool]] = Counter()

  def visit(name: str, times: int, fused: bool) -> None:
    counts[name, fused] += times
    computation = program.computations[name]
    for instruction in computation.instructions.values():
      called = instruction.called
      if instruction.op == 'while':
        visit(called('body') or '', times * trip_count(program, computation, instruction), fused)
      elif instruction.op in ('call', 'async-start'):
        visit(called('to_apply') or called('calls') or '', times, fused)
      elif instruction.op == 'conditional':
        for branch in _branches(instruction):
          visit(branch, times, fused)
      elif instruction.op == 'fusion':
        visit(called('calls') or '', times, True)

  visit(program.entry, 1, False)
  return [Execution(n, program.computations[n], times, f) for (n, f), times in counts.items()]


def _branches(conditional: Instruction) -> list[str]:
  match = re.search(r'branch_computations=\{([^}]*)\}', conditional.attributes)
  if match:
    return re.findall(r'%([\w.\-]+)', match[1])
  names = (conditional.called('true_computation'), conditional.called('false_computation'))
  return [name for name in names if name]


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int:
  """Count the iterations of a loop: XLA's annotation, or start, step and bound of its counter.

  Raises:
    ValueError: The loop is not annotated and has no such counter.
  """
  annotation = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if annotation:
    return int(annotation[1])
  body = program.computations[loop.called('body') or '']
  condition = program.computations[loop.called('condition') or '']
  comparison = _comparison(program, condition)
  if comparison is not None:
    index, bound, direction = comparison
    start = _integer(program, caller, _element(caller, loop.operands[0], index))
    step = _increment(program, body, index)
    if start is not None and step:
      last = bound + (direction == 'LE') - (direction == 'GE')
      return max(0, math.ceil((last - start) / step))
  raise ValueError(f'The number of iterations of the loop {loop.name} is not a constant.')


def _comparison(program: Program, condition: Computation) -> tuple[int, int, str] | None:
  """Index, bound and direction of a loop's condition `element index < bound`."""
  computation, compare = condition, condition.root
  outside: list[str] = []
  if compare.op == 'fusion':
    outside = compare.operands
    computation = program.computations[compare.called('calls') or '']
    compare = computation.root
  direction = re.search(r'direction=(\w+)', compare.attributes)
  if compare.op != 'compare' or not direction:
    return None

  def resolve(name: str) -> Instruction:
    operand = computation.instructions[name]
    if outside and operand.op == 'parameter':
      return condition.instructions[outside[operand.number]]
    return operand

  left, right = (resolve(name) for name in compare.operands)
  bound = _integer(program, condition, right)
  if left.op != 'get-tuple-element' or bound is None:
    return None
  return left.number, bound, direction[1]


def _element(computation: Computation, name: str, index: int) -> Instruction | None:
  """Element `index` of a tuple instruction; None if `name` is another instruction."""
  instruction = computation.instructions[name]
  if instruction.op == 'tuple':
    return computation.instructions[instruction.operands[index]]
  return None


def _integer(program: Program, computation: Computation, scalar: Instruction | None) -> int | None:
  """Value of a constant scalar, also behind copies and fusions; None if it is not constant."""
  while scalar is not None and scalar.op in ('copy', 'bitcast', 'convert'):
    scalar = computation.instructions[scalar.operands[0]]
  if scalar is not None and scalar.op == 'fusion':
    inner = program.computations[scalar.called('calls') or '']
    return _integer(program, inner, inner.root)
  if scalar is None or scalar.op != 'constant':
    return None
  match = re.fullmatch(r'\((-?\d+)\)', scalar.arguments)
  return int(match[1]) if match else None


def _increment(program: Program, body: Computation, index: int) -> int | None:
  """Constant that the body of a loop adds to an element of its state; None if there is none."""
  value = _element(body, body.root.name, index)
  computation = body
  while value is not None and value.op in ('copy', 'bitcast', 'fusion'):
    if value.op == 'fusion':
      computation = program.computations[value.called('calls') or '']
      value = computation.root
    else:
      value = computation.instructions[value.operands[0]]
  if value is None or value.op not in ('add', 'subtract'):
    return None
  operands = [computation.instructions[name] for name in value.operands]
  steps = [_integer(program, computation, operand) for operand in operands]
  step = next((step for step in steps if step is not None), None)
  return -step if step is not None and value.op == 'subtract' else step
