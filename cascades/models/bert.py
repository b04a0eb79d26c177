"""BERT encoder: BERT, MiniLM and MPNet are configurations of it. Texts become vectors.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805; MiniLM https://arxiv.org/abs/2002.10957; MPNet
https://arxiv.org/abs/2004.09297; pooling as in https://arxiv.org/abs/1908.10084.
Axes: B batch, S length, D width, N heads, H head size, X texts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
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


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """BERT base by default. MPNet has relative buckets, and neither segments nor positions 0 and 1.

  An encoder reads and does not write: it is no `types.LanguageModel`, and has no `architecture`.
  """

  mlp_activations: ClassVar[tuple[str, ...]] = ()  # the exact GELU, always

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
  normalize: bool = False  # vectors to length 1
  max_length: int = 512  # of a text, in tokens, with the two around it; the rest is cut
  dtype: str = 'float32'  # of the activations
  remat_policy: str = 'elementwise'

  def __post_init__(self) -> None:
    layers.settle(self)
    if self.emb_dim % self.num_heads:
      raise ValueError(f'emb_dim={self.emb_dim} does not split over num_heads={self.num_heads}.')
    if self.pooling not in POOLINGS:
      raise ValueError(f'Unknown pooling {self.pooling!r}; choose one of {", ".join(POOLINGS)}.')
    known = self.num_positions - self.first_position
    if not 2 <= self.max_length <= known:
      raise ValueError(
        f'max_length={self.max_length}, but this model has positions for 2 to {known} tokens.'
      )

  def build(self, key: Array) -> Bert:
    return Bert(self, key)


def mean(hidden: Float[Array, 'B S D'], mask: Bool[Array, 'B S']) -> Float[Array, 'B D']:
  """Over the tokens of `mask`; 0 without any."""
  return jnp.einsum('BSD,BS->BD', hidden, mask) / jnp.maximum(mask.sum(1, keepdims=True), 1)


def first(hidden: Float[Array, 'B S D'], mask: Bool[Array, 'B S']) -> Float[Array, 'B D']:
  """The state of [CLS]."""
  del mask
  return hidden[:, 0]


POOLINGS = {'mean': mean, 'cls': first}


class LayerNorm(nnx.Module):
  """(x - mean) / sqrt(variance + eps) times scale, plus bias, https://arxiv.org/abs/1607.06450."""

  def __init__(self, size: int, *, eps: float):
    self.scale = layers.named(jnp.ones((size,)), 'norm')
    self.bias = layers.named(jnp.zeros((size,)), 'norm')
    self.eps = eps

  def __call__(self, x: Float[Array, '*n D']) -> Float[Array, '*n D']:
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, -1, keepdims=True)
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.eps)
    return (wide * self.scale[...] + self.bias[...]).astype(x.dtype)


class BertBlock(nnx.Module):
  """Self-attention, then the MLP; each adds to x, and the sum is normalised."""

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
    query, source = self.query(x), attention.source(self.key(x), self.value(x))
    read = attention.attend(query, [source], mask, bias=bias, scale=query.shape[-1] ** -0.5)
    x = self.attention_norm(x + self.out(read))
    inner = jax.nn.gelu(self.wi(x), approximate=False)
    x = self.mlp_norm(x + self.wo(layers.constrain(inner, 'batch', 'length', 'activation_mlp')))
    return layers.constrain(x, 'batch', 'length', 'activation_embed')


class Bert(nnx.Module):
  """Every token sees the whole text."""

  def __init__(self, config: BertConfig, key: Array):
    keys = jax.random.split(key, 5)
    self.config = config
    table = functools.partial(layers.normal, stddev=0.02)
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
    self.blocks = layers.stack(functools.partial(BertBlock, config), keys[4], config.num_layers)

  def hidden(self, tokens: Int[Array, 'B S'], mask: Bool[Array, 'B S']) -> Float[Array, 'B S D']:
    """Final states; what `mask` leaves out, padding on the right, is not seen."""
    config, length = self.config, tokens.shape[1]
    begin, end = config.first_position, config.first_position + length
    if end > config.num_positions:
      raise ValueError(
        f'{length} tokens, but this model has positions for {config.num_positions - begin}: cut '
        'the texts.'
      )
    x = layers.embed(self.embedding[...], tokens, config.dtype)
    x += self.positions[begin:end].astype(x.dtype)
    if self.segments is not None:  # a text by itself is the first segment
      x += self.segments[0].astype(x.dtype)
    view = attention.view(jnp.arange(length)[None], None)
    bias = positions.bias(self.bias, view.distance)
    x, _ = layers.scan_layers(
      self.blocks,
      lambda block, x, *_: (block(x, mask[:, None], bias), None),
      self.norm(x),
      None,
      remat_policy=config.remat_policy,
    )
    return x

  def embed(self, tokens: Int[Array, 'B S'], mask: Bool[Array, 'B S']) -> Float[Array, 'B D']:
    """One float32 vector for each row, pooled as the configuration says."""
    pooled = POOLINGS[self.config.pooling](self.hidden(tokens, mask).astype(jnp.float32), mask)
    if not self.config.normalize:
      return pooled
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


def embedder(model: Bert, vocabulary: Vocabulary, *, batch_size: int = 64) -> Embedder:
  """Texts to vectors, in order; compiled once for each power of two of rows and of tokens.

  The vocabulary is the model's own: its beginning and end of sequence, [CLS] and [SEP], stand
  around each text.
  """
  if vocabulary.size > model.config.vocab_size:
    raise ValueError(
      f'the vocabulary has {vocabulary.size} entries and the encoder {model.config.vocab_size}: '
      'give the tokenizer that lies beside its weights.'
    )
  graph, params = nnx.split(model)
  run = jax.jit(lambda params, tokens, mask: nnx.merge(graph, params).embed(tokens, mask))
  start = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
  room = model.config.max_length - len(start) - 1

  def embed(texts: Sequence[str]) -> Float[np.ndarray, 'X D']:
    rows = [[*start, *ids[:room], vocabulary.eos_id] for ids in vocabulary.encode_all(texts)]
    vectors = np.zeros((len(rows), model.config.emb_dim), np.float32)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for begin in range(0, len(rows), batch_size):
      chosen = by_length[begin : begin + batch_size]
      tokens, mask = _padded([rows[i] for i in chosen], vocabulary.pad_id, model.config.max_length)
      vectors[chosen] = run(params, tokens, mask)[: len(chosen)]
    return vectors

  return embed


def _padded(
  rows: Sequence[Sequence[int]], pad_id: int, max_length: int
) -> tuple[Int[np.ndarray, 'B S'], Bool[np.ndarray, 'B S']]:
  """Few shapes: rows and tokens up to the next power of two."""
  lengths = np.array([len(row) for row in rows])
  shape = _power_of_two(len(rows)), min(_power_of_two(max(lengths)), max_length)
  mask = np.zeros(shape, bool)
  mask[: len(rows)] = np.arange(shape[1]) < lengths[:, None]
  tokens = np.full(shape, pad_id, np.int32)
  tokens[mask] = np.concatenate(rows)
  return tokens, mask


def _power_of_two(n: int) -> int:
  return 1 << (int(n) - 1).bit_length()
