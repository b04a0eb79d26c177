"""Reads the text of a compiled XLA program: its computations, and how often each one runs.

`compiled.as_text()` of CPU and TPU programs alike; what the numbers are is in `hlo_costs`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

BITS = {'pred': 8, 'c64': 64, 'c128': 128}  # the other types carry theirs in their names


class Shape(NamedTuple):
  dtype: str
  dims: tuple[int, ...]
  space: int = 0  # 0 is a TPU's main memory, 1 what lies on the chip

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    bits = BITS.get(self.dtype) or int((re.search(r'\d+', self.dtype) or '0')[0])
    return math.ceil(self.size * bits / 8)


class Instruction(NamedTuple):
  """`name = shapes op(arguments), attributes`; a tuple's shapes are flat."""

  name: str
  op: str
  shapes: tuple[Shape, ...]
  arguments: str
  attributes: str

  @property
  def operands(self) -> list[str]:
    return re.findall(r'%([\w.\-]+)', self.arguments)

  @property
  def number(self) -> int:
    """Of a get-tuple-element or a parameter."""
    found = re.search(r'index=(\d+)', self.attributes) or re.search(r'(\d+)', self.arguments)
    return int(found[1]) if found else 0

  def called(self, role: str) -> str | None:
    """The computation that an attribute such as `body` or `calls` names."""
    found = re.search(rf'\b{role}=%([\w.\-]+)', self.attributes)
    return found[1] if found else None


class Computation(NamedTuple):
  instructions: Mapping[str, Instruction]
  root: Instruction


class Program(NamedTuple):
  computations: Mapping[str, Computation]
  entry: str
  devices: int


class Execution(NamedTuple):
  """A computation, how often it runs, and whether its results stay inside another's instruction."""

  name: str
  computation: Computation
  times: int
  fused: bool


def parse(text: str) -> Program:
  """Raises ValueError for text that is no compiled module."""
  computations, entry, lines = {}, '', iter(text.splitlines())
  for line in lines:
    head = re.match(r'(ENTRY )?%([\w.\-]+) \(.*\{$', line)
    if head:
      computations[head[2]] = _computation(lines)
      entry = head[2] if head[1] else entry
  if not entry:
    raise ValueError('this text has no ENTRY computation: give `compiled.as_text()`.')
  shards = {
    int(n) for n in re.findall(r'(?:num_partitions|replica_count)=(\d+)', text.partition('\n')[0])
  }
  return Program(computations, entry, max(shards, default=1))


def _computation(lines: Iterator[str]) -> Computation:
  instructions, root = {}, None
  for line in lines:
    if re.match(r'\}(,|$)', line):  # '})' and '}}' end constants of several lines
      break
    found = re.match(r'\s*(ROOT )?%([\w.\-]+) = (.*)', line)
    if found:
      one = _instruction(found[2], re.sub(r'/\*.*?\*/', '', found[3]))
      instructions[one.name] = one
      root = one if found[1] else root
  if root is None:
    raise ValueError(f'a computation of this text has no ROOT: it ends in {line[:160]!r}.')
  return Computation(instructions, root)


def _instruction(name: str, text: str) -> Instruction:
  kind, rest = _closed(text) if text.startswith('(') else text.split(' ', 1)
  op, _, rest = rest.strip().partition('(')
  arguments, attributes = _closed(f'({rest}')
  return Instruction(name, op, shapes(kind), arguments, attributes)


def _closed(text: str) -> tuple[str, str]:
  """What the first bracket encloses, itself included, and what follows."""
  depth = 0
  for place, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return text[: place + 1], text[place + 1 :]
  return text, ''


def shapes(text: str) -> tuple[Shape, ...]:
  """`(bf16[8,128]{1,0:T(8,128)S(1)}, u32[])`, in order."""
  found = re.finditer(r'\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?', text)
  return tuple(
    Shape(
      one[1],
      tuple(int(n) for n in re.findall(r'\d+', one[2])),
      int((re.search(r'S\((\d+)\)', one[3] or '') or '00')[1]),
    )
    for one in found
  )


def executions(program: Program) -> list[Execution]:
  """Every computation that runs, once, with its total count; of a condition's branches, all."""
  counts: Counter[tuple[str, bool]] = Counter()

  def visit(name: str, times: int, fused: bool) -> None:
    counts[name, fused] += times
    computation = program.computations[name]
    for one in computation.instructions.values():
      if one.op == 'while':
        body = one.called('body')
        visit(body or '', times * trips(program, computation, one), fused)
      elif one.op in ('call', 'async-start'):
        visit(one.called('to_apply') or one.called('calls') or '', times, fused)
      elif one.op == 'conditional':
        for branch in _branches(one):
          visit(branch, times, fused)
      elif one.op == 'fusion':
        visit(one.called('calls') or '', times, True)

  visit(program.entry, 1, False)
  return [Execution(n, program.computations[n], times, f) for (n, f), times in counts.items()]


def _branches(one: Instruction) -> list[str]:
  listed = re.search(r'branch_computations=\{([^}]*)\}', one.attributes)
  named = [one.called('true_computation'), one.called('false_computation')]
  found = re.findall(r'%([\w.\-]+)', listed[1]) if listed else named
  return [name for name in found if name]


def trips(program: Program, around: Computation, loop: Instruction) -> int:
  """How often a loop's body runs: as XLA says, else from its counter's start, step and bound.

  Raises ValueError for a loop that counts in another way.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  body = program.computations[loop.called('body') or '']
  condition = program.computations[loop.called('condition') or '']
  found = _comparison(program, condition)
  if found is not None:
    index, bound, direction = found
    start = _integer(program, around, _element(around, loop.operands[0], index))
    step = _increment(program, body, index)
    if start is not None and step:
      last = bound + (direction == 'LE') - (direction == 'GE')
      return max(0, math.ceil((last - start) / step))
  raise ValueError(f'the loop {loop.name} does not say how often it runs.')


Value: TypeAlias = tuple[Computation, Instruction]


def _comparison(program: Program, condition: Computation) -> tuple[int, int, str] | None:
  """`element index < bound` of a loop's condition."""
  computation, compare = condition, condition.root
  outside: list[str] = []
  if compare.op == 'fusion':
    outside = compare.operands
    computation = program.computations[compare.called('calls') or '']
    compare = computation.root
  direction = re.search(r'direction=(\w+)', compare.attributes)
  if compare.op != 'compare' or not direction:
    return None

  def trace(name: str) -> Instruction:
    one = computation.instructions[name]
    return condition.instructions[outside[one.number]] if outside and one.op == 'parameter' else one

  left, right = (trace(name) for name in compare.operands)
  bound = _integer(program, condition, right)
  if left.op != 'get-tuple-element' or bound is None:
    return None
  return left.number, bound, direction[1]


def _element(computation: Computation, name: str, index: int) -> Instruction | None:
  """What a tuple holds at `index`."""
  one = computation.instructions[name]
  if one.op == 'tuple':
    return computation.instructions[one.operands[index]]
  return None


def _integer(program: Program, around: Computation, one: Instruction | None) -> int | None:
  """A scalar that the program states."""
  while one is not None and one.op in ('copy', 'bitcast', 'convert'):
    one = around.instructions[one.operands[0]]
  if one is not None and one.op == 'fusion':
    inner = program.computations[one.called('calls') or '']
    return _integer(program, inner, inner.root)
  found = re.fullmatch(r'\((-?\d+)\)', one.arguments) if one and one.op == 'constant' else None
  return int(found[1]) if found else None


def _increment(program: Program, body: Computation, index: int) -> int | None:
  """What a loop's body adds to an element of its state."""
  one = _element(body, body.root.name, index)
  computation = body
  while one is not None and one.op in ('copy', 'bitcast', 'fusion'):
    if one.op == 'fusion':
      computation = program.computations[one.called('calls') or '']
      one = computation.root
    else:
      one = computation.instructions[one.operands[0]]
  if one is None or one.op not in ('add', 'subtract'):
    return None
  steps = [_integer(program, computation, computation.instructions[name]) for name in one.operands]
  step = next((step for step in steps if step is not None), None)
  return -step if step is not None and one.op == 'subtract' else step
