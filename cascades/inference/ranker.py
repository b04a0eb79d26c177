"""A trained ranker: texts to vectors, and pairs to scores.

Axes: B texts, C candidates, L vectors of a text, W width.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax import Array
from jaxtyping import Float

from cascades.checkpoints import store
from cascades.checkpoints.finished import CheckpointError
from cascades.models import bert, rankers
from cascades.models.abstract import abstract_model
from cascades.models.rankers import Encoded, RankerConfig
from cascades.runtime import files, partitioning
from cascades.tokenizers.from_folder import read_vocabulary
from cascades.types import Params, Vocabulary

RANKER = 'ranker'  # key of model.json
TOKENIZER = 'tokenizer'  # folder of a run, with the tokenizer's files
BLOCK = 32  # candidates that are scored at a time, so that their similarities stay in cache


@dataclasses.dataclass(frozen=True)
class Ranker:
  """A ranker with its weights and tokenizer.

  Attributes:
    config: Its configuration.
    graph: Definition of its module.
    params: Its weights.
    vocabulary: Tokenizer of its encoder.
    batch_size: Texts or pairs that are encoded together.
  """

  config: RankerConfig
  graph: nnx.GraphDef
  params: Params
  vocabulary: Vocabulary
  batch_size: int = 16

  @functools.cached_property
  def identity(self) -> str:
    """Digest of configuration and weights."""
    digest = hashlib.sha256(repr(self.config).encode())
    for leaf in jax.tree.leaves(self.params):
      digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]

  @functools.cached_property
  def _queries(self) -> Callable[..., Encoded]:
    return self._compiled(lambda module, *text: module.encode_queries(*text))

  @functools.cached_property
  def _documents(self) -> Callable[..., Encoded]:
    return self._compiled(lambda module, *text: module.encode_documents(*text))

  @functools.cached_property
  def _pairs(self) -> Callable[..., Array]:
    return self._compiled(lambda module, *pair: module.score_pairs(*pair))

  @functools.cached_property
  def _blocks(self) -> Callable[..., Array]:
    def score(module: Any, query: Encoded, documents: Encoded) -> Array:
      return jax.lax.map(lambda block: module.score(query, block), documents)

    return self._compiled(score)

  def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
    call = jax.jit(lambda params, *inputs: function(nnx.merge(self.graph, params), *inputs))
    return functools.partial(call, self.params)

  def encode_queries(self, texts: Sequence[str]) -> Encoded:
    """Vectors of queries."""
    return self._encode(texts, self._queries, self.config.query_tokens, self.config.lengths[0])

  def encode_documents(self, texts: Sequence[str]) -> Encoded:
    """Vectors of documents, as they are stored."""
    return self._encode(texts, self._documents, self.config.document_tokens, self.config.lengths[1])

  def _encode(
    self, texts: Sequence[str], encode: Callable[..., Encoded], most: int, length: int
  ) -> Encoded:
    if self.config.scorer == 'cross':
      raise ValueError('a cross-encoder reads pairs and has no vectors: rank its pairs directly.')
    rows = bert.token_rows(self.vocabulary, texts, most)
    vectors = np.zeros((len(rows), length, self.config.vector_width), np.float32)
    masks = np.zeros((len(rows), length), bool)
    for batch in bert.batches(rows, self.batch_size):
      inputs = bert.pad_rows([rows[i] for i in batch], self.vocabulary.pad_id, most)
      encoded = encode(*inputs)
      vectors[batch] = encoded.vectors[: len(batch)]
      masks[batch] = encoded.mask[: len(batch)]
    return Encoded(vectors, masks)

  def score(self, query: Encoded, documents: Encoded) -> Float[np.ndarray, 'C']:
    """Scores of one query's documents: `query` has no batch axis, `documents` have one."""
    count = len(documents.mask)
    size = min(BLOCK, 1 << max(count - 1, 0).bit_length())
    missing = -count % size
    padding = lambda leaf: np.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)))
    padded = map(padding, documents) if missing else documents
    blocks = Encoded(*(np.reshape(leaf, (-1, size, *leaf.shape[1:])) for leaf in padded))
    queries = Encoded(query.vectors[None], query.mask[None])
    return np.asarray(self._blocks(queries, blocks)).reshape(-1)[:count]

  def score_pairs(self, query: str, documents: Sequence[str]) -> Float[np.ndarray, 'C']:
    """Scores of a query with each document by a cross-encoder."""
    rows, segments = rankers.pair_rows(
      self.vocabulary, [query] * len(documents), documents, self.config
    )
    scores = np.zeros(len(rows), np.float32)
    for batch in bert.batches(rows, self.batch_size):
      inputs = rankers.pad_pairs(
        [rows[i] for i in batch], [segments[i] for i in batch], self.vocabulary.pad_id, self.config
      )
      scores[batch] = self._pairs(*inputs)[: len(batch)]
    return scores


def open_ranker(path: epath.PathLike, *, batch_size: int = 16) -> Ranker:
  """Opens a ranker that `python -m cascades.rank` has trained.

  Args:
    path: A run directory, or one of its checkpoints.
    batch_size: Texts or pairs that are encoded together.

  Raises:
    CheckpointError: There is no such run, it is no ranker's, or its checkpoint is damaged.
  """
  directory = files.absolute(store.run_of(path))
  description = store.read_description(directory)
  if RANKER not in description:
    raise CheckpointError(f'{directory} is no ranker: train one with MODE=train.')
  config = rankers.from_description(description[RANKER])
  with partitioning.use(partitioning.make_mesh(devices=jax.local_devices()[:1])):
    graph, abstract = abstract_model(config)
    params = store.restore_params(path, abstract)
  return Ranker(config, graph, params, read_vocabulary(directory / TOKENIZER), batch_size)
