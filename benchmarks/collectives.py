"""Bytes that the devices of a sharded step send each other, compared with the minimum.

    python -m benchmarks.collectives

The CAT-Dist step on eight v5e chips, compiled and not run. Over n devices that share a model's
parameters, each device must receive the missing (n - 1) / n of the small model twice (forward,
backward) and of the large model once, in the type of the multiplication, and send as much of the
small model's gradient once. Over data-parallel devices gradients are summed: twice (n - 1) / n.
With `tensor` the hidden states of each layer are summed as well, the price of that axis; they are
reported separately.
"""

from __future__ import annotations

import argparse
import collections
import math
from typing import Any

import jax

from benchmarks import bars, compiling
from benchmarks.bars import Measured
from benchmarks.compiling import Cell
from cascades import losses
from cascades.performance import hlo, hlo_costs
from cascades.performance.hlo_costs import Collective
from cascades.runtime import partitioning

MESHES: dict[str, dict[str, int]] = {
  'fsdp': {'data': 1, 'fsdp': 8},
  'data x fsdp': {'data': 2, 'fsdp': 4},
  'fsdp x tensor': {'data': 1, 'fsdp': 4, 'tensor': 2},
}
BAR = 1.25


def least(cell: Cell, width: int) -> float:
  """Analytic minimum of a step, in bytes per device, with `width` bytes per parameter."""

  def gathered(tree: Any) -> float:
    """Bytes of each array that other devices along `fsdp` store."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
      shards = leaf.sharding.mesh.shape['fsdp'] if 'fsdp' in leaf.sharding.spec else 1
      local = leaf.size / _cut(leaf)
      total += local * width * (shards - 1)
    return total

  small, large = cell.abstract.state.params, cell.abstract.frozen.large
  rows = small_mesh(cell).shape['data']
  shards = sum(leaf.size / _cut(leaf) for leaf in jax.tree.leaves(small)) * width
  return 3 * gathered(small) + gathered(large) + 2 * (rows - 1) / rows * shards


def small_mesh(cell: Cell) -> jax.sharding.Mesh:
  return cell.batch.targets.sharding.mesh


def _cut(leaf: Any) -> int:
  """Number of shards of an array."""
  return leaf.size // max(1, math.prod(leaf.sharding.shard_shape(leaf.shape)))


def split(collectives: list[Collective], rows: int, length: int) -> tuple[float, float]:
  """Bytes of parameters and gradients, and of activations, whose shapes have rows and positions."""

  def active(collective: Collective) -> bool:
    return any(length in shape.dims or rows * length in shape.dims for shape in collective.shapes)

  sums = collections.Counter[bool]()
  for collective in collectives:
    sums[active(collective)] += collective.sent
  return sums[False], sums[True]


def listed(collective: Collective) -> Measured:
  what = f'  {collective.op} over {collective.devices}, {collective.times} times'
  note = f'{[*collective.shapes[0].dims]} {collective.source[-70:]}'
  return Measured(what, collective.sent / 1e6, 'MB', note=note)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--topology', default='v5e:2x4')
  parser.add_argument('--rows', type=int, default=16)
  parser.add_argument('--length', type=int, default=384)  # no parameter has an axis of this size
  parser.add_argument('--output', default=bars.RESULTS / 'collectives.json')
  options = parser.parse_args()
  measured = []
  for name, axes in MESHES.items():
    with partitioning.use(compiling.mesh(options.topology, **axes)):
      cell = compiling.cell(losses.cat_dist, rows=options.rows, length=options.length)
      collectives = hlo_costs.collectives(hlo.parse(cell.compile().as_text()))
    parameters, activations = split(
      collectives, options.rows // (8 // axes.get('tensor', 1)), options.length
    )
    bound = least(cell, 2)
    sent = parameters + (activations if 'tensor' not in axes else 0)
    measured += [
      Measured(f'{name}: sent / minimum', sent / bound, 'ratio', at_most=BAR),
      Measured(f'{name}: minimum', bound / 1e6, 'MB'),
      Measured(f'{name}: parameters and gradients', parameters / 1e6, 'MB'),
      Measured(f'{name}: hidden states', activations / 1e6, 'MB'),
      *(listed(collective) for collective in collectives[:8]),
    ]  # fmt: skip
  bars.report('Collectives of a step', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
