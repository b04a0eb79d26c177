"""Reading of the tables of predictions that are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from etils import epath

from cascades.evaluation.quantities import LARGE
from cascades.predictions import alignment, shards
from cascades.predictions.rows import Mode
from cascades.runtime import files
from cascades.types import Predictions


@dataclasses.dataclass(frozen=True)
class Tables:
  """Locations of the tables of predictions of several small models and a large one.

  Attributes:
    small: Output directories of `infer` by model name, or directories, named by their last part.
    large: Output directory of the large model.
    split: Split of the tasks, a folder in each directory.
    tasks: Tasks to compare; None for all tasks of the large model.
    mode: 'predict' for generated answers, 'score' for scored ones.
  """

  small: Mapping[str, str] | Sequence[str]
  large: str
  split: str = 'test'
  tasks: Sequence[str] | None = None
  mode: Mode = 'predict'

  def read(self) -> tuple[dict[str, list[Predictions]], list[Predictions]]:
    """Reads all tables.

    Returns:
      Each small model's tables by name, and the large model's, in the same order of tasks and rows.

    Raises:
      FileNotFoundError: A table is missing or incomplete.
      ValueError: The models' names are not usable, rows have no target, or the tables are not of
        the same tasks and rows.
    """
    directories = self._by_name()
    large = self._read(self.large)
    return {name: self._aligned(path, large) for name, path in directories.items()}, large

  def _by_name(self) -> Mapping[str, str]:
    if isinstance(self.small, Mapping):
      directories = dict(self.small)
    else:
      directories = {epath.Path(path).name: path for path in self.small}
      if len(directories) < len(self.small):
        raise ValueError(
          f'{len(self.small)} small models have only the names {", ".join(directories)}: name them '
          'yourself, small={"name": "directory", ...}.'
        )
    if not directories or LARGE.name in directories:
      raise ValueError(
        'A comparison needs one or more small models, small={"name": "directory", ...}, none of '
        f'them called {LARGE.name!r}; found {", ".join(directories) or "none"}.'
      )
    return directories

  def _read(self, directory: str) -> list[Predictions]:
    path = files.absolute(directory) / self.split
    tables = [
      table
      for task in self.tasks or (None,)
      for table in shards.read(path, task=task, mode=self.mode)
    ]
    for table in tables:
      if count := table.manifest.get('unlabelled', 0):
        raise ValueError(
          f'{count} of {table.manifest["rows"]} rows of task {table.task!r} in {path} have no '
          'target, so no metric can judge their answers: evaluate on a split that has targets.'
        )
    return tables

  def _aligned(self, directory: str, large: Sequence[Predictions]) -> list[Predictions]:
    """A small model's tables in the large one's order of tasks and rows."""
    small = {table.task: table for table in self._read(directory)}
    tasks = [table.task for table in large]
    if set(small) != set(tasks):
      raise ValueError(
        f'{directory}, split {self.split!r}, answers the tasks {sorted(small)} and the large model '
        f'{sorted(tasks)}: infer the missing tasks, or choose common ones with tasks=[...].'
      )
    return [alignment.join(small[table.task], table)[0] for table in large]
