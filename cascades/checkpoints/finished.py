"""Which checkpoints of a run directory are finished, and which of those are whole.

A checkpoint is finished when Orbax has given it its name, or its mark on object stores. It is whole
if its files are what was written then.
"""

from __future__ import annotations

import json
import logging
import re
import types
from collections.abc import Mapping, Sequence

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
  """A checkpoint that is not there, not whole, or not of the model that is asked for."""


def steps(directory: epath.Path) -> dict[int, epath.Path]:
  """The finished checkpoints, damaged or not. Touches nothing, and no process waits for another."""
  named = {p: re.fullmatch(rf'{PREFIX}_(\d+)', p.name) for p in directory.glob(f'{PREFIX}_*')}
  return {
    int(name[1]): path
    for path, name in named.items()
    if name and ocp.utils.is_checkpoint_finalized(path)
  }


def recover(directory: epath.PathLike) -> int | None:
  """The step of the newest whole checkpoint, for a run that goes on from it.

  Whatever is damaged and in its way is set aside as damaged_checkpoint_N. Raises CheckpointError if
  there are checkpoints and all are damaged: to begin anew would be no surprise to hope for.
  """
  directory = files.absolute(directory)
  places = steps(directory)
  unfinished = {p.name for p in directory.glob(f'{PREFIX}_*')} - {p.name for p in places.values()}
  if unfinished and jax.process_index() == 0:
    log.warning('%s: never finished, and not read: %s.', directory, ', '.join(sorted(unfinished)))
  if not places:
    return None
  found = first_whole(directory, sorted(places, reverse=True))
  if jax.process_index() == 0:
    for step, place in places.items():
      # Orbax reads the metrics of all.
      if step > found or metrics(place) is UNREADABLE:
        _set_aside(place)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('recovered')
  return found


def first_whole(directory: epath.Path, wanted: Sequence[int]) -> int:
  """The first of `wanted` whose checkpoint is whole; all processes get what process 0 finds."""
  found, reasons = -1, []
  for number, step in enumerate(wanted if jax.process_index() == 0 else ()):
    reason = _damage(directory / f'{PREFIX}_{step}')
    if reason is None:
      found = number
      break
    reasons.append(f'{PREFIX}_{step} is damaged: {reason}')
  if jax.process_count() > 1:
    found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
  if found < 0:
    raise CheckpointError(
      f'{directory}: {"; ".join(reasons) or "see process 0"}. Copy it again from where it was '
      'whole, name another one, or train anew in another MODEL_DIR.'
    )
  for reason in reasons:
    log.warning('%s: %s. Going back to %s_%d.', directory, reason, PREFIX, wanted[found])
  return wanted[found]


def _damage(place: epath.Path) -> str | None:
  """What is wrong with a checkpoint, if anything is."""
  try:
    json.loads((place / METADATA).read_text())
  except (ValueError, FileNotFoundError) as error:
    return f'{METADATA} ({error})'
  if not (place / checksums.MANIFEST).exists():
    log.warning('%s has no %s: whether it is whole is not known.', place, checksums.MANIFEST)
    return None
  return checksums.damage(place)


def _set_aside(place: epath.Path) -> None:
  aside = place.parent / f'damaged_{place.name}'
  log.warning('%s is set aside as %s.', place, aside.name)
  if aside.exists():
    aside.rmtree()
  place.rename(aside)


UNREADABLE: Mapping[str, float] = types.MappingProxyType({})


def metrics(place: epath.Path) -> Mapping[str, float] | None:
  """What validation said of a checkpoint, if it was validated."""
  file = place / 'metrics' / 'metrics'
  try:
    return json.loads(file.read_text()) if file.exists() else None
  except ValueError:
    return UNREADABLE


def quality(found: Mapping[str, float] | None) -> float:
  """The greater, the better."""
  return -found['loss'] if found else -float('inf')
