"""Scores of training rows on disk, and the rows that they select.

A directory `SELECTED/<task>/train` has shards of JSON lines, `{"id": "r7", "score": 1.25}`, with
null for minus infinity, each with a marker of completeness, and `manifest.json`, their origin.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from cascades import selection
from cascades.predictions import markers
from cascades.predictions.rows import convert
from cascades.runtime import files, origins, ranges

log = logging.getLogger(__name__)

MANIFEST = 'manifest.json'
COMMAND = 'python -m cascades.select'


class _Manifest(msgspec.Struct):
  """Required keys of a manifest; others are kept as they are."""

  origin: dict[str, Any]
  rows: Annotated[int, msgspec.Meta(ge=0)]
  shard_rows: Annotated[int, msgspec.Meta(ge=1)]


@dataclasses.dataclass(frozen=True)
class Selection:
  """The rows of the highest scores, in place of all training rows.

  Attributes:
    directory: Directory that `cascades.select` wrote.
    rows: Number of rows of each task, or a fraction of its rows below 1.
    steps: Number of first steps that read them; later steps read all rows. None for all steps.
  """

  directory: str
  rows: float = 0.2
  steps: int | None = None

  def __post_init__(self) -> None:
    ranges.check({'SELECTED_STEPS': self.steps}, least=0, integer=True)
    ranges.check({'SELECTED_ROWS': self.rows}, above=0, integer=self.rows >= 1)


def selected(
  directory: str | None, *, rows: float = 0.2, steps: int | None = None
) -> Selection | None:
  """Makes a `Selection` of the rows in a directory of scores; None without a directory."""
  return None if directory is None else Selection(directory, rows, steps)


class SelectedRows(NamedTuple):
  """Rows that the first steps of training read.

  Attributes:
    rows: numbers of each task's rows.
    steps: the number of these steps; None for all.
  """

  rows: Sequence[Int[np.ndarray, 'n']]
  steps: int | None


def location(directory: epath.PathLike, task: str) -> epath.Path:
  """Directory of the scores of a task's training rows."""
  return files.absolute(directory) / files.component(task, 'a task') / 'train'


class ScoreTable(NamedTuple):
  """Scores of the training rows of a task, finished or not.

  Attributes:
    directory: from `location`.
    origin: model, task and kind of score, as JSON; it decides about the scores.
    rows: number of rows.
    shard_rows: number of rows of a shard, about.
  """

  directory: epath.Path
  origin: Mapping[str, Any]
  rows: int
  shard_rows: int

  @property
  def shards(self) -> dict[int, range]:
    """Numbers of the rows of each shard."""
    begins = range(0, self.rows, self.shard_rows)
    return {
      index: range(begin, min(begin + self.shard_rows, self.rows))
      for index, begin in enumerate(begins)
    }

  @property
  def fingerprint(self) -> str:
    """Digest of the origin."""
    return hashlib.sha256(json.dumps(self.origin, sort_keys=True).encode()).hexdigest()

  def begin(self, notes: Mapping[str, Any], *, overwrite: bool) -> None:
    """Writes the manifest, with `notes` besides the origin.

    Raises:
      ValueError: naming the differences, if the directory has scores of another origin and they are
        not to be overwritten.
    """
    path = self.directory / MANIFEST
    if path.exists():
      try:
        check(self.directory, self.origin, 'OVERWRITE=True replaces them.')
      except ValueError:
        if not overwrite:
          raise
        self.directory.rmtree()
    sizes = {'rows': self.rows, 'shard_rows': self.shard_rows}
    manifest = {**notes, 'origin': self.origin, **sizes}
    files.write(path, json.dumps(manifest, indent=2) + '\n')

  def missing(self) -> list[int]:
    """Indices of the shards that are not complete."""
    return [index for index in self.shards if self._defect(index)]

  def write(self, index: int, ids: Sequence[str], scores: Float[np.ndarray, 'n']) -> None:
    """Writes a shard."""
    lines = [
      json.dumps({'id': name, 'score': score if np.isfinite(score) else None}) + '\n'
      for name, score in zip(ids, map(float, scores), strict=True)
    ]
    data = ''.join(lines).encode()
    markers.write(self._path(index), data, rows=len(ids), fingerprint=self.fingerprint)

  def read(self) -> Float[np.ndarray, 'N']:
    """Reads the scores of all rows; ValueError if a shard is missing or damaged."""
    scores = []
    for index in self.shards:
      if defect := self._defect(index):
        raise ValueError(
          f'the scores {self._path(index)} cannot be used: the file {defect}. Run the same '
          f'`{COMMAND}` again: it computes what is missing.'
        )
      lines = self._path(index).read_text().splitlines()
      scores += [json.loads(line)['score'] for line in lines]
    return np.array([-np.inf if score is None else score for score in scores], np.float32)

  def _path(self, index: int) -> epath.Path:
    return self.directory / f'scores.jsonl-{index:05d}-of-{len(self.shards):05d}'

  def _defect(self, index: int) -> str:
    rows = len(self.shards[index])
    return markers.defect(self._path(index), rows=rows, fingerprint=self.fingerprint)


def check(directory: epath.Path, expected: Mapping[str, Any], remedy: str) -> Mapping[str, Any]:
  """The manifest of a directory of scores, checked to be of the expected origin.

  Raises:
    FileNotFoundError: if there are no scores.
    ValueError: naming the differences, if they are of another origin, or the manifest is damaged.
  """
  path = directory / MANIFEST
  if not path.exists():
    raise FileNotFoundError(f'{directory} holds no scores of rows: make them with `{COMMAND}`.')
  try:
    manifest = json.loads(path.read_bytes())
    origin = convert(manifest, _Manifest).origin
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'{path} is damaged ({error}): remove the directory, and make it again with `{COMMAND}`.'
    ) from error
  if different := origins.differences(origin, json.loads(json.dumps(dict(expected)))):
    raise ValueError(
      f'{directory} holds scores of something else: {"; ".join(different)}. {remedy}'
    )
  return manifest


def read_pool(
  chosen: Selection, identities: Mapping[str, Mapping[str, Any]], rows: Mapping[str, int]
) -> SelectedRows:
  """Reads the rows that a selection takes of each task.

  Args:
    chosen: directory, number of rows and steps.
    identities: identity of each task's rows, which its scores must have.
    rows: number of each task's rows.

  Raises:
    FileNotFoundError: if a task has no scores.
    ValueError: if scores are of other rows, incomplete, or too few.
  """
  pools = []
  for task, identity in identities.items():
    directory = location(chosen.directory, task)
    expected = {**identity, 'rows': rows[task]}
    manifest = check(directory, expected, f'Make them with `{COMMAND}` for these rows (SELECTED).')
    table = ScoreTable(directory, manifest['origin'], manifest['rows'], manifest['shard_rows'])
    try:
      pools.append(selection.best(table.read(), chosen.rows))
    except ValueError as error:
      raise ValueError(f'SELECTED_ROWS={chosen.rows} of {directory}: {error}') from error
    log.info(
      '%s: %d of %d rows are selected%s, by their scores in %s.',
      *(task, len(pools[-1]), rows[task]),
      '' if chosen.steps is None else f', for the first {chosen.steps} steps',
      directory,
    )
  return SelectedRows(pools, chosen.steps)
