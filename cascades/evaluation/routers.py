"""Routers among models that join and leave, and their files: arrays and JSON, without pickles.

    NAME-<digest>.npz   arrays of a `ClusterRouter`
    NAME.json           written last: models, costs, ids of the validation prompts, digest

A model that joins adds a row to both; the rows of the others stay bit for bit what they were.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from etils import epath
from jaxtyping import Float

from cascades import hashed_words, universal_routing, validation_order
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.predictions.rows import HIGHEST
from cascades.runtime import files
from cascades.universal_routing import Pool, one_hot

VERSION = 1
NonNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=HIGHEST)]
DIMENSION = 128


class ClusterRouter(NamedTuple):
  """Router by clusters of prompts.

  Attributes:
    pool: Models that it chooses among.
    ids: Ids of the validation prompts.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    arrays: `weights` and `directions` of the words, `centroids` of the clusters, the cluster of
      each validation prompt, `groups`, and `losses` of the models on them; nan where not asked.
  """

  pool: Pool
  ids: tuple[str, ...]
  strength: float
  arrays: Mapping[str, np.ndarray]

  @property
  def groups(self) -> Float[np.ndarray, 'K V']:
    """Membership of each validation prompt in each cluster."""
    return one_hot(self.arrays['groups'], len(self.arrays['centroids'])).T

  def losses(self, prompts: Sequence[str]) -> Float[np.ndarray, 'N J']:
    """Predicted loss of each model on prompts."""
    vectors = hashed_words.embed(self.arrays, hashed_words.counts(prompts))
    clusters = universal_routing.assign(vectors, self.arrays['centroids'])
    return self.pool.losses(one_hot(clusters, len(self.arrays['centroids'])))

  def add(self, matrix: OutcomeMatrix, *, predict: bool = False) -> ClusterRouter:
    """Router with the models of a matrix added, whose rows are validation prompts.

    Args:
      matrix: Their answers.
      predict: Predict the answers that are missing from those of the router's models, as is needed
        where the prompts were not chosen at random.

    Raises:
      ValueError: A row is no validation prompt, or a model is in the pool already.
    """
    if foreign := [name for name in matrix.ids if name not in set(self.ids)]:
      raise ValueError(
        f'{len(foreign)} of {len(matrix.ids)} answers are to no validation prompt of the router, '
        f'such as {foreign[0]!r}: a model joins with answers to these prompts alone.'
      )
    row = {name: index for index, name in enumerate(self.ids)}
    losses = np.full((len(self.ids), len(matrix.models)), np.nan, np.float32)
    losses[[row[name] for name in matrix.ids]] = matrix.losses
    factors = validation_order.factors(self.arrays['losses']) if predict else None
    pool = self.pool
    for name, cost, own in zip(matrix.models, matrix.cost, losses.T, strict=True):
      asked = np.flatnonzero(np.isfinite(own))
      filled = own if factors is None else validation_order.predict(factors, asked, own[asked])
      pool = pool.add(name, cost, filled, self.groups, strength=self.strength)
      pool.answers[-1] = len(asked)
    arrays = {**self.arrays, 'losses': np.column_stack([self.arrays['losses'], losses])}
    return self._replace(pool=pool, arrays=arrays)


def fit(
  matrix: OutcomeMatrix, prompts: Sequence[str], *, clusters: int, strength: float, seed: int = 0
) -> ClusterRouter:
  """Router of the models of a matrix.

  Args:
    matrix: Answers to the validation prompts.
    prompts: Training prompts, whose clusters are found without answers.
    clusters: Number of clusters.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    seed: Seed of the clusters.
  """
  table = hashed_words.counts(prompts)
  words = hashed_words.fit(table, DIMENSION, seed=seed)
  vectors = hashed_words.embed(words, table)
  centroids = universal_routing.cluster(vectors, clusters, seed=seed).astype(np.float32)
  validation = hashed_words.embed(words, hashed_words.counts(matrix.prompts))
  arrays = {
    **words,
    'centroids': centroids,
    'groups': universal_routing.assign(validation, centroids),
    'losses': np.empty((len(matrix.ids), 0), np.float32),
  }
  pool = universal_routing.empty_pool(len(centroids))
  return ClusterRouter(pool, matrix.ids, strength, arrays).add(matrix)


class _Model(msgspec.Struct):
  name: str
  cost: NonNegative
  answers: int


class _Description(msgspec.Struct):
  version: int
  models: list[_Model]
  validation: list[str]
  strength: NonNegative
  arrays: str
  sha256: str


def write(path: epath.PathLike, router: ClusterRouter) -> None:
  """Write a router; one in its place stays readable until the new one is complete."""
  path = epath.Path(path)
  buffer = io.BytesIO()
  np.savez(buffer, allow_pickle=False, psi=router.pool.psi, **router.arrays)
  digest = hashlib.sha256(buffer.getvalue()).hexdigest()
  name = f'{path.stem}-{digest[:12]}.npz'
  files.write(path.parent / name, buffer.getvalue())
  pool = router.pool
  description = {
    'version': VERSION,
    'models': [
      {'name': model, 'cost': float(cost), 'answers': int(count)}
      for model, cost, count in zip(pool.names, pool.cost, pool.answers, strict=True)
    ],
    'validation': list(router.ids),
    'strength': router.strength,
    'arrays': name,
    'sha256': digest,
  }
  old = path.read_text() if path.exists() else ''
  files.write(path, json.dumps(description, indent=2) + '\n')
  for other in path.parent.glob(f'{path.stem}-????????????.npz'):
    if other.name != name and other.name in old:
      other.unlink(missing_ok=True)


def read(path: epath.PathLike) -> ClusterRouter:
  """Router of a file.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: A file is damaged, or of another version.
  """
  path = epath.Path(path)
  try:
    description = msgspec.json.decode(path.read_bytes(), type=_Description)
    files.component(description.arrays, 'the arrays of a router')
    data = (path.parent / description.arrays).read_bytes()
    if description.version != VERSION or hashlib.sha256(data).hexdigest() != description.sha256:
      raise ValueError(f'version {description.version}, or {description.arrays} has changed')
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
      arrays = dict(stored)
    psi = arrays.pop('psi')
    _check(psi, arrays, description)
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{path} is no router of version {VERSION}, or damaged ({error}): fit it again.'
    ) from error
  names, costs, answers = zip(
    *((m.name, m.cost, m.answers) for m in description.models), strict=True
  )
  pool = Pool(names, np.array(costs), psi, np.array(answers))
  return ClusterRouter(pool, tuple(description.validation), description.strength, arrays)


def _check(psi: np.ndarray, arrays: Mapping[str, Any], description: _Description) -> None:
  """Raise ValueError unless the arrays fit together."""
  models, count = len(description.models), len(arrays['centroids'])
  shapes = psi.shape, arrays['losses'].shape, arrays['groups'].shape
  rows = len(description.validation)
  if shapes != ((models, count), (rows, models), (rows,)) or not models:
    raise ValueError(f'{models} models and {rows} validation prompts have arrays of {shapes}')
