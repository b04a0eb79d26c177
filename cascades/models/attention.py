"""Attention with grouped queries: its projections, who sees whom, and what is remembered.

Axes: B batch, T queries, S keys, D width, N heads, K key-value heads (N = K x G), H head size.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades.models import layers

# Keys and values, each laid out as its product reads it: a cache is not transposed at every step.
Source: TypeAlias = tuple[Float[Array, '*layers B K H S'], Float[Array, '*layers B K S H']]


class Attention(nnx.Module):
  """The four projections of attention; `attend` is what lies between them."""

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

  def source(self, x: Float[Array, 'B S D']) -> Source:
    """What others attend to in `x`."""
    return source(self.key(x), self.value(x))

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    sources: Sequence[Source],
    mask: Bool[Array, '#B #T S'],
    *,
    bias: Float[Array, '#B N T S'] | None = None,
    rate: float = 0.0,
    key: Array | None = None,
  ) -> Float[Array, 'B T D']:
    """What `x` finds in the sources, without positions or scaling of its own."""
    return self.out(attend(self.query(x), sources, mask, bias=bias, rate=rate, key=key))


def source(keys: Float[Array, 'B S K H'], values: Float[Array, 'B S K H']) -> Source:
  """Lay out what projections give."""
  return jnp.einsum('BSKH->BKHS', keys), jnp.einsum('BSKH->BKSH', values)


def attend(
  query: Float[Array, 'B T N H'],
  sources: Sequence[Source],
  mask: Bool[Array, '#B #T S'],
  *,
  scale: float = 1.0,
  cap: float | None = None,
  bias: Float[Array, '#B N T S'] | None = None,
  rate: float = 0.0,
  key: Array | None = None,
) -> Float[Array, 'B T N H']:
  """softmax(softcap(scale q k) + bias) v, over the keys of all sources one after the other.

  Each of the K key-value heads serves G neighbouring queries, without being repeated. A query that
  sees no key gets the mean of all values, not NaN.
  """
  B, T, N, H = query.shape
  K = sources[0][0].shape[1]
  query = layers.constrain(query, 'batch', 'length', 'activation_heads', 'head_dim')
  grouped = jnp.einsum('BTKGH->BKGTH', (query * scale).reshape(B, T, K, N // K, H))
  scores = [
    jnp.einsum('BKGTH,BKHS->BKGTS', grouped, keys, preferred_element_type=jnp.float32)
    for keys, _ in sources
  ]
  logits = layers.softcap(jnp.concatenate(scores, -1), cap)
  if bias is not None:
    logits += bias.reshape(bias.shape[0], K, N // K, *bias.shape[2:])
  logits = jnp.where(mask[:, None, None], logits, -1e30)
  weights = layers.dropout(jax.nn.softmax(logits).astype(query.dtype), rate, key)
  ends = itertools.accumulate(part.shape[-1] for part in scores[:-1])
  read = [
    jnp.einsum('BKGTS,BKSH->BKGTH', part, values)
    for part, (_, values) in zip(jnp.split(weights, tuple(ends), -1), sources, strict=True)
  ]
  joined = jnp.einsum('BKGTH->BTKGH', functools.reduce(operator.add, read)).reshape(B, T, N, H)
  return layers.constrain(joined, 'batch', 'length', 'activation_heads', 'head_dim')


class View(NamedTuple):
  """Where the queries stand, how far each key is from them (key less query), and which they see."""

  positions: Int[Array, '#B T']
  distance: Int[Array, '#B T S']
  mask: Bool[Array, '#B T S']


def view(positions: Int[Array, '#B T'], segments: Int[Array, '#B T'] | None) -> View:
  """Every token sees its own segment; None is one segment."""
  distance = positions[:, None, :] - positions[:, :, None]
  mask = jnp.ones_like(distance, bool) if segments is None else same(segments, segments)
  return View(positions, distance, mask)


def same(query: Int[Array, '#B T'], key: Int[Array, '#B S']) -> Bool[Array, '#B T S']:
  """Which queries and keys belong to the same segment."""
  return query[:, :, None] == key[:, None, :]


def causal(view: View) -> View:
  """Nothing sees what comes after it."""
  return view._replace(mask=view.mask & (view.distance <= 0))


def cached_view(length: Int[Array, 'B'], capacity: int, num: int) -> View:
  """`num` new tokens see the first `length` of `capacity` cached ones, themselves and before.

  Only `length` decides, never what the cache holds beyond it: shortening it forgets tokens.
  """
  positions = length[:, None] + jnp.arange(num)
  cached = jnp.broadcast_to(jnp.arange(capacity), (len(length), capacity))
  keys = jnp.concatenate([cached, positions], 1)
  written = jnp.concatenate([cached < length[:, None], jnp.ones_like(positions, bool)], 1)
  distance = keys[:, None, :] - positions[:, :, None]
  return causal(View(positions, distance, written[:, None, :]))


def room(cache: Source, num: int) -> Source:
  """Space for `num` more entries."""
  pad = lambda x, axis: jnp.pad(x, [(0, num if i == axis else 0) for i in range(x.ndim)])
  keys, values = cache
  return pad(keys, keys.ndim - 1), pad(values, values.ndim - 2)


def append(cache: Source, new: Source, length: Int[Array, 'B']) -> Source:
  """Write `new` behind the first `length` entries of each row, in all layers; drop what overflows.

  X is the layers, L the new entries.
  """
  keys, values = cache
  rows = jnp.arange(keys.shape[1])[:, None]
  columns = length[:, None] + jnp.arange(new[0].shape[-1])
  fresh_keys, fresh_values = jnp.einsum('XBKHL->BLXKH', new[0]), jnp.einsum('XBKLH->BLXKH', new[1])
  return (
    keys.at[:, rows, :, :, columns].set(fresh_keys, mode='drop'),
    values.at[:, rows, :, columns].set(fresh_values, mode='drop'),
  )
