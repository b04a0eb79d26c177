"""Profiler traces of a few steps, for TensorBoard's and Perfetto's trace viewers."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Self

import jax
from etils import epath

log = logging.getLogger(__name__)


class Profiler:
  """Context manager that traces steps a to b, given as `steps='a:b'`, into a directory.

  Without `steps` it does nothing.
  """

  def __init__(self, directory: epath.PathLike, steps: str | None):
    self._directory = directory
    self._first, self._last = _parse(steps) if steps else (0, 0)
    self._tracing = False

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.stop()

  @contextlib.contextmanager
  def step(self, number: int) -> Iterator[None]:
    """Context manager for one step, counted from 1; waits for the last step of the trace."""
    if self._first <= number <= self._last and not self._tracing:
      jax.profiler.start_trace(str(self._directory))
      self._tracing = True
    with jax.profiler.StepTraceAnnotation('step', step_num=number):
      yield
    if self._tracing and number >= self._last:
      self.stop()

  def stop(self) -> None:
    """Write the trace; also called when the run ends before step b."""
    if self._tracing:
      jax.effects_barrier()
      jax.profiler.stop_trace()
      self._tracing = False
      log.info('profiler trace in %s', self._directory)


def _parse(steps: str) -> tuple[int, int]:
  match = re.fullmatch(r'(\d+):(\d+)', steps)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise ValueError(
      f'profile_steps is {steps!r}; it must be a:b with 1 <= a <= b, for example 10:15.'
    )
  return int(match[1]), int(match[2])
