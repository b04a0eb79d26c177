"""Metrics of a training run: one JSON line per report, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Self

import jax
from etils import epath

from cascades.runtime import files, progress

METRICS = 'metrics.jsonl'
EVENTS = 'train'


class MetricsLog:
  """Appends to metrics.jsonl in a run directory, and to TensorBoard event files in its train/.

  Lines of steps that a killed run took after its last checkpoint, and that the resumed run takes
  again, are removed; so the file holds every report once. In a directory without the file, lines
  start with what the event files hold.
  """

  def __init__(self, directory: epath.Path, *, first_step: int = 0):
    """Opens the log of a run that resumes after `first_step`."""
    self._path = directory / METRICS
    self._is_writer = jax.process_index() == 0
    if self._is_writer:
      past = {step: values for step, values in read(directory).items() if step <= first_step}
      if past or self._path.exists():
        lines = [f'{_to_line(step, values)}\n' for step, values in past.items()]
        files.write(self._path, ''.join(lines))
    self._events = progress.Events(directory / EVENTS, first_step=first_step)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self._events.__exit__(*exception)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes a step's values by name, on disk when this returns. Raises OSError."""
    if self._is_writer:
      files.append(self._path, _to_line(step, values))
    self._events.write(step, values)


def read(directory: epath.PathLike) -> dict[int, dict[str, float]]:
  """Values by name of every logged step of a run directory, in order; empty without any.

  Directories without metrics.jsonl are read from their event files, the last value of each step.
  """
  path = epath.Path(directory) / METRICS
  if path.exists():
    lines = filter(None, map(_parse, path.read_text().splitlines()))
    return {int(line.pop('step')): {k: float(v) for k, v in line.items()} for line in lines}
  values: dict[int, dict[str, float]] = {}
  for step, name, value in progress.read_events(epath.Path(directory) / EVENTS):
    values.setdefault(step, {})[name] = value
  return dict(sorted(values.items()))


def _to_line(step: int, values: Mapping[str, float]) -> str:
  # Numbers that JSON does not have are text.
  finite = {k: float(v) if math.isfinite(v) else repr(float(v)) for k, v in values.items()}
  return json.dumps({'step': step, **finite}, allow_nan=False)


def _parse(line: str) -> dict[str, Any] | None:
  """A line's values; None for one that was cut."""
  try:
    return json.loads(line)
  except ValueError:
    return None
