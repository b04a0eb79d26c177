"""Reading of the tables of predictions that are compared."""

from __future__ import annotations

import dataclasses
import logging
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from etils import epath

from cascades.evaluation.quantities import LARGE
from cascades.evaluation.seeds import FEWEST
from cascades.predictions import alignment, shards, sidecars
from cascades.predictions.rows import Mode
from cascades.runtime import files
from cascades.types import Predictions

log = logging.getLogger(__name__)

PROMPT, FIRST_LAYER, NEXT_FIRST_LAYER = 'prompt', 'first_layer', 'next_first_layer'


@dataclasses.dataclass(frozen=True)
class Tables:
  """Locations of the tables of predictions of several small models and a large one.

  Attributes:
    small: Output directories of `infer` by model name, or directories, named by their last part.
      Several directories of one name are training seeds of one recipe.
    large: Output directory of the large model.
    split: Split of the tasks, a folder in each directory.
    tasks: Tasks to compare; None for all tasks of the large model.
    mode: 'predict' for generated answers, 'score' for scored ones.
    allow_differences: Properties in which a small model's tables may differ from the large one's:
      'inputs', 'definition' (of the task), 'precision', 'weights', or an option of decoding such as
      'temperature'.
    require_targets: Refuse rows without targets.
    embeddings: Names of arrays beside the small models' tables that are read with them;
      NEXT_FIRST_LAYER is 'first_layer' of the large model.
  """

  small: Mapping[str, str | Sequence[str]] | Sequence[str]
  large: str
  split: str = 'test'
  tasks: Sequence[str] | None = None
  mode: Mode = 'predict'
  allow_differences: Sequence[str] = ()
  require_targets: bool = True
  embeddings: Sequence[str] = ()

  def __post_init__(self) -> None:
    files.component(self.split, 'a split')
    if self.mode not in get_args(Mode):
      raise ValueError(f'MODE={self.mode!r:.80} is none of {", ".join(get_args(Mode))}.')

  def read(self) -> tuple[dict[str, list[Predictions]], list[Predictions]]:
    """Reads all tables.

    Returns:
      Each small model's tables by name, and the large model's, in the same order of tasks and rows.

    Raises:
      FileNotFoundError: A table is missing or incomplete.
      ValueError: The models' names are not usable, rows have no target, or the tables are not of
        the same tasks and rows, or not made alike.
    """
    directories = self._by_name()
    for recipe, models in self.recipes.items():
      if len(models) < FEWEST:
        log.warning(
          '%s has %d training seeds; bands over fewer than %d are too narrow where seeds vary more '
          'than examples.', recipe, len(models), FEWEST,
        )  # fmt: skip
    if repeated := [task for task, count in Counter(self.tasks or ()).items() if count > 1]:
      raise ValueError(f'The tasks name {", ".join(map(repr, repeated))} more than once.')
    reads_next = NEXT_FIRST_LAYER in self.embeddings
    large = self._read(self.large, [FIRST_LAYER] if reads_next else [])
    return {name: self._aligned(path, large) for name, path in directories.items()}, large

  @property
  def recipes(self) -> dict[str, tuple[str, ...]]:
    """Names of the models that are training seeds of one recipe, by recipe."""
    by_name = self.small if isinstance(self.small, Mapping) else {}
    return {
      recipe: tuple(f'{recipe}, seed {number}' for number in range(1, 1 + len(seeds)))
      for recipe, seeds in by_name.items()
      if not isinstance(seeds, str) and len(seeds) > 1
    }

  def flops_of(self, name: str) -> float:
    """FLOPs of computing an embedding of one query that a small model has not computed anyway."""
    if name not in (PROMPT, NEXT_FIRST_LAYER):
      return 0.0
    first = next(iter(self._by_name().values()))
    location, stored = (first, PROMPT) if name == PROMPT else (self.large, FIRST_LAYER)
    path = files.absolute(location) / self.split
    tables = self._read(location, [])
    origins = [sidecars.read(path, stored, table).manifest['origin'] for table in tables]
    rows = [len(table.ids) for table in tables]
    flops = [origin.get('flops_per_query', 0.0) for origin in origins]
    return sum(map(operator.mul, rows, flops)) / sum(rows)

  def _by_name(self) -> dict[str, str]:
    if isinstance(self.small, Mapping):
      if empty := [name for name, own in self.small.items() if not own]:
        raise ValueError(f'SMALL has no directory for {empty[0]!r}: give one, or a list of them.')
      directories = {
        name: path
        for recipe, own in self.small.items()
        for name, path in zip(
          self.recipes.get(recipe, (recipe,)), [own] if isinstance(own, str) else own, strict=True
        )
      }
      if len(directories) < sum(len(self.recipes.get(name, (name,))) for name in self.small):
        raise ValueError(f'SMALL names a model twice: {", ".join(directories)}.')
    else:
      directories = {epath.Path(path).name: path for path in self.small}
      if len(directories) < len(self.small):
        raise ValueError(
          f'{len(self.small)} small models have only the names {", ".join(directories)}: name them '
          'yourself, SMALL={"name": "directory", ...}.'
        )
    if not directories or LARGE.name in directories:
      raise ValueError(
        'A comparison needs one or more small models, SMALL={"name": "directory", ...}, none of '
        f'them called {LARGE.name!r}; found {", ".join(directories) or "none"}.'
      )
    return directories

  def _read(self, directory: str, embeddings: Sequence[str]) -> list[Predictions]:
    path = files.absolute(directory) / self.split
    tables = [
      _with_embeddings(table, path, embeddings)
      for task in self.tasks or (None,)
      for table in shards.read(path, task=task, mode=self.mode)
    ]
    for table in tables:
      if table.split != self.split:
        raise ValueError(
          f'The manifest of task {table.task!r} in {path} says split {table.split!r}: folders are '
          'named by their split, so move the table back or infer again.'
        )
      count = table.manifest.get('unlabelled', 0)
      if count and self.require_targets:
        raise ValueError(
          f'{count} of {table.manifest["rows"]} rows of task {table.task!r} in {path} have no '
          'target, so no metric can judge their answers: evaluate on a split that has targets.'
        )
    return tables

  def _aligned(self, directory: str, large: Sequence[Predictions]) -> list[Predictions]:
    """A small model's tables in the large one's order of tasks and rows."""
    own = [name for name in self.embeddings if name != NEXT_FIRST_LAYER]
    small = {table.task: table for table in self._read(directory, own)}
    tasks = [table.task for table in large]
    if set(small) != set(tasks):
      raise ValueError(
        f'{directory}, split {self.split!r}, answers the tasks {sorted(small)} and the large model '
        f'{sorted(tasks)}: infer the missing tasks, or choose common ones with TASKS=[...].'
      )
    aligned = [alignment.join(small[table.task], table)[0] for table in large]
    for pair in zip(aligned, large, strict=True):
      self._check_alike(directory, *pair)
    if NEXT_FIRST_LAYER not in self.embeddings:
      return aligned
    return [
      table._replace(
        embeddings={**table.embeddings, NEXT_FIRST_LAYER: other.embeddings[FIRST_LAYER]}
      )
      for table, other in zip(aligned, large, strict=True)
    ]

  def _check_alike(self, directory: str, small: Predictions, large: Predictions) -> None:
    """Raise ValueError if the tables differ in something that is not allowed to."""
    differences = _differences(small, large)
    names = {'inputs', 'definition', 'precision', 'weights'}
    names |= {*small.manifest['decoding'], *large.manifest['decoding']}
    if unknown := sorted(set(self.allow_differences) - names):
      raise ValueError(
        f'ALLOW_DIFFERENCES={unknown} names no property of the tables; they have '
        f'{", ".join(sorted(names))}.'
      )
    texts = [
      f'{name} ({own!r:.80} and {other!r:.80})' for name, (own, other) in differences.items()
    ]
    if refused := sorted(set(differences) - set(self.allow_differences)):
      raise ValueError(
        f'The table of task {large.task!r} in {directory} differs from that of the large model in '
        f'{", ".join(texts)}: one comparison needs answers to the same inputs, made alike. Infer '
        'both with the same settings, or accept the differences with '
        f'ALLOW_DIFFERENCES={refused}.'
      )
    if texts:
      log.info('%s differs from the large model in %s, as allowed.', directory, ', '.join(texts))


def _with_embeddings(
  table: Predictions, directory: epath.Path, names: Sequence[str]
) -> Predictions:
  """Table with arrays that lie beside it. Raises FileNotFoundError, naming the setting to write."""
  try:
    arrays = {name: sidecars.read(directory, name, table).array() for name in names}
  except FileNotFoundError as error:
    own = [name for name in names if name != PROMPT]
    writers = [f'`python -m cascades.infer` writes {name!r}, with EMBEDDINGS={own}' for name in own]
    if PROMPT in names:
      writers.append(f'`python -m cascades.embed` writes {PROMPT!r}')
    raise FileNotFoundError(f'{error} A learned decider reads it: {"; ".join(writers)}.') from error
  return table._replace(embeddings=arrays) if names else table


def _differences(small: Predictions, large: Predictions) -> dict[str, tuple[Any, Any]]:
  """Values of the properties in which two aligned tables differ: those of the small model first."""
  first = next(((a, b) for a, b in zip(small.inputs, large.inputs, strict=True) if a != b), None)
  own, other = _properties(small.manifest), _properties(large.manifest)
  common = [name for name in own if name in other]  # older tables have fewer
  differences = {name: (own[name], other[name]) for name in common if own[name] != other[name]}
  return ({'inputs': first} if first else {}) | differences


def _properties(manifest: Mapping[str, Any]) -> dict[str, Any]:
  """Properties that the tables of one comparison should share."""
  decoding = dict(manifest['decoding'])
  if not decoding.get('temperature'):
    decoding.pop('seed', None)  # nothing was drawn
  properties = {
    name: manifest[name] for name in ('definition', 'precision', 'weights') if name in manifest
  }
  if 'definition' in properties:  # each model may have its own format of prompts
    properties['definition'] = re.split(' chat | continued', properties['definition'])[0]
  return properties | decoding
