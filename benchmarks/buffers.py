"""Memory of the step: no logits of the full batch, and what that saves.

    python -m benchmarks.buffers

Compiles the step for this machine's CPU, eight virtual CPUs, and eight v5e chips, and examines
every buffer in the compiled programs. None may have the B x T x V elements of a device's logits.
Apart from buffers with the shape of a parameter, none may exceed two blocks of a device's logits. A
step that computes the logits of the full batch must fail both. Temporaries are those of
`memory_analysis()`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import optax

from benchmarks import bars, compiling
from benchmarks.bars import Measured
from benchmarks.compiling import Cell
from cascades import blocks, losses
from cascades.performance import hlo, hlo_costs
from cascades.performance.hlo import Program, Shape
from cascades.runtime import partitioning
from cascades.training import optimizers, setup

MEMORY_BAR = 0.25


def naive(cell: Cell, loss: losses.CascadeLoss) -> Cell:
  """The same update from logits of all positions at once."""
  optimizer = optimizers.adafactor(optimizers.constant(1e-3))
  small, large = cell.abstract.small, cell.abstract.large

  def total(params: Any, frozen: Any, batch: Any) -> jax.Array:
    model, teacher = small.bind(params), large and large.bind(frozen.large)
    logits = model.readout(model.hidden(batch))
    teacher_logits = teacher and jax.lax.stop_gradient(teacher.readout(teacher.hidden(batch)))
    return loss(logits, () if teacher is None else teacher_logits, batch.targets, batch.weights)[0]

  def step(state: Any, frozen: Any, batch: Any) -> Any:
    gradients = jax.grad(total)(state.params, frozen, batch)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt_state=opt_state)

  shardings = setup.shardings(cell.abstract.state)
  return cell._replace(step=jax.jit(step, donate_argnums=0, out_shardings=shardings))


def parameter_sizes(cell: Cell) -> set[int]:
  """Elements of parameters: in total, per device, and gathered over one mesh axis."""
  sizes = set()
  for leaf in jax.tree.leaves((cell.abstract.state, cell.abstract.frozen)):
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    local = math.prod(leaf.sharding.shard_shape(leaf.shape))
    cuts = [mesh.shape[axis] for axis in jax.tree.leaves(tuple(spec)) if axis]
    sizes |= {leaf.size, local, *(local * cut for cut in cuts)}
    if len(leaf.shape) > 2:  # one layer of a stack
      sizes |= {size // leaf.shape[0] for size in (leaf.size, local, *(local * c for c in cuts))}
  return sizes


def logits(cell: Cell, program: Program, vocab_size: int) -> list[Shape]:
  """Buffers with as many elements as all logits of a device's rows."""
  targets = cell.batch.targets
  local = math.prod(targets.sharding.shard_shape(targets.shape)) * vocab_size
  buffers = hlo_costs.buffers(program)
  return [s for s in buffers if s.size >= local // targets.sharding.mesh.shape['tensor']]


def oversized(cell: Cell, program: Program, block: int) -> list[tuple[Shape, str]]:
  """Buffers of more than two blocks per device that do not have the size of a parameter."""
  parameters = parameter_sizes(cell)
  return [
    (shape, name)
    for shape, name in hlo_costs.buffers(program).items()
    if shape.size > 2 * block and shape.size not in parameters
  ]


def block_of(cell: Cell, vocab_size: int, asked: int | None) -> int:
  """Elements of a block's logits on a device."""
  mesh = cell.batch.targets.sharding.mesh
  rows, length = cell.batch.targets.sharding.shard_shape(cell.batch.targets.shape)
  local = vocab_size // mesh.shape['tensor']
  chosen = asked or max(1, blocks.max_logits(mesh.abstract_mesh) // (local * rows))
  return rows * min(length, chosen) * local


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rows', type=int, default=4)
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--vocab_size', type=int, default=262_144)
  parser.add_argument('--topology', default='v5e:2x4')
  parser.add_argument('--block_length', type=int, help='default: that of the step')
  parser.add_argument('--losses', nargs='+', default=['xent', 'cat_xent', 'dist', 'cat_dist'])
  parser.add_argument('--output', default=bars.RESULTS / 'buffers.json')
  options = parser.parse_args()
  small, large = compiling.wide_vocabulary(options.vocab_size)
  make = functools.partial(compiling.cell, length=options.length, block_length=options.block_length)
  measured = []

  def check(where: str, cell: Cell, name: str) -> int:
    compiled = cell.compile()
    program = hlo.parse(compiled.as_text())
    full = logits(cell, program, options.vocab_size)
    over = oversized(cell, program, block_of(cell, options.vocab_size, options.block_length))
    bound = {'at_least': 1} if name.startswith('naive') else {'at_most': 0.5}
    note = '; '.join(f'{shape.dtype}{[*shape.dims]} {at}' for shape, at in over[:2])
    measured.extend([
      Measured(f'{where}, {name}: buffers of all logits', len(full), '', **bound),
      Measured(f'{where}, {name}: buffers over two blocks', len(over), '', **bound, note=note),
    ])  # fmt: skip
    return compiled.memory_analysis().temp_size_in_bytes

  def memory(
    where: str, mesh: Callable[[], Any], rows: int, *, dtype: str, bar: float | None = None
  ) -> None:
    cast = functools.partial(dataclasses.replace, dtype=dtype)
    with partitioning.use(mesh()):
      for name in options.losses:
        loss = getattr(losses, name)
        teacher = None if name == 'xent' else cast(large)
        cell = make(loss, rows=rows, small=cast(small), large=teacher, large_dtype=dtype)
        taken = check(where, cell, name)
      plain = check(where, naive(cell, loss), f'naive {name}')
    measured.append(
      Measured(f'{where}, {name}: temporaries / those of the naive step', taken / plain, '',
               at_most=bar, note=f'{taken / 1e9:.2f} GB, {plain / 1e9:.2f} GB')
    )  # fmt: skip

  # In float32: on CPUs XLA converts narrower types to float32 anyway.
  memory(
    'one CPU',
    lambda: partitioning.make_mesh(devices=jax.devices()[:1]),
    options.rows,
    dtype='float32',
    bar=MEMORY_BAR,
  )
  memory(
    f'one chip of {options.topology}',
    lambda: compiling.mesh(options.topology, 1),
    options.rows,
    dtype='bfloat16',
    bar=MEMORY_BAR,
  )
  memory(
    options.topology,
    lambda: compiling.mesh(options.topology, data=2, fsdp=4),
    8 * options.rows,
    dtype='bfloat16',
  )
  bars.report('Buffers of a step', measured, options.output, vars(options))


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  main()
