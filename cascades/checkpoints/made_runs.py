"""Run directories of weights that were not trained, such as conversions; none is written over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from cascades.checkpoints import finished, store
from cascades.checkpoints.store import CheckpointError
from cascades.runtime import files
from cascades.runtime.locking import LOCK

_FILES = (
  *('huggingface', 'config.gin', 'sentencepiece.model', 'tokenizer.json', 'vocabulary.json'),
  *(store.DESCRIPTION, store.MANIFEST),  # last, so that what is left is recognized
)


def check(
  directory: epath.PathLike,
  description: Mapping[str, Any],
  origin: Mapping[str, Any],
  *,
  source: epath.PathLike,
  overwrite: bool = False,
) -> bool:
  """Checks that a run may be written to a directory.

  Args:
    directory: the run directory.
    description: of the model and vocabulary, as in model.json.
    origin: the source and options, as in manifest.json.
    source: what the run is made of.
    overwrite: another run that was not trained is no obstacle, nor are other files.

  Returns:
    True if the directory holds this very run already, complete, and is not to be overwritten.

  Raises:
    CheckpointError: the directory holds another run, or other files. The message names them.
  """
  directory, source = files.absolute(directory), files.absolute(source)
  names = _names(directory)
  if directory in (source, *source.parents):
    raise CheckpointError(f'{directory} holds the source, {source}: choose another MODEL_DIR.')
  if overwrite:
    if _checkpoints(names) and store.MANIFEST not in names:
      raise CheckpointError(
        f'{directory} holds checkpoints of a training run, which OVERWRITE=True does not remove: '
        'choose another MODEL_DIR, or remove that one yourself.'
      )
    return False
  if store.DESCRIPTION in names or store.MANIFEST in names:
    try:
      return store.is_made(directory, description, origin)
    except CheckpointError as error:
      raise CheckpointError(f'{error} OVERWRITE=True replaces it.') from error
  if names:
    raise CheckpointError(
      f'{directory} holds no run, but {", ".join(map(repr, names[:5]))}'
      f'{" ..." if len(names) > 5 else ""}: choose another MODEL_DIR, or set OVERWRITE=True to '
      'write beside these files.'
    )
  return False


def begin(
  directory: epath.PathLike,
  description: Mapping[str, Any],
  origin: Mapping[str, Any],
  *,
  overwrite: bool = False,
) -> None:
  """Removes what `check` allowed to overwrite, and says first what the directory will hold.

  Files that belong to no run stay. Only process 0 does anything.
  """
  if jax.process_index() > 0:
    return
  directory = files.absolute(directory)
  names = _names(directory) if overwrite else []
  for path in (directory / name for name in (*_checkpoints(names), *_FILES) if name in names):
    if path.is_dir() and not os.path.islink(path):
      path.rmtree()
    else:
      path.unlink()
  files.remove_leftovers(directory / 'huggingface')
  store.write_description(directory, origin, store.MANIFEST)
  store.write_description(directory, description)


def _checkpoints(names: list[str]) -> list[str]:
  return [name for name in names if name.startswith(f'{finished.PREFIX}_')]


def _names(directory: epath.Path) -> list[str]:
  if directory.exists() and not directory.is_dir():
    raise CheckpointError(f'{directory} is a file: choose another MODEL_DIR.')
  names = (path.name for path in directory.iterdir()) if directory.is_dir() else ()
  return sorted(name for name in names if name != LOCK and not files.is_leftover(name))
