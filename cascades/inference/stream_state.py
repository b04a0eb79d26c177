"""State of a stream as the content of a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cascades.inference.levels import Level
from cascades.inference.stream_files import Saved
from cascades.online import OnlineState, Waiting

PLAIN = ('caches', 'updates', 'calls', 'threshold', 'share', 'waiting', 'spent', 'unit')


def pack(state: OnlineState, levels: Sequence[Level], values: Mapping[str, Any]) -> Saved:
  """Content of a checkpoint.

  Args:
    state: State of the cascade.
    levels: Its small models.
    values: What else is to be stored, as JSON.
  """
  leaves = jax.tree.leaves((state.gates, state.moments))
  arrays = {f'gates/{i}': np.asarray(leaf) for i, leaf in enumerate(leaves)}
  for i, level in enumerate(levels):
    arrays |= {f'level {i}/{name}': value for name, value in level.state().items()}
  return Saved(arrays, {**values, 'state': {name: getattr(state, name) for name in PLAIN}})


def unpack(saved: Saved, start: OnlineState, levels: Sequence[Level]) -> OnlineState:
  """State of a checkpoint; the small models are restored in place.

  Args:
    saved: Content of the checkpoint.
    start: State of the same cascade before its first query.
    levels: Its small models, which have learned nothing.
  """
  before = jax.tree.leaves((start.gates, start.moments))
  leaves = [saved.arrays[f'gates/{i}'] for i in range(len(before))]
  gates, moments = jax.tree.unflatten(jax.tree.structure((start.gates, start.moments)), leaves)
  for i, level in enumerate(levels):
    prefix = f'level {i}/'
    own = {
      name.removeprefix(prefix): value
      for name, value in saved.arrays.items()
      if name.startswith(prefix)
    }
    level.restore(own)
  stored = saved.values['state']
  caches = tuple(tuple((text, label) for text, label in own) for own in stored['caches'])
  waiting = tuple(
    Waiting(due, query, tuple(map(tuple, probabilities)), label)
    for due, query, probabilities, label in stored['waiting']
  )
  return OnlineState(
    gates, moments, caches, tuple(stored['updates']), stored['calls'], stored['threshold'],
    stored['share'], waiting, stored['spent'], stored['unit'],
  )  # fmt: skip
