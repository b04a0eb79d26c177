"""T5 encoder-decoder: T5 1.0, T5 1.1, FLAN-T5 and T5X's scanned T5 are configurations of it.

Raffel et al. 2020, https://arxiv.org/abs/1910.10683; field names are those of T5X's T5Config.
Axes: B batch, T target, S source, V vocabulary, D width, N heads, H head size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades.models import attention, layers, positions
from cascades.models.attention import Source, View
from cascades.types import Architecture, Batch, Prompt

EPSILON = 1e-6
START = 0  # the decoder's first input is the padding token


@dataclasses.dataclass(frozen=True)
class T5Config:
  """T5 1.1 small by default. 1.0: `mlp_activations=('relu',)` and `logits_via_embedding=True`."""

  architecture: ClassVar[Architecture] = 'encoder_decoder'

  vocab_size: int
  emb_dim: int = 512
  num_heads: int = 6
  num_encoder_layers: int = 8
  num_decoder_layers: int = 8
  head_dim: int = 64
  mlp_dim: int = 1024
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  dropout_rate: float = 0.0
  logits_via_embedding: bool = False
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  relative_bias_per_layer: bool = False  # as T5X's scanned T5; else all layers of a stack share it
  dtype: str = 'float32'  # of the activations
  remat_policy: str = 'elementwise'

  def __post_init__(self) -> None:
    layers.settle(self)

  def build(self, key: Array) -> T5:
    return T5(self, key)


Config = T5Config  # of gin: t5.Config.emb_dim = 8


class T5Cache(NamedTuple):
  """What the decoder has read, and what every layer sees of the prompt."""

  length: Int[Array, 'B']  # decoder inputs, the start token included
  past: Source  # of every layer
  cross: Source  # of every layer
  cross_mask: Bool[Array, 'B 1 S']


def _attention(config: T5Config, key: Array) -> attention.Attention:
  # Attention divides nothing by sqrt(H): the initial queries carry it.
  stddev = (config.emb_dim * config.head_dim) ** -0.5
  return attention.Attention(
    key, config.emb_dim, config.num_heads, config.head_dim, query_stddev=stddev
  )


class EncoderBlock(nnx.Module):
  """Self-attention, then the MLP; each reads the normalised x and adds to x."""

  def __init__(self, config: T5Config, key: Array, *, bidirectional: bool = True):
    self.rate = config.dropout_rate
    self.relative_bias = positions.relative_bias(
      config, jax.random.fold_in(key, 3), bidirectional=bidirectional, per_layer=True
    )
    self.self_norm = layers.RMSNorm(config.emb_dim, eps=EPSILON)
    self.self_attention = _attention(config, jax.random.fold_in(key, 0))
    self.mlp_norm = layers.RMSNorm(config.emb_dim, eps=EPSILON)
    self.mlp = layers.MLP(
      jax.random.fold_in(key, 1), config.emb_dim, config.mlp_dim, config.mlp_activations
    )

  def attend_self(
    self,
    x: Float[Array, 'B T D'],
    view: View,
    bias: Float[Array, '#B N T S'] | None,
    *,
    past: Sequence[Source] = (),
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], Source]:
    """Attend to `past` and x itself, and hand back what x adds to the past.

    `bias` is that of all layers, None if each has its own.
    """
    y = self.self_norm(x)
    new = self.self_attention.source(y)
    read = self.self_attention(
      y,
      [*past, new],
      view.mask,
      bias=positions.bias(self.relative_bias, view.distance) if bias is None else bias,
      rate=self.rate,
      key=layers.fold(key, 0),
    )
    return x + layers.dropout(read, self.rate, layers.fold(key, 1)), new

  def feed_forward(
    self, x: Float[Array, 'B T D'], *, key: Array | None = None
  ) -> Float[Array, 'B T D']:
    y = self.mlp(self.mlp_norm(x), rate=self.rate, key=layers.fold(key, 2))
    x += layers.dropout(y, self.rate, layers.fold(key, 3))
    return layers.constrain(x, 'batch', 'length', 'activation_embed')


class DecoderBlock(EncoderBlock):
  """An encoder block that attends to the encoder before its MLP."""

  def __init__(self, config: T5Config, key: Array):
    super().__init__(config, key, bidirectional=False)
    self.cross_norm = layers.RMSNorm(config.emb_dim, eps=EPSILON)
    self.cross_attention = _attention(config, jax.random.fold_in(key, 2))

  def attend_cross(
    self,
    x: Float[Array, 'B T D'],
    source: Source,
    mask: Bool[Array, '#B #T S'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'B T D']:
    read = self.cross_attention(
      self.cross_norm(x), [source], mask, rate=self.rate, key=layers.fold(key, 4)
    )
    return x + layers.dropout(read, self.rate, layers.fold(key, 5))


class T5(nnx.Module):
  """A `types.LanguageModel` whose prompt enters through the encoder."""

  def __init__(self, config: T5Config, key: Array):
    keys = jax.random.split(key, 6)
    self.config = config
    table = functools.partial(layers.table, config.vocab_size, config.emb_dim)
    self.embedding = table(keys[0], stddev=1.0)
    self.unembedding = (
      None if config.logits_via_embedding else table(keys[1], stddev=config.emb_dim**-0.5)
    )
    shared_bias = functools.partial(positions.relative_bias, config, per_layer=False)
    self.encoder_bias = shared_bias(keys[2], bidirectional=True)
    self.decoder_bias = shared_bias(keys[3], bidirectional=False)
    self.encoder = layers.stack(
      functools.partial(EncoderBlock, config), keys[4], config.num_encoder_layers
    )
    self.decoder = layers.stack(
      functools.partial(DecoderBlock, config), keys[5], config.num_decoder_layers
    )
    self.encoder_norm = layers.RMSNorm(config.emb_dim, eps=EPSILON)
    self.decoder_norm = layers.RMSNorm(config.emb_dim, eps=EPSILON)

  def hidden(self, batch: Batch, key: Array | None = None) -> Float[Array, 'B T D']:
    """Final decoder states. Without segments, token 0 is the encoder's padding."""
    if batch.encoder is None:
      raise ValueError(
        'An encoder-decoder batch needs `encoder` tokens and has none; make it with the '
        'encoder-decoder converter, or train a decoder-only model on it.'
      )
    if (batch.segments is None) != (batch.encoder_segments is None):
      raise ValueError('A packed batch needs both `segments` and `encoder_segments`, or neither.')
    steps = jnp.arange(batch.inputs.shape[1])[None]
    segments, encoder_segments = batch.segments, batch.encoder_segments
    if segments is None or encoder_segments is None:
      segments, encoder_segments = jnp.ones_like(steps), (batch.encoder != 0).astype(jnp.int32)
    encoded = self._encode(batch.encoder, encoder_segments, layers.fold(key, 0))
    x, _ = self._decode(
      batch.inputs,
      attention.causal(attention.view(steps, segments)),
      attention.same(segments, encoder_segments),
      lambda block, _: block.cross_attention.source(encoded),
      key=layers.fold(key, 1),
    )
    return x

  @property
  def table(self) -> Any:
    return (self.embedding if self.unembedding is None else self.unembedding)[...]

  def readout(self, hidden: Float[Array, '*n D'], table: Any = None) -> Float[Array, '*n V']:
    scale = self.config.emb_dim**-0.5 if self.unembedding is None else 1.0
    return layers.unembed(self.table if table is None else table, hidden * scale)

  def prefill(self, prompt: Prompt, max_len: int) -> tuple[Float[Array, 'B V'], T5Cache]:
    """Encode the prompt and feed the start token."""
    B, S = prompt.tokens.shape
    seen = jnp.arange(S) < prompt.length[:, None]
    encoded = self._encode(prompt.tokens, seen.astype(jnp.int32), None)
    _, cross = layers.scan_layers(
      self.decoder, lambda block, x, *_: (x, block.cross_attention.source(x)), encoded, None
    )
    past = attention.room((cross[0][..., :0], cross[1][..., :0, :]), max_len + 1)
    cache = T5Cache(jnp.zeros(B, jnp.int32), past, cross, seen[:, None])
    logits, cache = self.extend(jnp.full((B, 1), START), cache)
    return logits[:, 0], cache

  def extend(
    self, tokens: Int[Array, 'B L'], cache: T5Cache
  ) -> tuple[Float[Array, 'B L V'], T5Cache]:
    L = tokens.shape[1]
    view = attention.cached_view(cache.length, cache.past[0].shape[-1], L)
    x, new = self._decode(
      tokens, view, cache.cross_mask, lambda _, cross: cross, cached=(cache.past, cache.cross)
    )
    past = attention.append(cache.past, new, cache.length)
    return self.readout(x), cache._replace(length=cache.length + L, past=past)

  def _encode(
    self, tokens: Int[Array, 'B S'], segments: Int[Array, 'B S'], key: Array | None
  ) -> Float[Array, 'B S D']:
    """Every token sees its own segment, to both sides."""
    config = self.config
    view = attention.view(jnp.arange(tokens.shape[1])[None], segments)
    bias = positions.bias(self.encoder_bias, view.distance)

    def step(block: EncoderBlock, x: Array, _: None, key: Array | None) -> tuple[Array, None]:
      x = block.attend_self(x, view, bias, key=key)[0]
      return block.feed_forward(x, key=key), None

    x = layers.embed(self.embedding[...], tokens, config.dtype)
    x = layers.dropout(x, config.dropout_rate, layers.fold(key, 0))
    x, _ = layers.scan_layers(
      self.encoder, step, x, None, key=layers.fold(key, 1), remat_policy=config.remat_policy
    )
    return layers.dropout(self.encoder_norm(x), config.dropout_rate, layers.fold(key, 2))

  def _decode(
    self,
    tokens: Int[Array, 'B T'],
    view: View,
    cross_mask: Bool[Array, '#B #T S'],
    cross_source: Callable[[DecoderBlock, Any], Source],
    *,
    cached: tuple[Source | None, Source | None] = (None, None),
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], Source]:
    """Final states, and what the tokens add to the past of every layer.

    `cached` holds every layer's past and cross source; `cross_source` takes the latter or makes it.
    """
    config = self.config
    bias = positions.bias(self.decoder_bias, view.distance)

    def step(block: DecoderBlock, x: Array, cached: Any, key: Array | None) -> tuple[Array, Source]:
      past, cross = cached
      x, new = block.attend_self(x, view, bias, past=[past] if past else [], key=key)
      x = block.attend_cross(x, cross_source(block, cross), cross_mask, key=key)
      return block.feed_forward(x, key=key), new

    x = layers.embed(self.embedding[...], tokens, config.dtype)
    x = layers.dropout(x, config.dropout_rate, layers.fold(key, 0))
    x, new = layers.scan_layers(
      self.decoder, step, x, cached, key=layers.fold(key, 1), remat_policy=config.remat_policy
    )
    return layers.dropout(self.decoder_norm(x), config.dropout_rate, layers.fold(key, 2)), new
