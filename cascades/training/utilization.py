"""What a step takes of its devices: memory as XLA estimates it and as it is, and their operations.

MFU is the share of the chips' peak that goes into the operations which the models themselves need:
three forward passes' worth of the small model (its backward pass is two) and one of the large, with
readouts of the tokens that count. What is recomputed to save memory does not count.
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


class Used(NamedTuple):
  """Since the last line: the share of the peak, if the chip is known; at most so far: bytes."""

  mfu: float | None
  memory: int

  def notes(self) -> list[str]:
    share = [] if self.mfu is None else [f'MFU {self.mfu:.1%}']
    return [*share, f'memory {progress.format_bytes(self.memory)}']

  def numbers(self) -> dict[str, float]:
    return {'memory': self.memory} | ({} if self.mfu is None else {'mfu': self.mfu})


class Needs(NamedTuple):
  """Operations of matrix products that the models need: forward, and backward if trained."""

  step: float  # for the hidden states of a batch
  token: float  # to read out one of its tokens


class Usage:
  """Of one run, told of its program when that is compiled."""

  def __init__(self, parts: AbstractRun):
    self._parts = parts
    self._needs: Needs | None = None
    self._peak = 0.0  # a second, of all devices

  def compiled(self, program: jax.stages.Compiled, batch: Batch) -> None:
    """Says what the program needs."""
    device = jax.devices()[0]
    chip = chips.of(device)
    log.info('%s', _estimate(program.memory_analysis(), chip))
    if chip:
      self._needs = needs(self._parts, batch)
      self._peak = chip.flops * jax.device_count()

  def now(self, rates: progress.Rates | None) -> Used:
    if rates is None or self._needs is None:
      return Used(None, peak_memory())
    per_second = (
      rates.steps_per_second * self._needs.step + rates.tokens_per_second * self._needs.token
    )
    return Used(per_second / self._peak, peak_memory())


def needs(parts: AbstractRun, batch: Batch) -> Needs:
  """What the models need for a batch, whatever of it counts.

  Beside frozen weights, adapters' backward pass is one forward pass's worth, not two.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

  def of(forward: Callable[[LanguageModel, Batch], Any]) -> float:
    def small(params: Any, frozen: Any, batch: Batch) -> Any:
      return forward(parts.small.bind(params, frozen.base), batch)

    def large(params: Any, frozen: Any, batch: Batch) -> Any:
      del params
      return parts.large and forward(parts.large.bind(frozen.large), batch)

    passes = {small: 3 if parts.frozen.base is None else 2, large: 1}
    arguments = parts.state.params, parts.frozen, shapes
    return sum(times * flops.flops_of(one, *arguments) for one, times in passes.items())

  hidden = of(lambda model, batch: model.hidden(batch))
  whole = of(lambda model, batch: model.readout(model.hidden(batch)))
  return Needs(hidden, (whole - hidden) / batch.targets.size)


def peak_memory() -> int:
  """Bytes: of the first device, or of the process where devices do not say."""
  stats = jax.local_devices()[0].memory_stats() or {}
  host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return stats.get('peak_bytes_in_use', host)


def _estimate(analysis: Any, chip: chips.Chip | None) -> str:
  """XLA's own, of one device: what a step is given, needs in between, and gives back anew."""
  parts = {
    'parameters, state and batch': analysis.argument_size_in_bytes,
    'temporaries': analysis.temp_size_in_bytes,
    'new results': analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
  }
  said = ', '.join(f'{progress.format_bytes(size)} {name}' for name, size in parts.items())
  total = progress.format_bytes(sum(parts.values()))
  room = f' of the {progress.format_bytes(chip.hbm)} of a {chip.name}' if chip else ''
  return f'XLA estimates that a step takes {total}{room} on each device: {said}'
