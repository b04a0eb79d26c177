"""Attention with grouped queries: projections, masks, and the cache of keys and values.

Axes: B batch, T queries, S keys, D width, N heads, K key-value heads (N = K x G), H head size.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades.models import layers

MASKED = -1e30  # a logit; not -inf, which would turn a row without any key into NaN


class KeyValue(NamedTuple):
  """Keys and values, each in the layout its product reads: decoding steps transpose no cache."""

  key: Float[Array, '*layers B K H S']
  value: Float[Array, '*layers B K S H']

  @property
  def capacity(self) -> int:
    """The number of tokens S."""
    return self.key.shape[-1]


class Attention(nnx.Module):
  """The query, key, value and output projections around `attend`."""

  def __init__(
    self,
    key: Array,
    emb_dim: int,
    num_heads: int,
    head_dim: int,
    *,
    num_kv_heads: int | None = None,
    query_stddev: float | None = None,
    qkv_bias: bool = False,
  ):
    keys = jax.random.split(key, 4)
    embed, heads = {'embed': emb_dim}, {'heads': num_heads, 'head_dim': head_dim}
    kv_heads = {'kv_heads': num_kv_heads or num_heads, 'head_dim': head_dim}
    self.query = layers.Projection(keys[0], embed, heads, stddev=query_stddev, bias=qkv_bias)
    self.key = layers.Projection(keys[1], embed, kv_heads, bias=qkv_bias)
    self.value = layers.Projection(keys[2], embed, kv_heads, bias=qkv_bias)
    self.out = layers.Projection(keys[3], heads, embed)

  def key_value(self, x: Float[Array, 'B S D']) -> KeyValue:
    """Project `x` to keys and values."""
    return key_value(self.key(x), self.value(x))

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    key_values: Sequence[KeyValue],
    visible: Bool[Array, '#B #T S'],
    *,
    bias: Float[Array, '#B N T S'] | None = None,
    rate: float = 0.0,
    key: Array | None = None,
  ) -> Float[Array, 'B T D']:
    """Attend from `x` to the visible keys, without rotary positions or scaling."""
    return self.out(attend(self.query(x), key_values, visible, bias=bias, rate=rate, key=key))


def key_value(key: Float[Array, 'B S K H'], value: Float[Array, 'B S K H']) -> KeyValue:
  """Transpose projected keys and values into the layout of `KeyValue`."""
  return KeyValue(jnp.einsum('BSKH->BKHS', key), jnp.einsum('BSKH->BKSH', value))


def attend(
  query: Float[Array, 'B T N H'],
  key_values: Sequence[KeyValue],
  visible: Bool[Array, '#B #T S'],
  *,
  scale: float = 1.0,
  cap: float | None = None,
  bias: Float[Array, '#B N T S'] | None = None,
  rate: float = 0.0,
  key: Array | None = None,
) -> Float[Array, 'B T N H']:
  """Grouped-query attention: softmax(softcap(scale q k) + bias) v.

  A query without any visible key gets the mean of all values, not NaN.

  Args:
    query: Queries. Head n reads key-value head n // G; keys and values are never repeated.
    key_values: Keys and values that are read as if concatenated along S, such as a cache and the
      new tokens, without copying them into one array.
    visible: Keys that each query may attend to.
    scale: Factor of the inner products.
    cap: Bound of `layers.softcap`; None for no cap.
    bias: Added to the logits after the cap.
    rate: Dropout rate of the attention weights.
    key: Random key of dropout; None switches it off.

  Returns:
    The weighted means of the values, in the dtype of `query`.
  """
  B, T, N, H = query.shape
  K = key_values[0].key.shape[1]
  query = layers.constrain(query, 'batch', 'length', 'activation_heads', 'head_dim')
  grouped = jnp.einsum('BTKGH->BKGTH', (query * scale).reshape(B, T, K, N // K, H))
  products = [
    jnp.einsum('BKGTH,BKHS->BKGTS', grouped, keys, preferred_element_type=jnp.float32)
    for keys, _ in key_values
  ]
  logits = layers.softcap(jnp.concatenate(products, -1), cap)
  if bias is not None:
    logits += bias.reshape(bias.shape[0], K, N // K, *bias.shape[2:])
  logits = jnp.where(visible[:, None, None], logits, MASKED)
  weights = layers.dropout(jax.nn.softmax(logits).astype(query.dtype), rate, key)
  splits = tuple(itertools.accumulate(product.shape[-1] for product in products[:-1]))
  outputs = [
    jnp.einsum('BKGTS,BKSH->BKGTH', block, values)
    for block, (_, values) in zip(jnp.split(weights, splits, -1), key_values, strict=True)
  ]
  output = jnp.einsum('BKGTH->BTKGH', functools.reduce(operator.add, outputs))
  return layers.constrain(
    output.reshape(B, T, N, H), 'batch', 'length', 'activation_heads', 'head_dim'
  )


class AttentionMask(NamedTuple):
  """The keys that each query sees, with the positions that biases and rotations need."""

  positions: Int[Array, '#B T']  # of the queries
  relative_positions: Int[Array, '#B T S']  # key less query, as in T5
  visible: Bool[Array, '#B T S']


def self_attention_mask(
  positions: Int[Array, '#B T'], segments: Int[Array, '#B T'] | None
) -> AttentionMask:
  """Bidirectional attention within segments; None is one segment."""
  relative_positions = positions[:, None, :] - positions[:, :, None]
  visible = (
    jnp.ones_like(relative_positions, bool)
    if segments is None
    else segment_mask(segments, segments)
  )
  return AttentionMask(positions, relative_positions, visible)


def segment_mask(
  query_segments: Int[Array, '#B T'], key_segments: Int[Array, '#B S']
) -> Bool[Array, '#B T S']:
  """True where query and key belong to the same segment."""
  return query_segments[:, :, None] == key_segments[:, None, :]


def causal(mask: AttentionMask) -> AttentionMask:
  """Hide the keys that come after their query."""
  return mask._replace(visible=mask.visible & (mask.relative_positions <= 0))


def decoding_mask(length: Int[Array, 'B'], capacity: int, num_tokens: int) -> AttentionMask:
  """Causal attention of `num_tokens` new tokens to the cache and to themselves.

  The keys are the `capacity` entries of the cache, of which the first `length` are visible, then
  the new tokens. Entries beyond `length` are never read, so shortening it rejects tokens.
  """
  positions = length[:, None] + jnp.arange(num_tokens)
  cached = jnp.broadcast_to(jnp.arange(capacity), (len(length), capacity))
  key_positions = jnp.concatenate([cached, positions], 1)
  written = jnp.concatenate([cached < length[:, None], jnp.ones_like(positions, bool)], 1)
  relative_positions = key_positions[:, None, :] - positions[:, :, None]
  return causal(AttentionMask(positions, relative_positions, written[:, None, :]))


def allocate(cache: KeyValue, num_tokens: int) -> KeyValue:
  """Pad the cache with room for `num_tokens` more tokens."""
  key, value = cache
  pad = lambda x, axis: jnp.pad(x, [(0, num_tokens * (i == axis)) for i in range(x.ndim)])
  return KeyValue(pad(key, key.ndim - 1), pad(value, value.ndim - 2))


def first_rows(cache: KeyValue, count: int) -> KeyValue:
  """Keys and values of the first rows, in one layer."""
  return KeyValue(cache.key[:count], cache.value[:count])


def overwrite(length: Int[Array, 'B'], first: Int[Array, 'b']) -> Int[Array, 'B']:
  """Lengths of a cache with new ones of its first rows."""
  return jax.lax.dynamic_update_slice_in_dim(length, first, 0, 0)


def append(cache: KeyValue, new: KeyValue, length: Int[Array, 'B']) -> KeyValue:
  """Write `new` after the first `length` tokens of each row, in all layers; overflow is dropped.

  Where `new` has fewer rows than the cache, it belongs to the first ones.

  Axes: X layers, L new tokens.
  """
  key, value = cache
  rows = jnp.arange(new.key.shape[1])[:, None]
  columns = length[:, None] + jnp.arange(new.capacity)
  new_key, new_value = jnp.einsum('XBKHL->BLXKH', new.key), jnp.einsum('XBKLH->BLXKH', new.value)
  return KeyValue(
    key.at[:, rows, :, :, columns].set(new_key, mode='drop'),
    value.at[:, rows, :, columns].set(new_value, mode='drop'),
  )


def insert(
  cache: KeyValue, row: int | Array, other: KeyValue, other_row: int | Array = 0
) -> KeyValue:
  """Overwrite the start of row `row` with row `other_row` of `other`, in all layers.

  Entries beyond the capacity of `other` keep their values: the length of the row hides them.
  Both rows may be traced. Raises ValueError if `other` has the larger capacity.
  """
  if other.capacity > cache.capacity:
    raise ValueError(
      f'a cache with a capacity of {other.capacity} tokens does not fit into one of '
      f'{cache.capacity}: prefill the running batch with the longest prompt and max_len.'
    )
  return KeyValue(
    cache.key.at[:, row, :, :, : other.capacity].set(other.key[:, other_row], mode='drop'),
    cache.value.at[:, row, :, : other.capacity].set(other.value[:, other_row], mode='drop'),
  )
