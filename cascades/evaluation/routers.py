"""Routers among models that join and leave, and their files: arrays and JSON, without pickles.

    NAME-<digest>.npz   arrays of a `ClusterRouter`
    NAME.json           written last: models, costs, ids of the validation prompts, digest

A model that joins adds a row to both; the rows of the others stay bit for bit what they were.
Routers of one level of hard clusters are files of version 1, the others of version 2.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from etils import epath
from jaxtyping import Float, Int
from scipy import sparse

from cascades import hashed_words, price_path, prompt_drift, universal_routing, validation_order
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.predictions.rows import HIGHEST
from cascades.runtime import files
from cascades.universal_routing import Pool, one_hot

VERSION = 2
PLAIN = 1  # version of routers of one level of hard clusters
CLUSTERS, LEARNED, NESTED = METHODS = 'clusters', 'learned map', 'hierarchical'
NonNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=HIGHEST)]
NOBODY = ''  # name of what answers a prompt that is left unanswered
SPARSE = ('data', 'indices', 'indptr')  # arrays of a sparse matrix, `drift_...`
ROUNDING = 1e-9  # of a mean cost
Vectors: TypeAlias = Float[np.ndarray, 'N D']


class ClusterRouter(NamedTuple):
  """Router by clusters of prompts.

  Attributes:
    pool: Models that it chooses among.
    ids: Ids of the validation prompts.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    arrays: `weights` and `directions` of the words, and `drift_...` that tell their likeness, or of
      an encoder the `vectors` of the validation prompts; `centroids` of the clusters; the cluster
      of each validation prompt, `groups`; and `losses` of the models on them, nan where not asked.
      Of a learned map also its `theta` and `bias`, and the `memberships` of the validation prompts;
      of a hierarchy the coarse cluster of each cluster, `parents`.
    encoder: Name of the encoder of the prompts; empty for words.
  """

  pool: Pool
  ids: tuple[str, ...]
  strength: float
  arrays: Mapping[str, np.ndarray]
  encoder: str = ''

  @property
  def groups(self) -> Float[np.ndarray, 'K V']:
    """Membership of each validation prompt in each cluster."""
    return one_hot(self.arrays['groups'], len(self.arrays['centroids'])).T

  def embed(self, prompts: Sequence[str]) -> Vectors:
    """Vectors of prompts by their words. Raises ValueError if an encoder is needed."""
    if self.encoder:
      raise ValueError(
        f'The router chooses by vectors of the encoder {self.encoder!r}: give its folder, '
        'EMBEDDINGS.'
      )
    return hashed_words.embed(self.arrays, hashed_words.counts(prompts))

  def clusters(self, vectors: Vectors) -> Int[np.ndarray, 'N']:
    """Cluster of each prompt. Raises ValueError if the vectors have another width."""
    centroids = self.arrays['centroids']
    if vectors.shape[1:] != centroids.shape[1:]:
      raise ValueError(
        f'Vectors have {vectors.shape[1]} numbers and the centroids of the router '
        f'{centroids.shape[1]}: embed the prompts as those that it was fitted on.'
      )
    return universal_routing.assign(vectors, centroids)

  def losses(self, vectors: Vectors) -> Float[np.ndarray, 'N J']:
    """Predicted loss of each model on prompts of these vectors."""
    groups, arrays = self.clusters(vectors), self.arrays
    if 'theta' not in arrays:
      return self.pool.psi[:, groups].T.astype(float)
    phi = universal_routing.soft_memberships(vectors, arrays['theta'], arrays['bias'])
    return self.pool.losses(phi).astype(float)

  @property
  def validation_losses(self) -> Float[np.ndarray, 'V J']:
    """Predicted loss of each model on each validation prompt."""
    if 'memberships' in self.arrays:
      return self.pool.losses(self.arrays['memberships']).astype(float)
    return self.pool.psi[:, self.arrays['groups']].T.astype(float)

  def abstaining(self, quality: float | None) -> ClusterRouter:
    """Router that may leave prompts to NOBODY: an answer of this quality, at no cost.

    Args:
      quality: Quality of a prompt that nobody answers; None for this router as it is.
    """
    if quality is None:
      return self
    pool = self.pool
    nobody = np.full((1, pool.psi.shape[1]), 1 - quality, pool.psi.dtype)
    return self._replace(
      pool=Pool(
        (*pool.names, NOBODY),
        np.append(pool.cost, 0.0),
        np.concatenate([pool.psi, nobody]),
        np.append(pool.answers, 0),
      )
    )

  def choices(self, price: float) -> Int[np.ndarray, 'V']:
    """Model of each validation prompt at a price of a unit of cost."""
    return price_path.choose(self.validation_losses, self.pool.cost, price)

  def rule(self, price: float) -> Callable[[Vectors], Int[np.ndarray, 'N']]:
    """Function from vectors of prompts to their models at a price of a unit of cost."""
    if 'theta' in self.arrays:
      return lambda vectors: price_path.choose(self.losses(vectors), self.pool.cost, price)
    models = price_path.choose(self.pool.psi.T.astype(float), self.pool.cost, price)
    return lambda vectors: models[self.clusters(vectors)]

  def price(self, budget: float) -> float:
    """Least price at which the mean cost of the validation prompts is within a budget.

    Raises:
      ValueError: The cheapest model costs more.
    """
    gamma = self.validation_losses
    path = price_path.price_path(gamma, self.pool.cost, 1 - gamma)
    within = np.flatnonzero(path.cost <= budget * (1 + ROUNDING))
    if not within.size:
      raise ValueError(
        f'BUDGET={budget:g} is below the cost of the cheapest model, {self.pool.cost.min():g}.'
      )
    return float(path.price[within[0]])

  def similarities(self, prompts: Sequence[str], vectors: Vectors) -> Float[np.ndarray, 'N']:
    """Highest similarity of each prompt to a validation prompt, see `prompt_drift`.

    Args:
      prompts: Texts of the prompts, which are read if the router is one of words.
      vectors: Their vectors, which are read if it is one of an encoder.
    """
    own = vectors if self.encoder else prompt_drift.words(self.arrays, prompts)
    return prompt_drift.nearest(own, self._validation)

  def reference(self) -> Float[np.ndarray, 'V']:
    """Sorted similarities of validation prompts to others, see `prompt_drift`."""
    return prompt_drift.reference(self._validation)

  @property
  def _validation(self) -> Any:
    if ('vectors' if self.encoder else 'drift_columns') not in self.arrays:
      raise ValueError('The router holds no vectors of its validation prompts: fit it again.')
    if self.encoder:
      return self.arrays['vectors']
    arrays = tuple(self.arrays[f'drift_{name}'] for name in SPARSE)
    return sparse.csr_matrix(arrays, shape=(len(self.ids), prompt_drift.COLUMNS))

  def remove(self, names: Sequence[str]) -> ClusterRouter:
    """Router without some models. Raises ValueError if it has not all, or no other ones."""
    if not names or not set(self.pool.names) - set(names):
      raise ValueError(
        f'MODELS={list(names)!r:.80} names no model or all of the router, which has '
        f'{", ".join(self.pool.names)}: name those to remove.'
      )
    keep = [index for index, name in enumerate(self.pool.names) if name not in names]
    pool = self.pool
    for name in dict.fromkeys(names):
      pool = pool.remove(name)
    return self._replace(
      pool=pool, arrays={**self.arrays, 'losses': self.arrays['losses'][:, keep]}
    )

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
      pool = pool.add(
        name, cost, filled, self.groups, strength=self.strength, coarse=self.arrays.get('parents')
      )
      pool.answers[-1] = len(asked)
    arrays = {**self.arrays, 'losses': np.column_stack([self.arrays['losses'], losses])}
    return self._replace(pool=pool, arrays=arrays)


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
  encoder: str = ''


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
    'version': VERSION if {'theta', 'parents'} & set(router.arrays) else PLAIN,
    'models': [
      {'name': model, 'cost': float(cost), 'answers': int(count)}
      for model, cost, count in zip(pool.names, pool.cost, pool.answers, strict=True)
    ],
    'validation': list(router.ids),
    'strength': router.strength,
    'arrays': name,
    'sha256': digest,
    'encoder': router.encoder,
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
    supported = PLAIN <= description.version <= VERSION
    if not supported or hashlib.sha256(data).hexdigest() != description.sha256:
      raise ValueError(f'version {description.version}, or {description.arrays} has changed')
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
      arrays = dict(stored)
    psi = arrays.pop('psi')
    _check(psi, arrays, description)
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{path} is no router of version {PLAIN} to {VERSION}, or damaged ({error}): fit it again.'
    ) from error
  names, costs, answers = zip(
    *((m.name, m.cost, m.answers) for m in description.models), strict=True
  )
  pool = Pool(names, np.array(costs), psi, np.array(answers))
  return ClusterRouter(
    pool, tuple(description.validation), description.strength, arrays, description.encoder
  )


def _check(psi: np.ndarray, arrays: Mapping[str, Any], description: _Description) -> None:
  """Raise ValueError unless the arrays fit together."""
  models, count = len(description.models), len(arrays['centroids'])
  shapes = psi.shape, arrays['losses'].shape, arrays['groups'].shape
  rows = len(description.validation)
  if shapes != ((models, count), (rows, models), (rows,)) or not models:
    raise ValueError(f'{models} models and {rows} validation prompts have arrays of {shapes}')
  expected = {
    'theta': arrays['centroids'].shape, 'bias': (count,), 'memberships': (rows, count),
    'parents': (count,),
  }  # fmt: skip
  for name, shape in expected.items():
    if name in arrays and arrays[name].shape != shape:
      raise ValueError(f'{name} have the shape {arrays[name].shape} in the place of {shape}')
  if ('theta' in arrays) != ('bias' in arrays) or ('theta' in arrays) != ('memberships' in arrays):
    raise ValueError('a learned map has theta, bias and memberships')
