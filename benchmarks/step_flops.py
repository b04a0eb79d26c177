"""Work of cascade-aware training compared with the minimum.

    python -m benchmarks.step_flops

Operations of the CAT-Xent and CAT-Dist steps and of every divergence's, counted from their jaxprs
with the trips of loops, over those of the Xent step and a forward pass of the large model. Nothing
is compiled or run.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax

from benchmarks import bars, compiling
from benchmarks.bars import Measured
from cascades import losses
from cascades.performance import flops
from cascades.performance.flops import Work
from cascades.runtime import partitioning

BAR = 1.03
BAR_OF_DIVERGENCES = 1.05
LOSSES = {
  'CAT-Xent': (losses.cat_xent, BAR),
  'CAT-Dist': (losses.cat_dist, BAR),
  'forward KL': (losses.distillspec_fkl, BAR_OF_DIVERGENCES),
  'reverse KL': (losses.distillspec_rkl, BAR_OF_DIVERGENCES),
  'JSD(0.5)': (losses.distillspec_jsd, BAR_OF_DIVERGENCES),
  'total variation': (losses.distillspec_tvd, BAR_OF_DIVERGENCES),
  'skew forward KL': (losses.distillspec_skew_fkl, BAR_OF_DIVERGENCES),
  'skew reverse KL': (losses.distillspec_skew_rkl, BAR_OF_DIVERGENCES),
  'cat_gatekeeper': (losses.cat_gatekeeper, BAR_OF_DIVERGENCES),
}


def forward(cell: compiling.Cell) -> Work:
  """Work of the large model: hidden states and logits of all positions, without a loss."""
  large = cell.abstract.large
  assert large is not None

  def logits(params: Any, batch: Any) -> jax.Array:
    model = large.bind(params)
    return model.readout(model.hidden(batch))

  return flops.work_of(logits, cell.abstract.frozen.large, cell.batch)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rows', type=int, default=4)
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--vocab_size', type=int, default=262_144)
  parser.add_argument('--output', default=bars.RESULTS / 'step_flops.json')
  options = parser.parse_args()
  small, large = compiling.wide_vocabulary(options.vocab_size)
  measured = []
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):

    def of(loss: losses.CascadeLoss, teacher: Any) -> compiling.Cell:
      return compiling.cell(
        loss, rows=options.rows, length=options.length, small=small, large=teacher
      )

    plain, cat = of(losses.xent, None), of(losses.cat_xent, large)
    alone, teacher = flops.work_of(plain.step, *plain.arguments), forward(cat)
    for name, (loss, bar) in LOSSES.items():
      cell = of(loss, large)
      work = flops.work_of(cell.step, *cell.arguments)
      least = alone + teacher
      measured += [
        Measured(f'{name}: products / minimum', work.flops / least.flops, '', at_most=bar),
        Measured(
          f'{name}: products and elementwise / minimum',
          (work.flops + work.elementwise) / (least.flops + least.elementwise),
          '',
          at_most=bar,
        ),
      ]
  measured += [
    Measured('Xent step', alone.flops / 1e12, 'TFLOP'),
    Measured('forward pass of the large model', teacher.flops / 1e12, 'TFLOP'),
  ]
  bars.report('Operations of a step', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
