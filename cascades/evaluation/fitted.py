"""Storage of learned deciders: arrays and JSON, without pickles.

    NAME.npz    arrays of `Fitted`
    NAME.json   written last: recipe, features, rows, and the digest of NAME.npz

A file that is damaged, or of another version, is refused by name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from typing import Any

import msgspec
import numpy as np
from etils import epath

from cascades.learned_deferral import Fitted, Recipe
from cascades.predictions import rows
from cascades.predictions.rows import Finite, Positive
from cascades.predictors import Options
from cascades.runtime import files

VERSION = 1


class _Settings(msgspec.Struct):
  version: int
  name: str
  recipe: dict[str, Any]
  width: int
  rows: Positive
  flops: Finite
  arrays: dict[str, list[int]]  # shapes
  sha256: str


def write(directory: epath.PathLike, fitted: Fitted) -> epath.Path:
  """Writes a learned decider, atomically, in place of one of its name.

  Args:
    directory: Folder of the files.
    fitted: The decider; its name names the files.

  Returns:
    The path of NAME.json, for `read`.
  """
  path = epath.Path(directory) / f'{files.component(fitted.name, "a decider")}.json'
  buffer = io.BytesIO()
  arrays = {name: np.asarray(array) for name, array in sorted(fitted.arrays.items())}
  np.savez(buffer, allow_pickle=False, **arrays)
  data = buffer.getvalue()
  settings = {
    'version': VERSION,
    'name': fitted.name,
    'recipe': dataclasses.asdict(fitted.recipe),
    'width': fitted.width,
    'rows': fitted.rows,
    'flops': fitted.flops,
    'arrays': {name: list(array.shape) for name, array in arrays.items()},
    'sha256': hashlib.sha256(data).hexdigest(),
  }
  files.write(path.with_suffix('.npz'), data)
  files.write(path, json.dumps(settings, indent=2, allow_nan=False) + '\n')
  return path


def read(path: epath.PathLike) -> Fitted:
  """Reads a learned decider.

  Args:
    path: Path of its NAME.json.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: A file is damaged, or of another version, naming the file and the reason.
  """
  path = epath.Path(path)
  npz = path.with_suffix('.npz')
  for file in (path, npz):
    if not file.exists():
      raise FileNotFoundError(
        f'{file} does not exist; a learned decider is a file NAME.json and a file NAME.npz beside '
        'it, as `python -m cascades.evaluate` with LEARNED writes them.'
      )
  try:
    content = json.loads(path.read_bytes(), parse_constant=rows.refuse_constant)
    settings = rows.convert(content, _Settings)
    if settings.version != VERSION:
      raise ValueError(f'version: expected {VERSION} of the format, found {settings.version}')
    options = settings.recipe.pop('options')
    recipe = Recipe(**settings.recipe, options=Options(**options))
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise ValueError(f'{path} is not a learned decider: {error}. Fit it again.') from error
  data = npz.read_bytes()
  if hashlib.sha256(data).hexdigest() != settings.sha256:
    raise ValueError(f'{npz} is damaged, or not of {path.name}: fit the decider again.')
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
    if {name: list(array.shape) for name, array in arrays.items()} != settings.arrays:
      raise ValueError('its arrays have other names or shapes than the settings say')
    fitted = Fitted(settings.name, recipe, settings.width, settings.rows, settings.flops, arrays)
    _check(fitted)
  except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f'{npz} does not hold what {path.name} describes: {error}.') from error
  return fitted


def _check(fitted: Fitted) -> None:
  """Raises an error unless the arrays are numbers of which a prediction can be made."""
  for name, array in fitted.arrays.items():
    if array.dtype.kind not in 'fiu' or not np.isfinite(array).all():
      raise ValueError(f'{name} holds other things than finite numbers')
    if name.endswith(('/left', '/right')):
      seed = name.rpartition('/')[0]
      inner = np.flatnonzero(fitted.arrays[f'{seed}/feature'] >= 0)
      # Children come after their parents, or a prediction would never end.
      if (array[inner] <= inner).any() or (array >= len(array)).any():
        raise ValueError(f'{name} names nodes that are no children')
  if len(fitted.arrays['mean']) != len(fitted.arrays['scale']):
    raise ValueError('mean and scale are of different features')
  fitted.predict(np.zeros((1, len(fitted.arrays['mean']))))
