"""Routers among models that join and leave, and their files: arrays and JSON, without pickles.

    NAME-<digest>.npz   arrays of a `ClusterRouter`
    NAME.json           written last: models, costs, ids of the validation prompts, digest

A model that joins adds a row to both; the rows of the others stay bit for bit what they were.
Routers of one level of hard clusters are files of version 1, learned maps of version 2; two levels
of clusters, and costs by cluster, need version 3, and prices of prompt tokens version 4.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Protocol, TypeAlias

import msgspec
import numpy as np
from etils import epath
from jaxtyping import Float, Int
from scipy import sparse

from cascades import hashed_words, price_path, prompt_drift, universal_routing, validation_order
from cascades.evaluation import router_arrays
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.predictions.rows import HIGHEST
from cascades.prompt_tokens import Charged, PromptTokens, free
from cascades.runtime import files
from cascades.universal_routing import Pool, Position, one_hot

PLAIN, SOFT, BY_PROMPT, VERSION = 1, 2, 3, 4
CLUSTERS, LEARNED, NESTED = METHODS = 'clusters', 'learned map', 'hierarchical'
NonNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=HIGHEST)]
NOBODY = ''  # name of what answers a prompt that is left unanswered
SPARSE = ('data', 'indices', 'indptr')  # arrays of a sparse matrix, `drift_...`
ROUNDING = 1e-9  # of a mean cost
BY_MODEL = ('losses', 'prompt_tokens')  # arrays with a column a model
TOKEN_ARRAYS = ('token_price', 'group_tokens', 'token_line')  # of `PromptTokens`
Vectors: TypeAlias = Float[np.ndarray, 'N D']
ModelTokens: TypeAlias = Float[np.ndarray, 'N J'] | None
TokenCounts: TypeAlias = Mapping[str, Sequence[float]]  # tokens of each prompt by model


class ModelRule(Protocol):
  """Function from prompts to their models."""

  def __call__(self, vectors: Vectors, tokens: ModelTokens = None, /) -> Int[np.ndarray, 'N']:
    """Model of each prompt.

    Args:
      vectors: Vectors of the prompts.
      tokens: Their tokens, see `ClusterRouter.tokens`; None for the mean ones of their groups.
    """
    ...


class ClusterRouter(NamedTuple):
  """Router by clusters of prompts.

  Attributes:
    pool: Models that it chooses among.
    ids: Ids of the validation prompts.
    strength: Number of answers that a model's mean loss counts for in each cluster.
    arrays: `weights` and `directions` of the words, and `drift_...` that tell their likeness, or of
      an encoder the `vectors` of the validation prompts; `centroids` of the clusters; the cluster
      of each validation prompt, `groups`, and its `characters`; and `losses` of the models on them,
      nan where not asked, and likewise their `prompt_tokens` where these are charged for.
      Of a learned map also its `theta` and `bias`, and the `memberships` of the validation prompts;
      of a hierarchy the `coarse_centroids` and the coarse cluster of each validation prompt,
      `coarse_groups`, or in version 2 the coarse cluster of each cluster, `parents`. The groups of
      a hierarchy's pool are pairs of clusters, see `universal_routing.paired_losses`.
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

  def position(self, vectors: Vectors) -> Position:
    """Group of each prompt, or its memberships by a learned map."""
    clusters, arrays = self.clusters(vectors), self.arrays
    if 'theta' in arrays:
      return universal_routing.soft_memberships(vectors, arrays['theta'], arrays['bias'])
    if 'coarse_centroids' in arrays:
      return clusters + len(arrays['centroids']) * universal_routing.assign(
        vectors, arrays['coarse_centroids']
      )
    return clusters

  def predict(
    self, vectors: Vectors, tokens: ModelTokens = None
  ) -> tuple[Float[np.ndarray, 'N J'], Float[np.ndarray, 'N J']]:
    """Predicted loss and estimated cost of each model on prompts of these vectors and `tokens`."""
    return self.pool.predict(self.position(vectors), tokens)

  def tokens(
    self, prompts: Sequence[str], counts: TokenCounts = MappingProxyType({})
  ) -> ModelTokens:
    """Tokens of prompts for each model; None if none charges for them.

    Args:
      prompts: Texts of the prompts.
      counts: Their tokens by model as far as they are known, nan elsewhere. The others are told by
        the lengths of the texts.
    """
    if self.pool.tokens is None:
      return None
    estimates = self.pool.tokens.estimate(np.array([len(prompt) for prompt in prompts], float))
    for name in set(counts).intersection(self.pool.names):
      own, column = np.asarray(counts[name], float), estimates[:, self.pool.names.index(name)]
      column[:] = np.where(np.isnan(own), column, own)
    return estimates

  def losses(self, vectors: Vectors) -> Float[np.ndarray, 'N J']:
    """Predicted loss of each model on prompts of these vectors."""
    return self.predict(vectors)[0]

  @property
  def on_validation(self) -> tuple[Float[np.ndarray, 'V J'], Float[np.ndarray, 'V J']]:
    """Predicted loss and estimated cost of each model on each validation prompt."""
    arrays, tokens = self.arrays, None
    if self.pool.tokens is not None:
      tokens, recorded = self.pool.tokens.estimate(arrays['characters']), arrays['prompt_tokens']
      own = tokens[:, : recorded.shape[1]]  # NOBODY has no tokens
      own[:] = np.where(np.isnan(recorded), own, recorded)
    if 'memberships' in arrays:
      return self.pool.predict(arrays['memberships'], tokens)
    above = len(arrays['centroids']) * arrays['coarse_groups'] if self._is_paired else 0
    return self.pool.predict(arrays['groups'] + above, tokens)

  @property
  def _is_paired(self) -> bool:
    return 'coarse_groups' in self.arrays

  def means(self, values: Float[np.ndarray, 'V J']) -> Float[np.ndarray, 'K J']:
    """Means of values of the validation prompts in each group of the pool; nan is left out."""
    fine, arrays, strength = self.groups, self.arrays, self.strength
    if self._is_paired:
      coarse = one_hot(arrays['coarse_groups'], len(arrays['coarse_centroids'])).T
      return universal_routing.paired_losses(coarse, fine, values, strength=strength)
    if 'parents' in arrays:
      return universal_routing.nested_losses(fine, arrays['parents'], values, strength=strength)
    return universal_routing.mean_losses(fine, values, strength=strength)

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
        None if pool.group_cost is None else np.concatenate([pool.group_cost, 0.0 * nobody]),
        None if pool.tokens is None else pool.tokens.append(free(1, pool.psi.shape[1])),
      )
    )

  def choices(self, price: float) -> Int[np.ndarray, 'V']:
    """Model of each validation prompt at a price of a unit of cost."""
    return price_path.choose(*self.on_validation, price)

  def rule(self, price: float) -> ModelRule:
    """Function from prompts to their models at a price of a unit of cost."""
    if 'theta' in self.arrays or self.pool.tokens is not None:
      return lambda vectors, tokens=None: price_path.choose(*self.predict(vectors, tokens), price)
    models = price_path.choose(*self.pool.predict(np.arange(self.pool.psi.shape[1])), price)
    return lambda vectors, _=None: models[self.position(vectors)]

  def price(self, budget: float) -> float:
    """Least price at which the mean cost of the validation prompts is within a budget.

    Raises:
      ValueError: The cheapest model costs more.
    """
    gamma, cost = self.on_validation
    path = price_path.price_path(gamma, cost, 1 - gamma)
    within = np.flatnonzero(path.cost <= budget * (1 + ROUNDING))
    if not within.size:
      raise ValueError(
        f'BUDGET={budget:g} is below the cost of the cheapest model, {path.cost[-1]:g}'
        f'{"" if self.pool.group_cost is None else " on average of the cheapest by prompt"}.'
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
    columns = {name: self.arrays[name][:, keep] for name in BY_MODEL if name in self.arrays}
    return self._replace(pool=pool, arrays={**self.arrays, **columns})

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
    rows = [row[name] for name in matrix.ids]

    def of_all(values: Float[np.ndarray, 'N J'] | None) -> Float[np.ndarray, 'V J']:
      spread = np.full((len(self.ids), len(matrix.models)), np.nan)
      spread[rows] = np.nan if values is None else values
      return spread

    losses, costs = of_all(matrix.losses).astype(np.float32), of_all(matrix.prompt_cost)
    tokens = of_all(matrix.tokens if 'characters' in self.arrays else None)
    factors = validation_order.factors(self.arrays['losses']) if predict else None
    pool = self.pool
    for index, (name, own) in enumerate(zip(matrix.models, losses.T, strict=True)):
      asked = np.flatnonzero(np.isfinite(own))
      filled = own if factors is None else validation_order.predict(factors, asked, own[asked])
      cost = matrix.cost[index] if matrix.prompt_cost is None else costs[:, index]
      price = np.nan if matrix.token_price is None else matrix.token_price[index]
      charged = None
      if price > 0 and np.isfinite(tokens[:, index]).any():
        charged = Charged(float(price), tokens[:, index], self.arrays['characters'])
      pool = pool.add(name, cost, filled, self.means, charged)
      pool.answers[-1] = len(asked)
    arrays = {**self.arrays, 'losses': np.column_stack([self.arrays['losses'], losses])}
    if pool.tokens is not None:
      before = np.full((len(self.ids), len(self.pool.names)), np.nan)
      arrays['prompt_tokens'] = np.column_stack([arrays.get('prompt_tokens', before), tokens])
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
  pool, own = router.pool, {'psi': router.pool.psi}
  if pool.group_cost is not None:
    own['group_cost'] = pool.group_cost
  if pool.tokens is not None:
    own |= dict(zip(TOKEN_ARRAYS, pool.tokens, strict=True))
  np.savez(buffer, allow_pickle=False, **own, **router.arrays)
  digest = hashlib.sha256(buffer.getvalue()).hexdigest()
  name = f'{path.stem}-{digest[:12]}.npz'
  files.write(path.parent / name, buffer.getvalue())
  description = {
    'version': _version({*own, *router.arrays}),
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


def _version(names: Set[str]) -> int:
  """Version of a file of these arrays, the least that has them."""
  if 'token_price' in names:
    return VERSION
  if names & {'group_cost', 'coarse_groups'}:
    return BY_PROMPT
  return SOFT if names & {'theta', 'parents'} else PLAIN


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
    psi, group_cost = arrays.pop('psi'), arrays.pop('group_cost', None)
    tokens = None
    if TOKEN_ARRAYS[0] in arrays:
      tokens = PromptTokens(*(arrays.pop(name) for name in TOKEN_ARRAYS))
    router_arrays.check(
      psi, group_cost, tokens, arrays,
      models=len(description.models), rows=len(description.validation),
    )  # fmt: skip
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{path} is no router of version {PLAIN} to {VERSION}, or damaged ({error}): fit it again.'
    ) from error
  names, costs, answers = zip(
    *((m.name, m.cost, m.answers) for m in description.models), strict=True
  )
  pool = Pool(names, np.array(costs), psi, np.array(answers), group_cost, tokens)
  return ClusterRouter(
    pool, tuple(description.validation), description.strength, arrays, description.encoder
  )
