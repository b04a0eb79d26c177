"""Decoder-only transformer; Llama, SmolLM2, Qwen, Gemma and T5X's are configurations of it.

Llama 3 https://arxiv.org/abs/2407.21783, Qwen 3 https://arxiv.org/abs/2505.09388, Gemma 2
https://arxiv.org/abs/2408.00118, Gemma 3 https://arxiv.org/abs/2503.19786, T5X's decoder_only
example https://github.com/google-research/t5x.
Axes: B batch, T length, V vocabulary, D width, N heads, K key-value heads, H head size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades.models import attention, layers, positions, splash
from cascades.models.attention import AttentionMask, KeyValue
from cascades.types import Architecture, Batch, Prompt

NO_WINDOW = 2**30


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Configuration of a decoder-only model, Llama style by default.

  Tuples named `..._pattern` repeat over the layers.

  Attributes:
    vocab_size: Number V of rows of the embedding table, padding rows included; in `train` and
      `plan`, 0 for as many as the vocabulary has, in multiples of 128.
    emb_dim: Width D of the residual stream.
    num_heads: Number N of query heads.
    num_kv_heads: Number K of key-value heads; divides num_heads.
    num_layers: Number of blocks.
    head_dim: Size H of a head.
    mlp_dim: Number of hidden channels of each MLP.
    mlp_activations: One projection and activation each, multiplied: see `layers.MLP`.
    dropout_rate: Probability of dropping, in training only.
    logits_via_embedding: Read out with the embedding table instead of a table of its own.
    embedding_scale: Factor of embeddings; sqrt(D) in Gemma.
    norm_eps: Added to the mean square in norms.
    norm_offset: Added to the scales of norms; 1 in Gemma.
    post_norms: Also normalize the outputs of attention and MLP, as in Gemma 2 and 3.
    qk_norm: Normalize queries and keys per head, as in Qwen 3 and Gemma 3.
    qkv_bias: Add biases to queries, keys and values, as in Qwen 2.
    query_scale: Factor of attention's inner products; None is 1 / sqrt(H).
    attention_softcap: Bound of attention's logits; None for no bound.
    logit_scale: Factor of final states before readout; 1 / sqrt(D) in T5X with tied tables.
    logit_softcap: Bound of the logits; None for no bound.
    window_pattern: Number of tokens that a layer attends to, itself included; None is all.
    rope_theta_pattern: Base of the rotary frequencies.
    rope_factor_pattern: Divisor of positions (linear scaling).
    rope_llama3: Llama 3.1's scaling: factor, low_freq_factor, high_freq_factor, original length.
    relative_attention_num_buckets: Buckets of T5X's relative biases, which replace rotary
      positions; None for rotary positions.
    relative_attention_max_distance: Distance in tokens from which all share the last bucket.
    relative_bias_per_layer: One table of biases per layer, as in T5X before 2024.
    bidirectional_prompt: Prefix language model: tokens of a prompt attend to all of it.
    dtype: Dtype of the activations, 'float32' or 'bfloat16'.
    remat_policy: What the backward pass recomputes, a name in `layers.REMAT_POLICIES`.
  """

  architecture: ClassVar[Architecture] = 'decoder_only'

  vocab_size: int
  emb_dim: int
  num_heads: int
  num_kv_heads: int
  num_layers: int
  head_dim: int
  mlp_dim: int
  mlp_activations: tuple[str, ...] = ('silu', 'linear')
  dropout_rate: float = 0.0
  logits_via_embedding: bool = True
  embedding_scale: float = 1.0
  norm_eps: float = 1e-6
  norm_offset: float = 0.0
  post_norms: bool = False
  qk_norm: bool = False
  qkv_bias: bool = False
  query_scale: float | None = None
  attention_softcap: float | None = None
  logit_scale: float = 1.0
  logit_softcap: float | None = None
  window_pattern: tuple[int | None, ...] = (None,)
  rope_theta_pattern: tuple[float, ...] = (10_000.0,)
  rope_factor_pattern: tuple[float, ...] = (1.0,)
  rope_llama3: tuple[float, float, float, int] | None = None
  relative_attention_num_buckets: int | None = None
  relative_attention_max_distance: int = 128
  relative_bias_per_layer: bool = False
  bidirectional_prompt: bool = False
  dtype: str = 'float32'
  remat_policy: str = 'elementwise'

  def __post_init__(self) -> None:
    layers.validate_config(self)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}: every '
        'key-value head serves the same number of query heads.'
      )

  def build(self, key: Array) -> Decoder:
    """Build the model with random float32 parameters."""
    return Decoder(self, key)


Config = DecoderConfig  # of gin: decoder.Config.emb_dim = 8


class DecoderCache(NamedTuple):
  """Keys and values of the tokens read so far, of all layers.

  Shorten `length` to reject tokens: what the cache holds beyond it is never read.
  """

  length: Int[Array, 'B']  # number of tokens, the prompt included
  key_value: KeyValue

  def insert(
    self, row: int | Array, other: DecoderCache, other_row: int | Array = 0
  ) -> DecoderCache:
    """Replace row `row` by row `other_row` of `other`; see `types.Cache.insert`."""
    return DecoderCache(
      self.length.at[row].set(other.length[other_row], mode='drop'),
      attention.insert(self.key_value, row, other.key_value, other_row),
    )


class TransformerBlock(nnx.Module):
  """Self-attention and MLP, each with a norm before it and a residual connection around it."""

  def __init__(self, config: DecoderConfig, key: Array):
    self.config = config
    norm = functools.partial(layers.RMSNorm, eps=config.norm_eps, offset=config.norm_offset)
    keys = jax.random.split(key)
    # Initial queries and query_scale together divide by sqrt(H).
    query_stddev = (
      None
      if config.query_scale is None
      else (config.emb_dim * config.head_dim) ** -0.5 / config.query_scale
    )
    self.relative_bias = positions.relative_bias(
      config, jax.random.fold_in(key, 2), bidirectional=False, per_layer=True
    )
    self.attention = attention.Attention(
      keys[0],
      config.emb_dim,
      config.num_heads,
      config.head_dim,
      num_kv_heads=config.num_kv_heads,
      query_stddev=query_stddev,
      qkv_bias=config.qkv_bias,
    )
    self.mlp = layers.MLP(keys[1], config.emb_dim, config.mlp_dim, config.mlp_activations)
    self.attention_norm, self.mlp_norm = norm(config.emb_dim), norm(config.emb_dim)
    self.query_norm, self.key_norm = (
      norm(config.head_dim) if config.qk_norm else None for _ in range(2)
    )
    self.post_attention_norm, self.post_mlp_norm = (
      norm(config.emb_dim) if config.post_norms else None for _ in range(2)
    )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    mask: AttentionMask,
    frequencies: Float[Array, 'H/2'] | None,
    bias: Float[Array, '#B N T S'] | None,
    *,
    cache: Sequence[KeyValue] = (),
    kernel: Callable[..., Array] | None = None,
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], KeyValue]:
    """Attend to the cache and to x, apply the MLP; return x and its keys and values.

    Without rotary `frequencies`, positions enter by relative biases: `bias`, which all layers
    share, or the layer's own. `kernel(attend, query, new)` may replace plain attention.
    """
    rate = self.config.dropout_rate
    residual = lambda x, y, index: x + layers.dropout(y, rate, layers.fold_in(key, index))

    def rotate(norm: layers.RMSNorm | None, x: Array) -> Array:
      x = _apply(norm, x)
      return x if frequencies is None else positions.rotate(x, mask.positions, frequencies)

    y = self.attention_norm(x)
    query = rotate(self.query_norm, self.attention.query(y))
    new = attention.key_value(rotate(self.key_norm, self.attention.key(y)), self.attention.value(y))
    if bias is None:
      bias = positions.bias(self.relative_bias, mask.relative_positions)
    attend = lambda query, new: attention.attend(
      query,
      [*cache, new],
      mask.visible,
      **_logit_options(self.config),
      bias=bias,
      rate=rate,
      key=layers.fold_in(key, 0),
    )
    y = kernel(attend, query, new) if kernel else attend(query, new)
    x = residual(x, _apply(self.post_attention_norm, self.attention.out(y)), 1)
    y = self.mlp(self.mlp_norm(x), rate=rate, key=layers.fold_in(key, 2))
    x = residual(x, _apply(self.post_mlp_norm, y), 3)
    return layers.constrain(x, 'batch', 'length', 'activation_embed'), new


def _windows(config: DecoderConfig) -> list[int | None]:
  """Distinct window sizes of the layers."""
  return list(dict.fromkeys(config.window_pattern))


def _logit_options(config: DecoderConfig) -> dict[str, Any]:
  scale = config.query_scale or config.head_dim**-0.5
  return {'scale': scale, 'cap': config.attention_softcap}


def _apply(norm: layers.RMSNorm | None, x: Array) -> Array:
  return x if norm is None else norm(x)


def _within_prompt(
  mask: AttentionMask, weights: Float[Array, 'B T'] | None
) -> Bool[Array, 'B T T']:
  """True where query and key are in the prompt of one segment: no target comes before them."""
  if weights is None:
    raise ValueError(
      'A model with bidirectional_prompt=True needs the `weights` of a batch, which tell prompts '
      'from its targets, and this batch has none.'
    )
  earlier_targets = mask.visible & (mask.relative_positions < 0) & (weights > 0)[:, None]
  prompt = ~earlier_targets.any(-1)
  return mask.visible & prompt[:, :, None] & prompt[:, None]


def _repeat(pattern: Sequence[Any], num: int) -> list[Any]:
  return [pattern[i % len(pattern)] for i in range(num)]


class Decoder(nnx.Module):
  """Decoder-only model, a `types.LanguageModel` that reads the prompt left of the targets."""

  def __init__(self, config: DecoderConfig, key: Array):
    keys = jax.random.split(key, 3)
    self.config = config
    # Logits of a new model have unit variance, whatever their scale.
    stddev = config.emb_dim**-0.5 / config.logit_scale
    table = functools.partial(
      layers.embedding_table, config.vocab_size, config.emb_dim, stddev=stddev
    )
    self.embedding = table(keys[0])
    self.unembedding = None if config.logits_via_embedding else table(keys[1])
    self.relative_bias = positions.relative_bias(
      config, jax.random.fold_in(key, 3), bidirectional=False, per_layer=False
    )
    self.blocks = layers.stack_layers(
      functools.partial(TransformerBlock, config), keys[2], config.num_layers
    )
    self.norm = layers.RMSNorm(config.emb_dim, eps=config.norm_eps, offset=config.norm_offset)

  def hidden(self, batch: Batch, key: Array | None = None) -> Float[Array, 'B T D']:
    """Compute final states under teacher forcing.

    Args:
      batch: Examples with their prompts in `inputs`; packed ones do not attend to each other.
        Padding on the right needs no mask.
      key: Random key of dropout; None switches it off.

    Raises:
      ValueError: The batch has encoder tokens.
    """
    if batch.encoder is not None:
      raise ValueError(
        'A decoder-only batch carries its prompt in `inputs`, but this one has `encoder` tokens; '
        'make it with the decoder-only converter, or train an encoder-decoder on it.'
      )
    token_positions = batch.positions
    if token_positions is None:
      token_positions = jnp.arange(batch.inputs.shape[1])[None]
    bidirectional = attention.self_attention_mask(token_positions, batch.segments)
    mask = attention.causal(bidirectional)
    if self.config.bidirectional_prompt:
      within_prompt = _within_prompt(bidirectional, batch.weights)
      mask = mask._replace(visible=mask.visible | within_prompt)
    x, _ = self._run(batch.inputs, mask, kernel=self._kernel(batch, key), key=key)
    return x

  def _kernel(self, batch: Batch, key: Array | None) -> Callable[..., Array] | None:
    """Splash attention, where it applies: causal, without biases or dropout."""
    config = self.config
    biased = config.bidirectional_prompt or config.relative_attention_num_buckets is not None
    dropout = key is not None and config.dropout_rate > 0
    if biased or dropout or not splash.supports(batch.inputs.shape[1]):
      return None
    return functools.partial(
      splash.attend_on_tpu,
      segments=batch.segments,
      windows=_windows(config),
      **_logit_options(config),
    )

  @property
  def table(self) -> Any:
    return (self.embedding if self.unembedding is None else self.unembedding)[...]

  def readout(self, hidden: Float[Array, '*n D'], table: Any = None) -> Float[Array, '*n V']:
    scaled = hidden * self.config.logit_scale
    logits = layers.unembed(self.table if table is None else table, scaled)
    return layers.softcap(logits, self.config.logit_softcap)

  def prefill(self, prompt: Prompt, max_len: int) -> tuple[Float[Array, 'B V'], DecoderCache]:
    """Read the prompt. Its padding enters the cache beyond `length`, where it is never read."""
    B, S = prompt.tokens.shape
    mask = attention.causal(attention.self_attention_mask(jnp.arange(S)[None], None))
    if self.config.bidirectional_prompt:
      mask = mask._replace(visible=jnp.arange(S) < prompt.length[:, None, None])
    x, key_value = self._run(prompt.tokens, mask)
    last = x[jnp.arange(B), jnp.maximum(prompt.length - 1, 0)]
    return self.readout(last), DecoderCache(prompt.length, attention.allocate(key_value, max_len))

  def extend(
    self, tokens: Int[Array, 'B L'], cache: DecoderCache
  ) -> tuple[Float[Array, 'B L V'], DecoderCache]:
    B, L = tokens.shape
    length = cache.length[:B]
    mask = attention.decoding_mask(length, cache.key_value.capacity, L)
    x, new = self._run(tokens, mask, cache=cache.key_value)
    extended = attention.append(cache.key_value, new, length)
    return self.readout(x), DecoderCache(attention.overwrite(cache.length, length + L), extended)

  def _run(
    self,
    tokens: Int[Array, 'B T'],
    mask: AttentionMask,
    *,
    cache: KeyValue | None = None,
    kernel: Callable[..., Array] | None = None,
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], KeyValue]:
    """Compute final states, and the keys and values of the tokens in every layer."""
    config = self.config
    windows = _windows(config)
    window_sizes = jnp.asarray([window or NO_WINDOW for window in windows])

    def step(
      block: TransformerBlock, x: Array, scanned: Any, key: Array | None
    ) -> tuple[Array, KeyValue]:
      window, frequencies, cache = scanned
      in_window = mask.relative_positions > -window_sizes[window]
      return block(
        x,
        mask._replace(visible=mask.visible & in_window),
        frequencies,
        bias,
        cache=[attention.first_rows(cache, len(x))] if cache else [],
        kernel=kernel and functools.partial(kernel, window=window),
        key=key,
      )

    layer_windows = [windows.index(w) for w in _repeat(config.window_pattern, config.num_layers)]
    rotary = config.relative_attention_num_buckets is None
    layer_frequencies = jnp.asarray(frequencies(config), jnp.float32) if rotary else None
    xs = (jnp.asarray(layer_windows), layer_frequencies, cache)
    bias = positions.bias(self.relative_bias, mask.relative_positions)
    x = layers.embed(self.embedding[...], tokens, config.dtype)
    x = layers.dropout(x * config.embedding_scale, config.dropout_rate, layers.fold_in(key, 0))
    x, new = layers.scan_layers(
      self.blocks, step, x, xs, key=layers.fold_in(key, 1), remat_policy=config.remat_policy
    )
    return layers.dropout(self.norm(x), config.dropout_rate, layers.fold_in(key, 2)), new


def frequencies(config: DecoderConfig) -> Float[np.ndarray, 'layers H/2']:
  """Rotary frequencies of every layer, in radians per position."""
  per_layer = zip(
    _repeat(config.rope_theta_pattern, config.num_layers),
    _repeat(config.rope_factor_pattern, config.num_layers),
    strict=True,
  )
  return np.stack(
    [
      positions.inverse_frequencies(
        config.head_dim, theta, linear_factor=factor, llama3=config.rope_llama3
      )
      for theta, factor in per_layer
    ]
  )
