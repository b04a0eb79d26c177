"""Work, memory, and collectives per device as a pod grows, with constant rows per chip.

    python -m benchmarks.weak_scaling

Compiled for v5e slices, not run. Parameters are sharded over all chips of the smallest slice, and
replicas of it share the gradient. Nothing may grow by more than a tenth.
"""

from __future__ import annotations

import argparse

from benchmarks import bars, compiling
from benchmarks.bars import Measured
from cascades import losses
from cascades.performance import roofline
from cascades.runtime import partitioning

TOPOLOGIES = ('v5e:4x4', 'v5e:8x8', 'v5e:16x16')
BAR = 1.1


def measure(topology: str, fsdp: int, rows: int, length: int) -> dict[str, float]:
  mesh = compiling.mesh(topology, fsdp=fsdp)
  with partitioning.use(mesh):
    cell = compiling.cell(losses.cat_dist, rows=rows * mesh.size, length=length)
    compiled = roofline.analyze(cell.compile())
  return {
    'TFLOP': compiled.flops / 1e12,
    'GB of memory traffic': compiled.traffic / 1e9,
    'GB sent': sum(moved.bytes for moved in compiled.collectives.values()) / 1e9,
    'GB stored': compiled.memory.total / 1e9,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--topologies', nargs='+', default=TOPOLOGIES)
  parser.add_argument('--fsdp', type=int, default=16)
  parser.add_argument('--rows', type=int, default=4, help='per chip')
  parser.add_argument('--length', type=int, default=384)
  parser.add_argument('--output', default=bars.RESULTS / 'weak_scaling.json')
  options = parser.parse_args()
  measured, first = [], dict[str, float]()
  for topology in options.topologies:
    quantities = measure(topology, options.fsdp, options.rows, options.length)
    first = first or quantities
    for unit, value in quantities.items():
      measured.append(Measured(f'{topology}: {unit} of a device', value, ''))
      if quantities is not first:
        measured.append(
          Measured(f'{topology}: {unit}, times the first', value / first[unit], '', at_most=BAR)
        )
  bars.report('Weak scaling', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
