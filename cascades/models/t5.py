"""T5 encoder-decoder; T5 1.0, T5 1.1, FLAN-T5 and T5X's scanned T5 are configurations of it.

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
from cascades.models.attention import AttentionMask, KeyValue
from cascades.types import Architecture, Batch, Prompt

EPSILON = 1e-6
START = 0  # the decoder's first input is the padding token


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Configuration of a T5 model, T5 1.1 small by default; JSON and gin set it by field name.

  T5 1.0 has `mlp_activations=('relu',)` and `logits_via_embedding=True`.

  Attributes:
    vocab_size: Number V of rows of the embedding table, padding rows included; in `train` and
      `plan`, 0 for as many as the vocabulary has, in multiples of 128.
    emb_dim: Width D of the residual stream.
    num_heads: Number of attention heads.
    num_encoder_layers: Number of encoder blocks.
    num_decoder_layers: Number of decoder blocks.
    head_dim: Size H of a head; num_heads x head_dim need not be emb_dim.
    mlp_dim: Number of hidden channels of each MLP.
    mlp_activations: One projection and activation each, multiplied: see `layers.MLP`.
    dropout_rate: Probability of dropping, in training only.
    logits_via_embedding: Read out with the scaled embedding table instead of a table of its own.
    relative_attention_num_buckets: Number of buckets of relative positions.
    relative_attention_max_distance: Distance in tokens from which all share the last bucket.
    relative_bias_per_layer: One table of biases per layer, as in T5X's scanned T5, instead of one
      per stack.
    dtype: Dtype of the activations, 'float32' or 'bfloat16'.
    remat_policy: What the backward pass recomputes, a name in `layers.REMAT_POLICIES`.
  """

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
  relative_bias_per_layer: bool = False
  dtype: str = 'float32'
  remat_policy: str = 'elementwise'

  def __post_init__(self) -> None:
    layers.validate_config(self)

  def build(self, key: Array) -> T5:
    """Build the model with random float32 parameters."""
    return T5(self, key)


Config = T5Config  # of gin: t5.Config.emb_dim = 8


class T5Cache(NamedTuple):
  """Keys and values of the decoder's inputs and of the encoded prompt, of all layers.

  Shorten `length` to reject tokens: what the cache holds beyond it is never read.
  """

  length: Int[Array, 'B']  # number of decoder inputs, the start token included
  self_attention: KeyValue
  cross_attention: KeyValue
  cross_visible: Bool[Array, 'B 1 S']  # False on padding of the prompt

  def insert(self, row: int | Array, other: T5Cache, other_row: int | Array = 0) -> T5Cache:
    """Replace row `row` by row `other_row` of `other`; see `types.Cache.insert`."""
    visible = other.cross_visible[other_row]
    padding = self.cross_visible.shape[-1] - visible.shape[-1]
    cross_attention = attention.insert(self.cross_attention, row, other.cross_attention, other_row)
    return T5Cache(
      length=self.length.at[row].set(other.length[other_row], mode='drop'),
      self_attention=attention.insert(self.self_attention, row, other.self_attention, other_row),
      cross_attention=cross_attention,
      cross_visible=self.cross_visible.at[row].set(
        jnp.pad(visible, ((0, 0), (0, padding))), mode='drop'
      ),
    )


def _attention(config: T5Config, key: Array) -> attention.Attention:
  # T5 does not divide logits by sqrt(H): the initialization of the queries does.
  stddev = (config.emb_dim * config.head_dim) ** -0.5
  return attention.Attention(
    key, config.emb_dim, config.num_heads, config.head_dim, query_stddev=stddev
  )


class EncoderBlock(nnx.Module):
  """Self-attention and MLP, each with a norm before it and a residual connection around it."""

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
    mask: AttentionMask,
    bias: Float[Array, '#B N T S'] | None,
    *,
    cache: Sequence[KeyValue] = (),
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], KeyValue]:
    """Attend to the cache and to x; return x and its keys and values.

    `bias` is shared by all layers; None if each layer has its own.
    """
    y = self.self_norm(x)
    new = self.self_attention.key_value(y)
    if bias is None:
      bias = positions.bias(self.relative_bias, mask.relative_positions)
    y = self.self_attention(
      y,
      [*cache, new],
      mask.visible,
      bias=bias,
      rate=self.rate,
      key=layers.fold_in(key, 0),
    )
    return x + layers.dropout(y, self.rate, layers.fold_in(key, 1)), new

  def feed_forward(
    self, x: Float[Array, 'B T D'], *, key: Array | None = None
  ) -> Float[Array, 'B T D']:
    """Apply the MLP."""
    y = self.mlp(self.mlp_norm(x), rate=self.rate, key=layers.fold_in(key, 2))
    x += layers.dropout(y, self.rate, layers.fold_in(key, 3))
    return layers.constrain(x, 'batch', 'length', 'activation_embed')


class DecoderBlock(EncoderBlock):
  """Encoder block with cross-attention between self-attention and MLP."""

  def __init__(self, config: T5Config, key: Array):
    super().__init__(config, key, bidirectional=False)
    self.cross_norm = layers.RMSNorm(config.emb_dim, eps=EPSILON)
    self.cross_attention = _attention(config, jax.random.fold_in(key, 2))

  def attend_cross(
    self,
    x: Float[Array, 'B T D'],
    encoded: KeyValue,
    visible: Bool[Array, '#B #T S'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'B T D']:
    """Attend to the visible tokens of the encoder."""
    y = self.cross_attention(
      self.cross_norm(x), [encoded], visible, rate=self.rate, key=layers.fold_in(key, 4)
    )
    return x + layers.dropout(y, self.rate, layers.fold_in(key, 5))


class T5(nnx.Module):
  """T5 model, a `types.LanguageModel` that reads the prompt through its encoder."""

  def __init__(self, config: T5Config, key: Array):
    keys = jax.random.split(key, 6)
    self.config = config
    table = functools.partial(layers.embedding_table, config.vocab_size, config.emb_dim)
    self.embedding = table(keys[0], stddev=1.0)
    self.unembedding = (
      None if config.logits_via_embedding else table(keys[1], stddev=config.emb_dim**-0.5)
    )
    shared_bias = functools.partial(positions.relative_bias, config, per_layer=False)
    self.encoder_bias = shared_bias(keys[2], bidirectional=True)
    self.decoder_bias = shared_bias(keys[3], bidirectional=False)
    self.encoder = layers.stack_layers(
      functools.partial(EncoderBlock, config), keys[4], config.num_encoder_layers
    )
    self.decoder = layers.stack_layers(
      functools.partial(DecoderBlock, config), keys[5], config.num_decoder_layers
    )
    self.encoder_norm = layers.RMSNorm(config.emb_dim, eps=EPSILON)
    self.decoder_norm = layers.RMSNorm(config.emb_dim, eps=EPSILON)

  def hidden(self, batch: Batch, key: Array | None = None) -> Float[Array, 'B T D']:
    """Compute final decoder states under teacher forcing.

    Args:
      batch: Examples whose prompts are in `encoder`. Without segments, token 0 of the encoder is
        padding.
      key: Random key of dropout; None switches it off.

    Raises:
      ValueError: The batch has no encoder tokens, or segments on one side only.
    """
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
    encoded = self._encode(batch.encoder, encoder_segments, layers.fold_in(key, 0))
    x, _ = self._decode(
      batch.inputs,
      attention.causal(attention.self_attention_mask(steps, segments)),
      attention.segment_mask(segments, encoder_segments),
      lambda block, _: block.cross_attention.key_value(encoded),
      key=layers.fold_in(key, 1),
    )
    return x

  @property
  def table(self) -> Any:
    return (self.embedding if self.unembedding is None else self.unembedding)[...]

  def readout(self, hidden: Float[Array, '*n D'], table: Any = None) -> Float[Array, '*n V']:
    scale = self.config.emb_dim**-0.5 if self.unembedding is None else 1.0
    return layers.unembed(self.table if table is None else table, hidden * scale)

  def prefill(self, prompt: Prompt, max_len: int) -> tuple[Float[Array, 'B V'], T5Cache]:
    """Encode the prompt and feed the start token to the decoder."""
    B, S = prompt.tokens.shape
    visible = jnp.arange(S) < prompt.length[:, None]
    encoded = self._encode(prompt.tokens, visible.astype(jnp.int32), None)
    _, cross = layers.scan_layers(
      self.decoder, lambda block, x, *_: (x, block.cross_attention.key_value(x)), encoded, None
    )
    empty = KeyValue(cross.key[..., :0], cross.value[..., :0, :])
    cache = T5Cache(
      jnp.zeros(B, jnp.int32), attention.allocate(empty, max_len + 1), cross, visible[:, None]
    )
    logits, cache = self.extend(jnp.full((B, 1), START), cache)
    return logits[:, 0], cache

  def extend(
    self, tokens: Int[Array, 'B L'], cache: T5Cache
  ) -> tuple[Float[Array, 'B L V'], T5Cache]:
    B, L = tokens.shape
    length = cache.length[:B]
    x, new = self._decode(
      tokens,
      attention.decoding_mask(length, cache.self_attention.capacity, L),
      cache.cross_visible[:B],
      lambda _, cross: attention.first_rows(cross, B),
      cached=(cache.self_attention, cache.cross_attention),
    )
    extended = attention.append(cache.self_attention, new, length)
    return self.readout(x), cache._replace(
      length=attention.overwrite(cache.length, length + L), self_attention=extended
    )

  def _encode(
    self, tokens: Int[Array, 'B S'], segments: Int[Array, 'B S'], key: Array | None
  ) -> Float[Array, 'B S D']:
    """Compute final encoder states; attention is bidirectional within segments."""
    config = self.config
    mask = attention.self_attention_mask(jnp.arange(tokens.shape[1])[None], segments)
    bias = positions.bias(self.encoder_bias, mask.relative_positions)

    def step(block: EncoderBlock, x: Array, _: None, key: Array | None) -> tuple[Array, None]:
      x = block.attend_self(x, mask, bias, key=key)[0]
      return block.feed_forward(x, key=key), None

    x = layers.embed(self.embedding[...], tokens, config.dtype)
    x = layers.dropout(x, config.dropout_rate, layers.fold_in(key, 0))
    x, _ = layers.scan_layers(
      self.encoder, step, x, None, key=layers.fold_in(key, 1), remat_policy=config.remat_policy
    )
    return layers.dropout(self.encoder_norm(x), config.dropout_rate, layers.fold_in(key, 2))

  def _decode(
    self,
    tokens: Int[Array, 'B T'],
    mask: AttentionMask,
    cross_visible: Bool[Array, '#B #T S'],
    cross_key_value: Callable[[DecoderBlock, Any], KeyValue],
    *,
    cached: tuple[KeyValue | None, KeyValue | None] = (None, None),
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], KeyValue]:
    """Compute final decoder states, and the keys and values of the tokens in every layer.

    `cached` are the keys and values of self-attention and of cross-attention;
    `cross_key_value(block, cached)` returns the latter or projects them.
    """
    config = self.config
    bias = positions.bias(self.decoder_bias, mask.relative_positions)

    def step(
      block: DecoderBlock, x: Array, cached: Any, key: Array | None
    ) -> tuple[Array, KeyValue]:
      cache, cross = cached
      used = [attention.first_rows(cache, len(x))] if cache else []
      x, new = block.attend_self(x, mask, bias, cache=used, key=key)
      x = block.attend_cross(x, cross_key_value(block, cross), cross_visible, key=key)
      return block.feed_forward(x, key=key), new

    x = layers.embed(self.embedding[...], tokens, config.dtype)
    x = layers.dropout(x, config.dropout_rate, layers.fold_in(key, 0))
    x, new = layers.scan_layers(
      self.decoder, step, x, cached, key=layers.fold_in(key, 1), remat_policy=config.remat_policy
    )
    return layers.dropout(self.decoder_norm(x), config.dropout_rate, layers.fold_in(key, 2)), new
