"""Finished and intact checkpoints of a run directory.

A checkpoint is finished when Orbax has renamed it, or marked it on object stores. It is intact if
its files are those that were written.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from cascades.checkpoints import checksums
from cascades.runtime import files

log = logging.getLogger(__name__)

PREFIX = 'checkpoint'
METADATA = '_CHECKPOINT_METADATA'


class CheckpointError(ValueError):
  """A checkpoint that is missing, damaged, or of another model than expected."""


def steps(directory: epath.Path) -> dict[int, epath.Path]:
  """Paths of the finished checkpoints by step, intact or not; not a collective operation."""
  named = {p: re.fullmatch(rf'{PREFIX}_(\d+)', p.name) for p in directory.glob(f'{PREFIX}_*')}
  return {
    int(name[1]): path
    for path, name in named.items()
    if name and ocp.utils.is_checkpoint_finalized(path)
  }


def recover(directory: epath.PathLike) -> int | None:
  """The step of the newest intact checkpoint, for a run that resumes from it.

  Newer, damaged checkpoints are renamed to damaged_checkpoint_N.

  Returns:
    The step; None if there are no checkpoints.

  Raises:
    CheckpointError: all checkpoints are damaged. Training from the start could be a surprise.
  """
  directory = files.absolute(directory)
  paths = steps(directory)
  unfinished = {p.name for p in directory.glob(f'{PREFIX}_*')} - {p.name for p in paths.values()}
  if unfinished and jax.process_index() == 0:
    log.warning('%s: unfinished, and not read: %s.', directory, ', '.join(sorted(unfinished)))
  if not paths:
    return None
  newest = first_intact(directory, sorted(paths, reverse=True))
  if jax.process_index() == 0:
    for step, path in paths.items():
      # Orbax reads the metrics of all.
      if step > newest or metrics(path) is UNREADABLE:
        _set_aside(path)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('recovered')
  return newest


def first_intact(directory: epath.Path, candidates: Sequence[int]) -> int:
  """The first of these steps whose checkpoint is intact.

  A collective operation: process 0 verifies the files, and all processes get its result.

  Raises:
    CheckpointError: all are damaged.
  """
  index, reasons = -1, []
  for number, step in enumerate(candidates if jax.process_index() == 0 else ()):
    reason = _damage(directory / f'{PREFIX}_{step}')
    if reason is None:
      index = number
      break
    reasons.append(f'{PREFIX}_{step} is damaged: {reason}')
  if jax.process_count() > 1:
    index = int(multihost_utils.broadcast_one_to_all(np.int32(index)))
  if index < 0:
    raise CheckpointError(
      f'{directory}: {"; ".join(reasons) or "see process 0"}. Copy it again from an intact copy, '
      'name another checkpoint, or train again in another MODEL_DIR.'
    )
  for reason in reasons:
    log.warning('%s: %s. Going back to %s_%d.', directory, reason, PREFIX, candidates[index])
  return candidates[index]


def _damage(checkpoint: epath.Path) -> str | None:
  """A description of the damage to a checkpoint; None if it is intact."""
  try:
    json.loads((checkpoint / METADATA).read_text())
  except (ValueError, FileNotFoundError) as error:
    return f'{METADATA} ({error})'
  if not (checkpoint / checksums.MANIFEST).exists():
    log.warning('%s has no %s: its files cannot be verified.', checkpoint, checksums.MANIFEST)
    return None
  return checksums.damage(checkpoint)


def _set_aside(checkpoint: epath.Path) -> None:
  renamed = checkpoint.parent / f'damaged_{checkpoint.name}'
  log.warning('%s is renamed to %s.', checkpoint, renamed.name)
  if renamed.exists():
    renamed.rmtree()
  checkpoint.rename(renamed)


UNREADABLE: Mapping[str, float] = types.MappingProxyType({})


def metrics(checkpoint: epath.Path) -> Mapping[str, float] | None:
  """Validation metrics of a checkpoint; None if it has none, UNREADABLE if they are damaged."""
  file = checkpoint / 'metrics' / 'metrics'
  try:
    return json.loads(file.read_text()) if file.exists() else None
  except ValueError:
    return UNREADABLE


def quality(metrics: Mapping[str, float] | None) -> float:
  """The negative validation loss: greater is better.

  A checkpoint without a validation is worse than any with one, and better than one whose loss is
  not finite.
  """
  loss = metrics.get('loss') if metrics else None
  if loss is None:
    return -sys.float_info.max
  return -loss if math.isfinite(loss) else -math.inf


def best_first(directory: epath.Path, paths: Mapping[int, epath.Path]) -> list[int]:
  """Sorts steps by validation loss, the newest first among equals."""
  qualities = {step: quality(metrics(path)) for step, path in paths.items()}
  if max(qualities.values()) == -math.inf:
    log.warning('%s: no validation loss of a checkpoint is finite: none is good.', directory)
  return sorted(paths, key=lambda step: (qualities[step], step), reverse=True)


class Preservation:
  """Policy of the checkpoints to keep: the newest, the best, and the last sound one.

  A checkpoint is sound if its validation loss is finite, or if updates were applied after it. So a
  single update that ruins the parameters does not cost the last parameters that can be trained.

  Args:
    keep: the number of newest checkpoints.
  """

  def __init__(self, keep: int):
    self._keep = keep
    self._sound: int | None = None

  def judge(
    self, step: int, previous: int | None, validation_loss: float | None, trained: bool
  ) -> None:
    """Takes note of what is known when `step` is saved; `trained`: updates since `previous`."""
    if validation_loss is not None and math.isfinite(validation_loss):
      self._sound = step
    elif trained and previous is not None:
      self._sound = previous

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    """Of each checkpoint, in order of steps: whether it stays. Orbax calls it at every save."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    if self._sound not in steps:
      return [True] * len(steps)
    best = max(checkpoints, key=lambda checkpoint: (quality(checkpoint.metrics), checkpoint.step))
    return [step in (*steps[-self._keep :], best.step, self._sound) for step in steps]
