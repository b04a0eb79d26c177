"""Rankers: dual encoders with late interaction, and cross-encoders, over one BERT encoder.

A dual encoder turns a text into token vectors, so that documents are encoded once; its scorer is a
dot product of pooled vectors, MaxSim or LITE. A cross-encoder reads query and document together.
Axes: B batch, S length, D encoder width, W vector width, Q query tokens, L document tokens, C
candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades import ranking
from cascades.models import bert, configs, layers, lite
from cascades.runtime import ranges
from cascades.types import Vocabulary

SCORERS = ('dot', 'max_sim', *lite.FORMS, 'cross')
POOLINGS = ('mean', 'linear')


@dataclasses.dataclass(frozen=True)
class RankerConfig:
  """Configuration of a ranker.

  Attributes:
    encoder: Configuration of the encoder.
    scorer: Name in `SCORERS`.
    width: Width W to which a linear map takes vectors; None for the encoder's, without a map.
    query_tokens: Longest query in tokens, [CLS] and [SEP] included; the rest is cut.
    document_tokens: The same of a document.
    stored_tokens: Token vectors of a document that are stored; None for all.
    pooling: What makes fewer of them: 'mean' of adjacent tokens, or a learned 'linear' map.
    normalize: Scale each vector to length 1.
    query_mlp: See `lite.LiteConfig`.
    document_mlp: See `lite.LiteConfig`.
    top: See `ranking.max_sim`.
  """

  encoder: bert.BertConfig
  scorer: str = 'lite'
  width: int | None = None
  query_tokens: int = 32
  document_tokens: int = 180
  stored_tokens: int | None = None
  pooling: str = 'mean'
  normalize: bool = True
  query_mlp: int = 32
  document_mlp: int = 64
  top: int = 1

  def __post_init__(self) -> None:
    for name, value, choices in (
      ('SCORER', self.scorer, SCORERS), ('POOLING', self.pooling, POOLINGS),
    ):  # fmt: skip
      if value not in choices:
        raise ValueError(f'{name}={value!r:.80} is none of {", ".join(choices)}.')
    ranges.check({'WIDTH': self.width, 'TOP': self.top}, least=1, integer=True)
    lengths = {'QUERY_TOKENS': self.query_tokens, 'DOCUMENT_TOKENS': self.document_tokens}
    ranges.check(lengths, least=3, most=self.encoder.max_length, integer=True)
    ranges.check(
      {'STORED_TOKENS': self.stored_tokens}, least=1, most=self.document_tokens, integer=True
    )
    longest = self.encoder.num_positions - self.encoder.first_position
    if self.scorer == 'cross' and (total := sum(lengths.values()) - 1) > longest:
      raise ValueError(
        f'QUERY_TOKENS={self.query_tokens} and DOCUMENT_TOKENS={self.document_tokens} are a pair '
        f'of {total} tokens, and the encoder has {longest} positions: lower one of them.'
      )

  @property
  def lengths(self) -> tuple[int, int]:
    """Vectors of a query and of a document."""
    if self.scorer == 'dot':
      return 1, 1
    return self.query_tokens, self.stored_tokens or self.document_tokens

  @property
  def vector_width(self) -> int:
    """Width W of a vector."""
    return self.width or self.encoder.emb_dim

  def build(self, key: Array) -> DualEncoder | CrossEncoder:
    """Build the ranker with random float32 parameters."""
    return CrossEncoder(self, key) if self.scorer == 'cross' else DualEncoder(self, key)


def describe(config: RankerConfig) -> dict[str, Any]:
  """JSON object of a configuration, that of its encoder inside."""
  fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  return {**fields, 'encoder': configs.describe(config.encoder)}


def from_description(description: Mapping[str, Any]) -> RankerConfig:
  """Configuration of a JSON object.

  Raises:
    ValueError: It does not describe a ranker of this version.
  """
  try:
    return RankerConfig(**{**description, 'encoder': configs.encoder(description['encoder'])})
  except (TypeError, KeyError) as error:
    raise ValueError(
      f'no description of a ranker of this version ({error}): train it again.'
    ) from error


class Encoded(NamedTuple):
  """Vectors of texts, 0 outside the mask."""

  vectors: Float[Array | np.ndarray, '*B L W']
  mask: Bool[Array | np.ndarray, '*B L']


class DualEncoder(nnx.Module):
  """Encoder of queries and documents, and a scorer of their vectors."""

  def __init__(self, config: RankerConfig, key: Array):
    keys = jax.random.split(key, 4)
    self.config = config
    self.encoder = config.encoder.build(keys[0])
    width = config.encoder.emb_dim
    self.projection = (
      layers.Projection(keys[1], {'embed': width}, {'mlp': config.width}) if config.width else None
    )
    fewer = config.stored_tokens and config.pooling == 'linear' and config.scorer != 'dot'
    self.token_map = _token_map(config, keys[2]) if fewer else None
    sizes = lite.LiteConfig(*config.lengths, config.query_mlp, config.document_mlp)
    form = lite.FORMS.get(config.scorer)
    self.scorer = form(sizes, keys[3]) if form else None

  def encode_queries(self, tokens: Int[Array, 'B S'], mask: Bool[Array, 'B S']) -> Encoded:
    """Vectors of queries of at most `query_tokens` tokens."""
    return self.query_vectors(self.encoder.hidden(tokens, mask), mask)

  def encode_documents(self, tokens: Int[Array, 'B S'], mask: Bool[Array, 'B S']) -> Encoded:
    """Vectors of documents of at most `document_tokens` tokens."""
    return self.document_vectors(self.encoder.hidden(tokens, mask), mask)

  def query_vectors(self, states: Float[Array, 'B S D'], mask: Bool[Array, 'B S']) -> Encoded:
    """Vectors of queries from the encoder's states."""
    return self._finished(self._projected(states, mask, self.config.query_tokens))

  def document_vectors(self, states: Float[Array, 'B S D'], mask: Bool[Array, 'B S']) -> Encoded:
    """Vectors of documents from the encoder's states, as many as are stored."""
    config = self.config
    encoded = self._projected(states, mask, config.document_tokens)
    if config.scorer != 'dot' and config.stored_tokens:
      encoded = self._fewer(encoded)
    return self._finished(encoded)

  def _projected(
    self, states: Float[Array, 'B S D'], mask: Bool[Array, 'B S'], length: int
  ) -> Encoded:
    """One vector of a text, or one of each token up to `length`, padded with 0."""
    states = states.astype(jnp.float32)
    if self.config.scorer == 'dot':
      states = bert.POOLINGS[self.config.encoder.pooling](states, mask)[:, None]
      mask = mask.any(1, keepdims=True)
      length = 1
    vectors = states if self.projection is None else self.projection(states)
    missing = length - vectors.shape[1]
    vectors = jnp.where(mask[..., None], vectors, 0)
    return Encoded(
      jnp.pad(vectors, ((0, 0), (0, missing), (0, 0))), jnp.pad(mask, ((0, 0), (0, missing)))
    )

  def _fewer(self, encoded: Encoded) -> Encoded:
    """Means of adjacent tokens, or mixtures of all."""
    vectors, mask = encoded
    stored = self.config.lengths[1]
    if self.token_map is not None:
      mixed = jnp.einsum('blw,ls->bsw', vectors, self.token_map[...])
      return Encoded(mixed, jnp.broadcast_to(mask.any(1, keepdims=True), (len(mask), stored)))
    group = -(-vectors.shape[1] // stored)
    padding = stored * group - vectors.shape[1]
    vectors = jnp.pad(vectors, ((0, 0), (0, padding), (0, 0)))
    grouped = jnp.pad(mask, ((0, 0), (0, padding))).reshape(len(mask), stored, group)
    total = vectors.reshape(len(mask), stored, group, -1).sum(2)
    return Encoded(total / jnp.maximum(grouped.sum(2, keepdims=True), 1), grouped.any(2))

  def _finished(self, encoded: Encoded) -> Encoded:
    vectors, mask = encoded
    if not self.config.normalize:
      return encoded
    squares = jnp.square(vectors).sum(-1, keepdims=True)
    # Not of a norm, whose gradient at 0 is not finite.
    return Encoded(vectors * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), mask)

  def score(self, query: Encoded, document: Encoded) -> Float[Array, '*B']:
    """Score of each pair of a query and a document."""
    vectors = jnp.asarray(query.vectors), jnp.asarray(document.vectors)
    similarities = ranking.similarity(*vectors)
    if self.scorer is not None:
      return self.scorer(similarities)
    if self.config.scorer == 'dot':
      return similarities[..., 0, 0]
    masks = jnp.asarray(query.mask), jnp.asarray(document.mask)
    return ranking.max_sim(similarities, *masks, top=self.config.top)


def _token_map(config: RankerConfig, key: Array) -> nnx.Param[Array]:
  """Map from tokens to stored vectors, which begins as means of adjacent tokens and noise."""
  stored = config.lengths[1]
  group = -(-config.document_tokens // stored)
  blocks = jnp.arange(config.document_tokens)[:, None] // group == jnp.arange(stored)
  noise = 0.1 * jax.random.normal(key, blocks.shape)
  return layers.parameter((blocks + noise) / group, 'embed', 'mlp')


class CrossEncoder(nnx.Module):
  """Encoder of pairs, [CLS] query [SEP] document [SEP], and a linear head on [CLS]."""

  def __init__(self, config: RankerConfig, key: Array):
    encoder, head = jax.random.split(key)
    self.config = config
    self.encoder = config.encoder.build(encoder)
    self.head = layers.Projection(head, {'embed': config.encoder.emb_dim}, {'mlp': 1}, bias=True)

  def score_pairs(
    self, tokens: Int[Array, 'B S'], mask: Bool[Array, 'B S'], segments: Int[Array, 'B S']
  ) -> Float[Array, 'B']:
    """Score of each pair."""
    states = self.encoder.hidden(tokens, mask, segments).astype(jnp.float32)
    return self.head(states[:, :1])[:, 0, 0]


def pair_rows(
  vocabulary: Vocabulary, queries: Sequence[str], documents: Sequence[str], config: RankerConfig
) -> tuple[list[list[int]], list[int]]:
  """Ids of pairs, [CLS] query [SEP] document [SEP], and the length of each first segment."""
  first = bert.token_rows(vocabulary, queries, config.query_tokens)
  second = bert.token_rows(vocabulary, documents, config.document_tokens)
  start = vocabulary.bos_id is not None
  rows = [a + b[start:] for a, b in zip(first, second, strict=True)]
  return rows, [len(row) for row in first]


def pad_pairs(
  rows: Sequence[Sequence[int]], firsts: Sequence[int], pad_id: int, config: RankerConfig
) -> tuple[Int[np.ndarray, 'B S'], Bool[np.ndarray, 'B S'], Int[np.ndarray, 'B S']]:
  """Tokens, mask and segments of pairs, padded as by `bert.pad_rows`."""
  tokens, mask = bert.pad_rows(rows, pad_id, config.query_tokens + config.document_tokens - 1)
  ends = np.zeros(len(tokens), int)
  ends[: len(firsts)] = firsts
  segments = (np.arange(tokens.shape[1]) >= ends[:, None]) & mask
  return tokens, mask, segments.astype(np.int32)
