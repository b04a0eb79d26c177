"""Resource use of a training step: memory, estimated by XLA and measured, and the devices' MFU.

MFU (model FLOPs utilization) is the share of the chips' peak that the models themselves need: three
forward passes of the small model (its backward pass costs two) and one of the large one, with
readouts of the tokens that count. Recomputation to save memory does not count.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cascades.performance import chips, flops
from cascades.runtime import progress
from cascades.training.setup import AbstractRun
from cascades.types import Batch, LanguageModel

log = logging.getLogger(__name__)


class Utilization(NamedTuple):
  """Use of the devices.

  Attributes:
    mfu: MFU since the last report; None if the chip is not known.
    memory: the highest use of memory so far, in bytes.
  """

  mfu: float | None
  memory: int

  def notes(self) -> list[str]:
    share = [] if self.mfu is None else [f'MFU {self.mfu:.1%}']
    return [*share, f'memory {progress.format_bytes(self.memory)}']

  def numbers(self) -> dict[str, float]:
    return {'memory': self.memory} | ({} if self.mfu is None else {'mfu': self.mfu})


class ModelFlops(NamedTuple):
  """Operations of matrix products that the models need: forward, and backward if trained.

  Attributes:
    step: for the hidden states of a batch.
    token: to read out one token.
  """

  step: float
  token: float


class UtilizationMeter:
  """Utilization of one run. `compiled` is called with its program before `measure`."""

  def __init__(self) -> None:
    self._flops: ModelFlops | None = None
    self._peak = 0.0  # operations per second of all devices

  def compiled(self, run: AbstractRun, program: jax.stages.Compiled, batch: Batch) -> None:
    """Logs the memory that XLA estimates for a program, which is that of `run` from now on."""
    device = jax.devices()[0]
    chip = chips.of(device)
    log.info('%s', _estimate(program.memory_analysis(), chip))
    if chip:
      self._flops = model_flops(run, batch)
      self._peak = chip.flops * jax.device_count()

  def measure(self, rates: progress.Rates | None) -> Utilization:
    """Utilization at these rates of steps and of tokens that count."""
    if rates is None or self._flops is None:
      return Utilization(None, peak_memory())
    per_second = (
      rates.steps_per_second * self._flops.step + rates.tokens_per_second * self._flops.token
    )
    return Utilization(per_second / self._peak, peak_memory())


def model_flops(abstract: AbstractRun, batch: Batch) -> ModelFlops:
  """Operations that the models need for a batch of this shape.

  The backward pass of adapters beside frozen weights costs one forward pass, not two.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

  def count(forward: Callable[[LanguageModel, Batch], Any]) -> float:
    def small(params: Any, frozen: Any, batch: Batch) -> Any:
      return forward(abstract.small.bind(params, frozen.base), batch)

    def large(params: Any, frozen: Any, batch: Batch) -> Any:
      del params
      return abstract.large and forward(abstract.large.bind(frozen.large), batch)

    passes = {small: 3 if abstract.frozen.base is None else 2, large: 1}
    arguments = abstract.state.params, abstract.frozen, shapes
    return sum(n * flops.flops_of(forward_pass, *arguments) for forward_pass, n in passes.items())

  hidden = count(lambda model, batch: model.hidden(batch))
  logits = count(lambda model, batch: model.readout(model.hidden(batch)))
  return ModelFlops(hidden, (logits - hidden) / batch.targets.size)


def peak_memory() -> int:
  """Peak memory in bytes: of the first device, or of the process where devices do not report it."""
  stats = jax.local_devices()[0].memory_stats() or {}
  host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return stats.get('peak_bytes_in_use', host)


def _estimate(analysis: Any, chip: chips.Chip | None) -> str:
  """Log line of XLA's estimate for one device: arguments, temporaries, and new results."""
  sizes = {
    'parameters, state and batch': analysis.argument_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'new results': analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
  }
  terms = ', '.join(f'{progress.format_bytes(size)} {name}' for name, size in sizes.items())
  total = progress.format_bytes(sum(sizes.values()))
  capacity = f' of the {progress.format_bytes(chip.hbm)} of a {chip.name}' if chip else ''
  return f'XLA estimates that a step takes {total}{capacity} on each device: {terms}'
