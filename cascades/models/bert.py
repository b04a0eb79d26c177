"""Text embeddings from BERT encoders; BERT, MiniLM and MPNet are configurations of it.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805; MiniLM https://arxiv.org/abs/2002.10957; MPNet
https://arxiv.org/abs/2004.09297; pooling as in https://arxiv.org/abs/1908.10084.
Axes: B batch, S length, D width, N heads, H head size, X texts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades.models import attention, layers, positions
from cascades.types import Vocabulary

Embedder: TypeAlias = Callable[[Sequence[str]], Float[np.ndarray, 'X D']]

STEP = 32  # of tokens, to multiples of which longer texts are padded


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Configuration of a BERT encoder, BERT base by default.

  MPNet has relative biases, no segments, and starts at position 2. An encoder generates no text:
  it is no `types.LanguageModel`, and has no `architecture`.

  Attributes:
    vocab_size: Number of rows of the embedding table, padding rows included.
    emb_dim: Width D of the residual stream, and size of the vectors.
    num_heads: Number of attention heads; divides emb_dim.
    num_layers: Number of blocks.
    mlp_dim: Number of hidden channels of each MLP.
    num_positions: Number of learned positions.
    first_position: Position of the first token.
    num_segments: Number of learned segments, of which texts use the first; 0 for none.
    relative_attention_num_buckets: Number of buckets of relative biases; None for no biases.
    relative_attention_max_distance: Distance in tokens from which all share the last bucket.
    norm_eps: Added to the variance in norms.
    pooling: How states become one vector, a name in `POOLINGS`.
    normalize: Scale vectors to length 1.
    max_length: Longest text in tokens, [CLS] and [SEP] included; the rest is cut.
    dtype: Dtype of the activations, 'float32' or 'bfloat16'.
    remat_policy: What the backward pass recomputes, a name in `layers.REMAT_POLICIES`.
  """

  mlp_activations: ClassVar[tuple[str, ...]] = ()  # always the exact GELU

  vocab_size: int
  emb_dim: int = 768
  num_heads: int = 12
  num_layers: int = 12
  mlp_dim: int = 3072
  num_positions: int = 512
  first_position: int = 0
  num_segments: int = 2
  relative_attention_num_buckets: int | None = None
  relative_attention_max_distance: int = 128
  norm_eps: float = 1e-12
  pooling: str = 'mean'
  normalize: bool = False
  max_length: int = 512
  dtype: str = 'float32'
  remat_policy: str = 'elementwise'

  def __post_init__(self) -> None:
    layers.validate_config(self)
    if self.emb_dim % self.num_heads:
      raise ValueError(
        f'emb_dim={self.emb_dim} is not a multiple of num_heads={self.num_heads}: choose a number '
        'of heads that divides it.'
      )
    if self.pooling not in POOLINGS:
      raise ValueError(f'Unknown pooling {self.pooling!r}; choose one of {", ".join(POOLINGS)}.')
    longest = self.num_positions - self.first_position
    if not 2 <= self.max_length <= longest:
      raise ValueError(
        f'max_length={self.max_length} must be from 2 to {longest}, the number of positions.'
      )

  def build(self, key: Array) -> Bert:
    """Build the encoder with random float32 parameters."""
    return Bert(self, key)


def mean(hidden: Float[Array, 'B S D'], mask: Bool[Array, 'B S']) -> Float[Array, 'B D']:
  """Average the states of the tokens in `mask`; 0 without any."""
  return jnp.einsum('BSD,BS->BD', hidden, mask) / jnp.maximum(mask.sum(1, keepdims=True), 1)


def first(hidden: Float[Array, 'B S D'], mask: Bool[Array, 'B S']) -> Float[Array, 'B D']:
  """Take the state of the first token, [CLS]."""
  del mask
  return hidden[:, 0]


POOLINGS = {'mean': mean, 'cls': first}


class LayerNorm(nnx.Module):
  """Layer norm: (x - mean) / sqrt(variance + eps) * scale + bias.

  https://arxiv.org/abs/1607.06450.
  """

  def __init__(self, size: int, *, eps: float):
    self.scale = layers.parameter(jnp.ones((size,)), 'norm')
    self.bias = layers.parameter(jnp.zeros((size,)), 'norm')
    self.eps = eps

  def __call__(self, x: Float[Array, '*n D']) -> Float[Array, '*n D']:
    y = x.astype(jnp.float32)
    y -= jnp.mean(y, -1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class BertBlock(nnx.Module):
  """Self-attention and MLP, each with a residual connection around it and a norm after it."""

  def __init__(self, config: BertConfig, key: Array):
    keys = jax.random.split(key, 6)
    embed, mlp = {'embed': config.emb_dim}, {'mlp': config.mlp_dim}
    heads = {'heads': config.num_heads, 'head_dim': config.emb_dim // config.num_heads}
    project = functools.partial(layers.Projection, bias=True)
    self.query, self.key, self.value = (project(key, embed, heads) for key in keys[:3])
    self.out = project(keys[3], heads, embed)
    self.wi, self.wo = project(keys[4], embed, mlp), project(keys[5], mlp, embed)
    self.attention_norm, self.mlp_norm = (
      LayerNorm(config.emb_dim, eps=config.norm_eps) for _ in range(2)
    )

  def __call__(
    self,
    x: Float[Array, 'B S D'],
    mask: Bool[Array, 'B 1 S'],
    bias: Float[Array, '1 N S S'] | None,
  ) -> Float[Array, 'B S D']:
    query, key_value = self.query(x), attention.key_value(self.key(x), self.value(x))
    y = attention.attend(query, [key_value], mask, bias=bias, scale=query.shape[-1] ** -0.5)
    x = self.attention_norm(x + self.out(y))
    inner = jax.nn.gelu(self.wi(x), approximate=False)
    x = self.mlp_norm(x + self.wo(layers.constrain(inner, 'batch', 'length', 'activation_mlp')))
    return layers.constrain(x, 'batch', 'length', 'activation_embed')


class Bert(nnx.Module):
  """BERT encoder: every token attends to the entire text."""

  def __init__(self, config: BertConfig, key: Array):
    keys = jax.random.split(key, 5)
    self.config = config
    table = functools.partial(layers.normal_parameter, stddev=0.02)
    width = config.emb_dim
    self.embedding = table(keys[0], (config.vocab_size, width), 'vocab', 'embed')
    self.positions = table(keys[1], (config.num_positions, width), 'positions', 'embed')
    self.segments = (
      table(keys[2], (config.num_segments, width), 'segments', 'embed')
      if config.num_segments
      else None
    )
    self.norm = LayerNorm(width, eps=config.norm_eps)
    self.bias = (
      positions.RelativeBias(
        keys[3],
        config.num_heads,
        bidirectional=True,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
      )
      if config.relative_attention_num_buckets
      else None
    )
    self.blocks = layers.stack_layers(
      functools.partial(BertBlock, config), keys[4], config.num_layers
    )

  def hidden(
    self,
    tokens: Int[Array, 'B S'],
    mask: Bool[Array, 'B S'],
    segments: Int[Array, 'B S'] | None = None,
  ) -> Float[Array, 'B S D']:
    """Compute final states; `mask` is False on padding, which must be on the right.

    `segments` number the two texts of a pair, 0 and 1; None means a single text, the first segment.
    """
    config, length = self.config, tokens.shape[1]
    begin, end = config.first_position, config.first_position + length
    if end > config.num_positions:
      raise ValueError(
        f'a text has {length} tokens, but this model has {config.num_positions - begin} positions: '
        'cut the texts.'
      )
    x = layers.embed(self.embedding[...], tokens, config.dtype)
    x += self.positions[begin:end].astype(x.dtype)
    if self.segments is not None:
      x += self.segments[0 if segments is None else segments].astype(x.dtype)
    relative = attention.self_attention_mask(jnp.arange(length)[None], None).relative_positions
    bias = positions.bias(self.bias, relative)
    x, _ = layers.scan_layers(
      self.blocks,
      lambda block, x, *_: (block(x, mask[:, None], bias), None),
      self.norm(x),
      None,
      remat_policy=config.remat_policy,
    )
    return x

  def embed(self, tokens: Int[Array, 'B S'], mask: Bool[Array, 'B S']) -> Float[Array, 'B D']:
    """Compute one float32 vector per row, by the pooling of the configuration."""
    pooled = POOLINGS[self.config.pooling](self.hidden(tokens, mask).astype(jnp.float32), mask)
    if not self.config.normalize:
      return pooled
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


def embedder(model: Bert, vocabulary: Vocabulary, *, batch_size: int = 16) -> Embedder:
  """Build a function from texts to vectors.

  It compiles once for each power of two of rows, and for each of tokens up to 32 or multiple of 32.

  Args:
    model: The encoder.
    vocabulary: The tokenizer of the encoder, whose beginning and end of sequence are [CLS] and
      [SEP].
    batch_size: Number of texts that are encoded together, sorted by length. On a CPU small batches
      are faster, since what a layer computes of them stays in its caches.

  Returns:
    A function of texts that returns their float32 vectors [X, D] in the order of the texts.

  Raises:
    ValueError: The vocabulary has more entries than the encoder.
  """
  if vocabulary.size > model.config.vocab_size:
    raise ValueError(
      f'the vocabulary has {vocabulary.size} entries and the encoder {model.config.vocab_size}: '
      "use the encoder's own tokenizer, from the folder of its weights."
    )
  graph, params = nnx.split(model)
  encode = jax.jit(lambda params, tokens, mask: nnx.merge(graph, params).embed(tokens, mask))

  def embed(texts: Sequence[str]) -> Float[np.ndarray, 'X D']:
    rows = token_rows(vocabulary, texts, model.config.max_length)
    vectors = np.zeros((len(rows), model.config.emb_dim), np.float32)
    for batch in batches(rows, batch_size):
      tokens, mask = pad_rows([rows[i] for i in batch], vocabulary.pad_id, model.config.max_length)
      vectors[batch] = encode(params, tokens, mask)[: len(batch)]
    return vectors

  return embed


def steady_embedder(model: Bert, vocabulary: Vocabulary, *, batch_size: int = 4) -> Embedder:
  """Build a function from texts to vectors that are the same to the last bit in any company.

  `embedder` pads a text to the longest beside it, and sums are rounded as the shape has it. Here
  the shape depends on the text alone: batches of one size, of texts of one padded length.

  Args:
    model: The encoder.
    vocabulary: The tokenizer of the encoder.
    batch_size: Number of texts that are encoded together; missing ones are filled up.
  """
  graph, params = nnx.split(model)
  encode = jax.jit(lambda params, tokens, mask: nnx.merge(graph, params).embed(tokens, mask))

  def embed(texts: Sequence[str]) -> Float[np.ndarray, 'X D']:
    rows = token_rows(vocabulary, texts, model.config.max_length)
    vectors = np.zeros((len(rows), model.config.emb_dim), np.float32)
    lengths = np.array([_padded(len(row)) for row in rows])
    for length in np.unique(lengths):
      alike = np.flatnonzero(lengths == length)
      for begin in range(0, len(alike), batch_size):
        batch = alike[begin : begin + batch_size]
        filled = [rows[i] for i in np.resize(batch, batch_size)]
        tokens, mask = pad_rows(filled, vocabulary.pad_id, model.config.max_length)
        vectors[batch] = encode(params, tokens, mask)[: len(batch)]
    return vectors

  return embed


def token_rows(vocabulary: Vocabulary, texts: Sequence[str], max_length: int) -> list[list[int]]:
  """Ids of texts between [CLS] and [SEP]; those of longer ones are cut to `max_length`."""
  start = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
  most = max_length - len(start) - 1
  return [[*start, *ids[:most], vocabulary.eos_id] for ids in vocabulary.encode_all(texts)]


def batches(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
  """Indices of rows of similar lengths, in batches that `pad_rows` fills up by a quarter at most.

  36 rows are 32 and 4, and not 64 with 28 empty ones.
  """
  by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  while by_length:
    count = min(batch_size, len(by_length))
    padded = _power_of_two(count)
    if 4 * (padded - count) > padded:
      count = padded // 2
    yield by_length[:count]
    by_length = by_length[count:]


def pad_rows(
  rows: Sequence[Sequence[int]], pad_id: int, max_length: int
) -> tuple[Int[np.ndarray, 'B S'], Bool[np.ndarray, 'B S']]:
  """Pad rows and tokens to few sizes, so that few shapes are compiled: tokens and their mask."""
  lengths = np.array([len(row) for row in rows])
  shape = _power_of_two(len(rows)), min(_padded(int(max(lengths))), max_length)
  mask = np.zeros(shape, bool)
  mask[: len(rows)] = np.arange(shape[1]) < lengths[:, None]
  tokens = np.full(shape, pad_id, np.int32)
  tokens[mask] = np.concatenate(rows)
  return tokens, mask


def _padded(length: int) -> int:
  return _power_of_two(length) if length <= STEP else -(-length // STEP) * STEP


def _power_of_two(n: int) -> int:
  return 1 << (int(n) - 1).bit_length()
