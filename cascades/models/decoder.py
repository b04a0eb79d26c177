"""Decoder-only transformer: Llama, SmolLM2, Qwen, Gemma and T5X's are configurations of it.

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
from cascades.models.attention import Source, View
from cascades.types import Architecture, Batch, Prompt

NO_WINDOW = 2**30


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Llama style by default. Tuples named `..._pattern` repeat over the layers."""

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
  embedding_scale: float = 1.0  # Gemma: sqrt(D)
  norm_eps: float = 1e-6
  norm_offset: float = 0.0  # Gemma: 1
  post_norms: bool = False  # Gemma 2 and 3: also normalise what a block adds
  qk_norm: bool = False  # Qwen 3, Gemma 3
  qkv_bias: bool = False  # Qwen 2
  query_scale: float | None = None  # None: 1 / sqrt(H)
  attention_softcap: float | None = None
  logit_scale: float = 1.0  # T5X, if the embedding gives the logits: 1 / sqrt(D)
  logit_softcap: float | None = None
  window_pattern: tuple[int | None, ...] = (None,)  # how many tokens are seen, itself included
  rope_theta_pattern: tuple[float, ...] = (10_000.0,)
  rope_factor_pattern: tuple[float, ...] = (1.0,)  # positions are divided by it
  # Llama 3.1: factor, low_freq_factor, high_freq_factor, original length.
  rope_llama3: tuple[float, float, float, int] | None = None
  relative_attention_num_buckets: int | None = None  # T5X: biases, and no rotary positions
  relative_attention_max_distance: int = 128
  relative_bias_per_layer: bool = False  # T5X before 2024; else all layers share it
  bidirectional_prompt: bool = False  # T5X's prefix LM: tokens of the prompt see all of it
  dtype: str = 'float32'  # of the activations
  remat_policy: str = 'elementwise'

  def __post_init__(self) -> None:
    layers.settle(self)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; every '
        'key-value head serves as many queries.'
      )

  def build(self, key: Array) -> Decoder:
    return Decoder(self, key)


Config = DecoderConfig  # of gin: decoder.Config.emb_dim = 8


class DecoderCache(NamedTuple):
  """Keys and values of the tokens read so far."""

  length: Int[Array, 'B']
  past: Source  # of every layer


class TransformerBlock(nnx.Module):
  """Self-attention, then the MLP; each reads the normalised x and adds to x."""

  def __init__(self, config: DecoderConfig, key: Array):
    self.config = config
    norm = functools.partial(layers.RMSNorm, eps=config.norm_eps, offset=config.norm_offset)
    keys = jax.random.split(key)
    self.relative_bias = positions.relative_bias(
      config, jax.random.fold_in(key, 2), bidirectional=False, per_layer=True
    )
    self.attention = attention.Attention(
      keys[0],
      config.emb_dim,
      config.num_heads,
      config.head_dim,
      num_kv_heads=config.num_kv_heads,
      query_stddev=_query_stddev(config),
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
    view: View,
    frequencies: Float[Array, 'H/2'] | None,
    bias: Float[Array, '#B N T S'] | None,
    *,
    past: Sequence[Source] = (),
    fused: Callable[..., Array] | None = None,
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], Source]:
    """Attend to `past` and x itself, and hand back what x adds to the past.

    Without rotary `frequencies`, relative biases say where tokens stand: `bias`, that of all
    layers, or the layer's own. `fused` may attend in the place of plain products.
    """
    rate = self.config.dropout_rate
    add = lambda x, y, fold: x + layers.dropout(y, rate, layers.fold(key, fold))
    y = self.attention_norm(x)

    def turn(norm: layers.RMSNorm | None, x: Array) -> Array:
      x = _apply(norm, x)
      return x if frequencies is None else positions.rotate(x, view.positions, frequencies)

    query = turn(self.query_norm, self.attention.query(y))
    new = attention.source(turn(self.key_norm, self.attention.key(y)), self.attention.value(y))
    plain = lambda query, new: attention.attend(
      query,
      [*past, new],
      view.mask,
      **_scores(self.config),
      bias=positions.bias(self.relative_bias, view.distance) if bias is None else bias,
      rate=rate,
      key=layers.fold(key, 0),
    )
    read = fused(plain, query, new) if fused else plain(query, new)
    x = add(x, _apply(self.post_attention_norm, self.attention.out(read)), 1)
    y = self.mlp(self.mlp_norm(x), rate=rate, key=layers.fold(key, 2))
    x = add(x, _apply(self.post_mlp_norm, y), 3)
    return layers.constrain(x, 'batch', 'length', 'activation_embed'), new


def _windows(config: DecoderConfig) -> list[int | None]:
  """How many tokens layers see, each number once."""
  return list(dict.fromkeys(config.window_pattern))


def _scores(config: DecoderConfig) -> dict[str, Any]:
  """What happens to the inner products of queries and keys."""
  scale = config.query_scale or config.head_dim**-0.5
  return {'scale': scale, 'cap': config.attention_softcap}


def _query_stddev(config: DecoderConfig) -> float | None:
  """Of initial queries, so that query_scale and they make up 1 / sqrt(H)."""
  if config.query_scale is None:
    return None
  return (config.emb_dim * config.head_dim) ** -0.5 / config.query_scale


def _apply(norm: layers.RMSNorm | None, x: Array) -> Array:
  return x if norm is None else norm(x)


def _within_prompt(view: View, weights: Float[Array, 'B T'] | None) -> Bool[Array, 'B T T']:
  """Queries and keys that both belong to the prompt of one segment: no token to learn is before."""
  if weights is None:
    raise ValueError(
      'A model with bidirectional_prompt=True needs the `weights` of a batch, which tell prompts '
      'from its targets, and this batch has none.'
    )
  learned = view.mask & (view.distance < 0) & (weights > 0)[:, None]
  prompt = ~learned.any(-1)
  return view.mask & prompt[:, :, None] & prompt[:, None]


def _repeat(pattern: Sequence[Any], num: int) -> list[Any]:
  return [pattern[i % len(pattern)] for i in range(num)]


class Decoder(nnx.Module):
  """A `types.LanguageModel` whose prompt stands left of the targets."""

  def __init__(self, config: DecoderConfig, key: Array):
    keys = jax.random.split(key, 3)
    self.config = config
    # So that the logits of a new model have unit variance, however they are scaled.
    stddev = config.emb_dim**-0.5 / config.logit_scale
    table = functools.partial(layers.table, config.vocab_size, config.emb_dim, stddev=stddev)
    self.embedding = table(keys[0])
    self.unembedding = None if config.logits_via_embedding else table(keys[1])
    self.relative_bias = positions.relative_bias(
      config, jax.random.fold_in(key, 3), bidirectional=False, per_layer=False
    )
    self.blocks = layers.stack(
      functools.partial(TransformerBlock, config), keys[2], config.num_layers
    )
    self.norm = layers.RMSNorm(config.emb_dim, eps=config.norm_eps, offset=config.norm_offset)

  def hidden(self, batch: Batch, key: Array | None = None) -> Float[Array, 'B T D']:
    """Final states. Right padding needs no mask; packed examples do not see each other."""
    if batch.encoder is not None:
      raise ValueError(
        'A decoder-only batch carries its prompt in `inputs`, but this one has `encoder` tokens; '
        'make it with the decoder-only converter, or train an encoder-decoder on it.'
      )
    places = batch.positions
    if places is None:
      places = jnp.arange(batch.inputs.shape[1])[None]
    whole = attention.view(places, batch.segments)
    view = attention.causal(whole)
    if self.config.bidirectional_prompt:
      view = view._replace(mask=view.mask | _within_prompt(whole, batch.weights))
    x, _ = self._run(batch.inputs, view, fused=self._fused(batch, key), key=key)
    return x

  def _fused(self, batch: Batch, key: Array | None) -> Callable[..., Array] | None:
    """Attention by one kernel, where there is one: causal, and nothing added or dropped."""
    config = self.config
    biased = config.bidirectional_prompt or config.relative_attention_num_buckets is not None
    dropping = key is not None and config.dropout_rate > 0
    if biased or dropping or not splash.fits(batch.inputs.shape[1]):
      return None
    return functools.partial(
      splash.attend_or, segments=batch.segments, windows=_windows(config), **_scores(config)
    )

  @property
  def table(self) -> Any:
    return (self.embedding if self.unembedding is None else self.unembedding)[...]

  def readout(self, hidden: Float[Array, '*n D'], table: Any = None) -> Float[Array, '*n V']:
    scaled = hidden * self.config.logit_scale
    logits = layers.unembed(self.table if table is None else table, scaled)
    return layers.softcap(logits, self.config.logit_softcap)

  def prefill(self, prompt: Prompt, max_len: int) -> tuple[Float[Array, 'B V'], DecoderCache]:
    """Read the prompt. Its padding enters the cache beyond `length`, where nothing looks."""
    B, S = prompt.tokens.shape
    view = attention.causal(attention.view(jnp.arange(S)[None], None))
    if self.config.bidirectional_prompt:
      view = view._replace(mask=jnp.arange(S) < prompt.length[:, None, None])
    x, past = self._run(prompt.tokens, view)
    last = x[jnp.arange(B), jnp.maximum(prompt.length - 1, 0)]
    return self.readout(last), DecoderCache(prompt.length, attention.room(past, max_len))

  def extend(
    self, tokens: Int[Array, 'B L'], cache: DecoderCache
  ) -> tuple[Float[Array, 'B L V'], DecoderCache]:
    L = tokens.shape[1]
    view = attention.cached_view(cache.length, cache.past[0].shape[-1], L)
    x, new = self._run(tokens, view, past=cache.past)
    past = attention.append(cache.past, new, cache.length)
    return self.readout(x), DecoderCache(cache.length + L, past)

  def _run(
    self,
    tokens: Int[Array, 'B T'],
    view: View,
    *,
    past: Source | None = None,
    fused: Callable[..., Array] | None = None,
    key: Array | None = None,
  ) -> tuple[Float[Array, 'B T D'], Source]:
    """Final states, and what the tokens add to the past of every layer."""
    config = self.config
    windows = _windows(config)

    def step(
      block: TransformerBlock, x: Array, scanned: Any, key: Array | None
    ) -> tuple[Array, Source]:
      which, frequencies, past = scanned
      seen = view._replace(mask=view.mask & (view.distance > -sizes[which]))
      kernel = fused and functools.partial(fused, which=which)
      return block(x, seen, frequencies, bias, past=[past] if past else [], fused=kernel, key=key)

    sizes = jnp.asarray([window or NO_WINDOW for window in windows])
    which = [windows.index(w) for w in _repeat(config.window_pattern, config.num_layers)]
    rotary = config.relative_attention_num_buckets is None
    turns = jnp.asarray(frequencies(config), jnp.float32) if rotary else None
    xs = (jnp.asarray(which), turns, past)
    bias = positions.bias(self.relative_bias, view.distance)
    x = layers.embed(self.embedding[...], tokens, config.dtype)
    x = layers.dropout(x * config.embedding_scale, config.dropout_rate, layers.fold(key, 0))
    x, new = layers.scan_layers(
      self.blocks, step, x, xs, key=layers.fold(key, 1), remat_policy=config.remat_policy
    )
    return layers.dropout(self.norm(x), config.dropout_rate, layers.fold(key, 2)), new


def frequencies(config: DecoderConfig) -> Float[np.ndarray, 'layers H/2']:
  """Rotary frequencies of every layer."""
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
