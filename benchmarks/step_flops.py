"""Work of cascade-aware training and of every divergence compared with the minimum.

    python -m benchmarks.step_flops

Operations of a step, counted from its jaxpr with the trips of loops, over those of the Xent step
and, where the large model runs beside the small one, a forward pass of it. `gatekeeper` has no
large model, and `adaspec` reads its teacher and the divergence of its reference from a cache, as
the forward KL does here too: their minimum is the Xent step alone. Nothing is compiled or run.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import jax

from benchmarks import bars, compiling
from benchmarks.bars import Measured
from cascades import losses
from cascades.performance import flops
from cascades.performance.flops import Work
from cascades.runtime import partitioning
from cascades.training.answer_format import AnswerFormat

BAR = 1.03
BAR_OF_DIVERGENCES = 1.05
ANSWERS = AnswerFormat(36, 'uint8', short_ids=True, reference=True)


class Case(NamedTuple):
  """A loss, what teaches it, and the bar of its step: by default a large model that runs."""

  loss: losses.CascadeLoss
  bar: float = BAR_OF_DIVERGENCES
  runs_large: bool = True
  cached: AnswerFormat | None = None


CASES = {
  'CAT-Xent': Case(losses.cat_xent, BAR),
  'CAT-Dist': Case(losses.cat_dist, BAR),
  'forward KL': Case(losses.distillspec_fkl),
  'reverse KL': Case(losses.distillspec_rkl),
  'JSD(0.5)': Case(losses.distillspec_jsd),
  'total variation': Case(losses.distillspec_tvd),
  'skew forward KL': Case(losses.distillspec_skew_fkl),
  'skew reverse KL': Case(losses.distillspec_skew_rkl),
  'cat_gatekeeper': Case(losses.cat_gatekeeper),
  'gatekeeper': Case(losses.gatekeeper, runs_large=False),
  'adaspec, from a cache': Case(losses.adaspec, runs_large=False, cached=ANSWERS),
  'forward KL, from a cache': Case(losses.distillspec_fkl, runs_large=False, cached=ANSWERS),
}


def forward(cell: compiling.Cell) -> Work:
  """Work of the large model: hidden states and logits of all positions, without a loss."""
  large = cell.abstract.large
  assert large is not None

  def logits(params: Any, batch: Any) -> jax.Array:
    model = large.bind(params)
    return model.readout(model.hidden(batch))

  return flops.work_of(logits, cell.abstract.frozen.large, cell.batch)


class Steps:
  """Work of steps on the active mesh, of the models of `compiling.wide_vocabulary`.

  Attributes:
    xent: the Xent step.
    large: a forward pass of the large model.
  """

  def __init__(self, *, rows: int, length: int, vocab_size: int):
    self._sizes = {'rows': rows, 'length': length}
    self._small, self._large = compiling.wide_vocabulary(vocab_size)
    self.xent = self._work(self._cell(Case(losses.xent, runs_large=False)))
    self.large = forward(self._cell(Case(losses.cat_xent)))

  def ratios(self, case: Case) -> tuple[float, float]:
    """Products of a step over their minimum, and the same of products and elementwise work."""
    work = self._work(self._cell(case))
    least = self.xent + self.large if case.runs_large else self.xent
    total = (work.flops + work.elementwise) / (least.flops + least.elementwise)
    return work.flops / least.flops, total

  def _cell(self, case: Case) -> compiling.Cell:
    large = self._large if case.runs_large else None
    return compiling.cell(
      case.loss, small=self._small, large=large, cached=case.cached, **self._sizes
    )

  def _work(self, cell: compiling.Cell) -> Work:
    return flops.work_of(cell.step, *cell.arguments)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rows', type=int, default=4)
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--vocab_size', type=int, default=262_144)
  parser.add_argument('--output', default=bars.RESULTS / 'step_flops.json')
  options = parser.parse_args()
  measured = []
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    steps = Steps(rows=options.rows, length=options.length, vocab_size=options.vocab_size)
    for name, case in CASES.items():
      products, total = steps.ratios(case)
      measured += [
        Measured(f'{name}: products / minimum', products, '', at_most=case.bar),
        Measured(f'{name}: products and elementwise / minimum', total, '', at_most=case.bar),
      ]
  measured += [
    Measured('Xent step', steps.xent.flops / 1e12, 'TFLOP'),
    Measured('forward pass of the large model', steps.large.flops / 1e12, 'TFLOP'),
  ]
  bars.report('Operations of a step', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
